"""Studies under real DVC, with the processes and databases that people have."""

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import optuna
import pytest
from dvc_project import Project, finished, project
from mlflow.entities import Run
from optuna.distributions import FloatDistribution
from optuna.storages import RDBStorage
from optuna.trial import FrozenTrial, create_trial
from sqlalchemy.pool import NullPool
from stores import PASSWORD, postgres, with_secrets

pytestmark = pytest.mark.slow
WIDTH = """
study: width
trials: 4
sampler: random
pruner: median
parameters:
  train.learning_rate: {low: 0.001, high: 0.01, log: true}
  model.latent: {low: 2, high: 4}
fixed:
  train.epochs: 200
  train.patience: 200
"""
# With batches so small, an epoch takes longer than to stop a training.
SHARED = """
study: shared
trials: 20
sampler: tpe
pruner: hyperband
parameters:
  train.learning_rate: {low: 1.0e-8, high: 1.0e+8, log: true}
fixed:
  train.batch_size: 2
"""
RATE, GOOD, DIVERGES, HOPELESS = "train.learning_rate", 3e-3, 1e8, 1e-8
LAYERS = """
study: layers
metric: best_validation_loss
sampler: grid
parameters:
  model.mlp.hidden: [[16], [32]]
"""


def start(project: Project, log: Path, sweep: str, *options: str, **environment: str) -> "subprocess.Popen[bytes]":
    (project.root / "sweep.yaml").write_text(sweep)
    source = os.pathsep.join(filter(None, (str(project.root / "src"), os.environ.get("PYTHONPATH"))))
    with log.open("wb") as output:
        return subprocess.Popen(
            ["python", "-m", "reparam", "sweep", "sweep.yaml", *options],
            cwd=project.root,
            env={**project.environment, "PYTHONPATH": source, **environment},
            stdout=output,
            stderr=subprocess.STDOUT,
        )


def finish(process: "subprocess.Popen[bytes]", project: Project, log: Path) -> str:
    """Wait until a study is over and nothing of it runs; return what it printed."""
    assert process.wait(timeout=600) == 0, log.read_text()
    wait(lambda: running(project) == [], 60)
    return log.read_text()


