import itertools
import math
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from conftest import small_section
from torch import Tensor, nn

from reparam.errors import ParamsError
from reparam.models import networks
from reparam.models.networks import ACTIVATIONS, NETWORKS, Network

DEFINITIONS: dict[str, Callable[[float], float]] = {
    "relu": lambda x: max(0.0, x),
    "tanh": math.tanh,
    "softplus": lambda x: math.log1p(math.exp(x)),
    "gelu": lambda x: x * (1 + math.erf(x / 2**0.5)) / 2,
    "silu": lambda x: x / (1 + math.exp(-x)),
    "gated": lambda x: x / (1 + math.exp(-x)),  # where both halves are the same
}
POINTS = [-2.0, -0.5, 0.0, 0.5, 3.0]
every_activation = pytest.mark.parametrize("name", ACTIVATIONS)

# Kernel and stride that keep sizes even: all odd kernels under stride 1, all from the stride on under others.
WINDOWS = [
    (1, 1),
    (3, 1),
    (5, 1),
    (7, 1),
    (2, 2),
    (3, 2),
    (4, 2),
    (5, 2),
    (7, 2),
    (3, 3),
    (4, 3),
    (5, 3),
    (6, 3),
    (4, 4),
]
every_direction = pytest.mark.parametrize(
    "make",
    [lambda network, shape: network.encoder(shape, 4), lambda network, shape: network.decoder(4, shape)],
    ids=["encoder", "decoder"],
)
every_window = pytest.mark.parametrize(("kernel", "stride"), WINDOWS)


def build(network: str, **changes: Any) -> Network:
    config = small_section("model", **{"hidden": [6], "channels": [2, 3]} | changes)
    return NETWORKS[network](*config.arguments(network))


def mlp(**changes: Any) -> Network:
    return build("mlp", **changes)


def conv(**changes: Any) -> Network:
    return build("conv", **changes)


def with_unit_weights(network: nn.Module) -> nn.Module:
    for name, parameter in network.named_parameters():
        nn.init.constant_(parameter, 1.0 if name.endswith("weight") else 0.0)
    return network


def kinds(network: nn.Module) -> list[str]:
    """What is in a network, in order, without the boxes."""
    return [type(layer).__name__ for layer in network.modules() if not isinstance(layer, nn.Sequential)]


def linear_widths(network: nn.Module) -> list[tuple[int, int]]:
    return [(layer.in_features, layer.out_features) for layer in network.modules() if isinstance(layer, nn.Linear)]


