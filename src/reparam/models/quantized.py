"""The autoencoder whose codes are entries of a codebook: an image becomes a list of whole numbers."""

import math
from dataclasses import replace
from typing import Protocol

import torch
from torch import Tensor, nn

from reparam.models.autoencoder import Autoencoder
from reparam.models.conditions import Condition
from reparam.models.draw import Draw, Encoded, Estimator, Gaussian, Likelihood
from reparam.models.priors import StandardNormal


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


class Quantized(Autoencoder):
    """An encoder to P vectors, a codebook that replaces each vector by an entry, and a decoder of the entries.

    Its latents are the vectors of P codes, one after the other, D = P d, or an image (d, h, w) with a code at each
    pixel. It has no distribution of codes.
    Source: van den Oord et al. 2017, sec. 3.
    """

    def __init__(
        self,
        encoder: nn.Module,
        decoder: nn.Module,
        likelihood: Likelihood,
        quantizer: Quantizer,
        shape: tuple[int, ...],
        latent_shape: tuple[int, ...],
        condition: Condition,
    ) -> None:
        prior = StandardNormal(math.prod(latent_shape))
        super().__init__(encoder, decoder, likelihood, prior, shape, latent_shape, condition)
        self.quantizer = quantizer
        self.positions = self.latent_size // quantizer.dimensions  # P

    def posterior_of(self, encoded: Encoded) -> Gaussian:
        """Return the vectors of codes, and the log of their variance. Shapes: as `Autoencoder` has them."""
        [(z, log_variance)] = encoded  # not quantised yet
        return self.joined(self.quantizer.quantized(self.split(z))), log_variance

    def draw_from(
        self,
        encoded: Encoded,
        target: Tensor,
        samples: int,
        estimator: Estimator = "pathwise",
        labels: Tensor | None = None,
    ) -> Draw:
        """Quantise, and score `target`; all samples are the same. Shapes: fields (samples, B)."""
        [(z, log_variance)] = encoded
        vectors = self.joined(self.quantizer(self.split(z)))
        draw = super().draw_from([(vectors, log_variance)], target, samples, estimator, labels)
        if not self.quantizer.commitment:
            return draw
        return replace(draw, auxiliary=self.quantizer.commitment * (z - vectors.detach()).square().sum(1))

    def split(self, z: Tensor) -> Tensor:
        """Cut latents into the vectors of positions. Shapes: (B, D) -> (B, P, d)."""
        if len(self.latent_shape) > 1:
            return torch.unflatten(z, 1, (self.quantizer.dimensions, self.positions)).mT
        return torch.unflatten(z, 1, (self.positions, self.quantizer.dimensions))

    def joined(self, vectors: Tensor) -> Tensor:
        """Undo `split`. Shapes: (B, P, d) -> (B, D)."""
        return (vectors.mT if len(self.latent_shape) > 1 else vectors).flatten(1)

    def codes(self, vectors: Tensor) -> Tensor:
        """Return the numbers of codes. Shapes: (B, D) -> (B, P), int64."""
        return self.quantizer.codes(self.split(vectors))

    def nearest(self, vectors: Tensor) -> Tensor:
        """Return the vectors of the nearest codes. Shapes: (B, D), unchanged."""
        return self.joined(self.quantizer.vectors()[self.codes(vectors)])
