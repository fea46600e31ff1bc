"""The first moments of a database: many processes want it at once, or the first one is killed."""

import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import mlflow
import pytest
from sqlalchemy import event
from sqlalchemy.engine import Connection, Engine

from reparam.errors import TrackingError
from reparam.paths import Paths
from reparam.track import DATA_TAG
from reparam.track.store import StoreError, open_store, unusable

SOURCE = Path(__file__).parents[2] / "src"
FIRST_RUN = """
import sys
from pathlib import Path
from reparam import track
from reparam.paths import Paths
if __name__ == "__main__":
    print("ready", flush=True)
    sys.stdin.readline()
    with track.connect(Paths(Path.cwd(), Path.cwd())).training_run(sys.argv[1]) as run:
        run.log_metrics({"loss": 1.0}, 1)
    print("done", flush=True)
"""


def start(root: Path, name: str, **environment: str) -> "subprocess.Popen[str]":
    """Start a first run that waits for a line of input, in a session of its own."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("DVC_", "MLFLOW_"))}
    return subprocess.Popen(
        [sys.executable, "-c", FIRST_RUN, name],
        cwd=root,
        env=inherited | {"PYTHONPATH": str(SOURCE)} | environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def runs(database: Path) -> set[tuple[str, str]]:
    """The data and the status of every run in a database."""
    client = mlflow.MlflowClient(f"sqlite:///{database}")
    found = client.search_runs([client.get_experiment_by_name("reparam").experiment_id])
    return {(row.data.tags[DATA_TAG], row.info.status) for row in found}


@pytest.mark.parametrize("copies", [1, pytest.param(8, marks=pytest.mark.slow)])
def test_processes_may_open_a_fresh_database_at_once(copies: int, tmp_path: Path) -> None:
    """Two of one working copy, or eight of eight working copies that share a database."""
    names = [f"data-{number}" for number in range(max(copies, 2))]
    roots = [tmp_path / f"copy-{number % copies}" for number in range(len(names))]
    for root in roots:
        root.mkdir(exist_ok=True)
    shared = tmp_path / "shared/mlflow.db"
    environment = {"MLFLOW_TRACKING_URI": f"sqlite:///{shared}"} if copies > 1 else {}
    workers = [start(root, name, **environment) for root, name in zip(roots, names, strict=True)]
    for worker in workers:
        assert worker.stdout.readline() == "ready\n"
    for worker in workers:
        worker.stdin.write("go\n")
        worker.stdin.flush()
    for output, errors, code in [(*worker.communicate(timeout=120), worker.returncode) for worker in workers]:
        assert (code, output) == (0, "done\n"), errors
    database = shared if copies > 1 else roots[0] / "mlflow.db"
    assert runs(database) == {(name, "FINISHED") for name in names}
    assert {path.name for path in database.parent.glob("*mlflow.db*")} == {"mlflow.db", "mlflow.db.lock"}


@pytest.mark.parametrize("kills", [1, pytest.param(50, marks=pytest.mark.slow)])
def test_a_kill_while_the_database_is_made_leaves_one_that_works_or_none(kills: int, tmp_path: Path) -> None:
    rng = random.Random(kills)
    for number in range(kills):
        root = tmp_path / str(number)
        root.mkdir()
        first = start(root, "first")
        first.stdin.write("go\n")
        first.stdin.flush()
        while not list(root.glob("*mlflow.db*")) and first.poll() is None:
            time.sleep(0.005)
        time.sleep(rng.uniform(0, 1.5))  # about what it takes from the first sign of a database to a run
        os.killpg(first.pid, signal.SIGKILL)
        first.communicate()
        second = start(root, "second")
        output, errors = second.communicate("go\n", timeout=120)
        assert (second.returncode, output) == (0, "ready\ndone\n"), f"kill {number}: {errors}"
        assert ("second", "FINISHED") in runs(root / "mlflow.db")
        assert {path.name for path in root.glob("*mlflow.db*")} == {"mlflow.db", "mlflow.db.lock"}
        shutil.rmtree(root)


# ---- a damaged one


def half_made(database: Path) -> None:
    """Leave a database as a kill left it that fell between two changes of its tables."""
    with sqlite3.connect(database) as connection:
        connection.execute("DROP TABLE webhooks")
        connection.execute("DELETE FROM alembic_version")
    connection.close()


def overwritten(database: Path) -> None:
    content = database.read_bytes()
    database.write_bytes(content[:4096] + b"\xff" * (len(content) - 4096))


def none_at_all(database: Path) -> None:
    database.write_text("no database" * 100)


@pytest.mark.parametrize(
    ("damage", "reason"),
    [(half_made, "duplicate column name: step"), (overwritten, "malformed"), (none_at_all, "file is not a database")],
    ids=["half-made", "overwritten", "none"],
)
def test_a_damaged_database_is_named_with_the_command_that_helps(
    damage: Callable[[Path], None], reason: str, store: Path, project: Paths, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    file = project.tracking_database
    shutil.copyfile(store / "mlflow.db", file)
    damage(file)
    with pytest.raises(TrackingError) as caught:
        open_store(project)
    first, second = str(caught.value).splitlines()
    assert first.startswith(f"{file}: wanted a database of MLflow, found a damaged one: ")
    assert first.endswith(reason)
    assert second == f"Move it away, and the next run makes a new one: `mv {file} {file}.damaged`"


@pytest.mark.parametrize(
    "error", ["table secrets already exists", "table _alembic_tmp_jobs already exists", "duplicate column name: step"]
)
def test_what_kills_left_of_databases_that_older_versions_made_is_recognized(error: str, project: Paths) -> None:
    file = project.tracking_database
    refusal = unusable(f"sqlite:///{file}", StoreError(f"(sqlite3.OperationalError) {error}"))
    assert f"`mv {file} {file}.damaged`" in str(refusal)


def test_only_the_making_of_a_database_does_not_wait_for_the_disk(
    project: Paths, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    found: set[tuple[str, int]] = set()

    def look(connection: Connection) -> None:
        folder = Path(connection.engine.url.database).parent.name
        found.add((folder, connection.exec_driver_sql("PRAGMA synchronous").scalar()))

    event.listen(Engine, "commit", look)
    try:
        open_store(project).client.create_experiment("one")
    finally:
        event.remove(Engine, "commit", look)
    assert found == {(".partial-scratch-mlflow.db", 0), (project.root.name, 2)}  # off, full


def test_an_empty_file_counts_as_no_database(project: Paths, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    project.tracking_database.touch()
    assert open_store(project).client.search_experiments()[0].name == "Default"
