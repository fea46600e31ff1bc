"""Several processes that train one model together, one per GPU or CPU, as torchrun starts them."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from reparam.errors import UserError


@dataclass(frozen=True)
class World:
    """The processes that train together; alone, everything is what it was."""

    rank: int = 0
    size: int = 1

    @property
    def is_first(self) -> bool:
        """Whether this process keeps and writes what there is to keep."""
        return self.rank == 0

    def wrap(self, module: nn.Module) -> nn.Module:
        """Let backward passes average the gradients of all processes, and start from the weights of the first."""
        return module if self.size == 1 else DistributedDataParallel(module)

    def agree(self, values: Tensor) -> Tensor:
        """Return what the first process says. Shapes: unchanged, the same for all."""
        if self.size > 1:
            dist.broadcast(values, src=0)
        return values

    def agree_on(self, value: Any) -> Any:
        """Return the value of the first process, of whatever type."""
        if self.size == 1:
            return value
        values = [value]
        dist.broadcast_object_list(values, src=0)
        return values[0]

    def total(self, values: Tensor) -> Tensor:
        """Sum over the processes. Shapes: unchanged, the same for all."""
        if self.size > 1:
            dist.all_reduce(values)
        return values

    def share(self, rows: Tensor) -> Tensor:
        """Take the part of a batch that is ours; of one with fewer rows than processes, all. Shapes: (N,) -> (n,)."""
        return rows[self.rank :: self.size] if len(rows) >= self.size else rows

    def weight(self, images: int, of_all: int) -> float:
        """Weigh the mean over a part so that the average over processes is the mean over all images of the batch."""
        return images * self.size / (of_all if of_all >= self.size else of_all * self.size)


ALONE = World()


@contextmanager
def joined(device: torch.device) -> Iterator[World]:
    """Join the other processes that torchrun started; alone without it."""
    if "WORLD_SIZE" not in os.environ:
        yield ALONE
        return
    try:
        dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo")
    except ValueError as error:  # a variable is missing, or no number
        raise UserError(
            f"WORLD_SIZE: wanted it set by torchrun, with RANK, MASTER_ADDR and MASTER_PORT, found: {error}; start the "
            "processes with torchrun, or unset WORLD_SIZE"
        ) from None
    try:
        yield World(dist.get_rank(), dist.get_world_size())
    finally:
        dist.destroy_process_group()
