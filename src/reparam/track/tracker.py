"""Open the runs of a stage, without loading MLflow."""

import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from reparam.errors import TrackingError
from reparam.paths import Paths
from reparam.track.channel import Channel, Recorder
from reparam.track.run import NoRun, Run
from reparam.track.runs import PARAMS_TAG, WEIGHTS_TAG
from reparam.track.spool import Spool
from reparam.track.store import OFF, address

log = logging.getLogger(__name__)


def connect(paths: Paths) -> "Tracker":
    """Connect to the recorder without waiting for MLflow; `ready` and `training_run` wait until the store is open."""
    # Of the processes that torchrun starts, the first one alone tracks.
    is_first = "WORLD_SIZE" not in os.environ or os.environ.get("RANK", "0") == "0"
    if address(paths) == OFF or not is_first:
        return Tracker(None, paths)
    recorder = Recorder(paths)
    return Tracker(Channel(recorder.exchange, recorder.cut), paths)


class Tracker:
    """Opens runs; without a channel, tracking is off."""

    def __init__(self, channel: Channel | None, paths: Paths) -> None:
        self._channel = channel
        self._paths = paths

    def ready(self) -> None:
        """Wait until the store is open, before work that would be lost without it.

        Raises: TrackingError, within seconds, when the store cannot be used.
        """
        self._ask("ready")

    @contextmanager
    def training_run(self, data_hash: str, resume: str = "", *, name: str = "train") -> Iterator[Run]:
        """Open the run of one trained model, or go on with the one that was interrupted.

        An experiment of DVC gives it a name of its own.

        Raises: TrackingError, so that training does not start where its run cannot be opened.
        """
        opened = self._ask("training_run", name=name, data_hash=data_hash, resume=resume)
        with _closing(self._run(opened)) as run:
            yield run

    def sweep_run(self, name: str, run: str = "") -> Run:
        """Open the run of a study, or go on with it. It is open until it is closed: several processes share it.

        Raises: TrackingError.
        """
        return self._run(self._ask("sweep_run", name=name, run=run))

    def has_training(self, weights: str, params: str) -> bool:
        """Return whether the store has a finished training with these hashes of weights and parameters.

        Raises: TrackingError.
        """
        return bool(self._ask("has_training", tags={WEIGHTS_TAG: weights, PARAMS_TAG: params}))

    def logged_epochs(self, run: Run) -> set[int]:
        """Return the epochs of a run whose metrics the store has: those that a killed process held back are missing."""
        try:
            return set(self._ask("logged_epochs", run=run.run_id) or ())
        except TrackingError:
            return set()

    @contextmanager
    def child_run(self, stage: str, lineage: Mapping[str, str]) -> Iterator[Run]:
        """Open a run below the training run that a model card's `lineage` names; warn if there is none."""
        opened = self._ask_or_warn("child_run", stage=stage, lineage=dict(lineage))
        with _closing(self._run(opened)) as run:
            if opened and run.parent is None:
                log.warning(
                    "%s: no MLflow run has the weights %s..., so this run is logged without a parent; the "
                    "model was trained elsewhere or without tracking",
                    stage,
                    lineage["weights_sha256"][:12],
                )
            yield run

    @contextmanager
    def data_run(self, stage: str, data_hash: str) -> Iterator[Run]:
        """Open a run in the experiment of data; log nothing if it has one of the same data already."""
        with _closing(self._run(self._ask_or_warn("data_run", stage=stage, data_hash=data_hash))) as run:
            yield run

    def _run(self, opened: Any) -> Run:
        """Turn an answer, the ids of a run and its parent or nothing, into a run."""
        if self._channel is None or not opened:
            return NoRun()
        run_id, parent = opened
        return Run(self._channel, run_id, Spool(self._paths.tracking_spool, run_id), parent)

    def _ask(self, call: str, **arguments: Any) -> Any:
        return None if self._channel is None else self._channel.ask({"call": call, **arguments})

    def _ask_or_warn(self, call: str, **arguments: Any) -> Any:
        try:
            return self._ask(call, **arguments)
        except TrackingError as error:
            log.warning("going on without MLflow: %s", error)
            return None


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
