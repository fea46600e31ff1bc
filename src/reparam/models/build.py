"""From names in `params.yaml` to a model."""

import itertools

from torch import Tensor, nn

from reparam.config import ModelConfig
from reparam.models import networks
from reparam.models.autoencoder import Autoencoder
from reparam.models.hierarchical import HierarchicalVAE
from reparam.models.likelihoods import LIKELIHOODS
from reparam.models.linear import Linear
from reparam.models.vae import VAE

AnyModel = Autoencoder | VAE | HierarchicalVAE


def build_model(config: ModelConfig, shape: tuple[int, ...]) -> AnyModel:
    """Build a model with fresh weights from torch's generator. Shapes: `shape` is (C, H, W).

    Raises: ParamsError where the networks cannot have images of that size.
    """
    likelihood = LIKELIHOODS[config.likelihood](config)
    output_shape = (shape[0] * likelihood.outputs, *shape[1:])
    model: AnyModel
    if config.kind == "hierarchical":
        sizes = (config.latent, *config.upper)
        layers = _layers(config, sizes, shape)
        decoder = networks.decoder(config, config.latent, output_shape)
        model = HierarchicalVAE(layers, decoder, likelihood, sizes, shape)
    else:
        kind, outputs = (Autoencoder, config.latent) if config.kind == "autoencoder" else (VAE, 2 * config.latent)
        encoder = networks.encoder(config, shape, outputs)
        if kind is Autoencoder and config.code == "sigmoid":
            encoder.append(nn.Sigmoid())
        decoder = networks.decoder(config, config.latent, output_shape)
        model = kind(encoder, decoder, likelihood, shape)
    networks.initialise(model, config.init)
    return model


def start_at_mean(model: AnyModel, mean: Tensor) -> None:
    """Let the output bias alone put out the mean training image; convolutions, its mean per channel.

    Shapes: `mean` (C, H, W).

    Source: Burda et al. 2016, sec. 5.
    """
    networks.set_output_bias(model.decoder, mean, model.likelihood.output_of)


def _layers(
    config: ModelConfig, sizes: tuple[int, ...], shape: tuple[int, ...]
) -> tuple[list[nn.Module], list[nn.Module], list[nn.Module]]:
    """Build features, encoders and priors of a hierarchy."""
    between, pairs = config.upper_hidden, list(itertools.pairwise(sizes))
    features: list[nn.Module] = []
    encoders: list[nn.Module] = []
    if config.inference == "bottom_up":
        encoders.append(networks.encoder(config, shape, 2 * sizes[0]))
        encoders += [networks.mlp((below, *between, 2 * above), config) for below, above in pairs]
    else:
        body, width = networks.features(config, shape)
        for size in sizes:
            if features:
                body, width = networks.stack((width, *between), config), (width, *between)[-1]
            features.append(body)
            encoders.append(Linear(width, 2 * size))
    priors: list[nn.Module] = [networks.mlp((above, *reversed(between), 2 * below), config) for below, above in pairs]
    return features, encoders, priors
