import json
import logging
import math
import sys
from pathlib import Path
from typing import Any

import pytest
from absent import Absent
from in_process import DATA, InProcess

from reparam.errors import TrackingError
from reparam.paths import Paths
from reparam.track import WEIGHTS_TAG, Run, replay
from reparam.track import run as run_module
from reparam.track.channel import Channel
from reparam.track.spool import Spool

# ---- a store that goes away

GONE = "going on without MLflow: connection refused"
BACK = "MLflow is back: the calls that it missed were delivered"
STILL_AWAY = "calls that MLflow did not take are kept in .tracking; send them with `reparam replay`"


def left_over(paths: Paths) -> list[str]:
    return [path.name for path in paths.tracking_spool.iterdir() if path.suffix != ".lock"]


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


def test_what_a_store_missed_is_kept_in_order_and_delivered_by_replay(
    shaky: InProcess, absent: Absent, paths: Paths, caplog: pytest.LogCaptureFixture
) -> None:
    file = paths.root / "card.json"
    file.write_text("as it was")
    with shaky.training_run("data-hash") as run:
        run.log_metrics({"loss": 3.0}, 1)
        run.set_tags({"before": "yes"})
        absent.away = True
        run.log_params({"train.seed": 0})
        run.log_dataset(**DATA)
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
    assert replay(paths) == 7
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
    assert replay(paths) == 0


def test_a_replayed_run_ends_when_its_stage_ended(
    shaky: InProcess, absent: Absent, paths: Paths, caplog: pytest.LogCaptureFixture
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
    replay(paths)
    (row,) = shaky.rows()
    assert (row.info.status, row.info.end_time) == ("KILLED", end["time"])
    assert warnings(caplog) == [GONE, STILL_AWAY]


def test_a_store_that_comes_back_before_the_end_gets_everything_at_once(
    shaky: InProcess, absent: Absent, paths: Paths, caplog: pytest.LogCaptureFixture
) -> None:
    with shaky.training_run("data-hash") as run:
        absent.away = True
        run.set_tags({"early": "yes"})
        absent.away = False
        run.set_tags({"late": "yes"})
    assert warnings(caplog) == [GONE, BACK]
    (row,) = shaky.rows()
    assert row.info.status == "FINISHED"
    assert (row.data.tags["early"], row.data.tags["late"]) == ("yes", "yes")
    assert left_over(paths) == []


def test_the_headline_reaches_the_training_run_by_replay_too(shaky: InProcess, absent: Absent, paths: Paths) -> None:
    parent = shaky.train("weights")
    with shaky.child_run("evaluate", {"weights_sha256": "weights"}) as run:
        absent.away = True
        run.log_and_share({"elbo": -25.5}, "evaluation")
    absent.away = False
    replay(paths)
    for run_id in (run.run_id, parent):
        assert shaky.client.get_run(run_id).data.metrics == {"evaluation/elbo": -25.5}


def test_a_replay_that_is_refused_keeps_the_rest(shaky: InProcess, absent: Absent, paths: Paths) -> None:
    with shaky.training_run("data-hash") as run:
        absent.away = True
        run.set_tags({"late": "yes"})
    absent.away = False
    shaky.client.delete_run(run.run_id)
    with pytest.raises(TrackingError) as caught:
        replay(paths)
    assert str(caught.value) == (
        f"MLflow at {shaky.store.uri} refused some calls:\n"
        f"  {paths.tracking_spool / run.run_id}.jsonl: The run {run.run_id} must be in the 'active' state. Current "
        "state is deleted.\nThey are kept: run `reparam replay` again, or delete the file of a run that is gone"
    )
    assert len((paths.tracking_spool / f"{run.run_id}.jsonl").read_text().splitlines()) == 2
    shaky.client.restore_run(run.run_id)
    assert replay(paths) == 2


def test_a_run_that_is_gone_does_not_hold_up_the_others(shaky: InProcess, absent: Absent, paths: Paths) -> None:
    for _ in range(2):
        absent.away = False
        with shaky.training_run("data-hash") as run:
            absent.away = True
            run.set_tags({"late": "yes"})
    absent.away = False
    first, second = (file.stem for file in sorted(paths.tracking_spool.glob("*.jsonl")))
    shaky.client.delete_run(first)
    with pytest.raises(TrackingError, match=first):
        replay(paths)
    assert shaky.client.get_run(second).data.tags.get("late") == "yes"


@pytest.mark.parametrize("kind", ["child", "data"])
def test_a_store_that_goes_away_before_the_run_opens_does_not_stop_the_stage(
    kind: str, shaky: InProcess, absent: Absent, caplog: pytest.LogCaptureFixture
) -> None:
    # `download` and `preprocess` open their run when their work is done, `report` too.
    shaky.train("weights")
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
    run = Run(Channel(found, lambda: None), "id", Spool(tmp_path, "id"))
    for epoch in (1, 2, 3):
        run.log_metrics({"loss": 1.0, "kl": 0.5}, epoch)
    run.close("FINISHED")
    assert found == sizes


def test_a_request_holds_no_more_metrics_than_mlflow_takes(tracker: InProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_module, "FLUSH_SECONDS", math.inf)
    with tracker.training_run("data-hash") as run:
        for epoch in range(2300):
            run.log_metrics({"loss": float(epoch)}, epoch)
    history = tracker.client.get_metric_history(run.run_id, "loss")
    assert {metric.step: metric.value for metric in history} == {epoch: float(epoch) for epoch in range(2300)}


def test_a_call_that_cannot_even_be_spooled_costs_a_warning(
    shaky: InProcess, absent: Absent, paths: Paths, caplog: pytest.LogCaptureFixture
) -> None:
    paths.tracking_spool.write_text("a file where the folder should be")
    with shaky.training_run("data-hash") as run:
        absent.away = True
        run.set_tags({"late": "yes"})
    paths.tracking_spool.unlink()
    first, second, *_ = warnings(caplog)
    assert first == GONE
    assert second.startswith("tags: a call to MLflow is lost, because it cannot be spooled: ")
