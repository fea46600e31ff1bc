"""Batches of images: on the device if they fit, otherwise read ahead from the disk."""

import contextlib
import itertools
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from reparam.data.pixels import Pixels
from reparam.data.store import Images, Labels
from reparam.machine.environment import real

RESIDENT_FRACTION = 0.5  # of the free memory of a device: images may take this share, the model has the rest
READ_AHEAD = 3  # batches


class Batch(NamedTuple):
    """Images as they are stored, and their labels if there are labels."""

    images: Tensor  # (B, C, H, W) uint8
    labels: Tensor | None = None  # (B,) int64


class Seen(NamedTuple):
    """Images as the model sees them, and their labels if there are labels."""

    x: Tensor  # (B, C, H, W) float32
    labels: Tensor | None = None  # (B,) int64


class Batches:
    """A split as batches of 8-bit images, (B, C, H, W) uint8, the last one ragged; without images, no batch.

    The images stay on the device if they fit into a share of its free memory (REPARAM_RESIDENT_FRACTION); otherwise a
    thread reads them ahead from the memory map. The batches are the same either way.

    With labels (for a conditional model), each batch has the labels of its images.
    """

    def __init__(self, images: Images, batch_size: int, device: torch.device, labels: Labels | None = None) -> None:
        self.device = device
        self.labels = None if labels is None else torch.from_numpy(labels.astype(np.int64)).to(device)  # (N,)
        self.batch_size = batch_size
        self._mapped = images
        # Copied, because the map is read-only.
        self._resident = torch.from_numpy(images.copy()).to(device) if _fits(images.nbytes, device) else None

    def __len__(self) -> int:
        """Count images, not batches."""
        return len(self._mapped)

    @property
    def is_resident(self) -> bool:
        """Whether the images stay on the device."""
        return self._resident is not None

    def visit(self, order: Tensor, share: Callable[[Tensor], Tensor] = lambda rows: rows) -> Iterator[Batch]:
        """Yield the images of some rows in the given order; `share` takes a part of the rows of each batch.

        Shapes: (N,).
        """
        # One transfer of the whole order instead of one per batch.
        order = order.to(self.device) if self.is_resident else order
        images = self._read(map(share, self._cut(order)))
        if self.labels is None:
            yield from map(Batch, images)
        else:
            rows = map(share, self._cut(order.to(self.device)))
            yield from map(Batch, images, map(self.labels.__getitem__, rows))

    def in_order(self) -> Iterator[Batch]:
        """Yield every image once, in the order of the store."""
        yield from self.visit(torch.arange(len(self)))

    def take(self, rows: Tensor) -> Tensor:
        """Return the images of some rows, on the device. Shapes: (B,) -> (B, C, H, W) uint8."""
        if self._resident is not None:
            # Several times as fast as `resident[rows]`, which does not copy whole images at once.
            return self._resident.index_select(0, rows.to(self.device))
        images = torch.from_numpy(self._mapped[rows.cpu().numpy()])
        if self.device.type == "cuda":
            return images.pin_memory().to(self.device, non_blocking=True)
        return images

    def mean(self) -> Tensor:
        """Return the mean of all images, with pixels in [0, 1]. Shapes: (C, H, W)."""
        total = torch.zeros(self._mapped.shape[1:], dtype=torch.float64, device=self.device)
        for images, _ in self.in_order():
            total += images.double().sum(0)
        return (total / len(self) / 255).float()

    def _cut(self, rows: Tensor) -> tuple[Tensor, ...]:
        # torch cuts nothing into one empty batch, whose means are NaN.
        return torch.split(rows, self.batch_size) if len(rows) else ()

    def _read(self, cuts: Iterable[Tensor]) -> Iterator[Tensor]:
        if self._resident is not None:
            yield from map(self.take, cuts)
            return
        rest = iter(cuts)
        with ThreadPoolExecutor(1) as reader:
            waiting: deque[Future[Tensor]] = deque(
                reader.submit(self.take, rows) for rows in itertools.islice(rest, READ_AHEAD)
            )
            while waiting:
                images = waiting.popleft().result()
                waiting.extend(reader.submit(self.take, rows) for rows in itertools.islice(rest, 1))
                yield images


@dataclass(frozen=True)
class View:
    """Images of a split, and what the model sees of them."""

    batches: Batches
    pixels: Pixels

    def __len__(self) -> int:
        """Count images."""
        return len(self.batches)

    @property
    def device(self) -> torch.device:
        return self.batches.device

    def seen(self, seed: int) -> Iterator[Seen]:
        """Yield what the model sees of every image, in the order of the store.

        Each draw is a function of the seed and the image's place alone: neither the model, nor the batch size, nor the
        device changes the scored images.
        """
        generator = torch.Generator().manual_seed(seed)
        for images, labels in self.batches.in_order():
            yield Seen(self.pixels(images, generator), labels)


def _fits(size: int, device: torch.device) -> bool:
    """Return whether this number of bytes fits into the share of free memory that images may take.

    Raises: UserError if the environment names no such share.
    """
    fraction = real("REPARAM_RESIDENT_FRACTION", RESIDENT_FRACTION, "a number from 0 to 1", most=1.0)
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
    else:
        free = _available_memory()
    return size <= fraction * free


def _available_memory() -> int:
    """Return the bytes that processes can get, if possible including those that the system would free for them."""
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
        return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable:"))
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
