from collections.abc import Callable
from typing import Any

import pytest
import torch
from conftest import small_section
from linear_gaussian import linear_vae, vae_evidence
from torch import Tensor, nn
from torch.distributions import Bernoulli, Normal, kl_divergence

from reparam.config import ModelConfig
from reparam.models import likelihoods
from reparam.models.build import build_model
from reparam.models.draw import Draw, Estimator, Layer, halves, kl_to_standard_normal
from reparam.models.priors import StandardNormal
from reparam.models.vae import VAE, sample_gaussian
from reparam.objectives import iwae

SHAPE = (3, 2, 4)  # (C, H, W), all different, so that no two can be mixed up
LATENT = 2


def settings(**changes: Any) -> ModelConfig:
    small = {"kind": "vae", "hidden": (6,), "activation": "tanh", "latent": LATENT, "likelihood": "bernoulli"}
    return small_section("model", **small | changes)


BERNOULLI = likelihoods.Bernoulli()


def some_model() -> VAE:
    """A model whose posteriors are far from the prior, so that no term is nearly zero."""
    torch.manual_seed(0)
    model = build_model(settings(), SHAPE)
    assert isinstance(model, VAE)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.4)
    return model


def some_images(count: int) -> Tensor:
    return torch.bernoulli(torch.full((count, *SHAPE), 0.5), generator=torch.Generator().manual_seed(1))


def grid_of_gaussians() -> tuple[Tensor, Tensor]:
    mean, log_variance = torch.meshgrid(
        torch.linspace(-3, 3, 7, dtype=torch.float64), torch.linspace(-6, 3, 10, dtype=torch.float64), indexing="ij"
    )
    return mean.flatten(), log_variance.flatten()


def test_kl_is_that_of_torch_distributions() -> None:
    mean, log_variance = grid_of_gaussians()
    wanted = kl_divergence(Normal(mean, (0.5 * log_variance).exp()), Normal(torch.zeros_like(mean), 1.0))
    torch.testing.assert_close(kl_to_standard_normal(mean, log_variance), wanted)


