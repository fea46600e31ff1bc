"""A process that runs the trials of a study, one after the other, until all are done, whoever runs them."""

import os
import signal
import socket
import sys
import time
from pathlib import Path

import optuna
from filelock import FileLock
from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import FrozenTrial, TrialState
from rich.console import Console

from reparam.errors import UserError
from reparam.paths import Paths
from reparam.redact import redacted_output
from reparam.sweep import trial as trials
from reparam.sweep.plan import read_plan, spell_value
from reparam.sweep.study import Study, first_tries, open_study, values_of
from reparam.sweep.trial import Experiment, TrialError

SECONDS = 2.0  # between two looks at the trials of others


def gate(paths: Paths) -> FileLock:
    """Return the lock that guards the project: hold it to begin a trial, or to see the project as the user left it.

    DVC changes params.yaml for a moment, to take a copy of the project with the parameters of an experiment.
    """
    paths.sweeps.mkdir(parents=True, exist_ok=True)
    return FileLock(paths.sweeps / "begin.lock")


def join(file: Path, paths: Paths, storage: str, count: int | None) -> Study:
    """Read sweep.yaml, and open its study. Raises: UserError."""
    with gate(paths):
        return open_study(read_plan(file, paths.params, count), storage, paths)


def work(study: Study, paths: Paths) -> None:
    """Run trials until the study is over; an interrupted one is left to be repeated.

    Raises: StaleInputError if parameters or code were changed meanwhile.
    """
    lock = gate(paths)
    while not study.is_over:
        with lock:
            if study.left:
                study.require_unchanged(paths)
                study.renew_sampler()
                _run_one(study, paths, lock)
                continue
        time.sleep(SECONDS)


def _run_one(study: Study, paths: Paths, lock: FileLock) -> None:
    numbers: list[int] = []

    def objective(trial: optuna.Trial) -> float:
        numbers.append(trial.number)
        first = first_tries(_frozen(study, trial.number)) or [trial.number]
        experiment = Experiment(study.plan, paths, trial.number, first[0])
        trial.set_user_attr("host", socket.gethostname())
        trial.set_user_attr("failure", "")
        try:
            return trials.run(experiment, trial, values_of(study.plan, trial), lock.release)
        except TrialError as error:
            trial.set_user_attr("failure", str(error))
            raise

    try:
        study.optuna.optimize(objective, n_trials=1, catch=(TrialError,))
    except KeyboardInterrupt:
        if numbers and _frozen(study, numbers[0]).state == TrialState.FAIL:
            study.hand_on(numbers[0])
        raise
    except (UpdateFinishedTrialError, ValueError):
        # This process slept for so long that another one took it for dead, and repeats the trial.
        if not numbers or _frozen(study, numbers[0]).state == TrialState.RUNNING:
            raise
    if numbers:
        Console(highlight=False).print(_line(study, _frozen(study, numbers[0])), soft_wrap=True, markup=False)


def _frozen(study: Study, number: int) -> FrozenTrial:
    return study.optuna.get_trials(deepcopy=False)[number]


def _line(study: Study, trial: FrozenTrial) -> str:
    name = study.plan.name_of(trial.number)
    values = ", ".join(f"{parameter} {value}" for parameter, value in study.plan.spell(trial.params).items())
    match trial.state:
        case TrialState.COMPLETE:
            return f"{name}: {study.plan.metric} {spell_value(trial.value)} with {values}"
        case TrialState.PRUNED:
            return f"{name}: pruned after epoch {trial.last_step} with {values}"
    return f"{name}: failed with {values}: {trial.user_attrs.get('failure') or 'another worker repeats it'}"


def interruptible() -> None:
    """Let SIGINT and SIGTERM reach the running trial, so that it is handed on."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)


def main() -> None:
    """Work beside the process that started this one. Arguments: sweep.yaml, number of trials."""
    interruptible()
    file, count = sys.argv[1:]
    paths = Paths.here()
    try:
        work(join(Path(file), paths, os.environ["REPARAM_SWEEP_STORAGE"], int(count)), paths)
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)
    except UserError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    with redacted_output():
        main()
