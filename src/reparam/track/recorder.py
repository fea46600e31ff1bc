"""The process that speaks to MLflow for a stage: it answers a call a line, until its input ends.

It loads MLflow while the stage loads torch. When the stage is killed, what has arrived is still delivered.
"""

import json
import logging
import os
import sys
from contextlib import redirect_stdout, suppress
from pathlib import Path
from typing import Any

from reparam.errors import TrackingError
from reparam.paths import Paths
from reparam.redact import redacted_output
from reparam.track.delivery import Delivery
from reparam.track.runs import Runs
from reparam.track.spool import Call
from reparam.track.store import Store, open_store


def answer(store: Store, call: Call) -> Any:
    """Do what a call asks for. Raises: TrackingError."""
    runs = Runs(store)
    match call:
        case {"call": "ready"}:
            return None
        case {"call": "training_run", "name": name, "data_hash": data_hash, "resume": resume}:
            return runs.training(data_hash, resume, name)
        case {"call": "sweep_run", "name": name, "run": run}:
            return runs.sweep(name, run)
        case {"call": "has_training", "tags": tags}:
            return runs.has_training(tags)
        case {"call": "child_run", "stage": stage, "lineage": lineage}:
            return runs.child(stage, lineage)
        case {"call": "data_run", "stage": stage, "data_hash": data_hash}:
            return runs.data(stage, data_hash)
        case {"call": "logged_epochs", "run": run}:
            return runs.epochs(run)
    return Delivery(store.client)(call)


def main() -> None:
    """Open the store, and answer each line of the input by a line of the output."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what libraries print is no answer
    root, shared = map(Path, sys.argv[1:])
    store, refusal = None, ""
    try:
        store = open_store(Paths(root, shared))
    except TrackingError as error:
        refusal = str(error)
    for line in sys.stdin:
        try:
            reply = {"answer": answer(store, json.loads(line))} if store else {"error": refusal}
        except TrackingError as error:
            reply = {"error": str(error)}
        print(json.dumps(reply), file=answers, flush=True)


if __name__ == "__main__":
    with redacted_output(), redirect_stdout(sys.stderr):
        logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
        with suppress(BrokenPipeError):  # the stage was killed and takes no answer
            main()
    os._exit(0)  # nothing is open, and to take the libraries down in order takes a while
