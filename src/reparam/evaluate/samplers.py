"""Draw the latents of generated images: distributions over the latents of a trained model."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from reparam.config.evaluate import MixtureConfig
from reparam.data.batches import View
from reparam.models.draw import Prior
from reparam.models.latent import LatentModel

CODES = 10_000  # at most, because a mixture of tens of Gaussians needs no more


def prior(count: int, known: Prior, _codes: Callable[[], Tensor]) -> Tensor:
    """Draw from the prior. Shapes: -> (count, D)."""
    return known.sample(torch.empty(count, known.size))


def mixture(count: int, _known: Prior, codes: Callable[[], Tensor], config: MixtureConfig) -> Tensor:
    """Fit a Gaussian mixture to codes of images, samples of the aggregate posterior, and draw from it.

    Shapes: codes() (N, D) -> (count, D). Source: Ghosh et al. 2020, sec. 4.1.
    """
    # Imported here, because it takes more than a second and only this function needs it.
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.mixture import GaussianMixture

    found = codes().double().cpu().numpy()
    seed = int(torch.randint(2**31, ()))
    with warnings.catch_warnings():
        # Codes of a collapsed model are equal, and the last digits of a fit may not settle: both are good enough.
        warnings.simplefilter("ignore", ConvergenceWarning)
        fitted = GaussianMixture(min(config.components, len(found)), random_state=seed, reg_covar=1e-4)
        fitted.fit(found if len(found) > 1 else found.repeat(2, 0))  # scikit-learn wants two rows at least
    drawn = torch.from_numpy(fitted.sample(count)[0]).float()
    return drawn[torch.randperm(count)]  # scikit-learn sorts its draws by component


def frequencies(count: int, _known: Prior, codes: Callable[[], Tensor]) -> Tensor:
    """Draw the code of each position on its own, as often as training images have it there.

    Shapes: codes() (N, P) or (N, P, d) -> (count, P) or (count, P, d).
    """
    found = codes().cpu()
    rows = torch.randint(len(found), (count, found.shape[1]))
    return found[rows, torch.arange(found.shape[1])]


@torch.no_grad()
def draw_codes(model: LatentModel, data: View) -> Tensor:
    """Draw one code each of up to CODES images, chosen at random. Shapes: -> (N, D)."""
    return torch.cat(
        [
            model.sample_posterior(data.pixels(images), labels)
            for images, labels in data.batches.visit(torch.randperm(len(data))[:CODES])
        ]
    )


@dataclass(frozen=True)
class Sampler:
    """A function that draws latents, what pages call the distribution, and what it needs."""

    draw: Callable[..., Tensor]
    origin: str
    needs_prior: bool = False  # whether it draws from the prior of the model
    needs_entries: bool = False  # whether codes from a codebook are given to it entry by entry


SAMPLERS: dict[str, Sampler] = {
    "prior": Sampler(prior, "the prior", needs_prior=True),
    "mixture": Sampler(mixture, "a mixture fitted to codes"),
    "frequencies": Sampler(frequencies, "codes of training images", needs_entries=True),
}
