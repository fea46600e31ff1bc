import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from conftest import small_section
from torch import Tensor, nn

from reparam.config.model import ModelConfig
from reparam.errors import ParamsError
from reparam.models.autoencoder import Autoencoder
from reparam.models.build import build_model, start_at_mean
from reparam.models.draw import gaussian_log_prob, standard_normal_log_prob
from reparam.models.latent import LatentModel
from reparam.models.resnet import Attention, Residual
from reparam.models.vae import VAE

SHAPE = (2, 8, 12)  # (C, H, W), all different, so that no two can be mixed up
SPATIAL = (3, 4, 6)  # (C, H, W) of latents, under two resolutions

pytestmark = pytest.mark.usefixtures("one_thread")


def config(**changes: Any) -> ModelConfig:
    resnet = {"channels": [2, 4], "depth": 1, "groups": 2, "attention": False, "latent_channels": None}
    resnet |= {name: changes.pop(name) for name in list(changes) if name in resnet}
    return small_section("model", network="resnet", resnet=resnet, **changes)


def build(shape: tuple[int, ...] = SHAPE, **changes: Any) -> LatentModel:
    torch.manual_seed(0)
    return build_model(config(**changes), shape)


def spatial(**changes: Any) -> LatentModel:
    return build(latent_channels=SPATIAL[0], latent=None, **changes)


def some(*shape: int) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(0))


# Layers


@pytest.mark.parametrize("outputs", [4, 6])
def test_a_block_adds_what_two_convolutions_make_of_an_image(outputs: int) -> None:
    block, x = Residual(4, outputs, groups=2), some(3, 4, 5, 6)
    first, _, conv, second, _, other = block.change
    found = other(F.silu(second(conv(F.silu(first(x))))))
    skipped = x if outputs == 4 else block.skip(x)
    torch.testing.assert_close(block(x), skipped + found)
    nn.init.zeros_(other.weight)
    nn.init.zeros_(other.bias)
    assert block(x).equal(skipped)


def test_attention_adds_means_of_all_pixels_weighted_by_their_products() -> None:
    torch.manual_seed(0)
    layer, x = Attention(4, groups=2), some(3, 4, 2, 5)
    query, key, value = (part.flatten(2).mT for part in layer.ask(layer.norm(x)).chunk(3, 1))  # (B, N, C)
    wanted = F.scaled_dot_product_attention(query, key, value).mT.reshape(x.shape)
    torch.testing.assert_close(layer(x), x + layer.put(wanted))


@pytest.mark.parametrize("channels", [[2], [2, 4], [2, 2, 4], [4, 2, 2, 2]])
@pytest.mark.parametrize("attention", [False, True])
@pytest.mark.parametrize("latent_channels", [None, 3])
def test_images_of_every_size_that_the_stride_divides_are_encoded_and_decoded(
    channels: list[int], attention: bool, latent_channels: int | None
) -> None:
    total, latent = 2 ** (len(channels) - 1), None if latent_channels else 5
    for height, width in [(total, total), (total, 3 * total), (2 * total, total)]:
        shape = (3, height, width)
        model = build(shape, channels=channels, attention=attention, latent_channels=latent_channels, latent=latent)
        latent_shape = (latent_channels, height // total, width // total) if latent_channels else (5,)
        assert (model.latent_shape, model.latent_size) == (latent_shape, math.prod(latent_shape))
        mean, log_variance = model.posterior(some(2, *shape))
        assert mean.shape == log_variance.shape == (2, model.latent_size)
        assert model.decode(mean).shape == (2, *shape)


@pytest.mark.parametrize("latent_channels", [None, 3])
def test_every_weight_of_a_network_with_all_its_parts_gets_a_gradient(latent_channels: int | None) -> None:
    # In groups of one channel, a norm would take the bias before it away.
    model = build(latent_channels=latent_channels, latent=None if latent_channels else 3, attention=True, depth=2)
    x = some(5, *SHAPE)
    draw = model.draw(x, x, samples=2)
    (draw.log_px - draw.kl).mean().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.count_nonzero() > 0, name


def test_there_are_as_many_blocks_as_wanted_and_attention_at_the_lowest_resolution_alone() -> None:
    model = build(channels=[2, 4, 4], depth=2, attention=True)
    for network in (model.encoder, model.decoder):
        assert isinstance(network, nn.Module)
        found = [layer for layer in network.modules() if isinstance(layer, Residual | Attention)]
        assert len([layer for layer in found if isinstance(layer, Residual)]) == 3 * 2 + 1
        [attention] = [layer for layer in found if isinstance(layer, Attention)]
        assert attention.put.in_channels == 4
    plain = build(channels=[2, 4, 4], depth=2)
    assert isinstance(plain.encoder, nn.Module)
    assert len([layer for layer in plain.encoder.modules() if isinstance(layer, Residual)]) == 3 * 2


def test_pixels_are_repeated_and_convolved_on_the_way_up() -> None:
    """No pixel gets more than others: a transposed convolution would leave a checkerboard."""
    ups = [layer for layer in build(channels=[2, 4, 4]).decoder.modules() if isinstance(layer, nn.Upsample)]
    assert [(layer.scale_factor, layer.mode) for layer in ups] == [(2.0, "nearest")] * 2
    assert ups[0](torch.tensor([[[[1.0, 2.0]]]])).tolist() == [[[[1.0, 1.0, 2.0, 2.0], [1.0, 1.0, 2.0, 2.0]]]]


# Latents with a shape


def test_a_convolution_puts_out_the_means_first_and_then_the_log_variances() -> None:
    model = spatial()
    assert isinstance(model, VAE)
    x = some(2, *SHAPE)
    maps = model.encoder[:-1](x)  # type: ignore[index]
    assert maps.shape == (2, 2 * SPATIAL[0], *SPATIAL[1:])
    mean, log_variance = model.posterior(x)
    assert mean.view(2, *SPATIAL).equal(maps[:, : SPATIAL[0]])
    assert log_variance.view(2, *SPATIAL).equal(maps[:, SPATIAL[0] :])


def test_densities_of_latents_with_a_shape_are_summed_over_it() -> None:
    model, x = spatial().double(), some(2, *SHAPE).double()
    draw = model.draw(x, x, samples=3)
    [layer] = draw.layers
    z, mean, log_variance = (
        values.view(*values.shape[:-1], *SPATIAL) for values in (layer.z, layer.mean, layer.log_variance)
    )
    over = (-3, -2, -1)
    torch.testing.assert_close(draw.log_pz, standard_normal_log_prob(z).sum(over))
    torch.testing.assert_close(draw.log_qz, gaussian_log_prob(z, mean, log_variance).sum(over))
    kl = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).sum(over)
    torch.testing.assert_close(draw.kl, kl.expand(3, -1))


