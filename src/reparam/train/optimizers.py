"""Optimizers, and learning rates that change with the epochs."""

import inspect
import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from reparam.config.train import AdamConfig, MilestonesConfig, RmspropConfig, SgdConfig, StepConfig, TrainConfig

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


def build_optimizer(weights: Weights, config: TrainConfig) -> Optimizer:
    """Build the optimizer that the parameters name."""
    name = config.optimizer
    return OPTIMIZERS[name](weights, config.learning_rate, config.weight_decay, *config.arguments(name))


def rate_at(config: TrainConfig, epoch: float, after: float) -> float:
    """Return the learning rate of a step from `epoch` to `after` epochs, fractions within one.

    The warm-up counts the step itself, so that the first one moves the weights.
    """
    name = config.schedule
    rate = config.learning_rate * SCHEDULES[name](epoch / config.epochs, epoch, *config.arguments(name))
    return rate * min(1.0, after / config.warmup_epochs) if config.warmup_epochs else rate


def let_capture(optimizer: Optimizer, device: torch.device) -> None:
    """Keep on the device what changes from step to step, so that a CUDA graph of a step can be replayed."""
    for group in optimizer.param_groups:
        group["lr"] = torch.tensor(group["lr"], device=device)
        if "capturable" in group:
            group["capturable"] = True


def adam(weights: Weights, rate: float, decay: float, config: AdamConfig) -> Optimizer:
    return Adam(weights, rate, **_moments(config), weight_decay=decay, fused=True)


def adamw(weights: Weights, rate: float, decay: float, config: AdamConfig) -> Optimizer:
    return AdamW(weights, rate, **_moments(config), weight_decay=decay, fused=True)


def adamax(weights: Weights, rate: float, decay: float, config: AdamConfig) -> Optimizer:
    return Adamax(weights, rate, **_moments(config), weight_decay=decay)


def sgd(weights: Weights, rate: float, decay: float, config: SgdConfig) -> Optimizer:
    return SGD(weights, rate, config.momentum, weight_decay=decay, fused=True)


def rmsprop(weights: Weights, rate: float, decay: float, config: RmspropConfig) -> Optimizer:
    return RMSprop(weights, rate, eps=config.epsilon, momentum=config.momentum, weight_decay=decay)


def _moments(config: AdamConfig) -> dict[str, Any]:
    return {"betas": config.betas, "eps": config.epsilon}


OPTIMIZERS: dict[str, Callable[..., Optimizer]] = {
    "adam": adam,
    "adamw": adamw,
    "adamax": adamax,
    "sgd": sgd,
    "rmsprop": rmsprop,
}


# Factors of the learning rate, given the share of training that is done, and the number of epochs that are done.


def constant(_share: float, _epoch: float) -> float:
    return 1.0


def cosine(share: float, _epoch: float) -> float:
    """Fall to 0 at the last epoch. Source: Loshchilov & Hutter 2017, eq. 5."""
    return 0.5 * (1 + math.cos(math.pi * min(1.0, share)))


def step(_share: float, epoch: float, config: StepConfig) -> float:
    return float(config.factor ** (epoch // config.epochs))


def milestones(_share: float, epoch: float, config: MilestonesConfig) -> float:
    return config.factor ** sum(epoch >= milestone for milestone in config.epochs)


SCHEDULES: dict[str, Callable[..., float]] = {
    "constant": constant,
    "cosine": cosine,
    "step": step,
    "milestones": milestones,
}
