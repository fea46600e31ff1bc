"""What is minimised, and the bounds that evaluation reports."""

import math
from collections.abc import Callable

from torch import Tensor

from reparam.config import ObjectiveConfig
from reparam.models.draw import Draw, Model

# Each term has shape (B,), in nats per image; `loss` is what the optimizer lowers.
Terms = dict[str, Tensor]


def elbo(model: Model, x: Tensor, config: ObjectiveConfig) -> Terms:
    """Negate the evidence lower bound, its KL weighted by beta.

    Source: Kingma & Welling 2014, eq. 7; Higgins et al. 2017, eq. 4.
    """
    draw = model.draw(x, x, config.samples)
    reconstruction, kl = -draw.log_px.mean(0), draw.kl.mean(0)
    return {"loss": reconstruction + config.beta * kl, "reconstruction": reconstruction, "kl": kl}


def iwae(draw: Draw) -> Tensor:
    """Negate the importance-weighted bound on log p(x); K = 1 is a negated ELBO sample.

    Shapes: fields of `draw` (K, B) -> (B,). Units: nats per image, lower is better.
    Source: Burda et al. 2016, eq. 8.
    """
    log_w = log_weights(draw)  # (K, B)
    # logsumexp, because exp(log_w) is 0 in float32 below about -104 nats.
    return math.log(len(log_w)) - log_w.logsumexp(0)


def log_weights(draw: Draw) -> Tensor:
    """Log importance weights log p(x, z) - log q(z|x). Shapes: (K, B)."""
    return draw.log_px + draw.log_pz - draw.log_qz


Objective = Callable[[Model, Tensor, ObjectiveConfig], Terms]
OBJECTIVES: dict[str, Objective] = {"elbo": elbo}
