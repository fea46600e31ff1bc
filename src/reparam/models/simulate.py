"""Draw images from a likelihood: data whose latents are known."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Laplace

from reparam.errors import ParamsError
from reparam.models import likelihoods
from reparam.models.draw import Likelihood
from reparam.models.likelihoods import LOG_SIGMA


def simulate(likelihood: Likelihood, output: Tensor) -> Tensor:
    """Draw one image for each output, from torch's generator. Shapes: (..., P*C, H, W) -> (..., C, H, W).

    Raises: ParamsError where nobody has said how to draw from the likelihood.
    """
    if type(likelihood) not in SIMULATORS:
        known = ", ".join(kind.__name__ for kind in SIMULATORS)
        raise ParamsError(
            f"params.yaml: model.likelihood: wanted one that images can be drawn from ({known}), found "
            f"{type(likelihood).__name__}; add it to SIMULATORS in models/simulate.py"
        )
    with torch.no_grad():
        return SIMULATORS[type(likelihood)](likelihood, output)


def _bernoulli(_likelihood: Any, output: Tensor) -> Tensor:
    return torch.bernoulli(output.sigmoid())


def _continuous_bernoulli(_likelihood: Any, output: Tensor) -> Tensor:
    """Invert the distribution function, of negative outputs; positive ones are those in black for white."""
    slope = -output.abs().clamp_min(1e-6)  # flat to a millionth
    dark = torch.log1p(torch.rand_like(output) * slope.expm1()) / slope
    # The logarithm of what is left of 1 after rounding can go beyond the end.
    return torch.where(output > 0, 1 - dark, dark).clamp(0, 1)


def _gaussian(likelihood: Any, output: Tensor) -> Tensor:
    return torch.normal(likelihood.mean(output), likelihood.sigma)


def _learned_gaussian(likelihood: Any, output: Tensor) -> Tensor:
    mean = likelihood.mean(output)
    return torch.normal(mean, _sigma(likelihood.log_sigma).expand_as(mean))


def _pixel_gaussian(likelihood: Any, output: Tensor) -> Tensor:
    return torch.normal(likelihood.mean(output), _sigma(output.chunk(2, dim=-3)[1]))


def _laplace(likelihood: Any, output: Tensor) -> Tensor:
    drawn: Tensor = Laplace(likelihood.mean(output), likelihood.scale).sample()
    return drawn


def _logistic_mixture(likelihood: Any, output: Tensor) -> Tensor:
    """Choose a logistic of each pixel, draw from it, and round to the 256 grey values; the ends take the tails."""
    log_shares, centre, log_scale = likelihood._parts(output)  # (..., M, C, H, W)
    gumbel = -torch.empty_like(log_shares).exponential_().log()  # the largest sum is a draw (Gumbel 1954)
    chosen = (log_shares + gumbel).argmax(-4, keepdim=True)
    centre, scale = (values.gather(-4, chosen).squeeze(-4) for values in (centre, log_scale.exp()))
    grey = centre + scale * torch.rand_like(centre).logit(eps=torch.finfo(centre.dtype).tiny)
    drawn: Tensor = (grey.clamp(0, 1) * 255).round() / 255
    return drawn


def _sigma(unbounded: Tensor) -> Tensor:
    return likelihoods._bound(unbounded, *LOG_SIGMA).exp()


SIMULATORS: dict[type, Callable[[Any, Tensor], Tensor]] = {
    likelihoods.Bernoulli: _bernoulli,
    likelihoods.ContinuousBernoulli: _continuous_bernoulli,
    likelihoods.Gaussian: _gaussian,
    likelihoods.LearnedGaussian: _learned_gaussian,
    likelihoods.PixelGaussian: _pixel_gaussian,
    likelihoods.Laplace: _laplace,
    likelihoods.LogisticMixture: _logistic_mixture,
    likelihoods.DiscretisedLogistic: _logistic_mixture,
}
