import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from in_process import InProcess

from reparam.errors import TrackingError
from reparam.paths import Paths
from reparam.track import store as store_module

SOURCE = Path(__file__).parents[2] / "src"

# ---- where it is kept


def test_everything_is_kept_at_the_root_of_the_real_repository(tracker: InProcess, paths: Paths, store: Path) -> None:
    (paths.root / "card.json").write_text("{}")
    with tracker.training_run("data-hash") as run:
        run.log_files([paths.root / "card.json"])
    assert tracker.store.uri == f"sqlite:///{store}/mlflow.db"
    assert (store / f"mlartifacts/{run.run_id}/artifacts/card.json").read_text() == "{}"
    assert {path.name for path in paths.root.iterdir()} == {"params.yaml", "card.json"}


def test_a_leftover_mlruns_folder_changes_nothing(tracker: InProcess, store: Path) -> None:
    tracker.train("weights")
    assert (store / "mlruns/0/meta.yaml").read_text() == "left over"
    assert [path.relative_to(store).as_posix() for path in (store / "mlruns").rglob("*")] == [
        "mlruns/0",
        "mlruns/0/meta.yaml",
    ]
    assert len(tracker.rows()) == 1


def test_another_store_can_be_named(
    paths: Paths, store: Path, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    # The shared database under another name, because a fresh one takes a second.
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f" sqlite:///{store}/mlflow.db ")
    named = InProcess.open(Paths(paths.root, elsewhere))
    run = named.train("weights")
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    assert [row.info.run_id for row in InProcess.open(paths).rows()] == [run]
    assert not (elsewhere / "mlflow.db").exists()


# ---- without a store


def test_off_logs_nothing_and_loads_no_mlflow(tmp_path: Path) -> None:
    script = """
import sys
from pathlib import Path
from reparam import track
from reparam.paths import Paths
from reparam.track import store as store_module
tracker = track.connect(Paths(Path.cwd(), Path.cwd()))
child = tracker.child_run("evaluate", {"weights_sha256": "w"})
for opened in (tracker.training_run("h"), child, tracker.data_run("download", "h")):
    with opened as run:
        run.log_params({"a": 1})
        run.set_tags({"b": "c"})
        run.log_metrics({"loss": 1.0}, 1)
        run.log_and_share({"elbo": 1.0}, "evaluation")
        run.log_files([Path("nowhere")])
        run.log_model(Path("nowhere"), "digits")
print("mlflow" in sys.modules, list(Path.cwd().iterdir()))
"""
    environment = {**os.environ, "PYTHONPATH": str(SOURCE), "MLFLOW_TRACKING_URI": "off"}
    result = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert (result.returncode, result.stdout, result.stderr) == (0, "False []\n", "")


def test_a_server_that_is_not_there_is_refused_with_the_way_out(paths: Paths, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        uri = f"http://127.0.0.1:{taken.getsockname()[1]}"  # bound, but nobody listens: refused at once
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
        with pytest.raises(TrackingError) as caught:
            InProcess.open(paths)
    first, second = str(caught.value).splitlines()
    assert (
        first == f"MLflow at {uri} cannot be used: Failed to establish a new connection: [Errno 111] Connection refused"
    )
    assert second == (
        "Start the server, unset MLFLOW_TRACKING_URI to use a local file, or set MLFLOW_TRACKING_URI=off to run "
        "without tracking"
    )
    # Two attempts of 5 seconds, where MLflow would make eight of two minutes.
    from mlflow.environment_variables import MLFLOW_HTTP_REQUEST_MAX_RETRIES, MLFLOW_HTTP_REQUEST_TIMEOUT

    assert (MLFLOW_HTTP_REQUEST_MAX_RETRIES.get(), MLFLOW_HTTP_REQUEST_TIMEOUT.get()) == (1, 5)


def test_a_patience_that_the_user_set_is_kept(paths: Paths, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "77")
    InProcess.open(paths)
    assert os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] == "77"


@pytest.mark.parametrize(
    "address",
    [
        "http://[::1",
        "http://127.0.0.1:port",
        "http://",
        "gopher://127.0.0.1",
        "postgresql:/half",
        "sqlite:////dev/null/mlflow.db",
        "nonsense\x00",
    ],
)
def test_a_malformed_address_is_refused_with_the_way_out(
    address: str, paths: Paths, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Not through the environment, which takes no zero byte.
    monkeypatch.setattr(store_module, "address", lambda _: address)
    with pytest.raises(TrackingError) as caught:
        InProcess.open(paths)
    first, second = str(caught.value).splitlines()
    assert first.startswith(f"MLflow at {address} cannot be used: ")
    assert second.startswith("Start the server, unset MLFLOW_TRACKING_URI")


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])
def test_a_database_that_is_no_file_is_refused_at_once_and_stays_what_it_is(
    make: Callable[[Path], None], paths: Paths, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pipe = tmp_path / "mlflow.db"  # in place of a device, which a mistake would destroy
    make(pipe)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{pipe}")
    with pytest.raises(TrackingError) as caught:
        InProcess.open(paths)
    first, second = str(caught.value).splitlines()
    assert first == (
        f"MLflow at sqlite:///{pipe} cannot be used: {pipe}: wanted a file, found a folder, device, pipe or socket"
    )
    assert second.startswith("Start the server, unset MLFLOW_TRACKING_URI")
    assert not pipe.is_file()
    assert [path.name for path in tmp_path.glob("mlflow.db*")] == ["mlflow.db"]


def test_a_deleted_experiment_is_refused_with_the_way_out(tracker: InProcess) -> None:
    tracker.train("weights")
    tracker.client.delete_experiment(tracker.client.get_experiment_by_name(tracker.experiment).experiment_id)
    with pytest.raises(TrackingError) as caught:
        tracker.train("weights")
    assert str(caught.value) == (
        f"MLflow experiment '{tracker.experiment}' at {tracker.store.uri} is deleted; restore it with `mlflow "
        "experiments restore`, or choose another name with MLFLOW_EXPERIMENT_NAME"
    )
