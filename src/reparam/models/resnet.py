"""Layers of a residual network: down by strided convolutions, up by repeated pixels and convolutions."""

import itertools
import math

from torch import Tensor, nn

from reparam.config.model import ResnetConfig


class Stem(nn.Conv2d):
    """A convolution of images, laid out channel by channel.

    If the channels of a pixel lie side by side, as in images from apps, torch's group norm loses digits: outputs of a
    trained network were off by 1e-4 instead of 3e-6. An exported graph may not be off by so much.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Shapes: (B, inputs, H, W) -> (B, outputs, H, W)."""
        return super().forward(x.contiguous())


class Residual(nn.Module):
    """Add to an image the output of two convolutions, each after norm and activation.

    Source: He et al. 2016 (identity mappings), fig. 4 (e); Esser et al. 2021, table 7, for norm and activation.
    """

    def __init__(self, inputs: int, outputs: int, groups: int) -> None:
        super().__init__()
        self.change = nn.Sequential(
            nn.GroupNorm(groups, inputs),
            nn.SiLU(),
            nn.Conv2d(inputs, outputs, 3, padding=1),
            nn.GroupNorm(groups, outputs),
            nn.SiLU(),
            nn.Conv2d(outputs, outputs, 3, padding=1),
        )
        self.skip = nn.Identity() if inputs == outputs else nn.Conv2d(inputs, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Shapes: (B, inputs, H, W) -> (B, outputs, H, W)."""
        found: Tensor = self.skip(x) + self.change(x)
        return found


class Attention(nn.Module):
    """Add to each pixel a mean of all pixels, weighted by how much they have to do with it; one head.

    Source: Wang et al. 2018 (non-local networks), sec. 3; Esser et al. 2021, table 7.
    """

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(groups, channels)
        self.ask = nn.Conv2d(channels, 3 * channels, 1)  # queries, keys and values
        self.put = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Shapes: (B, C, H, W), unchanged."""
        query, key, value = self.ask(self.norm(x)).flatten(2).chunk(3, 1)  # (B, C, H*W) each
        share = (query.mT @ key / math.sqrt(x.shape[1])).softmax(-1)  # (B, H*W, H*W)
        found: Tensor = x + self.put((value @ share.mT).view(x.shape))
        return found


def way_down(config: ResnetConfig, colours: int) -> nn.Sequential:
    """Build the layers from an image to its features. Shapes: (B, colours, H, W) -> (B, channels[-1], h, w)."""
    channels = config.channels
    layers: list[nn.Module] = [Stem(colours, channels[0], 3, padding=1), *_blocks(config, channels[0], channels[0])]
    for inputs, outputs in itertools.pairwise(channels):
        layers += [nn.Conv2d(inputs, inputs, 3, stride=2, padding=1), *_blocks(config, inputs, outputs)]
    return nn.Sequential(*layers, *_lowest(config), *_activated(config, channels[-1]))


def way_up(config: ResnetConfig, outputs: int) -> nn.Sequential:
    """Build the layers from features to an image. Shapes: (B, channels[-1], h, w) -> (B, outputs, H, W)."""
    widths = tuple(reversed(config.channels))
    layers: list[nn.Module] = [*_lowest(config), *_blocks(config, widths[0], widths[0])]
    for wide, narrow in itertools.pairwise(widths):
        # Not by a transposed convolution, which covers some pixels more often than others. Source: Odena et al. 2016.
        layers += [nn.Upsample(scale_factor=2.0), nn.Conv2d(wide, wide, 3, padding=1), *_blocks(config, wide, narrow)]
    return nn.Sequential(*layers, *_activated(config, widths[-1]), nn.Conv2d(widths[-1], outputs, 3, padding=1))


def _blocks(config: ResnetConfig, inputs: int, outputs: int) -> list[nn.Module]:
    widths = (inputs, *[outputs] * config.depth)
    return [Residual(*pair, config.groups) for pair in itertools.pairwise(widths)]


def _lowest(config: ResnetConfig) -> list[nn.Module]:
    width, groups = config.channels[-1], config.groups
    return [Attention(width, groups), Residual(width, width, groups)] if config.attention else []


def _activated(config: ResnetConfig, width: int) -> list[nn.Module]:
    return [nn.GroupNorm(config.groups, width), nn.SiLU()]
