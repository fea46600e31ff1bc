"""Read the results in the working copy, and check that they are of this model and as they were written."""

from dataclasses import dataclass
from pathlib import Path
from typing import Self

from reparam.cards.card import MANIFEST, require_file
from reparam.cards.evaluation import EvaluationCard, EvaluationMetrics
from reparam.cards.export import ExportCard, ExportMetrics
from reparam.cards.model import ModelCard, TrainingMetrics
from reparam.errors import DamagedInputError
from reparam.files import require, rerun
from reparam.paths import Paths


def read_training(model: ModelCard, paths: Paths) -> TrainingMetrics:
    """Read the metrics of a training, and check that the table of epochs is of the same training.

    Raises: MissingInputError, DamagedInputError, StaleInputError.
    """
    metrics = TrainingMetrics.read_of(model, paths.training_metrics, "train")
    require(paths.history, "train")
    try:
        metrics.check_history(paths.history.read_bytes())
    except ValueError as error:
        raise DamagedInputError(f"{paths.history}: {error}; {rerun('train')}") from None
    return metrics


@dataclass(frozen=True)
class Evaluated:
    """What `evaluate` found."""

    card: EvaluationCard
    metrics: EvaluationMetrics

    @classmethod
    def read(cls, model: ModelCard, paths: Paths) -> Self:
        """Read the card and metrics of a model. Raises: MissingInputError, DamagedInputError, StaleInputError."""
        metrics = EvaluationMetrics.read_of(model, paths.evaluation_metrics, "evaluate")
        card = EvaluationCard.read_of(model, paths.evaluation_card, "evaluate")
        require_file(paths.evaluation_metrics.parent, paths.evaluation_metrics.name, card.files, "evaluate")
        return cls(card, metrics)

    def figures(self, paths: Paths) -> list[Path]:
        """Return the figures. Raises: MissingInputError, DamagedInputError."""
        names = [name for name in self.card.files if name.endswith(".png")]
        for name in names:
            require_file(paths.figures, name, self.card.files, "evaluate")
        return [paths.figures / name for name in names]

    def require_files(self, paths: Paths) -> None:
        """Check that all files are there. Raises: MissingInputError, DamagedInputError."""
        figures = {path.name for path in self.figures(paths)}
        for name in self.card.files.keys() - figures:
            require_file(paths.evaluation_card.parent, name, self.card.files, "evaluate")


@dataclass(frozen=True)
class Exported:
    """What `export` wrote."""

    card: ExportCard
    parity: ExportMetrics

    @classmethod
    def read(cls, model: ModelCard, paths: Paths) -> Self:
        """Read the manifest and metrics of a model, and check that all files are there.

        Raises: MissingInputError, DamagedInputError, StaleInputError.
        """
        parity = ExportMetrics.read_of(model, paths.export_metrics, "export")
        card = ExportCard.read_of(model, paths.onnx / MANIFEST, "export")
        for name in card.files:
            require_file(paths.onnx, name, card.files, "export")
        return cls(card, parity)
