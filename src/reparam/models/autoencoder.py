"""The autoencoder: a deterministic code, no posterior."""

from dataclasses import replace

import torch
from torch import Tensor

from reparam.models.draw import Draw, Encoded, Estimator, Layer, in_full
from reparam.models.latent import EncoderDecoder


class Autoencoder(EncoderDecoder):
    """An encoder (B, C, H, W) -> (B, D), a decoder (N, D) -> (N, P*C, H, W), any likelihood.

    It has no distribution of codes: prior, posterior and KL of its draws are 0, and there is no log-likelihood.
    Source: Hinton & Salakhutdinov 2006.
    """

    stochastic_layers = 0

    def encode(self, x: Tensor, labels: Tensor | None = None) -> Encoded:
        """Return the code and its log variance, -inf: the code is exact. Shapes: (B, C, H, W) -> (B, D), (B, D)."""
        code = in_full(self.encoder(self.condition.on_image(x, labels)))
        return [(code, torch.full_like(code, -torch.inf))]

    def sample_posterior(self, x: Tensor, labels: Tensor | None = None) -> Tensor:
        return self.posterior(x, labels)[0]

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
        output = self.output_at(z, labels)
        log_px = self.likelihood.log_prob(output, target).expand(samples, -1)
        nothing = torch.zeros_like(z).expand(samples, -1, -1)
        layer = Layer.of(z.expand(samples, -1, -1), (code, log_variance), nothing, nothing)
        return replace(Draw.of(log_px, layer), output=output)  # that of one sample: all samples are equal
