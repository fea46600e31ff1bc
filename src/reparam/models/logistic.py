"""Logistic distributions of the 256 grey values."""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.distributions import Categorical

from reparam.config.model import LogisticMixtureConfig
from reparam.models.ranges import bound, invert

GREYS = 256  # values of a pixel
# Bounds of log scale. At the lower one, a pixel that is certain costs 0.01 bits; at -6, which is enough for a Gaussian,
# it would cost 1.4, because the logistic then reaches far beyond the one grey value.
LOG_SCALE = (-8.0, 2.0)
NARROW = 4e-4  # of an interval, in scales: below what LOG_SCALE allows a grey level, unless its centre is far away


class LogisticMixture:
    """A mixture of logistics for each pixel and channel, rounded to the 256 grey values; the ends take the tails.

    The decoder puts out the logits of the shares, the centres and the log scales, M numbers each.
    Source: Salimans et al. 2017, eq. 2, with the channels independent.
    """

    needs_binary = False
    needs_unit = True
    is_discrete = True
    sigma = None

    def __init__(self, config: LogisticMixtureConfig) -> None:
        self.components = config.components
        self.outputs = 3 * self.components

    def log_prob(self, output: Tensor, target: Tensor) -> Tensor:
        return self._log_masses(output, target).sum((-3, -2, -1))

    def mean(self, output: Tensor) -> Tensor:
        """Return the mean of the logistics cut off at [0, 1]; rounding moves it by half a grey level at most."""
        log_shares, centre, log_scale = self._parts(output)
        scale = log_scale.exp()
        means = scale * (F.softplus(centre / scale) - F.softplus((centre - 1) / scale))
        return (log_shares.exp() * means).sum(-4)

    def deviation(self, output: Tensor) -> Tensor:
        """Return the standard deviation of the rounded grey value, by a sum over all of them."""
        mean, variance = self.mean(output), torch.zeros(())
        for grey in torch.linspace(0, 1, GREYS).tolist():
            mass = self._log_masses(output, torch.full_like(mean, grey)).exp()
            variance = variance + mass * (grey - mean).square()
        return variance.sqrt()

    @torch.no_grad()
    def sample(self, output: Tensor) -> Tensor:
        """Choose a logistic of each pixel, draw from it, and round to the grey values; the ends take the tails."""
        log_shares, centre, log_scale = self._parts(output)  # (..., M, C, H, W)
        chosen = Categorical(logits=log_shares.movedim(-4, -1)).sample().unsqueeze(-4)  # type: ignore[no-untyped-call]
        centre, scale = (values.gather(-4, chosen).squeeze(-4) for values in (centre, log_scale.exp()))
        grey = centre + scale * torch.rand_like(centre).logit(eps=torch.finfo(centre.dtype).tiny)
        return (grey.clamp(0, 1) * (GREYS - 1)).round() / (GREYS - 1)

    def output_of(self, mean: Tensor) -> Tensor:
        # The tails cut off pull the mean to grey, so that the middle of the components must lie beyond it.
        return self._spread(invert(lambda middle: self.mean(self._spread(middle)), mean, limit=3))

    def _log_masses(self, output: Tensor, target: Tensor) -> Tensor:
        """Return the log mass of each grey level's interval; black and white have the tails as well."""
        log_shares, centre, log_scale = self._parts(output)  # (..., M, C, H, W)
        pixel, step = target.unsqueeze(-4), 1 / (2 * (GREYS - 1))
        upper = torch.where(pixel > 1 - step, torch.inf, (pixel + step - centre) * (-log_scale).exp())
        lower = torch.where(pixel < step, -torch.inf, (pixel - step - centre) * (-log_scale).exp())
        return (log_shares + _log_logistic_between(lower, upper)).logsumexp(-4)

    def _spread(self, middle: Tensor) -> Tensor:
        shares = torch.zeros_like(middle)
        centres = [middle + offset for offset in torch.linspace(-0.5, 0.5, self.components + 2)[1:-1].tolist()]
        scales = torch.full_like(middle, -2.0)  # wide enough for the components to overlap: exp(-2) = 0.14
        return torch.cat([shares] * self.components + centres + [scales] * self.components, dim=-3)

    def _parts(self, output: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        split = torch.unflatten(output, -3, (3, self.components, -1))  # (..., 3, M, C, H, W)
        logits, centre, log_scale = split.unbind(-5)
        return logits.log_softmax(-4), centre, bound(log_scale, *LOG_SCALE)


class DiscretisedLogistic(LogisticMixture):
    """A mixture of one. Source: Kingma et al. 2016, app. B."""

    def __init__(self) -> None:
        super().__init__(LogisticMixtureConfig(components=1))


def _log_logistic_between(lower: Tensor, upper: Tensor) -> Tensor:
    """log(sigmoid(upper) - sigmoid(lower)), without cancellation. Shapes: unchanged."""
    # = logsigmoid(upper) + logsigmoid(-lower) + log(1 - exp(lower - upper))
    width = (upper - lower).clamp_min(1e-12)
    if torch.compiler.is_exporting():
        # ONNX has neither function: the exporter would write log(sigmoid(x)), which underflows, and exp(x) - 1, of
        # which nothing is left where the width is but rounding.
        narrow = width.clamp_max(NARROW)
        mass = torch.where(width < NARROW, narrow * (1 - narrow / 2), -torch.expm1(-width))
        return mass.log() - F.softplus(-upper) - F.softplus(lower)
    return F.logsigmoid(upper) + F.logsigmoid(-lower) + torch.log(-torch.expm1(-width))
