"""Everything that speaks to MLflow.

One run per trained model is the row that people compare. `train` opens it and tags it with the hash of the weights it
wrote; `evaluate`, `export` and `report` find it by that tag, so lineage survives DVC's caches, queues, clones and
another machine.

Tracking never stops a stage that has begun: what cannot be delivered is spooled to a file, and `reparam replay`
delivers it later.
"""

import json
import logging
import os
import subprocess
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock

from reparam.errors import TrackingError
from reparam.paths import Paths
from reparam.spool import Call, Spool

WEIGHTS_TAG = "reparam.weights_sha256"
DATA_TAG = "reparam.data_hash"
STAGE_TAG = "reparam.stage"
EXPERIMENT_TAG = "dvc.experiment"
OFF = "off"
FLUSH_SECONDS = 2.0

# Set before MLflow is imported, unless the user has: an unreachable server must fail within seconds, not minutes.
QUICK_TO_FAIL = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "5",
    "MLFLOW_DISABLE_TELEMETRY": "true",
}

log = logging.getLogger(__name__)


class Run:
    """An open run.

    Nothing here raises because of the store: what it cannot take is spooled. Without a client, nothing is logged.
    """

    def __init__(self, client: Any, run_id: str, spool: Path, parent: str | None = None) -> None:
        self.run_id = run_id
        self.parent = parent
        self._client = client
        self._spool = Spool(spool, run_id)
        self._away = False
        self._pending: list[dict[str, Any]] = []
        self._flushed = time.monotonic()

    def log_params(self, params: Mapping[str, Any]) -> None:
        self._send(
            {
                "call": "params",
                "run": self.run_id,
                "values": {name: str(value) for name, value in params.items()},
            }
        )

    def set_tags(self, tags: Mapping[str, str]) -> None:
        self._send({"call": "tags", "run": self.run_id, "values": dict(tags)})

    def log_metrics(self, metrics: Mapping[str, float], epoch: int = 0) -> None:
        """Keep metrics for the next delivery, at most one in FLUSH_SECONDS: a store must not slow training."""
        self._pending += _metrics(metrics, epoch)
        if time.monotonic() - self._flushed > FLUSH_SECONDS:
            self._flush()

    def log_headline(self, metrics: Mapping[str, float]) -> None:
        """Log metrics here and on the training run, so that the table of runs alone compares models."""
        self.log_metrics(metrics)
        if self.parent is not None:
            self._flush()
            self._send({"call": "metrics", "run": self.parent, "values": _metrics(metrics, 0)})

    def log_files(self, files: Iterable[Path], folder: str = "") -> None:
        """Log artifacts here, and on the training run where there is one."""
        for path in files:
            for run in (self.run_id, self.parent):
                if run is not None:
                    self._send({"call": "file", "run": run, "path": str(path), "folder": folder})

    def log_dataset(self, card: Mapping[str, Any], data_hash: str, context: str) -> None:
        """Log the processed data as an MLflow dataset whose digest is the hash in `dvc.lock`."""
        images = {
            "type": "tensor",
            "name": "images",
            "tensor-spec": {"dtype": card["dtype"], "shape": [-1, *card["shape"]]},
        }
        values = {
            "name": card["source"],
            "digest": data_hash,
            "source_type": "local",
            "source": json.dumps({"uri": "data/processed"}),
            "schema": json.dumps({"mlflow_tensorspec": {"features": json.dumps([images]), "targets": None}}),
            "profile": json.dumps({name: split["count"] for name, split in card["splits"].items()}),
        }
        self._send({"call": "dataset", "run": self.run_id, "values": values, "context": context})

    def log_onnx(self, path: Path) -> None:
        """Log a graph as an MLflow ONNX model with its signature, named after the file."""
        # Not spooled: the model is a stage output, and running the stage again logs it.
        if self._client is None:
            return
        if self._away:
            log.warning(
                "%s: not logged as an MLflow model; run the stage again when the store is back",
                path.name,
            )
            return
        self._flush()
        try:
            _log_onnx(self._client.tracking_uri, self.run_id, path)
        except _store_errors() as error:
            log.warning(
                "%s: not logged as an MLflow model: %s; run the stage again when the store is back",
                path.name,
                _first_line(error),
            )

    def close(self, status: str) -> None:
        self._flush()
        self._send({"call": "end", "run": self.run_id, "status": status, "time": round(time.time() * 1000)})
        if self._away:
            self._replay()

    def _flush(self) -> None:
        if self._pending:
            self._send({"call": "metrics", "run": self.run_id, "values": self._pending})
        self._pending, self._flushed = [], time.monotonic()

    def _send(self, call: Call) -> None:
        if self._client is None:
            return None
        if not self._away:
            try:
                return _deliver(self._client, call)
            except _store_errors() as error:
                # From here on everything is spooled, so that an absent server costs one time-out and the order is kept.
                self._away = True
                log.warning("MLflow does not answer, going on without it: %s", _first_line(error))
        return self._spool.add(call)

    def _replay(self) -> None:
        try:
            self._spool.replay(lambda call: _deliver(self._client, call))
            log.warning("MLflow is back: what it missed was delivered")
        except _store_errors():
            log.warning("MLflow is still away: what it missed is kept; deliver it with `reparam replay`")


