import os
from pathlib import Path

import pytest
from filelock import FileLock

from reparam.machine import gpus


@pytest.fixture(autouse=True)
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine whose GPUs nobody has taken."""
    monkeypatch.setattr(gpus.tempfile, "gettempdir", lambda: str(tmp_path))
    for name in ("CUDA_VISIBLE_DEVICES", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)


def processes(count: int, number: int, monkeypatch: pytest.MonkeyPatch, **environment: str) -> list[list[FileLock]]:
    """Let processes choose among so many GPUs, and return what each holds; its choice is in the environment."""
    held: list[list[FileLock]] = []
    for _ in range(number):
        held.append([])
        monkeypatch.setattr(gpus, "_taken", held[-1])
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        gpus.take_one(count)
        choices.append(os.environ.pop("CUDA_VISIBLE_DEVICES", None))
    return held


choices: list[str | None] = []


@pytest.fixture(autouse=True)
def no_choices() -> None:
    choices.clear()


def test_processes_take_the_gpu_that_the_fewest_others_have(monkeypatch: pytest.MonkeyPatch) -> None:
    held = processes(2, 5, monkeypatch)
    assert choices == ["0", "1", "0", "1", "0"]
    for lock in held[1]:  # that process ended
        lock.release()
    choices.clear()
    processes(2, 2, monkeypatch)
    assert choices == ["1", "1"]


def test_they_choose_among_those_that_the_user_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    processes(2, 3, monkeypatch, CUDA_VISIBLE_DEVICES="3,MIG-a/1")
    assert choices == ["3", "MIG-a/1", "3"]


@pytest.mark.parametrize("count", [0, 1])
def test_without_a_choice_nothing_is_taken(count: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert processes(count, 2, monkeypatch) == [[], []]
    assert (choices, list(tmp_path.iterdir())) == ([None, None], [])


def test_under_torchrun_each_process_has_the_gpu_of_its_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    assert processes(4, 2, monkeypatch, LOCAL_RANK="1") == [[], []]


def test_a_process_chooses_once(monkeypatch: pytest.MonkeyPatch) -> None:
    (held,) = processes(2, 1, monkeypatch)
    gpus.take_one(2)
    assert len(held) == 1
    assert "CUDA_VISIBLE_DEVICES" not in os.environ
