"""The autoencoder: a deterministic code, no prior."""

from dataclasses import replace

import torch
from torch import Tensor, nn

from reparam.models.draw import Draw, Encoded, Estimator, Layer, Likelihood, Prior, in_full
from reparam.models.vae import each_sample


class Autoencoder(nn.Module):
    """An encoder (B, C, H, W) -> (B, D), a decoder (N, D) -> (N, P*C, H, W), any likelihood.

    It has no distribution of codes: prior, posterior and KL of its draws are 0, and there is no log-likelihood.
    Source: Hinton & Salakhutdinov 2006.
    """

    stochastic_layers = 0

    def __init__(
        self,
        encoder: nn.Module,
        decoder: nn.Module,
        likelihood: Likelihood,
        prior: Prior,
        shape: tuple[int, ...],
        latent_shape: tuple[int, ...] | None = None,
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.decoder = decoder
        self.likelihood = likelihood
        self.prior = prior  # of codes, where an objective has one
        self.latent_size = prior.size  # D
        self.latent_shape: tuple[int, ...] = latent_shape or (prior.size,)
        self.shape = shape  # (C, H, W)

    def posterior(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the code, and the log of its variance, which is 0. Shapes: (B, C, H, W) -> (B, D), (B, D)."""
        code = in_full(self.encoder(x))
        return code, torch.full_like(code, -torch.inf)

    def sample_posterior(self, x: Tensor) -> Tensor:
        return self.posterior(x)[0]

    def output(self, z: Tensor) -> Tensor:
        return in_full(self.decoder(z))

    def decode(self, z: Tensor) -> Tensor:
        return self.likelihood.mean(self.output(z))

    def draw(self, x: Tensor, target: Tensor, samples: int, estimator: Estimator = "pathwise") -> Draw:
        return self.draw_from(self.encode(x), target, samples, estimator)

    def encode(self, x: Tensor) -> Encoded:
        return [self.posterior(x)]

    def draw_from(
        self,
        encoded: Encoded,
        target: Tensor,
        samples: int,
        estimator: Estimator = "pathwise",  # noqa: ARG002
    ) -> Draw:
        """Score `target`; all samples are the same. Shapes: fields (samples, B)."""
        [(code, log_variance)] = encoded
        z = code[None]  # (1, B, D)
        output = each_sample(self.decoder, z)
        log_px = self.likelihood.log_prob(output, target).expand(samples, -1)
        nothing = torch.zeros_like(z).expand(samples, -1, -1)
        layer = Layer.of(z.expand(samples, -1, -1), (code, log_variance), nothing, nothing)
        return replace(Draw.of(log_px, layer), output=output)  # of one sample, as all are the same
