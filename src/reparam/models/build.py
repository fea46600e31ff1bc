"""From names in `params.yaml` to a model."""

import itertools
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn

from reparam.config.model import AutoencoderConfig, HierarchicalConfig, ModelConfig
from reparam.errors import ParamsError
from reparam.models import networks
from reparam.models.autoencoder import Autoencoder
from reparam.models.conditions import Condition, Label, Unconditional
from reparam.models.draw import Likelihood, Prior
from reparam.models.hierarchical import HierarchicalVAE
from reparam.models.likelihoods import LIKELIHOODS
from reparam.models.linear import Linear
from reparam.models.networks import NETWORKS, Network
from reparam.models.priors import PRIORS, Latents, StandardNormal
from reparam.models.vae import VAE

AnyModel = Autoencoder | VAE | HierarchicalVAE


@dataclass(frozen=True)
class Parts:
    """What every kind of model is made of."""

    network: Network
    likelihood: Likelihood
    latent: int
    shape: tuple[int, ...]  # (C, H, W)
    prior: Callable[[Latents], Prior]
    condition: Condition

    def decoder(self) -> nn.Sequential:
        """Build the network from latents to what the likelihood reads. Shapes: (N, D + E) -> (N, P*C, H, W)."""
        channels, *sides = self.shape
        return self.network.decoder(self.latent + self.condition.size, (channels * self.likelihood.outputs, *sides))


def build_model(config: ModelConfig, shape: tuple[int, ...], classes: int = 0) -> AnyModel:
    """Build a model with fresh weights from torch's generator. Shapes: `shape` is (C, H, W).

    `classes` are those of images whose labels it is told.

    Raises: ParamsError where the networks cannot have images of that size, or the kind no such prior.
    """
    network, likelihood, prior = config.network, config.likelihood, config.prior
    if prior != "standard" and config.kind != "vae":
        raise ParamsError(
            f"params.yaml: model.prior: wanted 'standard' with model.kind {config.kind!r}, found {prior!r}"
        )
    parts = Parts(
        NETWORKS[network](*config.arguments(network)),
        LIKELIHOODS[likelihood](*config.arguments(likelihood)),
        config.latent,
        shape,
        lambda latents: PRIORS[prior](latents, *config.arguments(prior)),
        Label(classes, shape, config.label) if config.condition == "label" else Unconditional(),
    )
    model = KINDS[config.kind](parts, *config.arguments(config.kind))
    if config.condition != "none" and not hasattr(model, "condition"):
        raise ParamsError(
            f"params.yaml: model.condition: wanted 'none' with model.kind {config.kind!r}, found {config.condition!r}"
        )
    networks.initialise(model, config.init)
    return model


def start_at_mean(model: AnyModel, mean: Tensor) -> None:
    """Let the output bias alone put out the mean training image; convolutions, its mean per channel.

    Shapes: `mean` (C, H, W).

    Source: Burda et al. 2016, sec. 5.
    """
    networks.set_output_bias(model.decoder, mean, model.likelihood.output_of)


def _autoencoder(parts: Parts, config: AutoencoderConfig) -> Autoencoder:
    encoder = parts.network.encoder(parts.shape, parts.latent)
    if config.code == "sigmoid":
        encoder.append(nn.Sigmoid())
    return Autoencoder(
        encoder, parts.decoder(), parts.likelihood, StandardNormal(parts.latent), parts.shape, parts.condition
    )


def _vae(parts: Parts) -> VAE:
    encoder = parts.network.encoder(parts.shape, 2 * parts.latent)
    prior = parts.prior(Latents(parts.latent, parts.shape, encoder))
    return VAE(encoder, parts.decoder(), parts.likelihood, prior, parts.shape, parts.condition)


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
    layers = (features, encoders, priors)
    return HierarchicalVAE(layers, parts.decoder(), parts.likelihood, sizes, parts.shape, parts.condition)


KINDS: dict[str, Callable[..., AnyModel]] = {"autoencoder": _autoencoder, "vae": _vae, "hierarchical": _hierarchical}
