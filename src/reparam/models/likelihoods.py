"""Distributions over images, given the output of the decoder."""

import math
from abc import abstractmethod
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, distributions, nn

from reparam.config.model import GaussianConfig, LearnedGaussianConfig, PixelGaussianConfig
from reparam.errors import ParamsError
from reparam.models.draw import Likelihood, gaussian_log_prob
from reparam.models.logistic import DiscretisedLogistic, LogisticMixture
from reparam.models.ranges import CLIP, LOG_SIGMA, bound, invert, unbound

PIXELS = (-3, -2, -1)
FACTORS = 112  # 2 ** 112 is within float32; a seventh of MNIST's pixels
# Outputs of the continuous Bernoulli that are smaller use a series, exact to float32: closed forms lose digits there.
SMALL = 1.0


class _LogBernoulli(torch.autograd.Function):
    """Sum over pixels of target * output - log(1 + exp(output)), to float32's error of such a sum.

    On a CPU, logarithms pixel by pixel take longer than the matrix product before them. Here, many 1 + exp(-|output|)
    share one logarithm, that of their product. Each lies between 1 and 2, so the product of FACTORS stays within
    float32.
    """

    @staticmethod
    def forward(output: Tensor, target: Tensor) -> Tensor:
        """Shapes: as `Likelihood.log_prob`."""
        factors = output.abs().neg_().exp_().add_(1).flatten(-3)
        groups = torch.unflatten(factors, -1, (-1, _largest_divisor(factors.shape[-1], FACTORS)))
        positive = (target * output).sub_(output.clamp_min(0)).sum(PIXELS)
        rest: Tensor = groups.prod(-1).log().sum(-1)
        return positive - rest

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], _output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """Return gradients of output and target. Shapes: those of output and target."""
        output, target = ctx.saved_tensors
        gradient = gradient[..., None, None, None]
        of_output = gradient * (target - output.sigmoid()) if ctx.needs_input_grad[0] else None
        of_target = (gradient * output).sum_to_size(target.shape) if ctx.needs_input_grad[1] else None
        return of_output, of_target


def _largest_divisor(number: int, limit: int) -> int:
    return next(divisor for divisor in range(min(number, limit), 0, -1) if number % divisor == 0)


class Bernoulli:
    """Each pixel is white with probability sigmoid(output).

    A density of black and white pixels only: on grey ones the value is a cross-entropy, not a log-likelihood.
    """

    outputs = 1
    needs_binary = True
    needs_unit = True
    is_discrete = False
    sigma = None

    def log_prob(self, output: Tensor, target: Tensor) -> Tensor:
        # From the logits: log(sigmoid(output)) would be -inf where the sigmoid underflows.
        log_px: Tensor = _LogBernoulli.apply(output, target)
        return log_px

    def mean(self, output: Tensor) -> Tensor:
        return output.sigmoid()

    def deviation(self, output: Tensor) -> Tensor:
        return (output.sigmoid() * (-output).sigmoid()).sqrt()

    def sample(self, output: Tensor) -> Tensor:
        return torch.bernoulli(output.sigmoid()).detach()

    def output_of(self, mean: Tensor) -> Tensor:
        return mean.clamp(CLIP, 1 - CLIP).logit()


class ContinuousBernoulli:
    """A density proportional to exp(output * pixel) on [0, 1]. Source: Loaiza-Ganem & Cunningham 2019, eq. 4 to 8."""

    outputs = 1
    needs_binary = False
    needs_unit = True
    is_discrete = False
    sigma = None

    def log_prob(self, output: Tensor, target: Tensor) -> Tensor:
        """Return log p(x|z), by a series around an output of 0, where the normaliser is 0 / 0."""
        # The normaliser is log((e^o - 1) / o) = o / 2 + log(sinh(o / 2) / (o / 2)).
        is_small, half, square = output.abs() < SMALL, _away_from_zero(output.abs() / 2), output.square()
        series = square * (1 / 24 - square * (1 / 2880 - square * (1 / 181440 - square / 9676800)))
        log_sinhc = torch.where(is_small, series, half + torch.log1p(-(-2 * half).exp()) - math.log(2) - half.log())
        return ((target - 0.5) * output - log_sinhc).sum(PIXELS)

    def mean(self, output: Tensor) -> Tensor:
        """Return the mean of the density, by a series around an output of 0."""
        is_small, square = output.abs() < SMALL, output.square()
        series = 0.5 + output * (1 / 12 - square * (1 / 720 - square * (1 / 30240 - square / 1209600)))
        safe = torch.where(is_small, 1.0, output)
        # exp(80) is as good as infinity here, but has a gradient.
        return torch.where(is_small, series, -1 / torch.expm1((-safe).clamp_max(80)) - 1 / safe)

    def deviation(self, output: Tensor) -> Tensor:
        return distributions.ContinuousBernoulli(logits=output).stddev

    def sample(self, output: Tensor) -> Tensor:
        drawn: Tensor = distributions.ContinuousBernoulli(logits=output).sample()  # type: ignore[no-untyped-call]
        return drawn

    def output_of(self, mean: Tensor) -> Tensor:
        return invert(self.mean, mean, limit=1 / CLIP)


class Located:
    """Independent pixels around a mean: the first (or only) output of each pixel, passed through a link."""

    outputs = 1
    needs_binary = False
    is_discrete = False

    def __init__(self, config: PixelGaussianConfig) -> None:
        super().__init__()
        self.link = LINKS[config.mean]
        self.needs_unit = self.link.is_unit

    def mean(self, output: Tensor) -> Tensor:
        return self.link.to_mean(output.chunk(self.outputs, dim=-3)[0])

    def output_of(self, mean: Tensor) -> Tensor:
        """Return an output whose expected image is `mean`, with log sigmas of 0 where the decoder puts them out."""
        return torch.cat([self.link.to_output(mean), *[torch.zeros_like(mean)] * (self.outputs - 1)], dim=-3)


