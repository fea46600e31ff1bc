"""Find the parameters and metrics in which experiments differ, and differences beyond noise."""

import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean, stdev, variance
from typing import Any

import numpy as np
import numpy.typing as npt

from reparam.compare.experiment import Experiment
from reparam.metrics import ERROR, HEADLINE, VALIDATION, describe

BEYOND = 2.0  # standard errors: about 95 % of a normal distribution lie within
SEED = "train.seed"
ABSENT = "—"
LOSS = "best_validation_loss"


@dataclass(frozen=True)
class Difference:
    """The difference of a metric from that of the first experiment; without an error there is no verdict."""

    value: float
    error: float | None
    verdict: str  # better, worse, differs, within noise, or nothing
    is_paired: bool = False  # whether the error is that of the differences of the same images


@dataclass(frozen=True)
class Cell:
    """A metric of one experiment, or of several seeds; `difference` is None for the first, or if a value is missing."""

    value: float | None
    error: float | None
    difference: Difference | None


@dataclass(frozen=True)
class Comparison:
    """Experiments side by side; every row has a cell for each, in their order."""

    experiments: Sequence[Experiment]
    params: Mapping[str, Sequence[str]]  # those that differ
    equal_params: int
    metrics: Mapping[str, Sequence[Cell]]
    deciding: str  # the metric by which to choose; empty if there is none
    groups: Sequence[str]  # experiments that differ in the seed alone, by their names; none where no seed is repeated
    seeds: Mapping[str, Sequence[Cell]]  # by metric, means and standard deviations over the seeds of each group
    notes: Sequence[str]


def compare(experiments: Sequence[Experiment]) -> Comparison:
    """Compare all with the first."""
    first = experiments[0]
    names = _union(experiment.params for experiment in experiments)
    differing = {name: row for name in names if (row := _param_row(name, experiments))}
    obstacles = [[] if other is first else find_obstacles(first, other) for other in experiments]
    barred = [{name for obstacle in found for name in obstacle.metrics} for found in obstacles]
    deciding = choose_metric(experiments)
    known = _union(experiment.metrics for experiment in experiments)
    order = [name for name in (deciding, *HEADLINE) if name in known]
    measured = [name for name in dict.fromkeys([*order, *known]) if not name.endswith(ERROR)]
    metrics = {
        name: [_cell(name, first, other, name in bars) for other, bars in zip(experiments, barred, strict=True)]
        for name in measured
    }
    groups = _groups(experiments)
    are_several = any(len(group) > 1 for group in groups)
    barring = [
        f"{other.name}: {one.what}, that of {first.name} is {one.ours}; no verdict on {', '.join(one.metrics)}"
        for other, found in zip(experiments, obstacles, strict=True)
        for one in found
        if first.conditions and other.conditions  # otherwise files are absent, and the notes of their side say why
    ]
    return Comparison(
        experiments=experiments,
        params=differing,
        equal_params=len(names) - len(differing),
        metrics=metrics,
        deciding=deciding,
        groups=[", ".join(experiments[i].name for i in group) for group in groups] if are_several else [],
        seeds={name: _seed_row(name, cells, groups, barred) for name, cells in metrics.items()} if are_several else {},
        notes=[*barring, *_on_pairs(experiments, metrics), *_on_seeds(experiments, groups)],
    )


def choose_metric(experiments: Sequence[Experiment]) -> str:
    """Return the metric by which to choose among models: on the validation split, so that the test split stays unseen.

    That is the ELBO, and of models whose latents cost nothing the reconstruction; nothing if none has been scored.
    """
    known = _union(experiment.metrics for experiment in experiments)
    free = () if "kl" in known else ("reconstruction", "bce")
    return next((name for part in ("elbo", *free) if (name := f"{part}{VALIDATION}") in known), "")


@dataclass(frozen=True)
class Obstacle:
    """Something that differs from the first experiment, so that metrics do not compare."""

    what: str  # of the other experiment
    ours: str  # of the first
    metrics: Sequence[str]
    is_of_images: bool = False  # whether the images differ


def find_obstacles(first: Experiment, other: Experiment) -> list[Obstacle]:
    """Return the reasons why metrics of two experiments do not compare."""
    shared = [name for name in first.metrics if name in other.metrics]
    judged = [name for name in shared if f"{name}{ERROR}" in first.metrics and f"{name}{ERROR}" in other.metrics]
    known = {name: metric for name in shared if (metric := describe(name))}
    likelihoods = [name for name, metric in known.items() if metric.is_likelihood]
    depending = {
        key: [name for name in judged if key in _images_of(name)]
        for key in dict.fromkeys(key for name in judged for key in _images_of(name))
    }
    depending["scaling"] = likelihoods
    for key in _union(dict.fromkeys(metric.depends) for metric in known.values()):
        depending[key] = [name for name, metric in known.items() if key in metric.depends]
    found = []
    for key, barred in depending.items():
        theirs, ours = (experiment.conditions.get(key, "not known") for experiment in (other, first))
        if theirs != ours or key not in other.conditions:
            found.append(Obstacle(f"{key} is {_brief(theirs)}", _brief(ours), barred, key.endswith("_sha256")))
    unknown = [experiment.name for experiment in (first, other) if not experiment.conditions]
    if unknown:
        barred = _union(dict.fromkeys(obstacle.metrics) for obstacle in found)
        found = [Obstacle(f"the evaluation of {' and '.join(unknown)} is not known", "", barred)]
    return [obstacle for obstacle in [*found, *_of_objectives(first, other, likelihoods)] if obstacle.metrics]


