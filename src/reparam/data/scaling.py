"""What the model sees of a pixel, and the way back."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn


class Scaling(nn.Module):
    """Shift and scale each channel: (pixel - shift) / scale, pixels in [0, 1]; a module, so that export bakes it in."""

    shift: Tensor  # (C, 1, 1)
    scale: Tensor

    def __init__(self, card: Mapping[str, Any]) -> None:
        """Read the entry `scaling` of a data card."""
        super().__init__()
        for name in ("shift", "scale"):
            self.register_buffer(name, torch.tensor(card["scaling"][name])[:, None, None], persistent=False)
        self.is_identity = not self.shift.any() and bool((self.scale == 1).all())

    def forward(self, pixels: Tensor) -> Tensor:
        """Shapes: (..., C, H, W), unchanged."""
        return pixels if self.is_identity else (pixels - self.shift) / self.scale

    def invert(self, values: Tensor) -> Tensor:
        """Return pixels in [0, 1]. Shapes: (..., C, H, W), unchanged."""
        return (values * self.scale + self.shift).clamp(0, 1)
