import json
from pathlib import Path

import mlflow
import numpy as np
import onnx
import pytest
from absent import Absent
from in_process import InProcess
from mlflow.entities import Run as Row

from reparam.paths import Paths
from reparam.track import replay
from reparam.track.registry import BUNDLE_TAG

DOUBLE = {"weights_sha256": "weights"}


@pytest.fixture(autouse=True)
def _same_store(tracker: InProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    """MLflow sets the variable itself, and would leave it to other tests."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", tracker.store.uri)


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """A folder as `export` writes it, with an encoder that doubles what it is given."""
    tensor = onnx.helper.make_tensor_value_info
    node = onnx.helper.make_node("Add", ["images", "images"], ["mean"])
    body = onnx.helper.make_graph(
        [node],
        "double",
        [tensor("images", onnx.TensorProto.FLOAT, ["batch", 3])],
        [tensor("mean", onnx.TensorProto.FLOAT, ["batch", 3])],
    )
    model = onnx.helper.make_model(body, opset_imports=[onnx.helper.make_opsetid("", 20)], ir_version=9)
    folder = tmp_path / "onnx"
    folder.mkdir()
    onnx.save(model, folder / "encoder.onnx")
    (folder / "manifest.json").write_text("{}")
    return folder


def export(tracker: InProcess, bundle: Path) -> Row:
    """Log an export, and return its run."""
    with tracker.child_run("export", DOUBLE) as run:
        run.log_model(bundle, "digits")
        run.log_metrics({"after": 1.0})
    return tracker.client.get_run(run.run_id)


def versions(tracker: InProcess) -> list[tuple[int, str, str]]:
    """Number, run and model of each version, the oldest first."""
    found = tracker.client.search_model_versions(f"name = '{tracker.experiment}-digits'")
    return sorted((int(version.version), version.run_id, version.source.removeprefix("models:/")) for version in found)


def models(row: Row) -> list[str]:
    return [output.model_id for output in row.outputs.model_outputs]


def test_an_export_is_a_version_that_the_training_run_leads_to(tracker: InProcess, bundle: Path) -> None:
    parent = tracker.train("weights")
    row = export(tracker, bundle)
    assert (row.info.status, row.data.metrics) == ("FINISHED", {"after": 1.0})
    [model] = models(row)
    assert versions(tracker) == [(1, parent, model)]
    assert models(tracker.client.get_run(parent)) == [model]
    tags = tracker.client.get_logged_model(model).tags
    assert json.loads(tags["mlflow.modelVersions"]) == [{"name": f"{tracker.experiment}-digits", "version": 1}]


def test_mlflow_loads_and_runs_the_encoder_and_gives_apps_all_files(tracker: InProcess, bundle: Path) -> None:
    tracker.train("weights")
    export(tracker, bundle)
    address = f"models:/{tracker.experiment}-digits/1"
    assert [node.op_type for node in mlflow.onnx.load_model(address).graph.node] == ["Add"]
    loaded = mlflow.pyfunc.load_model(address)
    assert loaded.metadata.signature.inputs.to_dict() == [
        {"name": "images", "type": "tensor", "tensor-spec": {"dtype": "float32", "shape": (-1, 3)}}
    ]
    x = np.array([[1, 2, 3]], np.float32)
    np.testing.assert_array_equal(loaded.predict({"images": x})["mean"], 2 * x)
    files = Path(mlflow.artifacts.download_artifacts(address))
    assert {file.name: file.read_bytes() for file in bundle.iterdir()}.items() <= {
        file.name: file.read_bytes() for file in files.iterdir() if file.is_file()
    }.items()


def test_the_same_export_is_stored_once_and_another_is_the_next_version(tracker: InProcess, bundle: Path) -> None:
    parent = tracker.train("weights")
    first, again = export(tracker, bundle), export(tracker, bundle)
    assert models(first) == models(again)
    (bundle / "manifest.json").write_text('{"opset": 21}')
    other = export(tracker, bundle)
    assert versions(tracker) == [(1, parent, *models(first)), (2, parent, *models(other))]
    [newest] = tracker.client.search_model_versions(f"name = '{tracker.experiment}-digits' and version_number = 2")
    assert len(newest.tags[BUNDLE_TAG]) == 64


def test_an_export_that_a_store_missed_is_registered_by_replay(
    shaky: InProcess, absent: Absent, bundle: Path, paths: Paths
) -> None:
    parent = shaky.train("weights")
    with shaky.child_run("export", DOUBLE) as run:
        absent.away = True
        run.set_tags({"late": "yes"})
        run.log_model(bundle, "digits")
    for file in bundle.iterdir():
        file.unlink()
    absent.away = False
    assert replay(paths) == 3
    assert versions(shaky) == [(1, parent, *models(shaky.client.get_run(run.run_id)))]
    assert [file.name for file in paths.tracking_spool.iterdir() if file.suffix != ".lock"] == []
