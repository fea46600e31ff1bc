import os
from pathlib import Path

import pytest

from reparam.threads import choose_wait_policy


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


@pytest.mark.parametrize("load", ["0.00 0.00 0.00 2/345 6789\n", "", "this system tells other things", None])
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
