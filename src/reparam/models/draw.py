"""What a model says about a batch, and the two protocols that the rest of the package relies on."""

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor


@dataclass(frozen=True)
class Draw:
    """Log densities at K posterior samples of a batch of B images.

    ELBO, importance-weighted bounds, log-likelihood and every objective are read off these four.
    Shapes: (K, B). Units: nats.
    """

    log_px: Tensor  # log p(x|z)
    log_pz: Tensor  # log p(z)
    log_qz: Tensor  # log q(z|x)
    kl: Tensor  # KL(q(z|x) || p(z)): the closed form where there is one, else log_qz - log_pz


class Model(Protocol):
    """Anything that can be trained, evaluated and exported."""

    def draw(self, x: Tensor, target: Tensor, samples: int) -> Draw:
        """Encode `x`, sample the posterior, and score `target`.

        Shapes: x and target (B, C, H, W); fields (samples, B).
        """

    def posterior(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and log variance of q(z|x). Shapes: (B, C, H, W) -> (B, D), (B, D)."""

    def decode(self, z: Tensor) -> Tensor:
        """Return the mean image. Shapes: (N, D) -> (N, C, H, W). Units: [0, 1]."""


class Likelihood(Protocol):
    """A distribution over images, given what the decoder puts out."""

    needs_binary: bool  # whether it is a probability of black and white pixels only

    def log_prob(self, output: Tensor, target: Tensor) -> Tensor:
        """Sum over pixels. Shapes: output (..., C, H, W), target (C, H, W) and any batch -> (...). Units: nats."""

    def mean(self, output: Tensor) -> Tensor:
        """Return the expected image. Shapes: (..., C, H, W), unchanged."""
