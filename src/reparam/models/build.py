"""From names in `params.yaml` to a model."""

from reparam.config import ModelConfig
from reparam.models.likelihoods import LIKELIHOODS
from reparam.models.networks import ACTIVATIONS, mlp
from reparam.models.vae import VAE


def build_model(config: ModelConfig, shape: tuple[int, ...]) -> VAE:
    """Build a model with fresh weights from torch's generator. Shapes: `shape` is (C, H, W)."""
    pixels = shape[0] * shape[1] * shape[2]
    activation = ACTIVATIONS[config.activation]
    encoder = mlp((pixels, *config.hidden, 2 * config.latent), activation)
    decoder = mlp((config.latent, *reversed(config.hidden), pixels), activation)
    return VAE(encoder, decoder, LIKELIHOODS[config.likelihood](), shape)
