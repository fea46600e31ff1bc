"""Everything that speaks to MLflow.

One run per trained model is the row that people compare. `train` opens it and tags it with the hash of the weights it
wrote; `evaluate`, `export` and `report` find it by that tag, so lineage survives DVC's caches, queues, clones and
another machine.

Tracking never stops a stage that has begun: what cannot be delivered is spooled to a file, and `reparam replay`
delivers it later.
"""

import logging
import os
import subprocess
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock

from reparam.errors import TrackingError
from reparam.paths import Paths
from reparam.track.run import NoRun, Run
from reparam.track.spool import Call, Spool

WEIGHTS_TAG = "reparam.weights_sha256"
PARAMS_TAG = "reparam.params_sha256"
DATA_TAG = "reparam.data_hash"
STAGE_TAG = "reparam.stage"
EXPERIMENT_TAG = "dvc.experiment"
OFF = "off"

# Set before MLflow is imported, unless the user has: an unreachable server must fail within seconds, not minutes.
QUICK_TO_FAIL = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "5",
    "MLFLOW_DISABLE_TELEMETRY": "true",
}

log = logging.getLogger(__name__)


class StoreError(TrackingError):
    """What a store itself says, in one line."""


@dataclass(frozen=True)
class Tracker:
    """An open store; `client` is None when tracking is off."""

    client: Any
    uri: str
    experiment: str
    paths: Paths

    @contextmanager
    def training_run(self, data_hash: str, resume: str = "") -> Iterator[Run]:
        """Open the run that stands for one trained model, or go on with the one that was interrupted.

        Raises: TrackingError, so that training does not start where its run cannot be opened.
        """
        try:
            opened = self._reopen(resume) or self._open(
                self.experiment, {STAGE_TAG: "train", DATA_TAG: data_hash}, None
            )
        except StoreError as error:
            raise _unusable(self.uri, error) from None
        with _closing(opened) as run:
            yield run

    def logged_epochs(self, run: Run) -> set[int]:
        """Return the epochs of a run whose metrics the store has: those that a killed process held back are missing."""
        if self.client is None:
            return set()
        try:
            with _store_errors():
                return {metric.step for metric in self.client.get_metric_history(run.run_id, "epoch")}
        except StoreError:
            return set()

    @contextmanager
    def child_run(self, stage: str, lineage: Mapping[str, str]) -> Iterator[Run]:
        """Open a run below the training run that a model card's `lineage` tells of; say so where there is none."""

        def open_child() -> Run:
            tags = {STAGE_TAG: stage, WEIGHTS_TAG: lineage["weights_sha256"]}
            return self._open(self.experiment, tags, self._training_run(lineage))

        with _closing(_or_no_run(open_child)) as run:
            if run.parent is None and not isinstance(run, NoRun):
                log.warning(
                    "%s: no MLflow run bears the weights %s..., so this run is logged without a parent; the "
                    "model was trained elsewhere or without tracking",
                    stage,
                    lineage["weights_sha256"][:12],
                )
            yield run

    @contextmanager
    def data_run(self, stage: str, data_hash: str) -> Iterator[Run]:
        """Open a run in the experiment of data; where one stands for the same data already, log nothing."""
        experiment, tags = f"{self.experiment}-data", {STAGE_TAG: stage, DATA_TAG: data_hash}
        with _closing(
            _or_no_run(lambda: NoRun() if self._find(experiment, tags) else self._open(experiment, tags, None))
        ) as run:
            yield run

    def read(self, ask: Callable[[Any], Any]) -> Any:
        """Ask the store something: `ask` gets its client. Raises: TrackingError."""
        with _store_errors():
            return ask(self.client)

    def _training_run(self, lineage: Mapping[str, str]) -> str | None:
        found = self._find(self.experiment, {STAGE_TAG: "train", WEIGHTS_TAG: lineage["weights_sha256"]})
        # Equal weights can come from several parameters and experiments: these parameters and this experiment go first,
        # then the newest.
        wanted = {PARAMS_TAG: lineage.get("params_sha256"), EXPERIMENT_TAG: os.environ.get("DVC_EXP_NAME")}
        found.sort(key=lambda run: [run.data.tags.get(tag) != value for tag, value in wanted.items()])
        return str(found[0].info.run_id) if found else None

    def _find(self, experiment: str, tags: Mapping[str, str]) -> list[Any]:
        if self.client is None:
            return []
        wanted = " and ".join(f"tags.`{name}` = '{value}'" for name, value in tags.items())
        wanted += " and attributes.status = 'FINISHED'"
        newest_first = ["attributes.start_time DESC"]
        with _store_errors():
            return list(self.client.search_runs([self._experiment_id(experiment)], wanted, order_by=newest_first))

    def _reopen(self, run_id: str) -> Run | None:
        """Go on with a run that never finished; None where there is none such in the experiment."""
        if self.client is None or not run_id:
            return None
        from mlflow.exceptions import MlflowException

        with _store_errors():
            try:
                info = self.client.get_run(run_id).info
            except MlflowException:
                return None  # of another store, or deleted
            is_open = info.status != "FINISHED" and info.lifecycle_stage == "active"
            if not is_open or info.experiment_id != self._experiment_id(self.experiment):
                return None
            spool = Spool(self.paths.tracking_spool, run_id)
            if spool.calls.exists():  # or its old end would be delivered after the new one
                try:
                    spool.replay(Delivery(self.client))
                except StoreError:
                    return None  # and the calls are kept for `reparam replay`
            self.client.update_run(run_id, status="RUNNING")
        return Run(Delivery(self.client), run_id, spool)

    def _open(self, experiment: str, tags: dict[str, str], parent: str | None) -> Run:
        if self.client is None:
            return NoRun()
        tags = tags | _provenance(self.paths.root) | ({"mlflow.parentRunId": parent} if parent else {})
        stage = tags[STAGE_TAG]
        name = tags.get(EXPERIMENT_TAG) if stage == "train" else stage
        with _store_errors():
            run_id = self.client.create_run(self._experiment_id(experiment), tags=tags, run_name=name).info.run_id
        return Run(Delivery(self.client), run_id, Spool(self.paths.tracking_spool, run_id), parent)

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
        here = self.paths.tracking_artifacts.as_uri()
        if self.uri == _local(self.paths) and experiment.artifact_location != here:
            raise TrackingError(
                f"{self.paths.tracking_database}: wanted artifacts at {here}, found {experiment.artifact_location}: "
                "the repository was moved or copied; move mlflow.db away to start a new one, or set MLFLOW_TRACKING_URI"
            )
        return str(experiment.experiment_id)


