"""A tracking store: its address, its creation, and the messages when it cannot be used."""

import logging
import os
import re
import shlex
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock

from reparam.errors import TrackingError
from reparam.files import scratch_directory, whole_file
from reparam.paths import Paths
from reparam.redact import redact, without_secrets

OFF = "off"

# Set before MLflow is imported, unless the user has: an unreachable server must fail within seconds, not minutes.
QUICK_TO_FAIL = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "5",
    "MLFLOW_DISABLE_TELEMETRY": "true",
}
# What urllib3 found in the end, after words about attempts: (Caused by NewConnectionError("HTTPConnection(...): ..."))
CAUSE = re.compile(r"""\(Caused by \w+\(["'].*?[>)]: (.*?)["']\)\)$""")
DAMAGED = re.compile(r"duplicate column name|table \S+ already exists|no such table|malformed|not a database")


class StoreError(TrackingError):
    """The error of a store, in one line."""


@dataclass(frozen=True)
class Store:
    """An open store."""

    client: Any
    uri: str
    experiment: str
    paths: Paths

    def read(self, ask: Callable[[Any], Any]) -> Any:
        """Ask the store something: `ask` gets its client. Raises: TrackingError."""
        with store_errors():
            return ask(self.client)

    @property
    def is_local(self) -> bool:
        """Whether this is the database that a repository has by default."""
        return self.uri == _local(self.paths)


def address(paths: Paths) -> str:
    """Return what MLFLOW_TRACKING_URI names, by default an SQLite file at the root of the real repository."""
    return os.environ.get("MLFLOW_TRACKING_URI", "").strip() or _local(paths)


def open_store(paths: Paths) -> Store:
    """Open the store at `address`, and create it where it is a file that does not exist.

    Raises: TrackingError, within seconds, when the store cannot be used.
    """
    uri = address(paths)
    for variable, value in QUICK_TO_FAIL.items():
        os.environ.setdefault(variable, value)
    try:
        import mlflow

        # MLflow narrates the set-up of its database.
        logging.getLogger("mlflow").setLevel(logging.WARNING)
        logging.getLogger("alembic").setLevel(logging.WARNING)
        with store_errors():
            _create_database(uri)
            client = mlflow.MlflowClient(uri)
            client.search_experiments(max_results=1)
    except (StoreError, ImportError, ValueError) as error:  # a driver that is not installed; a malformed address
        raise unusable(uri, error) from None
    return Store(client, uri, os.environ.get("MLFLOW_EXPERIMENT_NAME", "reparam"), paths)


def connect_to_read(paths: Paths) -> Store | None:
    """Open the store as `open_store` does, but never create one: return None if tracking is off or nothing was tracked
    yet.

    Raises: TrackingError, within seconds, when the store cannot be used.
    """
    uri = address(paths)
    file = re.fullmatch(r"(?:sqlite:///|file://|file:)([^?]*).*", uri)
    return None if uri == OFF or (file and not Path(file[1]).exists()) else open_store(paths)


def unusable(uri: str, error: Exception) -> TrackingError:
    """Return the error of a store that cannot be used, with the next steps."""
    file = _database(uri)
    if file is not None and DAMAGED.search(str(error)):
        return TrackingError(
            f"{file}: wanted a database of MLflow, found a damaged one: {error}\n"
            f"Move it away, and the next run makes a new one: `mv {shlex.quote(str(file))} "
            f"{shlex.quote(f'{file}.damaged')}`"
        )
    return TrackingError(
        f"MLflow at {without_secrets(uri)} cannot be used: {redact(str(error))}\n"
        "Start the server, unset MLFLOW_TRACKING_URI to use a local file, or set "
        f"MLFLOW_TRACKING_URI={OFF} to run without tracking"
    )


@contextmanager
def store_errors() -> Iterator[None]:
    """Turn what a store can raise into a StoreError of one line."""
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError  # which MLflow lets through where a database is damaged

    try:
        yield
    except (MlflowException, SQLAlchemyError, OSError) as error:  # a refused or broken connection is an OSError
        lines = str(error).strip().splitlines() or [type(error).__name__]
        # SQLAlchemy puts remarks before the line that says what is wrong.
        line = next((line for line in lines if "Error) " in line), lines[0])
        cause = CAUSE.search(line)
        raise StoreError(redact(cause[1] if cause else line)) from None


def _create_database(uri: str) -> None:
    """Create the tables of an SQLite file under another name: a kill leaves a whole database or none."""
    import mlflow

    file = _database(uri)
    if file is None:
        return
    if file.exists() and not file.is_file():  # a device would be replaced, for its size is 0; MLflow tries a folder
        raise StoreError(f"{file}: wanted a file, found a folder, device, pipe or socket")  # for 100 s
    if _is_there(file):
        return
    file.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{file}.lock"), scratch_directory(file) as scratch:
        if not _is_there(file):  # another process may have been quicker
            with _without_syncing():
                mlflow.MlflowClient(f"sqlite:///{scratch / file.name}").search_experiments(max_results=1)
            with whole_file(file) as partial:
                (scratch / file.name).replace(partial)


@contextmanager
def _without_syncing() -> Iterator[None]:
    """Let SQLite not wait for the disk: making the tables takes a thousand such waits, 2 s, and 5 s on a busy disk."""
    from sqlalchemy import event
    from sqlalchemy.engine import Engine

    def relax(connection: Any, _: Any) -> None:
        connection.execute("PRAGMA synchronous = OFF")

    event.listen(Engine, "connect", relax)
    try:
        yield
    finally:
        event.remove(Engine, "connect", relax)


def _is_there(file: Path) -> bool:
    return file.exists() and file.stat().st_size > 0


def _database(uri: str) -> Path | None:
    found = re.fullmatch(r"sqlite:///([^?]+)(\?.*)?", uri)
    return None if found is None or found[1] == ":memory:" else Path(found[1])


def _local(paths: Paths) -> str:
    return f"sqlite:///{paths.tracking_database}"
