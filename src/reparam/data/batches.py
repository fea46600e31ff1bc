"""Batches of images that stay on the device."""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from reparam.data.scaling import Scaling
from reparam.data.store import Images


class Batches:
    """A split held on the device as uint8, cut into batches, the last one ragged."""

    def __init__(self, images: Images, card: Mapping[str, Any], batch_size: int, device: torch.device) -> None:
        self.images = torch.from_numpy(images.copy()).to(device)  # (N, C, H, W), copied because the map is read-only
        self.is_dynamic = card["binarization"] == "dynamic"
        self.scaling = Scaling(card).to(device)
        self.batch_size = batch_size

    def __len__(self) -> int:
        """Count images, not batches."""
        return len(self.images)

    def shuffled(self) -> Iterator[Tensor]:
        """Visit every image once, in an order drawn from torch's generator; yield pixels (B, C, H, W)."""
        # Drawn on the CPU, so that the order is the same on every device.
        order = torch.randperm(len(self)).to(self.images.device)
        for rows in torch.split(order, self.batch_size):
            yield self.pixels(self.images[rows])

    def ordered(self) -> Iterator[Tensor]:
        """Visit every image once, in the order of the store; yield pixels (B, C, H, W)."""
        for batch in torch.split(self.images, self.batch_size):
            yield self.pixels(batch)

    def pixels(self, images: Tensor) -> Tensor:
        """Turn grey values into what the model is trained on: scaled floats, drawn anew under `dynamic`.

        Source: Salakhutdinov & Murray 2008, sec. 4: grey values as probabilities of white.
        """
        grey = images.float() / 255
        scaled: Tensor = self.scaling(torch.bernoulli(grey) if self.is_dynamic else grey)
        return scaled
