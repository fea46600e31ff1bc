"""Fully connected and convolutional networks without an idea of what they are used for."""

import itertools
import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from reparam.config import ModelConfig
from reparam.errors import ParamsError
from reparam.models.linear import Linear

ACTIVATIONS: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "tanh": nn.Tanh,
    "softplus": nn.Softplus,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
}


def encoder(config: ModelConfig, shape: tuple[int, ...], outputs: int) -> nn.Sequential:
    """Map images to numbers. Shapes: `shape` is (C, H, W); (B, C, H, W) -> (B, outputs).

    Raises: ParamsError where convolutions cannot have images of that size.
    """
    body, width = features(config, shape)
    return nn.Sequential(*body, Linear(width, outputs))


def features(config: ModelConfig, shape: tuple[int, ...]) -> tuple[nn.Sequential, int]:
    """Build an encoder up to its last activation; return it with the number of its outputs."""
    layers: list[nn.Module] = []
    channels, height, width = shape
    if config.network == "conv":
        _check_size(config, shape)
        for inputs, outputs in itertools.pairwise((channels, *config.channels)):
            convolution = nn.Conv2d(inputs, outputs, config.kernel, config.stride, _padding(config))
            layers += [convolution, *_after(config, outputs, is_image=True)]
        total = config.stride ** len(config.channels)
        channels, height, width = config.channels[-1], height // total, width // total
    flat = channels * height * width
    layers += [nn.Flatten(), *stack((flat, *config.hidden), config)]
    return nn.Sequential(*layers), (flat, *config.hidden)[-1]


def decoder(config: ModelConfig, inputs: int, shape: tuple[int, ...]) -> nn.Sequential:
    """Mirror the encoder. Shapes: `shape` is (C, H, W); (N, inputs) -> (N, C, H, W)."""
    mirrored = tuple(reversed(config.hidden))
    widths = (inputs, *(mirrored if config.decoder_hidden is None else config.decoder_hidden))
    if config.network == "mlp":
        return nn.Sequential(*mlp((*widths, math.prod(shape)), config), nn.Unflatten(1, shape))
    _check_size(config, shape)
    total = config.stride ** len(config.channels)
    small = (config.channels[-1], shape[1] // total, shape[2] // total)
    layers: list[nn.Module] = [*stack((*widths, math.prod(small)), config), nn.Unflatten(1, small)]
    padding = _padding(config)
    missing = config.stride + 2 * padding - config.kernel  # pixels by which the mirrored sizes fall short, 0 or 1
    for inputs_, outputs in itertools.pairwise((*reversed(config.channels), shape[0])):
        layers.append(nn.ConvTranspose2d(inputs_, outputs, config.kernel, config.stride, padding, missing))
        layers += _after(config, outputs, is_image=True)
    # The last convolution puts out the result: neither norm nor activation follow it.
    return nn.Sequential(*layers[: len(layers) - len(_after(config, 1, is_image=True))])


def mlp(widths: tuple[int, ...], config: ModelConfig) -> nn.Sequential:
    """Stack linear layers of the given widths, norm and activation between each two.

    Shapes: (B, widths[0]) -> (B, widths[-1]).
    """
    return nn.Sequential(*stack(widths[:-1], config), Linear(widths[-2], widths[-1]))


def stack(widths: tuple[int, ...], config: ModelConfig) -> nn.Sequential:
    """Stack linear layers, each followed by norm and activation. Shapes: (B, widths[0]) -> (B, widths[-1])."""
    layers: list[nn.Module] = []
    for inputs, outputs in itertools.pairwise(widths):
        layers += [Linear(inputs, outputs), *_after(config, outputs, is_image=False)]
    return nn.Sequential(*layers)


def initialise(module: nn.Module, init: str) -> None:
    """Draw weights anew under `glorot`; under `torch`, keep what the layers drew as they were made.

    Source: Glorot & Bengio 2010, eq. 16: uniform weights, zero biases.
    """
    if init == "torch":
        return
    for layer in module.modules():
        if isinstance(layer, nn.Linear | nn.Conv2d | nn.ConvTranspose2d):
            nn.init.xavier_uniform_(layer.weight)
            assert layer.bias is not None
            nn.init.zeros_(layer.bias)


def set_output_bias(decoder: nn.Module, mean: Tensor, output_of: Callable[[Tensor], Tensor]) -> None:
    """Make the bias of the last layer put out `mean`; that of a convolution, one per channel, its mean over pixels.

    Shapes: `mean` (C, H, W).
    """
    last = [layer for layer in decoder.modules() if isinstance(layer, nn.Linear | nn.ConvTranspose2d)][-1]
    assert last.bias is not None
    if isinstance(last, nn.ConvTranspose2d):
        mean = mean.mean((1, 2), keepdim=True)
    with torch.no_grad():
        last.bias.copy_(output_of(mean).flatten())


def _after(config: ModelConfig, width: int, *, is_image: bool) -> list[nn.Module]:
    """What follows a layer. A group norm with one group is the layer norm of images."""
    norms: dict[str, list[nn.Module]] = {
        "none": [],
        "batch": [nn.BatchNorm2d(width) if is_image else nn.BatchNorm1d(width)],
        "layer": [nn.GroupNorm(1, width) if is_image else nn.LayerNorm(width)],
    }
    return [*norms[config.norm], ACTIVATIONS[config.activation]()]


def _padding(config: ModelConfig) -> int:
    return (config.kernel - config.stride + 1) // 2  # sides of n * stride pixels become n


def _check_size(config: ModelConfig, shape: tuple[int, ...]) -> None:
    """Refuse convolutions that would skip pixels or change their number unevenly."""
    kernel, stride = config.kernel, config.stride
    if kernel < stride or (stride == 1 and kernel % 2 == 0):
        wanted = "an odd number with model.stride 1" if stride == 1 else f"at least model.stride, {stride}"
        raise ParamsError(f"params.yaml: model.kernel: wanted {wanted}, found {kernel}")
    total = stride ** len(config.channels)
    if shape[1] % total or shape[2] % total:
        below, above = max(1, min(shape[1:]) // total) * total, -(-max(shape[1:]) // total) * total
        sizes = f"{below} or {above}" if below != above else f"{above}"
        raise ParamsError(
            f"params.yaml: model.channels: {len(config.channels)} convolutions of stride {stride} need images whose "
            f"sides are divisible by {total}, found {shape[1]}x{shape[2]} pixels; set preprocess.image_size to {sizes} "
            "or another multiple, or change model.channels or model.stride"
        )
