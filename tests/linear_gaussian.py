"""A model whose log p(x) is known: z ~ N(0, I), x | z ~ N(z, I), so x ~ N(0, 2 I) and z | x ~ N(x / 2, I / 2)."""

import torch
from torch import Tensor
from torch.distributions import Normal

from reparam.models.draw import Draw


class LinearGaussian:
    """Each pixel has its own latent; q(z|x) = N(slope * x, variance), by default the posterior itself."""

    def __init__(self, slope: float = 0.5, variance: float = 0.5) -> None:
        self.slope = slope
        self.variance = variance

    def posterior(self, x: Tensor) -> tuple[Tensor, Tensor]:
        mean = self.slope * x.flatten(1)
        return mean, torch.full_like(mean, self.variance).log()

    def decode(self, z: Tensor) -> Tensor:
        return z[:, None, None, :]  # (N, D) -> (N, 1, 1, D)

    def draw(self, x: Tensor, target: Tensor, samples: int) -> Draw:
        mean, log_variance = self.posterior(x)
        q, prior = Normal(mean, (0.5 * log_variance).exp()), Normal(torch.zeros_like(mean), 1.0)
        z = q.sample((samples,))  # (K, B, D)
        kl = torch.distributions.kl_divergence(q, prior).sum(-1).expand(samples, -1)
        return Draw(
            Normal(z, 1.0).log_prob(target.flatten(1)).sum(-1), prior.log_prob(z).sum(-1), q.log_prob(z).sum(-1), kl
        )

    def log_evidence(self, x: Tensor) -> Tensor:
        """log p(x). Shapes: (B, ...) -> (B,)."""
        return Normal(0.0, 2**0.5).log_prob(x.flatten(1)).sum(-1)

    def expected_elbo(self, x: Tensor) -> Tensor:
        """E_q[log p(x|z)] - KL in closed form. Shapes: (B, ...) -> (B,)."""
        flat, (mean, log_variance) = x.flatten(1), self.posterior(x)
        variance = log_variance.exp()
        reconstruction = Normal(mean, 1.0).log_prob(flat) - variance / 2
        return (reconstruction - (mean.square() + variance - 1 - log_variance) / 2).sum(-1)
