"""What is known of one experiment, wherever it was read from."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from reparam.redact import parameter_without_secrets

# Settings of `evaluate` that metrics depend on: by these paths in its card, as `evaluate.<path>` in MLflow.
COUNTS = (
    "nll_samples",
    "annealing.images",
    "annealing.chains",
    "annealing.steps",
    "generated.images",
    "generated.components",
    "neighbours",
)
SETTINGS = ("split", "outliers", *COUNTS)


@dataclass(frozen=True)
class Experiment:
    """One experiment; what could not be read is left out, and `notes` say so."""

    name: str  # short enough for the head of a column
    origin: str
    params: Mapping[str, Any]  # by dotted name
    metrics: Mapping[str, float]  # each with its standard error under `<name>_se`, where it has one
    conditions: Mapping[str, Any]  # what the metrics were measured on, and how
    losses: Mapping[int, float]  # by epoch
    loss_split: str  # validation, or train where nothing was held out
    samples: bytes | None  # a PNG
    notes: tuple[str, ...]


def spread(values: Mapping[Any, Any], prefix: str = "") -> dict[str, Any]:
    """Name every value of nested mappings by its dotted path, without credentials."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        flat |= (
            spread(value, f"{prefix}{name}.")
            if isinstance(value, Mapping)
            else {f"{prefix}{name}": parameter_without_secrets(value)}
        )
    return flat
