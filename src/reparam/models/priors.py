"""Distributions of latents, before any image is seen."""

import math
from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from reparam.config.model import MixturePriorConfig, VampConfig
from reparam.models.draw import (
    Components,
    Prior,
    gaussian_log_prob,
    halves,
    kl_to_standard_normal,
    standard_normal_log_prob,
)


@dataclass(frozen=True)
class Latents:
    """The parts that a prior can be built from."""

    size: int  # D
    shape: tuple[int, ...]  # (C, H, W) of the images
    encoder: nn.Module  # (N, C, H, W) -> (N, 2D)


class StandardNormal:
    """N(0, I). Source: Kingma & Welling 2014, sec. 3."""

    is_standard, is_independent, is_of_images = True, True, False

    def __init__(self, size: int) -> None:
        self.size = size  # D

    def log_prob(self, z: Tensor) -> Tensor:
        return self.log_prob_each(z).sum(-1)

    def log_prob_each(self, z: Tensor) -> Tensor:
        return standard_normal_log_prob(z)

    def kl(self, mean: Tensor, log_variance: Tensor) -> Tensor:
        return kl_to_standard_normal(mean, log_variance)

    def sample(self, like: Tensor, generator: torch.Generator | None = None) -> Tensor:
        return torch.randn(like.shape, dtype=like.dtype, device=like.device, generator=generator)

    def moments(self) -> tuple[Tensor, Tensor]:
        zeros = torch.zeros(self.size, dtype=torch.float64)
        return zeros, torch.ones_like(zeros)

    def components(self) -> Components:
        zeros = torch.zeros(1, self.size)
        return Components(zeros, zeros, torch.zeros(1))

    def settled(self) -> "StandardNormal":
        return self


class Standard(StandardNormal):
    """N(0, I) of a model's latents."""

    def __init__(self, latents: Latents) -> None:
        super().__init__(latents.size)


class GaussianMixture(nn.Module):
    """The base of mixtures of Gaussians with independent dimensions; they differ in `components`."""

    is_standard, is_independent, is_of_images = False, False, False

    def __init__(self, latents: Latents) -> None:
        super().__init__()
        self.size = latents.size  # D

    @abstractmethod
    def components(self) -> Components:
        """Compute means, variances and weights."""

    def log_prob(self, z: Tensor) -> Tensor:
        """Return the joint log density. Shapes: (..., D) -> (...). Units: nats."""
        found = self.components()
        if torch.compiler.is_exporting():  # some runtimes of ONNX, as in browsers, lack float64
            each = gaussian_log_prob(z[..., None, :], found.means, found.log_variances).sum(-1)
            return (each + found.log_weights).logsumexp(-1)
        # By two products, to avoid C x D numbers for each sample; in float64, because terms of them cancel.
        # On the device of z, because evaluation also scores latents on the CPU.
        parts = (found.means, found.log_variances, found.log_weights)
        means, log_variances, log_weights = (values.to(z.device, torch.float64) for values in parts)
        precisions, its = (-log_variances).exp(), z.double()
        constant = log_variances.sum(-1) + (means.square() * precisions).sum(-1) + self.size * math.log(2 * math.pi)
        squares = its.square() @ precisions.T - 2 * its @ (means * precisions).T + constant  # (..., C)
        return (log_weights - 0.5 * squares).logsumexp(-1).to(z.dtype)

    def log_prob_each(self, _z: Tensor) -> None:
        return None

    def kl(self, _mean: Tensor, _log_variance: Tensor) -> None:
        return None

    @torch.no_grad()
    def sample(self, like: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Choose a component for each row, and draw from it. Shapes: (..., D), unchanged."""
        found, rows = self.components(), like.flatten(0, -2)
        shares = found.log_weights.exp().cumsum(0).to(like.device)
        level = torch.rand(len(rows), dtype=shares.dtype, device=like.device, generator=generator)
        chosen = torch.searchsorted(shares, level).clamp_max(len(shares) - 1)  # sums of shares are rounded
        noise = torch.randn(rows.shape, dtype=like.dtype, device=like.device, generator=generator)
        means, log_variances = (values.to(like)[chosen] for values in (found.means, found.log_variances))
        return (means + (0.5 * log_variances).exp() * noise).view(like.shape)

    @torch.no_grad()
    def moments(self) -> tuple[Tensor, Tensor]:
        """Return mean and standard deviation of each dimension, in float64 on the CPU. Shapes: -> (D,), (D,)."""
        found = self.components()
        weights, means, variances = (
            values.double().cpu() for values in (found.log_weights.exp(), found.means, found.log_variances.exp())
        )
        mean = weights @ means
        return mean, (weights @ (variances + (means - mean).square())).sqrt()

    @torch.no_grad()
    def settled(self) -> Prior:
        return Settled(self.components())


class Settled(GaussianMixture):
    """A mixture that no longer learns."""

    means: Tensor
    log_variances: Tensor
    log_weights: Tensor

    def __init__(self, found: Components) -> None:
        nn.Module.__init__(self)
        self.size = found.means.shape[1]
        for name, values in vars(found).items():
            self.register_buffer(name, values.detach().clone())

    def components(self) -> Components:
        return Components(self.means, self.log_variances, self.log_weights)


class Mixture(GaussianMixture):
    """Gaussians whose means, variances and weights are learned. As a whole they start near a standard normal."""

    def __init__(self, latents: Latents, config: MixturePriorConfig) -> None:
        super().__init__(latents)
        shape = config.components, latents.size
        self.means = nn.Parameter(math.sqrt(0.5) * torch.randn(shape))
        self.log_variances = nn.Parameter(torch.full(shape, math.log(0.5)))
        self.logits = nn.Parameter(torch.zeros(config.components))

    def components(self) -> Components:
        return Components(self.means, self.log_variances, self.logits.log_softmax(0))


class Vamp(GaussianMixture):
    """A mixture of the posteriors of learned images, all with the same weight.

    Source: Tomczak & Welling 2018, eq. 9; their code for the start of pseudo-inputs and their bounds.
    """

    is_of_images = True

    def __init__(self, latents: Latents, config: VampConfig) -> None:
        super().__init__(latents)
        self.pseudo_inputs = nn.Parameter(
            config.grey + config.deviation * torch.randn(config.components, *latents.shape)
        )
        self._encoder = (latents.encoder,)  # in a tuple, so that its weights are not listed twice

    def components(self) -> Components:
        means, log_variances = halves(self._encoder[0](self.pseudo_inputs.clamp(0, 1)))
        return Components(means, log_variances, means.new_full((len(means),), -math.log(len(means))))


class PriorClass(Protocol):
    """A class of priors, whose attributes are known before one is built."""

    is_standard: bool
    is_independent: bool

    def __call__(self, *parts: Any, **_: Any) -> Prior:
        """Build a prior from `Latents` and, if it has parameters, their block."""


PRIORS: dict[str, PriorClass] = {"standard": Standard, "mixture": Mixture, "vamp": Vamp}
