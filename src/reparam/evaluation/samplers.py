"""Where generated images start from: distributions over the latents of a trained model."""

from collections.abc import Callable

import torch
from sklearn.mixture import GaussianMixture
from torch import Tensor

# Codes drawn per posterior would only blur: the mixture's own covariances widen it where posteriors are wide.
CODES = 10_000  # at most, drawn from the training images; a mixture of tens of Gaussians needs no more


def prior(count: int, _codes: Tensor, _components: int, generator: torch.Generator) -> Tensor:
    """Draw from the standard normal. Shapes: -> (count, D)."""
    return torch.randn(count, _codes.shape[1], generator=generator)


def mixture(count: int, codes: Tensor, components: int, generator: torch.Generator) -> Tensor:
    """Fit a Gaussian mixture to the codes of images, samples of the aggregate posterior, and draw from it.

    Shapes: codes (N, D) -> (count, D). Source: Ghosh et al. 2020, sec. 4.1.
    """
    seed = int(torch.randint(2**31, (), generator=generator))
    fitted = GaussianMixture(min(components, len(codes)), random_state=seed, reg_covar=1e-4)
    fitted.fit(codes.double().numpy())
    return torch.from_numpy(fitted.sample(count)[0]).float()


Sampler = Callable[[int, Tensor, int, torch.Generator], Tensor]
SAMPLERS: dict[str, Sampler] = {"prior": prior, "mixture": mixture}
