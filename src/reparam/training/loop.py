"""The training loop: epochs, validation, early stopping."""

import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from reparam.config import TrainConfig
from reparam.data.batches import Batches
from reparam.errors import NonFiniteError
from reparam.objectives import Terms
from reparam.runtime import random_stream

Metrics = dict[str, float]


@dataclass
class Fit:
    """What training leaves behind: metrics per epoch, and the weights of the epoch with the best validation score."""

    history: list[Metrics] = field(default_factory=list)
    best_score: float = math.inf  # lower is better
    best_epoch: int = 0
    best_weights: dict[str, Tensor] = field(default_factory=dict)


def fit(
    step: Callable[[Tensor], Terms],
    score: Callable[[Tensor], Terms],
    weights: Callable[[], dict[str, Tensor]],
    data: tuple[Batches, Batches],
    config: TrainConfig,
    log: Callable[[Metrics, int], None],
) -> Fit:
    """Train until the validation score has not improved for `patience` epochs.

    `step` trains on a batch and `score` only looks at it; `weights` reads the current weights; `data` is training and
    validation, which may hold no image: then all epochs are trained and the last is the best. The device is waited
    for once per epoch.

    Raises: NonFiniteError.
    """
    training, validation = data
    result = Fit()
    for epoch in range(1, config.epochs + 1):
        start = time.perf_counter()
        seen = Sums(step(batch) for batch in training.shuffled())
        # The same draws every epoch, so that epochs differ by their weights alone.
        with random_stream(config.seed, "validation"), torch.no_grad():
            held_out = Sums(score(batch) for batch in validation.ordered(config.seed))
        row = {"epoch": float(epoch), **seen.means("train", epoch)}
        row |= held_out.means("validation", epoch) if held_out.images else {}
        result.history.append(row)
        log(row | {"images_per_second": len(training) / (time.perf_counter() - start)}, epoch)

        score_now = _to_minimise(row, config.monitor)
        if held_out.images and not math.isfinite(score_now):  # of an ELBO, which the loss need not contain
            raise NonFiniteError(
                f"train: the validation {config.monitor} is no longer finite at epoch {epoch} (found "
                f"{row[f'validation_{config.monitor}']}); set train.monitor to loss in params.yaml, or lower "
                "train.learning_rate"
            )
        if not held_out.images or score_now < result.best_score:
            result.best_score, result.best_epoch = score_now, epoch
            result.best_weights = {name: tensor.clone() for name, tensor in weights().items()}
        elif epoch - result.best_epoch >= config.patience:
            break
    return result


def _to_minimise(row: Metrics, monitor: str) -> float:
    return -row.get("validation_elbo", math.nan) if monitor == "elbo" else row.get("validation_loss", math.nan)


class Sums:
    """Loss terms summed over images, on the device: a ragged last batch weighs what it should."""

    def __init__(self, batches: Iterable[Terms]) -> None:
        self.sums: dict[str, Tensor] = {}
        self.images = 0
        self.steps = 0
        self.spoilt = torch.zeros(())  # steps since the loss ceased to be finite
        for terms in batches:
            for name, values in terms.items():
                # float64, because a large data set would lose its last images in float32.
                total = values.double().sum()
                self.sums[name] = self.sums[name] + total if name in self.sums else total
            self.images += len(terms["loss"])
            self.steps += 1
            # A sum that was NaN or infinite once never recovers, so the first such step can be told afterwards.
            self.spoilt = self.spoilt.to(self.sums["loss"].device) + ~self.sums["loss"].isfinite()

    def means(self, split: str, epoch: int) -> Metrics:
        """Wait for the device and return means over images, named `<split>_<term>`.

        Raises: NonFiniteError.
        """
        *sums, spoilt = torch.stack([*self.sums.values(), self.spoilt.double()]).tolist()
        means = {name: value / self.images for name, value in zip(self.sums, sums, strict=True)}
        if spoilt:
            bad = ", ".join(f"{name} {value}" for name, value in means.items())
            raise NonFiniteError(
                f"train: the {split} loss is no longer finite at epoch {epoch}, step {self.steps - int(spoilt) + 1} of "
                f"{self.steps} ({bad}); lower train.learning_rate in params.yaml, or objective.beta where it is large"
            )
        return {f"{split}_{name}": value for name, value in means.items()}
