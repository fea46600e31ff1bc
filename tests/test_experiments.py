"""Experiments under real DVC: in the workspace, in a copy, in the queue, on other data."""

import json
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import change, run_all
from dvc_project import Project, finished, project
from test_docs import lines_of_shell

from reparam.client.client import Client
from reparam.data import store

DOCS = Path(__file__).parents[1] / "docs"


def test_an_experiment_changes_a_parameter_and_can_be_compared(project: Project) -> None:
    project("dvc exp run --quiet --name longer -S train.epochs=3 evaluate")
    assert project.metrics("training")["epochs"] == 3
    (run,) = project.training_runs().values()
    assert (run.info.run_name, run.data.params["train.epochs"]) == ("longer", "3")
    assert run.data.tags["dvc.experiment"] == "longer"
    assert run.data.tags["dvc.baseline"] == project("git rev-parse HEAD").strip()
    assert project.stages_below(run) == ["evaluate"]

    params = json.loads(project("dvc params diff --json"))
    assert params == {"params.yaml": {"train.epochs": {"old": 2, "new": 3, "diff": 1}}}
    metrics = json.loads(project("dvc metrics diff --json"))
    assert {*metrics["reports/evaluation/headline.json"]} == {
        "weights",
        *("elbo", "reconstruction", "kl", "nll", "pca_frechet"),
    }

    # Train comes from DVC's cache, evaluate does not: it finds the run of the same weights.
    project("dvc exp run --quiet --name scored -S evaluate.nll_samples=30 evaluate")
    assert list(project.training_runs()) == ["longer"]
    assert project.stages_below(run) == ["evaluate", "evaluate"]

    # A terminal of 160 columns has the headline of `dvc exp show`; the command of the docs fits into it.
    (short,) = [line for line in lines_of_shell(DOCS / "how-to/compare.md") if line.startswith("dvc exp show")]
    headline = ["weights", "elbo", "reconstruction", "kl", "nll", "pca_frechet"]
    for command, columns in (("dvc exp show", headline), (short, [*headline, "train.epochs", "evaluate.nll_samples"])):
        table = project(command.replace("'", "")).splitlines()
        [head] = [line for line in table if "Experiment" in line]
        assert head[:160].split()[2 : len(columns) + 2] == columns
    assert max(map(len, table)) <= 160


@pytest.mark.slow
def test_a_model_that_was_trained_elsewhere_is_evaluated_without_a_parent(project: Project) -> None:
    project("dvc exp run --quiet -S evaluate.nll_samples=30")
    (evaluation,) = [run for run in project.runs() if run.data.tags["reparam.stage"] == "evaluate"]
    assert "mlflow.parentRunId" not in evaluation.data.tags
    assert evaluation.info.status == "FINISHED"


@pytest.mark.slow
def test_two_workers_share_a_fresh_database_and_run_their_own_snapshots(project: Project) -> None:
    project("dvc exp run --quiet --queue --name wide -S model.latent=4 train")
    project("dvc exp run --quiet --queue --name narrow -S model.latent=2 train")
    # What is queued must not notice what happens in the workspace afterwards.
    broken = project.root / "src/reparam/config/__init__.py"
    broken.write_text("raise SystemExit('the workspace was imported')")
    project("dvc queue start --jobs 2")
    _wait(lambda: not {"Queued", "Running"} & set(project("dvc queue status").split()))

    assert project("dvc queue status").count("Success") == 2
    runs = project.training_runs()
    assert {name: run.data.params["model.latent"] for name, run in runs.items()} == {"wide": "4", "narrow": "2"}


@pytest.mark.slow
def test_what_doctor_says_of_a_queue_runs_it_shows_why_a_task_failed_and_forgets_it(project: Project) -> None:
    project("dvc exp run --quiet --queue --name refused -S train.learning_rate=1e30 train")
    queued, remedy = _queue_by_doctor(project)
    assert queued == "note: 1 queued"
    (begin,) = re.findall("`(.*?)`", remedy)
    project(begin)
    _wait(lambda: "Failed" in project("dvc queue status"))
    failed, remedy = _queue_by_doctor(project)
    assert failed == "note: 1 failed"
    why, forget = re.findall("`(.*?)`", remedy)
    assert why == "dvc queue logs refused"
    assert "train.learning_rate: wanted at most 1,000,000,000, found 1e+30" in project(why)
    project(forget)
    assert _queue_by_doctor(project) == ("empty", "")


def _queue_by_doctor(project: Project) -> tuple[str, str]:
    """Ask doctor for the state of the queue, and the next step."""
    found = re.search(r"^DVC queue +(.*)(?:\n +next: (.*))?", project("python -m reparam doctor"), re.MULTILINE)
    assert found
    return found[1], found[2] or ""


def test_mnist_passes_through_the_whole_pipeline(
    mnist_files: Path, tmp_path: Path, params: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REPARAM_MIRRORS", mnist_files.as_uri())
    params["download"]["source"] = "mnist"
    change(params["preprocess"], {"limit": 300, "validation": 500})
    paths = run_all(tmp_path, params)
    data = store.read_card(paths.processed)
    assert (data.source, list(data.counts.values())) == ("mnist", [300, 300, 300])
    assert Client(paths.onnx).sample(2, seed=0).shape == (2, 28, 28, 1)


def _wait(done: Callable[[], Any], seconds: float = 180) -> None:
    deadline = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < deadline, f"not done after {seconds} s"
        time.sleep(1)
