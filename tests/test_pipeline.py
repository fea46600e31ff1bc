"""What one run of the pipeline under real DVC leaves behind."""

import hashlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pytest
import requests
from dvc_project import STAGES, Project, copy_of, finished, project
from in_process import InProcess
from requests.adapters import HTTPAdapter
from ruamel.yaml import YAML
from urllib3 import Retry

from reparam import logged
from reparam.client.client import Client
from reparam.config import load_config
from reparam.errors import DamagedInputError, MissingInputError, StaleInputError, TrackingError
from reparam.files import dvc_hash, sha256
from reparam.paths import Paths

# ---- one run


def test_repro_leaves_every_output_and_nothing_to_do(finished: Project) -> None:
    stages = YAML(typ="safe").load(finished.root / "dvc.yaml")["stages"]
    added = {path for name in stages.keys() - set(STAGES) for path in stages[name]["outs"]}  # in a copy of ours
    assert set(finished.hashes()) - added == {
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
        "reports/evaluation/headline.json",
        "reports/export/metrics.json",
        "reports/index.html",
    }
    assert finished("dvc status").strip() == "Data and pipelines are up to date."
    assert finished("git status --porcelain") == ""


def test_one_run_is_that_of_the_trained_model(finished: Project) -> None:
    (run,) = finished.training_runs().values()
    assert finished.stages_below(run) == ["evaluate", "export", "report"]
    assert run.info.run_name == "vae mlp digits"
    assert run.data.tags["mlflow.source.name"] == "reparam train"
    for stage, group in (("evaluation", "evaluation"), ("export", "export")):
        mirrored = {name: run.data.metrics[f"{group}/{name}"] for name in finished.metrics(stage)}
        assert mirrored == finished.metrics(stage)
    assert finished.metrics("training").items() <= run.data.metrics.items()
    assert run.data.params["model.mlp.hidden"] == "[16]"
    assert run.data.params["train.epochs"] == "2"
    assert run.data.params["preprocess.binarization"] == "dynamic"
    assert run.data.tags["reparam.weights_sha256"] == sha256(finished.root / "models/vae/weights.safetensors")
    assert run.data.tags["mlflow.source.git.commit"] == finished("git rev-parse HEAD~1").strip()
    assert run.data.tags["mlflow.source.git.dirty"] == "false"
    history = finished.client().get_metric_history(run.info.run_id, "train/kl")
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


def test_the_registered_model_loads_and_runs(finished: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mlflow.tracking._tracking_service.utils, "_tracking_uri", None)
    mlflow.set_tracking_uri(f"sqlite:///{finished.root / 'mlflow.db'}")
    [version] = finished.client().search_model_versions("name = 'reparam-digits'")
    assert [version.run_id] == [run.info.run_id for run in finished.training_runs().values()]
    golden = np.load(finished.root / "models/onnx/golden.npz")
    answer = mlflow.pyfunc.load_model("models:/reparam-digits/1").predict({"images": golden["images"]})
    np.testing.assert_allclose(answer["mean"], golden["mean"], atol=1e-5)
    taken = Client(mlflow.artifacts.download_artifacts("models:/reparam-digits/1"))
    np.testing.assert_allclose(taken.decode_mean(golden["latents"]), golden["decoded_mean"], atol=1e-5)


def test_dvc_gets_the_models_that_have_a_version_by_their_names(project: Project, tmp_path: Path) -> None:
    for name, version in (("onnx", "--rev v1.0.0 "), ("vae", "")):  # else the newest
        project(f"git tag --annotate --message first {name}@v1.0.0")
        project(f"dvc artifacts get {project.root} {name} {version}--out {tmp_path / name}")
        assert dvc_hash(tmp_path / name) == project.hashes()[f"models/{name}"]