def nowhere(paths: Paths) -> Tracker:
    """Track nothing."""
    return Tracker(None, OFF, "", paths)


def connect(paths: Paths) -> Tracker:
    """Open the store that MLFLOW_TRACKING_URI names, by default an SQLite file at the root of the real repository.

    Raises: TrackingError, within seconds, when the store cannot be used.
    """
    uri = _address(paths)
    name = os.environ.get("MLFLOW_EXPERIMENT_NAME", "reparam")
    if uri == OFF:
        return Tracker(None, uri, name, paths)
    for variable, value in QUICK_TO_FAIL.items():
        os.environ.setdefault(variable, value)
    import mlflow

    # MLflow narrates the set-up of its database.
    logging.getLogger("mlflow").setLevel(logging.WARNING)
    logging.getLogger("alembic").setLevel(logging.WARNING)
    # Locked, because two processes that create the tables of a fresh database at once corrupt it.
    try:
        with _lock(paths), _store_errors():
            client = mlflow.MlflowClient(uri)
            client.search_experiments(max_results=1)
    except (StoreError, ImportError) as error:  # a store may want a driver that is not installed
        raise _unusable(uri, error) from None
    return Tracker(client, uri, name, paths)


def connect_to_read(paths: Paths) -> Tracker | None:
    """Open the store as `connect` does, but never make one: None where tracking is off or nothing was tracked yet.

    Raises: TrackingError, within seconds, when the store cannot be used.
    """
    uri = _address(paths)
    scheme = next((scheme for scheme in ("sqlite:///", "file://", "file:") if uri.startswith(scheme)), "")
    if uri == OFF or (scheme and not Path(uri.removeprefix(scheme).partition("?")[0]).exists()):
        return None
    return connect(paths)


