"""`params.yaml` -> Config, or a message that lists everything that is wrong with it."""

import difflib
import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from reparam.config.download import DownloadConfig
from reparam.config.evaluate import EvaluateConfig
from reparam.config.export import ExportConfig
from reparam.config.model import ModelConfig
from reparam.config.objective import ObjectiveConfig
from reparam.config.preprocess import PreprocessConfig
from reparam.config.report import ReportConfig
from reparam.config.section import Section, describe_problem, describe_type, shorten
from reparam.config.train import TrainConfig
from reparam.config.yaml import read_yaml
from reparam.errors import ParamsError

Location = tuple[int | str, ...]
LISTED = 50  # problems: a person corrects these first
SHIPPED = Path(__file__).with_name("params.yaml")  # the defaults
MOVED = {"download.mirrors": "REPARAM_MIRRORS", "train.pictures_every": "REPARAM_PICTURES_EVERY"}  # from params.yaml


class Config(Section):
    """The whole of `params.yaml`."""

    download: DownloadConfig
    preprocess: PreprocessConfig
    model: ModelConfig
    objective: ObjectiveConfig
    train: TrainConfig
    evaluate: EvaluateConfig
    export: ExportConfig
    report: ReportConfig


def load_config(path: Path) -> Config:
    """Read and check `params.yaml`.

    Raises: ParamsError that lists every wrong parameter with its path, what was wanted and what was found.
    """
    return check_config(read_yaml(path), str(path))


def check_config(values: Any, name: str) -> Config:
    """Check the values of a params file; `name` is what messages call it.

    Raises: ParamsError as `load_config`.
    """
    if not isinstance(values, dict):
        raise ParamsError(f"{name}: wanted sections of parameters, found {shorten(repr(values))}")
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        found = error.errors(include_url=False)
        parents = {item["loc"][:-1] for item in found}
        # pydantic does not count a wrong item, so a list that holds one may pass for too short.
        wrong = [item for item in found if item["type"] != "too_short" or item["loc"] not in parents]
        count = f"{len(wrong)} problem{'s' if len(wrong) > 1 else ''}"
        more = [f"and {len(wrong) - LISTED} more"] if len(wrong) > LISTED else []
        problems = [*map(_describe, wrong[:LISTED]), *more]
        raise ParamsError(f"{name}: {count}\n" + "\n".join(f"  {p}" for p in problems)) from None


def flatten(values: Section | Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Name every parameter by its dotted path, and spell it as params.yaml does."""
    flat: dict[str, Any] = {}
    for name, value in values.items() if isinstance(values, Mapping) else values:
        path = f"{prefix}{name}"
        if isinstance(value, Section | Mapping):
            flat |= flatten(value, f"{path}.")
        else:
            flat[path] = list(value) if isinstance(value, tuple) else value
    return flat


def params_hash(values: dict[str, Any]) -> str:
    """Hash parameters by value: neither the order nor the layout of the file changes it."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def section_at(path: Location) -> type[Section] | None:
    """Return the class of a section or block; None if the path leads to neither."""
    found: type[Section] | None = Config
    for part in path:
        found = found.blocks().get(str(part)) if found else None
    return found


def paths_of(section: type[Section] = Config, prefix: str = "", *, blocks: bool = False) -> Iterator[str]:
    """Yield the dotted path of each parameter, in the order of params.yaml, and with `blocks` those of blocks."""
    inner = section.blocks()
    for name in section.model_fields:
        if name not in inner or blocks:
            yield f"{prefix}{name}"
        if name in inner:
            yield from paths_of(inner[name], f"{prefix}{name}.", blocks=blocks)


def close_paths(path: str) -> list[str]:
    """Guess the parameters that an unknown path means: those of the same name elsewhere, otherwise a similar one."""
    parent, _, name = path.rpartition(".")
    section = path.split(".")[0]
    known = sorted(paths_of(blocks=True), key=lambda other: other.split(".")[0] != section)  # its own section first
    by_name = [other for other in known if name in (other.rpartition(".")[2], "_".join(other.split(".")[1:]))]
    here = [other for other in by_name if other.split(".")[0] == section] or by_name
    if here:
        return here
    owner = section_at(tuple(parent.split("."))) if parent else Config
    if owner and (near := difflib.get_close_matches(name, owner.model_fields, n=1)):
        return [f"{parent}.{near[0]}" if parent else near[0]]
    return difflib.get_close_matches(path, known, n=1, cutoff=0.75)


def hint(path: str, otherwise: str) -> str:
    """Suggest a parameter of similar spelling, or name the environment variable that replaced a parameter."""
    if path in MOVED:
        return f"set {MOVED[path]} in the environment instead"
    close = " or ".join(map(repr, close_paths(path)))
    return f"did you mean {close}?" if close else otherwise


def _describe(problem: Any) -> str:
    location: Location = problem["loc"]
    found = shorten(repr(problem["input"]))
    match problem["type"]:
        case "missing":
            return f"{describe_problem(problem)}; wanted {_wanted(location)}"
        case "extra_forbidden":
            path = ".".join(map(str, location))
            return f"{shorten(path)}: unknown parameter, found {found}; {hint(path, 'remove it')}"
        case "model_type":
            return f"{'.'.join(map(str, location))}: wanted {_wanted(location)}, found {found}"
    return describe_problem(problem)


def _wanted(location: Location) -> str:
    section = section_at(location)
    if section is None:
        return describe_type(schema_at(location))
    if len(location) == 1:
        return "a section of parameters"
    return f"a block of parameters ({', '.join(section.model_fields)})"


def schema_at(location: Location) -> Mapping[str, Any]:
    """Return the JSON schema of a parameter."""
    owner = section_at(location[:-1])
    assert owner is not None
    schema: Mapping[str, Any] = owner.model_json_schema()["properties"][str(location[-1])]
    return schema
