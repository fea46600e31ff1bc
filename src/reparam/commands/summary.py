"""The headline numbers of the last run, and where to look next."""

from collections.abc import Mapping

from rich.console import Console
from rich.table import Column, Table

from reparam import track
from reparam.cards.card import CARD
from reparam.cards.export import ExportMetrics
from reparam.cards.model import ModelCard
from reparam.cards.results import Evaluated
from reparam.errors import UserError
from reparam.lineage import source_hash
from reparam.machine import git
from reparam.machine.versions import versions
from reparam.metrics import ERROR, HEADLINE, METRICS, VALIDATION
from reparam.paths import Paths
from reparam.redact import without_secrets

COLUMNS = ("validation", "test", "train")  # splits


def show(paths: Paths) -> None:
    """Print a short table from the stages' metric files.

    Raises: UserError if there is no project; MissingInputError, DamagedInputError; StaleInputError if they are of
    another model than the trained one.
    """
    if not any(path.exists() for path in (paths.params, paths.pipeline, paths.model)):
        raise UserError(
            f"{paths.root}: wanted a project, found neither params.yaml nor dvc.yaml; change to the folder of one, or "
            "make one here with `reparam init`"
        )
    model = ModelCard.read(paths.model / CARD, "train")
    evaluated = Evaluated.read(model, paths)
    parity = ExportMetrics.read_of(model, paths.export_metrics, "export")
    metrics, card = evaluated.metrics.values | parity.values, evaluated.card
    rows = {METRICS[name]: row for name in HEADLINE if (row := _spell(name, metrics, card.settings.split))}
    columns = [column for column in COLUMNS if any(column in row for row in rows.values())]
    table = Table(
        "",
        *(Column(name, no_wrap=True) for name in columns),
        "unit",
        title="± one standard error",
        title_justify="left",
    )
    for metric, row in rows.items():
        table.add_row(metric.title, *(row.get(column, "") for column in columns), metric.unit)
    console = Console()
    console.print(table)
    if "bce" in metrics and "kl" in metrics:  # of grey pixels: papers print this sum as a loss
        console.print(f"sum           cross-entropy + KL {metrics['bce'] + metrics['kl']:.2f} nats per image")
    error = max(parity.encoder_max_error, parity.decoder_max_error)
    console.print(f"ONNX parity   largest difference from torch {error:.1e}")
    database = paths.tracking_database
    uri = without_secrets(track.address(paths)).replace(str(database), paths.relative(database))
    console.print(f"report        {paths.relative(paths.report)}", soft_wrap=True)
    experiments = f"mlflow ui --backend-store-uri {uri}" if uri.startswith("sqlite:") else f"tracking: {uri}"
    console.print(f"experiments   {experiments}", soft_wrap=True)
    console.print(f"code          {_code(paths, model)}", soft_wrap=True)


def _code(paths: Paths, model: ModelCard) -> str:
    """Name the commit and the versions that are here, and say whether this code trained the model."""
    commit = git.ask(paths.root, "describe", "--always", "--dirty", "--exclude=*")
    names = [f"commit {commit}"] if commit else []
    found = versions()
    names += [f"{name} {found[name]}" for name in ("reparam", "torch", "python") if name in found]
    is_same = source_hash("train") == model.lineage.code_sha256
    return ", ".join(names) + ("" if is_same else "; the model was trained by other code")


def _spell(name: str, metrics: Mapping[str, float], split: str) -> dict[str, str]:
    """Write a metric and its error, by the split that it was measured on."""
    metric = METRICS[name]
    spelled = {}
    for column, key in {"validation": f"{name}{VALIDATION}", metric.split or split: name}.items():
        found = [metrics[part] for part in (key, f"{key}{ERROR}") if part in metrics]
        if found:
            spelled[column] = " ± ".join(f"{value:z{metric.form}}" for value in found)
    return spelled
