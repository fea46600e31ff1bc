"""The record of a training: metrics per epoch, and the weights of the best epoch."""

import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from reparam.config import TrainConfig
from reparam.train.sums import EpochMetrics


class Record:
    """Metrics of every epoch, and the score and weights of the best one; it shows when to stop early."""

    def __init__(self) -> None:
        self.history: list[EpochMetrics] = []
        self.best_score = math.inf  # lower is better
        self.best_epoch = 0
        self.best_weights: dict[str, Tensor] = {}

    def is_over(self, config: TrainConfig) -> bool:
        """Return whether all epochs are done, or the last ones brought no improvement."""
        epochs = len(self.history)
        is_validated = bool(epochs) and "validation_loss" in self.history[-1]
        return epochs >= config.epochs or (is_validated and epochs - self.best_epoch >= config.patience)

    def add(self, row: EpochMetrics) -> None:
        """Add the metrics of an epoch."""
        self.history.append(row)

    def keep(self, score: float, weights: Mapping[str, Tensor]) -> None:
        """Keep a copy of weights as those of the best epoch, which is the last one."""
        self.best_score, self.best_epoch = score, len(self.history)
        self.best_weights = {name: weight.clone() for name, weight in weights.items()}

    def state_dict(self) -> dict[str, Any]:
        return {
            "history": self.history,
            "best_score": self.best_score,
            "best_epoch": self.best_epoch,
            "best_weights": self.best_weights,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.history = list(state["history"])
        self.best_score, self.best_epoch = state["best_score"], state["best_epoch"]
        self.best_weights = dict(state["best_weights"])
