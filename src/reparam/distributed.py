"""Several processes that share work, one per GPU or CPU, as torchrun starts them."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.constants import default_pg_timeout
from torch.distributed.rendezvous import rendezvous
from torch.nn.parallel import DistributedDataParallel

from reparam.errors import UserError

MEETING = timedelta(minutes=5)  # between the first process and the last one, from loading torch to reading data


@dataclass(frozen=True)
class World:
    """The processes that work together. With a single process, all values stay as they are."""

    rank: int = 0
    size: int = 1

    @property
    def is_first(self) -> bool:
        """Whether this process writes files."""
        return self.rank == 0

    @property
    def is_first_here(self) -> bool:
        """Whether this process is the first one of its machine."""
        return self.size == 1 or os.environ.get("LOCAL_RANK", "0") == "0"

    @property
    def size_here(self) -> int:
        """How many of the processes are on this machine."""
        return 1 if self.size == 1 else int(os.environ.get("LOCAL_WORLD_SIZE", "1"))

    def wrap(self, module: nn.Module) -> nn.Module:
        """Let backward passes average the gradients of all processes, and start from the weights of the first."""
        if self.size == 1:
            return module
        # The option keeps the order in which gradients are added up: otherwise the order changes after the first step,
        # and a resumed training rounds differently than an uninterrupted one.
        return DistributedDataParallel(module, find_unused_parameters=True)

    def agree(self, values: Tensor) -> Tensor:
        """Return the values of the first process. Shapes: unchanged, the same for all."""
        if self.size > 1:
            dist.broadcast(values, src=0)
        return values

    def most(self, *numbers: int) -> list[int]:
        """Return the maximum of each number over all processes."""
        values = torch.tensor(numbers)
        if self.size > 1:
            dist.all_reduce(values, dist.ReduceOp.MAX)
        return values.tolist()

    def collect(self, value: Any) -> list[Any]:
        """Return the values of all processes, of any type and by rank, in the first process; nothing in the others."""
        if self.size == 1:
            return [value]
        values = [None] * self.size if self.is_first else None
        dist.gather_object(value, values)
        return values or []

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
        """Take our part of a batch; all of it, if it has fewer rows than processes. Shapes: (N,) -> (n,)."""
        return rows[self.rank :: self.size] if len(rows) >= self.size else rows

    def deal(self, images: int, batch_size: int) -> tuple[list[int], Tensor]:
        """Deal out whole batches of all images in order; return numbers and rows of our batches. Shapes: -> (n,).

        A process without a batch receives the first one as well, and its results are discarded.
        """
        batches = torch.split(torch.arange(images), batch_size) if images else ()
        numbers = list(range(self.rank, len(batches), self.size)) or list(range(len(batches)))[:1]
        return numbers, torch.cat([torch.arange(0), *(batches[number] for number in numbers)])

    def put_together(self, rows: Tensor, columns: Sequence[Tensor]) -> list[Tensor]:
        """Return, in the first process, columns of all images, and in the others the columns unchanged.

        `rows` are those that `deal` gave us. Shapes: (n,), (n, ...) each -> (N, ...) each, on the CPU.
        """
        parts = self.collect((rows, [column.cpu() for column in columns])) if self.size > 1 else []
        if not parts:
            return list(columns)
        every = torch.cat([part for part, _ in parts])
        # If a process without a batch also received the first one, a row occurs twice, with the same values.
        order = torch.empty(int(every.max()) + 1, dtype=torch.int64).index_copy_(0, every, torch.arange(len(every)))
        return [torch.cat(column)[order] for column in zip(*(own for _, own in parts), strict=True)]

    def weight(self, images: int, of_all: int) -> float:
        """Weigh the mean over a part so that the average over processes is the mean over all images of the batch."""
        return images * self.size / (of_all if of_all >= self.size else of_all * self.size)


ALONE = World()


@dataclass(frozen=True)
class SharedBatch:
    """A batch with this number of images; each process has the part that `World.share` gives it."""

    world: World
    images: int

    def gather(self, rows: Tensor) -> Tensor:
        """Return the rows of all processes. The backward pass returns to each the sum of all gradients of its own rows.

        Shapes: (b, ...), one for each image of ours -> (B, ...).
        """
        ranks = range(self.world.size)
        if self.images < self.world.size:  # each process has all of them
            return rows
        counts = [len(range(rank, self.images, self.world.size)) for rank in ranks]
        gathered: Tensor = _Gather.apply(rows, counts, self.world.rank)
        return gathered


class _Gather(torch.autograd.Function):
    """Concatenate the rows (b, ...) of all processes; they are padded, because `all_gather` needs equal sizes."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, counts: list[int], rank: int) -> Tensor:
        ctx.counts, ctx.rank = counts, rank
        padded = rows.new_zeros(max(counts), *rows.shape[1:])
        padded[: len(rows)] = rows
        found = [torch.empty_like(padded) for _ in counts]
        dist.all_gather(found, padded)
        return torch.cat([part[:count] for part, count in zip(found, counts, strict=True)])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        total = gradients[0].clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return torch.split(total, ctx.counts)[ctx.rank], None, None


def _meet(longest_wait: timedelta) -> tuple[Any, int, int]:
    """Wait for all processes, for a shorter time than torch would; return its store. Raises: DistStoreError."""
    store, rank, size = next(rendezvous("env://", timeout=MEETING))
    names = [f"present/{number}" for number in range(size)]
    store.set(names[rank], "")
    store.wait(names, MEETING)
    store.set_timeout(longest_wait)  # as torch would have set it; NCCL reads from it at the first exchange
    return store, rank, size


@contextmanager
def joined(device: torch.device, longest_wait: timedelta | None = None) -> Iterator[World]:
    """Join the other processes that torchrun started; alone without it.

    The last one must come within MEETING. Later, they wait for each other as long as torch does (30 minutes with gloo),
    or `longest_wait`.

    Raises: UserError if one does not come, because it failed before.
    """
    if "WORLD_SIZE" not in os.environ:
        yield ALONE
        return
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    try:
        store, rank, size = _meet(longest_wait or default_pg_timeout)
        dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=longest_wait)
    except dist.DistStoreError:
        raise UserError(
            f"process {os.environ['RANK']} of {os.environ['WORLD_SIZE']}: wanted all of them within "
            f"{MEETING.total_seconds() / 60:g} minutes, found that one did not come; see what the command says on the "
            "other machines; start it again on all of them"
        ) from None
    except ValueError as error:  # a variable is missing, or no number
        raise UserError(
            f"WORLD_SIZE: wanted it set by torchrun, with RANK, MASTER_ADDR and MASTER_PORT, found: {error}; start the "
            "processes with torchrun, or unset WORLD_SIZE"
        ) from None
    try:
        yield World(dist.get_rank(), dist.get_world_size())
    finally:
        dist.destroy_process_group()
