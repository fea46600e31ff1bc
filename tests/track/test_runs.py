import json
import shutil
import subprocess
from pathlib import Path

import pytest
from in_process import DATA, InProcess
from mlflow.exceptions import MlflowException

from reparam.errors import TrackingError
from reparam.machine.versions import versions
from reparam.paths import Paths
from reparam.track import DATA_TAG, EXPERIMENT_TAG, PARAMS_TAG, STAGE_TAG, WEIGHTS_TAG, connect, replay
from reparam.track.runs import Runs
from reparam.track.spool import Spool

# ---- the training run


def test_a_training_run_is_one_row_with_all_that_was_logged(tracker: InProcess, paths: Paths) -> None:
    (paths.root / "history.csv").write_text("epoch,loss\n")
    with tracker.training_run("data-hash") as run:
        run.log_params({"model.hidden": (16, 8), "train.learning_rate": 1e-5})
        run.log_dataset(**DATA)
        for epoch in (1, 2, 3):
            run.log_metrics({"train_loss": 10.0 / epoch, "validation_loss": 20.0 / epoch}, epoch)
        run.set_tags({WEIGHTS_TAG: "weights-hash"})
        run.log_files([paths.root / "history.csv"], "training")
    (row,) = tracker.rows()
    assert row.info.run_id == run.run_id
    assert row.info.status == "FINISHED"
    assert row.data.params == {"model.hidden": "(16, 8)", "train.learning_rate": "1e-05"}
    assert row.data.metrics == {"train_loss": pytest.approx(10 / 3), "validation_loss": pytest.approx(20 / 3)}
    tags = {name: value for name, value in row.data.tags.items() if name.startswith(("reparam.", "dvc."))}
    assert tags == {STAGE_TAG: "train", DATA_TAG: "data-hash", WEIGHTS_TAG: "weights-hash"}
    found = {name: value for name, value in row.data.tags.items() if name.startswith("version.")}
    assert found == {f"version.{name}": value for name, value in versions().items()}
    assert {"version.python", "version.reparam", "version.torch", "version.numpy"} <= set(found)
    assert "mlflow.parentRunId" not in row.data.tags
    history = tracker.client.get_metric_history(run.run_id, "train_loss")
    assert [(metric.step, metric.value) for metric in history] == [(1, 10.0), (2, 5.0), (3, pytest.approx(10 / 3))]
    assert tracker.artifacts(run.run_id, "training") == ["training/history.csv"]


