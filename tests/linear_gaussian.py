"""Models whose log p(x) is known, because everything in them is linear and Gaussian."""

import math
from types import SimpleNamespace

import torch
from torch import Tensor, nn
from torch.distributions import MultivariateNormal, Normal

from reparam.config.model import GaussianConfig
from reparam.models import likelihoods
from reparam.models.draw import Draw, Encoded, Estimator, Layer
from reparam.models.hierarchical import HierarchicalVAE
from reparam.models.latent import LatentModel
from reparam.models.priors import StandardNormal
from reparam.models.vae import VAE

SHAPE = (1, 2, 2)
SIGMA = 0.6
# Columns at right angles, so that latents stay independent given an image: the posterior is in the model's family.
LOADINGS = torch.tensor(
    [[0.5, 1.0, -0.3], [0.5, -1.0, -0.3], [0.5, 1.0, 0.3], [0.5, -1.0, 0.3]], dtype=torch.float64
)  # (pixels, D_1)
OFFSET = torch.tensor([0.3, -0.2, 0.9, 0.1], dtype=torch.float64)
# Of z_1 given z_2; each row and column has one number at most, to the same end.
UPPER_LOADINGS = torch.tensor([[0.0, -1.5], [0.7, 0.0], [0.0, 0.0]], dtype=torch.float64)  # (D_1, D_2)
UPPER_OFFSET = torch.tensor([0.4, -0.6, 0.2], dtype=torch.float64)
UPPER_VARIANCE = torch.tensor([0.5, 1.5, 0.8], dtype=torch.float64)


class LinearGaussian(LatentModel):
    """z ~ N(0, I), x | z ~ N(z, I), so x ~ N(0, 2 I) and z | x ~ N(x / 2, I / 2).

    Each pixel has its own latent; q(z|x) = N(slope * x, variance), by default the posterior itself.
    """

    stochastic_layers = 1
    likelihood, prior = SimpleNamespace(outputs=1), StandardNormal(2)

    def __init__(self, slope: float = 0.5, variance: float = 0.5) -> None:
        super().__init__()
        self.slope = slope
        self.variance = variance

    def posterior_of(self, encoded: Encoded) -> tuple[Tensor, Tensor]:
        [layer] = encoded
        return layer

    def encode(self, x: Tensor, labels: Tensor | None = None) -> Encoded:
        mean = self.slope * x.flatten(1)
        return [(mean, torch.full_like(mean, self.variance).log())]

    def draw_from(
        self,
        encoded: Encoded,
        target: Tensor,
        samples: int,
        estimator: Estimator = "pathwise",
        labels: Tensor | None = None,
    ) -> Draw:
        [(mean, log_variance)] = encoded
        q, prior = Normal(mean, (0.5 * log_variance).exp()), Normal(torch.zeros_like(mean), 1.0)
        z = q.sample((samples,))  # (K, B, D)
        kl = torch.distributions.kl_divergence(q, prior).expand(samples, -1, -1)
        layer = Layer.of(z, (mean, log_variance), q.log_prob(z), prior.log_prob(z), kl)
        return Draw.of(Normal(z, 1.0).log_prob(target.flatten(1)).sum(-1), layer)

    def log_evidence(self, x: Tensor) -> Tensor:
        """log p(x). Shapes: (B, ...) -> (B,)."""
        return Normal(0.0, 2**0.5).log_prob(x.flatten(1)).sum(-1)

    def expected_elbo(self, x: Tensor) -> Tensor:
        """E_q[log p(x|z)] - KL in closed form. Shapes: (B, ...) -> (B,)."""
        flat, (mean, log_variance) = x.flatten(1), self.posterior(x)
        variance = log_variance.exp()
        reconstruction = Normal(mean, 1.0).log_prob(flat) - variance / 2
        return (reconstruction - (mean.square() + variance - 1 - log_variance) / 2).sum(-1)


def linear_vae(error: float = 0.0) -> VAE:
    """z ~ N(0, I), x | z ~ N(LOADINGS z + OFFSET, SIGMA^2 I), in double precision.

    The encoder gives the posterior itself, its outputs off by `error`.
    """
    zeros = torch.zeros(3, dtype=torch.float64)
    posterior = _posterior(LOADINGS, OFFSET, SIGMA**2 * _identity(4), zeros, zeros.exp(), error)
    return VAE(nn.Sequential(nn.Flatten(), posterior), _decoder(), _gaussian(), StandardNormal(3), SHAPE)


