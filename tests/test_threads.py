import os
from pathlib import Path

import pytest

from reparam.threads import choose_wait_policy


@pytest.fixture(autouse=True)
def _undecided(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)


def load_of(tmp_path: Path, running: int) -> Path:
    path = tmp_path / "loadavg"
    path.write_text(f"1.00 2.00 3.00 {running}/345 6789\n")
    return path


def policy() -> str | None:
    # monkeypatch undoes what it set itself, and this was set by the code under test.
    return os.environ.pop("OMP_WAIT_POLICY", None)


def test_alone_on_a_machine_waiting_threads_do_as_openmp_likes(tmp_path: Path) -> None:
    choose_wait_policy(tmp_path, load_of(tmp_path, 1))
    assert policy() is None


def test_beside_others_waiting_threads_sleep(tmp_path: Path) -> None:
    choose_wait_policy(tmp_path, load_of(tmp_path, 2))
    assert policy() == "PASSIVE"


@pytest.mark.parametrize("workspace", ["repo/.dvc/tmp/exps/tmpab12", "repo/.dvc/tmp/exps/standalone/tmpab12/sub"])
def test_experiments_that_may_run_side_by_side_sleep_whatever_the_load(tmp_path: Path, workspace: str) -> None:
    choose_wait_policy(tmp_path / workspace, load_of(tmp_path, 1))
    assert policy() == "PASSIVE"


def test_the_user_has_the_last_word(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    choose_wait_policy(tmp_path / ".dvc/tmp/exps/a", load_of(tmp_path, 9))
    assert os.environ["OMP_WAIT_POLICY"] == "ACTIVE"


@pytest.mark.parametrize("text", ["", "no such numbers here at all"])
def test_a_system_that_does_not_tell_is_taken_for_quiet(tmp_path: Path, text: str) -> None:
    (tmp_path / "loadavg").write_text(text)
    choose_wait_policy(tmp_path, tmp_path / "loadavg")
    assert policy() is None
    choose_wait_policy(tmp_path, tmp_path / "missing")
    assert policy() is None
