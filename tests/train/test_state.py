"""All that decides how training goes on, in one dictionary."""

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from training import FakeTrainer, Training, equal, kill_after, small_data, small_trainer, train_config

from reparam.train.checkpoint import Checkpoints
from reparam.train.distributed import World
from reparam.train.state import State
from reparam.train.sums import Totals

RICH: dict[str, Any] = {"average": 0.9, "on_nonfinite": "rollback", "schedule": "cosine"}


@pytest.mark.parametrize("steps", [1, 3, 5])
def test_every_part_of_a_state_comes_back_from_disk_to_the_last_bit(steps: int, tmp_path: Path) -> None:
    kill_after(training := Training(small_trainer(**RICH)), steps)
    training.trainer.rate_factor = 0.25
    wanted = copy.deepcopy(training.state.state_dict())
    assert list(wanted) == ["trainer", "epoch", "record", "random"]
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
    assert state.epoch.state_dict()["order"] == {}
    state.epoch.sums.add(Totals.of({"loss": torch.ones(3)}))
    state.epoch.begin(order := torch.tensor([2, 0, 1]))
    assert (state.epoch.sums.images, state.epoch.sums.steps) == (0, 0)
    assert torch.equal(state.epoch.state_dict()["order"]["rows"], order)


# Several processes


def in_process(rank: int) -> State:
    """The state of one of two processes, after it loaded what the first one saved after 8 images."""
    kill_after(first := Training(small_trainer()), 2)
    saved = copy.deepcopy(first.state.state_dict())
    training = Training(small_trainer())
    training.trainer.world = World(rank, 2)
    training.state.load_state_dict(saved)
    return training.state


def test_processes_that_go_on_draw_different_noise_and_count_what_was_summed_once() -> None:
    first, its_noise = in_process(0), torch.rand(5)
    second, other_noise = in_process(1), torch.rand(5)
    assert not torch.equal(its_noise, other_noise)
    assert (first.epoch.sums.images, second.epoch.sums.images) == (8, 0)
    assert second.epoch.sums.totals.tolist() == [0.0] * len(first.epoch.sums.totals)
    assert first.epoch.sums.steps == second.epoch.sums.steps == 2
    assert torch.equal(first.epoch.order, second.epoch.order)


def test_the_noise_of_another_process_is_a_function_of_seed_rank_and_how_far_training_is() -> None:
    in_process(1)
    found = torch.rand(5)
    torch.manual_seed(train_config().seed + 1 + 2 * 8)
    assert torch.equal(found, torch.rand(5))
