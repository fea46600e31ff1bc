"""The process that speaks to MLflow for the stages of a working copy: it answers each call, a line, by a line.

It loads MLflow while the first stage loads torch. When a stage is killed, what has arrived is still delivered.
"""

import gc
import json
import logging
import os
import socket
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from select import select
from threading import Thread
from typing import Any

from reparam.errors import TrackingError
from reparam.paths import Paths
from reparam.redact import redacted_output
from reparam.track.delivery import Delivery
from reparam.track.meeting import Meeting, idle_seconds
from reparam.track.runs import Runs
from reparam.track.spool import Call
from reparam.track.store import Store, address, open_store

log = logging.getLogger(__name__)


def answer(store: Store, call: Call, environment: Mapping[str, str]) -> Any:
    """Do what a call asks for, in the environment of its stage. Raises: TrackingError."""
    runs = Runs(store, environment)
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
    """Take connections until none has been open for a while, at least as long as the environment says."""
    root, shared, place, listening = sys.argv[1:]
    meeting, idle = Meeting(Path(place)), idle_seconds()
    _load_mlflow(address(Paths(Path(root), Path(shared))))
    stages: list[socket.socket] = []
    was_open = True
    with socket.socket(fileno=int(listening)) as door:
        while True:
            if select([door], [], [], idle)[0]:
                stages.append(door.accept()[0])
                was_open = True
                Thread(target=_serve, args=(stages[-1], Paths(Path(root), Path(shared))), daemon=True).start()
                continue
            stages = [stage for stage in stages if stage.fileno() >= 0]
            if stages or was_open:  # the last one may have ended a moment ago
                was_open = bool(stages)
                continue
            with meeting.alone():
                if not select([door], [], [], 0)[0]:
                    meeting.leave()
                    return


def _load_mlflow(uri: str) -> None:
    if uri.startswith("sqlite:"):
        # The file is opened for each question, so that nothing is written to one that was moved away.
        os.environ.setdefault("MLFLOW_SQLALCHEMYSTORE_POOLCLASS", "NullPool")
    gc.disable()  # imports leave no garbage, and to search their objects takes half a second
    with suppress(ImportError):  # which is said when the store is opened
        from mlflow.store.tracking import sqlalchemy_store  # noqa: F401
    gc.freeze()
    gc.enable()


def _serve(stage: socket.socket, paths: Paths) -> None:
    """Answer each line of a stage with a line; the first line has its own part of the environment."""
    lines, answers = stage.makefile("r", encoding="utf-8"), stage.makefile("w", encoding="utf-8")
    with stage, lines, answers, suppress(OSError):  # the stage was killed and takes no answer
        environment, store = json.loads(lines.readline() or "{}"), None
        for line in lines:
            try:
                store = store or open_store(paths)
                reply = {"answer": answer(store, json.loads(line), environment)}
            except TrackingError as error:
                reply = {"error": str(error)}
            except Exception as error:  # a bug, which the stage reports as well
                log.exception("a call failed")
                reply = {"error": f"{type(error).__name__}: {error}"}
            print(json.dumps(reply), file=answers, flush=True)


if __name__ == "__main__":
    with redacted_output():
        logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
        main()
    os._exit(0)  # nothing is open, and to take the libraries down in order takes a while
