"""Small trainings: their parameters, losses and images, with all that looks after them."""

import copy
import itertools
import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from conftest import small_section
from some_cards import image_facts
from torch import Tensor

from reparam.config import ModelConfig, ObjectiveConfig, TrainConfig
from reparam.data.batches import Batches
from reparam.data.pixels import Pixels
from reparam.distributed import ALONE
from reparam.models.build import build_model
from reparam.objectives import OBJECTIVES, Terms
from reparam.train.checkpoint import Checkpoints
from reparam.train.keeper import Keeper
from reparam.train.loop import Data, train
from reparam.train.loss import Loss
from reparam.train.record import Record
from reparam.train.rollback import Rollback
from reparam.train.signals import StopRequest
from reparam.train.state import State
from reparam.train.sums import EpochMetrics, Totals
from reparam.train.trainer import Trainer

CPU = torch.device("cpu")
GREY = np.random.default_rng(0).integers(0, 256, (10, 1, 4, 4), dtype=np.uint8)


# Parameters


def model_config(**changes: Any) -> ModelConfig:
    return small_section("model", **changes)


def objective_config(**changes: Any) -> ObjectiveConfig:
    return small_section("objective", **changes)


def train_config(**changes: Any) -> TrainConfig:
    return small_section("train", **changes)


# What is trained

KINDS: dict[str, dict[str, Any]] = {
    "autoencoder": {"kind": "autoencoder"},
    "vae": {"kind": "vae"},
    "bottom_up": {"kind": "hierarchical", "inference": "bottom_up"},
    "top_down": {"kind": "hierarchical", "inference": "top_down"},
    "fsq": {"kind": "fsq", "levels": (3, 4, 5)},
    "vq": {"kind": "vq", "codes": 8, "dimensions": 3},
}
LAYERS = {"autoencoder": 0, "vae": 1, "bottom_up": 2, "top_down": 2, "fsq": 0, "vq": 0}  # that have a posterior
HAS_CODEBOOK = {"fsq", "vq"}
# From what each objective says of itself, so that a new one need not be listed; `test_combinations.py` checks those
# that we ship by their publications.
REFUSED = {
    (kind, name)
    for kind, (name, objective) in itertools.product(KINDS, OBJECTIVES.items())
    if not objective.layers[0] <= LAYERS[kind] <= objective.layers[1]
    or (kind in HAS_CODEBOOK and not objective.has_any_code)
}
NEEDS_INDEPENDENT_LATENTS = [name for name, objective in OBJECTIVES.items() if not objective.has_any_prior]
SIZES = {"hidden": (8,), "channels": (4, 6), "groups": 2, "latent": 3, "upper": (3, 2), "upper_hidden": (5,)}


def black_and_white(*shape: int) -> Tensor:
    """Draw images, the same each time. Shapes: -> `shape`, uint8."""
    return (255 * torch.bernoulli(torch.full(shape, 0.5), generator=torch.Generator().manual_seed(0))).to(torch.uint8)


def small_loss(
    model: dict[str, Any],
    objective: dict[str, Any] | None = None,
    shape: tuple[int, ...] = (1, 4, 4),
    binarization: str = "none",
) -> Loss:
    """A model of given parameters, always with the same weights, and its objective."""
    torch.manual_seed(0)
    built = build_model(model_config(**model), shape)
    return Loss(built, Pixels(image_facts(binarization)), objective_config(**objective or {}))


def small_trainer(**changes: Any) -> Trainer:
    """A trainer of four epochs of GREY, each of three steps, whose pixels are drawn."""
    config = train_config(**{"epochs": 4, "patience": 100, "batch_size": 4, "learning_rate": 0.01} | changes)
    return Trainer(small_loss({"hidden": (6,), "latent": 2}, binarization="dynamic"), config, len(GREY))


def spoil(trainer: Trainer, value: float = math.nan) -> None:
    """Give a weight a value as a step that was too large does."""
    with torch.no_grad():
        next(trainer.loss.parameters()).view(-1)[0] = value


class FakeTrainer:
    """A trainer that computes nothing, as the loop sees it: it counts images, and steps into its one weight."""

    device = CPU
    world = ALONE
    rate_factor = 1.0

    def __init__(self, config: TrainConfig, epoch_images: int = 4) -> None:
        self.config = config
        self.epoch_images = epoch_images
        self.images = 0
        self.weight = torch.zeros(())
        self.model = SimpleNamespace(state_dict=lambda: {"w": self.weight})

    def slow_down(self, factor: float) -> None:
        self.rate_factor = factor

    def step(self, images: Tensor, labels: Tensor | None = None) -> Totals:
        self.images += len(images)
        self.weight += 1  # in place, as an optimizer does
        return self.trained(images)

    def trained(self, images: Tensor) -> Totals:
        return Totals.of(terms(*[0.0] * len(images)))

    def validate(self, images: Tensor, labels: Tensor | None = None) -> Totals:
        return Totals.of(terms(*[1.0] * len(images)))

    def schedules(self) -> EpochMetrics:
        return {}

    def check(self, epoch: int) -> None:
        pass

    def state_dict(self) -> dict[str, Any]:
        return {"images": self.images, "weight": self.weight}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.images, self.weight = state["images"], state["weight"].clone()


def terms(*loss: float) -> Terms:
    """Terms of so many images, with a KL of 1."""
    return {"loss": torch.tensor(loss), "kl": torch.ones(len(loss))}


# Whole trainings


class Training:
    """A training with all that looks after it, as the stage puts it together; without a directory, no checkpoints."""

    def __init__(self, trainer: Any, directory: Path | None = None, seconds: float = math.inf) -> None:
        self.trainer = trainer
        self.state = State(trainer)
        self.rollback = Rollback(self.state, is_on=trainer.config.on_nonfinite == "rollback")
        checkpoints = None if directory is None else Checkpoints(directory)
        self.keeper = Keeper(self.state, self.rollback, StopRequest(), checkpoints, seconds)
        self.rollback.remember()

    @property
    def record(self) -> Record:
        return self.state.record

    def fit(self, data: Data, log: Callable[[EpochMetrics, int], None] = lambda metrics, epoch: None) -> Record:
        """Train to the end, from wherever the training is."""
        with self.keeper.stop.listening():
            train(self.state, data, self.trainer.config, log, self.rollback, self.keeper)
        return self.record


def small_data() -> Data:
    """GREY, and three of its images held out."""
    return Data(Batches(GREY, 4, CPU), Batches(GREY[:3], 4, CPU))


class Killed(BaseException):
    """The end of a process that leaves nothing but its checkpoints."""


def kill_after(training: Training, steps: int) -> None:
    """Train with GREY until so many steps are done."""
    inner, done = training.keeper.after_step, 0

    def after_step() -> None:
        nonlocal done
        inner()
        done += 1
        if done == steps:
            raise Killed

    training.keeper.after_step = after_step  # type: ignore[method-assign]
    with pytest.raises(Killed):
        training.fit(small_data())


def result_of(training: Training) -> dict[str, Any]:
    """All that a training has come to, which later steps do not change."""
    return {
        "record": copy.deepcopy(training.record.state_dict()),
        "last": copy.deepcopy(training.trainer.loss.state_dict()),
        "next draw": torch.get_rng_state(),
    }


def equal(first: Any, second: Any) -> bool:
    """Whether two states are the same to the last bit, types included."""
    if isinstance(first, Tensor):
        return isinstance(second, Tensor) and first.dtype == second.dtype and torch.equal(first, second)
    if isinstance(first, dict):
        return list(first) == list(second) and all(equal(first[name], second[name]) for name in first)
    return type(first) is type(second) and bool(first == second)