def _of_objectives(first: Experiment, other: Experiment, likelihoods: Sequence[str]) -> Iterator[Obstacle]:
    """Find what makes losses, or densities, other quantities."""
    # Likelihoods of the 256 grey values are probabilities, at most 1; those of real numbers are densities.
    if {experiment.conditions.get("is_discrete") for experiment in (other, first)} == {True, False}:
        kinds = [experiment.params.get("model.likelihood") for experiment in (other, first)]
        ours = f"{kinds[1]}: only one is of the 256 grey values"
        yield Obstacle(f"the likelihood is {kinds[0]}", ours, likelihoods)
    minimised = [name for name in _union([first.params, other.params]) if name.startswith("objective.")]
    differing = {name: row for name in minimised if (row := _param_row(name, [first, other]))}
    if differing and LOSS in first.metrics and LOSS in other.metrics:
        theirs = " and ".join(f"{name} is {row[1]}" for name, row in differing.items())
        yield Obstacle(theirs, " and ".join(row[0] for row in differing.values()), [LOSS])


def _brief(condition: object) -> str:
    """Shorten hashes to their first digits."""
    return re.sub(r"\b([0-9a-f]{8})[0-9a-f]{24,}\b", r"\1", str(condition))


def _images_of(name: str) -> tuple[str, ...]:
    """Name the conditions that identify the images that a metric was measured on."""
    metric = describe(name)
    images = (f"{metric.split}_sha256",) if metric and metric.split else ("split", "images_sha256")
    return (*images, "binarization")


def judge(metric: str, start: float, difference: float, noise: float) -> str:
    """Give a verdict on a difference from the metric of the first experiment."""
    if abs(difference) <= noise:
        return "within noise"
    return {True: "better", False: "worse", None: "differs"}[is_better(metric, start + difference, start)]


def is_better(name: str, value: float, than: float) -> bool | None:
    """Return whether a value of a metric is better than another; None if the metric has no best value."""
    metric = describe(name)
    return rank(name, value) < rank(name, than) if metric and metric.best else None


def rank(name: str, value: float) -> float:
    """Turn a value into a number that is the smaller the better."""
    metric = describe(name)
    match metric.best if metric else "":
        case "higher":
            return -value
        case "0" | "1" as best:
            return abs(value - float(best))
    return value


def spell(value: float, error: float | None = None, sign: str = "") -> str:
    """Write a number, with its error to two digits and no more places than that has."""
    if not error or not math.isfinite(error):
        return f"{value:{sign}.6g}" if value else "0"
    places = max(0, 1 - math.floor(math.log10(abs(error))))  # of a damaged file it may be negative
    return f"{value:{sign}z.{places}f} ± {error:.{places}f}"


def _cell(name: str, first: Experiment, other: Experiment, is_barred: bool) -> Cell:
    value, error = other.metrics.get(name), other.metrics.get(f"{name}{ERROR}")
    start, start_error = first.metrics.get(name), first.metrics.get(f"{name}{ERROR}")
    if other is first or value is None or start is None:
        return Cell(value, error, None)
    if error is None or start_error is None:
        return Cell(value, error, None if is_barred else Difference(value - start, None, ""))
    pairs = _pairs(name, first, other)
    if pairs is None:
        difference, noise = value - start, math.hypot(error, start_error)
    else:
        difference, noise = float(pairs.mean()), float(pairs.std(ddof=1)) / math.sqrt(len(pairs))
    # The error of a single image is not known, and written as 0.
    is_known = noise > 0 and math.isfinite(noise) and math.isfinite(difference)
    verdict = judge(name, start, difference, BEYOND * noise) if is_known and not is_barred else ""
    return Cell(value, error, Difference(difference, noise, verdict, pairs is not None))


def _pairs(name: str, first: Experiment, other: Experiment) -> npt.NDArray[np.float64] | None:
    """Return the differences of a metric on each image; None unless both were measured on the same images.

    An image that is hard for one model is hard for the other: an error as of independent images would be far too large.
    """
    images = [[experiment.conditions.get(key) for key in _images_of(name)] for experiment in (first, other)]
    ours, theirs = (experiment.scores.get(name) for experiment in (first, other))
    if None in images[0] or images[0] != images[1] or ours is None or theirs is None:
        return None
    if not all(_are_of(values, one.metrics.get(name)) for values, one in ((ours, first), (theirs, other))):
        return None
    return theirs - ours if ours.shape == theirs.shape and len(ours) > 1 else None