@dataclass(frozen=True)
class Tracker:
    """An open store; `client` is None when tracking is off."""

    client: Any
    uri: str
    experiment: str
    paths: Paths

    @contextmanager
    def training_run(self, data_hash: str) -> Iterator[Run]:
        """Open the run that stands for one trained model."""
        with self._run(self.experiment, {STAGE_TAG: "train", DATA_TAG: data_hash}, None) as run:
            yield run

    @contextmanager
    def child_run(self, stage: str, weights_sha256: str) -> Iterator[Run]:
        """Open a run below the training run that wrote these weights; say so where there is none."""
        parent = None
        if self.client is not None:
            parent = self._training_run(weights_sha256)
            if parent is None:
                log.warning(
                    "%s: no MLflow run bears the weights %s..., so this run is logged without a parent; the "
                    "model was trained elsewhere or without tracking",
                    stage,
                    weights_sha256[:12],
                )
        with self._run(self.experiment, {STAGE_TAG: stage, WEIGHTS_TAG: weights_sha256}, parent) as run:
            yield run

    @contextmanager
    def data_run(self, stage: str, data_hash: str) -> Iterator[Run]:
        """Open a run in the experiment of data; where one stands for the same data already, log nothing."""
        experiment, tags = f"{self.experiment}-data", {STAGE_TAG: stage, DATA_TAG: data_hash}
        if self.client is not None and self._find(experiment, tags):
            yield Run(None, "", self.paths.tracking_spool)
            return
        with self._run(experiment, tags, None) as run:
            yield run

    def _training_run(self, weights_sha256: str) -> str | None:
        found = self._find(self.experiment, {STAGE_TAG: "train", WEIGHTS_TAG: weights_sha256})
        # Equal weights can come from several experiments; the one that runs now goes first, then the newest.
        here = os.environ.get("DVC_EXP_NAME", "")
        found.sort(key=lambda run: run.data.tags.get(EXPERIMENT_TAG, "") != here)
        return str(found[0].info.run_id) if found else None

    def _find(self, experiment: str, tags: Mapping[str, str]) -> list[Any]:
        wanted = " and ".join(f"tags.`{name}` = '{value}'" for name, value in tags.items())
        wanted += " and attributes.status = 'FINISHED'"
        return list(
            self.client.search_runs([self._experiment_id(experiment)], wanted, order_by=["attributes.start_time DESC"])
        )

    @contextmanager
    def _run(self, experiment: str, tags: dict[str, str], parent: str | None) -> Iterator[Run]:
        if self.client is None:
            yield Run(None, "", self.paths.tracking_spool)
            return
        tags = tags | _provenance(self.paths.root) | ({"mlflow.parentRunId": parent} if parent else {})
        stage = tags[STAGE_TAG]
        name = tags.get(EXPERIMENT_TAG) if stage == "train" else stage
        created = self.client.create_run(self._experiment_id(experiment), tags=tags, run_name=name)
        run = Run(self.client, created.info.run_id, self.paths.tracking_spool, parent)
        status = "FAILED"
        try:
            yield run
            status = "FINISHED"
        except KeyboardInterrupt:
            status = "KILLED"
            raise
        finally:
            run.close(status)

    def _experiment_id(self, name: str) -> str:
        # Locked, because two processes may find at once that the experiment is missing.
        with _lock(self.paths):
            experiment = self.client.get_experiment_by_name(name)
            if experiment is None:
                artifacts = self.paths.tracking_artifacts.as_uri() if self.uri.startswith("sqlite:") else None
                return str(self.client.create_experiment(name, artifact_location=artifacts))
        if experiment.lifecycle_stage != "active":
            raise TrackingError(
                f"MLflow experiment {name!r} at {self.uri} is deleted; restore it with `mlflow experiments restore`, "
                "or choose another name with MLFLOW_EXPERIMENT_NAME"
            )
        return str(experiment.experiment_id)


