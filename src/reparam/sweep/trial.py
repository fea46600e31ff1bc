"""One trial: an experiment of DVC, watched from its start to its end."""

import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna

from reparam.compare.revisions import read_revision
from reparam.errors import ParamsError, UserError
from reparam.metrics import VALIDATION, describe
from reparam.paths import Paths
from reparam.sweep.leash import Leashed
from reparam.sweep.plan import Plan

# The option lets DVC wait for other processes of DVC; a sweep has several.
DVC = (sys.executable, "-m", "dvc", "--wait-for-lock")
BEGUN = "Reproducing experiment '"  # DVC prints this once it has taken the experiment from its stash
SECONDS = 0.2  # between two looks at a trial


class TrialError(Exception):
    """A trial failed; the others go on."""


@dataclass(frozen=True)
class Experiment:
    """The experiment of a trial, and the files that show its progress."""

    plan: Plan
    paths: Paths
    number: int
    first: int  # the trial that it repeats, or its own number

    @property
    def name(self) -> str:
        return self.plan.name_of(self.number)

    @property
    def log(self) -> Path:
        return self.paths.sweeps / self.plan.study / f"{self.number}.log"

    @property
    def epochs(self) -> Path:
        """The file that the training extends after each epoch."""
        return self.log.with_suffix(".jsonl")

    @property
    def resume(self) -> Path:
        """Checkpoints, from which a trial that repeats this one goes on."""
        return self.paths.resume / self.plan.name_of(self.first)

    def command(self, values: Mapping[str, Any]) -> list[str]:
        """Return the command of DVC. Raises: ParamsError."""
        settings = [part for override in self.plan.overrides(values) for part in ("-S", override)]
        return [*DVC, "exp", "run", "--temp", "--name", self.name, *settings, self.plan.stage]

    def environment(self) -> dict[str, str]:
        """Return the environment of the command."""
        return {
            **os.environ,
            "PATH": os.pathsep.join((str(Path(sys.executable).parent), *os.get_exec_path())),  # stages run `python`
            "PYTHONUNBUFFERED": "1",  # so that the log says what happens when it does
            "REPARAM_EPOCHS": str(self.epochs),
            "REPARAM_RESUME_DIR": str(self.resume),
        }

    def value(self) -> float:
        """Read the metric of the study.

        Raises: TrialError.
        """
        try:
            found = read_revision(self.name, self.paths)
        except UserError as error:
            raise self.failure(str(error)) from None
        metrics = found.metrics if found else {}
        if self.plan.metric not in metrics:
            known = ", ".join(name for name in metrics if describe(name)) or "none"
            raise self.failure(f"wanted the metric {self.plan.metric}, found {known}")
        return metrics[self.plan.metric]

    def failure(self, what: str) -> TrialError:
        """Return the error of a failed trial, with the log that has the reason."""
        return TrialError(f"{what}; see {self.log}")

    def forget(self) -> None:
        """Remove the files that only a continued trial would need."""
        self.epochs.unlink(missing_ok=True)
        shutil.rmtree(self.resume, ignore_errors=True)


def run(experiment: Experiment, trial: optuna.Trial, values: Mapping[str, Any], begun: Callable[[], None]) -> float:
    """Run a trial and return its metric; `begun` is called when others may begin theirs.

    Raises: TrialError; optuna.TrialPruned if others were better after the same number of epochs.
    """
    experiment.log.parent.mkdir(parents=True, exist_ok=True)
    experiment.epochs.unlink(missing_ok=True)
    try:
        command = experiment.command(values)
        while (code := _attempt(command, experiment, trial, begun)) is None:
            pass
        if code:
            raise experiment.failure(f"`dvc exp run` ended with code {code}")
        value = experiment.value()
    except ParamsError as error:
        raise TrialError(str(error)) from None
    except (TrialError, optuna.TrialPruned):
        experiment.forget()
        raise
    experiment.forget()
    return value


def _attempt(
    command: Sequence[str], experiment: Experiment, trial: optuna.Trial, begun: Callable[[], None]
) -> int | None:
    """Run the command to its end, and return its exit code; None if another process took the experiment.

    DVC stores queued experiments in one stash, and each `dvc exp run` runs everything in it.
    So processes begin one after the other, and one that has done its own experiment must not begin another's.
    """
    with experiment.log.open("wb") as output, experiment.log.open(encoding="utf-8", errors="replace") as log:
        process, scores, taken = Leashed(command, experiment.environment(), output), Scores(experiment), 0
        try:
            while True:
                code = process.poll()  # before the log is read, so that all of it is there
                taken += sum(line.startswith(BEGUN) for line in log)
                if taken:
                    begun()
                if taken > 1:
                    return 0
                _report(scores.new(), trial)
                if code is not None:
                    return None if code == 0 and not taken else code
                time.sleep(SECONDS)
        finally:
            process.end()


def _report(scores: Sequence[tuple[int, float]], trial: optuna.Trial) -> None:
    """Hand scores to Optuna, which says whether a trial is worth going on."""
    for epoch, score in scores:
        trial.report(score, epoch)
    if scores and trial.should_prune():
        raise optuna.TrialPruned


class Scores:
    """The validation scores that a training writes, epoch by epoch."""

    def __init__(self, experiment: Experiment) -> None:
        self.plan = experiment.plan
        self.path = experiment.epochs
        self.epoch = 0
        self._read = 0

    def new(self) -> list[tuple[int, float]]:
        """Return the epochs that were not there before, with their scores; one that is trained again counts once."""
        found = []
        for row in self._rows():
            score = score_of(row, self.plan)
            if row["epoch"] > self.epoch and score is not None:
                self.epoch = int(row["epoch"])
                found.append((self.epoch, score))
        return found

    def _rows(self) -> Iterator[Mapping[str, float]]:
        with suppress(FileNotFoundError), self.path.open("rb") as file:
            file.seek(self._read)
            for line in file:
                if not line.endswith(b"\n"):
                    return  # it is being written
                self._read += len(line)
                yield json.loads(line)


def score_of(row: Mapping[str, float], plan: Plan) -> float | None:
    """Return the validation score of an epoch that fits the metric of a study best; None without validation.

    It is the metric itself if there is one, otherwise the ELBO, which no objective changes, otherwise the loss.
    """
    name = plan.metric.removesuffix(VALIDATION)
    if (own := row.get(f"validation_{name}")) is not None:
        return own
    for term, is_higher_better in (("elbo", True), ("loss", False)):
        if (found := row.get(f"validation_{term}")) is not None:
            return found if is_higher_better == (plan.direction == "maximize") else -found
    return None
