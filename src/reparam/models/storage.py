"""The files of a trained model: weights as safetensors, all else on its JSON card. Nothing is ever unpickled."""

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

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


def load_model(directory: Path, device: torch.device) -> tuple[AnyModel, ModelCard]:
    """Rebuild a trained model from its card and weights, ready for evaluation; also return the card.

    Raises: MissingInputError, DamagedInputError.
    """
    card, weights = read_model(directory)
    return rebuild(card, weights, device), card


def rebuild(card: ModelCard, weights: Mapping[str, Tensor], device: torch.device) -> AnyModel:
    """Make a model of what `read_model` read."""
    model = build_model(card.model, card.data.shape, len(card.classes))
    model.load_state_dict(weights)
    return model.settled().to(device)


def read_model(directory: Path) -> tuple[ModelCard, dict[str, Tensor]]:
    """Read the card and the weights of a trained model.

    Raises: MissingInputError, DamagedInputError if the weights are not those that the card names.
    """
    card = ModelCard.read(directory / CARD, "train")
    if card.hash != card.lineage.params_sha256:
        raise DamagedInputError(
            f"{directory / CARD}: lineage.params_sha256: wanted the hash of the parameters on the card, {card.hash}, "
            f"found {card.lineage.params_sha256}; {rerun('train')}"
        )
    path = directory / WEIGHTS
    require(path, made_by="train")
    wanted, found = card.lineage.weights_sha256, sha256(path)
    if found != wanted:
        raise DamagedInputError(f"{path}: wanted SHA-256 {wanted} (as in {CARD}), found {found}; {rerun('train')}")
    try:
        weights = load_file(path)
    except SafetensorError as error:
        raise DamagedInputError(f"{path}: {error}; {rerun('train')}") from None
    with torch.device("meta"):  # which takes no memory, whatever the card says
        known = build_model(card.model, card.data.shape, len(card.classes)).state_dict()
    for name in sorted(known.keys() | weights.keys()):
        problem = _compare(known.get(name), weights.get(name))
        if problem:
            raise DamagedInputError(
                f"{path}: {name}: {problem}; not the weights of the model on {CARD}; {rerun('train')}"
            )
    return card, weights


def _compare(wanted: Tensor | None, found: Tensor | None) -> str | None:
    """Describe what is wrong with a weight of a file."""
    if wanted is None or found is None:
        return "wanted none, found one" if wanted is None else "wanted one, found none"
    if (wanted.shape, wanted.dtype) != (found.shape, found.dtype):
        return f"wanted {tuple(wanted.shape)} {wanted.dtype}, found {tuple(found.shape)} {found.dtype}"
    return None if found.isfinite().all() else "wanted finite numbers, found others"