@pytest.fixture
def elsewhere(finished: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Paths:
    """The files of `finished` as on another machine, which has a store of its own."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    return Paths(finished.root, tmp_path)


def test_results_that_were_pulled_are_tracked_as_where_they_were_made(finished: Project, elsewhere: Paths) -> None:
    config = load_config(finished.root / "params.yaml")
    tracker = InProcess.open(elsewhere)
    assert logged.everything(config, elsewhere, tracker) is True
    of_data = f"{tracker.experiment}-data"
    here, there = (
        [(row.info.run_name, row.data.params, row.data.metrics) for row in rows]
        for rows in ([*tracker.rows(), *tracker.rows(of_data)], [*finished.runs(), *finished.runs("reparam-data")])
    )
    assert [name for name, *_ in here[-2:]] == ["download", "preprocess"]
    for _, _, metrics in there:
        metrics.pop("images_per_second", None)  # of the machine, and in no file
    assert [(name, params) for name, params, _ in here] == [(name, params) for name, params, _ in there]
    for (_, _, found), (_, _, wanted) in zip(here, there, strict=True):
        assert found == pytest.approx(wanted, rel=1e-4, abs=1e-4)  # files are rounded
    assert logged.everything(config, elsewhere, tracker) is False
    assert (len(tracker.rows()), len(tracker.rows(of_data))) == (4, 2)
    hashes = finished.hashes()
    assert [row.data.tags["reparam.data_hash"] for row in tracker.rows(of_data)] == [
        hashes["data/raw"],
        hashes["data/processed"],
    ]


def test_results_of_other_parameters_are_not_tracked(elsewhere: Paths) -> None:
    config = load_config(elsewhere.params)
    other = config.model_copy(update={"train": config.train.model_copy(update={"seed": 99})})
    with pytest.raises(StaleInputError, match="wanted the parameters of the model in models/vae, found others"):
        logged.everything(other, elsewhere, InProcess.open(elsewhere))


def test_results_are_tracked_all_or_none(elsewhere: Paths, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = load_config(elsewhere.params)
    part = Paths(tmp_path / "part", tmp_path)
    for folder in ("data/raw", "data/processed", "models/vae", "reports/data", "reports/training"):
        shutil.copytree(elsewhere.root / folder, part.root / folder)
    tracker = InProcess.open(elsewhere)
    with pytest.raises(
        MissingInputError, match=r"reports/evaluation/metrics.json: not found; run `dvc repro evaluate`"
    ):
        logged.everything(config, part, tracker)
    assert tracker.rows() == []
    for folder in ("models/onnx", "reports/evaluation", "reports/export"):
        shutil.copytree(elsewhere.root / folder, part.root / folder)
    shutil.copy(elsewhere.report, part.report)
    picture = part.figures / "samples.png"
    picture.unlink()
    with pytest.raises(MissingInputError, match=r"samples.png: not found; run `dvc repro evaluate`"):
        logged.everything(config, part, tracker)
    shutil.copy(elsewhere.figures / "samples.png", picture)
    for content in ("epoch,beta\n1,x\n", "epoch,beta\n1\n", "beta\n1\n", "epoch\ninf\n", "epoch\n" + "9" * 200_000, ""):
        part.history.write_text(content)
        with pytest.raises(DamagedInputError, match=r"history.csv: wanted the epochs of this training, .*train"):
            logged.everything(config, part, tracker)
    assert tracker.rows() == []
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "off")
    with pytest.raises(TrackingError, match="MLFLOW_TRACKING_URI is 'off'; name the store to log to"):
        logged.everything(config, elsewhere, tracker)


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
    for title in ("Loss", "nats per image", "KL per latent dimension", "samples.png"):
        assert title in page
    assert "tiles.png" not in page
    assert "flex-wrap: wrap" in page  # figures are side by side


def test_an_edit_runs_its_stage_and_what_depends_on_it(project: Project) -> None:
    project.environment["MLFLOW_TRACKING_URI"] = "off"
    source = project.root / "src/reparam/evaluate/stage.py"
    source.write_text(source.read_text() + "\n# edited\n")
    changed = json.loads(project("dvc status --json"))
    assert changed == {"evaluate": [{"changed deps": {"src/reparam/evaluate": "modified"}}]}
    output = project("dvc repro")
    ran = [stage for stage in STAGES if f"Running stage '{stage}'" in output]
    assert ran == ["evaluate", "report"]


@pytest.mark.slow
def test_mlflow_serves_the_registered_model(finished: Project) -> None:
    golden = np.load(finished.root / "models/onnx/golden.npz")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = ["-m", "mlflow", "models", "serve", "--env-manager", "local", "--port", str(port)]
    server = subprocess.Popen(
        [sys.executable, *command, "--model-uri", "models:/reparam-digits/1"],
        cwd=finished.root,
        env=finished.environment | {"MLFLOW_TRACKING_URI": f"sqlite:///{finished.root}/mlflow.db"},
        start_new_session=True,
    )
    try:
        answer = _ask(f"http://127.0.0.1:{port}/invocations", {"inputs": {"images": golden["images"].tolist()}})
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()
    np.testing.assert_allclose(answer["predictions"]["mean"], golden["mean"], atol=1e-5)


def _ask(address: str, body: dict[str, Any]) -> Any:
    """Ask a server that is starting."""
    session = requests.Session()
    session.mount("http://", HTTPAdapter(max_retries=Retry(120, allowed_methods=None, backoff_factor=1, backoff_max=1)))
    return session.post(address, json=body, timeout=60).json()
