"""The training loop: epochs, validation, early stopping."""

import math
import time
from collections.abc import Callable
from typing import NamedTuple

import torch

from reparam.config import TrainConfig
from reparam.data.batches import Batches
from reparam.errors import NonFiniteError
from reparam.runtime import random_stream
from reparam.train.keeper import Keeper
from reparam.train.rollback import Rollback
from reparam.train.state import State
from reparam.train.sums import EpochMetrics, Sums


class Data(NamedTuple):
    """The training images, and held-out images (perhaps none) to choose the best epoch."""

    training: Batches
    validation: Batches


def train(
    state: State,
    data: Data,
    config: TrainConfig,
    log: Callable[[EpochMetrics, int], None],
    rollback: Rollback,
    keeper: Keeper,
) -> None:
    """Train from `state` on, until the validation score has not improved for `patience` epochs.

    Without validation images all epochs are trained and the last is the best. The CPU waits for the device only at the
    end of an epoch, and for a checkpoint.

    Raises: NonFiniteError.
    """
    trainer, epoch, record = state.trainer, state.epoch, state.record
    while not record.is_over(config):
        number, before = len(record.history) + 1, state.position
        start = time.perf_counter()
        if epoch.order is None:
            epoch.begin(trainer.world.agree(torch.randperm(len(data.training))))
        for batch in data.training.visit(epoch.left(before), trainer.world.share):
            epoch.sums.add(trainer.step(*batch))
            keeper.after_step()
        held_out = validate(state, data.validation, config, keeper)
        try:
            row = {"epoch": float(number), **epoch.sums.over(trainer.world).means("train", number)}
            row |= held_out.means("validation", number) if held_out.images else {}
            row |= trainer.schedules()
            score = _to_minimise(row, config.monitor)
            trainer.check(number)
        except NonFiniteError as error:
            rollback.go_back(error)
            continue
        epoch.end()
        record.add(row)
        if not held_out.images or score < record.best_score - config.min_delta:
            record.keep(score, trainer.model.state_dict())
        log(row | {"images_per_second": (len(data.training) - before) / (time.perf_counter() - start)}, number)
        rollback.remember()


def validate(state: State, validation: Batches, config: TrainConfig, keeper: Keeper) -> Sums:
    """Score the held-out images; several processes share out whole batches, as an objective may need a whole one."""
    trainer, sums = state.trainer, Sums(state.trainer.device)
    numbers, own = trainer.world.deal(len(validation), validation.batch_size)
    for number, batch in zip(numbers, validation.visit(own), strict=True):
        if keeper.ends_validation():
            break
        # The same draws in every epoch, so that epochs differ by their weights alone, and for every process.
        with random_stream(config.seed, f"validation {number}"), torch.no_grad():
            found = trainer.validate(*batch)
        sums.add(found if number % trainer.world.size == trainer.world.rank else found.of_nothing())
    keeper.after_validation()
    return sums.over(trainer.world)


def _to_minimise(row: EpochMetrics, monitor: str) -> float:
    """Return the monitored score; NaN without validation."""
    if "validation_loss" not in row:
        return math.nan
    score = -row["validation_elbo"] if monitor == "elbo" else row["validation_loss"]
    if not math.isfinite(score):  # of an ELBO: the loss need not contain it
        raise NonFiniteError(
            f"train: the validation {monitor} is no longer finite at epoch {row['epoch']:.0f} (found "
            f"{row[f'validation_{monitor}']}); set train.monitor to loss in params.yaml, or lower train.learning_rate"
        )
    return score
