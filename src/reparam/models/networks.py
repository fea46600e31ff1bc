"""Networks between images and vectors; they know nothing of autoencoders."""

import itertools
import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from reparam.config.model import ConvConfig, MlpConfig, ResnetConfig
from reparam.errors import ParamsError
from reparam.models.linear import Linear
from reparam.models.resnet import way_down, way_up

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "tanh": nn.Tanh,
    "softplus": nn.Softplus,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    # Half of the numbers times the sigmoid of the others. Source: Dauphin et al. 2017, eq. 1.
    "gated": partial(nn.GLU, dim=1),
}


class Network(ABC):
    """A kind of layers, from which all networks of a model are built. Shapes: `shape` is (C, H, W).

    Raises: ParamsError if it cannot have images of that size.
    """

    latents_by = ""  # the parameter for the channels of latents; if it is null or missing, latents are a vector

    @abstractmethod
    def features(self, shape: tuple[int, ...]) -> tuple[nn.Sequential, int]:
        """Build an encoder up to its last activation, and count its outputs. Shapes: (B, C, H, W) -> (B, outputs)."""

    @abstractmethod
    def decoder(self, inputs: int, shape: tuple[int, ...]) -> nn.Sequential:
        """Map numbers to images. Shapes: (N, inputs) -> (N, C, H, W)."""

    @abstractmethod
    def stack(self, widths: tuple[int, ...]) -> nn.Sequential:
        """Build layers of the given widths, up to the last activation. Shapes: (B, widths[0]) -> (B, widths[-1])."""

    def encoder(self, shape: tuple[int, ...], outputs: int) -> nn.Sequential:
        """Map images to numbers. Shapes: (B, C, H, W) -> (B, outputs)."""
        body, width = self.features(shape)
        return nn.Sequential(*body, Linear(width, outputs))

    def latent_shape(self, shape: tuple[int, ...]) -> tuple[int, ...] | None:  # noqa: ARG002
        """Return (C, H, W) of the latents of images; None: they are a vector, of any size."""
        return None

    def between(self, widths: tuple[int, ...]) -> nn.Sequential:
        """Map numbers to numbers, as between two layers of latents. Shapes: (B, widths[0]) -> (B, widths[-1])."""
        return nn.Sequential(*self.stack(widths[:-1]), Linear(widths[-2], widths[-1]))


class MLP(Network):
    """Fully connected layers, with norm and activation after each."""

    def __init__(self, config: MlpConfig) -> None:
        self.config = config
        mirrored = tuple(reversed(config.hidden))
        self.decoder_hidden = mirrored if config.decoder_hidden is None else config.decoder_hidden

    def features(self, shape: tuple[int, ...]) -> tuple[nn.Sequential, int]:
        """Build the layers up to the latents, and return their width. Shapes: (B, *shape) -> (B, width)."""
        widths = (math.prod(shape), *self.config.hidden)
        return nn.Sequential(nn.Flatten(), *self.stack(widths)), widths[-1]

    def decoder(self, inputs: int, shape: tuple[int, ...]) -> nn.Sequential:
        """Build the layers from latents to the parameters of pixels. Shapes: (B, inputs) -> (B, *shape)."""
        layers = self.between((inputs, *self.decoder_hidden, math.prod(shape)))
        return nn.Sequential(*layers, nn.Unflatten(1, shape))

    def stack(self, widths: tuple[int, ...]) -> nn.Sequential:
        """Build fully connected layers of these widths, each with its activation."""
        layers: list[nn.Module] = []
        for inputs, outputs in itertools.pairwise(widths):
            layers += [Linear(inputs, self.before(outputs)), *self.after(outputs, is_image=False)]
        return nn.Sequential(*layers)

    def before(self, width: int) -> int:
        """Return how many outputs a layer needs before its activation: twice the width if the activation is gated."""
        return 2 * width if self.config.activation == "gated" else width

    def after(self, outputs: int, *, is_image: bool) -> list[nn.Module]:
        """Build what follows a layer. A group norm with one group is the layer norm of images."""
        width = self.before(outputs)
        norms: dict[str, list[nn.Module]] = {
            "none": [],
            "batch": [nn.BatchNorm2d(width) if is_image else nn.BatchNorm1d(width)],
            "layer": [nn.GroupNorm(1, width) if is_image else nn.LayerNorm(width)],
        }
        return [*norms[self.config.norm], ACTIVATIONS[self.config.activation]()]