def test_a_training_of_a_study_is_below_its_run_and_its_other_stages_below_the_training(
    tracker: InProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = tracker.sweep_run("width")
    study.wait()
    assert tracker.rows()[0].info.status == "RUNNING"
    monkeypatch.setenv("REPARAM_PARENT_RUN", study.run_id)
    trained = tracker.train("weights")
    with tracker.child_run("evaluate", {"weights_sha256": "weights"}) as run:
        run.log_and_share({"elbo": -1.0}, "evaluation")
    again = tracker.sweep_run("width", study.run_id)
    again.close("FINISHED")
    parent, training, evaluation = tracker.rows()
    assert [row.data.tags.get("mlflow.parentRunId") for row in (parent, training, evaluation)] == [
        None,
        study.run_id,
        trained,
    ]
    assert (parent.info.run_name, parent.data.tags[STAGE_TAG], parent.info.status) == ("width", "sweep", "FINISHED")
    assert training.data.metrics == {"evaluation/elbo": -1.0}
    assert parent.data.metrics == {}
    assert tracker.sweep_run("width", study.run_id).run_id == study.run_id  # which goes on, when more trials do
    assert tracker.client.get_run(study.run_id).info.status == "RUNNING"
    assert tracker.sweep_run("width", "of-another-store").run_id != study.run_id


def test_the_data_set_is_logged_with_the_hash_in_dvc_lock_as_digest(tracker: InProcess) -> None:
    with tracker.training_run("data-hash") as run:
        run.log_dataset(**DATA | {"digest": "d41d8cd98f00b204e9800998ecf8427e.dir"})
    (given,) = tracker.client.get_run(run.run_id).inputs.dataset_inputs
    assert (given.dataset.name, given.dataset.digest) == ("digits", "d41d8cd98f00b204e9800998ecf8427e.dir")
    assert {tag.key: tag.value for tag in given.tags} == {"mlflow.data.context": "train"}
    assert json.loads(given.dataset.profile) == {"train": 5, "validation": 2, "test": 3}
    tensors = json.loads(json.loads(given.dataset.schema)["mlflow_tensorspec"]["features"])
    assert tensors[0]["tensor-spec"] == {"dtype": "uint8", "shape": [-1, 1, 8, 8]}


def test_the_experiment_of_dvc_names_the_run_and_the_commit_is_recorded(
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
    tracker = InProcess.open(paths)
    for content in ("A = 1\n", "A = 2\n"):
        (paths.root / "src/a.py").write_text(content)
        (paths.root / "notes.txt").write_text("no code path")
        tracker.train("weights")
    clean, dirty = (row.data.tags for row in tracker.rows())
    assert clean[EXPERIMENT_TAG] == "bonny-bream"
    assert clean["mlflow.runName"] == "bonny-bream"
    assert clean["dvc.baseline"] == "abc123"
    assert clean["mlflow.source.git.commit"] == git("rev-parse", "HEAD")
    assert (clean["mlflow.source.git.dirty"], dirty["mlflow.source.git.dirty"]) == ("false", "true")


def test_the_experiment_is_called_reparam_unless_the_environment_says_otherwise(
    paths: Paths, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_EXPERIMENT_NAME")
    assert InProcess.open(paths).experiment == "reparam"
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "mine")
    assert InProcess.open(paths).experiment == "mine"


@pytest.mark.parametrize(
    ("error", "status"), [(ZeroDivisionError, "FAILED"), (KeyboardInterrupt, "KILLED"), (SystemExit, "KILLED")]
)
def test_a_run_says_how_its_stage_ended(error: type[BaseException], status: str, tracker: InProcess) -> None:
    def fail() -> None:
        with tracker.training_run("data-hash") as run:
            run.log_metrics({"loss": 1.0}, 1)
            raise error

    with pytest.raises(error):
        fail()
    (row,) = tracker.rows()
    assert (row.info.status, row.data.metrics) == (status, {"loss": 1.0})
    assert row.info.end_time >= row.info.start_time


# ---- a training run that goes on


def interrupted(tracker: InProcess, epochs: int, error: type[BaseException] = SystemExit) -> str:
    """Log a training run that ends early; return its id."""

    def fail() -> None:
        nonlocal run_id
        with tracker.training_run("data-hash") as run:
            run_id = run.run_id
            run.log_params({"train.epochs": 4})
            run.log_dataset(**DATA)
            for epoch in range(1, epochs + 1):
                run.log_metrics({"epoch": float(epoch), "train_loss": 10.0 / epoch}, epoch)
            raise error

    run_id = ""
    with pytest.raises(error):
        fail()
    return run_id


@pytest.mark.parametrize(("error", "status"), [(SystemExit, "KILLED"), (ZeroDivisionError, "FAILED")])
def test_an_interrupted_training_goes_on_in_the_same_row(
    error: type[BaseException], status: str, tracker: InProcess
) -> None:
    run_id = interrupted(tracker, 2, error)
    assert [row.info.status for row in tracker.rows()] == [status]
    with tracker.training_run("data-hash", run_id) as run:
        assert run.run_id == run_id
        assert [row.info.status for row in tracker.rows()] == ["RUNNING"]
        run.log_params({"train.epochs": 4})  # the same again is no mistake
        run.log_dataset(**DATA)
        for epoch in (3, 4):
            run.log_metrics({"epoch": float(epoch), "train_loss": 10.0 / epoch}, epoch)
    (row,) = tracker.rows()
    assert (row.info.run_id, row.info.status) == (run_id, "FINISHED")
    assert row.data.tags[DATA_TAG] == "data-hash"
    assert len(row.inputs.dataset_inputs) == 1
    history = tracker.client.get_metric_history(run_id, "train_loss")
    assert [(metric.step, metric.value) for metric in history] == [(1, 10.0), (2, 5.0), (3, 10 / 3), (4, 2.5)]


def test_a_training_that_was_killed_at_once_goes_on_too(tracker: InProcess, paths: Paths) -> None:
    killed, _ = Runs(tracker.store, {}).training("data-hash", "")  # and never closed
    with tracker.training_run("data-hash", killed) as run:
        pass
    assert [(row.info.run_id, row.info.status) for row in tracker.rows()] == [(run.run_id, "FINISHED")]


def test_the_store_says_which_epochs_it_has(tracker: InProcess, paths: Paths, monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_a_training_that_finished_or_is_gone_does_not_go_on(tracker: InProcess) -> None:
    finished = tracker.train("weights")
    deleted = interrupted(tracker, 1)
    tracker.client.delete_run(deleted)
    for resume in (finished, deleted, "0" * 32, ""):
        with tracker.training_run("data-hash", resume) as run:
            assert run.run_id not in (finished, deleted, resume)
    assert tracker.client.get_run(finished).data.tags[WEIGHTS_TAG] == "weights"
    assert tracker.client.get_run(deleted).info.status == "KILLED"


def test_a_training_goes_on_in_its_own_experiment_alone(
    tracker: InProcess, paths: Paths, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_id = interrupted(tracker, 1)
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", f"{tracker.experiment}-other")
    other = InProcess.open(paths)
    with other.training_run("data-hash", run_id) as run:
        pass
    assert [row.info.run_id for row in other.rows()] == [run.run_id]
    assert [(row.info.run_id, row.info.status) for row in tracker.rows()] == [(run_id, "KILLED")]


def test_a_run_whose_spool_is_refused_does_not_go_on(
    tracker: InProcess, paths: Paths, spool_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_id = interrupted(tracker, 1)
    spool = Spool(spool_folder, run_id)
    spool.add({"call": "end", "run": run_id, "status": "KILLED", "time": 1})

    def fail(*_: object) -> None:
        raise MlflowException("refused")

    with monkeypatch.context() as patch:
        patch.setattr(tracker.client, "set_terminated", fail)
        assert not Runs(tracker.store, {})._reopen(run_id)
    assert spool.calls.exists()  # for `reparam replay`
    assert replay(paths) == 1


def test_what_was_spooled_before_is_delivered_before_training_goes_on(
    tracker: InProcess, paths: Paths, spool_folder: Path
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
        assert [row.info.status for row in tracker.rows()] == ["RUNNING"]
    (row,) = tracker.rows()
    assert (row.info.status, row.data.metrics["train_loss"]) == ("FINISHED", 7.0)
    assert replay(paths) == 0


def test_without_tracking_nothing_goes_on(paths: Paths, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "off")
    tracker = connect(paths)
    with tracker.training_run("data-hash", "0" * 32) as run:
        assert run.run_id == ""
        assert tracker.logged_epochs(run) == set()


# ---- children of it


def test_a_child_hangs_below_the_run_of_its_weights_and_mirrors_its_headline(tracker: InProcess, paths: Paths) -> None:
    (paths.root / "metrics.json").write_text("{}")
    others, parent = tracker.train("other-weights"), tracker.train("weights")
    with tracker.child_run("evaluate", {"weights_sha256": "weights"}) as run:
        run.log_and_share({"elbo": -25.5, "nll": 24.0}, "evaluation")
        run.log_metrics({"0": 1.5}, group="latent_kl")
        run.log_files([paths.root / "metrics.json"], "evaluation")
    child = tracker.client.get_run(run.run_id)
    assert child.data.tags["mlflow.parentRunId"] == parent
    assert child.data.tags["mlflow.runName"] == "evaluate"
    assert (child.data.tags[STAGE_TAG], child.data.tags[WEIGHTS_TAG]) == ("evaluate", "weights")
    assert child.data.metrics == {"evaluation/elbo": -25.5, "evaluation/nll": 24.0, "latent_kl/0": 1.5}
    assert tracker.client.get_run(parent).data.metrics == {"evaluation/elbo": -25.5, "evaluation/nll": 24.0}
    assert tracker.client.get_run(others).data.metrics == {}
    for run_id in (run.run_id, parent):
        assert tracker.artifacts(run_id, "evaluation") == ["evaluation/metrics.json"]


def test_a_failing_evaluation_leaves_the_finished_training_as_it_is(tracker: InProcess) -> None:
    parent = tracker.train("weights")
    before = tracker.client.get_run(parent).info

    def fail() -> None:
        with tracker.child_run("evaluate", {"weights_sha256": "weights"}) as run:
            run.log_and_share({"elbo": -25.5}, "evaluation")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    after = tracker.client.get_run(parent).info
    assert (after.status, after.end_time) == ("FINISHED", before.end_time)
    assert [row.info.status for row in tracker.rows()] == ["FINISHED", "FAILED"]


def test_a_child_without_a_training_run_is_logged_alone_and_says_so(
    tracker: InProcess, caplog: pytest.LogCaptureFixture
) -> None:
    tracker.train("other-weights")
    with tracker.child_run("evaluate", {"weights_sha256": "0123456789abcdef"}) as run:
        run.log_and_share({"elbo": -25.5}, "evaluation")
    assert [record.getMessage() for record in caplog.records if record.name == "reparam.track.tracker"] == [
        "evaluate: no MLflow run has the weights 0123456789ab..., so this run is logged without a parent; the model "
        "was trained elsewhere or without tracking"
    ]
    child = tracker.client.get_run(run.run_id)
    assert "mlflow.parentRunId" not in child.data.tags
    assert (child.info.status, child.data.metrics) == ("FINISHED", {"evaluation/elbo": -25.5})


def test_only_a_finished_training_is_a_parent(tracker: InProcess, caplog: pytest.LogCaptureFixture) -> None:
    def fail_after_tagging() -> None:
        with tracker.training_run("data-hash") as run:
            run.set_tags({WEIGHTS_TAG: "weights"})
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail_after_tagging()
    with tracker.child_run("evaluate", {"weights_sha256": "weights"}) as run:
        pass
    with tracker.child_run("export", {"weights_sha256": "weights"}) as sibling:  # and an evaluation has the tag too
        pass
    assert (run.parent, sibling.parent) == (None, None)
    assert caplog.text.count("is logged without a parent") == 2


def test_of_equal_weights_those_of_the_running_experiment_go_first_then_the_newest(
    tracker: InProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained = {}
    for name in ("first", "second", "third"):
        monkeypatch.setenv("DVC_EXP_NAME", name)
        trained[name] = tracker.train("weights")
    for name in ("first", "third", "second"):
        monkeypatch.setenv("DVC_EXP_NAME", name)
        with tracker.child_run("evaluate", {"weights_sha256": "weights"}) as run:
            assert run.parent == trained[name]
    for name in ("", "a fourth"):
        monkeypatch.setenv("DVC_EXP_NAME", name)
        with tracker.child_run("evaluate", {"weights_sha256": "weights"}) as run:
            assert run.parent == trained["third"]


def test_data_are_logged_once_per_hash_in_an_experiment_of_their_own(tracker: InProcess) -> None:
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
    found = tracker.rows(f"{tracker.experiment}-data")
    assert [(row.data.tags[STAGE_TAG], row.data.tags[DATA_TAG], row.info.status) for row in found] == [
        ("preprocess", "hash-a", "FAILED"),
        ("preprocess", "hash-a", "FINISHED"),
        ("preprocess", "hash-b", "FINISHED"),
        ("download", "hash-a", "FINISHED"),
    ]
    assert [row.data.metrics.get("train_images") for row in found] == [None, 5.0, 5.0, None]
    assert tracker.rows() == []


# ---- one repository, one store


def test_a_moved_repository_does_not_write_into_the_old_one(
    tracker: InProcess, tmp_path: Path, paths: Paths, monkeypatch: pytest.MonkeyPatch
) -> None:
    tracker.train("weights")
    moved = tmp_path / "moved"
    moved.mkdir()
    shutil.copyfile(paths.tracking_database, moved / "mlflow.db")
    with pytest.raises(TrackingError, match="the repository was moved or copied; move mlflow"):
        InProcess.open(Paths(moved, moved)).train("weights")
    assert not (moved / "mlartifacts").exists()


def test_of_equal_weights_those_of_the_same_parameters_go_first(tracker: InProcess) -> None:
    ids = {}
    for params in ("patience 60", "patience 61"):
        with tracker.training_run("data-hash") as run:
            run.set_tags({WEIGHTS_TAG: "weights", PARAMS_TAG: params})
        ids[params] = run.run_id
    for params, run_id in ids.items():
        with tracker.child_run("evaluate", {"weights_sha256": "weights", "params_sha256": params}) as child:
            assert child.parent == run_id
