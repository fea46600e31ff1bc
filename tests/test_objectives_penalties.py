import math
from typing import Any

import numpy as np
import pytest
import torch
from conftest import small_section
from linear_gaussian import linear
from torch import Tensor, nn

from reparam.config import ModelConfig
from reparam.errors import ParamsError
from reparam.models.autoencoder import Autoencoder
from reparam.models.build import build_model
from reparam.models.likelihoods import Gaussian
from reparam.models.priors import StandardNormal
from reparam.models.vae import VAE
from reparam.objectives import OBJECTIVES, Setting, Terms, corrupt, maximum_mean_discrepancy, squared_jacobian_norm
from reparam.train.checks import check_objective

OBJECTIVE = small_section("objective")
MODEL = small_section("model")
UNIT = Setting(torch.tensor(torch.inf), torch.zeros(1, 1, 1), torch.ones(1, 1, 1))
SHAPE = (2, 4, 4)
NETWORKS: dict[str, dict[str, Any]] = {
    "mlp": {"network": "mlp", "hidden": (7, 5), "activation": "tanh"},
    "conv": {"network": "conv", "channels": (3, 4), "kernel": 4, "hidden": (5,), "activation": "softplus"},
}
NOISES = ["gaussian", "masking", "salt_and_pepper"]


def settings(**changes: Any) -> ModelConfig:
    return small_section("model", **{"latent": 3, **changes})


def minimise(name: str, model: Any, x: Tensor, setting: Setting = UNIT, **changes: Any) -> Terms:
    config = small_section("objective", **{"name": name, **changes})
    return OBJECTIVES[name].terms(model, x, config, setting)


def some_model(kind: str, network: str) -> Autoencoder | VAE:
    torch.manual_seed(0)
    model = build_model(settings(kind=kind, init="glorot", **NETWORKS[network]), SHAPE).double()
    assert isinstance(model, Autoencoder | VAE)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.5)
    return model


