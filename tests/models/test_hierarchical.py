import itertools
from typing import Any

import pytest
import torch
from conftest import small_section
from linear_gaussian import (
    LOADINGS,
    OFFSET,
    UPPER_LOADINGS,
    UPPER_OFFSET,
    UPPER_VARIANCE,
    hierarchy_evidence,
    linear_hierarchy,
)
from torch import Tensor, nn
from torch.distributions import Bernoulli, Normal, kl_divergence

from reparam.models.build import build_model
from reparam.models.draw import Estimator
from reparam.models.hierarchical import HierarchicalVAE, _kl, _merge
from reparam.objectives import iwae

SHAPE = (3, 2, 4)  # (C, H, W), all different, so that no two can be mixed up
SIZES = (3, 2, 4)  # likewise of the latents, z_1 to z_3
both_directions = pytest.mark.parametrize("inference", ["bottom_up", "top_down"])


def some_model(inference: str) -> HierarchicalVAE:
    """Three layers whose posteriors are far from their priors, so that no term is nearly zero; double precision."""
    changes: dict[str, Any] = {
        "kind": "hierarchical",
        "hidden": (6,),
        "activation": "tanh",
        "latent": SIZES[0],
        "upper": SIZES[1:],
        "upper_hidden": (5,),
        "inference": inference,
        "likelihood": "bernoulli",
    }
    torch.manual_seed(0)
    model = build_model(small_section("model", **changes), SHAPE)
    assert isinstance(model, HierarchicalVAE)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.4)
    return model.double()


def some_images(count: int) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.bernoulli(torch.full((count, *SHAPE), 0.5, dtype=torch.float64), generator=generator)


def halves(output: Tensor) -> Normal:
    """The Gaussian that a network puts out."""
    mean, log_variance = output.chunk(2, dim=-1)
    return Normal(mean, (0.5 * log_variance).exp())


def product(first: Normal, second: Normal) -> Normal:
    """The normalised product of two densities, by the textbook formula."""
    precision = 1 / first.variance + 1 / second.variance
    mean = (first.mean / first.variance + second.mean / second.variance) / precision
    return Normal(mean, precision**-0.5)


def in_units_of(posterior: Normal, prior: Normal) -> tuple[Tensor, Tensor]:
    return (posterior.mean - prior.mean) / prior.stddev, (posterior.variance / prior.variance).log()


def pairs_of_gaussians() -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    means, log_variances = [-2.0, 0.0, 1.5], [-3.0, 0.0, 2.0]
    rows = torch.tensor(list(itertools.product(means, log_variances, means, log_variances)), dtype=torch.float64)
    q_mean, q_log_variance, p_mean, p_log_variance = rows.unbind(1)
    return (q_mean, q_log_variance), (p_mean, p_log_variance)


