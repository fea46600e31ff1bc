"""Distributions of latents, before any image is seen."""

from collections.abc import Callable

import torch
from torch import Tensor

from reparam.models.draw import Components, Prior, kl_to_standard_normal, standard_normal_log_prob


class StandardNormal:
    """N(0, I). Source: Kingma & Welling 2014, sec. 3."""

    is_independent = True

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


PRIORS: dict[str, Callable[..., Prior]] = {"standard": StandardNormal}
