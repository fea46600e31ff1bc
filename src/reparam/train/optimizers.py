"""Optimizers, and learning rates that change with the epochs."""

import inspect
import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn

from reparam.config import TrainConfig

Weights = Iterable[nn.Parameter]
WRAPPED = ("add_param_group", "load_state_dict", "state_dict", "zero_grad")


def _without_compiler(kind: type[torch.optim.Optimizer]) -> Callable[..., torch.optim.Optimizer]:
    """Derive an optimizer that computes the same without importing torch.compile, which takes more than a second.

    torch wraps these methods so that the compiler leaves them alone; nothing here compiles an optimizer.
    """
    methods = {name: inspect.unwrap(getattr(kind, name)) for name in WRAPPED}
    return type(kind.__name__, (kind,), {**methods, "step": torch.no_grad()(inspect.unwrap(kind.step))})


Adam, AdamW, Adamax, SGD, RMSprop = map(
    _without_compiler, (torch.optim.Adam, torch.optim.AdamW, torch.optim.Adamax, torch.optim.SGD, torch.optim.RMSprop)
)


def _adam(weights: Weights, config: TrainConfig) -> torch.optim.Optimizer:
    return Adam(weights, **_moments(config), fused=True)


def _adamw(weights: Weights, config: TrainConfig) -> torch.optim.Optimizer:
    return AdamW(weights, **_moments(config), fused=True)


def _adamax(weights: Weights, config: TrainConfig) -> torch.optim.Optimizer:
    return Adamax(weights, **_moments(config))


def _sgd(weights: Weights, config: TrainConfig) -> torch.optim.Optimizer:
    return SGD(weights, config.learning_rate, momentum=config.momentum, weight_decay=config.weight_decay, fused=True)


def _rmsprop(weights: Weights, config: TrainConfig) -> torch.optim.Optimizer:
    return RMSprop(
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