class Conv(MLP):
    """Strided convolutions next to the image, fully connected layers behind them."""

    config: ConvConfig

    def __init__(self, config: ConvConfig) -> None:
        super().__init__(config)
        self.padding = (config.kernel - config.stride + 1) // 2  # sides of n * stride pixels become n

    def features(self, shape: tuple[int, ...]) -> tuple[nn.Sequential, int]:
        """Build convolutions and the layers after them. Shapes: (B, *shape) -> (B, width)."""
        config, small = self.config, self._smallest(shape)
        layers: list[nn.Module] = []
        for inputs, outputs in itertools.pairwise((shape[0], *config.channels)):
            convolution = nn.Conv2d(inputs, self.before(outputs), config.kernel, config.stride, self.padding)
            layers += [convolution, *self.after(outputs, is_image=True)]
        flat, width = super().features(small)
        return nn.Sequential(*layers, *flat), width

    def decoder(self, inputs: int, shape: tuple[int, ...]) -> nn.Sequential:
        """Build the mirrored network. Shapes: (B, inputs) -> (B, *shape)."""
        config, small = self.config, self._smallest(shape)
        layers: list[nn.Module] = [*self.stack((inputs, *self.decoder_hidden, math.prod(small)))]
        layers.append(nn.Unflatten(1, small))
        missing = config.stride + 2 * self.padding - config.kernel  # pixels that the mirrored sizes lack, 0 or 1
        for number, (width, outputs) in enumerate(itertools.pairwise((*reversed(config.channels), shape[0])), start=1):
            is_last = number == len(config.channels)  # which puts out the result
            found = outputs if is_last else self.before(outputs)
            layers.append(nn.ConvTranspose2d(width, found, config.kernel, config.stride, self.padding, missing))
            if not is_last:
                layers += self.after(outputs, is_image=True)
        return nn.Sequential(*layers)

    def _smallest(self, shape: tuple[int, ...]) -> tuple[int, int, int]:
        """Return the shape behind all convolutions; refuse ones that would skip or repeat pixels."""
        kernel, stride, channels = self.config.kernel, self.config.stride, self.config.channels
        if kernel < stride or (stride == 1 and kernel % 2 == 0):
            wanted = "an odd number with model.conv.stride 1" if stride == 1 else f"at least the stride, {stride}"
            raise ParamsError(f"params.yaml: model.conv.kernel: wanted {wanted}, found {kernel}")
        total, layers = stride ** len(channels), f"{len(channels)} convolutions of stride {stride}"
        _check_sides(shape, total, f"model.conv.channels: {layers}", "model.conv.channels or model.conv.stride")
        return channels[-1], shape[1] // total, shape[2] // total