def _are_of(values: npt.NDArray[np.float64], mean: float | None) -> bool:
    """Return whether a metric, which is rounded to four digits, is the mean of these values."""
    return mean is not None and bool(abs(values.mean() - mean) < 1e-4)


def _on_pairs(experiments: Sequence[Experiment], metrics: Mapping[str, Sequence[Cell]]) -> Iterator[str]:
    """Name the metrics whose differences are those of the same images."""
    for i, experiment in list(enumerate(experiments))[1:]:
        if not (experiments[0].conditions and experiment.conditions):
            continue
        of_other = {name: cells[i].difference for name, cells in metrics.items()}
        for is_paired, text in ((True, "paired, same images"), (False, "not paired, as of independent images")):
            names = [name for name, it in of_other.items() if it and it.error is not None and it.is_paired == is_paired]
            if names:
                yield f"{experiment.name}: {text}: {', '.join(names)}"


def _mean_and_deviation(values: Sequence[float]) -> Cell:
    """Average over seeds; the spread of a single one is not known."""
    return Cell(fmean(values) if values else None, stdev(values) if len(values) > 1 else None, None)


def _between(name: str, first: Sequence[float], other: Sequence[float], is_barred: bool) -> Difference | None:
    """Compare means over seeds. Source: Welch 1947."""
    from scipy.special import stdtrit  # quantiles of Student's t

    if not first or not other:
        return None
    difference = fmean(other) - fmean(first)
    if min(len(first), len(other)) < 2:
        return Difference(difference, None, "")
    parts = [(variance(values) / len(values), len(values) - 1) for values in (first, other)]
    error = math.sqrt(sum(part for part, _ in parts))
    if not error or is_barred:
        return Difference(difference, error, "")
    freedom = error**4 / sum(part**2 / count for part, count in parts)
    return Difference(difference, error, judge(name, fmean(first), difference, stdtrit(freedom, 0.975) * error))


def _groups(experiments: Sequence[Experiment]) -> list[list[int]]:
    """Put experiments together that differ in the seed of training alone; each seed counts once."""
    groups: dict[str, dict[str, int]] = {}
    for i, experiment in enumerate(experiments):
        others = {name: _canonical(value) for name, value in experiment.params.items() if name != SEED}
        seed = _canonical(experiment.params.get(SEED, experiment.name))
        groups.setdefault(json.dumps(others, sort_keys=True), {}).setdefault(seed, i)
    return [list(members.values()) for members in groups.values()]


def _seed_row(
    name: str, cells: Sequence[Cell], groups: Sequence[Sequence[int]], barred: Sequence[set[str]]
) -> list[Cell]:
    """Average a metric over the seeds of each group."""
    values = [[value for i in group if (value := cells[i].value) is not None] for group in groups]
    bars = [any(name in barred[i] for i in group) for group in groups]
    differences = [None, *(_between(name, values[0], *other) for other in zip(values[1:], bars[1:], strict=True))]
    return [replace(_mean_and_deviation(of), difference=it) for of, it in zip(values, differences, strict=True)]


def _on_seeds(experiments: Sequence[Experiment], groups: Sequence[Sequence[int]]) -> Iterator[str]:
    """Say what verdicts are about, and name the experiments whose spread between seeds is unknown."""
    yield "A verdict on single experiments is about their weights: another seed gives other weights."
    single = [experiments[group[0]].name for group in groups if len(group) == 1]
    if single:
        names = ", ".join(single)
        yield f"{names}: the spread between seeds is unknown with one seed; compare several values of {SEED}"


def _param_row(name: str, experiments: Sequence[Experiment]) -> list[str]:
    """Spell a parameter of each experiment; nothing if it is the same in all that know its section."""
    section = f"{name.partition('.')[0]}."
    values = [experiment.params.get(name, ABSENT) for experiment in experiments]
    is_known = [any(known.startswith(section) for known in experiment.params) for experiment in experiments]
    different = {_canonical(value) for value, known in zip(values, is_known, strict=True) if known}
    return [_spell_param(value) for value in values] if len(different) > 1 else []


def _canonical(value: Any) -> str:
    """Write equal values equally: 1 and 1.0 are one number."""
    return json.dumps(json.loads(json.dumps(value, default=str), parse_int=float))


def _spell_param(value: Any) -> str:
    """Write a value as params.yaml does."""
    if isinstance(value, list | tuple):
        return f"[{', '.join(_spell_param(item) for item in value)}]"
    return json.dumps(value) if value is None or isinstance(value, bool) else str(value)


def _union(mappings: Iterable[Mapping[str, Any]]) -> list[str]:
    """Collect keys, in the order of their first appearance."""
    return list(dict.fromkeys(name for mapping in mappings for name in mapping))
