"""The pipeline under real DVC, in temporary git repositories.

One small run of all six stages is shared; each test works on a copy of it, most of them with a fresh tracking database.
"""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pytest
from mlflow import MlflowClient
from mlflow.entities import Run
from ruamel.yaml import YAML

from reparam.client import Client
from reparam.files import dvc_hash, sha256

PROJECT = Path(__file__).parent.parent
STAGES = ("download", "preprocess", "train", "evaluate", "export", "report")
SMALL = {
    "model": {"hidden": [16], "latent": 3},
    "train": {"epochs": 2},
    "evaluate": {"elbo_samples": 2, "nll_samples": 20, "grid_steps": 3},
}


class Project:
    """A git repository with the project in it, and what a person types there."""

    def __init__(self, root: Path, **environment: str) -> None:
        self.root = root
        kept = {
            name: value for name, value in os.environ.items() if not name.startswith(("DVC_", "MLFLOW_", "REPARAM_"))
        }
        self.environment = kept | {
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "DVC_SITE_CACHE_DIR": str(root.parent / "dvc-site-cache"),
            "DVC_NO_ANALYTICS": "true",
            "GIT_AUTHOR_NAME": "test",
            "GIT_AUTHOR_EMAIL": "test@localhost",
            "GIT_COMMITTER_NAME": "test",
            "GIT_COMMITTER_EMAIL": "test@localhost",
            "OMP_NUM_THREADS": "1",  # the tests themselves use the cores
            **environment,
        }

    def __call__(self, command: str) -> str:
        """Run a command line that must succeed; return what it printed."""
        done = subprocess.run(command.split(), cwd=self.root, env=self.environment, capture_output=True, text=True)
        assert done.returncode == 0, f"{command}: exit {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def hashes(self) -> dict[str, str]:
        """Map every output in `dvc.lock` to its hash."""
        lock = YAML(typ="safe").load(self.root / "dvc.lock")
        outs = [out for stage in lock["stages"].values() for out in stage["outs"]]
        return {out["path"]: out["md5"] for out in outs}

    def metrics(self, stage: str) -> dict[str, float]:
        return json.loads((self.root / f"reports/{stage}/metrics.json").read_text())

    def client(self) -> MlflowClient:
        return MlflowClient(f"sqlite:///{self.root / 'mlflow.db'}")

    def runs(self, experiment: str = "reparam") -> list[Run]:
        """Read every run of an experiment back from the store, oldest first."""
        client = self.client()
        found = client.get_experiment_by_name(experiment)
        return (
            []
            if found is None
            else list(client.search_runs([found.experiment_id], order_by=["attributes.start_time ASC"]))
        )

    def training_runs(self) -> dict[str, Run]:
        """Map the name of each training run to it, after checking everything that must hold of every store."""
        runs = self.runs()
        assert {run.info.status for run in [*runs, *self.runs("reparam-data")]} <= {"FINISHED"}
        training = {run.info.run_id: run for run in runs if run.data.tags["reparam.stage"] == "train"}
        for run in runs:
            artifacts = Path(run.info.artifact_uri.removeprefix("file://"))
            assert artifacts.is_relative_to(self.root)
            assert any(artifacts.rglob("*")), f"{run.info.run_name} has no artifacts"
            if run.info.run_id not in training:
                parent = training[run.data.tags["mlflow.parentRunId"]]
                assert run.data.tags["reparam.weights_sha256"] == parent.data.tags["reparam.weights_sha256"]
        assert not (self.root / "mlruns").exists()
        return {run.info.run_name: run for run in training.values()}

    def stages_below(self, parent: Run) -> list[str]:
        below = [run for run in self.runs() if run.data.tags.get("mlflow.parentRunId") == parent.info.run_id]
        return sorted(run.data.tags["reparam.stage"] for run in below)


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A small run of the whole pipeline, committed. Copy it, do not change it."""
    root = tmp_path_factory.mktemp("finished") / "project"
    files = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=PROJECT,
        capture_output=True,
        text=True,
        check=True,
    )
    for name in filter(None, files.stdout.split("\0")):
        if not name.startswith(("tests/", ".ci/")) and name != "dvc.lock" and (PROJECT / name).exists():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(PROJECT / name, root / name)
    for metrics in root.glob("reports/*/metrics.json"):
        metrics.unlink()
    yaml = YAML()
    params = yaml.load(root / "params.yaml")
    for section, values in SMALL.items():
        params[section].update(values)
    yaml.dump(params, root / "params.yaml")

    project = Project(root)
    project("git init --quiet --initial-branch main")
    project("git add --all")
    project("git commit --quiet --message start")
    project("dvc repro --quiet")
    project("git add --all")
    project("git commit --quiet --message finished")
    return project


@pytest.fixture
def project(finished: Project, tmp_path: Path) -> Project:
    """A copy of the finished run, without its tracking database."""
    return _copy(finished, tmp_path / "project")


def _copy(source: Project, root: Path, **environment: str) -> Project:
    ignore = shutil.ignore_patterns("mlflow.db*", "mlartifacts", "tmp")
    shutil.copytree(source.root, root, symlinks=True, ignore=ignore)
    return Project(root, **environment)


# ---- one run


def test_repro_leaves_every_output_and_nothing_to_do(finished: Project) -> None:
    assert set(finished.hashes()) == {
        "data/raw",
        "data/processed",
        "models/vae",
        "models/onnx",
        "reports/data/metrics.json",
        "reports/training/history.csv",
        "reports/training/metrics.json",
        "reports/evaluation/card.json",
        "reports/evaluation/figures",
        "reports/evaluation/latents.csv",
        "reports/evaluation/metrics.json",
        "reports/export/metrics.json",
        "reports/index.html",
    }
    assert finished("dvc status").strip() == "Data and pipelines are up to date."
    assert finished("git status --porcelain") == ""


def test_one_run_stands_for_the_trained_model(finished: Project) -> None:
    (run,) = finished.training_runs().values()
    assert finished.stages_below(run) == ["evaluate", "export", "report"]
    for stage in ("evaluation", "export"):
        mirrored = {name: run.data.metrics[name] for name in finished.metrics(stage)}
        assert mirrored == finished.metrics(stage)
    assert finished.metrics("training").items() <= run.data.metrics.items()
    assert run.data.params["model.hidden"] == "[16]"
    assert run.data.params["train.epochs"] == "2"
    assert run.data.params["preprocess.binarization"] == "dynamic"
    assert run.data.tags["reparam.weights_sha256"] == sha256(finished.root / "models/vae/weights.safetensors")
    assert run.data.tags["mlflow.source.git.commit"] == finished("git rev-parse HEAD~1").strip()
    assert run.data.tags["mlflow.source.git.dirty"] == "false"
    history = finished.client().get_metric_history(run.info.run_id, "train_kl")
    assert [metric.step for metric in history] == [1, 2]
    artifacts = Path(run.info.artifact_uri.removeprefix("file://"))
    assert {"samples.png", "latent_grid.png"} <= {path.name for path in (artifacts / "evaluation").iterdir()}
    assert (artifacts / "report/index.html").read_bytes() == (finished.root / "reports/index.html").read_bytes()


def test_the_data_set_is_logged_under_the_hash_in_dvc_lock(finished: Project) -> None:
    (run,) = finished.training_runs().values()
    (dataset,) = run.inputs.dataset_inputs
    assert (dataset.dataset.name, dataset.dataset.digest) == ("digits", finished.hashes()["data/processed"])
    assert dvc_hash(finished.root / "data/processed") == finished.hashes()["data/processed"]
    data_runs = [run.data.tags["reparam.stage"] for run in finished.runs("reparam-data")]
    assert data_runs == ["download", "preprocess"]


@pytest.mark.parametrize("graph", ["encoder", "decoder"])
def test_the_logged_onnx_models_load_and_run(finished: Project, graph: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mlflow.tracking._tracking_service.utils, "_tracking_uri", None)
    mlflow.set_tracking_uri(f"sqlite:///{finished.root / 'mlflow.db'}")
    (run,) = [run for run in finished.runs() if run.data.tags["reparam.stage"] == "export"]
    (model,) = [
        model
        for model in finished.client().search_logged_models([run.info.experiment_id])
        if model.name == graph and model.source_run_id == run.info.run_id
    ]
    golden = np.load(finished.root / "models/onnx/golden.npz")
    inputs, output = {"encoder": ("images", "mean"), "decoder": ("latents", "decoded_mean")}[graph]

    proto = mlflow.onnx.load_model(model.model_uri)
    assert [value.name for value in proto.graph.input] == [inputs]
    answer = mlflow.pyfunc.load_model(model.model_uri).predict({inputs: golden[inputs]})
    np.testing.assert_allclose(answer["mean"], golden[output], atol=1e-5)


def test_an_export_leads_back_to_its_parameters(finished: Project) -> None:
    metadata = Client(finished.root / "models/onnx").metadata
    params = YAML(typ="safe").load(finished.root / "params.yaml")
    assert metadata["params"] == {name: params[name] for name in ("model", "objective", "train")}
    assert metadata["lineage"]["data"] == finished.hashes()["data/processed"]
    assert metadata["lineage"]["weights_sha256"] == sha256(finished.root / "models/vae/weights.safetensors")


# ---- the same again


def test_forced_runs_give_the_same_bytes_here_and_elsewhere(finished: Project, tmp_path: Path) -> None:
    wanted = finished.hashes()
    elsewhere = _copy(finished, tmp_path / "another place" / "project", MLFLOW_TRACKING_URI="off")
    for _ in range(2):
        elsewhere("dvc repro --force --no-run-cache --quiet")
        assert elsewhere.hashes() == wanted


# ---- experiments


def test_an_experiment_changes_a_parameter_and_can_be_compared(project: Project) -> None:
    project("dvc exp run --quiet --name longer -S train.epochs=3")
    assert project.metrics("training")["epochs"] == 3
    (run,) = project.training_runs().values()
    assert (run.info.run_name, run.data.params["train.epochs"]) == ("longer", "3")
    assert run.data.tags["dvc.experiment"] == "longer"
    assert run.data.tags["dvc.baseline"] == project("git rev-parse HEAD").strip()
    assert project.stages_below(run) == ["evaluate", "export", "report"]

    params = json.loads(project("dvc params diff --json"))
    assert params == {"params.yaml": {"train.epochs": {"old": 2, "new": 3, "diff": 1}}}
    metrics = json.loads(project("dvc metrics diff --json"))
    epochs = metrics["reports/training/metrics.json"]["epochs"]
    assert (epochs["old"], epochs["new"], epochs["diff"]) == (2, 3, 1)

    # Train comes from DVC's cache, evaluate does not: it finds the run of the same weights.
    project("dvc exp run --quiet --name scored -S evaluate.nll_samples=30")
    assert list(project.training_runs()) == ["longer"]
    assert project.stages_below(run) == ["evaluate", "evaluate", "export", "report", "report"]


def test_a_model_that_was_trained_elsewhere_is_evaluated_without_a_parent(project: Project) -> None:
    project("dvc exp run --quiet -S evaluate.nll_samples=30")
    (evaluation,) = [run for run in project.runs() if run.data.tags["reparam.stage"] == "evaluate"]
    assert "mlflow.parentRunId" not in evaluation.data.tags
    assert evaluation.info.status == "FINISHED"


def test_a_temporary_experiment_tracks_to_the_real_repository(project: Project) -> None:
    before = project.hashes()
    project("dvc exp run --quiet --temp --name small-steps -S train.learning_rate=1e-5")
    assert project.hashes() == before
    (run,) = project.training_runs().values()
    assert (run.info.run_name, run.data.params["train.learning_rate"]) == ("small-steps", "1e-05")
    assert project.stages_below(run) == ["evaluate", "export", "report"]


def test_two_workers_share_a_fresh_database_and_run_their_own_snapshots(project: Project) -> None:
    project("dvc exp run --quiet --queue --name wide -S model.latent=4")
    project("dvc exp run --quiet --queue --name narrow -S model.latent=2")
    # What is queued must not notice what happens in the workspace afterwards.
    broken = project.root / "src/reparam/config.py"
    broken.write_text("raise SystemExit('the workspace was imported')")
    project("dvc queue start --jobs 2")
    _wait(lambda: not {"Queued", "Running"} & set(project("dvc queue status").split()))

    assert project("dvc queue status").count("Success") == 2
    runs = project.training_runs()
    assert {name: run.data.params["model.latent"] for name, run in runs.items()} == {"wide": "4", "narrow": "2"}
    for run in runs.values():
        assert project.stages_below(run) == ["evaluate", "export", "report"]
        assert run.data.metrics["nll"] > 0


def test_mnist_passes_through_the_whole_pipeline(project: Project, mnist_files: Path) -> None:
    mirror = f"download.mirrors=[{mnist_files}]"
    project(
        f"dvc exp run --quiet -S download.source=mnist -S {mirror} -S preprocess.limit=300 -S preprocess.validation=500"
    )
    (run,) = project.training_runs().values()
    assert project.stages_below(run) == ["evaluate", "export", "report"]
    assert run.inputs.dataset_inputs[0].dataset.name == "mnist"
    counts = project.metrics("data")
    assert [counts[f"{split}_images"] for split in ("train", "validation", "test")] == [300, 300, 300]
    assert Client(project.root / "models/onnx").sample(2, seed=0).shape == (2, 28, 28, 1)


# ---- what DVC shows, and what it runs again


def test_dvc_shows_the_pipeline_and_its_plots(project: Project) -> None:
    edges = {tuple(line.strip().split(" -> ")) for line in project("dvc dag --dot").splitlines() if "->" in line}
    assert {('"download"', '"preprocess";'), ('"train"', '"evaluate";'), ('"export"', '"report";')} <= edges
    project("dvc plots show --out plots")
    page = (project.root / "plots/index.html").read_text()
    for title in ("Loss (nats per image)", "KL per latent dimension", "samples.png"):
        assert title in page


def test_an_edit_runs_its_stage_and_what_depends_on_it(project: Project) -> None:
    source = project.root / "src/reparam/stages/evaluate.py"
    source.write_text(source.read_text() + "\n# edited\n")
    changed = json.loads(project("dvc status --json"))
    assert changed == {"evaluate": [{"changed deps": {"src/reparam/stages/evaluate.py": "modified"}}]}
    output = project("dvc repro")
    ran = [stage for stage in STAGES if f"Running stage '{stage}'" in output]
    assert ran == ["evaluate", "report"]


def _wait(done: Callable[[], Any], seconds: float = 180) -> None:
    deadline = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < deadline, f"not done after {seconds} s"
        time.sleep(1)
