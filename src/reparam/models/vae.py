"""The variational autoencoder with one layer of Gaussian latents."""

import math

import torch
from torch import Tensor, nn

from reparam.models.draw import Draw, Likelihood


class VAE(nn.Module):
    """A diagonal Gaussian posterior, a standard normal prior, any likelihood.

    The encoder maps (B, C*H*W) to mean and log variance side by side, (B, 2D); the decoder maps (B, D) to (B, C*H*W).
    Source: Kingma & Welling 2014, sec. 3.
    """

    def __init__(self, encoder: nn.Module, decoder: nn.Module, likelihood: Likelihood, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.encoder = encoder
        self.decoder = decoder
        self.likelihood = likelihood
        self.shape = shape  # (C, H, W)

    def posterior(self, x: Tensor) -> tuple[Tensor, Tensor]:
        mean, log_variance = self.encoder(x.flatten(1)).chunk(2, dim=-1)
        return mean, log_variance

    def decode(self, z: Tensor) -> Tensor:
        return self.likelihood.mean(self._output(z))

    def draw(self, x: Tensor, target: Tensor, samples: int) -> Draw:
        mean, log_variance = self.posterior(x)  # (B, D)
        noise = torch.randn(samples, *mean.shape, device=mean.device)  # (K, B, D)
        z = mean + noise * (0.5 * log_variance).exp()
        log_px = self.likelihood.log_prob(self._output(z), target)  # (K, B)
        log_pz = _standard_normal_log_prob(z)
        log_qz = _standard_normal_log_prob(noise) - 0.5 * log_variance.sum(-1)
        kl = kl_to_standard_normal(mean, log_variance).sum(-1).expand(samples, -1)
        return Draw(log_px, log_pz, log_qz, kl)

    def _output(self, z: Tensor) -> Tensor:
        output: Tensor = self.decoder(z)
        return torch.unflatten(output, -1, self.shape)  # (..., D) -> (..., C, H, W)


def kl_to_standard_normal(mean: Tensor, log_variance: Tensor) -> Tensor:
    """KL(N(mean, exp(log_variance)) || N(0, 1)), elementwise. Units: nats. Source: Kingma & Welling 2014, app. B."""
    # expm1(v) - v instead of exp(v) - 1 - v: near the prior the difference of large terms would round to noise.
    return 0.5 * (mean.square() + log_variance.expm1() - log_variance)


def _standard_normal_log_prob(z: Tensor) -> Tensor:
    return -0.5 * (z.square() + math.log(2 * math.pi)).sum(-1)  # (..., D) -> (...)
