"""Keep numbers of a network within a range, and find the number that gives a wanted value."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

# Bounds of log sigma where the decoder puts it out: from half a grey level to 7 times the
# range of [0, 1]. Without them, pixels that never vary let the density grow without end.
LOG_SIGMA = (-6.0, 2.0)
CLIP = 1e-3  # a pixel that is black in all training images: a logit of -6.9 instead of -inf (Burda et al. 2016, code)


def bound(values: Tensor, low: float, high: float) -> Tensor:
    """Keep values between bounds, smoothly, so that a gradient leads back. Source: Chua et al. 2018, app. A.1."""
    values = high - F.softplus(high - values)
    return low + F.softplus(values - low)


def unbound(values: Tensor, low: float, high: float) -> Tensor:
    """Invert `bound`. Values at or beyond the bounds have no inverse, and are moved just inside first."""
    values = values.clamp(low + 1e-3, high - 1e-3)
    values = low + _inverse_softplus(values - low)
    return high - _inverse_softplus(high - values)


def _inverse_softplus(values: Tensor) -> Tensor:
    return values + torch.log(-torch.expm1(-values))


def invert(function: Callable[[Tensor], Tensor], mean: Tensor, limit: float) -> Tensor:
    """Solve function(x) = mean by bisection between -limit and limit, for a rising function without closed inverse."""
    wanted = mean.clamp(CLIP, 1 - CLIP)
    low, high = torch.full_like(wanted, -limit), torch.full_like(wanted, limit)
    for _ in range(60):
        middle = (low + high) / 2
        is_below = function(middle) < wanted
        low, high = torch.where(is_below, middle, low), torch.where(is_below, high, middle)
    return (low + high) / 2