class Gaussian(Located):
    """Gaussian pixels of one fixed standard deviation."""

    def __init__(self, config: GaussianConfig) -> None:
        super().__init__(config)
        self.sigma = config.sigma

    def log_prob(self, output: Tensor, target: Tensor) -> Tensor:
        # By hand: torch.distributions would make a tensor of sigma for all pixels, and check all values.
        distance = (target - self.mean(output)) / self.sigma
        return (-0.5 * distance.square() - math.log(self.sigma) - 0.5 * math.log(2 * math.pi)).sum(PIXELS)

    def deviation(self, output: Tensor) -> Tensor:
        return torch.full_like(self.mean(output), self.sigma)

    def sample(self, output: Tensor) -> Tensor:
        return torch.normal(self.mean(output), self.sigma).detach()


class UncertainGaussian(Located):
    """Gaussian pixels whose log sigma is learned."""

    @abstractmethod
    def log_sigma_of(self, output: Tensor) -> Tensor:
        """Return the unbounded log sigma. Shapes: (..., P*C, H, W) -> (..., C, H, W), or anything that broadcasts."""

    def log_prob(self, output: Tensor, target: Tensor) -> Tensor:
        log_variance = 2 * bound(self.log_sigma_of(output), *LOG_SIGMA)
        return gaussian_log_prob(target, self.mean(output), log_variance).sum(PIXELS)

    def deviation(self, output: Tensor) -> Tensor:
        return bound(self.log_sigma_of(output), *LOG_SIGMA).exp().expand_as(self.mean(output))

    def sample(self, output: Tensor) -> Tensor:
        return torch.normal(self.mean(output), self.deviation(output)).detach()


class LearnedGaussian(UncertainGaussian, nn.Module):
    """Gaussian pixels of one standard deviation, learned as a weight of the model."""

    def __init__(self, config: LearnedGaussianConfig) -> None:
        super().__init__(config)
        low, high = (math.exp(limit) for limit in LOG_SIGMA)
        if not low < config.sigma < high:
            raise ParamsError(
                f"params.yaml: model.gaussian_learned.sigma: wanted a number from {low:.4f} to {high:.2f} to start "
                f"from, found {config.sigma}"
            )
        self.log_sigma = nn.Parameter(unbound(torch.tensor(config.sigma).log(), *LOG_SIGMA))

    @property
    def sigma(self) -> float:
        return bound(self.log_sigma.detach(), *LOG_SIGMA).exp().item()

    def log_sigma_of(self, _output: Tensor) -> Tensor:
        return self.log_sigma


class PixelGaussian(UncertainGaussian):
    """Gaussian pixels; the decoder puts out mean and log sigma of each."""

    outputs = 2
    sigma = None

    def log_sigma_of(self, output: Tensor) -> Tensor:
        return output.chunk(2, dim=-3)[1]


class Laplace(Located):
    """Laplace pixels of one fixed standard deviation: the scale is sigma / sqrt(2)."""

    def __init__(self, config: GaussianConfig) -> None:
        super().__init__(config)
        self.sigma = config.sigma
        self.scale = config.sigma / math.sqrt(2)

    def log_prob(self, output: Tensor, target: Tensor) -> Tensor:
        # By hand for the same reason as a Gaussian.
        return (-(target - self.mean(output)).abs() / self.scale - math.log(2 * self.scale)).sum(PIXELS)

    def deviation(self, output: Tensor) -> Tensor:
        return torch.full_like(self.mean(output), math.sqrt(2) * self.scale)

    def sample(self, output: Tensor) -> Tensor:
        drawn: Tensor = distributions.Laplace(self.mean(output), self.scale).sample()
        return drawn


class Identity:
    """The mean is the output itself."""

    is_unit = False

    @staticmethod
    def to_mean(output: Tensor) -> Tensor:
        return output

    @staticmethod
    def to_output(mean: Tensor) -> Tensor:
        return mean


class Sigmoid:
    """The mean lies between black and white, in [0, 1]."""

    is_unit = True

    @staticmethod
    def to_mean(output: Tensor) -> Tensor:
        return output.sigmoid()

    @staticmethod
    def to_output(mean: Tensor) -> Tensor:
        return mean.clamp(CLIP, 1 - CLIP).logit()


LINKS: dict[str, type[Identity] | type[Sigmoid]] = {"linear": Identity, "sigmoid": Sigmoid}


def is_density(likelihood: Likelihood, binarization: str) -> bool:
    """Return whether the likelihood is a density of these pixels: a Bernoulli of grey ones is only a cross-entropy.

    On black and white pixels all other likelihoods would have no bound: a density can grow without end at two points.
    """
    is_binary = binarization != "none"
    return likelihood.needs_binary == is_binary


def _away_from_zero(values: Tensor) -> Tensor:
    # The values that `where` does not choose still have a gradient, and infinity times 0 is NaN.
    return values.clamp_min(SMALL / 4)


LIKELIHOODS: dict[str, Callable[..., Likelihood]] = {
    "bernoulli": Bernoulli,
    "continuous_bernoulli": ContinuousBernoulli,
    "gaussian": Gaussian,
    "gaussian_learned": LearnedGaussian,
    "gaussian_per_pixel": PixelGaussian,
    "laplace": Laplace,
    "discretised_logistic": DiscretisedLogistic,
    "logistic_mixture": LogisticMixture,
}