def running(project: Project) -> list[str]:
    """Commands of processes that work for the project, other than those of tracking that end by themselves."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            command = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            folder = (process / "cwd").readlink()
        except OSError:
            continue
        if folder.is_relative_to(project.root) and "python" in command:
            found.append(command)
    return found


def wait(done: Callable[[], bool], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < deadline, f"not done after {seconds} s"
        time.sleep(0.2)


def study_in(project: Project, name: str, storage: str = "") -> optuna.Study:
    database = RDBStorage(
        storage or f"sqlite:///{project.root}/.sweeps/studies.db", engine_kwargs={"poolclass": NullPool}
    )  # without a connection that stays open
    return optuna.create_study(storage=database, study_name=name, direction="maximize", load_if_exists=True)


def trainings(project: Project) -> dict[str, Run]:
    """Map each experiment to its training, all of which are below the one run of a study."""
    runs = project.runs()
    (parent,) = [run for run in runs if run.data.tags["reparam.stage"] == "sweep"]
    assert parent.info.status == "FINISHED"
    found = [run for run in runs if run.data.tags["reparam.stage"] == "train"]
    assert {run.data.tags["mlflow.parentRunId"] for run in found} == {parent.info.run_id}
    return {run.data.tags["dvc.experiment"]: run for run in found}


def done_in(project: Project, study: str, trials: Iterable[FrozenTrial]) -> dict[str, float]:
    """Map the experiments of a study, which are those of the trials that are done, to its metric."""
    done = {f"{study}-{trial.number}": trial.value for trial in trials if trial.state.name == "COMPLETE"}
    assert sorted(project("dvc exp list --name-only").split()) == sorted(done)
    assert (project.root / f"reports/sweeps/{study}/history.png").exists()
    return {name: value for name, value in done.items() if value is not None}


def test_a_study_ends_although_one_of_its_two_processes_is_killed(project: Project, tmp_path: Path) -> None:
    logs = [tmp_path / "first.log", tmp_path / "second.log"]
    first, second = (start(project, log, WIDTH) for log in logs)
    study = project.root / ".sweeps/width"
    # Until both are in the middle of a training.
    wait(lambda: len(list(study.glob("*.jsonl"))) == 2, 180)
    second.send_signal(signal.SIGKILL)
    second.wait()
    printed = finish(first, project, logs[0])

    trials = study_in(project, "width").trials
    assert sorted(trial.state.name for trial in trials) == ["COMPLETE"] * 4 + ["FAIL"]
    (failed,) = [trial.number for trial in trials if trial.state.name == "FAIL"]
    (repeated,) = [trial for trial in trials if trial.system_attrs.get("retry_history") == [failed]]
    assert repeated.params == trials[failed].params
    # It went on where the killed one was.
    assert "going on after epoch" in (study / f"{repeated.number}.log").read_text()

    done = done_in(project, "width", trials)
    assert set(done) <= {*trainings(project), f"width-{repeated.number}"}
    best = max(done, key=lambda name: done[name])
    assert f"best: {best} (on " in printed
    project(f"dvc exp apply {best}")
    assert project.metrics("evaluation")["elbo_validation"] == pytest.approx(done[best])
    assert (project.root / "reports/sweeps/width/importance.png").exists()


def test_two_workers_share_a_study_in_postgresql_of_which_one_trial_fails_and_one_is_pruned(
    project: Project, tmp_path: Path
) -> None:
    log = tmp_path / "log"
    with postgres() as storage:
        # Another machine began the study: it has done sixteen trials, and the best of them are near GOOD.
        study, space = study_in(project, "shared", storage), {RATE: FloatDistribution(HOPELESS, DIVERGES, log=True)}
        for power in range(-7, 9):
            value = -1000.0 - 100 * abs(power + 2.5)
            study.add_trial(create_trial(params={RATE: 10.0**power}, distributions=space, value=value))
        for rate in (GOOD, DIVERGES, HOPELESS):
            study.enqueue_trial({RATE: rate})
        printed = finish(start(project, log, SHARED, "--workers", "2", REPARAM_SWEEP_STORAGE=storage), project, log)
        good, diverges, hopeless, chosen = study_in(project, "shared", storage).trials[16:]

    assert [trial.state.name for trial in (good, diverges, hopeless)] == ["COMPLETE", "FAIL", "PRUNED"]
    assert chosen.state.name in {"COMPLETE", "PRUNED"}
    assert 1e-5 < chosen.params[RATE] < 1  # of sixteen powers of ten, those near the best
    assert good.datetime_complete is not None
    assert diverges.datetime_start is not None
    assert diverges.datetime_start < good.datetime_complete  # side by side

    logs = project.root / ".sweeps/shared"
    assert sorted(path.name for path in logs.iterdir()) == ["16.log", "17.log", "18.log", "19.log"]
    failure = f"`dvc exp run` ended with code 255; see {logs / '17.log'}"
    assert f"shared-17: {failure}" in printed.splitlines()
    assert f"shared-17: failed with learning_rate 1e+08: {failure}" in printed.splitlines()
    assert "shared-18: pruned after epoch 1 with learning_rate 1e-08" in printed.splitlines()
    assert "error: train: the train loss is no longer finite at epoch 1, step " in (logs / "17.log").read_text()

    done = done_in(project, "shared", [good, diverges, hopeless, chosen])
    found = {name: run.info.status for name, run in trainings(project).items()}
    assert {name: found[name] for name in ("shared-16", "shared-17", "shared-18")} == {
        "shared-16": "FINISHED",
        "shared-17": "FAILED",
        "shared-18": "KILLED",
    }
    best = max(done, key=lambda name: done[name])
    assert f"best: {best} (on " in printed
    project(f"dvc exp apply {best}")
    assert project.metrics("evaluation")["elbo_validation"] == pytest.approx(done[best])
    assert with_secrets(project.root) == []
    assert PASSWORD not in printed


def test_a_grid_has_an_experiment_of_each_value_that_of_the_parameters_too(project: Project, tmp_path: Path) -> None:
    log = tmp_path / "log"
    before = project.metrics("training")["best_validation_loss"]
    printed = finish(start(project, log, LAYERS), project, log)
    trials = study_in(project, "layers").trials
    by_value = {trial.params["model.mlp.hidden"]: f"layers-{trial.number}" for trial in trials}
    done = done_in(project, "layers", trials)
    assert sorted(by_value) == ["[16]", "[32]"]
    assert done[by_value["[16]"]] == pytest.approx(before)
    assert list(trainings(project)) == [by_value["[32]"]]  # the other one was there
    best = min(done, key=lambda name: done[name])
    assert best == by_value["[32]"]
    assert f"best: {best} (on " in printed
    project(f"dvc exp apply {best}")
    assert done[best] < before
    assert project.metrics("training")["best_validation_loss"] == pytest.approx(done[best])
