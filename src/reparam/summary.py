"""The headline numbers of the last run, and where to look next."""

import os

from rich.console import Console
from rich.table import Table

from reparam.files import read_json
from reparam.paths import Paths
from reparam.redact import without_secrets


def show(paths: Paths) -> None:
    """Print a short table from the stages' metric files.

    Raises: MissingInputError.
    """
    metrics = read_json(paths.evaluation_metrics, "evaluate")
    split = read_json(paths.evaluation_card, "evaluate", ("split",))["split"]
    parity = read_json(paths.export_metrics, "export", ("encoder_max_error", "decoder_max_error"))
    table = Table("", "nats per image", "± standard error", title=f"{split.capitalize()} split", title_justify="left")
    for name, title in {
        "elbo": "ELBO",
        "reconstruction": "reconstruction",
        "bce": "cross-entropy",
        "kl": "KL",
        "nll": "NLL",
        "bits_per_dim": "bits per dimension",
    }.items():
        if name in metrics:
            table.add_row(title, f"{metrics[name]:.2f}", f"{metrics[f'{name}_se']:.2f}")
    console = Console()
    console.print(table)
    error = max(parity["encoder_max_error"], parity["decoder_max_error"])
    console.print(f"ONNX parity   largest difference from torch {error:.1e}")
    uri = without_secrets(
        os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{paths.relative(paths.tracking_database)}"
    )
    console.print(f"report        {paths.relative(paths.report)}", soft_wrap=True)
    experiments = f"mlflow ui --backend-store-uri {uri}" if uri.startswith("sqlite:") else f"tracking: {uri}"
    console.print(f"experiments   {experiments}", soft_wrap=True)
