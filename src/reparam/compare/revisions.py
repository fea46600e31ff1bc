"""The working copy and revisions of git, which DVC reads -> Experiment."""

import csv
import io
from collections.abc import Callable, Mapping
from contextlib import closing, suppress
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from reparam.cards.card import CARD
from reparam.cards.evaluation import EvaluationCard, EvaluationMetrics
from reparam.cards.export import ExportMetrics
from reparam.cards.model import ModelCard, Result, TrainedParams, TrainingMetrics
from reparam.compare.experiment import SAMPLES, SCORES, Experiment, read_scores, spread
from reparam.config import Config, flatten
from reparam.errors import UserError
from reparam.paths import Paths

WORKSPACE = "workspace"
T = TypeVar("T")
R = TypeVar("R", bound=Result)


def read_workspace(paths: Paths) -> Experiment:
    """Read what lies in the working copy.

    Raises: UserError where nothing does.
    """

    def read(name: str) -> bytes | None:
        path = paths.root / name
        return path.read_bytes() if path.is_file() else None

    how = "run `dvc repro`"
    return Files(paths, read, how, how).experiment(WORKSPACE, "working copy")


def read_revision(name: str, paths: Paths) -> Experiment | None:
    """Read a commit, branch, tag or experiment of DVC, through DVC's cache; None where git knows no such revision.

    Raises: UserError where several experiments have the name, or nothing of one can be read.
    """
    from dvc.api import DVCFileSystem
    from dvc.exceptions import DvcException
    from scmrepo.exceptions import SCMError

    with closing(DVCFileSystem(str(paths.root), rev=name)) as revision:
        try:
            commit = revision.repo.get_rev()
        except (DvcException, SCMError) as error:  # also where there is no repository
            if str(error).startswith("ambiguous"):
                raise UserError(
                    f"{name}: several experiments of DVC have this name; give the commit that `dvc exp show` lists"
                ) from None
            return None
        except AttributeError:  # as DVC has it where git knows the name of a file or a tree, which is no commit
            return None

        def read(file: str) -> bytes | None:
            # DVC raises an OSError of whatever kind where the cache, or a remote, does not have the file.
            with suppress(OSError, DvcException):
                return bytes(revision.read_bytes(f"/{file}"))
            return None

        again = f"`dvc exp apply {name}` (of a commit `git checkout {name}`) and `dvc repro` make it anew"
        hint = (
            f"`dvc fetch` gets what is on a remote, or {again}"
            if revision.exists("/dvc.lock")
            else "it was not run at this revision: run `dvc exp run`, and compare that experiment"
        )
        short = commit[:7]
        files = Files(paths, read, hint, again)
        return files.experiment(short if commit.startswith(name) else name, f"revision {short}")


class Files:
    """The files of one revision.

    `read` returns the content of a path below the root of the project, None where it is not there; `get` says how to
    get what is missing, `again` how to make all anew.
    """

    def __init__(self, paths: Paths, read: Callable[[str], bytes | None], get: str, again: str) -> None:
        self.paths = paths
        self.read = read
        self.how_to_get = get
        self.how_to_make = again
        self.found = 0
        self.missing: list[str] = []
        self.stale: list[Path] = []
        self.notes: list[str] = []

    def experiment(self, name: str, origin: str) -> Experiment:
        """Read all that there is of an experiment.

        Raises: UserError where nothing is there.
        """
        paths = self.paths
        params = self.get(paths.params, _read_params) or {}
        model = self.get(paths.model / CARD, ModelCard.parse)
        training = self.get(paths.training_metrics, TrainingMetrics.parse)
        trained = model or training
        evaluation = self.of(trained, paths.evaluation_metrics, EvaluationMetrics.parse)
        export = self.of(trained, paths.export_metrics, ExportMetrics.parse)
        card = self.of(trained, paths.evaluation_card, EvaluationCard.parse)
        split, losses = self.get(paths.history, _read_losses) or ("", {})
        samples = self.get(paths.figures / SAMPLES, bytes)
        scores = self.get(paths.evaluation_card.with_name(SCORES), read_scores, is_needed=False)
        is_stale = paths.evaluation_card in self.stale
        if not self.found:
            raise UserError(f"{name} ({origin}): wanted an experiment, found none of its files; {self.how_to_get}")
        if self.missing:
            self.notes.append(f"not found: {', '.join(self.missing)}; {self.how_to_get}")
        if model and _are_others(params, model):
            self.notes.append(
                f"{paths.relative(paths.params)} was changed after training: the parameters are not those of the "
                "results; run `dvc repro`"
            )
        return Experiment(
            name=name,
            origin=origin,
            params=spread(params),
            metrics={
                key: value for part in (training, evaluation, export) if part for key, value in part.values.items()
            },
            conditions=_conditions(card) if card else {},
            losses=losses,
            loss_split=split,
            samples=None if is_stale else samples,
            scores={} if is_stale or not scores else scores,
            notes=tuple(self.notes),
        )

    def get(self, path: Path, parse: Callable[[bytes], T], *, is_needed: bool = True) -> T | None:
        """Read and parse a file, or note that it is missing or damaged."""
        name = self.paths.relative(path)
        content = self.read(name)
        if content is None:
            self.missing += [name] if is_needed else []
            return None
        try:
            value = parse(content)
        except (ValueError, KeyError, TypeError, IndexError, YAMLError) as error:
            self.notes.append(f"{name}: damaged: {error}")
            return None
        self.found += 1
        return value

    def of(self, trained: ModelCard | TrainingMetrics | None, path: Path, parse: Callable[[bytes], R]) -> R | None:
        """Read what was made of the trained model; withhold and note what was made of another one."""
        result = self.get(path, parse)
        if result is None or trained is None:
            return result
        if result.is_of(trained) if isinstance(trained, ModelCard) else result.made_of == trained.weights:
            return result
        self.stale.append(path)
        self.notes.append(
            f"{self.paths.relative(path)}: withheld, because it is of another model (weights {result.made_of}) than "
            f"what was trained (weights {trained.weights}); {self.how_to_make}"
        )
        return None


def _conditions(card: EvaluationCard) -> dict[str, Any]:
    measured = {"data": card.lineage.data, "images": card.images, "binarization": card.binarization}
    return {**measured, **flatten(card.settings)}


def _read_params(content: bytes) -> dict[str, Any]:
    values = YAML(typ="safe", pure=True).load(content.decode())
    if not isinstance(values, dict):
        raise ValueError("no sections of parameters")  # noqa: TRY004  shown as damaged
    return values


def _read_losses(content: bytes) -> tuple[str, dict[int, float]]:
    rows = list(csv.DictReader(io.StringIO(content.decode())))
    split = "validation" if "validation_loss" in rows[0] else "train"
    return split, {int(float(row["epoch"])): float(row[f"{split}_loss"]) for row in rows}


def _are_others(params: Mapping[str, Any], model: ModelCard) -> bool:
    """Whether the parameters are certainly not those that the model was trained with."""
    try:
        config = Config.model_validate(params)
    except ValidationError:  # of an older or newer version of the project
        return False
    return TrainedParams.of(config) != TrainedParams.of(model)