def test_kl_is_the_integral_that_defines_it() -> None:
    mean, log_variance = grid_of_gaussians()
    q, prior = Normal(mean, (0.5 * log_variance).exp()), Normal(torch.zeros_like(mean), 1.0)
    z = mean + q.scale * torch.linspace(-12, 12, 4001, dtype=torch.float64)[:, None]  # +-12 standard deviations
    wanted = torch.trapezoid(q.log_prob(z).exp() * (q.log_prob(z) - prior.log_prob(z)), z, dim=0)
    torch.testing.assert_close(kl_to_standard_normal(mean, log_variance), wanted, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("log_variance", [1e-2, -1e-2, 1e-3, -1e-3, 1e-4, -1e-4])
def test_kl_keeps_its_digits_near_the_prior(log_variance: float) -> None:
    v = torch.tensor(log_variance)  # float32, where e^v - 1 - v in this order has no digit left at 1e-4
    exact = v.double() ** 2 / 4 + v.double() ** 3 / 12 + v.double() ** 4 / 48
    assert kl_to_standard_normal(torch.zeros(()), v).item() == pytest.approx(exact.item(), rel=1e-3)


@pytest.mark.parametrize("mean", [1e-3, 1e-8, 1e-15])
def test_kl_of_a_tiny_mean_is_half_its_square(mean: float) -> None:
    assert kl_to_standard_normal(torch.tensor(mean), torch.zeros(())).item() == pytest.approx(mean**2 / 2, rel=1e-6)


def test_kl_is_zero_at_the_prior_and_never_negative() -> None:
    generator = torch.Generator().manual_seed(0)
    magnitude = 10 ** (-8 * torch.rand(100_000, generator=generator))
    log_variance = magnitude * torch.randn(100_000, generator=generator)
    assert kl_to_standard_normal(torch.zeros(()), torch.zeros(())).item() == 0.0
    assert kl_to_standard_normal(torch.zeros(()), log_variance).min().item() >= 0.0


def test_a_draw_holds_the_log_densities_of_its_samples() -> None:
    model, x = some_model(), some_images(4)
    seen: list[tuple[Tensor, Tensor]] = []
    model.decoder.register_forward_hook(lambda _module, inputs, output: seen.append((inputs[0], output)))
    draw = model.draw(x, x, samples=5)

    [(rows, logits)] = seen
    z = rows.unflatten(0, (5, 4))
    assert rows.shape == (20, LATENT)
    assert torch.equal(draw.layers[0].z, z)
    mean, log_variance = model.posterior(x)
    torch.testing.assert_close(draw.log_pz, Normal(0.0, 1.0).log_prob(z).sum(-1))
    torch.testing.assert_close(draw.log_qz, Normal(mean, (0.5 * log_variance).exp()).log_prob(z).sum(-1))
    torch.testing.assert_close(draw.log_px, Bernoulli(logits=logits.unflatten(0, (5, 4))).log_prob(x).sum((-3, -2, -1)))
    torch.testing.assert_close(draw.kl, kl_to_standard_normal(mean, log_variance).sum(-1).expand(5, 4))
    for field in (draw.log_px, draw.log_pz, draw.log_qz, draw.kl):
        assert field.shape == (5, 4)


def test_the_closed_form_kl_is_the_mean_over_draws() -> None:
    model, x = some_model(), some_images(3)
    with torch.no_grad():
        draw = model.draw(x, x, samples=20_000)
    ratio = (draw.log_qz - draw.log_pz).double()
    deviation = (ratio.mean(0) - draw.kl[0]).abs() / (ratio.std(0) / len(ratio) ** 0.5)
    assert deviation.max().item() < 5  # standard errors


def test_samples_follow_the_posterior() -> None:
    model, x = some_model(), some_images(2)
    with torch.no_grad():
        z = model.draw(x, x, samples=20_000).layers[0].z
        mean, log_variance = model.posterior(x)
    standard = ((z - mean) / (0.5 * log_variance).exp()).double()
    assert standard.mean(0).abs().max().item() < 5 / 20_000**0.5
    assert (standard.var(0) - 1).abs().max().item() < 5 * (2 / 20_000) ** 0.5
    assert len(torch.unique(standard)) > 0.99 * standard.numel()


def test_gradients_flow_through_the_samples_into_mean_and_log_variance() -> None:
    decoder = nn.Sequential(nn.Linear(2, 4), nn.Unflatten(1, (1, 1, 4)))
    model = VAE(nn.Flatten(), decoder, BERNOULLI, StandardNormal(2), (1, 1, 4))
    x = torch.tensor([[[[0.5, -1.0, 0.3, -2.0]]]], requires_grad=True)  # two means, two log variances
    z = model.draw(x, x.detach(), samples=3).layers[0].z
    z.sum().backward()
    assert x.grad is not None
    # z = mean + e^(v / 2) noise: the slope is 1 in the mean, and half of z - mean in v.
    wanted = [3.0, 3.0, *(z - x[0, 0, 0, :2]).sum((0, 1)).mul(0.5).tolist()]
    assert x.grad.flatten().tolist() == pytest.approx(wanted, rel=1e-5)


def test_the_target_is_scored_and_the_input_encoded() -> None:
    model, x, target = some_model(), some_images(6)[:3], some_images(6)[3:]
    torch.manual_seed(0)
    plain = model.draw(x, x, samples=2)
    torch.manual_seed(0)
    crossed = model.draw(x, target, samples=2)
    for name in ("log_pz", "log_qz", "kl"):
        assert torch.equal(getattr(plain, name), getattr(crossed, name)), name

    torch.manual_seed(0)
    noise = torch.randn(2, 3, LATENT)
    mean, log_variance = model.posterior(x)
    logits = model.decoder((mean + noise * (0.5 * log_variance).exp()).flatten(0, 1)).unflatten(0, (2, 3))
    torch.testing.assert_close(crossed.log_px, Bernoulli(logits=logits).log_prob(target).sum((-3, -2, -1)))
    assert not torch.allclose(plain.log_px, crossed.log_px)


def test_posterior_is_the_two_halves_of_what_the_encoder_puts_out() -> None:
    model = VAE(nn.Flatten(), nn.Identity(), BERNOULLI, StandardNormal(3), (1, 2, 3))
    x = torch.arange(12.0).reshape(2, 1, 2, 3)
    mean, log_variance = model.posterior(x)
    assert mean.tolist() == [[0, 1, 2], [6, 7, 8]]
    assert log_variance.tolist() == [[3, 4, 5], [9, 10, 11]]


def test_decode_gives_the_mean_image_row_by_row() -> None:
    model = VAE(nn.Identity(), nn.Unflatten(1, SHAPE), BERNOULLI, StandardNormal(24), SHAPE)
    logits = torch.linspace(-3, 3, 48).reshape(2, 24)
    image = model.decode(logits)
    assert image.shape == (2, *SHAPE)
    channel, row, column = 2, 1, 3
    assert image[1, channel, row, column] == logits[1, (channel * 2 + row) * 4 + column].sigmoid()


def test_the_decoder_mirrors_the_encoder() -> None:
    model = build_model(settings(hidden=(7, 5), activation="silu", latent=3), SHAPE)
    widths = [
        [(layer.in_features, layer.out_features) for layer in network.modules() if isinstance(layer, nn.Linear)]
        for network in model.children()
    ]
    assert widths == [[(24, 7), (7, 5), (5, 6)], [(3, 5), (5, 7), (7, 24)]]
    assert sum(isinstance(layer, nn.SiLU) for layer in model.modules()) == 4
    assert model.shape == SHAPE


def test_fresh_weights_come_from_the_seed() -> None:
    def weights(seed: int) -> list[Tensor]:
        torch.manual_seed(seed)
        return list(build_model(settings(), SHAPE).parameters())

    assert all(torch.equal(*pair) for pair in zip(weights(0), weights(0), strict=True))
    assert not any(torch.equal(*pair) for pair in zip(weights(0), weights(1), strict=True))


def test_a_draw_sums_the_dimensions_of_its_layers() -> None:
    torch.manual_seed(0)
    model, x = some_model(), some_images(4)
    draw = model.draw(x, x, samples=5)
    [layer] = draw.layers
    mean, log_variance = model.posterior(x)
    assert torch.equal(layer.mean, mean)
    assert torch.equal(layer.log_variance, log_variance)
    q, p = Normal(mean, (0.5 * log_variance).exp()), Normal(0.0, 1.0)
    assert layer.kl is not None
    assert torch.equal(layer.kl.sum(-1), draw.kl)
    torch.testing.assert_close(layer.kl[2], kl_divergence(q, p))
    torch.testing.assert_close(layer.sampled_kl, q.log_prob(layer.z) - p.log_prob(layer.z))
    torch.testing.assert_close(draw.log_qz, q.log_prob(layer.z).sum(-1))
    torch.testing.assert_close(draw.log_pz, p.log_prob(layer.z).sum(-1))


def test_a_draw_of_several_layers_sums_them_all() -> None:
    fields = [torch.arange(6.0).add(start).reshape(6, 1, 1, 1).expand(-1, 2, 1, 3) for start in (0, 10)]
    layers = [
        Layer.of(z, (mean, log_variance), log_qz, log_pz, kl) for z, mean, log_variance, log_pz, log_qz, kl in fields
    ]
    draw = Draw.of(torch.zeros(2, 1), *layers)
    assert draw.log_pz.tolist() == [[3 * (3 + 13)]] * 2
    assert draw.log_qz.tolist() == [[3 * (4 + 14)]] * 2
    assert draw.kl.tolist() == [[3 * (5 + 15)]] * 2
    assert draw.layers == tuple(layers)


def test_a_log_variance_is_cut_off_where_its_exponential_would_overflow_and_keeps_its_gradient() -> None:
    log_variance = torch.tensor([-torch.inf, -1e8, -41, -40, 0.1, 20, 21, 1e8, torch.inf], requires_grad=True)
    _, bounded = halves(torch.cat([torch.zeros(9), log_variance]))
    assert bounded.tolist() == [-40, -40, -40, -40, log_variance[4].item(), 20, 20, 20, 20]
    [gradient] = torch.autograd.grad(bounded.square().sum() / 2, log_variance)
    assert torch.equal(gradient, bounded.detach())


def test_layers_are_sampled_with_the_noise_that_is_given() -> None:
    model, x = some_model(), some_images(3)
    noise = torch.randn(4, 3, LATENT)
    [drawn] = model.layers(model.encode(x), noise)
    mean, log_variance = model.posterior(x)
    assert torch.equal(drawn.z, mean + noise * (0.5 * log_variance).exp())
    [one] = model.layers(model.encode(x), noise[2])
    for name in ("z", "log_pz", "log_qz", "kl"):
        assert torch.equal(getattr(one, name), getattr(drawn, name)[2])


Slopes = tuple[Tensor, Tensor]
# d log q(z) / d mean and d log q(z) / d v, where z = mean + e^(v / 2) noise.
ESTIMATORS: dict[Estimator, Callable[[Tensor, Tensor], Slopes]] = {
    # What moves is z together with its density:
    "pathwise": lambda noise, sigma: (torch.zeros_like(noise), torch.full_like(noise, -0.5)),
    # z alone:
    "stopped": lambda noise, sigma: (-noise / sigma, -noise.square() / 2),
    # the density alone:
    "score_function": lambda noise, sigma: (noise / sigma, (noise.square() - 1) / 2),
}


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("is_sampled_below", [False, True], ids=["(B, D)", "(K, B, D)"])
def test_an_estimator_is_the_way_by_which_gradients_reach_the_posterior(
    estimator: Estimator, is_sampled_below: bool
) -> None:
    shape = (4, 2, 3) if is_sampled_below else (2, 3)
    torch.manual_seed(0)
    mean, log_variance = torch.randn(2, *shape, dtype=torch.float64).unbind()
    mean.requires_grad_()
    log_variance.requires_grad_()
    noise, sigma = torch.randn(4, 2, 3, dtype=torch.float64), (0.5 * log_variance).exp()
    z, log_qz = sample_gaussian(mean, log_variance, noise, estimator)
    torch.testing.assert_close(z, mean + sigma * noise)
    torch.testing.assert_close(log_qz, Normal(mean, sigma).log_prob(z))

    wanted = [slope if is_sampled_below else slope.sum(0) for slope in ESTIMATORS[estimator](noise, sigma)]
    found = torch.autograd.grad(log_qz.sum(), (mean, log_variance), retain_graph=True, materialize_grads=True)
    torch.testing.assert_close(found, tuple(wanted))
    assert z.requires_grad == (estimator != "score_function")


def test_estimators_differ_in_gradients_alone() -> None:
    model, x = some_model().double(), some_images(4).double()
    draws = []
    for estimator in ESTIMATORS:
        torch.manual_seed(0)
        draws.append(model.draw(x, x, 5, estimator))
    for name in ("log_px", "log_pz", "log_qz", "kl"):
        for draw in draws[1:]:
            torch.testing.assert_close(getattr(draw, name), getattr(draws[0], name), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("samples", [1, 2, 50])
def test_the_bound_with_the_true_posterior_is_the_evidence_whatever_k(samples: int) -> None:
    torch.manual_seed(0)
    model, x = linear_vae(), 2 * torch.randn(6, 1, 2, 2, dtype=torch.float64)
    with torch.no_grad():
        bound = -iwae(model.draw(x, x, samples))
    torch.testing.assert_close(bound, vae_evidence().log_prob(x.flatten(1)), rtol=1e-12, atol=1e-12)


def test_the_bound_with_another_posterior_approaches_the_evidence_from_below() -> None:
    torch.manual_seed(0)
    model, x = linear_vae(error=0.5), vae_evidence().sample((3,)).reshape(3, 1, 2, 2)
    evidence = vae_evidence().log_prob(x.flatten(1))
    with torch.no_grad():
        one = -iwae(model.draw(x.repeat(2000, 1, 1, 1), x.repeat(2000, 1, 1, 1), 1)).reshape(2000, 3)
        many = -iwae(model.draw(x, x, 100_000))
    assert (one.mean(0) + 5 * one.std(0) / 2000**0.5 < evidence - 0.1).all()
    torch.testing.assert_close(many, evidence, rtol=0, atol=0.03)
