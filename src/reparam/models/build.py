"""From names in `params.yaml` to a model."""

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from reparam.config.model import AutoencoderConfig, FsqConfig, HierarchicalConfig, ModelConfig, VqConfig
from reparam.errors import ParamsError
from reparam.models import networks
from reparam.models.autoencoder import Autoencoder
from reparam.models.codebook import Quantizer
from reparam.models.conditions import Condition, Label, Unconditional
from reparam.models.draw import Likelihood, Prior
from reparam.models.hierarchical import HierarchicalVAE
from reparam.models.latent import LatentModel
from reparam.models.likelihoods import LIKELIHOODS
from reparam.models.linear import Linear
from reparam.models.networks import NETWORKS, Network
from reparam.models.priors import PRIORS, Latents, StandardNormal
from reparam.models.quantized import Quantized
from reparam.models.vae import VAE

MOST_CODES = 1 << 16  # combinations of levels: they are exported as a table, and nobody trains so many


@dataclass(frozen=True)
class Parts:
    """The parts that every kind of model is built from."""

    network: Network
    likelihood: Likelihood
    latent_shape: tuple[int, ...]  # (D,), or (C, H, W) of latents that are an image
    shape: tuple[int, ...]  # (C, H, W)
    prior: Callable[[Latents], Prior]
    condition: Condition

    @property
    def latent(self) -> int:
        return math.prod(self.latent_shape)

    def decoder(self) -> nn.Sequential:
        """Build the network from latents to the parameters of the likelihood. Shapes: (N, D + E) -> (N, P*C, H, W)."""
        channels, *sides = self.shape
        return self.network.decoder(self.latent + self.condition.size, (channels * self.likelihood.outputs, *sides))


def build_model(config: ModelConfig, shape: tuple[int, ...], classes: int = 0) -> LatentModel:
    """Build a model with fresh weights from torch's generator. Shapes: `shape` is (C, H, W).

    `classes` is the number of labels of a conditional model.

    Raises: ParamsError if the networks cannot have images of that size, or the kind no such prior.
    """
    likelihood, prior = config.likelihood, config.prior
    if not (KINDS[config.kind].has_any_prior or PRIORS[prior].is_standard):
        wanted = " or ".join(repr(name) for name, found in PRIORS.items() if found.is_standard)
        raise ParamsError(f"params.yaml: model.prior: wanted {wanted} with model.kind {config.kind!r}, found {prior!r}")
    network = NETWORKS[config.network](*config.arguments(config.network))
    parts = Parts(
        network,
        LIKELIHOODS[likelihood](*config.arguments(likelihood)),
        _latent_shape(config, network, shape),
        shape,
        lambda latents: PRIORS[prior](latents, *config.arguments(prior)),
        _condition(config, classes, shape),
    )
    if config.condition != "none" and len(parts.latent_shape) > 1:
        raise ParamsError(
            f"params.yaml: model.condition: wanted 'none' where latents are an image, found {config.condition!r}"
            f"{_or_channels(network, 'null')}"
        )
    model = KINDS[config.kind].build(parts, *config.arguments(config.kind))
    networks.initialise(model, config.init)
    return model


def _condition(config: ModelConfig, classes: int, shape: tuple[int, ...]) -> Condition:
    return Label(classes, shape, config.label) if config.condition == "label" else Unconditional()


def _or_channels(network: Network, channels: str) -> str:
    """Say how else a mistake can be corrected, if the network has such a parameter."""
    return f"; or set {network.latents_by} to {channels}" if network.latents_by else ""


