"""Turn 8-bit images into the input of a model, and back."""

import torch
from torch import Tensor, nn

from reparam.cards.data import ImageFacts


class Pixels(nn.Module):
    """The first layer in training and scoring: draws black and white under `dynamic`, then shifts and scales.

    A model sees (pixel - shift) / scale of each channel, with pixels in [0, 1].
    Source: Salakhutdinov & Murray 2008, sec. 4: grey values as probabilities of white.
    """

    shift: Tensor  # (C, 1, 1)
    scale: Tensor

    def __init__(self, images: ImageFacts) -> None:
        super().__init__()
        self.binarization = images.binarization
        self.is_drawn = images.binarization == "dynamic"
        for name, values in (("shift", images.scaling.shift), ("scale", images.scaling.scale)):
            self.register_buffer(name, torch.tensor(values)[:, None, None], persistent=False)
        self.is_identity = not self.shift.any() and bool((self.scale == 1).all())

    def forward(self, images: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Turn 8-bit images into the input of the model; a generator of the CPU, or torch's own, draws black and white.

        Shapes: (B, C, H, W) uint8, unchanged -> float32.
        """
        pixels = images / 255
        if self.is_drawn and generator is None:
            pixels = torch.bernoulli(pixels)
        elif self.is_drawn:
            pixels = (torch.rand(pixels.shape, generator=generator).to(pixels.device) < pixels).float()
        return self.scaled(pixels)

    def scaled(self, pixels: Tensor) -> Tensor:
        """Scale pixels in [0, 1]. Shapes: (..., C, H, W), unchanged."""
        return pixels if self.is_identity else (pixels - self.shift) / self.scale

    def unscaled(self, values: Tensor) -> Tensor:
        """Return pixels in [0, 1]. Shapes: (..., C, H, W), unchanged."""
        return (values * self.scale + self.shift).clamp(0, 1)
