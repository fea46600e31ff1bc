"""What one run of the pipeline under real DVC leaves behind."""

import hashlib
import json
from pathlib import Path

import mlflow
import numpy as np
import pytest
from dvc_project import STAGES, Project, copy_of, finished, project
from ruamel.yaml import YAML

from reparam.client.client import Client
from reparam.files import dvc_hash, sha256

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
        "reports/evaluation/scores.npz",
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
    assert run.data.params["model.mlp.hidden"] == "[16]"
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


def test_the_stages_without_dvc_give_the_same_bytes_elsewhere(finished: Project, finished_once: Path) -> None:
    def of(path: Path) -> str:
        return dvc_hash(path) if path.is_dir() else hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()

    wanted = finished.hashes()
    assert {name: of(finished_once / name) for name in wanted} == wanted


@pytest.mark.slow
def test_forced_runs_give_the_same_bytes_here_and_elsewhere(finished: Project, tmp_path: Path) -> None:
    wanted = finished.hashes()
    elsewhere = copy_of(finished, tmp_path / "another place" / "project", MLFLOW_TRACKING_URI="off")
    for _ in range(2):
        elsewhere("dvc repro --force --no-run-cache --quiet")
        assert elsewhere.hashes() == wanted


# ---- what DVC shows, and what it runs again


def test_dvc_shows_the_pipeline_and_its_plots(project: Project) -> None:
    edges = {tuple(line.strip().split(" -> ")) for line in project("dvc dag --dot").splitlines() if "->" in line}
    assert {('"download"', '"preprocess";'), ('"train"', '"evaluate";'), ('"export"', '"report";')} <= edges
    project("dvc plots show --out plots")
    page = (project.root / "plots/index.html").read_text()
    for title in ("Loss (nats per image)", "KL per latent dimension", "samples.png"):
        assert title in page


def test_an_edit_runs_its_stage_and_what_depends_on_it(project: Project) -> None:
    project.environment["MLFLOW_TRACKING_URI"] = "off"
    source = project.root / "src/reparam/evaluate/stage.py"
    source.write_text(source.read_text() + "\n# edited\n")
    changed = json.loads(project("dvc status --json"))
    assert changed == {"evaluate": [{"changed deps": {"src/reparam/evaluate": "modified"}}]}
    output = project("dvc repro")
    ran = [stage for stage in STAGES if f"Running stage '{stage}'" in output]
    assert ran == ["evaluate", "report"]
