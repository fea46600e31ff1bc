"""Which parameters and metrics of experiments differ, and which by more than noise.

All experiments are scored on the same test images. Their errors are correlated then (an image that is hard for one is
hard for the other), so the standard error of a difference that is taken here, as of independent samples, is too large
rather than too small: a verdict is conservative.
"""

import ast
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from reparam.compare.experiment import Experiment

BEYOND = 2.0  # standard errors: about 95 % of a normal distribution lie within
HIGHER = {"elbo", "accuracy", "precision", "recall", "density", "coverage", "auroc"}
LOWER = {"nll", "reconstruction", "bce", "bits", "frechet", "loss", "error", "gap"}
# Metrics that words of their names mislead about: 1 where higher is better, 0 where neither is (0 is best).
DIRECTIONS = {"nll_effective_samples": 1, "ais_minus_nll": 0}
# Only the importance-sampled log-likelihood depends on K: fewer samples bound it more loosely.
SAMPLED = {"nll", "nll_effective_samples", "bits_per_dim", "auroc", "ais_minus_nll"}
ANNEALED = {"ais_nll", "ais_minus_nll", "ais_gap"}
QUALITY = {"pca_precision", "pca_recall", "pca_density", "pca_coverage", "pca_frechet"}
LIKELIHOODS = {"elbo", "nll", "ais_nll", "reconstruction"}
# Likelihoods of the 256 grey values are probabilities, at most 1; those of real numbers are densities.
DISCRETE = {"discretised_logistic", "logistic_mixture"}
ABSENT = "—"


class Condition(NamedTuple):
    """What metrics were measured on or how, and which depend on it."""

    key: str
    text: str
    metrics: set[str] | None  # None: all
    is_new: bool = True  # evaluations of old do not tell it


CONDITIONS = (
    Condition("data", "the processed data are", None, is_new=False),
    Condition("split", "the split is", None),
    Condition("images", "the number of test images is", None, is_new=False),
    Condition("binarization", "the binarization of test images is", None, is_new=False),
    Condition("nll_samples", "the number K of importance samples is", SAMPLED, is_new=False),
    Condition("outliers", "the outliers are", {"auroc"}),
    Condition("annealing.images", "the number of annealed images is", ANNEALED),
    Condition("annealing.chains", "the number of annealed chains is", ANNEALED),
    Condition("annealing.steps", "the number of annealing steps is", ANNEALED),
    Condition("generated.images", "the number of generated images is", QUALITY),
    Condition("generated.components", "the number of principal components is", QUALITY),
    Condition("neighbours", "the number of neighbours is", QUALITY | {"knn_accuracy"}),
)


@dataclass(frozen=True)
class Difference:
    """Of a metric from that of the first experiment; without an error there is no verdict."""

    value: float
    error: float | None
    verdict: str  # better, worse, differs, within noise, or nothing


@dataclass(frozen=True)
class Cell:
    """A metric of one experiment; `difference` is None for the first, and where one of the two does not have it."""

    value: float | None
    error: float | None
    difference: Difference | None


@dataclass(frozen=True)
class Obstacle:
    """Why some metrics of an experiment give no verdict against the first."""

    reason: str
    metrics: Sequence[str]


@dataclass(frozen=True)
class Comparison:
    """Experiments side by side; every row has a cell for each, in their order."""

    experiments: Sequence[Experiment]
    params: Mapping[str, Sequence[str]]  # those that differ
    equal_params: int
    metrics: Mapping[str, Sequence[Cell]]
    obstacles: Sequence[str]


def compare(experiments: Sequence[Experiment]) -> Comparison:
    """Compare all with the first."""
    first = experiments[0]
    names = _union(experiment.params for experiment in experiments)
    differing = {name: row for name in names if (row := _param_row(name, experiments))}
    obstacles = [[] if other is first else find_obstacles(first, other) for other in experiments]
    metrics = {}
    for name in _union(experiment.metrics for experiment in experiments):
        if not name.endswith("_se"):
            metrics[name] = [
                _cell(name, first, other, is_barred=any(name in obstacle.metrics for obstacle in barring))
                for other, barring in zip(experiments, obstacles, strict=True)
            ]
    return Comparison(
        experiments,
        differing,
        len(names) - len(differing),
        metrics,
        [
            f"{other.name}: {obstacle.reason}; no verdict on {', '.join(obstacle.metrics)}"
            for other, barring in zip(experiments, obstacles, strict=True)
            for obstacle in barring
        ],
    )


