"""An open run of the tracking store, which never stops or slows the stage that it belongs to."""

import base64
import json
import logging
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from reparam.errors import TrackingError
from reparam.track.channel import Channel
from reparam.track.spool import Call, Spool

FLUSH_SECONDS = 2.0

log = logging.getLogger(__name__)


class Run:
    """An open run. Logging returns at once; a call that the store cannot take is spooled, and all that follow it."""

    def __init__(self, channel: Channel, run_id: str, spool: Spool, parent: str | None = None) -> None:
        self.run_id = run_id
        self.parent = parent
        self._channel = channel
        self._spool = spool
        self._away = False
        self._pending: list[dict[str, Any]] = []
        self._flushed = time.monotonic()

    def log_params(self, params: Mapping[str, Any]) -> None:
        self._send(
            {"call": "params", "run": self.run_id, "values": {name: str(value) for name, value in params.items()}}
        )

    def set_tags(self, tags: Mapping[str, str]) -> None:
        self._send({"call": "tags", "run": self.run_id, "values": dict(tags)})

    def log_metrics(self, metrics: Mapping[str, float], epoch: int = 0, group: str = "") -> None:
        """Collect metrics for one call every FLUSH_SECONDS at most: each call costs a transaction or a request.

        MLflow shows each `group` as a section of charts.
        """
        self._pending += _metrics(metrics, epoch, group)
        if time.monotonic() - self._flushed > FLUSH_SECONDS:
            self._flush()

    def log_and_share(self, metrics: Mapping[str, float], group: str) -> None:
        """Log metrics here and on the training run, so that the table of runs alone compares models."""
        self.log_metrics(metrics, group=group)
        if self.parent is not None:
            self._flush()
            self._send({"call": "metrics", "run": self.parent, "values": _metrics(metrics, 0, group)})

    def log_files(self, files: Iterable[Path], folder: str = "") -> None:
        """Log artifacts here, and on the training run if there is one. The files must stay until the run is closed."""
        for path in files:
            for run in (self.run_id, self.parent):
                if run is not None:
                    self._send({"call": "file", "run": run, "path": str(path), "folder": folder})

    def log_picture(self, name: str, content: bytes) -> None:
        """Log an artifact that is no file of the stage, under a path such as `filmstrip/epoch-0010.png`."""
        coded = base64.b64encode(content).decode("ascii")
        self._send({"call": "content", "run": self.run_id, "name": name, "content": coded})

    def log_dataset(
        self, *, name: str, digest: str, context: str, shape: Sequence[int], counts: Mapping[str, int]
    ) -> None:
        """Log the processed data as an MLflow dataset: uint8 images of a shape (C, H, W), a number of them per split.

        Its digest is the hash in `dvc.lock`.
        """
        images = {"type": "tensor", "name": "images", "tensor-spec": {"dtype": "uint8", "shape": [-1, *shape]}}
        values = {
            "name": name,
            "digest": digest,
            "source_type": "local",
            "source": json.dumps({"uri": "data/processed"}),
            "schema": json.dumps({"mlflow_tensorspec": {"features": json.dumps([images]), "targets": None}}),
            "profile": json.dumps(counts),
        }
        self._send({"call": "dataset", "run": self.run_id, "values": values, "context": context})

    def log_model(self, directory: Path, data: str) -> None:
        """Register a folder of ONNX graphs as the next version of the model of some data, unless it is one already."""
        call = {"call": "model", "run": self.run_id, "parent": self.parent, "path": str(directory), "folder": ""}
        self._send({**call, "data": data})

    def wait(self) -> None:
        """Wait until all is delivered or spooled."""
        self._flush()
        self._channel.wait()

    def close(self, status: str) -> None:
        """End the run, and wait; spooled calls are tried once more."""
        self._flush()
        self._send({"call": "end", "run": self.run_id, "status": status, "time": round(time.time() * 1000)})
        self.wait()
        if self._away:
            self._replay()

    def _flush(self) -> None:
        if self._pending:
            self._send({"call": "metrics", "run": self.run_id, "values": self._pending})
        self._pending, self._flushed = [], time.monotonic()

    def _send(self, call: Call) -> None:
        self._channel.send(self._deliver, call)

    def _deliver(self, call: Call) -> None:
        if not self._away:
            try:
                self._channel.exchange(call)
            except TrackingError as error:
                # From here on everything is spooled: an absent store costs one time-out, and the order is kept.
                self._away = True
                log.warning("going on without MLflow: %s", error)
            else:
                return
        try:
            self._spool.add(call)
        except OSError as error:
            log.warning("%s: a call to MLflow is lost, because it cannot be spooled: %s", call["call"], error)

    def _replay(self) -> None:
        try:
            self._spool.replay(self._channel.ask)
            log.warning("MLflow is back: the calls that it missed were delivered")
        except (TrackingError, OSError):
            log.warning("calls that MLflow did not take are kept in .tracking; send them with `reparam replay`")


class NoRun(Run):
    """A run of nowhere: tracking is off, or the store has all this already."""

    def __init__(self) -> None:
        super().__init__(Channel(lambda _: None, lambda: None), "", Spool(Path(), "none"))


def _metrics(metrics: Mapping[str, float], epoch: int, group: str) -> list[dict[str, Any]]:
    now, prefix = round(time.time() * 1000), f"{group}/" if group else ""
    return [{"key": prefix + key, "value": value, "timestamp": now, "step": epoch} for key, value in metrics.items()]
