"""The command: joined, run, shown."""

import signal
import subprocess
from collections.abc import Callable, Iterator
from types import SimpleNamespace

import pytest
from filelock import Timeout
from in_process import InProcess
from sweeps import Sweeps

from reparam import track
from reparam.sweep import result
from reparam.sweep import run as command
from reparam.sweep.plan import spell_value
from reparam.sweep.worker import gate

Reparam = Callable[..., tuple[int, str]]


@pytest.fixture(autouse=True)
def signals() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture(autouse=True)
def repository(sweeps: Sweeps) -> None:
    subprocess.run(["git", "init", "--quiet"], cwd=sweeps.paths.root, check=True)


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Put back what the command sets for its processes."""
    for name in ("REPARAM_SWEEP_STORAGE", "REPARAM_PARENT_RUN", "OMP_NUM_THREADS"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)


def test_the_table_has_the_best_first_and_the_best_can_be_applied(
    sweeps: Sweeps, reparam: Reparam, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("socket.gethostname", lambda: "here")
    sweeps.write(sampler="grid", parameters={"model.latent": [2, 4], "train.seed": [0, 1]}, trials=None)
    sweeps.behave("begin(); sys.exit(1) if number == 2 else finish(-100.0 - number % 3)")
    code, printed = reparam("sweep", "sweep.yaml")
    lines = printed.splitlines()
    table = lines.index(next(line for line in lines if line.startswith("trial")))
    assert lines[table].split() == ["trial", "elbo_validation", "latent", "seed"]
    rows = [line.split() for line in lines[table + 1 : table + 5]]
    assert [row[:3] for row in rows[:3]] == [
        ["s-0", "done", "-100.00"],
        ["s-3", "done", "-100.00"],
        ["s-1", "done", "-101.00"],
    ]
    assert rows[3][:2] == ["s-2", "failed"]
    assert lines[table + 5 :] == [
        f"s-2: `dvc exp run` ended with code 1; see {sweeps.paths.sweeps / 's/2.log'}",
        "reports/sweeps/s/history.png: written",
        "reports/sweeps/s/importance.png: written",
        "best: s-0 (on here); `dvc exp apply s-0` brings it back, then `dvc repro` runs the stages after evaluate",
    ]
    assert code == 0
    for name in ("history", "importance"):
        assert (sweeps.paths.sweep_reports / f"s/{name}.png").read_bytes().startswith(b"\x89PNG")


def test_processes_that_end_a_study_together_draw_one_after_the_other(
    sweeps: Sweeps, reparam: Reparam, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = []

    def show(*_: object) -> None:
        with pytest.raises(Timeout):
            gate(sweeps.paths).acquire(timeout=0)
        shown.append("alone")

    monkeypatch.setattr("reparam.sweep.result.show", show)
    assert reparam("sweep", "sweep.yaml")[0] == 0
    assert shown == ["alone"]
    gate(sweeps.paths).acquire(timeout=0).lock.release()


def test_what_cannot_be_drawn_is_said(sweeps: Sweeps, reparam: Reparam, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise RuntimeError("too few trials")

    monkeypatch.setattr("optuna.visualization.matplotlib.plot_optimization_history", refuse)
    sweeps.write(trials=1)
    code, printed = reparam("sweep", "sweep.yaml")
    assert code == 0
    assert "no plot of history: too few trials\nimportance: The number of trials is too small" in printed


@pytest.mark.parametrize(
    ("values", "direction", "limits"),
    [
        ([1.0, 2.0, 3.0, 4.0], "minimize", None),
        ([5.0, 5.0, 5.0], "minimize", None),
        ([100.0, 101.0, 110.0], "minimize", None),
        ([100.0, 101.0, 102.0, 101.5, 100.8, 90.0], "minimize", None),  # the best is far from the others
        ([0.1, 0.11, 0.12, 0.9], "maximize", None),
        ([100.0, 102.0, 104.0, 5e25], "minimize", (99.8, 104.2)),
        ([5.0, 5.0, 5.0, 5e25], "minimize", (4.75, 5.25)),
        ([-1e9, 100.0, 102.0, 103.0], "maximize", (99.85, 103.15)),
    ],
)
def test_the_plot_of_values_is_not_squeezed_by_a_few_that_are_much_worse(
    values: list[float], direction: str, limits: tuple[float, float] | None
) -> None:
    axes = SimpleNamespace(set_ylim=lambda *found: setattr(axes, "found", found), found=None)
    assert result._cut(axes, values, direction) == (limits is not None)
    assert axes.found == (limits and pytest.approx(limits))


def test_what_the_plot_of_values_leaves_out_is_said(sweeps: Sweeps, reparam: Reparam) -> None:
    sweeps.behave("begin(); finish(-1e25 if number == 2 else -100.0 - number)")
    code, printed = reparam("sweep", "sweep.yaml")
    assert code == 0
    assert "history: trials that are much worse than the others are not shown" in printed
    assert "-1e+25" in printed


def test_a_value_of_thirty_digits_is_spelled_short() -> None:
    values = {123.456: "123.46", -0.001: "0.00", 49765008874045003238735872.0: "5e+25", None: ""}
    assert {value: spell_value(value) for value in values} == values


def test_a_study_of_which_no_trial_is_done_says_so(sweeps: Sweeps, reparam: Reparam) -> None:
    sweeps.write(trials=1)
    sweeps.behave("sys.exit(1)")
    code, printed = reparam("sweep", "sweep.yaml")
    assert (code, printed.splitlines()[-1]) == (0, "no trial is done")


def test_several_workers_share_the_trials_and_the_threads(
    sweeps: Sweeps, reparam: Reparam, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[list[str]] = []
    ended: list[str] = []

    class Worker:
        def __init__(self, arguments: list[str], environment: dict[str, str]) -> None:
            started.append([*arguments[1:], environment["OMP_NUM_THREADS"]])

        def wait(self) -> None:
            ended.append("wait")

        def end(self) -> None:
            ended.append("end")

    monkeypatch.setattr(command, "Leashed", Worker)
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(8)))
    assert reparam("sweep", "sweep.yaml", "--workers", "3", "--n-trials", "2")[0] == 0
    assert started == [["-m", "reparam.sweep.worker", "sweep.yaml", "2", "2"]] * 2
    assert ended == ["wait", "wait", "end", "end"]


def test_an_interrupted_study_says_how_it_goes_on(
    sweeps: Sweeps, reparam: Reparam, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object) -> None:
        signal.raise_signal(signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr("reparam.sweep.trial._report", interrupt)
        code, printed = reparam("sweep", "sweep.yaml")
    assert (code, printed.strip()) == (130, "interrupted; `reparam sweep sweep.yaml` goes on")
    code, printed = reparam("sweep", "sweep.yaml")
    assert code == 0
    assert [name for name, *_ in sweeps.calls()][-3:] == ["s-1", "s-2", "s-3"]


def test_mistakes_are_refused_before_a_trial(sweeps: Sweeps, reparam: Reparam) -> None:
    sweeps.write(parameters={"model.latents": [2]})
    code, printed = reparam("sweep", "sweep.yaml")
    assert (code, printed) == (
        1,
        "error: sweep.yaml: 1 problem\n  parameters.model.latents: no such parameter; did you mean 'model.latent'?\n",
    )
    assert not (sweeps.paths.root / "calls.jsonl").exists()


@pytest.mark.parametrize(
    ("address", "shown", "reason"),
    [
        ("nonsense", "nonsense", "Could not parse SQLAlchemy URL"),
        ("sqlite:////proc/no/studies.db", "sqlite:////proc/no/studies.db", "No such file or directory"),
        ("mysql+nodriver://me:Geheim@host/x", "mysql+nodriver://***@host/x", "Can't load plugin"),
    ],
)
def test_a_database_that_cannot_be_used_is_named_without_its_password(
    sweeps: Sweeps, reparam: Reparam, address: str, shown: str, reason: str
) -> None:
    code, printed = reparam("sweep", "sweep.yaml", "--storage", address)
    assert code == 1
    assert printed.startswith(f"error: --storage {shown}: wanted a database that SQLAlchemy can open, found: ")
    assert reason in printed
    assert "Geheim" not in printed


def test_experiments_that_have_the_names_of_a_new_study_are_in_its_way(sweeps: Sweeps, reparam: Reparam) -> None:
    root = sweeps.paths.root
    git = ["git", "-C", str(root), "-c", "user.name=n", "-c", "user.email=e@example.org"]
    subprocess.run([*git, "commit", "--quiet", "--allow-empty", "--message", "first"], check=True)
    for name in ("s-0", "s-10", "others-1"):
        subprocess.run([*git, "update-ref", f"refs/exps/ab/cdef/{name}", "HEAD"], check=True)
    code, printed = reparam("sweep", "sweep.yaml")
    assert (code, printed) == (
        1,
        "error: study s: wanted names that no experiment has, found s-0, s-10; give the study another name, or run "
        "`dvc exp remove s-0 s-10`\n",
    )


@pytest.fixture
def tracker(sweeps: Sweeps, monkeypatch: pytest.MonkeyPatch) -> InProcess:
    """The store that the processes of a study log to."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    opened = InProcess.open(sweeps.paths)
    monkeypatch.setattr(track, "connect", lambda _paths: opened)
    return opened