def _latent_shape(config: ModelConfig, network: Network, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the shape of the latents, as the network or else `latent` says."""
    of_network = network.latent_shape(shape)
    if of_network is None:
        if config.latent is None:
            raise ParamsError(
                f"params.yaml: model.latent: wanted a number of dimensions, because none follows from model.network "
                f"{config.network!r} with these parameters, found null"
            )
        return (config.latent,)
    if config.kind == "hierarchical":
        raise ParamsError(
            "params.yaml: model.kind: wanted another one where latents are an image, found 'hierarchical', whose "
            f"layers of latents are vectors{_or_channels(network, 'null')}"
        )
    if config.latent is not None:
        sizes, source = " x ".join(map(str, of_network)), network.latents_by or f"model.network {config.network!r}"
        raise ParamsError(
            f"params.yaml: model.latent: wanted null, because {sizes} latents follow from {source}, found "
            f"{config.latent}{_or_channels(network, 'null')}"
        )
    return of_network


def start_at_mean(model: LatentModel, mean: Tensor) -> None:
    """Let the output bias alone put out the mean training image; convolutions, its mean per channel.

    Shapes: `mean` (C, H, W).

    Source: Burda et al. 2016, sec. 5.
    """
    networks.set_output_bias(model.decoder, mean, model.likelihood.output_of)


def _autoencoder(parts: Parts, config: AutoencoderConfig) -> Autoencoder:
    encoder = parts.network.encoder(parts.shape, parts.latent)
    if config.code == "sigmoid":
        encoder.append(nn.Sigmoid())
    prior = StandardNormal(parts.latent)
    return Autoencoder(
        encoder, parts.decoder(), parts.likelihood, prior, parts.shape, parts.latent_shape, parts.condition
    )


def _vae(parts: Parts) -> VAE:
    encoder = parts.network.encoder(parts.shape, 2 * parts.latent)
    prior = parts.prior(Latents(parts.latent, parts.shape, encoder))
    return VAE(encoder, parts.decoder(), parts.likelihood, prior, parts.shape, parts.latent_shape, parts.condition)


def _hierarchical(parts: Parts, config: HierarchicalConfig) -> HierarchicalVAE:
    network, hidden = parts.network, config.upper_hidden
    sizes = (parts.latent, *config.upper)
    pairs = list(itertools.pairwise(sizes))
    features: list[nn.Module] = []
    encoders: list[nn.Module] = []
    if config.inference == "bottom_up":
        encoders.append(network.encoder(parts.shape, 2 * sizes[0]))
        encoders += [network.between((below, *hidden, 2 * above)) for below, above in pairs]
    else:
        body, width = network.features(parts.shape)
        for size in sizes:
            if features:
                body, width = network.stack((width, *hidden)), (width, *hidden)[-1]
            features.append(body)
            encoders.append(Linear(width, 2 * size))
    priors = [network.between((above, *reversed(hidden), 2 * below)) for below, above in pairs]
    return HierarchicalVAE(
        features, encoders, priors, parts.decoder(), parts.likelihood, sizes, parts.shape, parts.condition
    )


def _fsq(parts: Parts, config: FsqConfig) -> Quantized:
    count = math.prod(config.levels)
    if count > MOST_CODES:
        raise ParamsError(
            f"params.yaml: model.fsq.levels: wanted at most {MOST_CODES:,} combinations, found {count:,}; take fewer "
            "or lower levels"
        )
    quantizer = _quantizers("fsq").FiniteScalars(config)
    return _quantized(parts, quantizer, "the number of model.fsq.levels")


def _vq(parts: Parts, config: VqConfig) -> Quantized:
    return _quantized(parts, _quantizers("vq").LearnedCodes(config), "model.vq.dimensions")


def _quantizers(kind: str) -> Any:
    """Import the module that only these kinds need, which takes a second.

    Raises: ParamsError if it is not installed.
    """
    try:
        from reparam.models import quantizers
    except ModuleNotFoundError as error:
        raise ParamsError(
            f"params.yaml: model.kind: wanted the package vector-quantize-pytorch with {kind!r}, found no "
            f"{error.name}; run `pip install 'reparam[discrete]'`"
        ) from None
    return quantizers


def _quantized(parts: Parts, quantizer: Quantizer, name: str) -> Quantized:
    """Build a model with a code at each pixel of an image of latents, or with several codes in a row."""
    channels, *pixels = parts.latent_shape
    if pixels and channels != quantizer.dimensions:
        raise ParamsError(
            f"params.yaml: model.kind: wanted latents of {quantizer.dimensions} channels ({name}), because the code at "
            f"each pixel has so many numbers, found {channels}{_or_channels(parts.network, str(quantizer.dimensions))}"
        )
    if parts.latent % quantizer.dimensions:
        raise ParamsError(
            f"params.yaml: model.latent: wanted a multiple of {quantizer.dimensions} ({name}), because each code has "
            f"this many numbers, found {parts.latent}"
        )
    return Quantized(
        parts.network.encoder(parts.shape, parts.latent),
        parts.decoder(),
        parts.likelihood,
        quantizer,
        parts.shape,
        parts.latent_shape,
        parts.condition,
    )


@dataclass(frozen=True)
class Kind:
    """A kind of model, and the choices that it goes with."""

    title: str  # on pages
    build: Callable[..., LatentModel]  # from `Parts` and, if it has parameters, their block
    layers: tuple[float, float]  # of latents with a posterior: at least, at most
    has_any_prior: bool = False  # otherwise only N(0, I)
    has_smooth_code: bool = True  # whether the code changes smoothly with the image: not entries of a codebook


KINDS: dict[str, Kind] = {
    "autoencoder": Kind("Autoencoder", _autoencoder, (0, 0)),
    "vae": Kind("Variational autoencoder", _vae, (1, 1), has_any_prior=True),
    "hierarchical": Kind("Hierarchical variational autoencoder", _hierarchical, (2, math.inf)),
    "fsq": Kind("Autoencoder with finite scalar quantization", _fsq, (0, 0), has_smooth_code=False),
    "vq": Kind("Vector-quantized autoencoder", _vq, (0, 0), has_smooth_code=False),
}