def test_an_autoencoder_has_codes_with_a_shape() -> None:
    model, x = spatial(kind="autoencoder", code="sigmoid"), some(2, *SHAPE)
    assert isinstance(model, Autoencoder)
    code, _ = model.posterior(x)
    assert (model.latent_shape, code.shape) == (SPATIAL, (2, math.prod(SPATIAL)))
    assert 0 < code.min().item() < code.max().item() < 1


@pytest.mark.parametrize("prior", ["mixture", "vamp"])
def test_learned_priors_know_latents_with_a_shape(prior: str) -> None:
    model, x = spatial(prior=prior, components=5), some(2, *SHAPE)
    draw = model.draw(x, x, samples=2)
    assert draw.kl.shape == (2, 2)
    assert model.prior.sample(torch.empty(7, model.latent_size)).shape == (7, math.prod(SPATIAL))


@pytest.mark.parametrize(
    ("changes", "wanted"),
    [
        (
            {"latent_channels": 3, "latent": 72},
            "model.latent: wanted null, because 3 x 4 x 6 latents follow from model.resnet.latent_channels, found 72; "
            "or set model.resnet.latent_channels to null",
        ),
        (
            {"latent": None},
            "model.latent: wanted a number of dimensions, because none follows from model.network 'resnet' with these "
            "parameters, found null",
        ),
        (
            {"latent_channels": 3, "latent": None, "kind": "hierarchical"},
            "model.kind: wanted another one where latents are an image, found 'hierarchical', whose layers of latents "
            "are vectors; or set model.resnet.latent_channels to null",
        ),
        ({"groups": 3}, "model.resnet.groups: wanted a divisor of all model.resnet.channels, [2, 4], found 3"),
        (
            {"channels": [2, 2, 2, 2]},
            "model.resnet.channels: 4 resolutions need images whose sides are divisible by 8, found 8x12 pixels; set "
            "preprocess.image_size to 8 or 16 or another multiple, or change model.resnet.channels",
        ),
    ],
)
def test_what_does_not_go_together_is_refused(changes: dict[str, Any], wanted: str) -> None:
    with pytest.raises(ParamsError) as caught:
        build(**changes)
    assert str(caught.value) == f"params.yaml: {wanted}"


def test_other_networks_want_a_number_of_latents() -> None:
    with pytest.raises(ParamsError, match=r"model\.latent: wanted a number of dimensions, .* 'conv' .* found null"):
        build_model(small_section("model", network="conv", latent=None), (1, 8, 8))


@pytest.mark.parametrize("link", ["linear", "sigmoid"])
def test_the_untrained_decoder_can_start_at_the_mean_of_each_channel(link: str) -> None:
    model = spatial(likelihood="laplace", mean=link)
    mean = torch.tensor([0.125, 0.75]).reshape(2, 1, 1).expand(SHAPE)
    start_at_mean(model, mean)
    assert isinstance(model.decoder, nn.Sequential)
    nn.init.zeros_(model.decoder[-1].weight)  # type: ignore[arg-type]
    torch.testing.assert_close(model.decode(torch.zeros(1, model.latent_size))[0], mean)


def test_the_layout_of_an_image_in_memory_changes_nothing() -> None:
    model, x = spatial(attention=True, depth=2), some(5, *SHAPE)
    assert model.posterior(x.contiguous(memory_format=torch.channels_last))[0].equal(model.posterior(x)[0])
