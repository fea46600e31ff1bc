"""The result of a model for a batch, and the two protocols that the rest of the package relies on."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

# How gradients reach the posterior through its samples:
# "pathwise" through the sample and its density (Kingma & Welling 2014), "stopped" through the sample alone (Roeder et
# al. 2017), "score_function" through the density alone (Williams 1992).
Estimator = Literal["pathwise", "stopped", "score_function"]


Gaussian = tuple[Tensor, Tensor]  # mean and log variance
Encoded = Sequence[Gaussian]  # the output of an encoder, made from the image alone: all that a posterior needs


@dataclass(frozen=True)
class Layer:
    """One layer of latents.

    Shapes: (K, B, D), of densities (K, B); mean and log_variance may lack K. Units: nats.
    """

    z: Tensor
    mean: Tensor  # of the posterior
    log_variance: Tensor  # of the posterior
    log_pz: Tensor  # (K, B) log p(z) given the layer above
    log_qz: Tensor  # (K, B) log q(z|x) given the samples that it depends on
    # Of each dimension (K, B, D); None if the dimensions depend on each other in p.
    kl: Tensor | None = None  # KL(q || p), in closed form if one is known, otherwise `sampled_kl`
    sampled_kl: Tensor | None = None  # log q - log p

    @classmethod
    def of(cls, z: Tensor, posterior: Gaussian, log_qz: Tensor, log_pz: Tensor, kl: Tensor | None = None) -> "Layer":
        """Sum densities of independent dimensions. Shapes: log_qz, log_pz and kl (K, B, D)."""
        sampled = log_qz - log_pz
        return cls(z, *posterior, log_pz.sum(-1), log_qz.sum(-1), sampled if kl is None else kl, sampled)

    @classmethod
    def under(cls, prior: "Prior", z: Tensor, posterior: Gaussian, log_qz: Tensor) -> "Layer":
        """Score samples of a posterior by the prior of the model. Shapes: log_qz (K, B, D)."""
        log_pz = prior.log_prob_each(z)
        if log_pz is None:
            return cls(z, *posterior, prior.log_prob(z), log_qz.sum(-1))
        kl = prior.kl(*posterior)
        return cls.of(z, posterior, log_qz, log_pz, None if kl is None else kl.expand_as(z))

    @property
    def joint_kl(self) -> Tensor:
        """Return KL(q || p) of all dimensions together, in closed form if there is one. Shapes: -> (K, B)."""
        return self.log_qz - self.log_pz if self.kl is None else self.kl.sum(-1)


@dataclass(frozen=True)
class Draw:
    """Log densities at K posterior samples of a batch of B images.

    ELBO, importance-weighted bounds, log-likelihood and every objective are read off these.
    Shapes: (K, B). Units: nats.
    """

    log_px: Tensor  # log p(x|z)
    log_pz: Tensor  # log p(z)
    log_qz: Tensor  # log q(z|x)
    kl: Tensor  # KL(q(z|x) || p(z)): in closed form if there is one, otherwise log_qz - log_pz
    layers: tuple[Layer, ...] = ()  # the latents, the layer next to the image first; their sums are the three above
    auxiliary: Tensor | None = None  # (B,) a further loss of the model, which each objective adds
    output: Tensor | None = None  # (K, B, P*C, H, W) output of the decoder, from which log_px is computed

    @property
    def log_weights(self) -> Tensor:
        """Return log importance weights log p(x, z) - log q(z|x). Shapes: -> (K, B)."""
        return self.log_px + self.log_pz - self.log_qz

    @classmethod
    def of(cls, log_px: Tensor, *layers: Layer, auxiliary: Tensor | None = None) -> "Draw":
        """Sum the layers."""
        log_pz, log_qz, kl = (
            sum(getattr(layer, name) for layer in layers) for name in ("log_pz", "log_qz", "joint_kl")
        )
        return cls(log_px, log_pz, log_qz, kl, layers, auxiliary)


class Likelihood(Protocol):
    """A distribution over images, given the output of the decoder: P numbers per pixel and channel."""

    outputs: int  # P
    needs_binary: bool  # whether it is a probability of black and white pixels only
    needs_unit: bool  # whether pixels must lie in [0, 1]
    is_discrete: bool  # whether it is a probability of the 256 grey values, as bits per dimension need

    @property
    def sigma(self) -> float | None:
        """Standard deviation of all pixels; None: they have no common one."""

    def log_prob(self, output: Tensor, target: Tensor) -> Tensor:
        """Sum over pixels. Shapes: output (..., P*C, H, W), target (C, H, W) and any batch -> (...). Units: nats."""

    def mean(self, output: Tensor) -> Tensor:
        """Return the expected image. Shapes: (..., P*C, H, W) -> (..., C, H, W)."""

    def deviation(self, output: Tensor) -> Tensor:
        """Return the standard deviation of each pixel. Shapes: (..., P*C, H, W) -> (..., C, H, W)."""

    def sample(self, output: Tensor) -> Tensor:
        """Draw an image, without a gradient, from torch's generator. Shapes: (..., P*C, H, W) -> (..., C, H, W)."""

    def output_of(self, mean: Tensor) -> Tensor:
        """Return an output whose expected image is about `mean`. Shapes: (..., C, H, W) -> (..., P*C, H, W)."""


