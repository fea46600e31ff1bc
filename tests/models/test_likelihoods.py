import itertools
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from reparam.models.likelihoods import LIKELIHOODS

SHAPE = (2, 1, 2)  # (C, H, W), small enough to visit every image
# Every black and white image of that shape.
IMAGES = torch.tensor(list(itertools.product([0.0, 1.0], repeat=math.prod(SHAPE)))).unflatten(1, SHAPE)


def bernoulli_reference(output: list[float], target: list[float]) -> float:
    white = [1 / (1 + math.exp(-logit)) for logit in output]
    return sum(t * math.log(p) + (1 - t) * math.log(1 - p) for p, t in zip(white, target, strict=True))


# log p(target | output) from the definition; a new likelihood needs its line here.
REFERENCES: dict[str, Callable[[list[float], list[float]], float]] = {"bernoulli": bernoulli_reference}
every_likelihood = pytest.mark.parametrize("name", LIKELIHOODS)


def some_output(*batch: int) -> Tensor:
    return 2 * torch.randn(*batch, *SHAPE, generator=torch.Generator().manual_seed(0))


def images_and_volumes(name: str) -> tuple[Tensor, float]:
    """Every image of one pixel, or a fine grid of them where pixels are real, and the volume that each stands for."""
    if LIKELIHOODS[name].needs_binary:
        return torch.tensor([0.0, 1.0]).reshape(-1, 1, 1, 1), 1.0
    return torch.linspace(-40, 40, 160_001, dtype=torch.float64).reshape(-1, 1, 1, 1), 80 / 160_000


@every_likelihood
@pytest.mark.parametrize("output", [-3.0, 0.0, 0.7])
def test_probabilities_of_all_images_sum_to_one(name: str, output: float) -> None:
    images, volume = images_and_volumes(name)
    probabilities = LIKELIHOODS[name]().log_prob(torch.full((1, 1, 1), output), images).exp()
    assert probabilities.shape == (len(images),)
    assert probabilities.sum().item() * volume == pytest.approx(1, abs=1e-6)


@every_likelihood
@pytest.mark.parametrize("output", [-3.0, 0.0, 0.7])
def test_mean_is_the_probability_weighted_image(name: str, output: float) -> None:
    likelihood, single = LIKELIHOODS[name](), torch.full((1, 1, 1), output)
    images, volume = images_and_volumes(name)
    weighted = (likelihood.log_prob(single, images).exp() * images.flatten()).sum().item() * volume
    assert likelihood.mean(single).item() == pytest.approx(weighted, abs=1e-6)


@every_likelihood
def test_log_prob_is_the_definition_summed_over_pixels(name: str) -> None:
    outputs, targets = some_output(5), IMAGES[3:8]
    wanted = [
        REFERENCES[name](output.flatten().tolist(), target.flatten().tolist())
        for output, target in zip(outputs, targets, strict=True)
    ]
    torch.testing.assert_close(LIKELIHOODS[name]().log_prob(outputs, targets), torch.tensor(wanted))


@every_likelihood
def test_every_sample_is_scored_against_its_own_image(name: str) -> None:
    likelihood, output, target = LIKELIHOODS[name](), some_output(3, 4), IMAGES[5:9]  # (K, B, ...) and (B, ...)
    together = likelihood.log_prob(output, target)
    one_by_one = [[likelihood.log_prob(output[k, b], target[b]) for b in range(4)] for k in range(3)]
    torch.testing.assert_close(together, torch.tensor(one_by_one))


def test_a_bernoulli_scores_grey_pixels_by_their_cross_entropy() -> None:
    output, target = torch.tensor([0.3, -1.2]).reshape(1, 1, 2), torch.tensor([0.25, 0.9]).reshape(1, 1, 2)
    found = LIKELIHOODS["bernoulli"]().log_prob(output, target).item()
    assert found == pytest.approx(bernoulli_reference([0.3, -1.2], [0.25, 0.9]), rel=1e-6)


@pytest.mark.parametrize(
    ("logit", "target", "log_probability", "gradient"),
    [(200.0, 1.0, 0.0, 0.0), (200.0, 0.0, -200.0, -1.0), (-200.0, 1.0, -200.0, 1.0), (-200.0, 0.0, 0.0, 0.0)],
)
def test_a_bernoulli_is_exact_at_extreme_logits(
    logit: float, target: float, log_probability: float, gradient: float
) -> None:
    output = torch.full((1, 1, 1), logit, requires_grad=True)
    found = LIKELIHOODS["bernoulli"]().log_prob(output, torch.full((1, 1, 1), target))
    found.backward()
    assert output.grad is not None
    assert (found.item(), output.grad.item()) == (log_probability, gradient)


def test_a_bernoulli_mean_is_the_sigmoid() -> None:
    output = torch.tensor([-200.0, -math.log(3), 0.0, 200.0]).reshape(1, 2, 2)
    torch.testing.assert_close(LIKELIHOODS["bernoulli"]().mean(output).flatten(), torch.tensor([0.0, 0.25, 0.5, 1.0]))
