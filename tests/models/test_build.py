import math
from typing import Any

import pytest
import torch
from conftest import small_section
from torch import Tensor, nn

from reparam.config import ModelConfig
from reparam.errors import ParamsError
from reparam.models.autoencoder import Autoencoder
from reparam.models.build import build_model, start_at_mean
from reparam.models.hierarchical import HierarchicalVAE
from reparam.models.latent import LatentModel
from reparam.models.likelihoods import LIKELIHOODS
from reparam.models.networks import NETWORKS
from reparam.models.ranges import CLIP
from reparam.models.vae import VAE

SHAPE = (2, 4, 8)  # (C, H, W), all different, so that no two can be mixed up
KINDS: list[tuple[str, str]] = [
    ("autoencoder", "top_down"),
    ("vae", "top_down"),
    ("hierarchical", "top_down"),
    ("hierarchical", "bottom_up"),
]
every_kind = pytest.mark.parametrize(("kind", "inference"), KINDS)
every_network = pytest.mark.parametrize("network", NETWORKS)
every_likelihood = pytest.mark.parametrize("likelihood", LIKELIHOODS)
every_norm = pytest.mark.parametrize("norm", ["none", "batch", "layer"])


def config(**changes: Any) -> ModelConfig:
    small = {"hidden": [6], "channels": [2, 3], "groups": 1, "latent": 3, "upper": [2, 4], "upper_hidden": [5]}
    return small_section("model", **small | changes)


def build(shape: tuple[int, ...] = SHAPE, seed: int = 0, **changes: Any) -> LatentModel:
    torch.manual_seed(seed)
    return build_model(config(**changes), shape)


def some_images(count: int) -> Tensor:
    return torch.bernoulli(torch.full((count, *SHAPE), 0.5), generator=torch.Generator().manual_seed(1))


