"""Check whether a training fits into memory, by a step on torch's meta device, which allocates nothing."""

import math
import os
from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from reparam.cards.data import ImageFacts
from reparam.config import Config
from reparam.data.batches import Batches
from reparam.data.pixels import Pixels
from reparam.distributed import ALONE, World
from reparam.errors import ParamsError
from reparam.models.build import build_model
from reparam.train.loss import Loss

META = torch.device("meta")
GIB = 2**30
BYTES_PER_OUTPUT = 4 * 6  # of each number that a layer puts out: itself, its activation and normalisation


def check_memory(config: Config, data: ImageFacts, training: Batches, classes: int = 0, world: World = ALONE) -> None:
    """Refuse a training if the memory of each process cannot hold its weights and gradients, or its part of a step.

    On a CPU, the processes of a machine share its memory. The check counts only what is surely needed, so an accepted
    training may still run out of memory.

    Raises: ParamsError.
    """
    with META:
        model = build_model(config.model, data.shape, classes)
    memory, weights = _memory(training.device), 2 * _bytes(model.parameters())
    if training.device.type == "cpu":
        memory //= world.size_here
    each = " for each process" if world.size > 1 else ""
    if weights > memory:
        raise ParamsError(
            f"params.yaml: model: wanted a model that can be trained in {memory / GIB:,.1f} GiB of memory{each}, found "
            f"one whose weights and gradients take {weights / GIB:,.1f} GiB; lower model.latent, or the widths in "
            f"model.{config.model.network}"
        )
    batch = math.ceil(min(config.train.batch_size, len(training)) / world.size)
    if weights + _most(model, data.shape, batch * config.objective.samples) <= memory:
        return
    loss = Loss(model, Pixels(data).to(META), config.objective)
    labels = torch.empty(batch, dtype=torch.int64, device=META) if classes else None
    step = _bytes_of_step(loss, torch.empty((batch, *data.shape), dtype=torch.uint8, device=META), labels)
    if weights + step > memory:
        raise ParamsError(
            f"params.yaml: train.batch_size: wanted a step that fits into {memory / GIB:,.1f} GiB of memory{each}, "
            f"found {config.train.batch_size}, with which a step takes {(weights + step) / GIB:,.1f} GiB; lower it, "
            "objective.samples or the size of the model"
        )


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.nbytes for tensor in tensors)


def _most(model: nn.Module, shape: tuple[int, ...], images: int) -> int:
    """Return an upper bound of the memory that a step keeps. Units: bytes.

    The exact count takes two seconds, because torch then loads much of itself. It is skipped if this bound fits.
    """
    channels = sum(max(weight.shape[:2]) for weight in model.parameters() if weight.dim() > 1)
    return images * channels * math.prod(shape[1:]) * BYTES_PER_OUTPUT


def _bytes_of_step(loss: nn.Module, images: Tensor, labels: Tensor | None) -> int:
    """Count what the forward pass keeps for the backward pass."""
    kept = dict[int, int]()

    def keep(tensor: Tensor) -> Tensor:
        kept[id(tensor.untyped_storage())] = tensor.untyped_storage().nbytes()
        return tensor

    with saved_tensors_hooks(keep, lambda tensor: tensor):
        terms = loss(images, labels)
    del terms
    return sum(kept.values())


def _memory(place: torch.device) -> int:
    """Return all memory of a device, whoever uses it. Units: bytes."""
    if place.type == "cuda":
        return int(torch.cuda.mem_get_info(place)[1])
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
