"""What is known of one experiment, wherever it was read from."""

import ast
import io
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from reparam.redact import parameter_without_secrets

SCORES = "scores.npz"  # of the evaluation, beside its card
SAMPLES = "samples.png"
Scores = Mapping[str, npt.NDArray[np.float64]]  # by name, each (N,): one value per image


@dataclass(frozen=True)
class Experiment:
    """One experiment; what could not be read is left out, and `notes` say so."""

    name: str  # short enough for the head of a column
    origin: str
    params: Mapping[str, Any]  # by dotted name
    metrics: Mapping[str, float]  # each with its standard error under `<name>_se`, where it has one
    conditions: Mapping[str, Any]  # what the metrics were measured on, and the parameters of `evaluate`
    losses: Mapping[int, float]  # by epoch
    loss_split: str  # validation, or train where nothing was held out
    samples: bytes | None  # a PNG
    scores: Scores
    notes: tuple[str, ...]


def read_scores(content: bytes) -> Scores:
    """Read scores per image.

    Raises: ValueError.
    """
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as file:
            return {name: np.asarray(file[name], np.float64) for name in file.files}
    except (OSError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(str(error)) from None


def spread(values: Mapping[Any, Any], prefix: str = "") -> dict[str, Any]:
    """Name every value of nested mappings by its dotted path, without credentials."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            flat |= spread(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = parameter_without_secrets(value)
    return flat


def typed(value: Any) -> Any:
    """Turn text of MLflow's, which knows no other type, back into what params.yaml holds."""
    if isinstance(value, str):
        try:
            return ast.literal_eval(value)
        except (ValueError, SyntaxError):
            return value
    return value
