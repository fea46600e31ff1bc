import itertools
import math
from typing import Any

import pytest
import torch
from conftest import small_section
from linear_gaussian import hierarchy_evidence, linear_hierarchy
from torch import Tensor, nn

from reparam.config.model import GaussianConfig
from reparam.models import likelihoods
from reparam.models.build import build_model
from reparam.models.draw import Draw, kl_to_standard_normal
from reparam.models.priors import StandardNormal
from reparam.models.vae import VAE
from reparam.objectives import OBJECTIVES, Setting, Terms

OBJECTIVE = small_section("objective")
MODEL = small_section("model")
SETTING = Setting(torch.tensor(torch.inf), torch.zeros(1, 1, 1), torch.ones(1, 1, 1))
SIGMA = 0.7
TARGET = torch.tensor([0.8, -0.3, 1.1], dtype=torch.float64)  # the only image
POSTERIOR = torch.tensor([0.4, -0.9, -0.5, 0.2], dtype=torch.float64)  # two means, two log variances
WEIGHT = torch.tensor([[0.7, -0.4], [0.3, 0.9], [-0.6, 0.2]], dtype=torch.float64)
BIAS = torch.tensor([0.1, -0.2, 0.5], dtype=torch.float64)


def minimise(name: str, model: Any, x: Tensor, **changes: Any) -> Terms:
    config = small_section("objective", **{"name": name, **changes})
    return OBJECTIVES[name].terms(model, x, config, SETTING)