def linear_hierarchy(inference: str, error: float = 0.0) -> HierarchicalVAE:
    """z_2 ~ N(0, I), z_1 | z_2 ~ N(UPPER_LOADINGS z_2 + UPPER_OFFSET, UPPER_VARIANCE), x | z_1 as in `linear_vae`.

    The encoders give the posterior itself, their outputs off by `error`.
    """
    noise, upper_zeros = SIGMA**2 * _identity(4), torch.zeros(2, dtype=torch.float64)
    prior = linear(torch.cat([UPPER_LOADINGS, torch.zeros_like(UPPER_LOADINGS)]), _cat(UPPER_OFFSET, UPPER_VARIANCE))
    features: list[nn.Module] = []
    encoders: list[nn.Module]
    if inference == "bottom_up":  # p(z_1|x) p(z_2|z_1)
        marginal = UPPER_VARIANCE + UPPER_LOADINGS.square().sum(1)
        upper_noise = UPPER_VARIANCE.diag()
        below = _posterior(LOADINGS, OFFSET, noise, UPPER_OFFSET, marginal, error)
        above = _posterior(UPPER_LOADINGS, UPPER_OFFSET, upper_noise, upper_zeros, upper_zeros.exp(), error)
        encoders = [nn.Sequential(nn.Flatten(), below), above]
    else:  # p(z_2|x) p(z_1|z_2, x), the latter the product of p(z_1|z_2) and p(x|z_1)
        flat_prior = torch.full_like(UPPER_VARIANCE, math.inf)
        slope, offset = LOADINGS @ UPPER_LOADINGS, LOADINGS @ UPPER_OFFSET + OFFSET
        noise_of_both = noise + LOADINGS @ UPPER_VARIANCE.diag() @ LOADINGS.T
        features = [nn.Flatten(), nn.Identity()]
        encoders = [
            _posterior(LOADINGS, OFFSET, noise, torch.zeros_like(flat_prior), flat_prior, error),
            _posterior(slope, offset, noise_of_both, upper_zeros, upper_zeros.exp(), error),
        ]
    return HierarchicalVAE(features, encoders, [prior], _decoder(), _gaussian(), (3, 2), SHAPE)


def vae_evidence() -> MultivariateNormal:
    """p(x) of `linear_vae`."""
    return MultivariateNormal(OFFSET, LOADINGS @ LOADINGS.T + SIGMA**2 * _identity(4))


def hierarchy_evidence() -> MultivariateNormal:
    """p(x) of `linear_hierarchy`."""
    covariance = UPPER_VARIANCE.diag() + UPPER_LOADINGS @ UPPER_LOADINGS.T  # of z_1
    return MultivariateNormal(
        LOADINGS @ UPPER_OFFSET + OFFSET, LOADINGS @ covariance @ LOADINGS.T + SIGMA**2 * _identity(4)
    )


def linear(weight: Tensor, bias: Tensor) -> nn.Linear:
    """A layer with the given weights. Shapes: (outputs, inputs), (outputs,)."""
    layer = nn.Linear(weight.shape[1], weight.shape[0], dtype=weight.dtype)
    with torch.no_grad():
        layer.weight.copy_(weight)
        layer.bias.copy_(bias)
    return layer


def _posterior(slope: Tensor, offset: Tensor, noise: Tensor, mean: Tensor, variance: Tensor, error: float) -> nn.Linear:
    """Mean and log variance of z given slope z + offset + N(0, noise), where z ~ N(mean, variance)."""
    precision = (1 / variance).diag() + slope.T @ noise.inverse() @ slope
    covariance = precision.inverse()
    torch.testing.assert_close(covariance, covariance.diag().diag())  # in the family
    gain = covariance @ slope.T @ noise.inverse()
    bias = covariance @ (mean / variance) - gain @ offset
    return linear(torch.cat([gain, torch.zeros_like(gain)]), _cat(bias, covariance.diag()) + error)


def _decoder() -> nn.Module:
    return nn.Sequential(linear(LOADINGS, OFFSET), nn.Unflatten(1, SHAPE))


def _gaussian() -> likelihoods.Gaussian:
    return likelihoods.Gaussian(GaussianConfig(mean="linear", sigma=SIGMA))


def _cat(mean: Tensor, variance: Tensor) -> Tensor:
    return torch.cat([mean, variance.log()])


def _identity(size: int) -> Tensor:
    return torch.eye(size, dtype=torch.float64)
