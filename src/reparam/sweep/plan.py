"""sweep.yaml -> Plan: what a study varies, what it optimises, and how."""

import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError

from reparam.config import Config
from reparam.config.document import ALL
from reparam.config.load import check_config, close_paths, flatten, hint, paths_of, schema_at
from reparam.config.section import Count, Section, Seed, describe_problem
from reparam.config.yaml import read_yaml
from reparam.errors import ParamsError
from reparam.metrics import METRICS, VALIDATION, describe, stage_of

NAME = r"^[A-Za-z0-9][A-Za-z0-9_-]{0,49}$"  # the names of trials are names of DVC experiments
Direction = Literal["maximize", "minimize"]  # as Optuna calls them
DIRECTIONS: dict[str, Direction] = {"higher": "maximize", "lower": "minimize"}
HUGE = 1e9


@dataclass(frozen=True)
class Choices:
    """A parameter that takes one of some values."""

    values: tuple[Any, ...]

    @property
    def grid(self) -> tuple[Any, ...]:
        """The values as a study stores them: plain, lists as JSON."""
        return tuple(json.dumps(value) if isinstance(value, list) else value for value in self.values)

    def suggest(self, trial: Any, path: str) -> Any:
        """Let a trial of Optuna choose."""
        return self.values[self.grid.index(trial.suggest_categorical(path, self.grid))]

    @property
    def extremes(self) -> tuple[Any, ...]:
        return self.values


class Range(Section):
    """A parameter that takes a number between two: a whole number, if both ends and the parameter are whole numbers."""

    low: float | int
    high: float | int
    log: bool = False
    step: float | int | None = None

    @property
    def extremes(self) -> tuple[Any, ...]:
        return self.low, self.high

    @property
    def is_whole(self) -> bool:
        return isinstance(self.low, int) and isinstance(self.high, int)

    @property
    def grid(self) -> tuple[Any, ...]:
        step = self.step or 1
        count = math.floor((self.high - self.low) / step + 1e-9) + 1
        return tuple(round(self.low + number * step, 12) for number in range(count))

    def suggest(self, trial: Any, path: str) -> Any:
        """Let a trial of Optuna choose."""
        high = self.grid[-1] if self.step else self.high
        if self.is_whole:
            return trial.suggest_int(path, self.low, high, log=self.log, step=self.step or 1)
        return trial.suggest_float(path, self.low, high, log=self.log, step=self.step)

    def problem(self, *, as_grid: bool) -> str:
        """Describe what is wrong with the numbers in themselves, whatever parameter they are for."""
        if self.low > self.high:
            return f"wanted low at most high, found {self.low} and {self.high}"
        if self.log and (self.low <= 0 or self.step is not None):
            return "log: wanted low above 0 and no step"
        if self.step is not None and self.step <= 0:
            return f"step: wanted a number above 0, found {self.step}"
        if self.step is not None and self.is_whole != isinstance(self.step, int):
            return f"step: wanted a number of the kind of low and high, found {self.step}"
        if as_grid and (self.log or (self.step is None and not self.is_whole)):
            return "wanted choices, or a step without log: a grid has a number of values"
        return ""


class SweepFile(Section):
    """The file as it is written."""

    study: Annotated[str, Field(pattern=NAME)]
    metric: str = f"elbo{VALIDATION}"
    trials: Count | None = None
    sampler: Literal["tpe", "grid", "random"] = "tpe"
    seed: Seed = 0
    pruner: Literal["none", "median", "hyperband"] = "none"
    parameters: Annotated[dict[str, Any], Field(min_length=1)]
    fixed: dict[str, Any] = Field(default_factory=dict)


@dataclass(frozen=True)
class Plan:
    """A study, checked against the parameters of the working copy."""

    file: SweepFile
    space: Mapping[str, Choices | Range]
    base: Mapping[str, Any]  # params.yaml, unchanged
    trials: int

    @property
    def study(self) -> str:
        return self.file.study

    @property
    def metric(self) -> str:
        return self.file.metric

    def name_of(self, number: int) -> str:
        """Name a trial, and its DVC experiment."""
        return f"{self.study}-{number}"

    @property
    def direction(self) -> Direction:
        metric = describe(self.metric)
        assert metric is not None
        return DIRECTIONS[metric.best]

    @property
    def stage(self) -> str:
        """Return the stage that measures the metric: trials end with it."""
        return stage_of(self.metric)

    @cached_property
    def _flat(self) -> dict[str, Any]:
        return flatten(check_config(self.base, "params.yaml"))

    @property
    def epochs(self) -> int | None:
        """Return how many epochs a trial has at most; None if trials differ in it."""
        path = "train.epochs"
        return None if path in self.space else self.file.fixed.get(path, self._flat[path])

    def spell(self, params: Mapping[str, Any]) -> dict[str, str]:
        """Spell the parameters of a trial for people: last words of their paths where these are clear, few digits."""
        words = Counter(path.rpartition(".")[2] for path in self.space)
        names = {path: word if words[word := path.rpartition(".")[2]] == 1 else path for path in self.space}
        found = {path: params.get(path) for path in self.space}
        return {
            names[path]: f"{value:.4g}" if isinstance(value, float) else str(value) for path, value in found.items()
        }

    def config(self, values: Mapping[str, Any]) -> Config:
        """Return the parameters of a trial.

        Raises: ParamsError.
        """
        return check_config(changed(self.base, {**self.file.fixed, **values}), self.study)

    def overrides(self, values: Mapping[str, Any]) -> list[str]:
        """Spell what differs from params.yaml as `dvc exp run -S` takes it."""
        wanted = flatten(self.config(values))
        set_here = {**self.file.fixed, **values}
        return [f"{path}={spell(value)}" for path, value in set_here.items() if wanted[path] != self._flat[path]]