def test_the_study_is_one_run_of_mlflow_with_its_settings_best_value_and_plots(
    sweeps: Sweeps, tracker: InProcess
) -> None:
    sweeps.behave("begin(); finish(-50.0 if os.environ['REPARAM_PARENT_RUN'] else -60.0)")
    for count in (2, 3):
        command.run(sweeps.file, sweeps.paths, count=count)
    (row,) = tracker.rows()
    assert (row.info.run_name, row.info.status) == ("s", "FINISHED")
    assert (row.data.params["study"], row.data.params["sampler"]) == ("s", "random")
    assert row.data.metrics == {"best/elbo_validation": -50.0}
    assert row.data.tags["reparam.best_trial"] == "s-0"
    assert sorted(tracker.artifacts(row.info.run_id)) == ["history.png", "importance.png"]


def test_a_machine_with_a_store_of_its_own_leaves_the_run_of_the_first_one_alone(
    sweeps: Sweeps, tracker: InProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    sweeps.behave("begin(); finish(-50.0)")
    for machine, count in (("first", 1), ("second", 2), ("first", 3)):
        monkeypatch.setattr("reparam.sweep.study.platform.node", lambda machine=machine: machine)
        command.run(sweeps.file, sweeps.paths, count=count)
    rows = tracker.rows()
    assert [(row.info.run_name, row.info.status) for row in rows] == [("s", "FINISHED")] * 2
    assert [row.data.params["study"] for row in rows] == ["s", "s"]
