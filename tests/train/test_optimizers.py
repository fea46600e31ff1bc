import math
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from conftest import small_section
from torch import Tensor, nn

from reparam.config import TrainConfig
from reparam.train.optimizers import OPTIMIZERS, build_optimizer, rate_at

Reference = Callable[[Tensor, list[Tensor], SimpleNamespace], Iterator[Tensor]]

START = torch.tensor([0.5, -2.0, 3.0], dtype=torch.float64)
GRADIENTS = [
    torch.tensor(values, dtype=torch.float64) for values in ([0.3, -1.0, 0.0], [-2.0, 0.5, 0.01], [0.1, 4.0, -0.7])
]
# None of them is what torch takes where nothing is said.
CHANGES: dict[str, Any] = {
    "learning_rate": 0.03,
    "betas": (0.8, 0.95),
    "epsilon": 0.01,
    "momentum": 0.6,
    "weight_decay": 0.2,
}


def settings(**changes: Any) -> TrainConfig:
    return small_section("train", **CHANGES | changes)


# Each optimizer as it is published, weight by weight.


def adam(w: Tensor, gradients: list[Tensor], config: SimpleNamespace) -> Iterator[Tensor]:
    """Kingma & Ba 2015, algorithm 1; the decay is a part of the gradient."""
    m, v = torch.zeros_like(w), torch.zeros_like(w)
    first, second = config.betas
    for t, gradient in enumerate(gradients, start=1):
        g = gradient + config.weight_decay * w
        m, v = first * m + (1 - first) * g, second * v + (1 - second) * g**2
        w = w - config.learning_rate * (m / (1 - first**t)) / ((v / (1 - second**t)).sqrt() + config.epsilon)
        yield w


def adamw(w: Tensor, gradients: list[Tensor], config: SimpleNamespace) -> Iterator[Tensor]:
    """Loshchilov & Hutter 2019, algorithm 2, with torch's decay, which is a share of the learning rate."""
    m, v = torch.zeros_like(w), torch.zeros_like(w)
    first, second = config.betas
    for t, g in enumerate(gradients, start=1):
        m, v = first * m + (1 - first) * g, second * v + (1 - second) * g**2
        step = (m / (1 - first**t)) / ((v / (1 - second**t)).sqrt() + config.epsilon)
        w = w - config.learning_rate * (step + config.weight_decay * w)
        yield w


def adamax(w: Tensor, gradients: list[Tensor], config: SimpleNamespace) -> Iterator[Tensor]:
    """Kingma & Ba 2015, algorithm 2, with epsilon added to each absolute gradient."""
    m, u = torch.zeros_like(w), torch.zeros_like(w)
    first, second = config.betas
    for t, gradient in enumerate(gradients, start=1):
        g = gradient + config.weight_decay * w
        m, u = first * m + (1 - first) * g, torch.maximum(second * u, g.abs() + config.epsilon)
        w = w - config.learning_rate / (1 - first**t) * m / u
        yield w


def sgd(w: Tensor, gradients: list[Tensor], config: SimpleNamespace) -> Iterator[Tensor]:
    """Sutskever et al. 2013, with a velocity in units of the gradient."""
    velocity = torch.zeros_like(w)
    for gradient in gradients:
        velocity = config.momentum * velocity + gradient + config.weight_decay * w
        w = w - config.learning_rate * velocity
        yield w


def rmsprop(w: Tensor, gradients: list[Tensor], config: SimpleNamespace) -> Iterator[Tensor]:
    """Tieleman & Hinton 2012, with a decay of 0.99, and momentum."""
    v, velocity = torch.zeros_like(w), torch.zeros_like(w)
    for gradient in gradients:
        g = gradient + config.weight_decay * w
        v = 0.99 * v + 0.01 * g**2
        velocity = config.momentum * velocity + g / (v.sqrt() + config.epsilon)
        w = w - config.learning_rate * velocity
        yield w


REFERENCES: dict[str, Reference] = {"adam": adam, "adamw": adamw, "adamax": adamax, "sgd": sgd, "rmsprop": rmsprop}


def steps(config: TrainConfig) -> list[Tensor]:
    """The weights after each of three steps of an optimizer of ours."""
    weight = nn.Parameter(START.clone())
    optimizer = build_optimizer(iter([weight]), config)
    found = []
    for gradient in GRADIENTS:
        weight.grad = gradient.clone()
        optimizer.step()
        found.append(weight.detach().clone())
    return found


def test_every_optimizer_has_a_reference() -> None:
    assert REFERENCES.keys() == OPTIMIZERS.keys()


@pytest.mark.parametrize("weight_decay", [0.0, 0.2])
@pytest.mark.parametrize("name", REFERENCES)
def test_an_optimizer_follows_its_publication_for_three_steps(name: str, weight_decay: float) -> None:
    config = settings(optimizer=name, weight_decay=weight_decay)
    values = dict(config) | {key: value for block in config.arguments(name) for key, value in block}
    wanted = list(REFERENCES[name](START, GRADIENTS, SimpleNamespace(**values)))
    torch.testing.assert_close(steps(config), wanted, rtol=1e-12, atol=1e-12)


