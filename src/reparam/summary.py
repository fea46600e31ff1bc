"""The headline numbers of the last run, and where to look next."""

import os

from rich.console import Console
from rich.table import Table

from reparam.cards.card import CARD
from reparam.cards.evaluation import EvaluationCard, EvaluationMetrics
from reparam.cards.export import ExportMetrics
from reparam.cards.model import ModelCard
from reparam.metrics import ERROR, HEADLINE, METRICS
from reparam.paths import Paths
from reparam.redact import without_secrets


def show(paths: Paths) -> None:
    """Print a short table from the stages' metric files.

    Raises: MissingInputError, DamagedInputError; StaleInputError where they are of another model than the trained one.
    """
    model = ModelCard.read(paths.model / CARD, "train")
    metrics = EvaluationMetrics.read_of(model, paths.evaluation_metrics, "evaluate").values
    split = EvaluationCard.read_of(model, paths.evaluation_card, "evaluate").settings.split
    parity = ExportMetrics.read_of(model, paths.export_metrics, "export")
    metrics |= parity.values
    title = f"{split.capitalize()} split"
    table = Table("", "value", "± standard error", "unit", title=title, title_justify="left")
    for name in HEADLINE:
        if name in metrics:
            metric = METRICS[name]
            found = (metrics.get(key) for key in (name, f"{name}{ERROR}"))
            spelled = ("" if value is None else f"{value:z{metric.form}}" for value in found)
            table.add_row(metric.title, *spelled, metric.unit)
    console = Console()
    console.print(table)
    error = max(parity.encoder_max_error, parity.decoder_max_error)
    console.print(f"ONNX parity   largest difference from torch {error:.1e}")
    uri = without_secrets(
        os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{paths.relative(paths.tracking_database)}"
    )
    console.print(f"report        {paths.relative(paths.report)}", soft_wrap=True)
    experiments = f"mlflow ui --backend-store-uri {uri}" if uri.startswith("sqlite:") else f"tracking: {uri}"
    console.print(f"experiments   {experiments}", soft_wrap=True)
