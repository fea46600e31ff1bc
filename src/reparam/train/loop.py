"""The training loop: epochs, validation, early stopping."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from reparam.config import TrainConfig
from reparam.data.batches import Batches
from reparam.errors import NonFiniteError
from reparam.objectives import Terms
from reparam.runtime import random_stream

Metrics = dict[str, float]


class Totals(NamedTuple):
    """Loss terms of a batch, summed over its images, on the device."""

    terms: Terms  # each (), float64
    images: int

    @classmethod
    def of(cls, terms: Terms) -> "Totals":
        """Sum terms of images. Shapes: each (B,)."""
        return cls(summed(terms), len(terms["loss"]))


def summed(terms: Terms) -> Terms:
    """Sum each term over images. Shapes: (B,) -> ()."""
    # float64, because a large data set would lose its last images in float32.
    return dict(zip(terms, torch.stack(list(terms.values())).sum(1, dtype=torch.float64).unbind(), strict=True))


class Sums:
    """Loss terms summed over the batches of an epoch, on the device: a ragged last batch weighs what it should."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self.totals = torch.zeros(())  # (terms + 1,), float64; the last counts steps since the loss ceased to be finite
        self.images = 0
        self.steps = 0

    def add(self, batch: Totals) -> None:
        """Add a batch, without waiting for the device."""
        terms = batch.terms
        if not self.names:
            self.names = list(terms)
            self.totals = torch.zeros(len(terms) + 1, dtype=torch.float64, device=terms["loss"].device)
        self.totals[:-1] += torch.stack(list(terms.values()))
        # A sum that was NaN or infinite once never recovers, so the first such step can be told afterwards.
        self.totals[-1] += ~self.totals[self.names.index("loss")].isfinite()
        self.images += batch.images
        self.steps += 1

    def is_spoilt(self) -> bool:
        """Wait for the device and say whether the loss was not finite at some step."""
        return self.steps > 0 and self.totals[-1].item() > 0

    def means(self, split: str, epoch: int) -> Metrics:
        """Wait for the device and return means over images, named `<split>_<term>`.

        Raises: NonFiniteError.
        """
        *sums, spoilt = self.totals.tolist()
        means = {name: value / self.images for name, value in zip(self.names, sums, strict=True)}
        if spoilt:
            bad = ", ".join(f"{name} {value}" for name, value in means.items())
            raise NonFiniteError(
                f"train: the {split} loss is no longer finite at epoch {epoch}, step {self.steps - int(spoilt) + 1} of "
                f"{self.steps} ({bad}); lower train.learning_rate in params.yaml, or objective.beta where it is large, "
                "set train.clip_norm, or train.on_nonfinite to rollback"
            )
        return {f"{split}_{name}": value for name, value in means.items()}


@dataclass
class Fit:
    """Where training stands, and what it leaves behind: metrics per epoch, and the weights of the best epoch."""

    history: list[Metrics] = field(default_factory=list)
    best_score: float = math.inf  # lower is better
    best_epoch: int = 0
    best_weights: dict[str, Tensor] = field(default_factory=dict)
    order: Tensor | None = None  # rows of the running epoch, as they are visited
    position: int = 0  # how many of them were visited, by all processes
    seen: Sums = field(default_factory=Sums)  # of the running epoch

    def is_over(self, config: TrainConfig) -> bool:
        """Whether all epochs are done, or the last ones brought nothing better."""
        epochs = len(self.history)
        is_validated = bool(epochs) and "validation_loss" in self.history[-1]
        return epochs >= config.epochs or (is_validated and epochs - self.best_epoch >= config.patience)


class Trainer(Protocol):
    """A model in training."""

    def step(self, x: Tensor) -> Totals:
        """Lower the loss on a batch."""

    def score(self, x: Tensor) -> Totals:
        """Look at a held-out batch."""

    def weights(self) -> dict[str, Tensor]:
        """Return the current weights."""

    def schedules(self) -> Metrics:
        """Return what changes by schedule, as it was at the last step."""

    def check(self, epoch: int) -> None:
        """Wait for the device and see that the weights are finite.

        Raises: NonFiniteError.
        """

    def agree(self, order: Tensor) -> Tensor:
        """Return the order of the first process, where several train together."""

    def gather(self, sums: "Sums") -> "Sums":
        """Add up what all processes saw."""


class Keeper(Protocol):
    """What looks after training from step to step."""

    @property
    def is_stopping(self) -> bool:
        """Whether somebody wants training to end."""

    def after_step(self) -> None:
        """Keep what there is, now and then; end the process where somebody wants that."""

    def after_epoch(self) -> None:
        """Note that all was well so far."""

    def roll_back(self, error: NonFiniteError) -> None:
        """Go back to where all was well, or raise."""


def fit(
    trainer: Trainer,
    data: tuple[Batches, Batches],
    config: TrainConfig,
    log: Callable[[Metrics, int], None],
    state: Fit,
    keeper: Keeper,
) -> None:
    """Train from where `state` stands, until the validation score has not improved for `patience` epochs.

    `data` is training and validation, which may hold no image: then all epochs are trained and the last is the best.
    The device is waited for at the end of an epoch only.

    Raises: NonFiniteError.
    """
    training, validation = data
    while not state.is_over(config):
        epoch, start = len(state.history) + 1, time.perf_counter()
        if state.order is None:
            state.order, state.position, state.seen = trainer.agree(training.draw_order()), 0, Sums()
        before = state.position
        for batch in training.visit(state.order[before:]):
            state.seen.add(trainer.step(batch))
            state.position = min(state.position + config.batch_size, len(training))
            keeper.after_step()
        held_out = _score(trainer, validation, config, keeper)
        try:
            row = {"epoch": float(epoch), **trainer.gather(state.seen).means("train", epoch)}
            row |= held_out.means("validation", epoch) if held_out.images else {}
            row |= trainer.schedules()
            score = _to_minimise(row, config.monitor)
            trainer.check(epoch)
        except NonFiniteError as error:
            keeper.roll_back(error)
            continue
        state.history.append(row)
        state.order = None
        if not held_out.images or score < state.best_score - config.min_delta:
            state.best_score, state.best_epoch = score, epoch
            state.best_weights = {name: tensor.clone() for name, tensor in trainer.weights().items()}
        log(row | {"images_per_second": (len(training) - before) / (time.perf_counter() - start)}, epoch)
        keeper.after_epoch()


def _score(trainer: Trainer, validation: Batches, config: TrainConfig, keeper: Keeper) -> Sums:
    sums = Sums()
    # The same draws every epoch, so that epochs differ by their weights alone.
    with random_stream(config.seed, "validation"), torch.no_grad():
        for batch in validation.ordered(config.seed):
            if keeper.is_stopping:
                break
            sums.add(trainer.score(batch))
    if keeper.is_stopping:
        keeper.after_step()  # outside the random stream, whose state is not that of training
    return sums


def _to_minimise(row: Metrics, monitor: str) -> float:
    """Return the monitored score; NaN without validation."""
    if "validation_loss" not in row:
        return math.nan
    score = -row["validation_elbo"] if monitor == "elbo" else row["validation_loss"]
    if not math.isfinite(score):  # of an ELBO, which the loss need not contain
        raise NonFiniteError(
            f"train: the validation {monitor} is no longer finite at epoch {row['epoch']:.0f} (found "
            f"{row[f'validation_{monitor}']}); set train.monitor to loss in params.yaml, or lower train.learning_rate"
        )
    return score
