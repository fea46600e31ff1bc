"""The files of a trained model: weights as safetensors, all else on its JSON card. Nothing is ever unpickled."""

from pathlib import Path

import torch
from safetensors.torch import load_file, save

from reparam.cards.card import CARD
from reparam.cards.model import ModelCard
from reparam.errors import DamagedInputError
from reparam.files import require, rerun, sha256
from reparam.models.build import AnyModel, build_model

WEIGHTS = "weights.safetensors"


def save_weights(directory: Path, weights: dict[str, torch.Tensor]) -> str:
    """Write the weights of a model and return their SHA-256."""
    # Serialized here, because safetensors' own writer makes a file that only its owner may read.
    (directory / WEIGHTS).write_bytes(save({name: tensor.contiguous().cpu() for name, tensor in weights.items()}))
    return sha256(directory / WEIGHTS)


def load_model(directory: Path, device: torch.device) -> AnyModel:
    """Rebuild a trained model from its card and weights, ready for evaluation.

    Raises: MissingInputError, DamagedInputError where the weights are not those that the card names.
    """
    card = ModelCard.read(directory / CARD, "train")
    path = directory / WEIGHTS
    require(path, made_by="train")
    wanted, found = card.lineage.weights_sha256, sha256(path)
    if found != wanted:
        raise DamagedInputError(f"{path}: wanted SHA-256 {wanted} (as in {CARD}), found {found}; {rerun('train')}")
    model = build_model(card.model, card.data.shape)
    try:
        model.load_state_dict(load_file(path))
    except RuntimeError as error:
        raise DamagedInputError(f"{path}: not the weights of the model on {CARD}: {error}; {rerun('train')}") from None
    return model.to(device).eval()
