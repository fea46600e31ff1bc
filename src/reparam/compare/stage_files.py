"""The stages' files, of any revision -> Experiment."""

import csv
import io
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from reparam.compare.experiment import SETTINGS, Experiment, spread
from reparam.config import Config, params_hash
from reparam.errors import UserError
from reparam.paths import Paths

T = TypeVar("T")

TRAINED = ("model", "objective", "train")  # the sections that the hash of a model's parameters is of
CONDITIONS = ("images", "binarization", *SETTINGS)


class Files:
    """The files of one revision; counts what is missing.

    `read` returns the content of a path below the root of the project, None where it is not there.
    """

    def __init__(self, paths: Paths, read: Callable[[str], bytes | None]) -> None:
        self.paths = paths
        self.read = read
        self.found = False
        self.missing: list[str] = []
        self.notes: list[str] = []

    def get(self, path: Path, parse: Callable[[bytes], T]) -> T | None:
        """Read and parse a file, or note that it is missing or damaged."""
        name = self.paths.relative(path)
        content = self.read(name)
        if content is None:
            self.missing.append(name)
            return None
        try:
            value = parse(content)
        except (ValueError, KeyError, TypeError, AttributeError, IndexError, YAMLError):
            self.notes.append(f"{name}: damaged")
            return None
        self.found = True
        return value


def assemble(name: str, origin: str, files: Files, hint: str) -> Experiment:
    """Read all that there is of an experiment; `hint` says how to get what is missing.

    Raises: UserError where nothing is there.
    """
    paths = files.paths
    params = files.get(paths.params, _read_params) or {}
    training = files.get(paths.training_metrics, _read_metrics) or {}
    evaluation = files.get(paths.evaluation_metrics, _read_metrics) or {}
    card = files.get(paths.evaluation_card, _read_card) or {}
    split, losses = files.get(paths.history, _read_losses) or ("", {})
    samples = files.get(paths.figures / "samples.png", bytes)
    if not files.found:
        raise UserError(f"{name} ({origin}): wanted an experiment, found none of its files; {hint}")
    if files.missing:
        files.notes.append(f"not found: {', '.join(files.missing)}; {hint}")
    lineage, facts = card.get("lineage", {}), spread(card)
    if _are_others(params, lineage):
        files.notes.append(
            f"{paths.relative(paths.params)} was changed after training: the parameters are not those of the results; "
            "run `dvc repro`"
        )
    return Experiment(
        name=name,
        origin=origin,
        params=spread(params),
        metrics=training | evaluation,
        conditions={key: facts[key] for key in CONDITIONS if facts.get(key) is not None}
        | ({"data": lineage["data"]} if "data" in lineage else {}),
        losses=losses,
        loss_split=split,
        samples=samples,
        notes=tuple(files.notes),
    )


def _read_params(content: bytes) -> dict[str, Any]:
    values = YAML(typ="safe", pure=True).load(content.decode())
    if not isinstance(values, dict):
        raise ValueError(values)  # noqa: TRY004  told as damaged
    return values


def _read_card(content: bytes) -> dict[str, Any]:
    return dict(json.loads(content))


def _read_metrics(content: bytes) -> dict[str, float]:
    return {name: float(value) for name, value in json.loads(content).items()}


def _read_losses(content: bytes) -> tuple[str, dict[int, float]]:
    rows = list(csv.DictReader(io.StringIO(content.decode())))
    split = "validation" if "validation_loss" in rows[0] else "train"
    return split, {int(float(row["epoch"])): float(row[f"{split}_loss"]) for row in rows}


def _are_others(params: Mapping[str, Any], lineage: Mapping[str, str]) -> bool:
    """Whether the parameters are certainly not those that the model was trained with."""
    try:
        config = Config.model_validate(params)
    except ValidationError:  # of an older or newer version of the project
        return False
    given = params_hash({name: getattr(config, name).model_dump(mode="json") for name in TRAINED})
    return lineage.get("params_sha256", given) != given
