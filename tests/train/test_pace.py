"""When several processes ask each other whether to save or to end."""

import itertools

import pytest

from reparam.distributed import ALONE, World
from reparam.train.pace import Pace


class Others(World):
    """A process among others, which say nothing, or that they got a signal."""

    heard: tuple[int, int, int] = (0, 0, 0)

    def most(self, *numbers: int) -> list[int]:
        return [max(pair) for pair in zip(numbers, self.heard, strict=True)]


def test_a_process_alone_may_save_or_end_after_every_step() -> None:
    pace = Pace(ALONE, 60)
    assert [pace.is_due() for _ in range(3)] == [True] * 3
    assert pace.ask(wants_to_save=True, signal=0) == (True, 0)
    assert pace.ask(wants_to_save=False, signal=15) == (False, 15)


def test_processes_ask_about_once_a_second_and_at_first_more_often(monkeypatch: pytest.MonkeyPatch) -> None:
    now, asked = 0.0, []
    monkeypatch.setattr("reparam.train.pace.time.monotonic", lambda: now)
    pace = Pace(Others(0, 2), 60)
    for step in range(1, 1000):
        now += 0.01
        if pace.is_due():
            pace.ask(wants_to_save=False, signal=0)
            asked.append(step)
    between = [later - earlier for earlier, later in itertools.pairwise(asked)]
    assert between[:6] == [2, 4, 8, 16, 32, 64]
    assert all(99 <= steps <= 101 for steps in between[6:])


def test_epochs_shorter_than_a_second_leave_the_number_of_steps_small(monkeypatch: pytest.MonkeyPatch) -> None:
    now, planned = 0.0, []
    monkeypatch.setattr("reparam.train.pace.time.monotonic", lambda: now)
    pace = Pace(Others(0, 2), 60)
    for _ in range(100):  # epochs of seven steps, after each of which processes ask, whatever is due
        for _ in range(7):
            now += 0.01
            if pace.is_due():
                pace.ask(wants_to_save=False, signal=0)
        pace.ask(wants_to_save=False, signal=0)
        planned.append(pace._steps)
    assert planned[10:] == [14] * 90


def test_without_time_between_checkpoints_processes_ask_after_every_step() -> None:
    pace = Pace(Others(0, 2), 0)
    for _ in range(5):
        assert pace.is_due()
        assert pace.ask(wants_to_save=True, signal=0) == (True, 0)


def test_the_first_process_decides_when_to_save_and_any_when_to_end(monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = Others(0, 2), Others(1, 2)
    assert Pace(first, 0).ask(wants_to_save=True, signal=0) == (True, 0)
    assert Pace(second, 0).ask(wants_to_save=True, signal=0) == (False, 0)
    monkeypatch.setattr(Others, "heard", (1, 15, 7))
    pace = Pace(second, 0)
    assert pace.ask(wants_to_save=False, signal=0) == (True, 15)
    assert [pace.is_due() for _ in range(7)] == [False] * 6 + [True]  # as the first one says