def size(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@every_kind
@every_network
@every_norm
def test_every_model_draws_finite_numbers_of_the_right_shape(
    kind: str, inference: str, network: str, norm: str
) -> None:
    model, x = build(kind=kind, inference=inference, network=network, norm=norm), some_images(5)
    draw = model.draw(x, x, samples=4)
    for values in (draw.log_px, draw.log_pz, draw.log_qz, draw.kl):
        assert values.shape == (4, 5)
        assert values.isfinite().all()
    assert (draw.log_px < 0).all()  # a Bernoulli's are probabilities


@every_likelihood
@every_network
@pytest.mark.parametrize("kind", ["autoencoder", "vae", "hierarchical"])
def test_every_model_decodes_to_images_under_every_likelihood(kind: str, network: str, likelihood: str) -> None:
    model, x = build(kind=kind, network=network, likelihood=likelihood), some_images(5)
    draw = model.draw(x, x, samples=2)
    codes, _ = model.posterior(x)
    assert draw.log_px.isfinite().all()
    assert codes.shape == (5, 9 if kind == "hierarchical" else 3)
    assert model.decode(codes).shape == (5, *SHAPE)
    assert model.decode(codes).isfinite().all()


@every_kind
@every_likelihood
def test_the_output_is_what_the_likelihood_reads_of_latents_in_units_of_their_prior(
    kind: str, inference: str, likelihood: str
) -> None:
    model, x = build(kind=kind, inference=inference, likelihood=likelihood).double(), some_images(5).double()
    torch.manual_seed(1)
    z = model.sample_posterior(x)
    output = model.output(z)
    assert output.shape == (5, model.likelihood.outputs * SHAPE[0], *SHAPE[1:])
    torch.testing.assert_close(model.decode(z), model.likelihood.mean(output))
    torch.manual_seed(1)  # the same latents, in units of their own
    torch.testing.assert_close(model.likelihood.log_prob(output, x), model.draw(x, x, 1).log_px[0])


@every_kind
@every_network
def test_every_weight_gets_a_gradient(kind: str, inference: str, network: str) -> None:
    model, x = build(kind=kind, inference=inference, network=network, activation="tanh"), some_images(5)
    draw = model.draw(x, x, samples=2)
    (draw.log_px - draw.kl).mean().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.count_nonzero() > 0, name


@pytest.mark.parametrize(
    ("kind", "layers", "wanted"),
    [("autoencoder", 0, Autoencoder), ("vae", 1, VAE), ("hierarchical", 3, HierarchicalVAE)],
)
def test_each_kind_has_its_layers_of_latents(kind: str, layers: int, wanted: type) -> None:
    model = build(kind=kind)
    assert (type(model), model.stochastic_layers, model.shape) == (wanted, layers, SHAPE)


@every_kind
@every_network
@pytest.mark.parametrize("init", ["torch", "glorot"])
def test_the_same_seed_gives_the_same_weights(kind: str, inference: str, network: str, init: str) -> None:
    changes = {"kind": kind, "inference": inference, "network": network, "init": init}
    first, second, other = (build(seed=seed, **changes).state_dict() for seed in (7, 7, 8))
    assert list(first) == list(second)
    assert all(weight.equal(second[name]) for name, weight in first.items())
    drawn = [name for name, weight in first.items() if weight.dim() > 1]  # not those of norms
    assert not any(first[name].equal(other[name]) for name in drawn)


@every_kind
@every_network
def test_init_reaches_every_network_of_a_model(kind: str, inference: str, network: str) -> None:
    model = build(kind=kind, inference=inference, network=network, init="glorot")
    biases = [parameter for name, parameter in model.named_parameters() if name.endswith("bias")]
    assert biases
    assert all(bias.count_nonzero() == 0 for bias in biases)


def test_init_leaves_a_learned_sigma_alone() -> None:
    kept, drawn = (build(likelihood="gaussian_learned", init=init).state_dict() for init in ("torch", "glorot"))
    assert drawn["likelihood.log_sigma"].equal(kept["likelihood.log_sigma"])


def test_an_mlp_vae_has_the_parameters_of_the_formula() -> None:
    model = build((1, 28, 28), hidden=[400], latent=20)
    assert isinstance(model, VAE)
    assert size(model.encoder) == (784 * 400 + 400) + (400 * 40 + 40)
    assert size(model.decoder) == (20 * 400 + 400) + (400 * 784 + 784)
    assert size(model) == 652_824


def test_a_convolutional_vae_has_the_parameters_of_the_formula() -> None:
    model = build((1, 28, 28), network="conv", channels=[16, 32], kernel=4, stride=2, hidden=[128], latent=5)
    assert isinstance(model, VAE)
    flat = 32 * 7 * 7
    down = (1 * 16 * 16 + 16) + (16 * 32 * 16 + 32)
    up = (32 * 16 * 16 + 16) + (16 * 1 * 16 + 1)
    assert size(model.encoder) == down + (flat * 128 + 128) + (128 * 10 + 10)
    assert size(model.decoder) == (5 * 128 + 128) + (128 * flat + flat) + up


def test_an_autoencoder_encodes_to_half_as_many_numbers() -> None:
    vae, autoencoder = build(kind="vae"), build(kind="autoencoder")
    assert size(vae) - size(autoencoder) == 6 * 3 + 3  # from hidden 6 to latent 3, without a log variance


@pytest.mark.parametrize(
    ("inference", "up"),
    [
        # Each encoder: from the layer below, through upper_hidden, to mean and log variance.
        ("bottom_up", (64 * 6 + 6 + 6 * 6 + 6) + (3 * 5 + 5 + 5 * 4 + 4) + (2 * 5 + 5 + 5 * 8 + 8)),
        # Features of the image, then of those features; one linear layer from each to its latents.
        ("top_down", (64 * 6 + 6 + 6 * 6 + 6) + (6 * 5 + 5 + 5 * 4 + 4) + (5 * 5 + 5 + 5 * 8 + 8)),
    ],
)
def test_a_hierarchy_has_the_parameters_of_the_formula(inference: str, up: int) -> None:
    priors = (2 * 5 + 5 + 5 * 6 + 6) + (4 * 5 + 5 + 5 * 4 + 4)
    decoder = (3 * 6 + 6) + (6 * 64 + 64)
    assert size(build(kind="hierarchical", inference=inference)) == up + priors + decoder


@every_likelihood
def test_the_decoder_puts_out_as_many_numbers_as_the_likelihood_wants(likelihood: str) -> None:
    model = build(likelihood=likelihood)
    assert model.decoder(torch.zeros(7, 3)).shape == (7, 2 * model.likelihood.outputs, 4, 8)


@pytest.mark.parametrize("kind", ["autoencoder", "vae", "hierarchical"])
def test_images_that_convolutions_cannot_have_are_refused(kind: str) -> None:
    with pytest.raises(ParamsError, match="sides are divisible by 4, found 6x8 pixels"):
        build((1, 6, 8), kind=kind, network="conv")


def untrained_mean(model: LatentModel) -> Tensor:
    """The mean image of a decoder that ignores its input."""
    layers = [layer for layer in model.decoder.modules() if isinstance(layer, nn.Linear | nn.ConvTranspose2d)]
    nn.init.zeros_(layers[-1].weight)
    codes = torch.zeros(1, sum(getattr(model, "sizes", [3])))
    return model.decode(codes)[0].detach()


def started_at(image: Tensor, **changes: Any) -> Tensor:
    model = build(**changes)
    start_at_mean(model, image)
    return untrained_mean(model)


@every_likelihood
@pytest.mark.parametrize("link", ["linear", "sigmoid"])
@pytest.mark.parametrize("kind", ["autoencoder", "vae", "hierarchical"])
def test_an_mlp_starts_at_the_mean_image(likelihood: str, link: str, kind: str) -> None:
    mean = torch.linspace(0.01, 0.99, math.prod(SHAPE)).reshape(SHAPE)
    found = started_at(mean, likelihood=likelihood, mean=link, kind=kind)
    torch.testing.assert_close(found, mean, rtol=0, atol=2e-6)


@every_likelihood
def test_an_mlp_starts_a_little_away_from_pixels_that_never_vary(likelihood: str) -> None:
    mean = torch.tensor([0.0, 1.0]).repeat(math.prod(SHAPE) // 2).reshape(SHAPE)
    found = started_at(mean, likelihood=likelihood, mean="sigmoid")
    wanted = mean.clamp(CLIP, 1 - CLIP) if build(likelihood=likelihood, mean="sigmoid").likelihood.needs_unit else mean
    torch.testing.assert_close(found, wanted, rtol=0, atol=2e-6)


@every_likelihood
@pytest.mark.parametrize("link", ["linear", "sigmoid"])
def test_convolutions_start_at_the_mean_of_each_channel(likelihood: str, link: str) -> None:
    mean = torch.tensor([0.125, 0.75]).reshape(2, 1, 1).expand(SHAPE)
    found = started_at(mean, network="conv", likelihood=likelihood, mean=link)
    torch.testing.assert_close(found, mean, rtol=0, atol=2e-6)


@every_likelihood
@pytest.mark.parametrize("link", ["linear", "sigmoid"])
def test_convolutions_start_at_the_mean_of_pixels_that_differ(likelihood: str, link: str) -> None:
    mean = torch.linspace(0, 1, math.prod(SHAPE)).square().reshape(SHAPE)
    found = started_at(mean, network="conv", likelihood=likelihood, mean=link)
    torch.testing.assert_close(found, mean.mean((1, 2), keepdim=True).expand(SHAPE), rtol=0, atol=2e-6)


@every_network
def test_starting_at_the_mean_changes_nothing_but_one_bias(network: str) -> None:
    model = build(network=network)
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    start_at_mean(model, torch.full(SHAPE, 0.3))
    changed = [name for name, weight in model.state_dict().items() if not weight.equal(before[name])]
    assert changed == [[name for name in before if name.startswith("decoder")][-1]]
    assert changed[0].endswith("bias")
    assert all(parameter.requires_grad for parameter in model.parameters())
