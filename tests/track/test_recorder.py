"""The process that speaks to MLflow: what a stage gains by it, and what happens when either of the two dies."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import mlflow
import pytest
from mlflow.entities import Run as Row

from reparam.errors import TrackingError
from reparam.paths import Paths
from reparam.track import channel as channel_module
from reparam.track import connect, replay

SOURCE = Path(__file__).parents[2] / "src"
GONE = "MLflow does not answer, going on without it: the process that speaks to MLflow "
STILL_AWAY = "MLflow is still away: what it missed is kept; deliver it with `reparam replay`"


def children(process: int | None = None) -> list[int]:
    """The processes that a process (this one) started and that still run."""
    tasks = Path(f"/proc/{process or os.getpid()}/task").glob("*/children")
    return [int(child) for task in tasks for child in task.read_text().split()]


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


def test_connecting_waits_for_nothing_and_the_recorder_ends_with_the_tracker(paths: Paths) -> None:
    before = set(children())
    started = time.monotonic()
    tracker = connect(paths)
    assert time.monotonic() - started < 0.5  # MLflow alone takes longer
    (recorder,) = set(children()) - before
    tracker.ready()
    assert runs_still(recorder)
    del tracker
    wait(lambda: not runs_still(recorder), 5)


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
    ("number", "how"), [(signal.SIGKILL, "ended (-9)"), (signal.SIGSTOP, "did not answer within 1 s")]
)
def test_a_stage_goes_on_when_its_recorder_dies_or_hangs_and_nothing_is_lost(
    number: int,
    how: str,
    paths: Paths,
    only_run: Callable[..., Row],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    before = set(children())
    tracker = connect(paths)
    with tracker.training_run("data-hash") as run:
        (recorder,) = set(children()) - before
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
    assert [record.getMessage() for record in caplog.records] == [GONE + how, STILL_AWAY]
    assert not runs_still(recorder)
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
def stage(paths: Paths) -> Iterator["subprocess.Popen[str]"]:
    """A stage in a process group of its own that logs an epoch every 50 ms; it has logged three."""
    with subprocess.Popen(
        [sys.executable, "-c", STAGE, str(paths.shared)],
        env=os.environ | {"PYTHONPATH": str(SOURCE)},
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
def test_a_signal_that_ends_stage_and_recorder_together_leaves_a_killed_run_with_all_that_was_logged(
    number: int, code: int, group: bool, stage: "subprocess.Popen[str]", only_run: Callable[..., Row]
) -> None:
    (recorder,) = children(stage.pid)
    (os.killpg if group else os.kill)(stage.pid, number)
    output, errors = stage.stdout.read(), stage.stderr.read()
    assert stage.wait() == code, errors
    assert not runs_still(recorder)
    row = only_run()
    assert row.info.status == "KILLED"
    assert row.data.metrics["epoch"] >= int(("3\n" + output).split()[-1])


def test_a_stage_that_is_killed_leaves_a_running_run_and_no_recorder(
    stage: "subprocess.Popen[str]", only_run: Callable[..., Row]
) -> None:
    (recorder,) = children(stage.pid)
    stage.kill()
    wait(lambda: not runs_still(recorder), 10)
    output, errors = stage.stdout.read(), stage.stderr.read()
    row = only_run()
    assert (row.info.status, errors) == ("RUNNING", "")
    assert 3 - 1 <= row.data.metrics["epoch"] <= int(("3\n" + output).split()[-1]) + 4  # what had arrived


def test_a_stage_that_fails_before_it_opens_a_run_does_not_wait_for_mlflow(paths: Paths) -> None:
    script = "from pathlib import Path; from reparam import track; from reparam.paths import Paths\n"
    script += "tracker = track.connect(Paths(Path.cwd(), Path.cwd())); raise SystemExit(1)"
    environment = os.environ | {"PYTHONPATH": str(SOURCE)}
    started = time.monotonic()
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (1, "", "")  # the output has ended: the recorder, too
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
    script += f"track.connect(Paths(Path.cwd(), Path({str(paths.shared)!r}))).ready(); print('ready')"
    environment = os.environ | {"PYTHONPATH": f"{SOURCE}{os.pathsep}{tmp_path}"}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "ready\n"), done.stderr
    assert "a remark" in done.stderr


def test_only_the_first_of_the_processes_of_torchrun_tracks(paths: Paths, monkeypatch: pytest.MonkeyPatch) -> None:
    before = children()
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    with connect(paths).training_run("data-hash") as run:
        assert run.run_id == ""
    assert children() == before