class OwnPosterior(nn.Module):
    """An encoder with an own output for each image, so that one backward pass gives a gradient for each image."""

    def __init__(self, images: int) -> None:
        super().__init__()
        self.output = nn.Parameter(POSTERIOR.repeat(images, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.output


class OwnWeights(nn.Module):
    """A linear decoder with own weights for each image. Shapes: (K*B, 2) -> (K*B, 1, 1, 3)."""

    def __init__(self, images: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(WEIGHT.repeat(images, 1, 1))
        self.bias = nn.Parameter(BIAS.repeat(images, 1))

    def forward(self, z: Tensor) -> Tensor:
        rows = z.unflatten(0, (-1, len(self.weight)))
        return (torch.einsum("bpd,kbd->kbp", self.weight, rows) + self.bias).flatten(0, 1)[:, None, None]


class Copies(VAE):
    encoder: OwnPosterior
    decoder: OwnWeights


def copies(images: int) -> tuple[Copies, Tensor]:
    """The same image over and over, with the same model, as a batch."""
    likelihood = likelihoods.Gaussian(GaussianConfig(mean="linear", sigma=SIGMA))
    model = Copies(OwnPosterior(images), OwnWeights(images), likelihood, StandardNormal(len(POSTERIOR) // 2), (1, 1, 3))
    return model, TARGET.expand(images, 1, 1, 3)


def gradients(name: str, samples: int, images: int = 20_000, **changes: Any) -> Tensor:
    """Return independent gradients of one objective, encoder first. Shapes: -> (images, parameters)."""
    model, x = copies(images)
    torch.manual_seed(0)
    minimise(name, model, x, samples=samples, **changes)["loss"].sum().backward()
    return per_image(model)


def per_image(model: nn.Module) -> Tensor:
    found = [parameter.grad for parameter in model.parameters()]
    return torch.cat([gradient.flatten(1) for gradient in found if gradient is not None], dim=1)


def standard_error(values: Tensor) -> Tensor:
    return values.std(0) / len(values) ** 0.5


def exact_gradient() -> Tensor:
    """That of the negative ELBO, in closed form, because everything is linear and Gaussian."""
    parameters = [tensor.clone().requires_grad_() for tensor in (POSTERIOR, WEIGHT, BIAS)]
    posterior, weight, bias = parameters
    mean, log_variance = posterior.chunk(2)
    squares = (TARGET - weight @ mean - bias).square().sum() + (weight.square() @ log_variance.exp()).sum()
    kl = kl_to_standard_normal(mean, log_variance).sum()
    return torch.cat([g.flatten() for g in torch.autograd.grad(squares / (2 * SIGMA**2) + kl, parameters)])


@pytest.mark.parametrize("samples", [1, 4])
@pytest.mark.parametrize(("name", "kl"), [("elbo", "analytic"), ("elbo", "monte_carlo"), ("reinforce", "analytic")])
def test_every_estimate_of_the_gradient_of_the_elbo_is_right_on_average(name: str, kl: str, samples: int) -> None:
    found = gradients(name, samples, kl=kl)
    assert ((found.mean(0) - exact_gradient()).abs() / standard_error(found)).max().item() < 5
    assert exact_gradient().norm().item() > 20 * standard_error(found).max().item()  # errors are small beside it


@pytest.mark.parametrize("inference", ["bottom_up", "top_down"])
@pytest.mark.parametrize("samples", [1, 3])
def test_reinforce_and_reparameterised_gradients_agree_in_a_hierarchy(inference: str, samples: int) -> None:
    torch.manual_seed(0)
    model, images = linear_hierarchy(inference, error=0.3), 200
    x = hierarchy_evidence().sample().reshape(1, 1, 2, 2).expand(images, -1, -1, -1)
    means, errors = [], []
    for name, kl in (("elbo", "analytic"), ("elbo", "monte_carlo"), ("reinforce", "analytic")):
        found = []
        for _ in range(60):
            loss = minimise(name, model, x, samples=samples, kl=kl)["loss"].mean()
            found.append(torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(model.parameters()))]))
        means.append(torch.stack(found).mean(0))
        errors.append(standard_error(torch.stack(found)))
    for other in (1, 2):
        error = torch.hypot(errors[0], errors[other]) + 1e-12  # some are exact
        assert ((means[0] - means[other]).abs() / error).max().item() < 5
    assert means[0].abs().max().item() > 20 * errors[2].median().item()


def scored(model: Copies, x: Tensor, samples: int) -> tuple[Draw, Tensor]:
    """A draw for the score function, and d log q / d (mean, log variance) of its samples. Shapes: (K, B, 2D)."""
    draw = model.draw(x, x, samples, "score_function")
    mean, log_variance = POSTERIOR.chunk(2)
    noise = (draw.layers[0].z - mean) * (-0.5 * log_variance).exp()
    return draw, torch.cat([noise * (-0.5 * log_variance).exp(), (noise.square() - 1) / 2], -1)


@pytest.mark.parametrize(("samples", "images"), [(1, 1), (1, 2), (1, 5), (2, 1), (4, 3)])
def test_the_control_variate_of_reinforce_leaves_out_the_sample_itself(samples: int, images: int) -> None:
    model, x = copies(images)
    torch.manual_seed(3)
    draw, slopes = scored(model, x, samples)
    values = draw.log_weights.tolist()  # (K, B)
    wanted = torch.zeros(images, 4, dtype=torch.float64)
    for k in range(samples):
        for b in range(images):
            if samples > 1:
                others = [values[other][b] for other in range(samples) if other != k]
            else:
                others = [values[0][other] for other in range(images) if other != b]
            baseline = sum(others) / len(others) if others else 0.0
            wanted[b] -= (values[k][b] - baseline) * slopes[k, b] / samples
    torch.manual_seed(3)
    minimise("reinforce", model, x, samples=samples)["loss"].sum().backward()
    torch.testing.assert_close(model.encoder.output.grad, wanted, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("samples", [1, 4])
def test_the_control_variate_lowers_the_variance_of_reinforce(samples: int) -> None:
    model, x = copies(20_000)
    torch.manual_seed(0)
    draw, slopes = scored(model, x, samples)
    without = -(draw.log_weights[..., None] * slopes).mean(0)
    found = gradients("reinforce", samples)[:, :4]
    assert ((without.mean(0) - exact_gradient()[:4]).abs() / standard_error(without)).max().item() < 5
    assert (found.var(0) / without.var(0)).max().item() < 0.8


@pytest.mark.parametrize("samples", [1, 2, 8])
def test_dreg_and_iwae_have_the_same_gradient_on_average(samples: int) -> None:
    plain, doubly = gradients("iwae", samples), gradients("dreg", samples)
    error = torch.hypot(standard_error(plain), standard_error(doubly))
    assert ((plain.mean(0) - doubly.mean(0)).abs() / error).max().item() < 5
    assert plain.mean(0).norm().item() > 20 * error.max().item()


@pytest.mark.parametrize("samples", [1, 3])
def test_the_gradient_of_dreg_is_that_of_tucker_et_al(samples: int) -> None:
    model, x = copies(3)
    torch.manual_seed(3)
    draw = model.draw(x, x, samples, "stopped")
    log_w, z = draw.log_weights, draw.layers[0].z
    share = log_w.detach().softmax(0)
    [by_sample] = torch.autograd.grad(log_w.sum(), z, retain_graph=True)  # d log w / dz
    [encoder] = torch.autograd.grad(z, model.encoder.output, -share.square()[..., None] * by_sample, retain_graph=True)
    decoder = torch.autograd.grad(-(share * log_w).sum(), list(model.decoder.parameters()))
    wanted = torch.cat([gradient.flatten(1) for gradient in (encoder, *decoder)], 1)
    torch.manual_seed(3)
    minimise("dreg", model, x, samples=samples)["loss"].sum().backward()
    torch.testing.assert_close(per_image(model), wanted, rtol=1e-10, atol=1e-10)


def test_the_signal_of_dreg_to_the_encoder_does_not_drown_as_samples_are_added() -> None:
    def signal_to_noise(name: str, samples: int) -> float:
        found = gradients(name, samples, images=5000)[:, :4]
        return float(found.mean(0).norm() / found.std(0).norm())

    # From about 8 samples on, with an encoder as wrong as this one; theory speaks of many.
    doubly, plain = ([signal_to_noise(name, samples) for samples in (8, 32, 128)] for name in ("dreg", "iwae"))
    for few, more in itertools.pairwise(doubly):
        assert more > 1.5 * few  # it even rises: in theory, by a factor of 2 each time (Tucker et al. 2019),
    assert plain[0] > 0.1
    assert plain[-1] < 0.6 * plain[0]  # while that of the plain bound falls, by 4 in all (Rainforth et al. 2018)


@pytest.mark.parametrize("kind", ["vae", "bottom_up", "top_down"])
def test_the_gradient_of_iwae_with_one_sample_is_that_of_the_sampled_elbo(kind: str) -> None:
    inference = "top_down" if kind == "vae" else kind
    changes = {"kind": "vae" if kind == "vae" else "hierarchical", "inference": inference, "hidden": (3,), "latent": 2}
    more = {"upper": (3,), "upper_hidden": (4,)}
    torch.manual_seed(0)
    model = build_model(small_section("model", **changes | more), (1, 1, 2))
    model.double()
    x, found = torch.rand(4, 1, 1, 2, dtype=torch.float64), []
    for name in ("iwae", "elbo"):
        torch.manual_seed(1)
        loss = minimise(name, model, x, samples=1, kl="monte_carlo")["loss"].mean()
        found.append(torch.autograd.grad(loss, list(model.parameters())))
    torch.testing.assert_close(found[0], found[1], rtol=1e-10, atol=1e-12)
    assert math.fsum(gradient.abs().sum().item() for gradient in found[0]) > 0.1


@pytest.mark.parametrize(("name", "samples"), [("iwae", 5), ("elbo", 2)])
def test_gradients_through_a_hierarchy_agree_with_finite_differences(name: str, samples: int) -> None:
    torch.manual_seed(0)
    x = torch.randn(3, 1, 2, 2, dtype=torch.float64)
    for inference in ("bottom_up", "top_down"):
        model = linear_hierarchy(inference, error=0.3)
        parameters = list(model.parameters())
        direction = [torch.randn_like(parameter) for parameter in parameters]

        def loss(model: nn.Module = model) -> Tensor:
            torch.manual_seed(1)  # the same noise each time
            return minimise(name, model, x, samples=samples)["loss"].mean()

        slopes = torch.autograd.grad(loss(), parameters)
        along = sum((slope * way).sum().item() for slope, way in zip(slopes, direction, strict=True))
        losses = []
        with torch.no_grad():
            for step in (1e-5, -2e-5):
                for parameter, way in zip(parameters, direction, strict=True):
                    parameter.add_(step * way)
                losses.append(loss().item())
        assert along == pytest.approx((losses[0] - losses[1]) / 2e-5, rel=1e-6)
