"""A tracker whose recorder runs in the process of the test, so that a test sees the store and can disturb it."""

import json
import os
from collections.abc import Callable
from typing import Any

from mlflow.entities import Run as Row

from reparam.paths import Paths
from reparam.track import WEIGHTS_TAG, Store, Tracker
from reparam.track.channel import Channel
from reparam.track.recorder import answer
from reparam.track.spool import Call
from reparam.track.store import open_store

# What the stages say of a small data set.
DATA: dict[str, Any] = {
    "name": "digits",
    "digest": "data-hash",
    "context": "train",
    "shape": [1, 8, 8],
    "counts": {"train": 5, "validation": 2, "test": 3},
}


class Patient(Channel):
    """A channel that waits for each call, so that a test knows which ones came before what it does next."""

    def send(self, deliver: Callable[[Call], None], call: Call) -> None:
        super().send(deliver, call)
        self.wait()


class InProcess(Tracker):
    """A tracker without a child process; calls and answers pass through JSON all the same."""

    def __init__(self, store: Store) -> None:
        def exchange(call: Call) -> Any:
            return json.loads(json.dumps(answer(store, json.loads(json.dumps(call)), os.environ)))

        super().__init__(Patient(exchange, lambda: None), store.paths)
        self.store = store
        self.client = store.client
        self.experiment = store.experiment

    @classmethod
    def open(cls, paths: Paths) -> "InProcess":
        return cls(open_store(paths))

    def rows(self, experiment: str | None = None) -> list[Row]:
        """Every run of the experiment, oldest first."""
        found = self.client.get_experiment_by_name(experiment or self.experiment)
        if found is None:
            return []
        return list(self.client.search_runs([found.experiment_id], order_by=["attributes.start_time ASC"]))

    def train(self, weights: str) -> str:
        """Log a finished training run of these weights; return its id."""
        with self.training_run("data-hash") as run:
            run.set_tags({WEIGHTS_TAG: weights})
        return run.run_id

    def artifacts(self, run: str, folder: str | None = None) -> list[str]:
        return [file.path for file in self.client.list_artifacts(run, folder)]
