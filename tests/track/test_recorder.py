"""The process that speaks to MLflow: what a stage gains by it, and what happens when either of the two dies."""

import os
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import mlflow
import pytest
from mlflow.entities import Run as Row

from reparam.errors import TrackingError, UserError
from reparam.paths import Paths
from reparam.track import channel as channel_module
from reparam.track import connect, replay
from reparam.track.meeting import Meeting

SOURCE = Path(__file__).parents[2] / "src"
GONE = "going on without MLflow: the process that speaks to MLflow "
INTERRUPTED = "going on without MLflow: the stage was interrupted while it waited for an answer"
STILL_AWAY = "calls that MLflow did not take are kept in .tracking; send them with `reparam replay`"


def runs_still(process: int) -> bool:
    status = Path(f"/proc/{process}/stat")
    return status.exists() and status.read_text().rpartition(")")[2].split()[0] != "Z"


def wait(is_done: Callable[[], object], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not is_done():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.fixture
def only_run(paths: Paths) -> Callable[..., Row]:
    """Read the only run of the experiment from the store."""
    client = mlflow.MlflowClient(f"sqlite:///{paths.tracking_database}")

    def read(suffix: str = "") -> Row:
        experiment = client.get_experiment_by_name(os.environ["MLFLOW_EXPERIMENT_NAME"] + suffix)
        (run,) = client.search_runs([experiment.experiment_id])
        return run

    return read


@pytest.fixture
def clean_spool(paths: Paths) -> Iterator[None]:
    yield
    replay(paths)  # else the tests of other modules find what this one left


def recorder_of(paths: Paths) -> int:
    return int(Meeting.of(paths).number.read_text())


def test_connecting_waits_for_nothing_and_the_recorder_ends_when_no_stage_comes(
    paths: Paths, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REPARAM_RECORDER_SECONDS", "1")
    monkeypatch.setenv("OF_THIS_TEST", "1")  # a recorder of its own
    started = time.monotonic()
    tracker = connect(paths)
    assert time.monotonic() - started < 0.5  # MLflow alone takes longer
    recorder = recorder_of(paths)
    tracker.ready()
    time.sleep(1.5)  # while a stage works and logs nothing
    assert runs_still(recorder)
    del tracker
    wait(lambda: not runs_still(recorder), 10)
    assert not Meeting.of(paths).socket.exists()


def test_the_recorder_waits_from_the_end_of_the_last_stage(paths: Paths, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REPARAM_RECORDER_SECONDS", "2")
    monkeypatch.setenv("OF_THIS_TEST", "2")  # a recorder of its own
    tracker = connect(paths)
    recorder = recorder_of(paths)
    tracker.ready()
    time.sleep(3)  # longer than it waits for a stage
    del tracker
    time.sleep(1.8)
    assert runs_still(recorder)
    wait(lambda: not runs_still(recorder), 10)


def test_stages_that_follow_each_other_share_a_recorder_which_keeps_them_apart(
    paths: Paths, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorders, names = set(), []
    for name in ("first-name", "second-name"):
        monkeypatch.setenv("DVC_EXP_NAME", name)
        with connect(paths).training_run(f"data of {name}") as run:
            recorders.add(recorder_of(paths))
        names.append(mlflow.MlflowClient(f"sqlite:///{paths.tracking_database}").get_run(run.run_id).info.run_name)
    assert (len(recorders), names) == (1, ["first-name", "second-name"])
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "of somebody else")
    connect(paths).ready()
    assert recorder_of(paths) not in recorders


def test_a_database_that_was_moved_away_is_not_written_to(paths: Paths) -> None:
    connect(paths).ready()
    recorder, moved = recorder_of(paths), paths.tracking_database.with_name("moved.db")
    content = paths.tracking_database.rename(moved).read_bytes()
    try:
        with connect(paths).training_run("data-hash") as run:
            assert recorder_of(paths) == recorder
        with closing(sqlite3.connect(paths.tracking_database)) as database:
            assert database.execute("select run_uuid, status from runs").fetchall() == [(run.run_id, "FINISHED")]
        assert moved.read_bytes() == content
    finally:
        moved.replace(paths.tracking_database)  # which other tests use


def test_a_folder_for_sockets_that_others_can_enter_is_not_used(
    paths: Paths, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    ours = Meeting.of(paths).socket
    assert ours.parent == tmp_path / f"reparam-{os.getuid()}"
    assert ours == Meeting.of(paths).socket
    ours.parent.chmod(0o755)
    other = Meeting.of(paths).socket
    assert other.parent not in (ours.parent, Meeting.of(paths).socket.parent)
    assert other.parent.stat().st_mode & 0o777 == 0o700


def test_a_time_that_is_none_is_refused(paths: Paths, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REPARAM_RECORDER_SECONDS", "soon")
    with pytest.raises(UserError, match=r"^REPARAM_RECORDER_SECONDS: wanted a number of seconds, found 'soon'"):
        connect(paths)


def test_a_tracked_stage_loads_no_mlflow_and_leaves_a_run(paths: Paths, only_run: Callable[..., Row]) -> None:
    script = f"""
import sys
from pathlib import Path
from reparam.config import load_config
from reparam.download import stage as download
from reparam.paths import Paths
download.run(load_config(Path("params.yaml")), Paths(Path.cwd(), Path({str(paths.shared)!r})))
print("mlflow" in sys.modules)
"""
    environment = os.environ | {"PYTHONPATH": str(SOURCE)}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
    assert only_run("-data").data.metrics["files"] == 1


def test_a_store_that_cannot_be_used_stops_a_stage_before_it_starts_its_work(
    paths: Paths, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:1")
    tracker = connect(paths)
    for wait_for_the_store in (tracker.ready, tracker.training_run("data-hash").__enter__):
        with pytest.raises(TrackingError, match=r"^MLflow at http://127.0.0.1:1 cannot be used: .*\nStart the server"):
            wait_for_the_store()


@pytest.mark.usefixtures("clean_spool")
@pytest.mark.parametrize(
    ("number", "how"), [(signal.SIGKILL, "ended; see {log}"), (signal.SIGSTOP, "did not answer within 1 s")]
)
def test_a_stage_goes_on_when_its_recorder_dies_or_hangs_and_nothing_is_lost(
    number: int,
    how: str,
    paths: Paths,
    only_run: Callable[..., Row],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    tracker = connect(paths)
    with tracker.training_run("data-hash") as run:
        recorder, log = recorder_of(paths), Meeting.of(paths).log
        run.set_tags({"before": "yes"})
        wait(lambda: "before" in only_run().data.tags)
        monkeypatch.setattr(channel_module, "ANSWER_SECONDS", 1.0)
        os.kill(recorder, number)
        started = time.monotonic()
        for epoch in range(1, 3_001):  # 400 KB, and a pipe holds 64 KB
            run.log_metrics({"loss": 1 / epoch}, epoch)
        run.log_params({"train.seed": 0})
        assert time.monotonic() - started < 5  # of work; nobody waits
    assert time.monotonic() - started < 20
    assert [record.getMessage() for record in caplog.records] == [GONE + how.format(log=log), STILL_AWAY]
    wait(lambda: not runs_still(recorder))
    assert (only_run().info.status, only_run().data.params) == ("RUNNING", {})

    assert replay(paths) == 3
    row = only_run()
    assert (row.info.status, row.data.params, row.data.metrics) == (
        "FINISHED",
        {"train.seed": "0"},
        {"loss": 1 / 3_000},
    )


STAGE = """
import signal, sys, time
from pathlib import Path
from reparam.paths import Paths
from reparam.track import connect, run
if __name__ == "__main__":
    run.FLUSH_SECONDS = 0
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    paths = Paths(Path.cwd(), Path(sys.argv[1]))
    with connect(paths).training_run("data-hash") as run:
        for epoch in range(1, 100_000):
            run.log_metrics({"epoch": epoch}, epoch)
            print(epoch, flush=True)
            time.sleep(0.05)
"""


@pytest.fixture
def stage(paths: Paths, monkeypatch: pytest.MonkeyPatch) -> Iterator["subprocess.Popen[str]"]:
    """A stage in a process group of its own that logs an epoch every 50 ms; it has logged three."""
    monkeypatch.setenv("PYTHONPATH", str(SOURCE))  # for both: the environment is a part of the recorder's name
    with subprocess.Popen(
        [sys.executable, "-c", STAGE, str(paths.shared)],
        env=dict(os.environ),  # a terminal library adds variables that os.environ does not show
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        assert [process.stdout.readline() for _ in range(3)] == ["1\n", "2\n", "3\n"]
        yield process
        process.kill()


@pytest.mark.parametrize(
    ("number", "code", "group"), [(signal.SIGINT, -2, True), (signal.SIGTERM, 143, True), (signal.SIGTERM, 143, False)]
)
def test_a_signal_that_ends_a_stage_leaves_a_killed_run_with_all_that_was_logged(
    number: int, code: int, group: bool, stage: "subprocess.Popen[str]", only_run: Callable[..., Row]
) -> None:
    (os.killpg if group else os.kill)(stage.pid, number)
    output, errors = stage.stdout.read(), stage.stderr.read()
    assert stage.wait() == code, errors
    row = only_run()
    assert row.info.status == "KILLED"
    assert row.data.metrics["epoch"] >= int(("3\n" + output).split()[-1])


@pytest.mark.usefixtures("clean_spool")
def test_a_stage_that_is_interrupted_again_while_it_waits_for_mlflow_says_so_and_loses_nothing(
    stage: "subprocess.Popen[str]", paths: Paths, only_run: Callable[..., Row]
) -> None:
    recorder = recorder_of(paths)
    os.kill(recorder, signal.SIGSTOP)
    stage.send_signal(signal.SIGTERM)
    time.sleep(0.5)  # it ends its run, which takes an answer
    assert stage.poll() is None
    stage.send_signal(signal.SIGTERM)
    assert stage.stderr.read().splitlines() == [INTERRUPTED]
    assert stage.wait() == 143
    os.kill(recorder, signal.SIGCONT)
    assert replay(paths) > 0
    assert only_run().info.status == "KILLED"


def test_a_stage_that_is_killed_leaves_a_running_run_with_what_had_arrived(
    stage: "subprocess.Popen[str]", only_run: Callable[..., Row]
) -> None:
    stage.kill()
    output, errors = stage.stdout.read(), stage.stderr.read()
    assert errors == ""
    wait(lambda: only_run().data.metrics.get("epoch", 0) >= 3 - 1)
    row = only_run()
    assert row.info.status == "RUNNING"
    assert row.data.metrics["epoch"] <= int(("3\n" + output).split()[-1]) + 4


def test_a_stage_that_fails_before_it_opens_a_run_does_not_wait_for_mlflow(paths: Paths) -> None:
    script = "from pathlib import Path; from reparam import track; from reparam.paths import Paths\n"
    script += "tracker = track.connect(Paths(Path.cwd(), Path.cwd())); raise SystemExit(1)"
    environment = os.environ | {"PYTHONPATH": str(SOURCE)}
    started = time.monotonic()
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (
        1,
        "",
        "",
    )  # the output has ended: the recorder does not hold it
    assert time.monotonic() - started < 5
    assert not paths.tracking_database.with_name(".partial-scratch-mlflow.db").exists()


def test_an_answer_is_not_mixed_with_what_libraries_print(paths: Paths, tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        "import sys\n"
        "if 'reparam.track.recorder' in ' '.join(sys.orig_argv):\n"
        "    import json\n"
        "    dumps = json.dumps\n"
        "    json.dumps = lambda *given, **named: (print('a remark'), dumps(*given, **named))[1]\n"
    )
    script = "from pathlib import Path; from reparam import track; from reparam.paths import Paths\n"
    script += f"paths = Paths(Path.cwd(), Path({str(paths.shared)!r})); track.connect(paths).ready(); print('ready')\n"
    script += "from reparam.track.meeting import Meeting; print(Meeting.of(paths).log.read_text())"
    environment = os.environ | {"PYTHONPATH": f"{SOURCE}{os.pathsep}{tmp_path}"}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("ready\na remark\n")


def test_only_the_first_of_the_processes_of_torchrun_tracks(paths: Paths, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OF_THIS_TEST", "2")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    with connect(paths).training_run("data-hash") as run:
        assert run.run_id == ""
    assert not Meeting.of(paths).socket.exists()