def some_images(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


@every_activation
def test_one_activation_is_between_two_layers(name: str) -> None:
    network = with_unit_weights(mlp(activation=name).between((1, 1, 1)))
    found = network(torch.tensor(POINTS)[:, None])[:, 0]
    torch.testing.assert_close(found, torch.tensor([DEFINITIONS[name](x) for x in POINTS]))


@every_activation
def test_an_activation_is_between_any_two_of_three_layers(name: str) -> None:
    network = with_unit_weights(mlp(activation=name).between((1, 1, 1, 1)))
    found = network(torch.tensor(POINTS)[:, None])[:, 0]
    torch.testing.assert_close(found, torch.tensor([DEFINITIONS[name](DEFINITIONS[name](x)) for x in POINTS]))


@every_activation
def test_an_activation_ends_a_stack(name: str) -> None:
    found = with_unit_weights(mlp(activation=name).stack((1, 1)))(torch.tensor(POINTS)[:, None])[:, 0]
    torch.testing.assert_close(found, torch.tensor([DEFINITIONS[name](x) for x in POINTS]))


@every_activation
def test_the_last_layer_is_linear(name: str) -> None:
    found = with_unit_weights(mlp(activation=name).between((1, 1)))(torch.tensor(POINTS)[:, None])
    assert found[:, 0].tolist() == POINTS


def test_every_activation_has_its_definition() -> None:
    assert list(DEFINITIONS) == list(ACTIVATIONS)


def test_layers_have_the_given_widths() -> None:
    assert linear_widths(mlp().between((5, 4, 3, 2))) == [(5, 4), (4, 3), (3, 2)]
    assert linear_widths(mlp().stack((5, 4, 3))) == [(5, 4), (4, 3)]


def test_a_network_of_no_layers_changes_nothing() -> None:
    rows = some_images(4, 3)
    assert mlp().stack((3,))(rows).tolist() == rows.tolist()


@pytest.mark.parametrize("kind", ["mlp", "conv"])
def test_the_decoder_mirrors_the_widths_of_the_encoder(kind: str) -> None:
    network = build(kind, hidden=[7, 5])
    flat = 2 * 8 * 4 if kind == "mlp" else 3 * 2 * 1
    assert linear_widths(network.encoder((2, 8, 4), 6)) == [(flat, 7), (7, 5), (5, 6)]
    assert linear_widths(network.decoder(3, (2, 8, 4))) == [(3, 5), (5, 7), (7, flat)]


def test_the_decoder_mirrors_the_channels_of_the_encoder() -> None:
    encoder, decoder = conv().encoder((1, 8, 8), 4), conv().decoder(3, (4, 8, 8))
    down = [(layer.in_channels, layer.out_channels) for layer in encoder.modules() if isinstance(layer, nn.Conv2d)]
    up = [
        (layer.in_channels, layer.out_channels) for layer in decoder.modules() if isinstance(layer, nn.ConvTranspose2d)
    ]
    assert (down, up) == ([(1, 2), (2, 3)], [(3, 2), (2, 4)])


@pytest.mark.parametrize(
    ("norm", "of_rows", "of_images"),
    [("none", [], []), ("batch", ["BatchNorm1d"], ["BatchNorm2d"]), ("layer", ["LayerNorm"], ["GroupNorm"])],
)
def test_norm_and_activation_follow_every_layer_but_the_last(
    norm: str, of_rows: list[str], of_images: list[str]
) -> None:
    network, rows, images = conv(norm=norm, activation="silu"), [*of_rows, "SiLU"], [*of_images, "SiLU"]
    down = ["Conv2d", *images, "Conv2d", *images, "Flatten", "Linear", *rows, "Linear"]
    up = ["Linear", *rows, "Linear", *rows, "Unflatten", "ConvTranspose2d", *images, "ConvTranspose2d"]
    assert kinds(network.encoder((1, 8, 8), 4)) == down
    assert kinds(network.decoder(3, (1, 8, 8))) == up
    network = mlp(norm=norm, activation="silu")
    assert kinds(network.encoder((1, 8, 8), 4)) == ["Flatten", "Linear", *rows, "Linear"]
    assert kinds(network.decoder(3, (1, 8, 8))) == ["Linear", *rows, "Linear", "Unflatten"]


def test_an_mlp_encodes_pixels_and_decodes_them_in_the_same_order() -> None:
    encoder = mlp(hidden=[]).encoder((2, 3, 4), 24)
    decoder = mlp(hidden=[]).decoder(24, (2, 3, 4))
    for layer in [*encoder.modules(), *decoder.modules()]:
        if isinstance(layer, nn.Linear):
            nn.init.eye_(layer.weight)
            nn.init.zeros_(layer.bias)
    images = some_images(5, 2, 3, 4)
    assert decoder(encoder(images)).tolist() == images.tolist()


@pytest.mark.parametrize(
    ("kernel", "stride", "channels"),
    [
        (*window, channels)
        for window, channels in itertools.product(WINDOWS, [[2], [3, 2], [2, 2, 4]])
        if window[1] ** len(channels) <= 16  # larger images would show nothing new
    ],
)
@pytest.mark.parametrize("colours", [1, 3])
def test_convolutions_reproduce_every_size_that_they_divide(
    kernel: int, stride: int, channels: list[int], colours: int
) -> None:
    total = stride ** len(channels)
    changes = {"kernel": kernel, "stride": stride, "channels": channels}
    network, bare = conv(**changes), conv(**changes, hidden=[])
    for height, width in [(total, total), (total, 3 * total), (2 * total, total)]:
        shape = (colours, height, width)
        body, flat = bare.features(shape)
        images = some_images(2, *shape)
        assert body(images).shape == (2, flat) == (2, channels[-1] * (height // total) * (width // total))
        assert network.encoder(shape, 5)(images).shape == (2, 5)
        assert network.decoder(4, shape)(some_images(3, 4)).shape == (3, *shape)


@every_window
def test_every_pixel_counts(kernel: int, stride: int) -> None:
    """No convolution skips a pixel on its way down, nor leaves one out on its way up."""
    network = conv(kernel=kernel, stride=stride, channels=[2], hidden=[], activation="softplus")
    shape = (1, 2 * stride, 3 * stride)
    encoder, decoder = network.encoder(shape, 1), network.decoder(1, shape)
    images = torch.zeros(1, *shape, requires_grad=True)
    gradient = torch.autograd.grad(with_unit_weights(encoder)(images).sum(), images)[0]
    assert gradient.min().item() > 0
    assert with_unit_weights(decoder)(torch.ones(1, 1)).min().item() > 0


@pytest.mark.parametrize("kind", ["mlp", "conv"])
@pytest.mark.parametrize("hidden", [[], [7], [7, 5]])
@pytest.mark.parametrize("shape", [(1, 4, 8), (3, 8, 8)])
def test_networks_of_any_depth_have_the_wanted_shapes(kind: str, hidden: list[int], shape: tuple[int, ...]) -> None:
    network = build(kind, hidden=hidden)
    body, width = network.features(shape)
    assert body(some_images(2, *shape)).shape == (2, width)
    assert network.encoder(shape, 9)(some_images(2, *shape)).shape == (2, 9)
    assert network.decoder(4, shape)(some_images(6, 4)).shape == (6, *shape)


@every_direction
@pytest.mark.parametrize(
    ("height", "width", "channels", "stride"),
    [(9, 9, [2, 3], 2), (28, 28, [2, 2, 2], 2), (3, 3, [2, 2], 2), (1, 1, [2], 2), (8, 6, [2, 2], 2), (28, 28, [2], 3)],
)
def test_sizes_that_convolutions_cannot_have_are_refused_with_some_that_they_can(
    make: Callable[..., nn.Module], height: int, width: int, channels: list[int], stride: int
) -> None:
    network, total = conv(channels=channels, stride=stride), stride ** len(channels)
    with pytest.raises(ParamsError, match=f"sides are divisible by {total}, found {height}x{width} pixels") as caught:
        make(network, (1, height, width))
    named = re.search(r"set preprocess\.image_size to (\d+)(?: or (\d+))? or another multiple", str(caught.value))
    assert named is not None
    sizes = [int(size) for size in named.groups() if size is not None]
    assert sizes
    for size in sizes:
        assert network.encoder((1, size, size), 4)(some_images(2, 1, size, size)).shape == (2, 4)
        assert network.decoder(4, (1, size, size))(some_images(2, 4)).shape == (2, 1, size, size)


@pytest.mark.parametrize(
    ("size", "wanted"), [(9, "8 or 12"), (11, "8 or 12"), (28 + 1, "28 or 32"), (3, "4"), (1, "4"), (5, "4 or 8")]
)
def test_the_sizes_named_are_the_next_ones(size: int, wanted: str) -> None:
    with pytest.raises(ParamsError, match=f"set preprocess.image_size to {wanted} or another multiple"):
        conv().encoder((1, size, size), 4)


@every_direction
@pytest.mark.parametrize(
    ("kernel", "stride", "wanted"),
    [
        (1, 2, "at least the stride, 2"),
        (2, 3, "at least the stride, 3"),
        (2, 1, "an odd number with model.conv.stride 1"),
        (4, 1, "an odd number with model.conv.stride 1"),
    ],
)
def test_kernels_that_skip_pixels_or_shift_them_are_refused(
    make: Callable[..., nn.Module], kernel: int, stride: int, wanted: str
) -> None:
    with pytest.raises(ParamsError, match=f"model.conv.kernel: wanted {wanted}, found {kernel}"):
        make(conv(kernel=kernel, stride=stride), (1, 36, 36))


def test_an_mlp_ignores_kernel_and_stride() -> None:
    network = mlp(kernel=1, stride=7)
    assert network.encoder((1, 5, 3), 4)(some_images(2, 1, 5, 3)).shape == (2, 4)
    assert network.decoder(4, (1, 5, 3))(some_images(2, 4)).shape == (2, 1, 5, 3)


def test_glorot_weights_are_uniform_and_biases_zero() -> None:
    torch.manual_seed(0)
    # Layer, and the number of inputs and of outputs that meet in one weight's layer: fan_in + fan_out.
    layers: list[tuple[nn.Module, int]] = [
        (nn.Linear(300, 100), 400),
        (nn.Conv2d(10, 20, 5, 2), (10 + 20) * 25),
        (nn.ConvTranspose2d(20, 10, 5, 2), (10 + 20) * 25),
    ]
    networks.initialise(nn.Sequential(*(layer for layer, _ in layers)), "glorot")
    for layer, fans in layers:
        weight, bound = layer.weight, math.sqrt(6 / fans)
        assert isinstance(weight, Tensor)
        assert weight.abs().max().item() <= bound
        assert (weight.min().item(), weight.max().item()) == pytest.approx((-bound, bound), rel=0.02)
        assert weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.03)
        assert isinstance(layer.bias, Tensor)
        assert layer.bias.count_nonzero().item() == 0


def test_he_weights_are_normal_and_biases_zero() -> None:
    torch.manual_seed(0)
    layers: list[tuple[nn.Module, int]] = [
        (nn.Linear(300, 100), 300),
        (nn.Conv2d(10, 20, 5, 2), 10 * 25),
        (nn.ConvTranspose2d(20, 10, 5, 2), 20 * 25),
    ]
    networks.initialise(nn.Sequential(*(layer for layer, _ in layers)), "he")
    for layer, inputs in layers:
        assert isinstance(layer.weight, Tensor)
        assert layer.weight.std().item() == pytest.approx(math.sqrt(2 / inputs), rel=0.03)
        assert layer.weight.abs().max().item() > 3 * math.sqrt(2 / inputs)
        assert isinstance(layer.bias, Tensor)
        assert layer.bias.count_nonzero().item() == 0


def test_a_gate_is_a_linear_map_of_its_own() -> None:
    torch.manual_seed(0)
    network, x = mlp(activation="gated").stack((3, 2)), torch.randn(4, 3)
    [layer] = [layer for layer in network.modules() if isinstance(layer, nn.Linear)]
    (first, second), (offset, other) = layer.weight.chunk(2), layer.bias.chunk(2)
    torch.testing.assert_close(network(x), (x @ first.T + offset) * (x @ second.T + other).sigmoid())


@pytest.mark.parametrize("norm", ["none", "batch", "layer"])
@pytest.mark.parametrize("kind", ["mlp", "conv"])
def test_gated_layers_put_out_the_widths_of_others(kind: str, norm: str) -> None:
    network, x = build(kind, activation="gated", norm=norm), some_images(3, 1, 8, 8)
    assert network.features((1, 8, 8))[0](x).shape == (3, 6)
    assert network.encoder((1, 8, 8), 4)(x).shape == (3, 4)
    assert network.decoder(4, (2, 8, 8))(some_images(3, 4)).shape == (3, 2, 8, 8)
    assert network.between((5, 7, 2))(some_images(3, 5)).shape == (3, 2)


@pytest.mark.parametrize("norm", ["batch", "layer"])
def test_glorot_leaves_norms_as_they_are(norm: str) -> None:
    network = conv(norm=norm).encoder((1, 8, 8), 4)
    networks.initialise(network, "glorot")
    norms = [layer for layer in network.modules() if isinstance(layer, nn.BatchNorm2d | nn.BatchNorm1d)]
    norms += [layer for layer in network.modules() if isinstance(layer, nn.GroupNorm | nn.LayerNorm)]
    assert len(norms) == 3
    assert all((layer.weight == 1).all() and (layer.bias == 0).all() for layer in norms)


def test_torch_init_leaves_layers_as_they_were_made() -> None:
    network = conv().encoder((1, 8, 8), 4)
    before = {name: weight.clone() for name, weight in network.state_dict().items()}
    networks.initialise(network, "torch")
    assert all(weight.equal(before[name]) for name, weight in network.state_dict().items())


def without_last_weights(decoder: nn.Module) -> nn.Module:
    layers = [layer for layer in decoder.modules() if isinstance(layer, nn.Linear | nn.ConvTranspose2d)]
    nn.init.zeros_(layers[-1].weight)
    return decoder


@pytest.mark.parametrize("hidden", [[], [5]])
def test_the_output_bias_of_an_mlp_is_the_output_pixel_by_pixel(hidden: list[int]) -> None:
    decoder, output = mlp(hidden=hidden).decoder(3, (2, 4, 8)), some_images(2, 4, 8)
    networks.set_output_bias(decoder, output, lambda mean: mean)
    assert without_last_weights(decoder)(some_images(5, 3)).tolist() == output.expand(5, -1, -1, -1).tolist()


@pytest.mark.parametrize("norm", ["none", "batch", "layer"])
def test_the_output_bias_of_convolutions_is_one_number_per_channel(norm: str) -> None:
    decoder = conv(norm=norm).decoder(3, (2, 4, 8))
    output = torch.tensor([0.25, -3.0]).reshape(2, 1, 1).expand(2, 4, 8)
    networks.set_output_bias(decoder, output, lambda mean: mean)
    assert without_last_weights(decoder)(some_images(5, 3)).tolist() == output.expand(5, -1, -1, -1).tolist()


def test_batch_norm_makes_every_unit_standard_over_the_batch() -> None:
    stack = mlp(norm="batch").stack((5, 7))[:-1]  # without the activation
    found = stack(10 + 3 * some_images(64, 5))
    torch.testing.assert_close(found.mean(0), torch.zeros(7), rtol=0, atol=1e-5)
    torch.testing.assert_close(found.var(0, correction=0), torch.ones(7), rtol=0, atol=1e-3)


def test_batch_norm_makes_every_channel_standard_over_batch_and_pixels() -> None:
    body, _ = conv(norm="batch", channels=[4]).features((1, 8, 8))
    found = body[:2](10 + 3 * some_images(64, 1, 8, 8))
    torch.testing.assert_close(found.mean((0, 2, 3)), torch.zeros(4), rtol=0, atol=1e-4)
    torch.testing.assert_close(found.var((0, 2, 3), correction=0), torch.ones(4), rtol=0, atol=1e-3)


def test_layer_norm_makes_every_row_standard() -> None:
    stack = mlp(norm="layer").stack((5, 70))[:-1]
    found = stack(10 + 3 * some_images(6, 5))
    torch.testing.assert_close(found.mean(1), torch.zeros(6), rtol=0, atol=1e-5)
    torch.testing.assert_close(found.var(1, correction=0), torch.ones(6), rtol=0, atol=1e-3)


def test_layer_norm_makes_every_image_standard_over_channels_and_pixels() -> None:
    body, _ = conv(norm="layer", channels=[4]).features((1, 8, 8))
    found = body[:2](10 + 3 * some_images(6, 1, 8, 8))
    torch.testing.assert_close(found.mean((1, 2, 3)), torch.zeros(6), rtol=0, atol=1e-5)
    torch.testing.assert_close(found.var((1, 2, 3), correction=0), torch.ones(6), rtol=0, atol=1e-3)


def test_without_a_norm_an_image_keeps_its_scale() -> None:
    body, _ = conv(norm="none", activation="relu", hidden=[]).features((1, 8, 8))
    for layer in body.modules():
        if isinstance(layer, nn.Conv2d):
            assert layer.bias is not None
            nn.init.zeros_(layer.bias)
    images = some_images(3, 1, 8, 8)
    torch.testing.assert_close(body(100 * images), 100 * body(images))
