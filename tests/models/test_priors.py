"""Every prior: its density, its draws, its KL; and what only a VampPrior does."""

import copy
import math
from typing import Any

import pytest
import torch
from conftest import small_section
from torch import Tensor, nn
from torch.distributions import Independent, Normal, kl_divergence

from reparam.models.build import build_model
from reparam.models.draw import Prior
from reparam.models.priors import PRIORS, GaussianMixture, StandardNormal, Vamp
from reparam.models.vae import VAE

SHAPE = (1, 2, 3)
LATENT = 2
IMAGES = torch.rand(3, *SHAPE, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
every_prior = pytest.mark.parametrize("name", PRIORS)
SIDE, REACH = 801, 20.0  # of the grid that integrals are taken on


def some_vae(prior: str, components: int = 3, **changes: Any) -> VAE:
    """A VAE whose prior is far from a standard normal, unless it is one; double precision."""
    torch.manual_seed(0)
    small = {"prior": prior, "latent": LATENT, "hidden": [4], "activation": "tanh"}
    config = small_section("model", **small | {"mixture": {"components": components}} | changes)
    config = config.model_copy(update={"vamp": config.vamp.model_copy(update={"components": components})})
    model = build_model(config, SHAPE).double()
    assert isinstance(model, VAE)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            nn.init.uniform_(weight) if name == "prior.pseudo_inputs" else nn.init.normal_(weight, std=0.4)
    return model


def some_prior(name: str, components: int = 3) -> Prior:
    return some_vae(name, components).prior


every_mixture = pytest.mark.parametrize("name", [name for name in PRIORS if some_prior(name).components() is not None])


def grid() -> tuple[Tensor, float]:
    """Points of a square, and the area of each. Shapes: (SIDE^2, 2)."""
    along = torch.linspace(-REACH, REACH, SIDE, dtype=torch.float64)
    return torch.cartesian_prod(along, along), (2 * REACH / (SIDE - 1)) ** 2


@every_prior
@torch.no_grad()
def test_the_density_of_every_prior_sums_to_one_and_has_its_moments(name: str) -> None:
    prior, (z, area) = some_prior(name), grid()
    density = prior.log_prob(z).exp() * area
    assert density.sum().item() == pytest.approx(1, abs=1e-9)
    mean = density @ z
    deviation = (density @ (z - mean).square()).sqrt()
    for found, wanted in zip(prior.moments(), (mean, deviation), strict=True):
        assert found.tolist() == pytest.approx(wanted.tolist(), abs=1e-7)


@every_prior
@torch.no_grad()
def test_samples_of_every_prior_are_those_of_its_density(name: str) -> None:
    prior, (z, area) = some_prior(name), grid()
    drawn = prior.sample(torch.empty(2, 10_000, LATENT, dtype=torch.float64), torch.Generator().manual_seed(0))
    density = prior.log_prob(z).exp() * area
    assert drawn.shape == (2, 10_000, LATENT)
    # How many lie in each of 16 cells, of expected numbers from the density.
    edges = torch.tensor([-1.01, -0.01, 0.99], dtype=torch.float64)

    def cells(points: Tensor) -> Tensor:
        first, second = torch.bucketize(points.contiguous(), edges).unbind(-1)
        return 4 * first + second

    wanted = torch.zeros(16, dtype=torch.float64).index_add(0, cells(z), density)
    found = cells(drawn.flatten(0, 1)).bincount(minlength=16) / 20_000
    assert ((found - wanted).abs() < 5 * (wanted / 20_000).sqrt() + 1e-3).all(), (found, wanted)


@every_prior
@torch.no_grad()
def test_the_kl_of_every_prior_is_that_of_quadrature(name: str) -> None:
    model, (z, area) = some_vae(name), grid()
    draw = model.draw(IMAGES, IMAGES, samples=40_000)
    for number, (mean, log_variance) in enumerate(zip(*model.posterior(IMAGES), strict=True)):
        log_q = Independent(Normal(mean, (0.5 * log_variance).exp()), 1).log_prob(z)
        wanted = (log_q.exp() * (log_q - model.prior.log_prob(z))).sum().item() * area
        sampled = (draw.log_qz - draw.log_pz)[:, number]
        error = sampled.std().item() / len(sampled) ** 0.5
        assert sampled.mean().item() == pytest.approx(wanted, abs=5 * error)
        assert draw.kl[:, number].mean().item() == pytest.approx(wanted, abs=5 * error if name != "standard" else 1e-6)


@every_mixture
@torch.no_grad()
def test_a_mixture_is_that_of_its_components(name: str) -> None:
    prior, z = some_prior(name), grid()[0][::997]
    found = prior.components()
    assert found is not None
    each = [
        weight + Normal(mean, (0.5 * log_variance).exp()).log_prob(z).sum(-1)
        for mean, log_variance, weight in zip(found.means, found.log_variances, found.log_weights, strict=True)
    ]
    torch.testing.assert_close(prior.log_prob(z), torch.stack(each).logsumexp(0), rtol=1e-10, atol=1e-10)
    assert found.log_weights.exp().sum().item() == pytest.approx(1)


@every_mixture
@torch.no_grad()
def test_an_exported_density_is_the_same_without_float64(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    prior, z = some_prior(name), grid()[0][::997]
    wanted = prior.log_prob(z)
    monkeypatch.setattr(torch.compiler, "is_exporting", lambda: True)
    torch.testing.assert_close(prior.log_prob(z), wanted)


@every_mixture
@torch.no_grad()
def test_narrow_components_lose_no_digits(name: str) -> None:
    model = some_vae(name).float()
    for weight in (model.encoder[-1].bias[LATENT:], getattr(model.prior, "log_variances", torch.zeros(1))):
        weight -= 15  # standard deviations of about 5e-4
    found = model.prior.components()
    assert found is not None
    z = model.prior.sample(torch.empty(50, LATENT))
    each = Normal(found.means.double(), (0.5 * found.log_variances.double()).exp()).log_prob(z.double()[:, None])
    wanted = (each.sum(-1) + found.log_weights.double()).logsumexp(-1)
    torch.testing.assert_close(model.prior.log_prob(z), wanted.float(), rtol=1e-6, atol=1e-6)


@every_prior
@torch.no_grad()
def test_a_settled_prior_is_the_same_and_learns_no_more(name: str) -> None:
    prior, z = some_prior(name), grid()[0][::997]
    settled = prior.settled()
    torch.testing.assert_close(settled.log_prob(z), prior.log_prob(z), rtol=0, atol=0)
    assert not isinstance(settled, nn.Module) or not list(settled.parameters())


@every_prior
def test_only_dimensions_that_are_independent_have_a_kl_of_their_own(name: str) -> None:
    model = some_vae(name)
    [layer] = model.draw(IMAGES, IMAGES, samples=2).layers
    assert layer.log_pz.shape == layer.log_qz.shape == (2, 3)
    for kl in (layer.kl, layer.sampled_kl):
        assert (None if kl is None else kl.shape) == ((2, 3, LATENT) if model.prior.is_independent else None)
    assert torch.equal(layer.joint_kl, layer.log_qz - layer.log_pz) == (not model.prior.is_independent)


# Mixtures


def test_a_mixture_starts_near_a_standard_normal() -> None:
    torch.manual_seed(0)
    config = small_section("model", prior="mixture", latent=5, mixture={"components": 4_000})
    mean, deviation = build_model(config, SHAPE).prior.moments()
    assert mean.abs().max().item() < 5 / 4_000**0.5
    assert (deviation - 1).abs().max().item() < 5 / 8_000**0.5


# VampPrior


@torch.no_grad()
def test_a_vamp_prior_of_one_pseudo_input_is_the_gaussian_of_its_posterior() -> None:
    model = some_vae("vamp", components=1)
    assert isinstance(model.prior, Vamp)
    mean, log_variance = model.posterior(model.prior.pseudo_inputs.clamp(0, 1))
    gaussian, z = Normal(mean[0], (0.5 * log_variance[0]).exp()), grid()[0][::997]
    torch.testing.assert_close(model.prior.log_prob(z), gaussian.log_prob(z).sum(-1))
    for found, wanted in zip(model.prior.moments(), (gaussian.mean, gaussian.stddev), strict=True):
        torch.testing.assert_close(found, wanted)
    means, log_variances = model.posterior(IMAGES)
    wanted = kl_divergence(Normal(means, (0.5 * log_variances).exp()), gaussian).sum(-1)
    kl = model.draw(IMAGES, IMAGES, samples=40_000).kl
    assert ((kl.mean(0) - wanted).abs() < 5 * kl.std(0) / 200).all()


def test_pseudo_inputs_are_cut_to_the_range_of_pixels() -> None:
    model = some_vae("vamp")
    assert isinstance(model.prior, Vamp)
    with torch.no_grad():
        model.prior.pseudo_inputs[:] = torch.linspace(-1, 2, 18).view(3, *SHAPE)
    wanted = model.posterior(model.prior.pseudo_inputs.clamp(0, 1))[0]
    found = model.prior.components()
    assert torch.equal(found.means, wanted)
    found.means.sum().backward()
    assert model.prior.pseudo_inputs.grad is not None
    is_inside = (model.prior.pseudo_inputs >= 0) & (model.prior.pseudo_inputs <= 1)
    assert torch.equal(model.prior.pseudo_inputs.grad != 0, is_inside)


def test_pseudo_inputs_start_as_noise_about_a_grey_level() -> None:
    torch.manual_seed(0)
    vamp = {"components": 500, "grey": 0.3, "deviation": 0.02}
    prior = build_model(small_section("model", prior="vamp", vamp=vamp), (1, 8, 8)).prior
    assert isinstance(prior, Vamp)
    assert prior.pseudo_inputs.shape == (500, 1, 8, 8)
    assert prior.pseudo_inputs.mean().item() == pytest.approx(0.3, abs=5 * 0.02 / 32_000**0.5)
    assert prior.pseudo_inputs.std().item() == pytest.approx(0.02, rel=0.02)


def test_a_vamp_prior_has_the_weights_of_its_model_once_and_a_copy_its_own() -> None:
    model = some_vae("vamp")
    names = [name for name in model.state_dict() if name.startswith("prior.")]
    assert names == ["prior.pseudo_inputs"]
    other, z = copy.deepcopy(model), torch.zeros(1, LATENT, dtype=torch.float64)
    before = other.prior.log_prob(z)
    with torch.no_grad():
        model.encoder[-1].bias += 1
    assert torch.equal(other.prior.log_prob(z), before)
    assert not torch.equal(model.prior.log_prob(z), before)


def test_a_standard_normal_is_what_torch_draws() -> None:
    like, generator = torch.empty(4, 3), torch.Generator().manual_seed(5)
    wanted = torch.randn(4, 3, generator=torch.Generator().manual_seed(5))
    assert torch.equal(StandardNormal(3).sample(like, generator), wanted)


def test_levels_beyond_the_rounded_sum_of_weights_are_of_the_last_component(monkeypatch: pytest.MonkeyPatch) -> None:
    prior = some_prior("mixture")
    assert isinstance(prior, GaussianMixture)
    monkeypatch.setattr(torch, "rand", lambda *shape, **_: torch.full(shape, math.inf, dtype=torch.float64))
    drawn = prior.sample(torch.empty(4_000, LATENT, dtype=torch.float64))
    last = prior.components().means[-1]
    deviation = (0.5 * prior.components().log_variances[-1]).exp()
    assert ((drawn.mean(0) - last).abs() < 5 * deviation / 4_000**0.5).all()
