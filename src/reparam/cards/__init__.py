"""The JSON cards that stages leave for each other: what each holds, once.

A card that does not fit its class is refused with its path, the field, what was wanted and what was found. What is in a
card is decided where it is made: no field has a value of its own here, but for nothing.
"""

from reparam.cards.card import CARD, MANIFEST, Card, FileFacts
from reparam.cards.data import (
    Binarization,
    DataCard,
    DataMetrics,
    DownloadCard,
    ImageFacts,
    Scaling,
    ScalingKind,
    SplitFacts,
    SplitName,
)
from reparam.cards.evaluation import Details, EvaluationCard, EvaluationLineage, EvaluationMetrics, Tiles
from reparam.cards.export import ExportCard, ExportedImage, ExportedModel, ExportLineage, ExportMetrics, GreyPixels
from reparam.cards.model import SHORT, ModelCard, Result, TrainedParams, TrainingLineage, TrainingMetrics

__all__ = [
    "CARD",
    "MANIFEST",
    "SHORT",
    "Binarization",
    "Card",
    "DataCard",
    "DataMetrics",
    "Details",
    "DownloadCard",
    "EvaluationCard",
    "EvaluationLineage",
    "EvaluationMetrics",
    "ExportCard",
    "ExportLineage",
    "ExportMetrics",
    "ExportedImage",
    "ExportedModel",
    "FileFacts",
    "GreyPixels",
    "ImageFacts",
    "ModelCard",
    "Result",
    "Scaling",
    "ScalingKind",
    "SplitFacts",
    "SplitName",
    "Tiles",
    "TrainedParams",
    "TrainingLineage",
    "TrainingMetrics",
]
