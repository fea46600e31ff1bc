"""The card of a trained model: its parameters, the data it saw, and its lineage."""

from pathlib import Path
from typing import Any

from reparam.files import read_json, write_json

CARD = "card.json"


def save_card(directory: Path, card: dict[str, Any]) -> None:
    """Write the model card; `load_model` and export read its `model` (the params section), `data` and `lineage`."""
    write_json(directory / CARD, card)


def read_card(directory: Path) -> Any:
    """Read the model card.

    Raises: MissingInputError, DamagedInputError.
    """
    return read_json(
        directory / CARD, "train", ("model", "objective", "train", "data", "best_epoch", "epochs", "lineage")
    )
