"""The working copy and revisions of git, which DVC reads -> Experiment."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from reparam.cards.card import CARD, MANIFEST
from reparam.cards.evaluation import EvaluationCard, EvaluationMetrics
from reparam.cards.export import ExportCard, ExportMetrics
from reparam.cards.model import ModelCard, Result, TrainedParams, TrainingMetrics
from reparam.compare.experiment import SAMPLES, Experiment, checked, read_scores
from reparam.config import Config, flatten
from reparam.config.yaml import parse_yaml
from reparam.errors import UserError
from reparam.files import parse_table
from reparam.paths import Paths

WORKSPACE = "workspace"
AFTER_TRAINING = {"evaluate": ("reports/evaluation/",), "export": ("reports/export/", "models/onnx/")}
NO_REMOTE = "auto-generated-upstream"  # DVC then takes the cache of the clone for a remote
T = TypeVar("T")
R = TypeVar("R", bound=Result)


def read_workspace(paths: Paths) -> Experiment:
    """Read what lies in the working copy.

    Raises: UserError if nothing does.
    """

    def read(name: str) -> bytes | None:
        path = paths.root / name
        return path.read_bytes() if path.is_file() else None

    return Files(paths, read, "run `dvc repro`").experiment(WORKSPACE, "working copy")


def read_revision(name: str, paths: Paths) -> Experiment | None:
    """Read a commit, branch, tag or experiment of DVC, through DVC's cache; None if git knows no such revision.

    Raises: UserError if several experiments have the name, or nothing of one can be read.
    """
    from dvc.api import DVCFileSystem
    from dvc.exceptions import DvcException
    from dvc_data.index import DataIndexDirError
    from scmrepo.exceptions import SCMError

    with closing(DVCFileSystem(str(paths.root), rev=name)) as revision:
        try:
            commit = revision.repo.get_rev()
        except (DvcException, SCMError) as error:  # also if there is no repository
            if str(error).startswith("ambiguous"):
                raise UserError(
                    f"{name}: several experiments of DVC have this name; give the commit that `dvc exp show` lists"
                ) from None
            return None
        except AttributeError:  # from DVC, if git knows the name as a file or a tree, not as a commit
            return None

        def read(file: str) -> bytes | None:
            # DVC raises an OSError of some kind if the cache, or a remote, does not have the file.
            with suppress(OSError, DvcException, DataIndexDirError):
                return bytes(revision.read_bytes(f"/{file}"))
            return None

        hint = f"`dvc exp apply {name}` (of a commit `git checkout {name}`) and `dvc repro` make it again"
        has_remote = revision.repo.config["core"].get("remote", NO_REMOTE) != NO_REMOTE
        why = _why_absent(name, has_remote=has_remote)
        if not revision.exists("/dvc.lock"):
            hint, why = "run `dvc exp run`, and compare that experiment", "it was not run at this revision"
        short = commit[:7]
        origin = f"revision {short}"
        files = Files(paths, read, hint, why, _not_run(read("dvc.lock") or b""))
        return files.experiment(short if commit.startswith(name) else name, origin)


def _not_run(lock: bytes) -> dict[str, str]:
    """Map outputs to their stage, of the stages after `train` whose results are not of the model in this lock.

    A sweep by a metric of the training runs no stage after it: those of the commit that it started from stay in the
    lock, or there are none.
    """
    stages = (parse_yaml(lock.decode()) or {}).get("stages", {}) if lock else {}
    model = {out["path"]: out.get("md5") for out in stages.get("train", {}).get("outs", [])}
    found = dict[str, str]()
    for stage, results in AFTER_TRAINING.items() if model else ():
        used = {dep["path"]: dep.get("md5") for dep in stages.get(stage, {}).get("deps", [])}
        if any(used.get(path, value) != value for path, value in model.items()) or not used:
            found |= dict.fromkeys(results, stage)
    return found


def _why_absent(name: str, *, has_remote: bool) -> str:
    """Say why outputs of a revision lie neither in the cache nor on its remote."""
    if has_remote:
        return (
            f"they were not pushed, or the remote does not answer: `dvc exp push origin {name}` (of a commit `dvc "
            "push`) sends them from where they are"
        )
    return (
        "no remote was named when it was made, so they were not pushed: run it once more, where they are, from a "
        "commit that names one, and push that"
    )


@dataclass
class Files:
    """The files of one revision.

    `read` returns the content of a path below the root of the project, None if it is not there; `hint` is the next
    step if a file is missing or of another model; `why` says why files may be missing; `not_run` maps the beginnings of
    paths to the stage that did not run.
    """

    paths: Paths
    read: Callable[[str], bytes | None]
    hint: str
    why: str = ""
    not_run: Mapping[str, str] = field(default_factory=dict)
    is_any_found: bool = False
    missing: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def experiment(self, name: str, origin: str) -> Experiment:
        """Read all that there is of an experiment.

        Raises: UserError if nothing is there.
        """
        paths = self.paths
        params = self.get(paths.params, _read_params) or {}
        model = self.get(paths.model / CARD, ModelCard.parse)
        weights = model.weights if model else None
        training = self.result_of(weights, paths.training_metrics, TrainingMetrics.parse)
        weights = weights or (training.weights if training else None)
        card = self.result_of(weights, paths.evaluation_card, EvaluationCard.parse)
        weights = weights or (card.made_of if card else None)  # then all results are at least of one model
        metrics, figure = paths.evaluation_metrics, paths.figures / SAMPLES
        evaluation = self.result_of(weights, metrics, checked(card, metrics.name, EvaluationMetrics.parse))
        export = self.result_of(weights, paths.export_metrics, ExportMetrics.parse)
        exported = self.result_of(weights, paths.onnx / MANIFEST, ExportCard.parse)
        split, losses = "", dict[int, float]()
        if training:  # without it, nobody knows which training these losses are of
            split, losses = self.get(paths.history, lambda content: _read_losses(content, training)) or (split, losses)
        samples = self.get(figure, checked(card, figure.name, bytes))
        scores = self.get(paths.scores, checked(card, paths.scores.name, read_scores))
        if not self.is_any_found:
            raise UserError(f"{name} ({origin}): wanted an experiment, found none of its files; {self.hint}")
        if self.missing:
            self.notes.append("; ".join(part for part in (_spell_missing(self.missing), self.why, self.hint) if part))
        if self.not_run:
            self.notes.append(f"{' and '.join(dict.fromkeys(self.not_run.values()))} did not run in it; {self.hint}")
        if stale := _stale(params, model, card, exported):
            self.notes.append(
                f"{paths.relative(paths.params)} was changed after {' and '.join(stale)}: the parameters are not those "
                "of the results; run `dvc repro`"
            )
        return Experiment(
            name=name,
            origin=origin,
            params=flatten(params),
            metrics=dict(chain.from_iterable(part.values.items() for part in (training, evaluation, export) if part)),
            conditions=card.conditions if card else {},
            losses=losses,
            loss_split=split,
            samples=samples if card else None,  # without it, nobody knows which model these results are of
            scores=scores or {} if card else {},
            notes=tuple(self.notes),
        )

    def get(self, path: Path, parse: Callable[[bytes], T]) -> T | None:
        """Read and parse a file, or note that it is missing or damaged."""
        name = self.paths.relative(path)
        if name.startswith(tuple(self.not_run)):
            return None
        content = self.read(name)
        if content is None:
            self.missing.append(name)
            return None
        try:
            value = parse(content)
        except (ValueError, KeyError, TypeError, IndexError) as error:
            self.notes.append(f"{name}: damaged: {error}; {self.hint}")
            return None
        self.is_any_found = True
        return value

    def result_of(self, weights: str | None, path: Path, parse: Callable[[bytes], R]) -> R | None:
        """Read a result of the model with these weights; withhold that of another model, and note it."""
        result = self.get(path, parse)
        if not result or not weights or result.made_of == weights:
            return result
        self.notes.append(
            f"{self.paths.relative(path)}: withheld: wanted results of the trained model (weights {weights}), "
            f"found those of another one (weights {result.made_of}); {self.hint}"
        )
        return None


def _spell_missing(names: Sequence[str]) -> str:
    """Name the first file that is missing, and count the others."""
    others = len(names) - 1
    also = f" and {others} other file{'s' if others > 1 else ''}" if others else ""
    return f"not here: {names[0]}{also}"


def _read_params(content: bytes) -> dict[str, Any]:
    values = parse_yaml(content.decode())
    if not isinstance(values, dict):
        raise ValueError("no sections of parameters")  # noqa: TRY004  shown as damaged
    return values


def _read_losses(content: bytes, training: TrainingMetrics) -> tuple[str, dict[int, float]]:
    training.check_history(content)
    rows = parse_table(content.decode(), "epoch")
    split = "validation" if "validation_loss" in rows[0] else "train"
    return split, {int(row["epoch"]): row[f"{split}_loss"] for row in rows}


def _stale(
    params: Mapping[str, Any], model: ModelCard | None, card: EvaluationCard | None, exported: ExportCard | None
) -> list[str]:
    """List the stages that certainly ran with other parameters."""
    trained = {model.hash if model else None, card.lineage.params_sha256 if card else None} - {None}
    try:
        config = Config.model_validate(params)
    except ValidationError:  # of an older or newer version of the project
        return []
    is_done_with_these = {
        "training": trained <= {TrainedParams.of(config).hash},
        "evaluation": card is None or card.settings == config.evaluate,
        "export": exported is None or exported.is_with(config.export),
    }
    return [name for name, is_so in is_done_with_these.items() if not is_so]
