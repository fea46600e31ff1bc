"""Hand the calls of runs to a store: those of stages, and those that were spooled."""

import base64
import platform
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from reparam.errors import TrackingError
from reparam.paths import Paths
from reparam.redact import without_secrets
from reparam.track.spool import Call, Spool
from reparam.track.store import OFF, address, open_store, store_errors

METRICS_AT_ONCE = 1000  # what one request may hold


@dataclass(frozen=True)
class Delivery:
    """Hand calls to the store.

    Raises: TrackingError where the store cannot take one.
    """

    client: Any

    def __call__(self, call: Call) -> None:
        with store_errors():
            self._send(call, call["run"])

    def _send(self, call: Call, run: str) -> None:
        from mlflow import entities

        match call["call"]:
            case "params":
                self.client.log_batch(run, params=[entities.Param(*item) for item in call["values"].items()])
            case "tags":
                self.client.log_batch(run, tags=[entities.RunTag(*item) for item in call["values"].items()])
            case "metrics":
                metrics = [entities.Metric(**value) for value in call["values"]]
                for start in range(0, len(metrics), METRICS_AT_ONCE):
                    self.client.log_batch(run, metrics=metrics[start : start + METRICS_AT_ONCE])
            case "file":
                self.client.log_artifact(run, call["path"], call["folder"] or None)
            case "content":
                self._log_content(run, Path(call["name"]), base64.b64decode(call["content"]))
            case "dataset":
                tag = entities.InputTag("mlflow.data.context", call["context"])
                self.client.log_inputs(run, [entities.DatasetInput(entities.Dataset(**call["values"]), [tag])])
            case "onnx":
                self._log_onnx(run, Path(call["path"]))
            case "end":
                self.client.set_terminated(run, call["status"], call["time"])

    def _log_content(self, run: str, name: Path, content: bytes) -> None:
        with tempfile.TemporaryDirectory() as directory:
            (Path(directory) / name.name).write_bytes(content)
            self.client.log_artifact(run, str(Path(directory) / name.name), name.parent.as_posix())

    def _log_onnx(self, run: str, path: Path) -> None:
        """Log a graph as `mlflow.onnx.log_model` does.

        That function lists the files of all installed packages to compare versions, which takes 1.5 s.
        """
        from mlflow.entities import LoggedModelOutput

        experiment = self.client.get_run(run).info.experiment_id
        logged = self.client.create_logged_model(experiment, path.stem, run)
        with tempfile.TemporaryDirectory() as directory:
            _write_model(Path(directory), path, logged, run)
            self.client.log_model_artifacts(logged.model_id, directory)
        self.client.finalize_logged_model(logged.model_id, "READY")
        self.client.log_outputs(run, [LoggedModelOutput(logged.model_id, 0)])


def _write_model(directory: Path, path: Path, logged: Any, run: str) -> None:
    """Write the files of an MLflow model: the graph, its description, and the environment that it runs in."""
    import mlflow
    import onnx
    from mlflow.models import Model, ModelSignature

    graph = onnx.load(path).graph
    shutil.copyfile(path, directory / "model.onnx")
    (directory / "requirements.txt").write_text(f"mlflow=={mlflow.__version__}\nonnx\nonnxruntime\n", encoding="utf-8")
    (directory / "python_env.yaml").write_text(
        f"python: {platform.python_version()}\nbuild_dependencies: [pip]\ndependencies: [-r requirements.txt]\n",
        encoding="utf-8",
    )
    model = Model(logged.artifact_location, run, model_uuid=logged.model_id, model_id=logged.model_id)
    model.signature = ModelSignature(_schema(graph.input), _schema(graph.output))
    mlflow.pyfunc.add_to_model(model, "mlflow.onnx", data="model.onnx", python_env="python_env.yaml")
    model.add_flavor("onnx", onnx_version=onnx.__version__, data="model.onnx", providers=["CPUExecutionProvider"])
    model.save(str(directory / "MLmodel"))


def _schema(values: Any) -> Any:
    import onnx
    from mlflow.types import Schema, TensorSpec

    specs = []
    for value in values:
        tensor = value.type.tensor_type
        shape = [-1, *(dimension.dim_value for dimension in tensor.shape.dim[1:])]
        specs.append(TensorSpec(onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type), shape, value.name))
    return Schema(specs)


def replay(paths: Paths) -> int:
    """Deliver what was spooled while the store was away; return how many calls went through.

    Raises: TrackingError.
    """
    if address(paths) == OFF:
        raise TrackingError(f"MLFLOW_TRACKING_URI is {OFF!r}; name the store to deliver to")
    store = open_store(paths)
    spools = [Spool(paths.tracking_spool, file.stem) for file in sorted(paths.tracking_spool.glob("*.jsonl"))]
    delivered, refused = 0, []
    for spool in spools:
        try:
            delivered += spool.replay(Delivery(store.client))
        except TrackingError as error:
            refused.append(f"  {spool.calls}: {error}")
    if refused:
        raise TrackingError(
            "\n".join([f"MLflow at {without_secrets(store.uri)} refused some calls:", *refused])
            + "\nThey are kept: run `reparam replay` again, or delete the file of a run that is gone"
        )
    return delivered