def read_plan(path: Path, params: Path, trials: int | None = None) -> Plan:
    """Read sweep.yaml beside params.yaml; `trials` replaces the number in the file.

    Raises: ParamsError that lists all that is wrong, before a trial starts.
    """
    if not path.exists():
        raise ParamsError(f"{path}: not found; docs/how-to/sweeps.md shows one")
    values = read_yaml(path)
    if not isinstance(values, dict):
        raise ParamsError(f"{path}: wanted named values, found {values!r}")
    base = read_yaml(params)
    config = check_config(base, str(params))
    try:
        file = SweepFile.model_validate(values)
    except ValidationError as error:
        raise _refusal(path, [describe_problem(item) for item in error.errors(include_url=False)]) from None
    problems = [*_metric_problems(file, config), *_fixed_problems(file, base)]
    if not problems:
        base_of_trials, space = changed(base, file.fixed), dict[str, Choices | Range]()
        for name, values in file.parameters.items():
            problems += _add_parameter(space, name, values, file, base_of_trials)
    count = trials or file.trials
    if file.sampler == "grid" and not problems:
        size = math.prod(len(one.grid) for one in space.values())
        count = min(count or size, size)
    elif count is None:
        problems.append("trials: missing; wanted the number of trials, here or by --n-trials")
    if problems or count is None:
        raise _refusal(path, problems)
    return Plan(file, space, base, count)


def changed(values: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Copy nested parameters, with new values for some. These are named by dotted paths, and exist."""
    copy = json.loads(json.dumps(values))
    for path, value in changes.items():
        *blocks, name = path.split(".")
        owner = copy
        for block in blocks:
            owner = owner[block]
        owner[name] = value
    return copy  # type: ignore[no-any-return]


def spell(value: Any) -> str:
    """Spell a value in the grammar of `dvc exp run -S`, which is Hydra's."""
    if isinstance(value, str):
        quoted = value.replace("\\", "\\\\").replace("'", "\\'")
        return f"'{quoted}'"
    if isinstance(value, list | tuple):
        return f"[{','.join(map(spell, value))}]"
    return json.dumps(value)


def _refusal(path: Path, problems: list[str]) -> ParamsError:
    count = f"{len(problems)} problem{'s' if len(problems) > 1 else ''}"
    return ParamsError(f"{path}: {count}\n" + "\n".join(f"  {problem}" for problem in problems))


def _metric_problems(file: SweepFile, config: Config) -> Iterator[str]:
    metric = describe(file.metric)
    if metric is None or metric.best not in DIRECTIONS:
        wanted = ", ".join(name for name, one in METRICS.items() if one.best in DIRECTIONS)
        yield f"metric: wanted one that is better high or low (elbo{VALIDATION}, {wanted}), found {file.metric!r}"
    elif file.metric.endswith(VALIDATION) and not config.preprocess.validation:
        yield f"metric: {file.metric} needs images that validate, found preprocess.validation 0 in params.yaml"
    if file.pruner != "none" and not config.preprocess.validation:
        yield f"pruner: {file.pruner} needs images that validate, found preprocess.validation 0 in params.yaml"


def _fixed_problems(file: SweepFile, base: Mapping[str, Any]) -> Iterator[str]:
    for path, value in file.fixed.items():
        if path in file.parameters:
            yield f"fixed.{path}: is also among `parameters`; remove one of them"
        yield from _unknown("fixed", path) or _value_problems("fixed", path, [value], base)


def _add_parameter(
    space: dict[str, Choices | Range], path: str, values: Any, file: SweepFile, base: Mapping[str, Any]
) -> list[str]:
    """Add a parameter to the space, or return what is wrong with it."""
    if unknown := _unknown("parameters", path):
        return unknown
    where = f"parameters.{path}"
    if isinstance(values, list) and values:
        one: Choices | Range = Choices(tuple(values))
    elif isinstance(values, dict):
        try:
            one = _range(path, values)
        except ValidationError as error:
            return [f"{where}.{describe_problem(item)}" for item in error.errors(include_url=False)]
        if problem := one.problem(as_grid=file.sampler == "grid"):
            return [f"{where}: {problem}"]
    else:
        return [f"{where}: wanted a list of choices, or low and high (with log or step), found {values!r}"]
    space[path] = one
    return list(_value_problems("parameters", path, one.extremes, base))


def _range(path: str, values: Mapping[str, Any]) -> Range:
    schema = schema_at(tuple(path.split(".")))
    kinds = {one.get("type") for one in (schema, *schema.get("anyOf", ()))}
    found = Range.model_validate(values)
    if "number" in kinds:  # 1 and 4 are numbers as others are, not the ends of whole ones
        numbers = {name: float(value) for name, value in found if isinstance(value, int) and name != "log"}
        return found.model_copy(update=numbers)
    return found


def _unknown(where: str, path: str) -> list[str]:
    if path in paths_of():
        return []
    close = [name for name in close_paths(path) if name in set(paths_of())]
    return [f"{where}.{path}: no such parameter; {hint(path, ALL) if close else ALL}"]


def _value_problems(where: str, path: str, values: Any, base: Mapping[str, Any]) -> Iterator[str]:
    for value in values:
        try:
            check_config(changed(base, {path: value}), "")
        except ParamsError as error:
            yield from (f"{where}.{line.strip()}" for line in str(error).splitlines()[1:])


def spell_value(value: float | None, form: str = ".2f") -> str:
    """Spell the value of a trial, if there is one; that of a model that diverged may have 30 digits."""
    if value is None:
        return ""
    return f"{value:z{form}}" if abs(value) < HUGE else f"{value:.2g}"
