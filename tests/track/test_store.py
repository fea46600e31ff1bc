import json
import logging
import math
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlflow
import onnx
import pytest
from mlflow.entities import Run as Row
from mlflow.exceptions import MlflowException

from reparam.errors import TrackingError
from reparam.paths import Paths
from reparam.track import run as run_module
from reparam.track import store as tracking
from reparam.track.run import Run
from reparam.track.spool import Spool
from reparam.track.store import DATA_TAG, EXPERIMENT_TAG, STAGE_TAG, WEIGHTS_TAG, Tracker

SOURCE = Path(__file__).parents[2] / "src"
CARD = {
    "source": "digits",
    "dtype": "uint8",
    "shape": [1, 8, 8],
    "splits": {"train": {"count": 5}, "validation": {"count": 2}, "test": {"count": 3}},
}
LEFTOVER = "mlruns/0/meta.yaml"


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository with a fresh database, which takes a second, beside a leftover `mlruns` folder."""
    root = tmp_path_factory.mktemp("repository")
    (root / LEFTOVER).parent.mkdir(parents=True)
    (root / LEFTOVER).write_text("left over")
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith(("DVC_", "MLFLOW_"))]:
            patch.delenv(name)
        patch.chdir(root)
        tracking.connect(Paths(root, root))
    return root


@pytest.fixture
def paths(project: Paths, store: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Paths:
    """A scratch copy whose tracking goes to `store`, to an experiment of this test alone."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", request.node.name)
    return Paths(project.root, store)


@pytest.fixture
def tracker(paths: Paths) -> Tracker:
    """The open store."""
    return tracking.connect(paths)


def rows(tracker: Tracker, experiment: str | None = None) -> list[Row]:
    """Every run of the experiment, oldest first."""
    found = tracker.client.get_experiment_by_name(experiment or tracker.experiment)
    if found is None:
        return []
    return list(tracker.client.search_runs([found.experiment_id], order_by=["attributes.start_time ASC"]))


def train(tracker: Tracker, weights: str) -> str:
    """Log a finished training run of these weights; return its id."""
    with tracker.training_run("data-hash") as run:
        run.set_tags({WEIGHTS_TAG: weights})
    return run.run_id


def artifacts(tracker: Tracker, run: str, folder: str | None = None) -> list[str]:
    return [file.path for file in tracker.client.list_artifacts(run, folder)]


# ---- the training run


def test_a_training_run_is_one_row_with_all_that_was_logged(tracker: Tracker, paths: Paths) -> None:
    (paths.root / "history.csv").write_text("epoch,loss\n")
    with tracker.training_run("data-hash") as run:
        run.log_params({"model.hidden": (16, 8), "train.learning_rate": 1e-5})
        run.log_dataset(CARD, "data-hash", "train")
        for epoch in (1, 2, 3):
            run.log_metrics({"train_loss": 10.0 / epoch, "validation_loss": 20.0 / epoch}, epoch)
        run.set_tags({WEIGHTS_TAG: "weights-hash"})
        run.log_files([paths.root / "history.csv"], "training")
    (row,) = rows(tracker)
    assert row.info.run_id == run.run_id
    assert row.info.status == "FINISHED"
    assert row.data.params == {"model.hidden": "(16, 8)", "train.learning_rate": "1e-05"}
    assert row.data.metrics == {"train_loss": pytest.approx(10 / 3), "validation_loss": pytest.approx(20 / 3)}
    tags = {name: value for name, value in row.data.tags.items() if name.startswith(("reparam.", "dvc."))}
    assert tags == {STAGE_TAG: "train", DATA_TAG: "data-hash", WEIGHTS_TAG: "weights-hash"}
    assert "mlflow.parentRunId" not in row.data.tags
    history = tracker.client.get_metric_history(run.run_id, "train_loss")
    assert [(metric.step, metric.value) for metric in history] == [(1, 10.0), (2, 5.0), (3, pytest.approx(10 / 3))]
    assert artifacts(tracker, run.run_id, "training") == ["training/history.csv"]


def test_the_data_set_is_logged_with_the_hash_in_dvc_lock_as_digest(tracker: Tracker) -> None:
    with tracker.training_run("data-hash") as run:
        run.log_dataset(CARD, "d41d8cd98f00b204e9800998ecf8427e.dir", "train")
    (given,) = tracker.client.get_run(run.run_id).inputs.dataset_inputs
    assert (given.dataset.name, given.dataset.digest) == ("digits", "d41d8cd98f00b204e9800998ecf8427e.dir")
    assert {tag.key: tag.value for tag in given.tags} == {"mlflow.data.context": "train"}
    assert json.loads(given.dataset.profile) == {"train": 5, "validation": 2, "test": 3}
    tensors = json.loads(json.loads(given.dataset.schema)["mlflow_tensorspec"]["features"])
    assert tensors[0]["tensor-spec"] == {"dtype": "uint8", "shape": [-1, 1, 8, 8]}


