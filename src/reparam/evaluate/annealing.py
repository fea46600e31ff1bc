"""Annealed importance sampling: log p(x) from prior and decoder alone, bracketed from both sides."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import torch
from torch import Tensor

from reparam.errors import NonFiniteError
from reparam.models.draw import Prior, standard_normal_log_prob
from reparam.runtime import NUMBERS_AT_ONCE

# Separate chains, the scouts, find the step sizes. A chain that influenced its own step size would not leave f_t
# invariant, and the bounds would not hold (with one chain that adapts as fast, the mean of p(x) was 7 to 10 % too
# high).
SCOUTS = 4
VISITS = 200  # temperatures at which scouts stop, at most; chains of 1000 temperatures then accept 0.71 on average
TARGET = 0.65  # acceptance that step sizes are tuned to (Neal 2011, sec. 5.4.4; Wu et al. 2017, code)
GAIN = 0.5  # of log step size, per acceptance beyond the target
STEPS = (1e-4, 1.0)  # bounds of step sizes; beyond 2 the leapfrog is unstable even under the prior alone
FIRST_STEP = 0.5  # near the prior, which is where scouts start
# Share of a step size that varies from move to move: a whole number of turns would lead back to the start (Neal 2011,
# sec. 5.4.2). It about halves the gap between the bounds of the linear Gaussian model of the tests.
JITTER = 0.2
# Bound of gradients, whose square is finite in float32; no useful gradient is as large. Leapfrog steps are reversible
# under any force, so the bounds on log p(x) still hold.
STEEPEST = 1e12


@dataclass(frozen=True)
class Joint:
    """The model of each image, p(z) p(x|z), both factors differentiable in z."""

    prior: Prior
    log_likelihood: Callable[[Tensor], Tensor]  # of each image's own latents: (C, B, D) -> (C, B)


@dataclass(frozen=True)
class Schedule:
    """The way of chains from the prior to the posterior, through f_t(z) = p(z) p(x|z)^beta_t."""

    temperatures: int  # T: distributions after the prior; the last one is the posterior
    leapfrog: int  # steps of each transition, each with a gradient


@dataclass(frozen=True)
class Annealed:
    """Estimates of the chains for each image, in float64. Shapes: (B,)."""

    log_px: Tensor  # log p(x) in nats, too low in expectation; too high from `reverse_log_likelihood`
    effective_chains: Tensor  # effective sample size of the weights, from 1 to C; 0 where all weights are zero
    acceptance: Tensor  # mean over chains and transitions; NaN without any (T = 1)


def annealed_log_likelihood(joint: Joint, start: Tensor, schedule: Schedule) -> Annealed:
    """Estimate log p(x) from draws of the prior, led to the posterior; a lower bound in expectation, exact as T grows.

    The mean of its exponential is p(x) for any T. Draws from torch's generator; weights of the model receive no
    gradient. A latent where the likelihood is not finite counts as impossible.
    Shapes: start (C, B, D), drawn from the prior. Units: nats.
    Source: Neal 2001, sec. 2; Wu et al. 2017.
    """
    betas = sigmoid_schedule(schedule.temperatures)
    steps = _scout(joint, start[0], betas, schedule)
    return _weigh(*_anneal(joint, start, betas, steps, schedule.leapfrog))


def reverse_log_likelihood(joint: Joint, exact: Tensor, chains: int, schedule: Schedule) -> Annealed:
    """Estimate log p(x) from a draw of the posterior, led to the prior; an upper bound in expectation.

    Exact as T grows. Such a draw is known only if x was drawn from the model: it is the z of x, and all chains start
    there. Draws from torch's generator.
    Shapes: exact (B, D). Units: nats.
    Raises: NonFiniteError if log p(x|z) is not finite, so that x was not drawn from this model with this z.
    Source: Grosse et al. 2015; Wu et al. 2017.
    """
    betas = sigmoid_schedule(schedule.temperatures)
    steps = _scout(joint, exact, betas, schedule)
    start = exact.expand(chains, -1, -1)
    log_w, acceptance = _anneal(joint, start, betas[::-1], steps[::-1], schedule.leapfrog)
    # Impossible latents have infinite weight on the way back; chains that start at possible ones never get there.
    impossible = int(log_w.isposinf().any(0).sum())
    if impossible:
        raise NonFiniteError(
            f"reverse annealing: wanted latents that their images were drawn with, found {impossible} of {len(exact)} "
            "where log p(x|z) is not finite; draw z from the prior, and x from the likelihood of that z"
        )
    inverse = _weigh(log_w, acceptance)
    return replace(inverse, log_px=-inverse.log_px)


def sigmoid_schedule(temperatures: int, delta: float = 4.0) -> list[float]:
    """Space T + 1 inverse temperatures from 0 to 1, closely at both ends.

    Source: Wu et al. 2017, whose code also counts the prior as a temperature.
    """
    levels = torch.linspace(-delta, delta, temperatures + 1, dtype=torch.float64).sigmoid()
    betas: list[float] = ((levels - levels[0]) / (levels[-1] - levels[0])).tolist()
    return betas


def evaluations(schedule: Schedule) -> int:
    """Count how often one estimate computes log p(x|z)."""
    scouted = len(sigmoid_schedule(schedule.temperatures)[1 : -1 : _stride(schedule)])
    return 2 + (scouted + schedule.temperatures - 1) * schedule.leapfrog


def image_chunks(x: Tensor, chains: int, outputs: int) -> Iterator[Tensor]:
    """Cut images so that the decoder puts out no more than NUMBERS_AT_ONCE for all chains, or those of one image.

    `outputs` is that of the likelihood: numbers for each pixel and channel. Each image has step sizes of its own and
    never sees the others, but what is drawn for it depends on the cut.
    Shapes: (B, C, H, W).
    """
    yield from torch.split(x, max(1, NUMBERS_AT_ONCE // (chains * x[0].numel() * outputs))) if len(x) else ()


def concatenate(parts: Sequence[Annealed]) -> Annealed:
    """Put the images of several chunks one after the other."""
    columns = zip(*((part.log_px, part.effective_chains, part.acceptance) for part in parts), strict=True)
    return Annealed(*map(torch.cat, columns))


@dataclass(frozen=True)
class _Place:
    """The positions of chains. Shapes: (C, B, D) and, of log_px, (C, B)."""

    z: Tensor
    log_px: Tensor  # log p(x|z) in float64; -inf where it is not finite
    slope: Tensor  # of log p(x|z), in z
    log_pz: Tensor  # log p(z) in float64
    pull: Tensor  # its slope, in z


def _scout(joint: Joint, like: Tensor, betas: Sequence[float], schedule: Schedule) -> list[Tensor]:
    """Find step sizes, image by image, on a way of its own from the prior.

    Shapes: like (B, D) -> T - 1 times (B, 1), one between each two weights.
    """
    here = _look(joint, joint.prior.sample(like.expand(SCOUTS, *like.shape)))
    step, found = torch.full_like(like[:, :1], FIRST_STEP), []
    stride = _stride(schedule)
    for beta in betas[1:-1:stride]:
        here, acceptance = _move(joint, here, beta, step, schedule.leapfrog)
        step = (step * (GAIN * (acceptance - TARGET)).exp()[:, None].to(step.dtype)).clamp(*STEPS)
        found += [step] * stride
    return found[: len(betas) - 2]


def _stride(schedule: Schedule) -> int:
    return math.ceil(schedule.temperatures / VISITS)


def _anneal(
    joint: Joint, start: Tensor, betas: Sequence[float], steps: Sequence[Tensor], leapfrog: int
) -> tuple[Tensor, Tensor]:
    """Walk along inverse temperatures; return log weights (C, B) and mean acceptance (B,).

    From 0 to 1 the weights are those of p(x), from 1 to 0 those of 1 / p(x).
    """
    here = _look(joint, start)
    log_w = (betas[1] - betas[0]) * here.log_px  # (C, B)
    accepted = torch.zeros_like(log_w[0])  # (B,)
    for step, (beta, after) in zip(steps, pairwise(betas[1:]), strict=True):
        here, acceptance = _move(joint, here, beta, step, leapfrog)
        accepted += acceptance
        log_w += (after - beta) * here.log_px
    return log_w, accepted / len(steps)


def _weigh(log_w: Tensor, acceptance: Tensor) -> Annealed:
    total, squares = log_w.logsumexp(0), (2 * log_w).logsumexp(0)
    return Annealed(total - math.log(len(log_w)), (2 * total - squares).exp().nan_to_num(0.0), acceptance)


def _look(joint: Joint, z: Tensor) -> _Place:
    with torch.enable_grad():
        z = z.detach().requires_grad_()
        log_px, log_pz = joint.log_likelihood(z), joint.prior.log_prob(z.double())
        (slope,) = torch.autograd.grad(log_px.sum(), z)
        (pull,) = torch.autograd.grad(log_pz.sum(), z)
    log_px = log_px.detach().double()
    possible = torch.where(log_px.isfinite(), log_px, -math.inf)
    return _Place(z.detach(), possible, slope.nan_to_num(0.0).clamp(-STEEPEST, STEEPEST), log_pz.detach(), pull)


def _move(joint: Joint, here: _Place, beta: float, step: Tensor, leapfrog: int) -> tuple[_Place, Tensor]:
    """Make a Hamiltonian transition that keeps f_t invariant; also return its acceptance, averaged over chains (B,).

    Source: Neal 2011, fig. 2.
    """
    step = step * (1 + JITTER * (2 * torch.rand_like(step) - 1))  # (B, 1)
    start = torch.randn_like(here.z)
    there, momentum = here, start + step / 2 * _force(here, beta)
    for _ in range(leapfrog):
        there = _look(joint, there.z + step * momentum)
        momentum = momentum + step * _force(there, beta)
    end = momentum - step / 2 * _force(there, beta)
    gain = _log_joint(there, end, beta) - _log_joint(here, start, beta)  # (C, B)
    # NaN between two impossible places, which is no move.
    probability = gain.clamp_max(0).exp().nan_to_num(0.0)
    taken = torch.rand_like(probability) < probability
    moved = _Place(
        torch.where(taken[..., None], there.z, here.z),
        torch.where(taken, there.log_px, here.log_px),
        torch.where(taken[..., None], there.slope, here.slope),
        torch.where(taken, there.log_pz, here.log_pz),
        torch.where(taken[..., None], there.pull, here.pull),
    )
    return moved, probability.mean(0)


def _force(place: _Place, beta: float) -> Tensor:
    return beta * place.slope + place.pull


def _log_joint(place: _Place, momentum: Tensor, beta: float) -> Tensor:
    """Log density of latents, up to a constant, and of a standard normal momentum. Shapes: -> (C, B)."""
    return beta * place.log_px + place.log_pz + standard_normal_log_prob(momentum.double()).sum(-1)
