from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from conftest import small_section
from some_cards import image_facts
from torch import Tensor
from views import view_of

from reparam.config.evaluate import MixtureConfig
from reparam.data.batches import View
from reparam.evaluate import samplers
from reparam.evaluate.samplers import draw_codes, mixture, prior
from reparam.models.build import build_model
from reparam.models.latent import LatentModel
from reparam.models.priors import StandardNormal

SHAPE = (1, 2, 3)


def unasked() -> Tensor:
    raise AssertionError("a prior needs no codes")


def two_clusters(first: int, second: int) -> Callable[[], Tensor]:
    """Codes around (-10, 0) and (10, 5), with standard deviations of 1 and 0.5."""
    noise = torch.randn(first + second, 2, generator=torch.Generator().manual_seed(3))
    left, right = noise[:first] + torch.tensor([-10.0, 0.0]), 0.5 * noise[first:] + torch.tensor([10.0, 5.0])
    return lambda: torch.cat([left, right])


def some_model(**changes: Any) -> LatentModel:
    torch.manual_seed(0)
    small = {"hidden": [5], "latent": 3, "upper": [2], "upper_hidden": [4]}
    return build_model(small_section("model", **small | changes), SHAPE).eval()


def some_data(images: int) -> View:
    grey = np.random.default_rng(0).integers(0, 256, (images, *SHAPE), dtype=np.uint8)
    return view_of(grey, image_facts("none"))


def seeded(draw: Callable[[], Tensor], seed: int = 0) -> Tensor:
    torch.manual_seed(seed)
    return draw()


def by_row(rows: Tensor) -> list[list[float]]:
    return sorted(rows.tolist())


def test_the_prior_is_a_standard_normal() -> None:
    drawn = seeded(lambda: prior(10_000, StandardNormal(6), unasked)).double()
    assert drawn.shape == (10_000, 6)
    # Five standard errors of means, variances and covariances of 10,000 draws.
    assert drawn.mean(0).abs().max().item() < 5 / 100
    covariance = drawn.T.cov()
    assert (covariance.diag() - 1).abs().max().item() < 5 * 2**0.5 / 100
    assert (covariance - covariance.diag().diag()).abs().max().item() < 5 / 100


def test_a_mixture_draws_from_each_cluster_its_share() -> None:
    drawn = seeded(
        lambda: mixture(2_000, StandardNormal(2), two_clusters(300, 100), MixtureConfig(components=2))
    ).double()
    assert (drawn.shape, drawn.dtype) == ((2_000, 2), torch.float64)
    is_left = drawn[:, 0] < 0
    left, right = drawn[is_left], drawn[~is_left]
    assert is_left.double().mean().item() == pytest.approx(0.75, abs=5 * (0.75 * 0.25 / 2_000) ** 0.5)
    # The mixture knows 300 and 100 codes; five standard errors of their means, and of the draws'.
    assert left.mean(0).tolist() == pytest.approx([-10.0, 0.0], abs=5 * (1 / 300 + 1 / 1_500) ** 0.5)
    assert right.mean(0).tolist() == pytest.approx([10.0, 5.0], abs=5 * 0.5 * (1 / 100 + 1 / 500) ** 0.5)
    assert left.std(0).tolist() == pytest.approx([1.0, 1.0], abs=0.25)
    assert right.std(0).tolist() == pytest.approx([0.5, 0.5], abs=0.2)


def test_the_draws_of_a_mixture_are_not_sorted_by_component() -> None:
    drawn = seeded(lambda: mixture(100, StandardNormal(2), two_clusters(200, 200), MixtureConfig(components=2)))
    is_left = drawn[:, 0] < 0
    changes = int((is_left[1:] != is_left[:-1]).sum())
    assert changes > 20


def test_the_same_seed_gives_the_same_draws_and_another_others() -> None:
    def draw() -> Tensor:
        return mixture(50, StandardNormal(2), two_clusters(60, 60), MixtureConfig(components=3))

    assert torch.equal(seeded(draw), seeded(draw))
    assert not torch.equal(seeded(draw), seeded(draw, 1))


@pytest.mark.parametrize("codes", [1, 2, 4])
def test_fewer_codes_than_components_are_enough(codes: int) -> None:
    found = 100 * torch.eye(4)[:codes]
    drawn = seeded(lambda: mixture(49, StandardNormal(4), lambda: found, MixtureConfig(components=10)))
    assert drawn.shape == (49, 4)
    # A component for each code, of variance 1e-4 at least: every draw lies next to a code.
    assert torch.cdist(drawn, found).min(1).values.max().item() < 0.1


def test_codes_that_are_all_the_same_are_drawn_again() -> None:
    drawn = seeded(
        lambda: mixture(49, StandardNormal(3), lambda: torch.full((20, 3), 2.0), MixtureConfig(components=5))
    )
    assert (drawn - 2).abs().max().item() < 0.1


def test_the_codes_of_an_autoencoder_are_its_codes_exactly() -> None:
    model, data = some_model(kind="autoencoder"), some_data(11)
    with torch.no_grad():
        wanted = torch.cat([model.posterior(x)[0] for x, _ in data.seen(0)])
    found = seeded(lambda: draw_codes(model, data))
    assert not found.requires_grad
    # In another order, which changes the last digit of a product.
    torch.testing.assert_close(found.sort(0).values, wanted.sort(0).values)


def test_the_codes_of_a_vae_are_draws_of_its_posterior() -> None:
    model, [(x, _)] = some_model(), some_data(1).seen(0)
    grey = some_data(1).batches.take(torch.arange(1)).numpy()
    data = view_of(np.repeat(grey, 4_000, 0), image_facts("none"), 500)
    with torch.no_grad():
        mean, log_variance = model.posterior(x)
    found = seeded(lambda: draw_codes(model, data)).double()
    sigma = (0.5 * log_variance[0]).exp()
    assert ((found.mean(0) - mean[0]).abs() / sigma).max().item() < 5 / 4_000**0.5
    assert (found.std(0) / sigma - 1).abs().max().item() < 5 / 8_000**0.5


def test_the_codes_of_a_hierarchy_hold_all_layers() -> None:
    assert seeded(lambda: draw_codes(some_model(kind="hierarchical"), some_data(5))).shape == (5, 5)


def test_the_codes_of_many_images_are_a_random_part_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    model, data = some_model(kind="autoencoder"), some_data(11)
    every = by_row(seeded(lambda: draw_codes(model, data)))
    monkeypatch.setattr(samplers, "CODES", 6)
    first, second = (seeded(lambda: draw_codes(model, data), seed) for seed in (0, 1))
    assert len(first) == 6
    assert all(row in every for row in first.tolist())
    assert by_row(first) != by_row(second)
