"""The variational autoencoder with one layer of Gaussian latents."""

from dataclasses import replace

import torch
from torch import Tensor

from reparam.models.draw import Draw, Encoded, Estimator, Layer, gaussian_log_prob, halves, standard_normal_log_prob
from reparam.models.latent import EncoderDecoder


class VAE(EncoderDecoder):
    """A diagonal Gaussian posterior, any prior, any likelihood.

    The encoder maps (B, C, H, W) to mean and log variance side by side, (B, 2D); the decoder maps (N, D) to the P
    numbers a pixel that the likelihood wants, (N, P*C, H, W). Under a condition the decoder maps (N, D + E).
    Source: Kingma & Welling 2014, sec. 3.
    """

    stochastic_layers = 1

    def encode(self, x: Tensor, labels: Tensor | None = None) -> Encoded:
        """Return mean and log variance. Shapes: (B, C, H, W) -> (B, D), (B, D)."""
        return [halves(self.encoder(self.condition.on_image(x, labels)))]

    def sample_posterior(self, x: Tensor, labels: Tensor | None = None) -> Tensor:
        mean, log_variance = self.posterior(x, labels)
        return sample_gaussian(mean, log_variance, torch.randn_like(mean), "pathwise")[0]

    def draw_from(
        self,
        encoded: Encoded,
        target: Tensor,
        samples: int,
        estimator: Estimator = "pathwise",
        labels: Tensor | None = None,
    ) -> Draw:
        """Sample the posterior, and score `target`. Shapes: fields (samples, B)."""
        [layer] = self.layers(encoded, draw_noise(encoded, samples, self.latent_size), estimator)
        output = self.output_at(layer.z, labels)
        return replace(Draw.of(self.likelihood.log_prob(output, target), layer), output=output)

    def layers(self, encoded: Encoded, noise: Tensor, estimator: Estimator = "pathwise") -> list[Layer]:
        [(mean, log_variance)] = encoded  # (B, D)
        z, log_qz = sample_gaussian(mean, log_variance, noise, estimator)
        return [Layer.under(self.prior, z, (mean, log_variance), log_qz)]


def draw_noise(encoded: Encoded, samples: int, size: int) -> Tensor:
    """Draw standard normal noise for posterior samples of encoded images. Shapes: -> (samples, B, size)."""
    mean = encoded[0][0]
    return torch.randn((samples, len(mean), size), device=mean.device, dtype=mean.dtype)


def sample_gaussian(mean: Tensor, log_variance: Tensor, noise: Tensor, estimator: Estimator) -> tuple[Tensor, Tensor]:
    """Shift and scale noise to N(mean, exp(log_variance)), and return the log density of the result in each dimension.

    Shapes: (B, D) or, sampled below, (K, B, D) twice, and (K, B, D) -> (K, B, D) twice; or all (B, D).
    """
    z = mean + noise * (0.5 * log_variance).exp()
    if estimator == "pathwise":
        # (z - mean) / sigma is the noise: its rounding need not be undone.
        return z, standard_normal_log_prob(noise) - 0.5 * log_variance
    if estimator == "stopped":
        return z, gaussian_log_prob(z, mean.detach(), log_variance.detach())
    z = z.detach()
    return z, gaussian_log_prob(z, mean, log_variance)
