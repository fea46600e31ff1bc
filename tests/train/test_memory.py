import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from conftest import SMALL, change
from some_cards import image_facts
from torch import Tensor

from reparam.config import Config
from reparam.data.batches import Batches
from reparam.distributed import World
from reparam.errors import ParamsError
from reparam.train import memory
from reparam.train.memory import check_memory

CPU = torch.device("cpu")
DATA = image_facts().model_copy(update={"shape": (1, 8, 8)})


@pytest.fixture
def has(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Let the machine have so many bytes of memory."""
    return lambda size: monkeypatch.setattr(memory, "_memory", lambda _place: size)


def images(count: int) -> Batches:
    """So many images, which take no memory."""
    return Batches(np.broadcast_to(np.zeros((1, 1, 8, 8), np.uint8), (count, 1, 8, 8)), 100, CPU)


def config(**changes: dict[str, Any]) -> Config:
    params = copy.deepcopy(SMALL)
    for section, values in changes.items():
        change(params[section], values)
    return Config.model_validate(params)


def test_weights_and_their_gradients_must_fit(has: Callable[[int], None]) -> None:
    # 64-16-6 and 3-16-64, with biases: 2,294 numbers.
    numbers = (64 + 1) * 16 + (16 + 1) * 6 + (3 + 1) * 16 + (16 + 1) * 64
    has(2 * 4 * numbers - 1)
    with pytest.raises(ParamsError, match=r"params.yaml: model: wanted .* lower model.latent, or .* in model.mlp$"):
        check_memory(config(), DATA, images(200_000))


def test_a_model_wider_than_any_machine_is_refused_before_it_is_made() -> None:
    with pytest.raises(ParamsError, match=r"params.yaml: model: wanted a model that can be trained in"):
        check_memory(config(model={"hidden": [65_536] * 100}), DATA, images(200_000))


def test_a_step_must_fit(has: Callable[[int], None]) -> None:
    has(10 * 2**20)
    check_memory(config(train={"batch_size": 1_000}), DATA, images(200_000))
    with pytest.raises(ParamsError, match=r"params.yaml: train.batch_size: wanted .*, found 100000, with which a step"):
        check_memory(config(train={"batch_size": 100_000}), DATA, images(200_000))


def test_no_batch_is_larger_than_the_split(has: Callable[[int], None]) -> None:
    has(10 * 2**20)
    check_memory(config(train={"batch_size": 10**9}), DATA, images(100))


def test_each_process_needs_memory_for_its_part_of_the_batch(
    has: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    large, world = config(train={"batch_size": 100_000}), World(rank=0, size=100)
    has(10 * 2**20)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "1")
    check_memory(large, DATA, images(200_000), world=world)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "100")
    with pytest.raises(ParamsError, match=r"wanted a step that fits into 0.0 GiB of memory for each process, found"):
        check_memory(large, DATA, images(200_000), world=world)


def test_what_a_step_keeps_is_what_torch_keeps() -> None:
    layer = torch.nn.Linear(3, 5, device="meta")

    class Step(torch.nn.Sequential):
        def forward(self, images: Tensor, _labels: Tensor | None) -> Tensor:
            return super().forward(images)

    step = Step(layer, torch.nn.Sigmoid(), torch.nn.Linear(5, 2, device="meta"))
    # The input, the weight of the second layer, and what the sigmoid put out, which both it and the layer need.
    assert memory._bytes_of_step(step, torch.empty(7, 3, device="meta"), None) == 4 * (7 * 3 + 2 * 5 + 7 * 5)


def test_the_memory_of_this_machine_is_a_matter_of_gigabytes() -> None:
    assert 2**28 < memory._memory(CPU) < 2**50
