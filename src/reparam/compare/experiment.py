"""The facts of one experiment, whatever it was read from."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from reparam.arrays import parse_arrays
from reparam.cards.evaluation import EvaluationCard

SAMPLES = "samples.png"
T = TypeVar("T")
Scores = Mapping[str, npt.NDArray[np.float64]]  # by metric, one value per image


@dataclass(frozen=True)
class Experiment:
    """One experiment; what could not be read is left out, and `notes` say so."""

    name: str  # short enough for the head of a column
    origin: str
    params: Mapping[str, Any]  # by dotted name
    metrics: Mapping[str, float]  # each with its standard error under `<name>_se`, where it has one
    conditions: Mapping[str, Any]  # data and settings of the metrics, as on the evaluation's card
    losses: Mapping[int, float]  # by epoch
    loss_split: str  # validation, or train where nothing was held out
    samples: bytes | None  # a PNG
    scores: Scores
    notes: tuple[str, ...]


def checked(card: EvaluationCard | None, name: str, parse: Callable[[bytes], T]) -> Callable[[bytes], T]:
    """Let `parse` raise a ValueError on a file that is not that of the evaluation with this card."""
    return lambda content: parse(card.check(name, content) if card else content)


def read_scores(content: bytes) -> Scores:
    """Read scores of images.

    Raises: ValueError.
    """
    return {name: np.asarray(values, np.float64) for name, values in parse_arrays(content).items()}