def test_kl_of_two_gaussians_is_the_integral_that_defines_it() -> None:
    first, second = pairs_of_gaussians()
    q, p = halves(torch.stack(first, -1)), halves(torch.stack(second, -1))
    z = q.mean + q.stddev * torch.linspace(-12, 12, 4001, dtype=torch.float64)[:, None, None]
    wanted = torch.trapezoid(q.log_prob(z).exp() * (q.log_prob(z) - p.log_prob(z)), z, dim=0)[:, 0]
    torch.testing.assert_close(_kl(first, second), wanted, rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(_kl(first, second), kl_divergence(q, p)[:, 0], rtol=1e-12, atol=1e-12)


def test_kl_of_two_gaussians_is_the_mean_of_the_log_ratio() -> None:
    torch.manual_seed(0)
    first, second = pairs_of_gaussians()
    q, p = halves(torch.stack(first, -1)), halves(torch.stack(second, -1))
    z = q.sample((10_000,))
    ratio = (q.log_prob(z) - p.log_prob(z))[..., 0]
    error = ratio.std(0) / len(ratio) ** 0.5 + 1e-12  # none where q is p
    assert ((ratio.mean(0) - _kl(first, second)).abs() / error).max().item() < 5


def test_merging_is_the_normalised_product_of_densities() -> None:
    first, second = pairs_of_gaussians()
    z = torch.linspace(-60, 60, 120_001, dtype=torch.float64)
    for a, b, c, d in zip(*first, *second, strict=True):
        density = (Normal(a, (b / 2).exp()).log_prob(z) + Normal(c, (d / 2).exp()).log_prob(z)).exp()
        density = density / torch.trapezoid(density, z)
        mean = torch.trapezoid(density * z, z)
        variance = torch.trapezoid(density * (z - mean) ** 2, z)
        found_mean, found_log_variance = _merge((a, b), (c, d))
        torch.testing.assert_close(found_mean, mean, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(found_log_variance.exp(), variance, rtol=1e-9, atol=0)


def test_a_bottom_up_draw_holds_the_log_densities_of_its_samples() -> None:
    model, x = some_model("bottom_up"), some_images(4)
    draw = model.draw(x, x, samples=5)
    z_1, z_2, z_3 = (layer.z for layer in draw.layers)
    assert [z.shape for z in (z_1, z_2, z_3)] == [(5, 4, size) for size in SIZES]
    posteriors = [halves(model.encoders[0](x)), halves(model.encoders[1](z_1)), halves(model.encoders[2](z_2))]
    priors = [halves(model.priors[0](z_2)), halves(model.priors[1](z_3)), Normal(torch.zeros_like(z_3), 1.0)]
    for layer, posterior, prior in zip(draw.layers, posteriors, priors, strict=True):
        torch.testing.assert_close(layer.mean, posterior.mean)
        torch.testing.assert_close(layer.log_variance, posterior.variance.log())
        torch.testing.assert_close(layer.log_qz, posterior.log_prob(layer.z).sum(-1))
        torch.testing.assert_close(layer.log_pz, prior.log_prob(layer.z).sum(-1))
    for layer, posterior, prior in zip(draw.layers[:2], posteriors, priors, strict=False):
        torch.testing.assert_close(layer.kl, posterior.log_prob(layer.z) - prior.log_prob(layer.z))
    torch.testing.assert_close(draw.layers[2].kl, kl_divergence(posteriors[2], priors[2]))
    check_sums(model, x, 5)


def test_a_top_down_draw_holds_the_log_densities_of_its_samples() -> None:
    model, x = some_model("top_down"), some_images(4)
    draw = model.draw(x, x, samples=5)
    z_1, z_2, z_3 = (layer.z for layer in draw.layers)
    assert [z.shape for z in (z_1, z_2, z_3)] == [(5, 4, size) for size in SIZES]
    first = model.features[0](x)
    second = model.features[1](first)
    third = model.features[2](second)
    evidence = [halves(encoder(seen)) for encoder, seen in zip(model.encoders, (first, second, third), strict=True)]
    priors = [halves(model.priors[0](z_2)), halves(model.priors[1](z_3)), Normal(torch.zeros_like(z_3), 1.0)]
    posteriors = [product(evidence[0], priors[0]), product(evidence[1], priors[1]), evidence[2]]
    for layer, posterior, prior in zip(draw.layers, posteriors, priors, strict=True):
        torch.testing.assert_close(layer.mean, posterior.mean)
        torch.testing.assert_close(layer.log_variance, posterior.variance.log())
        torch.testing.assert_close(layer.log_qz, posterior.log_prob(layer.z).sum(-1))
        torch.testing.assert_close(layer.log_pz, prior.log_prob(layer.z).sum(-1))
        torch.testing.assert_close(layer.kl, kl_divergence(posterior, prior).expand_as(layer.z))
    check_sums(model, x, 5)


def check_sums(model: HierarchicalVAE, x: Tensor, samples: int) -> None:
    target = 1 - x
    draw = model.draw(x, target, samples)
    logits = model.decoder(draw.layers[0].z.flatten(0, 1)).unflatten(0, (samples, len(x)))
    torch.testing.assert_close(draw.log_px, Bernoulli(logits=logits).log_prob(target).sum((-3, -2, -1)))
    for name, of_layer in (("log_pz", "log_pz"), ("log_qz", "log_qz"), ("kl", "joint_kl")):
        wanted = sum(getattr(layer, of_layer) for layer in draw.layers)
        torch.testing.assert_close(getattr(draw, name), wanted)
        assert getattr(draw, name).shape == (samples, len(x))


@both_directions
def test_the_kl_is_the_log_ratio_in_expectation(inference: str) -> None:
    model, x = some_model(inference), some_images(3)
    torch.manual_seed(0)
    with torch.no_grad():
        draw = model.draw(x, x, samples=20_000)
    difference = draw.log_qz - draw.log_pz - draw.kl
    assert (difference.mean(0).abs() / (difference.std(0) / 20_000**0.5)).max().item() < 5
    assert difference.std(0).min().item() > 0.1


@both_directions
def test_estimators_differ_in_gradients_alone(inference: str) -> None:
    estimators: list[Estimator] = ["pathwise", "stopped", "score_function"]
    model, x, draws = some_model(inference), some_images(4), []
    for estimator in estimators:
        torch.manual_seed(0)
        draws.append(model.draw(x, x, 5, estimator))
    for name in ("log_px", "log_pz", "log_qz", "kl"):
        for draw in draws[1:]:
            torch.testing.assert_close(getattr(draw, name), getattr(draws[0], name), rtol=1e-12, atol=1e-12)


@both_directions
@pytest.mark.parametrize("samples", [1, 2, 50])
def test_the_bound_with_the_true_posterior_is_the_evidence_whatever_k(inference: str, samples: int) -> None:
    torch.manual_seed(0)
    model, x = linear_hierarchy(inference), 2 * torch.randn(6, 1, 2, 2, dtype=torch.float64)
    with torch.no_grad():
        bound = -iwae(model.draw(x, x, samples))
    torch.testing.assert_close(bound, hierarchy_evidence().log_prob(x.flatten(1)), rtol=1e-12, atol=1e-12)


@both_directions
def test_the_bound_with_another_posterior_rises_to_the_evidence_from_below(inference: str) -> None:
    torch.manual_seed(0)
    model, repeats = linear_hierarchy(inference, error=0.4), 4000
    x = hierarchy_evidence().sample().reshape(1, 1, 2, 2)
    evidence = hierarchy_evidence().log_prob(x.flatten(1))
    batch = x.expand(repeats, -1, -1, -1)
    means, errors = [], []
    with torch.no_grad():
        for samples in (1, 4, 16):
            bound = -iwae(model.draw(batch, batch, samples))
            means.append(bound.mean().item())
            errors.append(bound.std().item() / repeats**0.5)
        many = -iwae(model.draw(x, x, 200_000))
    assert means[0] + 5 * errors[0] < means[1] - 5 * errors[1]
    assert means[1] + 5 * errors[1] < means[2] - 5 * errors[2]
    assert means[2] + 5 * errors[2] < evidence.item()
    torch.testing.assert_close(many, evidence, rtol=0, atol=0.03)


@both_directions
def test_decoding_standard_normal_noise_is_ancestral_sampling(inference: str) -> None:
    model, noise = some_model(inference), torch.randn(7, sum(SIZES), dtype=torch.float64)
    noise_1, noise_2, z_3 = noise.split(SIZES, dim=-1)
    prior_2 = halves(model.priors[1](z_3))
    z_2 = prior_2.mean + prior_2.stddev * noise_2
    prior_1 = halves(model.priors[0](z_2))
    z_1 = prior_1.mean + prior_1.stddev * noise_1
    torch.testing.assert_close(model.decode(noise), model.decoder(z_1).sigmoid())


@both_directions
def test_decoded_noise_has_the_moments_of_the_evidence(inference: str) -> None:
    torch.manual_seed(0)
    with torch.no_grad():
        means = linear_hierarchy(inference).decode(torch.randn(100_000, 5, dtype=torch.float64)).flatten(1)
    # Of E[x|z_1], which lacks the noise of the pixels.
    upper = UPPER_VARIANCE.diag() + UPPER_LOADINGS @ UPPER_LOADINGS.T
    covariance = LOADINGS @ upper @ LOADINGS.T
    error = (covariance.diag() / len(means)).sqrt()
    assert ((means.mean(0) - LOADINGS @ UPPER_OFFSET - OFFSET).abs() / error).max().item() < 5
    spread = covariance.diag()
    errors = ((covariance.square() + spread[:, None] * spread) / len(means)).sqrt()
    assert ((means.T.cov() - covariance).abs() / errors).max().item() < 5


def test_the_posterior_of_a_bottom_up_model_is_in_units_of_its_priors() -> None:
    model, x = some_model("bottom_up"), some_images(4)
    q_1 = halves(model.encoders[0](x))
    q_2 = halves(model.encoders[1](q_1.mean))
    q_3 = halves(model.encoders[2](q_2.mean))
    p_1, p_2 = halves(model.priors[0](q_2.mean)), halves(model.priors[1](q_3.mean))
    check_posterior(model, x, [q_1, q_2, q_3], [p_1, p_2, Normal(torch.zeros_like(q_3.mean), 1.0)])


def test_the_posterior_of_a_top_down_model_is_in_units_of_its_priors() -> None:
    model, x = some_model("top_down"), some_images(4)
    first = model.features[0](x)
    second = model.features[1](first)
    q_3 = halves(model.encoders[2](model.features[2](second)))
    p_2 = halves(model.priors[1](q_3.mean))
    q_2 = product(halves(model.encoders[1](second)), p_2)
    p_1 = halves(model.priors[0](q_2.mean))
    q_1 = product(halves(model.encoders[0](first)), p_1)
    check_posterior(model, x, [q_1, q_2, q_3], [p_1, p_2, Normal(torch.zeros_like(q_3.mean), 1.0)])


def check_posterior(model: HierarchicalVAE, x: Tensor, posteriors: list[Normal], priors: list[Normal]) -> None:
    scaled = [in_units_of(*pair) for pair in zip(posteriors, priors, strict=True)]
    mean, log_variance = model.posterior(x)
    assert mean.shape == log_variance.shape == (len(x), sum(SIZES))
    torch.testing.assert_close(mean, torch.cat([pair[0] for pair in scaled], -1))
    torch.testing.assert_close(log_variance, torch.cat([pair[1] for pair in scaled], -1))
    # To decode it is to decode the mean of z_1, as if nothing had been rescaled.
    torch.testing.assert_close(model.decode(mean), model.decoder(posteriors[0].mean).sigmoid())


def test_the_posterior_of_a_linear_model_is_centred_on_the_mean_of_the_joint_posterior() -> None:
    x = torch.randn(3, 1, 2, 2, dtype=torch.float64)
    up, down = (linear_hierarchy(inference) for inference in ("bottom_up", "top_down"))
    # Both factorise the same Gaussian, whose mean is that of each factor at the means of the others.
    torch.testing.assert_close(up.posterior(x)[0], down.posterior(x)[0])
    torch.testing.assert_close(up.decode(up.posterior(x)[0]), down.decode(down.posterior(x)[0]))


@both_directions
def test_layers_are_sampled_with_the_noise_that_is_given(inference: str) -> None:
    model, x = some_model(inference), some_images(4)
    noise = torch.randn(5, 4, sum(SIZES), dtype=torch.float64)
    drawn = model.layers(model.encode(x), noise)
    for layer, its in zip(drawn, torch.split(noise, SIZES, -1), strict=True):
        torch.testing.assert_close(layer.z, layer.mean + its * (0.5 * layer.log_variance).exp())
    for one, layer in zip(model.layers(model.encode(x), noise[3]), drawn, strict=True):
        for name in ("z", "log_pz", "log_qz", "kl"):
            torch.testing.assert_close(getattr(one, name), getattr(layer, name)[3])


@pytest.mark.parametrize(("inference", "features"), [("bottom_up", 0), ("top_down", 3)])
def test_the_number_of_stochastic_layers_is_that_of_the_latents(inference: str, features: int) -> None:
    model = some_model(inference)
    assert model.stochastic_layers == len(SIZES)
    assert (len(model.features), len(model.encoders), len(model.priors)) == (features, 3, 2)