def replay(paths: Paths) -> int:
    """Deliver what was spooled while the store was away; return how many calls went through.

    Raises: TrackingError.
    """
    tracker = connect(paths)
    if tracker.client is None:
        raise TrackingError(f"MLFLOW_TRACKING_URI is {OFF!r}; name the store to deliver to")
    spools = [Spool(paths.tracking_spool, file.stem) for file in sorted(paths.tracking_spool.glob("*.jsonl"))]
    delivered, refused = 0, []
    for spool in spools:
        try:
            delivered += spool.replay(Delivery(tracker.client))
        except TrackingError as error:
            refused.append(f"  {spool.calls}: {error}")
    if refused:
        raise TrackingError(
            "\n".join([f"MLflow at {tracker.uri} refused some calls:", *refused])
            + "\nThey are kept: run `reparam replay` again, or delete the file of a run that is gone"
        )
    return delivered


@dataclass(frozen=True)
class Delivery:
    """Hand calls to the store.

    Raises: TrackingError where the store cannot take one.
    """

    client: Any

    def __call__(self, call: Call) -> None:
        with _store_errors():
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
                for start in range(0, len(metrics), 1000):  # what one request may hold
                    self.client.log_batch(run, metrics=metrics[start : start + 1000])
            case "file":
                self.client.log_artifact(run, call["path"], call["folder"] or None)
            case "dataset":
                tag = entities.InputTag("mlflow.data.context", call["context"])
                self.client.log_inputs(run, [entities.DatasetInput(entities.Dataset(**call["values"]), [tag])])
            case "onnx":
                _log_onnx(self.client.tracking_uri, run, Path(call["path"]))
            case "end":
                self.client.set_terminated(run, call["status"], call["time"])


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
            # Named, because to infer them MLflow would start a process and run the model.
            pip_requirements=["onnx", "onnxruntime"],
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


def _address(paths: Paths) -> str:
    return os.environ.get("MLFLOW_TRACKING_URI", "").strip() or _local(paths)


def _local(paths: Paths) -> str:
    return f"sqlite:///{paths.tracking_database}"


def _lock(paths: Paths) -> FileLock:
    return FileLock(f"{paths.tracking_database}.lock")


def _unusable(uri: str, error: Exception) -> TrackingError:
    return TrackingError(
        f"MLflow at {uri} cannot be used: {error}\n"
        "Start the server, unset MLFLOW_TRACKING_URI to use a local file, or set "
        f"MLFLOW_TRACKING_URI={OFF} to run without tracking"
    )


@contextmanager
def _store_errors() -> Iterator[None]:
    """Turn what a store can raise into a StoreError of one line."""
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError  # which MLflow lets through where a database is damaged

    try:
        yield
    except (MlflowException, SQLAlchemyError, OSError) as error:  # a refused or broken connection is an OSError
        lines = str(error).strip().splitlines()
        # SQLAlchemy puts remarks before the line that says what is wrong.
        raise StoreError(next((line for line in lines if "Error) " in line), lines[0])) from None


@contextmanager
def _closing(run: Run) -> Iterator[Run]:
    """Close a run with the status that fits how the block ended."""
    status = "FAILED"
    try:
        yield run
        status = "FINISHED"
    except (KeyboardInterrupt, SystemExit):  # SIGTERM ends in SystemExit
        status = "KILLED"
        raise
    finally:
        run.close(status)


def _or_no_run(open_run: Callable[[], Run]) -> Run:
    try:
        return open_run()
    except TrackingError as error:
        log.warning("MLflow does not answer, going on without it: %s", error)
        return NoRun()
