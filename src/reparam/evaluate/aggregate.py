"""Measure how latents are used across a data set: the parts of the KL, and dimensions without information."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from reparam import runtime
from reparam.data.store import evenly_spaced
from reparam.models.draw import Prior, gaussian_log_prob, standard_error

# The KL of a dimension bounds its information about the image: a collapsed one has less than a seventh of a bit.
COLLAPSED_KL = 0.1  # nats
RANGES_NAMED = 8  # in one sentence


@dataclass(frozen=True)
class Aggregate:
    """The mean KL and its parts, with standard errors over images. Units: nats.

    kl = mutual_information + marginal_kl (Hoffman & Johnson 2016). Where dimensions are independent in p(z), the
    marginal KL is the total correlation and the KL of each dimension (Chen et al. 2018, eq. 2).
    """

    kl: float  # mean_n KL(q(z|x_n) || p(z))
    kl_se: float
    mutual_information: float  # of x and z under q
    mutual_information_se: float
    marginal_kl: float  # KL(q(z) || p(z)), where q(z) = mean_n q(z|x_n)
    marginal_kl_se: float
    total_correlation: float  # KL(q(z) || prod_j q(z_j))
    total_correlation_se: float
    bound: float  # log N, which the mutual information cannot exceed: near it, see `aggregate`
    images: int  # that were measured


def aggregate(mean: Tensor, log_variance: Tensor, z: Tensor, prior: Prior, limit: int) -> Aggregate:
    """Split the KL of Gaussian posteriors to the prior, from some samples of each posterior.

    The parts add up to the KL. If the KL has a closed form, the marginal KL has only the noise of the mutual
    information; otherwise all use the same samples. `z` must be drawn from N(mean, exp(log_variance)), which does not
    hold for the lower layers of a hierarchy.

    An image's own posterior is part of q(z) with weight 1 / N, so the mutual information is at most log N. That is
    exact for these N images. Over all possible images, the latents may have more information. The part beyond log N
    then counts as marginal KL, and there as total correlation, which means nothing near the bound.

    With more than `limit` images, evenly spaced ones represent all: each one's own posterior keeps the weight 1 / N,
    the others share the rest. That estimates q(z) without bias, but its logarithm too low.

    Time: S times quadratic in min(N, limit). Shapes: mean and log_variance (N, D), z (S, N, D), with limit >= 2.
    """
    total = len(mean)
    assert min(limit, total + 1) >= 2, "nothing to mix"
    kl = _kl(mean.double(), log_variance.double(), z.double(), prior)
    rows = torch.from_numpy(evenly_spaced(total, limit)).to(z.device)
    mean, log_variance, z = mean[rows].double(), log_variance[rows].double(), z[:, rows].double()
    information, shared = torch.zeros_like(kl[rows]), torch.zeros_like(kl[rows])
    for sample in z:
        log_joint, log_product = _log_mixtures(sample, mean, log_variance, total)
        information += (gaussian_log_prob(sample, mean, log_variance).sum(1) - log_joint) / len(z)
        shared += (log_joint - log_product) / len(z)
    numbers, own = dict[str, float](), kl[rows]
    numbers["kl"], numbers["kl_se"] = kl.mean().item(), standard_error(kl).item()
    # Mutual information and marginal KL add up to the KL of all images, not of the rows alone.
    for name, known, rest in (
        ("mutual_information", 0.0, information),
        ("marginal_kl", numbers["kl"] - own.mean().item(), own - information),
        ("total_correlation", 0.0, shared),
    ):
        numbers[name], numbers[f"{name}_se"] = known + rest.mean().item(), standard_error(rest).item()
    return Aggregate(**numbers, bound=math.log(total), images=len(rows))


def _kl(mean: Tensor, log_variance: Tensor, z: Tensor, prior: Prior) -> Tensor:
    """Return the KL of each image, in closed form or from its samples. Shapes: (N, D) twice, (S, N, D) -> (N,)."""
    each = prior.kl(mean, log_variance)
    if each is not None:
        return each.sum(1)
    return (gaussian_log_prob(z, mean, log_variance).sum(-1) - prior.log_prob(z)).mean(0)


def _log_mixtures(z: Tensor, mean: Tensor, log_variance: Tensor, total: int) -> tuple[Tensor, Tensor]:
    """Return log q(z_n) and sum_j log q(z_nj). Shapes: (M, D) three times -> (M,), (M,)."""
    count, latent = z.shape
    log_joint, log_product = z.new_zeros(count), z.new_zeros(count)
    at_once = max(1, runtime.NUMBERS_AT_ONCE // (32 * count))  # of M numbers: 4 MB stay in the cache, ten times as fast
    for start in range(0, count, at_once):
        part = slice(start, start + at_once)
        joint = z.new_zeros(len(z[part]), count)  # (b, M)
        for j in range(latent):
            given = gaussian_log_prob(z[part, j, None], mean[:, j], log_variance[:, j])  # (b, M)
            joint += given
            log_product[part] += _log_average(given, start, total)
        log_joint[part] = _log_average(joint, start, total)
    return log_joint, log_product


def _log_average(log_q: Tensor, start: int, total: int) -> Tensor:
    """Average over posteriors, in place, where row b belongs to image start + b. Shapes: (b, M) -> (b,)."""
    count = log_q.shape[1]
    # The own posterior has weight 1 / N, each other one (N - 1) / (M - 1) / N; all weights are equal if M = N.
    excess = math.log((total - 1) / (count - 1)) if count < total else 0.0
    log_q.diagonal(offset=start).sub_(excess)
    return log_q.logsumexp(1) + excess - math.log(total)


def collapsed(kl_per_dim: Tensor, variance_of_mean: Tensor, threshold: float) -> list[int]:
    """Return the dimensions whose posterior is the prior, whatever the image.

    Their mean varies over images by no more than `threshold` (Burda et al. 2016), and their KL is below
    COLLAPSED_KL: a dimension whose mean is constant but whose variance depends on the image is in use.
    Shapes: (D,), (D,). Units: KL in nats.
    """
    is_still = (variance_of_mean <= threshold) & (kl_per_dim <= COLLAPSED_KL)
    found: list[int] = is_still.nonzero().flatten().tolist()
    return found


def collapse_message(dimensions: Sequence[int], latent: int) -> str | None:
    """Warn when more than half of the latent dimensions have collapsed; a few always may."""
    if 2 * len(dimensions) <= latent:
        return None
    if len(dimensions) == latent:
        what = f"posterior collapse: no latent dimension ({_ranges(dimensions)}) says anything of an image"
    else:
        count = f"{len(dimensions)} of {latent} latent dimensions"
        what = f"more than half of the latents have collapsed: {count} ({_ranges(dimensions)}) say nothing of an image"
    return (
        f"{what}; try a KL warm-up (objective.warmup), free bits (objective.free_bits), a lower objective.beta or a "
        "smaller decoder"
    )


def _ranges(numbers: Iterable[int]) -> str:
    """Write 0, 1, 2, 5 as 0-2, 5."""
    runs: list[list[int]] = []
    for number in sorted(numbers):
        if runs and number == runs[-1][-1] + 1:
            runs[-1] = [runs[-1][0], number]
        else:
            runs.append([number])
    names = ["-".join(map(str, run)) for run in runs]
    return ", ".join(names[:RANGES_NAMED] + ["..."] * (len(names) > RANGES_NAMED))