OTHERS = {"learning_rate": 0.02, "weight_decay": 0.1, "betas": (0.7, 0.9), "epsilon": 0.02, "momentum": 0.5}


@pytest.mark.parametrize("parameter", OTHERS)
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_parameter_changes_the_optimizers_that_it_is_of(name: str, parameter: str) -> None:
    config = settings(optimizer=name, **{parameter: OTHERS[parameter]})
    used = {"learning_rate", "weight_decay"}.union(*(type(block).model_fields for block in config.arguments(name)))
    assert torch.equal(steps(config)[-1], steps(settings(optimizer=name))[-1]) == (parameter not in used)


# The learning rate


def test_a_constant_rate_stays_what_it_is() -> None:
    config = settings(schedule="constant", epochs=10, milestones={"epochs": [1], "factor": 0.5}, warmup_epochs=0.0)
    assert [rate_at(config, epoch, epoch) for epoch in (0, 0.5, 1, 5, 10, 1000)] == [0.03] * 6


def test_a_cosine_falls_from_the_rate_to_nothing_in_the_last_epoch() -> None:
    config = settings(schedule="cosine", epochs=12, warmup_epochs=0.0)
    wanted = {0: 1.0, 2: (2 + math.sqrt(3)) / 4, 3: (2 + math.sqrt(2)) / 4, 4: 0.75, 6: 0.5, 8: 0.25, 12: 0.0, 13: 0.0}
    for epoch, share in wanted.items():
        assert rate_at(config, epoch, epoch) == pytest.approx(0.03 * share, rel=1e-12, abs=1e-17)
    assert rate_at(config, 2.5, 2.5) == pytest.approx(0.03 * (1 + math.cos(math.pi * 2.5 / 12)) / 2, rel=1e-12)


def test_a_step_comes_after_each_whole_period() -> None:
    config = settings(schedule="step", step={"epochs": 3, "factor": 0.5}, warmup_epochs=0.0)
    wanted = {0: 1.0, 2: 1.0, 2.999: 1.0, 3: 0.5, 3.5: 0.5, 5.999: 0.5, 6: 0.25, 30: 2.0**-10}
    assert {epoch: rate_at(config, epoch, epoch) for epoch in wanted} == {
        epoch: 0.03 * f for epoch, f in wanted.items()
    }


def test_each_milestone_lowers_the_rate_once_its_epochs_are_done() -> None:
    config = settings(schedule="milestones", milestones={"epochs": [2, 5, 5], "factor": 0.5}, warmup_epochs=0.0)
    wanted = {0: 1.0, 1.999: 1.0, 2: 0.5, 4.999: 0.5, 5: 0.125, 100: 0.125}  # two at once count twice
    assert {epoch: rate_at(config, epoch, epoch) for epoch in wanted} == {
        epoch: 0.03 * f for epoch, f in wanted.items()
    }


def test_a_warm_up_rises_from_nothing_and_is_over_when_it_is_over() -> None:
    config = settings(schedule="constant", warmup_epochs=2.0)
    wanted = {0: 0.0, 0.5: 0.25, 1: 0.5, 1.75: 0.875, 2: 1.0, 2.25: 1.0, 9: 1.0}
    assert {epoch: rate_at(config, epoch, epoch) for epoch in wanted} == {
        epoch: 0.03 * f for epoch, f in wanted.items()
    }


def test_a_warm_up_multiplies_what_the_schedule_says() -> None:
    config = settings(schedule="milestones", milestones={"epochs": [1, 3], "factor": 0.5}, warmup_epochs=2.0)
    wanted = {0.5: 0.25, 1: 0.25, 1.5: 0.375, 2: 0.5, 3: 0.25}
    assert {epoch: rate_at(config, epoch, epoch) for epoch in wanted} == {
        epoch: 0.03 * f for epoch, f in wanted.items()
    }


@pytest.mark.parametrize("stage", range(8))
def test_milestones_can_be_the_schedule_of_burda_et_al(stage: int) -> None:
    # Burda et al. 2016, sec. 5: a rate of 0.001 * 10^(-i/7) for 3^i epochs, i = 0 to 7.
    config = settings(
        schedule="milestones",
        learning_rate=0.001,
        milestones={"epochs": [1, 4, 13, 40, 121, 364, 1093], "factor": 10 ** (-1 / 7)},
        warmup_epochs=0.0,
        epochs=3280,
    )
    start = sum(3**earlier for earlier in range(stage))
    end = start + 3**stage
    for epoch in (start, (start + end) / 2, end - 1e-6):
        assert rate_at(config, epoch, epoch) == pytest.approx(0.001 * 10 ** (-stage / 7), rel=1e-12)
    assert (end == config.epochs) == (stage == 7)
