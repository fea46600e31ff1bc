"""Exported models in MLflow: a folder of ONNX graphs is one version of a registered model."""

import json
import os
import platform
import shutil
import tempfile
from pathlib import Path
from typing import Any

from reparam.cards.card import MANIFEST, FileFacts
from reparam.errors import DamagedInputError
from reparam.track.spool import Call
from reparam.track.store import Store

BUNDLE_TAG = "reparam.manifest_sha256"
LOGGED = "models:/"  # beginning of the source of a version; not every store keeps its `model_id`
SERVED = "encoder.onnx"  # the graph that `mlflow models serve` runs


def register(client: Any, call: Call) -> None:
    """Store a folder once, and link it from the run that exported it and from the training run.

    It holds the files for apps, and those that MLflow adds to load the encoder.
    """
    import mlflow
    from mlflow.entities import LoggedModelOutput

    # By this, and not by the client, MLflow finds a model of which a version is made.
    mlflow.set_tracking_uri(client.tracking_uri)
    run, folder = call["run"], Path(call["path"])
    experiment = client.get_experiment(client.get_run(run).info.experiment_id)
    name, manifest = registered_name(experiment.name, call["data"]), FileFacts.of(folder / MANIFEST).sha256
    model_id = _version_of(client, name, manifest)
    if model_id is None:
        model_id = _store(client, run, experiment.experiment_id, folder)
        _add_version(client, name, model_id, run=call["parent"] or run, manifest=manifest)
    for linked in filter(None, (run, call["parent"])):
        outputs = client.get_run(linked).outputs
        if model_id not in {output.model_id for output in (outputs.model_outputs if outputs else ())}:
            client.log_outputs(linked, [LoggedModelOutput(model_id, 0)])


def registered_name(experiment: str, data: str) -> str:
    """Name the registered model that has all models of some data as its versions."""
    return f"{experiment}-{data}"


def fetch_version(store: Store, version: Any, directory: Path) -> Path:
    """Copy the files of a version of a registered model into a directory.

    Raises: TrackingError, DamagedInputError if its manifest is not the one that was registered.
    """
    import mlflow

    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    address = f"models:/{version.name}/{version.version}"
    uris = {"tracking_uri": store.uri, "registry_uri": store.uri}
    folder = Path(store.read(lambda _: mlflow.artifacts.download_artifacts(address, dst_path=str(directory), **uris)))
    path, wanted = folder / MANIFEST, version.tags.get(BUNDLE_TAG)
    found = FileFacts.of(path).sha256 if path.is_file() else None
    if found is None or found != wanted:
        raise DamagedInputError(f"{address}: wanted a {MANIFEST} of SHA-256 {wanted}, found {found or 'no such file'}")
    return folder


def _version_of(client: Any, name: str, manifest: str) -> str | None:
    """Return the id of the model that is the newest version with this manifest."""
    found = client.search_model_versions(f"name = '{name}' and tags.`{BUNDLE_TAG}` = '{manifest}'")
    newest = max(found, key=lambda version: int(version.version), default=None)
    return newest.source.removeprefix(LOGGED) if newest else None


def _store(client: Any, run: str, experiment: str, folder: Path) -> str:
    """Log a folder as `mlflow.onnx.log_model` logs a graph.

    That function lists the files of all installed packages to compare versions, which takes 1.5 s.
    """
    logged = client.create_logged_model(experiment, folder.name, run)
    with tempfile.TemporaryDirectory() as directory:
        shutil.copytree(folder, directory, dirs_exist_ok=True)
        _describe(Path(directory), logged, run)
        client.log_model_artifacts(logged.model_id, directory)
    client.finalize_logged_model(logged.model_id, "READY")
    return str(logged.model_id)


def _add_version(client: Any, name: str, model_id: str, *, run: str, manifest: str) -> None:
    from mlflow.exceptions import MlflowException
    from mlflow.utils.mlflow_tags import MLFLOW_MODEL_VERSIONS

    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    tags = {BUNDLE_TAG: manifest}
    version = client.create_model_version(name, LOGGED + model_id, run_id=run, tags=tags, model_id=model_id)
    # By this tag the pages of MLflow lead from the model to its version.
    link = json.dumps([{"name": name, "version": version.version}])
    client.set_logged_model_tags(model_id, {MLFLOW_MODEL_VERSIONS: link})


def _describe(directory: Path, logged: Any, run: str) -> None:
    """Add what MLflow wants beside the graphs: a description, and the environment that the encoder runs in."""
    import mlflow
    import onnx
    from mlflow.models import Model, ModelSignature

    graph = onnx.load(directory / SERVED).graph
    (directory / "requirements.txt").write_text(f"mlflow=={mlflow.__version__}\nonnx\nonnxruntime\n", encoding="utf-8")
    (directory / "python_env.yaml").write_text(
        f"python: {platform.python_version()}\nbuild_dependencies: [pip]\ndependencies: [-r requirements.txt]\n",
        encoding="utf-8",
    )
    model = Model(logged.artifact_location, run, model_uuid=logged.model_id, model_id=logged.model_id)
    model.signature = ModelSignature(_schema(graph.input), _schema(graph.output))
    mlflow.pyfunc.add_to_model(model, "mlflow.onnx", data=SERVED, python_env="python_env.yaml")
    model.add_flavor("onnx", onnx_version=onnx.__version__, data=SERVED, providers=["CPUExecutionProvider"])
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