class ResNet(Network):
    """Residual blocks at each resolution; a linear layer to a vector of latents, or a convolution to an image of them.

    Source: Esser et al. 2021, table 7; Rombach et al. 2022, sec. 3.1.
    """

    latents_by = "model.resnet.latent_channels"

    def __init__(self, config: ResnetConfig) -> None:
        self.config = config
        if any(width % config.groups for width in config.channels):
            raise ParamsError(
                f"params.yaml: model.resnet.groups: wanted a divisor of all model.resnet.channels, "
                f"{list(config.channels)}, found {config.groups}"
            )

    def features(self, shape: tuple[int, ...]) -> tuple[nn.Sequential, int]:
        small = self._smallest(shape)
        return way_down(self.config, shape[0]).append(nn.Flatten()), math.prod(small)

    def encoder(self, shape: tuple[int, ...], outputs: int) -> nn.Sequential:
        """Map images to numbers; of latents with a shape, all means first. Shapes: (B, *shape) -> (B, outputs)."""
        if self.config.latent_channels is None:
            return super().encoder(shape, outputs)
        width, *sides = self._smallest(shape)
        last = nn.Conv2d(width, outputs // math.prod(sides), 3, padding=1)
        return way_down(self.config, shape[0]).extend([last, nn.Flatten()])

    def decoder(self, inputs: int, shape: tuple[int, ...]) -> nn.Sequential:
        """Build the network from latents to images. Shapes: (B, inputs) -> (B, *shape)."""
        small, latents = self._smallest(shape), self.latent_shape(shape)
        if latents is None:
            first: list[nn.Module] = [Linear(inputs, math.prod(small)), nn.Unflatten(1, small)]
        else:
            first = [nn.Unflatten(1, latents), nn.Conv2d(latents[0], small[0], 3, padding=1)]
        return nn.Sequential(*first, *way_up(self.config, shape[0]))

    def stack(self, widths: tuple[int, ...]) -> nn.Sequential:
        layers = ((Linear(inputs, outputs), nn.SiLU()) for inputs, outputs in itertools.pairwise(widths))
        return nn.Sequential(*itertools.chain.from_iterable(layers))

    def latent_shape(self, shape: tuple[int, ...]) -> tuple[int, ...] | None:
        channels = self.config.latent_channels
        return None if channels is None else (channels, *self._smallest(shape)[1:])

    def _smallest(self, shape: tuple[int, ...]) -> tuple[int, int, int]:
        """Return the shape at the lowest resolution."""
        channels, total = self.config.channels, 2 ** (len(self.config.channels) - 1)
        _check_sides(shape, total, f"model.resnet.channels: {len(channels)} resolutions", "model.resnet.channels")
        return channels[-1], shape[1] // total, shape[2] // total


def _check_sides(shape: tuple[int, ...], total: int, what: str, parameters: str) -> None:
    """Refuse images that layers of this total stride cannot have, and name sizes that they can."""
    if shape[1] % total or shape[2] % total:
        below, above = max(1, min(shape[1:]) // total) * total, -(-max(shape[1:]) // total) * total
        sizes = f"{below} or {above}" if below != above else f"{above}"
        raise ParamsError(
            f"params.yaml: {what} need images whose sides are divisible by {total}, found {shape[1]}x{shape[2]} "
            f"pixels; set preprocess.image_size to {sizes} or another multiple, or change {parameters}"
        )


def initialise(module: nn.Module, init: str) -> None:
    """Initialise all weights, with zero biases; `torch` keeps the initialisation of torch.

    Source: Glorot & Bengio 2010, eq. 16 (uniform); He et al. 2015, eq. 10 (normal).
    """
    if init == "torch":
        return
    for layer in module.modules():
        if isinstance(layer, nn.Linear | nn.Conv2d | nn.ConvTranspose2d):
            if init == "glorot":
                nn.init.xavier_uniform_(layer.weight)
            else:  # inputs and outputs lie the other way in a transposed convolution
                is_transposed = isinstance(layer, nn.ConvTranspose2d)
                nn.init.kaiming_normal_(layer.weight, mode="fan_out" if is_transposed else "fan_in")
            assert layer.bias is not None
            nn.init.zeros_(layer.bias)


def set_output_bias(decoder: nn.Module, mean: Tensor, output_of: Callable[[Tensor], Tensor]) -> None:
    """Let the bias of the last layer put out `mean`; a convolution has a bias per channel, which puts out the mean over
    pixels.

    Shapes: `mean` (C, H, W).
    """
    kinds = nn.Linear | nn.Conv2d | nn.ConvTranspose2d
    last = [layer for layer in decoder.modules() if isinstance(layer, kinds)][-1]
    assert last.bias is not None
    if not isinstance(last, nn.Linear):
        mean = mean.mean((1, 2), keepdim=True)
    with torch.no_grad():
        last.bias.copy_(output_of(mean).flatten())


NETWORKS: dict[str, Callable[..., Network]] = {"mlp": MLP, "conv": Conv, "resnet": ResNet}
