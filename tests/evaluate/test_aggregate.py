import dataclasses
import math

import pytest
import torch
from torch import Tensor
from torch.distributions import Categorical, Independent, MixtureSameFamily, Normal, kl_divergence

from reparam import runtime
from reparam.evaluate.aggregate import COLLAPSED_KL, Aggregate, aggregate, collapse_message, collapsed
from reparam.models.draw import Components
from reparam.models.priors import Settled, StandardNormal


def sampled(mean: Tensor, log_variance: Tensor, limit: int = 10_000) -> Aggregate:
    """Draw latents of each posterior, and measure."""
    noise = torch.randn(2, *mean.shape, generator=torch.Generator().manual_seed(0), dtype=mean.dtype)
    return aggregate(
        mean, log_variance, mean + noise * (0.5 * log_variance).exp(), StandardNormal(mean.shape[1]), limit
    )


def some_posteriors(images: int, latent: int) -> tuple[Tensor, Tensor]:
    draws = torch.Generator().manual_seed(1)
    mean, log_variance = torch.randn(2, images, latent, generator=draws, dtype=torch.float64)
    return mean, log_variance - 1


def correlated(images: int) -> tuple[Tensor, Tensor]:
    """Posteriors of variance 0.1 whose aggregate is a Gaussian of variance 1 and correlation 0.8."""
    covariance = torch.tensor([[0.9, 0.8], [0.8, 0.9]], dtype=torch.float64)
    noise = torch.randn(images, 2, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    return noise @ torch.linalg.cholesky(covariance).T, torch.full((images, 2), math.log(0.1), dtype=torch.float64)


# Any prior


def test_the_parts_add_up_to_the_kl_under_a_mixture_too() -> None:
    mean, log_variance = some_posteriors(60, 2)
    z = (
        mean
        + torch.randn(3, 60, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        * (0.5 * log_variance).exp()
    )
    means = torch.tensor([[1.0, 0.0], [-1.0, 0.5]], dtype=torch.float64)
    prior = Settled(Components(means, torch.zeros_like(means), torch.tensor([0.25, 0.75], dtype=torch.float64).log()))
    found = aggregate(mean, log_variance, z, prior, 100)
    log_q = Normal(mean, (0.5 * log_variance).exp()).log_prob(z[:, :, None]).sum(-1).logsumexp(-1) - math.log(60)
    assert found.marginal_kl == pytest.approx((log_q - prior.log_prob(z)).mean().item(), rel=1e-9)
    assert found.kl == pytest.approx(found.mutual_information + found.marginal_kl, abs=1e-12)
    # What does not depend on the prior is the same, and a mixture of one standard normal is one.
    standard = aggregate(mean, log_variance, z, StandardNormal(2), 100)
    assert found.mutual_information == standard.mutual_information
    assert found.total_correlation == standard.total_correlation
    one = aggregate(mean, log_variance, z, Settled(StandardNormal(2).components()), 100)
    assert one.kl == pytest.approx(standard.kl, abs=5 * standard.kl_se)


# Closed forms


def test_two_separate_kinds_of_images_are_told_apart_by_log_2() -> None:
    mean = torch.tensor([-10.0, 10.0], dtype=torch.float64).repeat(500)[:, None]
    found = sampled(mean, torch.zeros(1000, 1, dtype=torch.float64))
    assert found.mutual_information == pytest.approx(math.log(2), abs=1e-9)
    assert found.mutual_information_se == pytest.approx(0, abs=1e-9)
    assert found.marginal_kl == pytest.approx(50 - math.log(2), abs=1e-9)
    assert found.marginal_kl_se == pytest.approx(0, abs=1e-9)  # though 10 z has much noise
    assert found.total_correlation == pytest.approx(0, abs=1e-9)  # of a single latent
    assert found.images == 1000


def test_independent_latents_have_no_total_correlation() -> None:
    grid = torch.cartesian_prod(torch.tensor([-6.0, 6.0]), torch.tensor([-6.0, 6.0])).double()
    found = sampled(grid.repeat(100, 1), torch.zeros(400, 2, dtype=torch.float64))
    assert found.total_correlation == pytest.approx(0, abs=1e-9)
    assert found.mutual_information == pytest.approx(2 * math.log(2), abs=1e-6)


def test_a_correlated_gaussian_aggregate_has_its_total_correlation() -> None:
    found = sampled(*correlated(3000))
    in_common = -0.5 * math.log(1 - 0.8**2)
    assert found.total_correlation == pytest.approx(in_common, abs=4 * found.total_correlation_se)
    assert found.total_correlation_se < 0.02
    assert found.marginal_kl == pytest.approx(in_common, abs=0.05)
    # 0.5 log det of the aggregate's covariance over that of a posterior.
    assert found.mutual_information == pytest.approx(0.5 * math.log((1 - 0.8**2) / 0.1**2), abs=0.05)


def test_posteriors_that_ignore_the_image_have_no_information() -> None:
    found = sampled(torch.ones(50, 3, dtype=torch.float64), torch.zeros(50, 3, dtype=torch.float64))
    assert found.mutual_information == pytest.approx(0, abs=1e-12)
    assert found.total_correlation == pytest.approx(0, abs=1e-12)
    assert found.marginal_kl == found.kl == 1.5
    nothing = sampled(torch.zeros(50, 3), torch.zeros(50, 3))
    assert [value for name, value in dataclasses.asdict(nothing).items() if name not in ("bound", "images")] == [
        pytest.approx(0, abs=1e-12)
    ] * 8


# The estimator


def test_the_parts_add_up_to_the_kl() -> None:
    mean, log_variance = some_posteriors(300, 4)
    found = sampled(mean, log_variance)
    assert found.kl == pytest.approx(found.mutual_information + found.marginal_kl, abs=1e-12)
    exact = kl_divergence(Normal(mean, (0.5 * log_variance).exp()), Normal(0.0, 1.0)).sum(1).mean().item()
    assert found.kl == pytest.approx(exact, rel=1e-12)
    assert found.kl_se < 0.2


def test_the_aggregate_is_the_mixture_of_all_posteriors() -> None:
    mean, log_variance = some_posteriors(40, 3)
    z = mean.roll(1, 0) + 0.3
    scale = (0.5 * log_variance).exp()
    even = Categorical(torch.ones(40, dtype=torch.float64))
    log_joint = MixtureSameFamily(even, Independent(Normal(mean, scale), 1)).log_prob(z)
    log_each = [MixtureSameFamily(even, Normal(mean[:, j], scale[:, j])).log_prob(z[:, j]) for j in range(3)]
    log_product = torch.stack(log_each).sum(0)
    known = Normal(mean, scale).log_prob(z).sum(1) - log_joint
    kl = kl_divergence(Normal(mean, scale), Normal(0.0, 1.0)).sum(1)
    found = aggregate(mean, log_variance, z[None], StandardNormal(mean.shape[1]), 100)
    assert found.mutual_information == pytest.approx(known.mean().item())
    assert found.marginal_kl == pytest.approx((kl - known).mean().item())
    assert found.marginal_kl_se == pytest.approx((kl - known).std().item() / 40**0.5)
    assert found.total_correlation == pytest.approx((log_joint - log_product).mean().item())
    assert found.total_correlation_se == pytest.approx((log_joint - log_product).std().item() / 40**0.5)


def test_several_samples_are_averaged_image_by_image() -> None:
    mean, log_variance = some_posteriors(40, 3)
    z = mean + torch.randn(2, 40, 3, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    both, one, other = (
        aggregate(mean, log_variance, part, StandardNormal(mean.shape[1]), 100) for part in (z, z[:1], z[1:])
    )
    assert both.mutual_information == pytest.approx((one.mutual_information + other.mutual_information) / 2)
    assert both.total_correlation == pytest.approx((one.total_correlation + other.total_correlation) / 2)
    assert both.kl == one.kl


def test_of_a_part_the_kl_is_that_of_the_whole() -> None:
    mean, log_variance = some_posteriors(300, 4)
    part, whole = sampled(mean, log_variance, 100), sampled(mean, log_variance)
    assert part.kl == whole.kl == pytest.approx(part.mutual_information + part.marginal_kl, abs=1e-12)


@pytest.mark.parametrize("numbers", [1, 32 * 40 * 7, 1 << 24])
def test_memory_does_not_change_what_is_found(numbers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = dataclasses.astuple(sampled(*some_posteriors(40, 3)))
    part = dataclasses.astuple(sampled(*some_posteriors(90, 3), limit=40))
    monkeypatch.setattr(runtime, "NUMBERS_AT_ONCE", numbers)
    assert dataclasses.astuple(sampled(*some_posteriors(40, 3))) == pytest.approx(whole, abs=1e-12)
    assert dataclasses.astuple(sampled(*some_posteriors(90, 3), limit=40)) == pytest.approx(part, abs=1e-12)


@pytest.mark.parametrize("limit", [100, 10])
def test_posteriors_that_are_all_apart_have_log_n_of_information(limit: int) -> None:
    mean = torch.arange(100.0, dtype=torch.float64)[:, None]
    found = sampled(mean, torch.full((100, 1), -12.0, dtype=torch.float64), limit)
    assert found.mutual_information == pytest.approx(math.log(100), abs=1e-9)
    assert found.bound == math.log(100)
    assert found.images == limit


def test_of_a_part_each_posterior_weighs_as_in_the_whole() -> None:
    mean = torch.tensor([0.0, 5.0, 0.5, 5.0, 1.0, 5.0], dtype=torch.float64)[:, None]  # 0, 0.5 and 1 are measured
    z, zeros = mean + 0.2, torch.zeros(6, 1, dtype=torch.float64)
    given = Normal(mean[::2].T, 1.0).log_prob(z[::2]).exp()  # (3 images, 3 posteriors)
    own, others = given.diagonal(), given.sum(1) - given.diagonal()
    expected = (own / (own / 6 + others * 5 / 12)).log().mean().item()
    found = aggregate(mean, zeros, z[None], StandardNormal(mean.shape[1]), 3)
    assert found.images == 3
    assert found.mutual_information == pytest.approx(expected)


def test_a_part_gives_what_the_whole_gives() -> None:
    mean, log_variance = correlated(4000)
    whole, part = sampled(mean, log_variance), sampled(mean, log_variance, 1000)
    assert part.images == 1000
    assert part.mutual_information == pytest.approx(whole.mutual_information, abs=0.1)
    assert part.total_correlation == pytest.approx(whole.total_correlation, abs=0.1)


def test_a_single_image_has_no_information() -> None:
    found = sampled(torch.ones(1, 2), torch.zeros(1, 2))
    assert found.mutual_information == found.mutual_information_se == 0
    assert found.kl == found.marginal_kl
    assert found.kl_se == 0


def test_extreme_posteriors_give_finite_numbers() -> None:
    mean = torch.tensor([[0.0], [1e6], [-1e6]])
    found = sampled(mean, torch.tensor([[-40.0], [20.0], [0.0]]))
    assert all(math.isfinite(value) for value in dataclasses.astuple(found))


# Collapse


def test_a_dimension_has_collapsed_when_neither_its_mean_nor_its_kl_moves() -> None:
    kl = torch.tensor([0.0, 0.004, 3.0, 2.0, 2 * COLLAPSED_KL])
    variance = torch.tensor([0.0, 0.01, 0.9, 0.001, 0.0])  # the last two by their variance
    assert collapsed(kl, variance, 0.01) == [0, 1]
    assert collapsed(kl, variance, 0.005) == [0]


def test_codes_without_a_kl_have_not_collapsed() -> None:
    assert collapsed(torch.full((3,), math.nan), torch.zeros(3), 0.01) == []


@pytest.mark.parametrize("dimensions", [[], [3], [0, 1, 2, 7, 9]])
def test_half_of_the_dimensions_may_collapse_without_a_warning(dimensions: list[int]) -> None:
    assert collapse_message(dimensions, 10) is None


def test_the_collapse_of_most_dimensions_is_a_warning_with_a_way_out() -> None:
    assert collapse_message([0, 1, 2, 5, 8, 9], 10) == (
        "more than half of the latents have collapsed: 6 of 10 latent dimensions (0-2, 5, 8-9) say nothing of an "
        "image; try a KL warm-up (objective.warmup), free bits (objective.free_bits), a lower objective.beta or a "
        "smaller decoder"
    )


def test_the_collapse_of_all_dimensions_is_posterior_collapse() -> None:
    message = collapse_message(range(16), 16)
    assert message is not None
    assert message.startswith("posterior collapse: no latent dimension (0-15) says anything of an image; try ")


def test_a_warning_names_a_handful_of_dimensions() -> None:
    message = collapse_message([*range(0, 40, 2), *range(40, 64)], 64)
    assert message is not None
    assert "44 of 64 latent dimensions (0, 2, 4, 6, 8, 10, 12, 14, ...) say" in message
