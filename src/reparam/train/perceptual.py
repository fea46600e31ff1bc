"""The perceptual loss LPIPS, which is added to an objective; the user provides the weights of its network."""

import math
import warnings
from pathlib import Path
from typing import Any, Self

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from reparam.config.objective import PerceptualConfig
from reparam.data.pixels import Pixels
from reparam.errors import ParamsError
from reparam.models.draw import in_full
from reparam.runtime import random_stream

WHERE = "params.yaml: objective.perceptual"


class Perceptual:
    """The distance of images by features of a network that is not trained. It is no part of a loss's weights.

    Source: Zhang et al. 2018, eq. 1; Rombach et al. 2022, app. G, for its weight.
    """

    def __init__(self, network: Any, weight: float, pixels: Pixels) -> None:
        self.network = network.eval().requires_grad_(False).to(pixels.shift.device)
        self.weight = weight
        self.pixels = pixels

    @classmethod
    def load(cls, config: PerceptualConfig, pixels: Pixels, shape: tuple[int, ...]) -> Self:
        """Read the network's weights; it must take images of this shape, (C, H, W).

        Raises: ParamsError.
        """
        # Otherwise its first weights, soon replaced, would change the draws of training.
        with random_stream(0, "perceptual"):
            network = _network(config)
        try:
            network(torch.zeros(1, 3, *shape[1:]), torch.zeros(1, 3, *shape[1:]))
        except RuntimeError:
            raise ParamsError(
                f"{WHERE}.network: wanted images that {config.network!r} can take, found {shape[1]}x{shape[2]} "
                "pixels; raise preprocess.image_size, or set objective.perceptual.weight to 0.0"
            ) from None
        return cls(network, config.weight, pixels)

    def __deepcopy__(self, _memo: Any) -> "Perceptual":
        return self  # it never changes

    def __call__(self, decoded: Tensor, target: Tensor) -> Tensor:
        """Return the weighted distance. Shapes: (K, B, C, H, W), (B, C, H, W) -> (K, B)."""
        samples, images = decoded.shape[:2]
        pairs = (self._seen(values).flatten(0, 1) for values in (decoded, target.expand_as(decoded)))
        distance = in_full(self.network(*pairs)).view(samples, images)
        return self.weight * math.prod(target.shape[1:]) * distance

    def _seen(self, values: Tensor) -> Tensor:
        """Scale pixels to [-1, 1], in three channels. Shapes: (..., C, H, W) -> (..., 3, H, W)."""
        # Not cut to that range: beyond it there would be no gradient.
        images = 2 * (values * self.pixels.scale + self.pixels.shift) - 1
        return images.expand(*images.shape[:-3], 3, *images.shape[-2:])


def _network(config: PerceptualConfig) -> Any:
    try:
        import lpips  # here, because it is an extra
    except ImportError:
        raise ParamsError(
            f"{WHERE}.weight: needs lpips; run `pip install 'reparam[perceptual]'`, or set it to 0.0"
        ) from None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # torchvision warns of how lpips calls it
        # Random weights, because others would be downloaded.
        network = lpips.LPIPS(net=config.network, pnet_rand=True, verbose=False)
    if config.weights is None:
        raise ParamsError(f"{WHERE}.weights: wanted a file of weights with a weight of {config.weight}, found null")
    try:
        found = load_file(Path(config.weights))
    except (OSError, SafetensorError) as error:
        raise ParamsError(f"{WHERE}.weights: wanted a .safetensors file, found {config.weights!r}: {error}") from None
    for name, weight in network.net.named_parameters():  # slice2.5.weight is what torchvision calls features.5.weight
        key = f"features.{name.partition('.')[2]}"
        if key not in found or found[key].shape != weight.shape:
            raise ParamsError(
                f"{WHERE}.weights: wanted the weights of {config.network!r} under torchvision's names, found "
                f"{config.weights!r} without {key} of shape {tuple(weight.shape)}"
            )
        weight.data.copy_(found[key])
    return network
