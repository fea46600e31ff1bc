"""The input of a model beside the pixels of an image: none, or its label."""

import math
from typing import Protocol

import torch
from torch import Tensor, nn

from reparam.config.model import LabelConfig


class Condition(Protocol):
    """How labels reach encoder and decoder, whatever networks these are. Shapes: labels (B,) int64, or None."""

    classes: int  # 0 of a model that has no condition
    size: int  # E: numbers that the decoder gets beside the latents

    def on_image(self, x: Tensor, labels: Tensor | None) -> Tensor:
        """Return the input of the encoder. Shapes: (B, C, H, W), unchanged."""

    def on_latents(self, z: Tensor, labels: Tensor | None) -> Tensor:
        """Return the input of the decoder, for any latents of an image. Shapes: (..., B, D) -> (..., B, D + E)."""


class Unconditional:
    """Models of p(x)."""

    classes = 0
    size = 0

    def on_image(self, x: Tensor, _labels: Tensor | None) -> Tensor:
        return x

    def on_latents(self, z: Tensor, _labels: Tensor | None) -> Tensor:
        return z


class Label(nn.Module):
    """Models of p(x|y), with q(z|x, y) and p(z). Source: Kingma et al. 2014 (NIPS), eq. 2 and 4; Sohn et al. 2015.

    The decoder gets the numbers of a label beside the latents. The encoder gets them as an image that is added to its
    input. For a first layer that sees all pixels, this equals numbers beside the pixels: both shift its outputs.
    """

    def __init__(self, classes: int, shape: tuple[int, ...], config: LabelConfig) -> None:
        """Shapes: `shape` is (C, H, W)."""
        super().__init__()
        self.classes = classes
        self.size = config.size
        self.shape = shape
        self.numbers = nn.Embedding(classes, config.size)
        # At first the encoder sees the image alone: noise of the size of pixels would drown it.
        self.image = nn.Parameter(torch.zeros(config.size, math.prod(shape)))

    def on_image(self, x: Tensor, labels: Tensor | None) -> Tensor:
        return x + torch.unflatten(self.numbers(labels) @ self.image, 1, self.shape)

    def on_latents(self, z: Tensor, labels: Tensor | None) -> Tensor:
        return torch.cat([z, self.numbers(labels).expand(*z.shape[:-1], -1)], -1)
