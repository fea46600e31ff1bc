"""The autoencoder whose codes are entries of a codebook: an image becomes a list of whole numbers."""

import math
from dataclasses import replace

from torch import Tensor, nn

from reparam.models.autoencoder import Autoencoder
from reparam.models.codebook import Codebook, Quantizer
from reparam.models.conditions import Condition
from reparam.models.draw import Draw, Encoded, Estimator, Gaussian, Likelihood
from reparam.models.priors import StandardNormal


class Quantized(Autoencoder):
    """An encoder to P vectors, a codebook that replaces each vector by an entry, and a decoder of the entries.

    It has no distribution of codes.
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
        positions = self.latent_size // quantizer.dimensions
        self.codebook: Codebook = Codebook(quantizer, positions, is_image=len(latent_shape) > 1)

    def posterior_of(self, encoded: Encoded) -> Gaussian:
        """Return the vectors of codes, and the log of their variance. Shapes: as `Autoencoder` has them."""
        [(z, log_variance)] = encoded  # not quantised yet
        return self.codebook.joined(self.quantizer.quantized(self.codebook.split(z))), log_variance

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
        vectors = self.codebook.joined(self.quantizer(self.codebook.split(z)))
        draw = super().draw_from([(vectors, log_variance)], target, samples, estimator, labels)
        if not self.quantizer.commitment:
            return draw
        return replace(draw, auxiliary=self.quantizer.commitment * (z - vectors.detach()).square().sum(1))
