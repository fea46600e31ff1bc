"""A study under real DVC: two processes, one of them killed."""

import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import optuna
import pytest
from dvc_project import Project, finished, project

SWEEP = """
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


def start(project: Project, log: Path) -> "subprocess.Popen[bytes]":
    with log.open("wb") as output:
        return subprocess.Popen(
            ["python", "-m", "reparam", "sweep", "sweep.yaml"],
            cwd=project.root,
            env=project.environment | {"PYTHONPATH": str(project.root / "src")},
            stdout=output,
            stderr=subprocess.STDOUT,
        )


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


@pytest.mark.slow
def test_a_study_ends_although_one_of_its_two_processes_is_killed(project: Project, tmp_path: Path) -> None:
    (project.root / "sweep.yaml").write_text(SWEEP)
    logs = [tmp_path / "first.log", tmp_path / "second.log"]
    first, second = (start(project, log) for log in logs)
    study = project.root / ".sweeps/width"
    # Until both are in the middle of a training.
    wait(lambda: len(list(study.glob("*.jsonl"))) == 2, 180)
    second.send_signal(signal.SIGKILL)
    second.wait()
    assert first.wait(timeout=600) == 0, logs[0].read_text()
    wait(lambda: running(project) == [], 60)

    trials = optuna.load_study(study_name="width", storage=f"sqlite:///{project.root}/.sweeps/studies.db").trials
    assert sorted(trial.state.name for trial in trials) == ["COMPLETE"] * 4 + ["FAIL"]
    (failed,) = [trial.number for trial in trials if trial.state.name == "FAIL"]
    (repeated,) = [trial for trial in trials if trial.system_attrs.get("retry_history") == [failed]]
    assert repeated.params == trials[failed].params
    # It went on where the killed one was.
    assert "going on after epoch" in (study / f"{repeated.number}.log").read_text()

    done = {f"width-{trial.number}": trial for trial in trials if trial.state.name == "COMPLETE"}
    assert set(project("dvc exp list --name-only").split()) == set(done)
    runs = project.runs()
    (parent,) = [run for run in runs if run.data.tags["reparam.stage"] == "sweep"]
    below = {run.info.run_name: run for run in runs if run.data.tags.get("mlflow.parentRunId") == parent.info.run_id}
    assert {run.data.tags["reparam.stage"] for run in below.values()} == {"train"}
    assert set(done) <= {run.data.tags["dvc.experiment"] for run in below.values()} | {f"width-{repeated.number}"}

    best = max(done, key=lambda name: done[name].value or 0.0)
    assert f"best: {best} (on " in logs[0].read_text()
    project(f"dvc exp apply {best}")
    assert project.metrics("evaluation")["elbo_validation"] == pytest.approx(done[best].value)
    assert (project.root / "reports/sweeps/width/importance.png").exists()
