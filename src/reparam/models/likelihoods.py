"""Distributions over images, given what the decoder puts out."""

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reparam.config.model import GaussianConfig, LearnedGaussianConfig, LogisticMixtureConfig, PixelGaussianConfig
from reparam.errors import ParamsError
from reparam.models.draw import Likelihood, gaussian_log_prob

# Bounds of log sigma (of log scale, for logistics) where the decoder puts it out: from half a grey level to 7 times the
# range of [0, 1]. Without them, pixels that never vary let the density grow without end.
LOG_SIGMA = (-6.0, 2.0)
CLIP = 1e-3  # a pixel that is black in all training images: a logit of -6.9 instead of -inf (Burda et al. 2016, code)
PIXELS = (-3, -2, -1)
FACTORS = 112  # 2 ** 112 is within float32; a seventh of MNIST's pixels
# Of the continuous Bernoulli: below, its series are exact to float32, while the closed forms lose digits as 1 / output.
SMALL = 1.0


class _LogBernoulli(torch.autograd.Function):
    """Sum over pixels of target * output - log(1 + exp(output)), to float32's error of such a sum.

    On a CPU, logarithms pixel by pixel take longer than the matrix product before them. Here one is taken of the
    product of many 1 + exp(-|output|): between 1 and 2 each, so that FACTORS of them stay within float32.
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

    def log_prob(self, output: Tensor, target: Tensor) -> Tensor:
        # From the logits: log(sigmoid(output)) would be -inf where the sigmoid underflows.
        log_px: Tensor = _LogBernoulli.apply(output, target)
        return log_px

    def mean(self, output: Tensor) -> Tensor:
        return output.sigmoid()

    def output_of(self, mean: Tensor) -> Tensor:
        return mean.clamp(CLIP, 1 - CLIP).logit()


class ContinuousBernoulli:
    """A density proportional to exp(output * pixel) on [0, 1]. Source: Loaiza-Ganem & Cunningham 2019, eq. 4 to 8."""

    outputs = 1
    needs_binary = False
    needs_unit = True
    is_discrete = False

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
        safe = torch.where(is_small, torch.ones_like(output), output)
        # exp(80) is as good as infinity here, but has a gradient.
        return torch.where(is_small, series, -1 / torch.expm1((-safe).clamp_max(80)) - 1 / safe)

    def output_of(self, mean: Tensor) -> Tensor:
        return _invert(self.mean, mean, limit=1 / CLIP)


class Gaussian:
    """Independent pixels of one fixed standard deviation."""

    outputs = 1
    needs_binary = False
    is_discrete = False

    def __init__(self, config: GaussianConfig) -> None:
        self.sigma = config.sigma
        self.link = LINKS[config.mean]
        self.needs_unit = self.link.is_unit

    def log_prob(self, output: Tensor, target: Tensor) -> Tensor:
        distance = (target - self.mean(output)) / self.sigma
        return (-0.5 * distance.square() - math.log(self.sigma) - 0.5 * math.log(2 * math.pi)).sum(PIXELS)

    def mean(self, output: Tensor) -> Tensor:
        return self.link.to_mean(output)

    def output_of(self, mean: Tensor) -> Tensor:
        return self.link.to_output(mean)


class LearnedGaussian(nn.Module):
    """Independent pixels of one standard deviation, learned as a weight of the model."""

    outputs = 1
    needs_binary = False
    is_discrete = False

    def __init__(self, config: LearnedGaussianConfig) -> None:
        super().__init__()
        self.link = LINKS[config.mean]
        self.needs_unit = self.link.is_unit
        low, high = (math.exp(bound) for bound in LOG_SIGMA)
        if not low < config.sigma < high:
            raise ParamsError(
                f"params.yaml: model.gaussian_learned.sigma: wanted a number from {low:.4f} to {high:.2f} to start "
                f"from, found {config.sigma}"
            )
        self.log_sigma = nn.Parameter(_unbound(torch.tensor(config.sigma).log(), *LOG_SIGMA))

    def log_prob(self, output: Tensor, target: Tensor) -> Tensor:
        return gaussian_log_prob(target, self.mean(output), 2 * _bound(self.log_sigma, *LOG_SIGMA)).sum(PIXELS)

    def mean(self, output: Tensor) -> Tensor:
        return self.link.to_mean(output)

    def output_of(self, mean: Tensor) -> Tensor:
        return self.link.to_output(mean)


class PixelGaussian:
    """Independent pixels; the decoder puts out mean and log sigma of each, sigma bounded by LOG_SIGMA."""

    outputs = 2
    needs_binary = False
    is_discrete = False

    def __init__(self, config: PixelGaussianConfig) -> None:
        self.link = LINKS[config.mean]
        self.needs_unit = self.link.is_unit

    def log_prob(self, output: Tensor, target: Tensor) -> Tensor:
        log_sigma = _bound(output.chunk(2, dim=-3)[1], *LOG_SIGMA)
        return gaussian_log_prob(target, self.mean(output), 2 * log_sigma).sum(PIXELS)

    def mean(self, output: Tensor) -> Tensor:
        return self.link.to_mean(output.chunk(2, dim=-3)[0])

    def output_of(self, mean: Tensor) -> Tensor:
        return torch.cat([self.link.to_output(mean), torch.zeros_like(mean)], dim=-3)


class Laplace:
    """Independent Laplace pixels of one fixed standard deviation: the scale is sigma / sqrt(2)."""

    outputs = 1
    needs_binary = False
    is_discrete = False

    def __init__(self, config: GaussianConfig) -> None:
        self.scale = config.sigma / math.sqrt(2)
        self.link = LINKS[config.mean]
        self.needs_unit = self.link.is_unit

    def log_prob(self, output: Tensor, target: Tensor) -> Tensor:
        return (-(target - self.mean(output)).abs() / self.scale - math.log(2 * self.scale)).sum(PIXELS)

    def mean(self, output: Tensor) -> Tensor:
        return self.link.to_mean(output)

    def output_of(self, mean: Tensor) -> Tensor:
        return self.link.to_output(mean)


class LogisticMixture:
    """A mixture of logistics for each pixel and channel, rounded to the 256 grey values; the ends take the tails.

    The decoder puts out the logits of the shares, the centres and the log scales, M numbers each.
    Source: Salimans et al. 2017, eq. 2, with the channels independent.
    """

    needs_binary = False
    needs_unit = True
    is_discrete = True

    def __init__(self, config: LogisticMixtureConfig) -> None:
        self.components = config.components
        self.outputs = 3 * self.components

    def log_prob(self, output: Tensor, target: Tensor) -> Tensor:
        """Return the log mass of each grey level's interval; black and white have the tails as well."""
        log_shares, centre, log_scale = self._parts(output)  # (..., M, C, H, W)
        pixel, step = target.unsqueeze(-4), 1 / 510
        upper = torch.where(pixel > 1 - step, torch.inf, (pixel + step - centre) * (-log_scale).exp())
        lower = torch.where(pixel < step, -torch.inf, (pixel - step - centre) * (-log_scale).exp())
        return (log_shares + _log_logistic_between(lower, upper)).logsumexp(-4).sum(PIXELS)

    def mean(self, output: Tensor) -> Tensor:
        """Return the mean of the logistics cut off at [0, 1]; rounding moves it by half a grey level at most."""
        log_shares, centre, log_scale = self._parts(output)
        scale = log_scale.exp()
        means = scale * (F.softplus(centre / scale) - F.softplus((centre - 1) / scale))
        return (log_shares.exp() * means).sum(-4)

    def output_of(self, mean: Tensor) -> Tensor:
        # The tails cut off pull the mean to grey, so that the middle of the components must lie beyond it.
        return self._spread(_invert(lambda middle: self.mean(self._spread(middle)), mean, limit=3))

    def _spread(self, middle: Tensor) -> Tensor:
        shares = torch.zeros_like(middle)
        centres = [middle + offset for offset in torch.linspace(-0.5, 0.5, self.components + 2)[1:-1].tolist()]
        scales = torch.full_like(middle, -2.0)  # wide enough for the components to overlap: exp(-2) = 0.14
        return torch.cat([shares] * self.components + centres + [scales] * self.components, dim=-3)

    def _parts(self, output: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        split = torch.unflatten(output, -3, (3, self.components, -1))  # (..., 3, M, C, H, W)
        logits, centre, log_scale = split.unbind(-5)
        return logits.log_softmax(-4), centre, _bound(log_scale, *LOG_SIGMA)


class DiscretisedLogistic(LogisticMixture):
    """A mixture of one. Source: Kingma et al. 2016, app. B."""

    def __init__(self) -> None:
        super().__init__(LogisticMixtureConfig(components=1))


class Linear:
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


LINKS: dict[str, type[Linear] | type[Sigmoid]] = {"linear": Linear, "sigmoid": Sigmoid}


def is_density(likelihood: Likelihood, binarization: str) -> bool:
    """Whether the likelihood is one of pixels so treated: a Bernoulli of grey pixels is only a cross-entropy.

    On black and white pixels all others would have no bound: a density can grow without end at two points.
    """
    return likelihood.needs_binary == (binarization != "none")


def _bound(values: Tensor, low: float, high: float) -> Tensor:
    """Keep values between bounds, smoothly, so that a gradient leads back. Source: Chua et al. 2018, app. A.1."""
    values = high - F.softplus(high - values)
    return low + F.softplus(values - low)


def _unbound(values: Tensor, low: float, high: float) -> Tensor:
    """Invert `_bound`; of values at the bounds or beyond, which nothing is mapped to, take one just inside."""
    values = values.clamp(low + 1e-3, high - 1e-3)
    values = low + _inverse_softplus(values - low)
    return high - _inverse_softplus(high - values)


def _inverse_softplus(values: Tensor) -> Tensor:
    return values + torch.log(-torch.expm1(-values))


def _invert(function: Callable[[Tensor], Tensor], mean: Tensor, limit: float) -> Tensor:
    """Solve function(x) = mean by bisection between -limit and limit, for a rising function without closed inverse."""
    wanted = mean.clamp(CLIP, 1 - CLIP)
    low, high = torch.full_like(wanted, -limit), torch.full_like(wanted, limit)
    for _ in range(60):
        middle = (low + high) / 2
        is_below = function(middle) < wanted
        low, high = torch.where(is_below, middle, low), torch.where(is_below, high, middle)
    return (low + high) / 2


def _away_from_zero(values: Tensor) -> Tensor:
    # What `where` does not choose still has a gradient, and infinity times 0 is NaN.
    return values.clamp_min(SMALL / 4)


def _log_logistic_between(lower: Tensor, upper: Tensor) -> Tensor:
    """log(sigmoid(upper) - sigmoid(lower)), without cancellation. Shapes: unchanged."""
    # = logsigmoid(upper) + logsigmoid(-lower) + log(1 - exp(lower - upper))
    width = (upper - lower).clamp_min(1e-12)
    return F.logsigmoid(upper) + F.logsigmoid(-lower) + torch.log(-torch.expm1(-width))


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
