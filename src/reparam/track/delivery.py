"""Hand the calls of runs to a store: those of stages, and those that were spooled."""

import base64
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from reparam.errors import TrackingError
from reparam.paths import Paths
from reparam.redact import without_secrets
from reparam.track.registry import register
from reparam.track.spool import Call, Spool
from reparam.track.store import OFF, address, open_store, store_errors

METRICS_AT_ONCE = 1000  # what one request may hold


@dataclass(frozen=True)
class Delivery:
    """Hand calls to the store.

    Raises: TrackingError if the store cannot take one.
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
            case "model":
                register(self.client, call)
            case "end":
                self.client.set_terminated(run, call["status"], call["time"])

    def _log_content(self, run: str, name: Path, content: bytes) -> None:
        with tempfile.TemporaryDirectory() as directory:
            (Path(directory) / name.name).write_bytes(content)
            self.client.log_artifact(run, str(Path(directory) / name.name), name.parent.as_posix())


def replay(paths: Paths) -> int:
    """Deliver the calls that were spooled while the store was away; return how many went through.

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
