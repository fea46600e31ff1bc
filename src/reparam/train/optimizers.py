"""Optimizers, and learning rates that change with the epochs."""

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn

from reparam.config import TrainConfig

Weights = Iterable[nn.Parameter]


def _adam(weights: Weights, config: TrainConfig) -> torch.optim.Optimizer:
    return torch.optim.Adam(weights, **_moments(config), fused=True)


def _adamw(weights: Weights, config: TrainConfig) -> torch.optim.Optimizer:
    return torch.optim.AdamW(weights, **_moments(config), fused=True)


def _adamax(weights: Weights, config: TrainConfig) -> torch.optim.Optimizer:
    return torch.optim.Adamax(weights, **_moments(config))


def _sgd(weights: Weights, config: TrainConfig) -> torch.optim.Optimizer:
    return torch.optim.SGD(
        weights, config.learning_rate, momentum=config.momentum, weight_decay=config.weight_decay, fused=True
    )


def _rmsprop(weights: Weights, config: TrainConfig) -> torch.optim.Optimizer:
    return torch.optim.RMSprop(
        weights, config.learning_rate, eps=config.epsilon, momentum=config.momentum, weight_decay=config.weight_decay
    )


def _moments(config: TrainConfig) -> dict[str, Any]:
    return {
        "lr": config.learning_rate,
        "betas": config.betas,
        "eps": config.epsilon,
        "weight_decay": config.weight_decay,
    }


def rate_at(config: TrainConfig, epoch: float) -> float:
    """Return the learning rate after `epoch` epochs, a fraction within one."""
    rate = config.learning_rate
    if config.schedule == "cosine":
        rate *= 0.5 * (1 + math.cos(math.pi * min(1.0, epoch / config.epochs)))  # Loshchilov & Hutter 2017, eq. 5
    elif config.schedule == "step":
        rate *= config.factor ** (epoch // config.milestones[0])
    elif config.schedule == "milestones":
        rate *= config.factor ** sum(epoch >= milestone for milestone in config.milestones)
    return rate * min(1.0, epoch / config.warmup_epochs) if config.warmup_epochs else rate


def let_capture(optimizer: torch.optim.Optimizer, device: torch.device) -> None:
    """Keep on the device what changes from step to step, so that a CUDA graph of a step can be replayed."""
    for group in optimizer.param_groups:
        group["lr"] = torch.tensor(group["lr"], device=device)
        if "capturable" in group:
            group["capturable"] = True


OPTIMIZERS: dict[str, Callable[[Weights, TrainConfig], torch.optim.Optimizer]] = {
    "adam": _adam,
    "adamw": _adamw,
    "adamax": _adamax,
    "sgd": _sgd,
    "rmsprop": _rmsprop,
}
