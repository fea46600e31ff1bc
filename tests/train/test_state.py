"""All that decides how training goes on, in one dictionary."""

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from training import FakeTrainer, Training, equal, kill_after, small_data, small_trainer, train_config

from reparam.distributed import World
from reparam.train.checkpoint import Checkpoints
from reparam.train.state import State
from reparam.train.sums import Totals

RICH: dict[str, Any] = {"average": 0.9, "on_nonfinite": "rollback", "schedule": "cosine"}


@pytest.mark.parametrize("steps", [1, 3, 5])
def test_every_part_of_a_state_comes_back_from_disk_to_the_last_bit(steps: int, tmp_path: Path) -> None:
    kill_after(training := Training(small_trainer(**RICH)), steps)
    training.trainer.rate_factor = 0.25
    wanted = copy.deepcopy(training.state.state_dict())
    assert list(wanted) == ["trainer", "epoch", "sums", "record", "random"]
    Checkpoints(tmp_path).write(wanted)
    other = Training(small_trainer(**RICH))
    torch.rand(99)
    other.state.load_state_dict(Checkpoints(tmp_path).read())
    found = other.state.state_dict()
    for name, part in wanted.items():
        assert equal(found[name], part), name


class Counter:
    """A part that somebody might add to a training."""

    def __init__(self) -> None:
        self.count = 0
        self.values = torch.zeros(2)

    def state_dict(self) -> dict[str, Any]:
        return {"count": self.count, "values": self.values}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.count, self.values = state["count"], state["values"].clone()


def test_a_new_part_is_saved_and_rolled_back_where_it_is_named_once(tmp_path: Path) -> None:
    training, other = (Training(small_trainer(**RICH), tmp_path, seconds=0) for _ in range(2))
    for one in (training, other):
        one.state.parts["counter"] = Counter()
    counter = training.state.parts["counter"]
    assert isinstance(counter, Counter)
    counter.count, counter.values = 3, torch.tensor([0.1, 0.2])
    training.rollback.remember()
    kill_after(training, 2)
    assert other.keeper.resume()
    assert equal(other.state.parts["counter"].state_dict(), counter.state_dict())
    assert equal(other.rollback.good["counter"], counter.state_dict())


@pytest.mark.parametrize(
    ("images", "epochs", "position"), [(0, 0, 0), (4, 0, 4), (10, 0, 10), (10, 1, 0), (18, 1, 8), (30, 3, 0)]
)
def test_the_position_in_an_epoch_is_read_off_the_one_counter(images: int, epochs: int, position: int) -> None:
    state = State(trainer := FakeTrainer(train_config(), epoch_images=10))  # type: ignore[arg-type]
    for epoch in range(epochs):
        state.record.add({"epoch": epoch + 1.0})
    trainer.images = images
    assert state.position == position


def test_the_position_is_right_after_every_step_and_every_epoch() -> None:
    training, found = Training(small_trainer(epochs=2)), []
    inner = training.keeper.after_step

    def after_step() -> None:
        found.append(training.state.position)
        inner()

    training.keeper.after_step = after_step  # type: ignore[method-assign]
    training.fit(small_data(), lambda _, epoch: found.append(training.state.position))
    assert found == [4, 8, 10, 0] * 2


def test_an_epoch_begins_with_an_order_and_without_sums() -> None:
    state = Training(small_trainer()).state
    assert state.epoch.state_dict() == {}
    state.epoch.sums.add(Totals.of({"loss": torch.ones(3)}))
    state.epoch.begin(order := torch.tensor([2, 0, 1]))
    assert (state.epoch.sums.images, state.epoch.sums.steps) == (0, 0)
    assert torch.equal(state.epoch.state_dict()["order"], order)


# Several processes


def test_a_process_goes_on_with_its_own_noise_and_sums_and_with_all_else_of_the_first() -> None:
    kill_after(first := Training(small_trainer()), 2)
    saved = copy.deepcopy(first.state.state_dict())
    kill_after(second := Training(small_trainer()), 1)
    own = copy.deepcopy(second.state.own_part(second.state.state_dict()))
    noise = torch.rand(5)
    third = Training(small_trainer()).state
    third.load_state_dict(third.with_own_part(saved, own))
    assert torch.equal(torch.rand(5), noise)
    assert (third.epoch.sums.images, third.epoch.sums.steps) == (4, 1)
    assert equal(third.trainer.state_dict(), saved["trainer"])
    assert torch.equal(third.epoch.order, first.state.epoch.order)


def test_no_two_processes_begin_with_the_same_noise() -> None:
    state = Training(small_trainer()).state
    found = []
    for rank in (0, 1, 2):
        torch.manual_seed(train_config().seed)
        state.trainer.world = World(rank, 3)
        state.separate_processes()
        found.append(torch.initial_seed())
    assert found == [train_config().seed + rank for rank in (0, 1, 2)]
