"""How long questions to a tracking store take that holds 500 trained models, each with its evaluation and export.

    python benchmarks/store.py [--models 500] [--note TEXT]

The stores are the default one, SQLite in a folder, and `mlflow server` on PostgreSQL, which this program starts, as
tests do; it says what is missing for that: `psycopg`, or PostgreSQL itself.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from types import ModuleType

from mlflow import MlflowClient
from mlflow.entities import Metric, Param, RunTag
from results import table, write_section

from reparam.config import load_config
from reparam.config.load import flatten
from reparam.paths import Paths
from reparam.track.runs import DATA_TAG, PARAMS_TAG, STAGE_TAG, WEIGHTS_TAG, Runs
from reparam.track.store import open_store

ROOT = Path(__file__).parent.parent
EPOCHS = 20
CURVES = [f"{split}/{term}" for split in ("train", "validation") for term in ("loss", "reconstruction", "kl", "elbo")]
RESULTS = [f"evaluation/{name}{error}" for name in ("elbo", "nll", "kl", "mse", "bits") for error in ("", "_se")]
REPEATS = 5
SQLITE, SERVER = "SQLite", "server, PostgreSQL"


def fill(client: MlflowClient, models: int) -> list[str]:
    """Log models with random numbers; return the ids of their runs."""
    params = {name: str(value) for name, value in flatten(load_config(ROOT / "params.yaml")).items()}
    experiment = client.create_experiment("reparam", artifact_location=(Path.cwd() / "mlartifacts").as_uri())
    ids = []
    for number in range(models):
        weights = sha256(str(number).encode()).hexdigest()
        tags = {WEIGHTS_TAG: weights, PARAMS_TAG: weights[::-1], DATA_TAG: "data"}
        run = client.create_run(experiment, tags={STAGE_TAG: "train", **tags}, run_name=f"model-{number}").info.run_id
        curves = [Metric(name, number % 7 + 1 / epoch, epoch, epoch) for name in CURVES for epoch in range(1, EPOCHS)]
        results = [Metric(name, number / 100, 0, 0) for name in RESULTS]
        client.log_batch(run, curves + results, [Param(*item) for item in params.items()], [RunTag("version.x", "1")])
        client.set_terminated(run)
        for stage in ("evaluate", "export"):
            below = {STAGE_TAG: stage, WEIGHTS_TAG: weights, "mlflow.parentRunId": run}
            child = client.create_run(experiment, tags=below, run_name=stage).info.run_id
            client.log_batch(child, results)
            client.set_terminated(child)
        ids.append(run)
    return ids


def seconds(ask: Callable[[], object]) -> float:
    """Return the median time of a question."""
    found = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        ask()
        found.append(time.perf_counter() - start)
    return statistics.median(found)


def compare(*ids: str) -> None:
    """Compare runs as a person does, in a process of its own."""
    command = [sys.executable, "-m", "reparam", "compare", *ids]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    subprocess.run(command, env=environment, check=True, capture_output=True)


@contextmanager
def server(servers: ModuleType) -> Iterator[str]:
    """Let all use a server on PostgreSQL of its own; yield the address of the database. Raises: MissingError."""
    with servers.postgres() as database, servers.mlflow_server(Path.cwd(), database) as address:
        os.environ["MLFLOW_TRACKING_URI"] = address
        try:
            yield database
        finally:
            del os.environ["MLFLOW_TRACKING_URI"]


def measure(models: int, database: str | None = None) -> dict[str, float]:
    """Return the seconds that each question takes; the store is filled through its database, if that is given."""
    paths = Paths.here()
    store = open_store(paths)
    ids = fill(MlflowClient(database) if database else store.client, models)
    runs, client = Runs(store, {}), store.client
    middle = sha256(str(models // 2).encode()).hexdigest()
    lineage = {"weights_sha256": middle, "params_sha256": middle[::-1]}
    (experiment,) = client.search_experiments(filter_string="name = 'reparam'")

    def table_of_runs() -> object:
        found = client.search_runs([experiment.experiment_id], order_by=["metrics.`evaluation/elbo` DESC"])
        assert len(found) >= min(1000, 3 * models)
        return found

    return {
        "`evaluate` finds the run of its weights and opens its own": seconds(lambda: runs.child("evaluate", lineage)),
        "`reparam track` asks whether there is a run of these weights": seconds(
            lambda: runs.has_training({WEIGHTS_TAG: middle})
        ),
        "`reparam compare A B`, two runs by the beginnings of their ids": seconds(
            lambda: compare(ids[1][:12], ids[models // 2][:12])
        ),
        "`reparam compare A B`, two runs by their names": seconds(lambda: compare("model-1", f"model-{models // 2}")),
        "the table of MLflow: up to 1,000 runs by their ELBO, with all they have": seconds(table_of_runs),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=int, default=500)
    parser.add_argument("--note", default="", help="what to say of the machine, as that other programs ran beside it")
    arguments = parser.parse_args()
    models, note = arguments.models, arguments.note
    os.environ.pop("MLFLOW_TRACKING_URI", None)
    sys.path.append(str(ROOT / "tests"))
    import servers

    found = {}
    for count in (10, models):
        with in_folder():
            found[SQLITE, count] = measure(count)
    try:
        for count in (10, models):
            with in_folder(), server(servers) as database:
                found[SERVER, count] = measure(count, database)
    except servers.MissingError as error:
        print(f"no server is measured: {error}", file=sys.stderr)
    rows = [[question, *(f"{column[question]:.2f}" for column in found.values())] for question in found[SQLITE, models]]
    text = table(["seconds of", *(f"{store}, {count} models" for store, count in found)], rows)
    notes = [note, f"Medians of {REPEATS} questions. The server is on the same machine, and has one worker."]
    print(text)
    write_section("The tracking store", "\n\n".join([" ".join(filter(None, notes)), text]))


@contextmanager
def in_folder() -> Iterator[None]:
    """Work in an empty folder."""
    with tempfile.TemporaryDirectory() as root:
        os.chdir(root)
        try:
            yield
        finally:
            os.chdir(ROOT)


if __name__ == "__main__":
    main()
