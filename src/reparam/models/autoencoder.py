"""The autoencoder: a deterministic code, no prior."""

from dataclasses import replace

import torch
from torch import Tensor, nn

from reparam.models.conditions import Condition, Unconditional
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
        condition: Condition | None = None,
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.decoder = decoder
        self.likelihood = likelihood
        self.prior = prior  # of codes, where an objective has one
        self.latent_size = prior.size  # D
        self.latent_shape: tuple[int, ...] = latent_shape or (prior.size,)
        self.shape = shape  # (C, H, W)
        self.condition = condition or Unconditional()

    def posterior(self, x: Tensor, labels: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return the code, and the log of its variance, which is 0. Shapes: (B, C, H, W) -> (B, D), (B, D)."""
        code = in_full(self.encoder(self.condition.on_image(x, labels)))
        return code, torch.full_like(code, -torch.inf)

    def sample_posterior(self, x: Tensor, labels: Tensor | None = None) -> Tensor:
        return self.posterior(x, labels)[0]

    def output(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        return in_full(self.decoder(self.condition.on_latents(z, labels)))

    def decode(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        return self.likelihood.mean(self.output(z, labels))

    def draw(
        self, x: Tensor, target: Tensor, samples: int, estimator: Estimator = "pathwise", labels: Tensor | None = None
    ) -> Draw:
        return self.draw_from(self.encode(x, labels), target, samples, estimator, labels)

    def encode(self, x: Tensor, labels: Tensor | None = None) -> Encoded:
        return [self.posterior(x, labels)]

    def draw_from(
        self,
        encoded: Encoded,
        target: Tensor,
        samples: int,
        estimator: Estimator = "pathwise",  # noqa: ARG002
        labels: Tensor | None = None,
    ) -> Draw:
        """Score `target`; all samples are the same. Shapes: fields (samples, B)."""
        [(code, log_variance)] = encoded
        z = code[None]  # (1, B, D)
        output = each_sample(self.decoder, self.condition.on_latents(z, labels))
        log_px = self.likelihood.log_prob(output, target).expand(samples, -1)
        nothing = torch.zeros_like(z).expand(samples, -1, -1)
        layer = Layer.of(z.expand(samples, -1, -1), (code, log_variance), nothing, nothing)
        return replace(Draw.of(log_px, layer), output=output)  # of one sample, as all are the same
