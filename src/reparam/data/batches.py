"""Batches of images that stay on the device."""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from reparam.data.scaling import Scaling
from reparam.data.store import Images


class Batches:
    """A split held on the device as uint8, cut into batches, the last one ragged; without images, into none."""

    def __init__(self, images: Images, card: Mapping[str, Any], batch_size: int, device: torch.device) -> None:
        self.images = torch.from_numpy(images.copy()).to(device)  # (N, C, H, W), copied because the map is read-only
        self.is_dynamic = card["binarization"] == "dynamic"
        self.scaling = Scaling(card).to(device)
        self.batch_size = batch_size

    def __len__(self) -> int:
        """Count images, not batches."""
        return len(self.images)

    def mean_image(self) -> Tensor:
        """Return the mean of all images, as the model sees them. Shapes: (C, H, W)."""
        sums = torch.stack([batch.double().sum(0) for batch in torch.split(self.images, 4096)])
        mean: Tensor = self.scaling((sums.sum(0) / len(self) / 255).float())
        return mean

    def draw_order(self) -> Tensor:
        """Draw an order of all images from torch's generator. Shapes: -> (N,)."""
        # On the CPU, so that the order is the same on every device.
        return torch.randperm(len(self)).to(self.images.device)

    def visit(self, order: Tensor) -> Iterator[Tensor]:
        """Visit images in the given order; yield pixels (B, C, H, W). Shapes: (N,) rows."""
        for rows in self._cut(order):
            yield self.pixels(self.images[rows])

    def ordered(self, seed: int) -> Iterator[Tensor]:
        """Visit every image once, in the order of the store; yield pixels (B, C, H, W).

        Under `dynamic`, the draw is a function of seed and image alone: neither the model, nor the batch size, nor the
        device changes what is scored.
        """
        generator = torch.Generator().manual_seed(seed)
        for batch in self._cut(self.images):
            yield self.pixels(batch, generator)

    def pixels(self, images: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Turn grey values into what the model is trained on: scaled floats, drawn anew under `dynamic`.

        Without a generator of the CPU, the draw comes from torch's own.
        Source: Salakhutdinov & Murray 2008, sec. 4: grey values as probabilities of white.
        """
        pixels = images.float() / 255
        if self.is_dynamic and generator is None:
            pixels = torch.bernoulli(pixels)
        elif self.is_dynamic:
            pixels = (torch.rand(pixels.shape, generator=generator).to(pixels.device) < pixels).float()
        scaled: Tensor = self.scaling(pixels)
        return scaled

    def _cut(self, rows: Tensor) -> tuple[Tensor, ...]:
        # torch cuts nothing into one empty batch, whose means are NaN.
        return torch.split(rows, self.batch_size) if len(rows) else ()
