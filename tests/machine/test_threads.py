import os
from pathlib import Path

import pytest

from reparam.machine import threads
from reparam.machine.threads import choose_wait_policy, others_came


@pytest.fixture(autouse=True)
def undecided(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_WAIT_POLICY", "")  # put back at the end, whatever the code under test sets
    del os.environ["OMP_WAIT_POLICY"]


def machine(path: Path, load: str | None) -> Path:
    (path / "proc").mkdir()
    (path / "dev").mkdir()
    if load is not None:
        (path / "proc/loadavg").write_text(load)
    return path


def test_waiting_threads_spin_on_a_quiet_machine(tmp_path: Path) -> None:
    choose_wait_policy(tmp_path, machine(tmp_path, "1.00 2.00 3.00 1/345 6789\n"))
    assert os.environ["OMP_WAIT_POLICY"] == "ACTIVE"


def test_waiting_threads_sleep_where_another_process_computes_for_this_one(tmp_path: Path) -> None:
    choose_wait_policy(tmp_path, machine(tmp_path, "1.00 2.00 3.00 1/345 6789\n"), computes=False)
    assert os.environ["OMP_WAIT_POLICY"] == "PASSIVE"


@pytest.mark.parametrize("load", ["0.00 0.00 0.00 2/345 6789\n", "", "this system says other things", None])
def test_waiting_threads_sleep_where_others_may_compute(tmp_path: Path, load: str | None) -> None:
    choose_wait_policy(tmp_path, machine(tmp_path, load))
    assert os.environ["OMP_WAIT_POLICY"] == "PASSIVE"


@pytest.mark.parametrize("workspace", [("one",), ("standalone", "one", "below")])
def test_waiting_threads_sleep_in_experiments_that_may_run_side_by_side(
    tmp_path: Path, workspace: tuple[str, ...]
) -> None:
    choose_wait_policy(
        Path(tmp_path, ".dvc", "tmp", "exps", *workspace), machine(tmp_path, "0.00 0.00 0.00 1/345 6789\n")
    )
    assert os.environ["OMP_WAIT_POLICY"] == "PASSIVE"


def test_waiting_threads_sleep_beside_a_gpu(tmp_path: Path) -> None:
    (machine(tmp_path, "0.00 0.00 0.00 1/345 6789\n") / "dev/nvidia0").touch()
    choose_wait_policy(tmp_path, tmp_path)
    assert os.environ["OMP_WAIT_POLICY"] == "PASSIVE"


def test_the_user_has_the_last_word(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    choose_wait_policy(tmp_path, machine(tmp_path, "9.00 9.00 9.00 9/345 6789\n"))
    assert os.environ["OMP_WAIT_POLICY"] == "ACTIVE"


# Others who come later


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "THOROUGH", (3, 0.0))
    monkeypatch.setattr(threads, "_spin_by_choice", False)


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize(("running", "come"), [(1, False), (2, False), (3, True), (9, True)])
def test_others_come_when_more_threads_run_than_ours(running: int, come: bool, tmp_path: Path) -> None:
    machine(tmp_path, "0.00 0.00 0.00 1/345 6789\n")
    choose_wait_policy(tmp_path, tmp_path)
    (tmp_path / "proc/loadavg").write_text(f"0.00 0.00 0.00 {running}/345 6789\n")
    assert others_came(2, tmp_path) == come


@pytest.mark.usefixtures("quick")
def test_nobody_comes_where_threads_sleep_already(tmp_path: Path) -> None:
    machine(tmp_path, "0.00 0.00 0.00 9/345 6789\n")
    choose_wait_policy(tmp_path, tmp_path)
    assert os.environ["OMP_WAIT_POLICY"] == "PASSIVE"
    assert not others_came(2, tmp_path)


@pytest.mark.usefixtures("quick")
def test_a_policy_of_the_user_is_never_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    machine(tmp_path, "0.00 0.00 0.00 1/345 6789\n")
    choose_wait_policy(tmp_path, tmp_path)
    (tmp_path / "proc/loadavg").write_text("0.00 0.00 0.00 9/345 6789\n")
    assert not others_came(2, tmp_path)