def some_images(count: int) -> Tensor:
    return torch.rand(count, *SHAPE, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def coder(shape: tuple[int, ...] = (1, 1, 2)) -> Autoencoder:
    """An autoencoder whose code is the image."""
    return Autoencoder(nn.Flatten(), nn.Unflatten(1, shape), Gaussian(settings().gaussian), StandardNormal(2), shape)


each_network = pytest.mark.parametrize("network", NETWORKS)
each_kind = pytest.mark.parametrize("kind", ["autoencoder", "vae"])


@each_network
@each_kind
def test_the_contractive_penalty_is_the_squared_norm_of_the_jacobian(kind: str, network: str) -> None:
    model, x = some_model(kind, network), some_images(4)
    wanted = []
    for image in x:
        jacobian = torch.autograd.functional.jacobian(lambda pixels: model.posterior(pixels[None])[0][0], image)
        assert jacobian.shape == (3, *SHAPE)
        wanted.append(jacobian.square().sum())
    found = squared_jacobian_norm(model, x)
    torch.testing.assert_close(found, torch.stack(wanted), rtol=1e-10, atol=0)
    assert found.min().item() > 0.001
    terms = minimise("contractive", model, x, weight=2.5, kl="analytic")
    torch.testing.assert_close(terms["penalty"], found, rtol=1e-10, atol=0)
    torch.testing.assert_close(terms["loss"], terms["reconstruction"] + terms["kl"] + 2.5 * found)


def test_the_contractive_penalty_of_a_linear_encoder_is_its_squared_weights() -> None:
    layer = linear(torch.tensor([[1.0, -2.0], [0.5, 3.0]]), torch.zeros(2))
    model = Autoencoder(
        nn.Sequential(nn.Flatten(), layer),
        nn.Unflatten(1, (1, 1, 2)),
        Gaussian(settings().gaussian),
        StandardNormal(2),
        (1, 1, 2),
    )
    penalty = minimise("contractive", model, torch.rand(3, 1, 1, 2))["penalty"]
    assert penalty.tolist() == [14.25] * 3
    [slope] = torch.autograd.grad(penalty.mean(), [layer.weight])
    assert slope.tolist() == [[2.0, -4.0], [1.0, 6.0]]


@each_network
@each_kind
def test_the_gradient_of_the_contractive_penalty_agrees_with_finite_differences(kind: str, network: str) -> None:
    model, x = some_model(kind, network), some_images(3)
    torch.manual_seed(2)
    parameters = list(model.encoder.parameters())
    direction = [torch.randn_like(parameter) for parameter in parameters]
    slopes = torch.autograd.grad(squared_jacobian_norm(model, x).mean(), parameters, materialize_grads=True)
    along = sum((slope * way).sum().item() for slope, way in zip(slopes, direction, strict=True))
    penalties = []
    for step in (1e-6, -2e-6):
        with torch.no_grad():
            for parameter, way in zip(parameters, direction, strict=True):
                parameter.add_(step * way)
            penalties.append(squared_jacobian_norm(model, x).mean().item())
    assert along == pytest.approx((penalties[0] - penalties[1]) / 2e-6, rel=1e-6)
    assert abs(along) > 1e-3


@each_network
def test_the_contractive_penalty_can_be_scored_without_gradients(network: str) -> None:
    model, x = some_model("autoencoder", network), some_images(4)
    wanted = minimise("contractive", model, x)
    with torch.no_grad():
        found = minimise("contractive", model, x)
    for name, values in found.items():
        assert not values.requires_grad, name
        torch.testing.assert_close(values, wanted[name].detach(), rtol=1e-12, atol=0)
    assert not x.requires_grad
    assert all(parameter.grad is None for parameter in model.parameters())


def test_the_contractive_penalty_is_refused_where_an_image_s_code_depends_on_others() -> None:
    objective = small_section("objective", name="contractive")
    for norm in ("none", "layer"):
        check_objective(build_model(settings(norm=norm), SHAPE), settings(norm=norm), objective)
    with pytest.raises(ParamsError, match=r"^params\.yaml: model\.mlp\.norm: .*'contractive', found 'batch'"):
        check_objective(build_model(settings(norm="batch"), SHAPE), settings(norm="batch"), objective)


def test_sparsity_l1_is_the_sum_of_magnitudes() -> None:
    x = torch.tensor([[1.0, -2.0], [0.5, 0.0]]).reshape(2, 1, 1, 2)
    terms = minimise("sparse", coder(), x, penalty="l1", weight=4.0)
    assert terms["penalty"].tolist() == [3.0, 0.5]
    assert (terms["loss"] - terms["reconstruction"]).tolist() == pytest.approx([12.0, 2.0], rel=1e-6)


def test_sparsity_kl_compares_the_mean_activation_of_each_unit_with_rho() -> None:
    activations = torch.tensor([[0.2, 0.1], [0.4, 0.1]])  # means 0.3 and 0.1
    terms = minimise("sparse", coder(), activations.reshape(2, 1, 1, 2), penalty="kl", rho=0.1, weight=4.0)
    wanted = 0.1 * math.log(0.1 / 0.3) + 0.9 * math.log(0.9 / 0.7)  # and nothing of the second unit
    assert terms["penalty"].tolist() == pytest.approx([wanted] * 2, rel=1e-5)
    assert (terms["loss"] - terms["reconstruction"]).tolist() == pytest.approx([4 * wanted] * 2, rel=1e-5)


@pytest.mark.parametrize("code", [0.0, 1.0])
def test_sparsity_kl_stays_finite_where_units_saturate(code: float) -> None:
    terms = minimise("sparse", coder(), torch.full((2, 1, 1, 2), code), penalty="kl", rho=0.05)
    active = 1e-6 if code == 0 else 1 - 1e-6
    wanted = 2 * (0.05 * math.log(0.05 / active) + 0.95 * math.log(0.95 / (1 - active)))
    assert terms["penalty"].tolist() == pytest.approx([wanted] * 2, rel=0.01)  # 1 - 1e-6 has few digits in float32


def test_a_vae_is_sparse_in_its_means() -> None:
    model, x = some_model("vae", "mlp"), some_images(4)
    autoencoder = Autoencoder(
        nn.Sequential(model.encoder, Half()), model.decoder, model.likelihood, StandardNormal(3), SHAPE
    )
    found, wanted = (minimise("sparse", m, x, penalty="l1", weight=3.0) for m in (model, autoencoder))
    torch.testing.assert_close(found["penalty"], wanted["penalty"])
    torch.testing.assert_close(found["loss"], -found["elbo"] + 3 * found["penalty"])


class Half(nn.Module):
    def forward(self, output: Tensor) -> Tensor:
        return output.chunk(2, dim=-1)[0]


# Of two channels, whose ranges differ.
SCALED = Setting(torch.tensor(0.0), torch.tensor([-1.0, -2.0])[:, None, None], torch.tensor([1.0, 4.0])[:, None, None])


def grey_images() -> Tensor:
    share = 0.1 + 0.8 * torch.rand(50, 2, 20, 20, generator=torch.Generator().manual_seed(1))
    return SCALED.black + share * (SCALED.white - SCALED.black)


@pytest.mark.parametrize("level", [0.1, 0.5])
def test_masking_blackens_a_share_of_the_pixels(level: float) -> None:
    torch.manual_seed(0)
    x = grey_images()
    found = corrupt(x, "masking", level, SCALED)
    is_changed = found != x
    assert torch.equal(is_changed[:, 0], is_changed[:, 1])  # all channels share a fate
    assert torch.equal(found, torch.where(is_changed, SCALED.black, x))
    pixels = is_changed[:, 0].numel()
    assert is_changed[:, 0].float().mean().item() == pytest.approx(level, abs=5 * (level * (1 - level) / pixels) ** 0.5)
    assert len(is_changed[:, 0].flatten(1).unique(dim=0)) == len(x)  # each image has its own holes


@pytest.mark.parametrize("level", [0.1, 0.5])
def test_salt_and_pepper_are_equally_frequent(level: float) -> None:
    torch.manual_seed(0)
    x = grey_images()
    found = corrupt(x, "salt_and_pepper", level, SCALED)
    is_black, is_white = (found == SCALED.black), (found == SCALED.white)
    for grains in (is_black, is_white):
        assert torch.equal(grains[:, 0], grains[:, 1])
        share, pixels = level / 2, grains[:, 0].numel()
        assert grains[:, 0].float().mean().item() == pytest.approx(share, abs=5 * (share / pixels) ** 0.5)
    assert torch.equal(found[~is_black & ~is_white], x[~is_black & ~is_white])


def test_gaussian_noise_is_in_units_of_the_range_from_black_to_white() -> None:
    torch.manual_seed(0)
    x = grey_images()
    noise = (corrupt(x, "gaussian", 0.3, SCALED) - x).transpose(0, 1).flatten(1)  # (C, pixels)
    count = noise.shape[1]
    for found, standard_deviation in zip(noise, (0.3 * 2, 0.3 * 6), strict=True):
        assert found.mean().item() == pytest.approx(0, abs=5 * standard_deviation / count**0.5)
        assert found.std().item() == pytest.approx(standard_deviation, rel=5 / (2 * count) ** 0.5)
    assert abs(torch.corrcoef(noise)[0, 1].item()) < 5 / count**0.5


@pytest.mark.parametrize("noise", NOISES)
def test_noise_of_level_zero_changes_nothing(noise: str) -> None:
    assert torch.equal(corrupt(grey_images(), noise, 0.0, SCALED), grey_images())


@pytest.mark.parametrize("noise", ["masking", "salt_and_pepper"])
def test_noise_of_level_one_leaves_nothing(noise: str) -> None:
    found = corrupt(grey_images(), noise, 1.0, SCALED)
    allowed = (found == SCALED.black) | ((found == SCALED.white) & (noise == "salt_and_pepper"))
    assert allowed.all()


@pytest.mark.parametrize("noise", NOISES)
@each_kind
def test_a_corrupted_image_is_encoded_and_the_clean_one_scored(kind: str, noise: str) -> None:
    model, x = some_model(kind, "mlp"), grey_images()[:3, :, :4, :4].double()
    torch.manual_seed(0)
    wanted = model.draw(corrupt(x, noise, 0.4, SCALED), x, 2)
    torch.manual_seed(0)
    found = minimise("denoising", model, x, SCALED, noise=noise, level=0.4, samples=2, beta=3.0)
    torch.testing.assert_close(found["loss"], (3 * wanted.kl - wanted.log_px).mean(0))
    assert torch.equal(x, grey_images()[:3, :, :4, :4].double())  # the batch itself stays clean


def test_denoising_without_noise_is_the_elbo() -> None:
    model, x = some_model("vae", "mlp"), some_images(3)
    torch.manual_seed(0)
    found = minimise("denoising", model, x, noise="gaussian", level=0.0)
    torch.manual_seed(0)
    torch.randn_like(x)  # what denoising draws, even at level 0
    wanted = minimise("elbo", model, x)
    for name, values in wanted.items():
        torch.testing.assert_close(found[name], values, rtol=1e-12, atol=0)


def test_the_discrepancy_is_the_mean_over_all_pairs_of_different_samples() -> None:
    generator = torch.Generator().manual_seed(0)
    first, second = torch.randn(2, 4, 3, dtype=torch.float64, generator=generator)

    def likeness(a: Tensor, b: Tensor) -> float:
        return float(6 / (6 + (a - b).square().sum()))

    values = [
        likeness(first[i], first[j])
        + likeness(second[i], second[j])
        - likeness(first[i], second[j])
        - likeness(first[j], second[i])
        for i in range(4)
        for j in range(4)
        if i != j
    ]
    wanted = sum(values) / 12
    assert maximum_mean_discrepancy(first, second).item() == pytest.approx(wanted, rel=1e-12)


def test_of_one_distribution_the_discrepancy_is_nothing_in_the_mean() -> None:
    generator = torch.Generator().manual_seed(0)
    draws = [maximum_mean_discrepancy(*torch.randn(2, 20, 5, generator=generator)).item() for _ in range(400)]
    error = np.std(draws) / 400**0.5
    assert abs(np.mean(draws)) < 3 * error < 0.003  # with each sample's likeness to itself: 0.04


def test_samples_far_apart_are_unlike() -> None:
    close, far = torch.zeros(3, 2), torch.full((3, 2), 1e6)
    assert maximum_mean_discrepancy(close, close).item() == pytest.approx(0, abs=1e-6)
    assert maximum_mean_discrepancy(close, far).item() == pytest.approx(2, rel=1e-6)
    assert maximum_mean_discrepancy(close[:1], far[:1]).item() == 0  # one of each


@pytest.mark.parametrize("samples", [1, 3])
@pytest.mark.parametrize("beta", [0.0, 2.0])
@each_kind
def test_mmd_adds_the_discrepancy_of_codes_and_prior_samples(kind: str, beta: float, samples: int) -> None:
    model, x = some_model(kind, "mlp"), some_images(5)
    torch.manual_seed(0)
    draw = model.draw(x, x, samples)
    found = [maximum_mean_discrepancy(z, torch.randn(5, 3, dtype=torch.float64)) for z in draw.layers[0].z]
    wanted = torch.stack(found).mean()
    torch.manual_seed(0)
    terms = minimise("mmd", model, x, samples=samples, beta=beta, weight=7.0)
    torch.testing.assert_close(terms["mmd"], wanted.expand(5))
    torch.testing.assert_close(terms["loss"], (beta * draw.kl - draw.log_px).mean(0) + 7 * wanted)


def test_mmd_reaches_the_encoder() -> None:
    model, x = some_model("autoencoder", "mlp"), some_images(5)
    for parameter in model.parameters():
        parameter.grad = None
    minimise("mmd", model, x)["mmd"].mean().backward()
    found = [parameter.grad for parameter in model.encoder.parameters()]
    assert all(gradient is not None and gradient.abs().max().item() > 0 for gradient in found)
    assert all(parameter.grad is None for parameter in model.decoder.parameters())
