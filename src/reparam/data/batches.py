"""Batches of images: on the device where they fit, else read ahead from the disk."""

import contextlib
import itertools
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from reparam.data.scaling import Scaling
from reparam.data.store import Images
from reparam.errors import UserError

RESIDENT_FRACTION = 0.5  # of the free memory that images may take to stay on the device: the rest is the model's
READ_AHEAD = 3  # batches


class Batches:
    """A split cut into batches, the last one ragged; without images, into none.

    The images stay on the device as uint8 where they fit into a share of its free memory (REPARAM_RESIDENT_FRACTION);
    else a thread reads them ahead from the memory map. Order and draws are the same either way.
    """

    def __init__(
        self,
        images: Images,
        card: Mapping[str, Any],
        batch_size: int,
        device: torch.device,
        share: Callable[[Tensor], Tensor] = lambda rows: rows,
    ) -> None:
        """`share` picks the rows of a training batch that are for this process."""
        self.device = device
        self.share = share
        self.is_dynamic = card["binarization"] == "dynamic"
        self.scaling = Scaling(card).to(device)
        self.batch_size = batch_size
        self.yields_rows = False
        self._mapped = images
        # Copied, because the map is read-only.
        self._resident = torch.from_numpy(images.copy()).to(device) if _fits(images.nbytes, device) else None

    def __len__(self) -> int:
        """Count images, not batches."""
        return len(self._mapped)

    def mean_image(self) -> Tensor:
        """Return the mean of all images, as the model sees them. Shapes: (C, H, W)."""
        total = torch.zeros(self._mapped.shape[1:], dtype=torch.float64, device=self.device)
        for grey in self._greys(self._cut(torch.arange(len(self)))):
            total += grey.double().sum(0)
        mean: Tensor = self.scaling((total / len(self) / 255).float())
        return mean

    def draw_order(self) -> Tensor:
        """Draw an order of all images from torch's generator. Shapes: -> (N,)."""
        # On the CPU, so that the order is the same on every device.
        return torch.randperm(len(self))

    @property
    def is_resident(self) -> bool:
        """Whether the images stay on the device."""
        return self._resident is not None

    def visit(self, order: Tensor) -> Iterator[Tensor]:
        """Visit images in the given order; yield pixels (B, C, H, W), or rows (B,) with `yields_rows`.

        Who takes rows turns them into pixels itself (`pixels_of`), as a part of a step that is replayed or compiled.
        Shapes: (N,) rows.
        """
        # One transfer of the whole order instead of one per batch.
        order = order.to(self.device) if self.is_resident else order
        if self.yields_rows:
            yield from map(self.share, self._cut(order))
            return
        for grey in self._greys(map(self.share, self._cut(order))):
            yield self.pixels(grey)

    def ordered(self, seed: int) -> Iterator[Tensor]:
        """Visit every image once, in the order of the store; yield pixels (B, C, H, W).

        Under `dynamic`, the draw is a function of seed and image alone: neither the model, nor the batch size, nor the
        device changes what is scored.
        """
        generator = torch.Generator().manual_seed(seed)
        for grey in self._greys(self._cut(torch.arange(len(self)))):
            yield self.pixels(grey, generator)

    def grey(self, rows: Tensor) -> Tensor:
        """Return images as they are stored, on the device. Shapes: (B,) -> (B, C, H, W) uint8."""
        if self._resident is not None:
            return self._resident[rows.to(self.device)]
        grey = torch.from_numpy(self._mapped[rows.cpu().numpy()])
        if self.device.type == "cuda":
            return grey.pin_memory().to(self.device, non_blocking=True)
        return grey

    def pixels_of(self, rows: Tensor) -> Tensor:
        """Return images as the model is trained on them. Shapes: (B,) -> (B, C, H, W)."""
        return self.pixels(self.grey(rows))

    def pixels(self, images: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Turn grey values into what the model is trained on: scaled floats, drawn anew under `dynamic`.

        Without a generator of the CPU, the draw comes from torch's own.
        Source: Salakhutdinov & Murray 2008, sec. 4: grey values as probabilities of white.
        """
        pixels = images / 255
        if self.is_dynamic and generator is None:
            pixels = torch.bernoulli(pixels)
        elif self.is_dynamic:
            pixels = (torch.rand(pixels.shape, generator=generator).to(pixels.device) < pixels).float()
        scaled: Tensor = self.scaling(pixels)
        return scaled

    def _cut(self, rows: Tensor) -> tuple[Tensor, ...]:
        # torch cuts nothing into one empty batch, whose means are NaN.
        return torch.split(rows, self.batch_size) if len(rows) else ()

    def _greys(self, cuts: Iterable[Tensor]) -> Iterator[Tensor]:
        if self._resident is not None:
            yield from map(self.grey, cuts)
            return
        rest = iter(cuts)
        with ThreadPoolExecutor(1) as reader:
            waiting: deque[Future[Tensor]] = deque(
                reader.submit(self.grey, rows) for rows in itertools.islice(rest, READ_AHEAD)
            )
            while waiting:
                grey = waiting.popleft().result()
                waiting.extend(reader.submit(self.grey, rows) for rows in itertools.islice(rest, 1))
                yield grey


def _fits(size: int, device: torch.device) -> bool:
    """Whether so many bytes fit into the share of free memory that images may take.

    Raises: UserError where the environment names no such share.
    """
    text = os.environ.get("REPARAM_RESIDENT_FRACTION", str(RESIDENT_FRACTION))
    try:
        fraction = float(text)
    except ValueError:
        fraction = -1.0
    if not 0 <= fraction <= 1:
        raise UserError(f"REPARAM_RESIDENT_FRACTION: wanted a number from 0 to 1, found {text!r}; mend or unset it")
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
    else:
        free = _available_memory()
    return size <= fraction * free


def _available_memory() -> int:
    """Return the bytes that processes can have, with what the system would give up for them where it says so."""
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
        return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable:"))
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
