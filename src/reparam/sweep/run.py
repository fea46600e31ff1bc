"""`reparam sweep`: begin or join a study, run its trials, and show what came out."""

import os
import re
import subprocess
import sys
from pathlib import Path

from optuna.exceptions import StorageInternalError
from rich.console import Console

from reparam import track
from reparam.errors import UserError
from reparam.machine.threads import cores
from reparam.paths import Paths
from reparam.redact import without_secrets
from reparam.sweep import result
from reparam.sweep.leash import Leashed
from reparam.sweep.study import Study, default_storage, run_key
from reparam.sweep.worker import gate, interruptible, join, work

INTERRUPTED = 130  # the shell's code


def run(file: Path, paths: Paths, *, count: int | None = None, storage: str | None = None, workers: int = 1) -> None:
    """Run the open trials of sweep.yaml with `workers` processes, beside other processes that joined the study.

    Raises: UserError before a trial starts, if parameters or code change later, or if the database goes away.
    """
    interruptible()
    os.environ["REPARAM_SWEEP_STORAGE"] = storage or default_storage(paths.sweeps)
    study = join(file, paths, os.environ["REPARAM_SWEEP_STORAGE"], count)
    _require_free_names(study, paths)
    _open_parent_run(study, paths)
    if workers > 1:
        os.environ.setdefault("OMP_NUM_THREADS", str(max(1, cores() // workers)))
    command = [sys.executable, "-m", "reparam.sweep.worker", str(file), str(study.plan.trials)]
    others: list[Leashed] = []
    try:
        others += [Leashed(command, os.environ) for _ in range(workers - 1)]
        work(study, paths)
        for other in others:
            other.wait()
    except KeyboardInterrupt:
        Console(stderr=True).print(f"\ninterrupted; `reparam sweep {file}` goes on", soft_wrap=True, highlight=False)
        raise SystemExit(INTERRUPTED) from None
    except StorageInternalError as error:
        address = without_secrets(os.environ["REPARAM_SWEEP_STORAGE"])
        raise UserError(f"--storage {address}: {error}; start it, and run the same command, which goes on") from None
    finally:
        for other in others:
            other.end()
    with gate(paths):  # two processes that joined a study often end it together, and both draw
        result.show(study, paths)


def _require_free_names(study: Study, paths: Paths) -> None:
    """Raise UserError if there is no repository, or a new study would name its experiments as others are."""
    command = ["git", "-C", str(paths.root), "for-each-ref", "--format=%(refname)", "refs/exps"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise UserError(f"{paths.root}: {done.stderr.strip()}; `reparam doctor` says what is missing")
    name = re.escape(study.plan.study)
    there = sorted(set(re.findall(rf"/({name}-\d+)$", done.stdout, re.MULTILINE)))
    if there and not study.optuna.get_trials(deepcopy=False):
        raise UserError(
            f"study {study.plan.study}: wanted names that no experiment has, found {', '.join(there)}; give the study "
            f"another name, or run `dvc exp remove {' '.join(there)}`"
        )


def _open_parent_run(study: Study, paths: Paths) -> None:
    """Open the MLflow run that the trainings of all trials are below, or go on with it.

    Raises: TrackingError.
    """
    with gate(paths):
        key = run_key(track.address(paths))  # each store has a run of its own
        known = study.optuna.user_attrs.get(key, "")
        opened = track.connect(paths).sweep_run(study.plan.study, known)
        if opened.run_id:
            os.environ["REPARAM_PARENT_RUN"] = opened.run_id
            if opened.run_id != known:
                study.optuna.set_user_attr(key, opened.run_id)
                opened.log_params(study.plan.file.model_dump(mode="json"))
                opened.wait()