@dataclass(frozen=True)
class Components:
    """A mixture of Gaussians, each with independent dimensions. Shapes: C components of D dimensions."""

    means: Tensor  # (C, D)
    log_variances: Tensor  # (C, D)
    log_weights: Tensor  # (C,)


class Prior(Protocol):
    """A distribution of D latents."""

    size: int  # D
    is_standard: bool  # whether it is N(0, I)
    is_independent: bool  # whether dimensions are independent: each then has its own density and KL
    is_of_images: bool  # whether it learns images, which lie in [0, 1] and pass through the encoder

    def log_prob(self, z: Tensor) -> Tensor:
        """Return the log density of all dimensions together. Shapes: (..., D) -> (...). Units: nats."""

    def log_prob_each(self, z: Tensor) -> Tensor | None:
        """Return the log density of each dimension; None if they are not independent. Shapes: (..., D), unchanged."""

    def kl(self, mean: Tensor, log_variance: Tensor) -> Tensor | None:
        """Return KL(N(mean, exp(log_variance)) || prior) of each dimension; None if there is no closed form.

        Shapes: (..., D) twice -> (..., D). Units: nats.
        """

    def sample(self, like: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Draw latents without a gradient, with the shape, type and device of `like`. Shapes: (..., D)."""

    def moments(self) -> tuple[Tensor, Tensor]:
        """Return mean and standard deviation of each dimension, in float64 on the CPU. Shapes: -> (D,), (D,)."""

    def components(self) -> Components | None:
        """Return the prior as a mixture of Gaussians, so that apps can draw from it; None if it is no such mixture."""

    def settled(self) -> "Prior":
        """Return a copy for a model that is no longer trained, with all values that depend on its weights computed."""


def standard_error(values: Tensor) -> Tensor:
    """Return the standard error of means over images; 0 for a single image, where it is unknown.

    Shapes: (N, ...) -> (...).
    """
    return values.std(0) / math.sqrt(len(values)) if len(values) > 1 else torch.zeros_like(values[0])


# Of log variances: exp(20) and its square are finite in float32, and no healthy posterior comes near either end.
LOG_VARIANCE = (-40.0, 20.0)


def halves(output: Tensor) -> tuple[Tensor, Tensor]:
    """Split a network's output into mean and log variance, bounded so that its exponential cannot overflow.

    Beyond the bounds the gradient is that of an unbounded value, so that a KL leads back.
    Shapes: (..., 2D) -> (..., D) twice.
    """
    mean, log_variance = in_full(output).chunk(2, dim=-1)
    bounded: Tensor = _Bounded.apply(log_variance)
    return mean, bounded


class _Bounded(torch.autograd.Function):
    """A log variance within its bounds, with the gradient of an unbounded one."""

    @staticmethod
    def forward(_ctx: Any, log_variance: Tensor) -> Tensor:  # with `setup_context`, each call would inspect signatures
        """Clip. Shapes: unchanged."""
        return log_variance.clamp(*LOG_VARIANCE)

    @staticmethod
    def backward(_ctx: Any, gradient: Tensor) -> Tensor:
        """Pass the gradient on. Shapes: unchanged."""
        return gradient


def in_full(values: Tensor) -> Tensor:
    """Leave autocast: densities need the digits that matrix products can spare. Shapes: unchanged."""
    return values.float() if values.dtype in (torch.bfloat16, torch.float16) else values


def gaussian_log_prob(z: Tensor, mean: Tensor, log_variance: Tensor) -> Tensor:
    """Log N(z; mean, exp(log_variance)), elementwise. Units: nats."""
    return -0.5 * ((z - mean).square() * (-log_variance).exp() + log_variance + math.log(2 * math.pi))


def standard_normal_log_prob(z: Tensor) -> Tensor:
    """Log N(z; 0, 1), elementwise. Units: nats."""
    return -0.5 * (z.square() + math.log(2 * math.pi))


def kl_to_standard_normal(mean: Tensor, log_variance: Tensor) -> Tensor:
    """KL(N(mean, exp(log_variance)) || N(0, 1)), elementwise. Units: nats. Source: Kingma & Welling 2014, app. B."""
    # expm1(v) - v instead of exp(v) - 1 - v: near the prior the difference of large terms would round to noise.
    return 0.5 * (mean.square() + log_variance.expm1() - log_variance)
