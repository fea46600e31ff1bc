"""A codebook, and the place of its entries in the latents of an image."""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


class Quantizer(Protocol):
    """A codebook of C vectors of d numbers, and the rule that maps the vectors of an encoder to its entries."""

    size: int  # C
    dimensions: int  # d
    commitment: float  # weight of the squared distance between the encoder's vectors and those of their codes
    is_learned: bool  # whether the codebook learns from each batch by itself, without a gradient

    def __call__(self, z: Tensor) -> Tensor:
        """Return the vectors of codes, through which gradients pass; in training, learn. Shapes: (B, P, d), unchanged.

        In training they may be off by rounding.
        """

    def quantized(self, z: Tensor) -> Tensor:
        """Return the vectors of codes. Shapes: (B, P, d), unchanged."""

    def codes(self, vectors: Tensor) -> Tensor:
        """Return the number of each vector's code, or of the nearest code. Shapes: (..., d) -> (...), int64."""

    def vectors(self) -> Tensor:
        """Return the vectors of all codes, by their number. Shapes: -> (C, d)."""


@dataclass(frozen=True)
class Codebook:
    """Latents that are P vectors of codes, one after the other, D = P d, or an image (d, h, w) with a code a pixel."""

    quantizer: Quantizer
    positions: int  # P
    is_image: bool

    def split(self, z: Tensor) -> Tensor:
        """Cut latents into the vectors of positions. Shapes: (B, D) -> (B, P, d)."""
        if self.is_image:
            return torch.unflatten(z, 1, (self.quantizer.dimensions, self.positions)).mT
        return torch.unflatten(z, 1, (self.positions, self.quantizer.dimensions))

    def joined(self, vectors: Tensor) -> Tensor:
        """Undo `split`. Shapes: (B, P, d) -> (B, D)."""
        return (vectors.mT if self.is_image else vectors).flatten(1)

    def codes(self, z: Tensor) -> Tensor:
        """Return the numbers of codes. Shapes: (B, D) -> (B, P), int64."""
        return self.quantizer.codes(self.split(z))

    def nearest(self, z: Tensor) -> Tensor:
        """Return the vectors of the nearest codes. Shapes: (B, D), unchanged."""
        return self.joined(self.quantizer.vectors()[self.codes(z)])