def test_the_experiment_of_dvc_names_the_run_and_the_commit_is_told(
    paths: Paths, monkeypatch: pytest.MonkeyPatch
) -> None:
    def git(*arguments: str) -> str:
        identity = ["-c", "user.name=n", "-c", "user.email=e@example.org", "-c", "commit.gpgsign=false"]
        command = ["git", "-C", str(paths.root), *identity, *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    monkeypatch.setenv("DVC_EXP_NAME", "bonny-bream")
    monkeypatch.setenv("DVC_EXP_BASELINE_REV", "abc123")
    (paths.root / "src").mkdir()
    (paths.root / "src/a.py").write_text("A = 1\n")
    git("init", "-q")
    git("add", "src")
    git("commit", "-q", "-m", "first")
    tracker = tracking.connect(paths)
    for content in ("A = 1\n", "A = 2\n"):
        (paths.root / "src/a.py").write_text(content)
        (paths.root / "notes.txt").write_text("no code path")
        train(tracker, "weights")
    clean, dirty = (row.data.tags for row in rows(tracker))
    assert clean[EXPERIMENT_TAG] == "bonny-bream"
    assert clean["mlflow.runName"] == "bonny-bream"
    assert clean["dvc.baseline"] == "abc123"
    assert clean["mlflow.source.git.commit"] == git("rev-parse", "HEAD")
    assert (clean["mlflow.source.git.dirty"], dirty["mlflow.source.git.dirty"]) == ("false", "true")


def test_the_experiment_is_called_reparam_unless_the_environment_says_otherwise(
    paths: Paths, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_EXPERIMENT_NAME")
    assert tracking.connect(paths).experiment == "reparam"
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "mine")
    assert tracking.connect(paths).experiment == "mine"


@pytest.mark.parametrize(
    ("error", "status"), [(ZeroDivisionError, "FAILED"), (KeyboardInterrupt, "KILLED"), (SystemExit, "KILLED")]
)
def test_a_run_tells_how_its_stage_ended(error: type[BaseException], status: str, tracker: Tracker) -> None:
    def fail() -> None:
        with tracker.training_run("data-hash") as run:
            run.log_metrics({"loss": 1.0}, 1)
            raise error

    with pytest.raises(error):
        fail()
    (row,) = rows(tracker)
    assert (row.info.status, row.data.metrics) == (status, {"loss": 1.0})
    assert row.info.end_time >= row.info.start_time


# ---- a training run that goes on


@pytest.fixture
def spool_folder(paths: Paths) -> Iterator[Path]:
    """The folder of spools, which the tests of this module share, left as it was."""
    there = paths.tracking_spool.exists()
    yield paths.tracking_spool
    if not there:
        shutil.rmtree(paths.tracking_spool)


def interrupted(tracker: Tracker, epochs: int, error: type[BaseException] = SystemExit) -> str:
    """Log a training run that ends early; return its id."""

    def fail() -> None:
        nonlocal run_id
        with tracker.training_run("data-hash") as run:
            run_id = run.run_id
            run.log_params({"train.epochs": 4})
            run.log_dataset(CARD, "data-hash", "train")
            for epoch in range(1, epochs + 1):
                run.log_metrics({"epoch": float(epoch), "train_loss": 10.0 / epoch}, epoch)
            raise error

    run_id = ""
    with pytest.raises(error):
        fail()
    return run_id


@pytest.mark.parametrize(("error", "status"), [(SystemExit, "KILLED"), (ZeroDivisionError, "FAILED")])
def test_an_interrupted_training_goes_on_in_the_same_row(
    error: type[BaseException], status: str, tracker: Tracker
) -> None:
    run_id = interrupted(tracker, 2, error)
    assert [row.info.status for row in rows(tracker)] == [status]
    with tracker.training_run("data-hash", run_id) as run:
        assert run.run_id == run_id
        assert [row.info.status for row in rows(tracker)] == ["RUNNING"]
        run.log_params({"train.epochs": 4})  # the same again is no mistake
        run.log_dataset(CARD, "data-hash", "train")
        for epoch in (3, 4):
            run.log_metrics({"epoch": float(epoch), "train_loss": 10.0 / epoch}, epoch)
    (row,) = rows(tracker)
    assert (row.info.run_id, row.info.status) == (run_id, "FINISHED")
    assert row.data.tags[DATA_TAG] == "data-hash"
    assert len(row.inputs.dataset_inputs) == 1
    history = tracker.client.get_metric_history(run_id, "train_loss")
    assert [(metric.step, metric.value) for metric in history] == [(1, 10.0), (2, 5.0), (3, 10 / 3), (4, 2.5)]


def test_a_training_that_was_killed_at_once_goes_on_too(tracker: Tracker, paths: Paths) -> None:
    killed = tracker._open(tracker.experiment, {STAGE_TAG: "train"}, None)  # and never closed
    with tracker.training_run("data-hash", killed.run_id) as run:
        pass
    assert [(row.info.run_id, row.info.status) for row in rows(tracker)] == [(run.run_id, "FINISHED")]


def test_the_store_tells_which_epochs_it_has(tracker: Tracker, paths: Paths, monkeypatch: pytest.MonkeyPatch) -> None:
    run_id = interrupted(tracker, 3)
    with tracker.training_run("data-hash", run_id) as run:
        assert tracker.logged_epochs(run) == {1, 2, 3}

        def fail(*_: object) -> None:
            raise MlflowException("away")

        with monkeypatch.context() as patch:
            patch.setattr(tracker.client, "get_metric_history", fail)
            assert tracker.logged_epochs(run) == set()  # then they are logged again
    with tracker.training_run("data-hash") as fresh:
        assert tracker.logged_epochs(fresh) == set()


def test_a_training_that_finished_or_is_gone_does_not_go_on(tracker: Tracker) -> None:
    finished = train(tracker, "weights")
    deleted = interrupted(tracker, 1)
    tracker.client.delete_run(deleted)
    for resume in (finished, deleted, "0" * 32, ""):
        with tracker.training_run("data-hash", resume) as run:
            assert run.run_id not in (finished, deleted, resume)
    assert tracker.client.get_run(finished).data.tags[WEIGHTS_TAG] == "weights"
    assert tracker.client.get_run(deleted).info.status == "KILLED"


def test_a_training_goes_on_in_its_own_experiment_alone(
    tracker: Tracker, paths: Paths, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_id = interrupted(tracker, 1)
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", f"{tracker.experiment}-other")
    other = tracking.connect(paths)
    with other.training_run("data-hash", run_id) as run:
        pass
    assert [row.info.run_id for row in rows(other)] == [run.run_id]
    assert [(row.info.run_id, row.info.status) for row in rows(tracker)] == [(run_id, "KILLED")]


def test_a_run_whose_spool_is_refused_does_not_go_on(
    tracker: Tracker, paths: Paths, spool_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_id = interrupted(tracker, 1)
    spool = Spool(spool_folder, run_id)
    spool.add({"call": "end", "run": run_id, "status": "KILLED", "time": 1})

    def fail(*_: object) -> None:
        raise MlflowException("refused")

    with monkeypatch.context() as patch:
        patch.setattr(tracker.client, "set_terminated", fail)
        assert tracker._reopen(run_id) is None
    assert spool.calls.exists()  # for `reparam replay`
    assert tracking.replay(paths) == 1


def test_what_was_spooled_before_is_delivered_before_training_goes_on(
    tracker: Tracker, paths: Paths, spool_folder: Path
) -> None:
    # Otherwise `reparam replay` would end a run that has finished since.
    run_id = interrupted(tracker, 1)
    spool = Spool(spool_folder, run_id)
    metric = {"key": "train_loss", "value": 7.0, "timestamp": 1, "step": 2}
    spool.add({"call": "metrics", "run": run_id, "values": [metric]})
    spool.add({"call": "end", "run": run_id, "status": "KILLED", "time": 1})
    with tracker.training_run("data-hash", run_id) as run:
        assert run.run_id == run_id
        assert not spool.calls.exists()
        assert [row.info.status for row in rows(tracker)] == ["RUNNING"]
    (row,) = rows(tracker)
    assert (row.info.status, row.data.metrics["train_loss"]) == ("FINISHED", 7.0)
    assert tracking.replay(paths) == 0


def test_without_tracking_nothing_goes_on(paths: Paths, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "off")
    tracker = tracking.connect(paths)
    with tracker.training_run("data-hash", "0" * 32) as run:
        assert run.run_id == ""
        assert tracker.logged_epochs(run) == set()


# ---- children of it


def test_a_child_hangs_below_the_run_of_its_weights_and_mirrors_its_headline(tracker: Tracker, paths: Paths) -> None:
    (paths.root / "metrics.json").write_text("{}")
    others, parent = train(tracker, "other-weights"), train(tracker, "weights")
    with tracker.child_run("evaluate", {"weights_sha256": "weights"}) as run:
        run.log_headline({"elbo": -25.5, "nll": 24.0})
        run.log_metrics({"latent_kl.0": 1.5})
        run.log_files([paths.root / "metrics.json"], "evaluation")
    child = tracker.client.get_run(run.run_id)
    assert child.data.tags["mlflow.parentRunId"] == parent
    assert child.data.tags["mlflow.runName"] == "evaluate"
    assert (child.data.tags[STAGE_TAG], child.data.tags[WEIGHTS_TAG]) == ("evaluate", "weights")
    assert child.data.metrics == {"elbo": -25.5, "nll": 24.0, "latent_kl.0": 1.5}
    assert tracker.client.get_run(parent).data.metrics == {"elbo": -25.5, "nll": 24.0}
    assert tracker.client.get_run(others).data.metrics == {}
    for run_id in (run.run_id, parent):
        assert artifacts(tracker, run_id, "evaluation") == ["evaluation/metrics.json"]


def test_a_failing_evaluation_leaves_the_finished_training_as_it_is(tracker: Tracker) -> None:
    parent = train(tracker, "weights")
    before = tracker.client.get_run(parent).info

    def fail() -> None:
        with tracker.child_run("evaluate", {"weights_sha256": "weights"}) as run:
            run.log_headline({"elbo": -25.5})
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    after = tracker.client.get_run(parent).info
    assert (after.status, after.end_time) == ("FINISHED", before.end_time)
    assert [row.info.status for row in rows(tracker)] == ["FINISHED", "FAILED"]


def test_a_child_without_a_training_run_is_logged_alone_and_says_so(
    tracker: Tracker, caplog: pytest.LogCaptureFixture
) -> None:
    train(tracker, "other-weights")
    with tracker.child_run("evaluate", {"weights_sha256": "0123456789abcdef"}) as run:
        run.log_headline({"elbo": -25.5})
    assert [record.getMessage() for record in caplog.records if record.name == "reparam.track.store"] == [
        "evaluate: no MLflow run bears the weights 0123456789ab..., so this run is logged without a parent; the model "
        "was trained elsewhere or without tracking"
    ]
    child = tracker.client.get_run(run.run_id)
    assert "mlflow.parentRunId" not in child.data.tags
    assert (child.info.status, child.data.metrics) == ("FINISHED", {"elbo": -25.5})


def test_only_a_finished_training_is_a_parent(tracker: Tracker, caplog: pytest.LogCaptureFixture) -> None:
    def fail_after_tagging() -> None:
        with tracker.training_run("data-hash") as run:
            run.set_tags({WEIGHTS_TAG: "weights"})
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail_after_tagging()
    with tracker.child_run("evaluate", {"weights_sha256": "weights"}) as run:
        pass
    with tracker.child_run("export", {"weights_sha256": "weights"}) as sibling:  # and an evaluation bears the tag too
        pass
    assert (run.parent, sibling.parent) == (None, None)
    assert caplog.text.count("is logged without a parent") == 2


def test_of_equal_weights_those_of_the_running_experiment_go_first_then_the_newest(
    tracker: Tracker, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained = {}
    for name in ("first", "second", "third"):
        monkeypatch.setenv("DVC_EXP_NAME", name)
        trained[name] = train(tracker, "weights")
    for name in ("first", "third", "second"):
        monkeypatch.setenv("DVC_EXP_NAME", name)
        with tracker.child_run("evaluate", {"weights_sha256": "weights"}) as run:
            assert run.parent == trained[name]
    for name in ("", "a fourth"):
        monkeypatch.setenv("DVC_EXP_NAME", name)
        with tracker.child_run("evaluate", {"weights_sha256": "weights"}) as run:
            assert run.parent == trained["third"]


def test_data_are_logged_once_per_hash_in_an_experiment_of_their_own(tracker: Tracker) -> None:
    def fail() -> None:
        with tracker.data_run("preprocess", "hash-a"):
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    for data_hash in ("hash-a", "hash-a", "hash-b"):
        with tracker.data_run("preprocess", data_hash) as run:
            run.log_metrics({"train_images": 5})
    with tracker.data_run("download", "hash-a") as run:
        pass
    found = rows(tracker, f"{tracker.experiment}-data")
    assert [(row.data.tags[STAGE_TAG], row.data.tags[DATA_TAG], row.info.status) for row in found] == [
        ("preprocess", "hash-a", "FAILED"),
        ("preprocess", "hash-a", "FINISHED"),
        ("preprocess", "hash-b", "FINISHED"),
        ("download", "hash-a", "FINISHED"),
    ]
    assert [row.data.metrics.get("train_images") for row in found] == [None, 5.0, 5.0, None]
    assert rows(tracker) == []


# ---- where it is kept


def test_everything_is_kept_at_the_root_of_the_real_repository(tracker: Tracker, paths: Paths, store: Path) -> None:
    (paths.root / "card.json").write_text("{}")
    with tracker.training_run("data-hash") as run:
        run.log_files([paths.root / "card.json"])
    assert tracker.uri == f"sqlite:///{store}/mlflow.db"
    assert (store / f"mlartifacts/{run.run_id}/artifacts/card.json").read_text() == "{}"
    assert {path.name for path in paths.root.iterdir()} == {"params.yaml", "card.json"}


def test_a_leftover_mlruns_folder_changes_nothing(tracker: Tracker, store: Path) -> None:
    train(tracker, "weights")
    assert (store / LEFTOVER).read_text() == "left over"
    assert [path.relative_to(store).as_posix() for path in (store / "mlruns").rglob("*")] == ["mlruns/0", LEFTOVER]
    assert len(rows(tracker)) == 1


def test_another_store_can_be_named(
    paths: Paths, store: Path, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    # The shared database under another name, because a fresh one takes a second.
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f" sqlite:///{store}/mlflow.db ")
    named = tracking.connect(Paths(paths.root, elsewhere))
    run = train(named, "weights")
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    assert [row.info.run_id for row in rows(tracking.connect(paths))] == [run]
    assert not (elsewhere / "mlflow.db").exists()


def test_two_processes_may_open_a_fresh_database_at_once(tmp_path: Path) -> None:
    script = """
import sys, mlflow
from pathlib import Path
from reparam.track import store as tracking
from reparam.paths import Paths
print("ready", flush=True)
sys.stdin.readline()
tracker = tracking.connect(Paths(Path.cwd(), Path.cwd()))
with tracker.training_run(sys.argv[1]) as run:
    run.log_metrics({"loss": 1.0}, 1)
print("done", flush=True)
"""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("DVC_", "MLFLOW_"))}
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", script, name],
            cwd=tmp_path,
            env={**inherited, "PYTHONPATH": str(SOURCE)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for name in ("one", "two")
    ]
    for worker in workers:
        assert worker.stdout.readline() == "ready\n"
    for worker in workers:
        worker.stdin.write("go\n")
        worker.stdin.flush()
    ends = [(*worker.communicate(timeout=60), worker.returncode) for worker in workers]
    for output, errors, code in ends:
        assert (code, output) == (0, "done\n"), errors
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    experiment = client.get_experiment_by_name("reparam")
    found = client.search_runs([experiment.experiment_id])
    assert {(row.data.tags[DATA_TAG], row.info.status) for row in found} == {("one", "FINISHED"), ("two", "FINISHED")}


# ---- without a store


def test_off_logs_nothing_and_loads_no_mlflow(tmp_path: Path) -> None:
    script = """
import sys
from pathlib import Path
from reparam.track import store as tracking
from reparam.paths import Paths
tracker = tracking.connect(Paths(Path.cwd(), Path.cwd()))
child = tracker.child_run("evaluate", {"weights_sha256": "w"})
for opened in (tracker.training_run("h"), child, tracker.data_run("download", "h")):
    with opened as run:
        run.log_params({"a": 1})
        run.set_tags({"b": "c"})
        run.log_metrics({"loss": 1.0}, 1)
        run.log_headline({"elbo": 1.0})
        run.log_files([Path("nowhere")])
        run.log_onnx(Path("nowhere"))
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
            tracking.connect(paths)
    first, second = str(caught.value).splitlines()
    assert first.startswith(f"MLflow at {uri} cannot be used: ")
    assert second == (
        "Start the server, unset MLFLOW_TRACKING_URI to use a local file, or set MLFLOW_TRACKING_URI=off to run "
        "without tracking"
    )
    # Two attempts of 5 seconds, where MLflow would make eight of two minutes.
    from mlflow.environment_variables import MLFLOW_HTTP_REQUEST_MAX_RETRIES, MLFLOW_HTTP_REQUEST_TIMEOUT

    assert (MLFLOW_HTTP_REQUEST_MAX_RETRIES.get(), MLFLOW_HTTP_REQUEST_TIMEOUT.get()) == (1, 5)


def test_a_patience_that_the_user_set_is_kept(paths: Paths, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "77")
    tracking.connect(paths)
    assert os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] == "77"


def test_a_damaged_database_is_refused_with_the_way_out(project: Paths, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    project.tracking_database.write_text("no database" * 100)
    with pytest.raises(TrackingError, match="not a database"):
        tracking.connect(project)


def test_a_deleted_experiment_is_refused_with_the_way_out(tracker: Tracker) -> None:
    train(tracker, "weights")
    tracker.client.delete_experiment(tracker.client.get_experiment_by_name(tracker.experiment).experiment_id)
    with pytest.raises(TrackingError) as caught:
        train(tracker, "weights")
    assert str(caught.value) == (
        f"MLflow experiment '{tracker.experiment}' at {tracker.uri} is deleted; restore it with `mlflow experiments "
        "restore`, or choose another name with MLFLOW_EXPERIMENT_NAME"
    )


# ---- a store that goes away

GONE = "MLflow does not answer, going on without it: connection refused"
BACK = "MLflow is back: what it missed was delivered"
STILL_AWAY = "MLflow is still away: what it missed is kept; deliver it with `reparam replay`"


class Absent:
    """Stands before a client and refuses what would write, while `away` is true."""

    def __init__(self, client: Any) -> None:
        self.client = client
        self.away = False
        self.refused = 0

    def __getattr__(self, name: str) -> Any:
        method = getattr(self.client, name)
        if name not in {"log_batch", "log_artifact", "log_inputs", "set_terminated", "create_run", "search_runs"}:
            return method

        def call(*given: Any, **named: Any) -> Any:
            if self.away:
                self.refused += 1
                raise MlflowException("connection refused\nand a long explanation")
            return method(*given, **named)

        return call


@pytest.fixture
def absent(tracker: Tracker) -> Absent:
    return Absent(tracker.client)


@pytest.fixture
def shaky(tracker: Tracker, absent: Absent, paths: Paths) -> Iterator[Tracker]:
    """`tracker`, with a client that goes away when `absent.away` is set."""
    yield Tracker(absent, tracker.uri, tracker.experiment, paths)
    shutil.rmtree(paths.tracking_spool, ignore_errors=True)


def left_over(paths: Paths) -> list[str]:
    return [path.name for path in paths.tracking_spool.iterdir() if path.suffix != ".lock"]


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


def test_what_a_store_missed_is_kept_in_order_and_delivered_by_replay(
    shaky: Tracker, absent: Absent, paths: Paths, caplog: pytest.LogCaptureFixture
) -> None:
    file = paths.root / "card.json"
    file.write_text("as it was")
    with shaky.training_run("data-hash") as run:
        run.log_metrics({"loss": 3.0}, 1)
        run.set_tags({"before": "yes"})
        absent.away = True
        run.log_params({"train.seed": 0})
        run.log_dataset(CARD, "data-hash", "train")
        run.log_metrics({"loss": 2.0}, 2)
        run.log_metrics({"loss": math.inf}, 3)  # SQLite keeps the largest float instead
        run.log_files([file], "training")
        run.set_tags({WEIGHTS_TAG: "first"})
        run.set_tags({WEIGHTS_TAG: "second"})
    file.write_text("as a later run left it")
    assert warnings(caplog) == [GONE, STILL_AWAY]
    assert absent.refused == 2  # one attempt in the run and one at its end, whatever was logged between
    row = shaky.client.get_run(run.run_id)
    assert (row.info.status, row.data.params) == ("RUNNING", {})
    assert row.data.tags["before"] == "yes"

    absent.away = False
    assert tracking.replay(paths) == 7
    row = shaky.client.get_run(run.run_id)
    assert row.info.status == "FINISHED"
    assert row.data.params == {"train.seed": "0"}
    assert row.data.tags[WEIGHTS_TAG] == "second"
    assert [given.dataset.digest for given in row.inputs.dataset_inputs] == ["data-hash"]
    history = shaky.client.get_metric_history(run.run_id, "loss")
    assert sorted((metric.step, metric.value) for metric in history) == [(1, 3.0), (2, 2.0), (3, sys.float_info.max)]
    local = shaky.client.download_artifacts(run.run_id, "training/card.json")
    assert Path(local).read_text() == "as it was"
    assert left_over(paths) == []
    assert tracking.replay(paths) == 0


def test_a_replayed_run_ends_when_its_stage_ended(
    shaky: Tracker, absent: Absent, paths: Paths, caplog: pytest.LogCaptureFixture
) -> None:
    def fail() -> None:
        with shaky.training_run("data-hash"):
            absent.away = True
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    (spooled,) = paths.tracking_spool.glob("*.jsonl")
    end = json.loads(spooled.read_text())
    absent.away = False
    tracking.replay(paths)
    (row,) = rows(shaky)
    assert (row.info.status, row.info.end_time) == ("KILLED", end["time"])
    assert warnings(caplog) == [GONE, STILL_AWAY]


def test_a_store_that_comes_back_before_the_end_gets_everything_at_once(
    shaky: Tracker, absent: Absent, paths: Paths, caplog: pytest.LogCaptureFixture
) -> None:
    with shaky.training_run("data-hash") as run:
        absent.away = True
        run.set_tags({"early": "yes"})
        absent.away = False
        run.set_tags({"late": "yes"})
    assert warnings(caplog) == [GONE, BACK]
    (row,) = rows(shaky)
    assert row.info.status == "FINISHED"
    assert (row.data.tags["early"], row.data.tags["late"]) == ("yes", "yes")
    assert left_over(paths) == []


def test_the_headline_reaches_the_training_run_by_replay_too(shaky: Tracker, absent: Absent, paths: Paths) -> None:
    parent = train(shaky, "weights")
    with shaky.child_run("evaluate", {"weights_sha256": "weights"}) as run:
        absent.away = True
        run.log_headline({"elbo": -25.5})
    absent.away = False
    tracking.replay(paths)
    for run_id in (run.run_id, parent):
        assert shaky.client.get_run(run_id).data.metrics == {"elbo": -25.5}


def test_a_replay_that_is_refused_keeps_the_rest(shaky: Tracker, absent: Absent, paths: Paths) -> None:
    with shaky.training_run("data-hash") as run:
        absent.away = True
        run.set_tags({"late": "yes"})
    absent.away = False
    shaky.client.delete_run(run.run_id)
    with pytest.raises(TrackingError) as caught:
        tracking.replay(paths)
    assert str(caught.value) == (
        f"MLflow at {shaky.uri} refused some calls:\n"
        f"  {paths.tracking_spool / run.run_id}.jsonl: The run {run.run_id} must be in the 'active' state. Current "
        "state is deleted.\nThey are kept: run `reparam replay` again, or delete the file of a run that is gone"
    )
    assert len((paths.tracking_spool / f"{run.run_id}.jsonl").read_text().splitlines()) == 2
    shaky.client.restore_run(run.run_id)
    assert tracking.replay(paths) == 2


def test_a_run_that_is_gone_does_not_hold_up_the_others(shaky: Tracker, absent: Absent, paths: Paths) -> None:
    for _ in range(2):
        absent.away = False
        with shaky.training_run("data-hash") as run:
            absent.away = True
            run.set_tags({"late": "yes"})
    absent.away = False
    first, second = (file.stem for file in sorted(paths.tracking_spool.glob("*.jsonl")))
    shaky.client.delete_run(first)
    with pytest.raises(TrackingError, match=first):
        tracking.replay(paths)
    assert shaky.client.get_run(second).data.tags.get("late") == "yes"


@pytest.mark.parametrize("kind", ["child", "data"])
def test_a_store_that_goes_away_before_the_run_opens_does_not_stop_the_stage(
    kind: str, shaky: Tracker, absent: Absent, caplog: pytest.LogCaptureFixture
) -> None:
    # `download` and `preprocess` open their run when their work is done, `report` too.
    train(shaky, "weights")
    absent.away = True
    with (
        shaky.child_run("report", {"weights_sha256": "weights"})
        if kind == "child"
        else shaky.data_run("download", "h") as run
    ):
        run.log_metrics({"files": 1})
    assert warnings(caplog) == [GONE]


# ---- it does not slow training


class Sizes(list[int]):
    """Takes calls in the place of a store, and keeps how many metrics each holds; other calls count as -1."""

    def __call__(self, call: dict[str, Any]) -> None:
        self.append(len(call["values"]) if call["call"] == "metrics" else -1)


@pytest.mark.parametrize(("seconds", "sizes"), [(math.inf, [6, -1]), (-1, [2, 2, 2, -1])])
def test_metrics_are_delivered_together_once_in_a_while(
    seconds: float, sizes: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_module, "FLUSH_SECONDS", seconds)
    found = Sizes()
    run = Run(found, "id", Spool(tmp_path, "id"))
    for epoch in (1, 2, 3):
        run.log_metrics({"loss": 1.0, "kl": 0.5}, epoch)
    run.close("FINISHED")
    assert found == sizes


def test_a_request_holds_no_more_metrics_than_mlflow_takes(tracker: Tracker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_module, "FLUSH_SECONDS", math.inf)
    with tracker.training_run("data-hash") as run:
        for epoch in range(2300):
            run.log_metrics({"loss": float(epoch)}, epoch)
    history = tracker.client.get_metric_history(run.run_id, "loss")
    assert {metric.step: metric.value for metric in history} == {epoch: float(epoch) for epoch in range(2300)}


# ---- ONNX models


@pytest.fixture
def graph(tmp_path: Path) -> Path:
    """A graph that doubles what it is given."""
    tensor = onnx.helper.make_tensor_value_info
    node = onnx.helper.make_node("Add", ["latents", "latents"], ["mean"])
    body = onnx.helper.make_graph(
        [node],
        "double",
        [tensor("latents", onnx.TensorProto.FLOAT, ["batch", 3])],
        [tensor("mean", onnx.TensorProto.FLOAT, ["batch", 3])],
    )
    model = onnx.helper.make_model(body, opset_imports=[onnx.helper.make_opsetid("", 20)], ir_version=10)
    onnx.save(model, tmp_path / "decoder.onnx")
    return tmp_path / "decoder.onnx"


def test_a_graph_is_logged_as_a_model_that_mlflow_loads_and_runs(
    tracker: Tracker, graph: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import numpy as np

    monkeypatch.setenv("MLFLOW_TRACKING_URI", tracker.uri)  # MLflow sets it itself, and would leave it to other tests
    parent = train(tracker, "weights")
    with tracker.child_run("export", {"weights_sha256": "weights"}) as run:
        run.log_onnx(graph)
        run.log_metrics({"after": 1.0})
    row = tracker.client.get_run(run.run_id)
    assert (row.info.status, row.data.metrics) == ("FINISHED", {"after": 1.0})
    (output,) = row.outputs.model_outputs
    model = tracker.client.get_logged_model(output.model_id)
    assert model.name == "decoder"
    loaded = mlflow.pyfunc.load_model(f"models:/{output.model_id}")
    assert loaded.metadata.signature.inputs.to_dict() == [
        {"name": "latents", "type": "tensor", "tensor-spec": {"dtype": "float32", "shape": (-1, 3)}}
    ]
    x = np.array([[1, 2, 3]], np.float32)
    np.testing.assert_array_equal(loaded.predict({"latents": x})["mean"], 2 * x)
    assert tracker.client.get_run(parent).info.status == "FINISHED"


def test_a_graph_that_a_store_missed_is_delivered_by_replay(
    shaky: Tracker, absent: Absent, graph: Path, paths: Paths, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", shaky.uri)
    with shaky.training_run("data-hash") as run:
        absent.away = True
        run.set_tags({"late": "yes"})
        run.log_onnx(graph)
    graph.unlink()
    absent.away = False
    assert tracking.replay(paths) == 3
    row = shaky.client.get_run(run.run_id)
    assert row.info.status == "FINISHED"
    assert [shaky.client.get_logged_model(output.model_id).name for output in row.outputs.model_outputs] == ["decoder"]
    assert left_over(paths) == []


def test_a_call_that_cannot_even_be_spooled_costs_a_warning(
    shaky: Tracker, absent: Absent, paths: Paths, caplog: pytest.LogCaptureFixture
) -> None:
    paths.tracking_spool.write_text("a file where the folder should be")
    with shaky.training_run("data-hash") as run:
        absent.away = True
        run.set_tags({"late": "yes"})
    paths.tracking_spool.unlink()
    first, second, *_ = warnings(caplog)
    assert first == GONE
    assert second.startswith("tags: a call to MLflow is lost, because it cannot be spooled: ")


# ---- one repository, one store


def test_a_moved_repository_does_not_write_into_the_old_one(
    tracker: Tracker, tmp_path: Path, paths: Paths, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(tracker, "weights")
    moved = tmp_path / "moved"
    moved.mkdir()
    shutil.copyfile(paths.tracking_database, moved / "mlflow.db")
    with pytest.raises(TrackingError, match="the repository was moved or copied; move mlflow"):
        train(tracking.connect(Paths(moved, moved)), "weights")
    assert not (moved / "mlartifacts").exists()


def test_of_equal_weights_those_of_the_same_parameters_go_first(tracker: Tracker) -> None:
    ids = {}
    for params in ("patience 60", "patience 61"):
        with tracker.training_run("data-hash") as run:
            run.set_tags({tracking.WEIGHTS_TAG: "weights", tracking.PARAMS_TAG: params})
        ids[params] = run.run_id
    for params, run_id in ids.items():
        with tracker.child_run("evaluate", {"weights_sha256": "weights", "params_sha256": params}) as child:
            assert child.parent == run_id