def find_obstacles(first: Experiment, other: Experiment) -> list[Obstacle]:
    """Say why the metrics of two experiments do not compare, if they do not."""
    shared = [name for name in first.metrics if name in other.metrics]
    judged = [name for name in shared if f"{name}_se" in first.metrics and f"{name}_se" in other.metrics]
    found = []
    for key, what, depending, is_new in CONDITIONS:
        theirs, ours = (experiment.conditions.get(key, "not known") for experiment in (other, first))
        if theirs != ours or (theirs == "not known" and not is_new):
            barred = judged if depending is None else [name for name in shared if name in depending]
            found.append(Obstacle(f"{what} {theirs}, of {first.name} {ours}", barred))
    likelihoods = [experiment.params.get("model.likelihood") for experiment in (other, first)]
    if len({likelihood in DISCRETE for likelihood in likelihoods}) == 2:
        reason = f"the likelihood is {likelihoods[0]}, of {first.name} {likelihoods[1]}: one is a density, one is not"
        found.append(Obstacle(reason, [name for name in judged if name in LIKELIHOODS]))
    return [obstacle for obstacle in found if obstacle.metrics]


def judge(metric: str, difference: float, error: float) -> str:
    """Give a verdict on a difference from the first experiment and its standard error."""
    if abs(difference) <= BEYOND * error:
        return "within noise"
    direction = _direction(metric)
    if not direction:
        return "differs"
    return "better" if direction * difference > 0 else "worse"


def spell(value: float, error: float | None = None, sign: str = "") -> str:
    """Write a number, with its error to two digits and no more places than that has."""
    if not error or not math.isfinite(error):
        return f"{value:{sign}.6g}" if value else "0"
    places = max(0, 1 - math.floor(math.log10(error)))
    return f"{value:{sign}z.{places}f} ± {error:.{places}f}"


def _cell(name: str, first: Experiment, other: Experiment, *, is_barred: bool) -> Cell:
    value, error = other.metrics.get(name), other.metrics.get(f"{name}_se")
    start, start_error = first.metrics.get(name), first.metrics.get(f"{name}_se")
    if other is first or value is None or start is None:
        return Cell(value, error, None)
    if error is None or start_error is None:
        return Cell(value, error, Difference(value - start, None, ""))
    combined = math.hypot(error, start_error)
    # The error of a single image is not known, and written as 0.
    is_known = combined > 0 and math.isfinite(combined) and math.isfinite(value - start)
    verdict = judge(name, value - start, combined) if is_known and not is_barred else ""
    return Cell(value, error, Difference(value - start, combined, verdict))


def _direction(metric: str) -> int:
    """Tell 1 where higher is better, -1 where lower is, 0 where neither is."""
    words = set(metric.split("_"))
    return DIRECTIONS.get(metric, -1 if words & LOWER else int(bool(words & HIGHER)))


def _param_row(name: str, experiments: Sequence[Experiment]) -> list[str]:
    """Spell a parameter of each experiment; nothing where it is the same in all that know its section."""
    section = name.split(".")[0]
    knowing = [
        experiment for experiment in experiments if any(known.split(".")[0] == section for known in experiment.params)
    ]
    values = {_canonical(experiment.params[name]) if name in experiment.params else ABSENT for experiment in knowing}
    if len(values) == 1:
        return []
    return [
        _spell_param(_value(experiment.params[name])) if name in experiment.params else ABSENT
        for experiment in experiments
    ]


def _value(value: Any) -> Any:
    """Turn text of MLflow's, which knows no other type, back into what params.yaml holds."""
    if isinstance(value, str):
        try:
            return ast.literal_eval(value)
        except (ValueError, SyntaxError):
            return value
    return value


def _canonical(value: Any) -> str:
    """Write equal values equally: 1 and 1.0 are one number."""

    def plain(item: Any) -> Any:
        if isinstance(item, list | tuple):
            return [plain(part) for part in item]
        return float(item) if isinstance(item, int) and not isinstance(item, bool) else item

    return json.dumps(plain(_value(value)), default=str)


def _spell_param(value: Any) -> str:
    """Write a value as params.yaml does."""
    if isinstance(value, list | tuple):
        return f"[{', '.join(_spell_param(item) for item in value)}]"
    return json.dumps(value) if value is None or isinstance(value, bool) else str(value)


def _union(mappings: Iterable[Mapping[str, Any]]) -> list[str]:
    """Collect keys, in the order of their first appearance."""
    return list(dict.fromkeys(name for mapping in mappings for name in mapping))
