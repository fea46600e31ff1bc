import math
from typing import Any

import numpy as np
import pytest
import torch
from conftest import small_section
from torch import Tensor

from reparam.models.draw import Likelihood
from reparam.models.likelihoods import LIKELIHOODS

DRAWS = 200_000
every_likelihood = pytest.mark.parametrize("name", LIKELIHOODS)


def make(name: str, **changes: Any) -> Likelihood:
    settings = {"likelihood": name, "components": 3, "sigma": 0.3} | changes
    return LIKELIHOODS[name](*small_section("model", **settings).arguments(name))


def one_pixel(likelihood: Likelihood, seed: int) -> Tensor:
    """An output of one pixel; seed 0 gives zeros alone."""
    generator = torch.Generator().manual_seed(seed)
    return (0 if seed == 0 else 2) * torch.randn(likelihood.outputs, 1, 1, generator=generator, dtype=torch.float64)


def is_of_unit_pixels(likelihood: Likelihood) -> bool:
    return likelihood.needs_unit and not hasattr(likelihood, "link")  # a link bounds the mean alone


def distribution(likelihood: Likelihood, output: Tensor) -> tuple[Tensor, Tensor]:
    """Values of one pixel and the probability of each: all that there are, or the middles of a fine grid."""
    if likelihood.needs_binary:
        values, volume = torch.tensor([0.0, 1.0], dtype=torch.float64), 1.0
    elif likelihood.is_discrete:
        values, volume = torch.arange(256, dtype=torch.float64) / 255, 1.0
    else:
        low, high, cells = (0.0, 1.0, 10_000) if is_of_unit_pixels(likelihood) else (-64.0, 64.0, 640_000)
        volume = (high - low) / cells
        values = low + volume * (torch.arange(cells, dtype=torch.float64) + 0.5)
    return values, likelihood.log_prob(output, values.reshape(-1, 1, 1, 1)).detach().exp() * volume


@every_likelihood
@pytest.mark.parametrize("link", ["linear", "sigmoid"])
@pytest.mark.parametrize("seed", range(4))
def test_draws_have_the_distribution_of_the_density(name: str, link: str, seed: int) -> None:
    likelihood = make(name, mean=link)
    single = one_pixel(likelihood, seed)
    torch.manual_seed(1)
    drawn = likelihood.sample(single.expand(DRAWS, *single.shape)).flatten()
    values, probabilities = distribution(likelihood, single)
    assert probabilities.sum().item() == pytest.approx(1, abs=1e-4)

    mean = (values * probabilities).sum()
    squares = (values - mean).square() * probabilities
    variance, fourth = squares.sum(), ((values - mean) ** 4 * probabilities).sum()
    assert drawn.mean().item() == pytest.approx(mean.item(), abs=5 * math.sqrt(variance / DRAWS))
    error = math.sqrt((fourth - variance.square()).clamp_min(0) / DRAWS)
    assert drawn.var().item() == pytest.approx(variance.item(), abs=5 * error + 1e-4 * variance.item())

    # The greatest distance of the distribution functions passes 1.95 / sqrt(N) once in a thousand (Kolmogorov 1933).
    edges = values + (values[1] - values[0]) / 2
    below = np.searchsorted(np.sort(drawn.numpy()), edges.numpy()) / DRAWS
    assert np.abs(below - probabilities.cumsum(0).numpy()).max() < 1.95 / math.sqrt(DRAWS) + 1e-4


@every_likelihood
def test_every_pixel_of_every_image_is_drawn_from_its_own_output(name: str) -> None:
    likelihood = make(name, sigma=0.01)
    mean = torch.tensor([0.0, 1.0, 1.0, 0.0, 0.0, 0.0, 1.0, 1.0, 0.0, 1.0, 0.0, 1.0]).reshape(2, 3, 1, 2)
    output = likelihood.output_of(mean)
    torch.manual_seed(0)
    drawn = torch.stack([likelihood.sample(output) for _ in range(400)])
    assert drawn.shape == (400, 2, 3, 1, 2)
    # The largest sigma is that of `gaussian_per_pixel`, 1: a standard error of 0.05.
    torch.testing.assert_close(drawn.mean(0), likelihood.mean(output).detach(), rtol=0, atol=0.25)


@every_likelihood
def test_draws_can_be_scored_and_carry_no_gradient(name: str) -> None:
    likelihood = make(name)
    generator = torch.Generator().manual_seed(0)
    output = torch.randn(5, likelihood.outputs * 2, 3, 3, generator=generator).requires_grad_()
    drawn = likelihood.sample(output)
    assert (drawn.shape, drawn.dtype, drawn.requires_grad) == ((5, 2, 3, 3), torch.float32, False)
    assert likelihood.log_prob(output, drawn).isfinite().all()
    if is_of_unit_pixels(likelihood):
        assert 0 <= drawn.min().item() <= drawn.max().item() <= 1


@every_likelihood
def test_draws_at_extreme_outputs_are_finite(name: str) -> None:
    likelihood = make(name)
    for size in (-200.0, 200.0):
        drawn = likelihood.sample(torch.full((1000, likelihood.outputs, 1, 1), size))
        assert drawn.isfinite().all()


def test_a_seed_gives_the_same_images() -> None:
    likelihood = make("logistic_mixture")
    output = torch.zeros(100, likelihood.outputs, 2, 2)
    images = []
    for seed in (3, 3, 4):
        torch.manual_seed(seed)
        images.append(likelihood.sample(output))
    assert torch.equal(images[0], images[1])
    assert not torch.equal(images[0], images[2])


@every_likelihood
@pytest.mark.parametrize("seed", range(4))
def test_the_deviation_is_that_of_the_density(name: str, seed: int) -> None:
    likelihood = make(name)
    output = one_pixel(likelihood, seed)
    values, probabilities = distribution(likelihood, output)
    mean = (values * probabilities).sum()
    wanted = ((values - mean).square() * probabilities).sum().sqrt()
    found = likelihood.deviation(output).detach()
    assert found.shape == (1, 1, 1)
    assert found.item() == pytest.approx(wanted.item(), rel=2e-3)