def connect(paths: Paths) -> Tracker:
    """Open the store that MLFLOW_TRACKING_URI names, by default an SQLite file at the root of the real repository.

    Raises: TrackingError, within seconds, when the store cannot be used.
    """
    uri = os.environ.get("MLFLOW_TRACKING_URI", "").strip() or f"sqlite:///{paths.tracking_database}"
    name = os.environ.get("MLFLOW_EXPERIMENT_NAME", "reparam")
    if uri == OFF:
        return Tracker(None, uri, name, paths)
    for variable, value in QUICK_TO_FAIL.items():
        os.environ.setdefault(variable, value)
    import mlflow

    # MLflow narrates the set-up of its database.
    logging.getLogger("mlflow").setLevel(logging.WARNING)
    logging.getLogger("alembic").setLevel(logging.WARNING)
    try:
        # Locked, because two processes that create the tables of a fresh database at once corrupt it.
        with _lock(paths):
            client = mlflow.MlflowClient(uri)
            client.search_experiments(max_results=1)
    except _store_errors() as error:
        raise TrackingError(
            f"MLflow at {uri} cannot be used: {_first_line(error)}\n"
            f"Start the server, unset MLFLOW_TRACKING_URI to use a local file, or set "
            f"MLFLOW_TRACKING_URI={OFF} to run without tracking"
        ) from None
    return Tracker(client, uri, name, paths)


def replay(paths: Paths) -> int:
    """Deliver what was spooled while the store was away; return how many calls went through.

    Raises: TrackingError.
    """
    tracker = connect(paths)
    if tracker.client is None:
        raise TrackingError(f"MLFLOW_TRACKING_URI is {OFF!r}; name the store to deliver to")
    try:
        spools = [Spool(paths.tracking_spool, file.stem) for file in sorted(paths.tracking_spool.glob("*.jsonl"))]
        return sum(spool.replay(lambda call: _deliver(tracker.client, call)) for spool in spools)
    except _store_errors() as error:
        raise TrackingError(f"MLflow at {tracker.uri} refused a call, the rest is kept: {_first_line(error)}") from None


def _deliver(client: Any, call: Call) -> None:
    from mlflow import entities

    run = call["run"]
    match call["call"]:
        case "params":
            client.log_batch(run, params=[entities.Param(*item) for item in call["values"].items()])
        case "tags":
            client.log_batch(run, tags=[entities.RunTag(*item) for item in call["values"].items()])
        case "metrics":
            metrics = [entities.Metric(**value) for value in call["values"]]
            for start in range(0, len(metrics), 1000):  # what one request may hold
                client.log_batch(run, metrics=metrics[start : start + 1000])
        case "file":
            client.log_artifact(run, call["path"], call["folder"] or None)
        case "dataset":
            tag = entities.InputTag("mlflow.data.context", call["context"])
            client.log_inputs(run, [entities.DatasetInput(entities.Dataset(**call["values"]), [tag])])
        case "end":
            client.set_terminated(run, call["status"], call["time"])


def _log_onnx(uri: str, run_id: str, path: Path) -> None:
    import mlflow
    import onnx
    from mlflow.models import ModelSignature
    from mlflow.types import Schema, TensorSpec

    model = onnx.load(path)

    def schema(values: Any) -> Schema:
        specs = []
        for value in values:
            tensor = value.type.tensor_type
            shape = [-1, *(dimension.dim_value for dimension in tensor.shape.dim[1:])]
            specs.append(TensorSpec(onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type), shape, value.name))
        return Schema(specs)

    mlflow.set_tracking_uri(uri)
    with mlflow.start_run(run_id=run_id, log_system_metrics=False):
        mlflow.onnx.log_model(
            model,
            name=path.stem,
            signature=ModelSignature(schema(model.graph.input), schema(model.graph.output)),
            pip_requirements=[
                "onnx",
                "onnxruntime",
            ],  # given, because to infer them MLflow would start a process and run the model
            onnx_execution_providers=["CPUExecutionProvider"],
            save_as_external_data=False,
        )


def _provenance(root: Path) -> dict[str, str]:
    """Say which experiment of DVC and which commit this is, and whether the code differs from that commit."""
    tags = {
        EXPERIMENT_TAG: os.environ.get("DVC_EXP_NAME", ""),
        "dvc.baseline": os.environ.get("DVC_EXP_BASELINE_REV", ""),
    }

    def git(*arguments: str) -> str | None:
        try:
            result = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, check=False)
        except FileNotFoundError:  # git is not installed
            return None
        return result.stdout.strip() if result.returncode == 0 else None

    commit = git("rev-parse", "HEAD")
    if commit:
        tags["mlflow.source.git.commit"] = commit
        tags["mlflow.source.git.dirty"] = str(bool(git("status", "--porcelain", "--", "src", "dvc.yaml"))).lower()
    return {name: value for name, value in tags.items() if value}


def _lock(paths: Paths) -> FileLock:
    return FileLock(f"{paths.tracking_database}.lock")


def _metrics(metrics: Mapping[str, float], epoch: int) -> list[dict[str, Any]]:
    now = round(time.time() * 1000)
    return [{"key": key, "value": value, "timestamp": now, "step": epoch} for key, value in metrics.items()]


def _store_errors() -> tuple[type[Exception], ...]:
    from mlflow.exceptions import MlflowException

    return MlflowException, OSError  # a refused or broken connection is an OSError


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]
