import subprocess
from pathlib import Path

import pytest

from reparam.machine.git import ask


def test_the_answer_of_git_has_no_newline(tmp_path: Path) -> None:
    subprocess.run(["git", "init", "-q", "-b", "trunk", tmp_path], check=True)
    assert ask(tmp_path, "symbolic-ref", "--short", "HEAD") == "trunk"


def test_a_command_that_fails_has_no_answer(tmp_path: Path) -> None:
    assert ask(tmp_path, "rev-parse", "HEAD") is None


def test_without_git_there_is_no_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert ask(tmp_path, "--version") is None
