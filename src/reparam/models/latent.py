"""The common base of models of every kind."""

from abc import abstractmethod
from typing import Self

import torch
from torch import Tensor, nn

from reparam.models.codebook import Codebook
from reparam.models.conditions import Condition, Unconditional
from reparam.models.draw import Draw, Encoded, Estimator, Gaussian, Layer, Likelihood, Prior, in_full


class LatentModel(nn.Module):
    """A model with a decoder and a likelihood, which may be conditional; each kind adds its encoders."""

    decoder: nn.Module
    likelihood: Likelihood
    prior: Prior
    condition: Condition
    codebook: Codebook | None = None  # of latents that are entries of one
    stochastic_layers: int  # of latents with a posterior; 0: a deterministic code, no log-likelihood
    latent_size: int  # D, of all layers together
    latent_shape: tuple[int, ...]  # (D,), or (C, H, W) with C * H * W = D: what apps see of a vector of latents
    shape: tuple[int, ...]  # (C, H, W) of images

    def has_elbo(self, *, is_density: bool) -> bool:
        """Return whether there is a bound on log p(x): the likelihood is a density, and codes have a distribution."""
        return is_density and self.stochastic_layers > 0

    def settled(self) -> Self:
        """Get ready for evaluation: switch to it, and compute once what the prior derives from its weights."""
        self.eval()
        self.prior = self.prior.settled()
        return self

    @abstractmethod
    def encode(self, x: Tensor, labels: Tensor | None = None) -> Encoded:
        """Run the encoder, once for all samples. Shapes: (B, C, H, W), (B,)."""

    @abstractmethod
    def draw_from(
        self,
        encoded: Encoded,
        target: Tensor,
        samples: int,
        estimator: Estimator = "pathwise",
        labels: Tensor | None = None,
    ) -> Draw:
        """Sample the posterior of encoded images, and score `target`. Shapes: (B, C, H, W); fields (samples, B)."""

    def layers(
        self,
        encoded: Encoded,  # noqa: ARG002  # of models with a posterior
        noise: Tensor,  # noqa: ARG002
        estimator: Estimator = "pathwise",  # noqa: ARG002
    ) -> list[Layer]:
        """Sample the posterior with the given noise; return the layers of latents, that next to the image first.

        As many as `stochastic_layers`, so none of a model without a posterior.

        Shapes: noise (K, B, D), or (B, D): then the layers have no K either. D is that of all layers together.
        """
        return []

    def posterior(self, x: Tensor, labels: Tensor | None = None) -> Gaussian:
        """Return mean and log variance of q(z|x). Shapes: (B, C, H, W) -> (B, D), (B, D)."""
        return self.posterior_of(self.encode(x, labels))

    @abstractmethod
    def posterior_of(self, encoded: Encoded) -> Gaussian:
        """Return mean and log variance of q(z|x) for encoded images. Shapes: -> (B, D), (B, D)."""

    @abstractmethod
    def sample_posterior(self, x: Tensor, labels: Tensor | None = None) -> Tensor:
        """Draw latents of each image, as `decode` takes them. Shapes: (B, C, H, W) -> (B, D)."""

    def draw(
        self, x: Tensor, target: Tensor, samples: int, estimator: Estimator = "pathwise", labels: Tensor | None = None
    ) -> Draw:
        """Encode images, and draw from the posterior. Shapes: x and target (B, C, H, W); fields (samples, B)."""
        return self.draw_from(self.encode(x, labels), target, samples, estimator, labels)

    def output(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        """Return the parameters of the likelihood. Shapes: (N, D) -> (N, P*C, H, W)."""
        return self.output_at(z, labels)

    def output_at(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        """Return the parameters of the likelihood for latents of the layer next to the image.

        Shapes: (K, B, D) or (B, D) -> (..., P*C, H, W).
        """
        return each_sample(self.decoder, self.condition.on_latents(z, labels))

    def decode(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        """Return the mean image. Shapes: (N, D) -> (N, C, H, W)."""
        return self.likelihood.mean(self.output(z, labels))


class EncoderDecoder(LatentModel):
    """One encoder, one layer of latents."""

    def __init__(
        self,
        encoder: nn.Module,
        decoder: nn.Module,
        likelihood: Likelihood,
        prior: Prior,
        shape: tuple[int, ...],
        latent_shape: tuple[int, ...] | None = None,
        condition: Condition | None = None,
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.decoder = decoder
        self.likelihood = likelihood
        self.prior = prior  # of an autoencoder's codes, where an objective has one
        self.latent_size = prior.size  # D
        self.latent_shape: tuple[int, ...] = latent_shape or (prior.size,)
        self.shape = shape  # (C, H, W)
        self.condition = condition or Unconditional()

    def posterior_of(self, encoded: Encoded) -> Gaussian:
        """Return the one layer that was encoded. Shapes: -> (B, D), (B, D)."""
        [layer] = encoded
        return layer


def each_sample(network: nn.Module, z: Tensor) -> Tensor:
    """Apply a network of rows to every sample of every image. Shapes: (K, B, D) -> (K, B, ...), (B, D) -> (B, ...)."""
    if z.dim() == 2:
        return in_full(network(z))
    return torch.unflatten(in_full(network(z.flatten(0, 1))), 0, z.shape[:2])
