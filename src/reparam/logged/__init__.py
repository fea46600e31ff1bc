"""Log to MLflow the files that stages wrote: when a stage ends, or later for results of `dvc pull`."""

from collections.abc import Mapping
from pathlib import Path

from reparam.cards.card import CARD, MANIFEST
from reparam.cards.data import DataCard, DataMetrics, DownloadCard
from reparam.cards.evaluation import EvaluationMetrics
from reparam.cards.export import ExportCard, ExportMetrics
from reparam.cards.model import ModelCard, TrainedParams, TrainingMetrics
from reparam.cards.results import Evaluated, Exported, read_training
from reparam.config import Config, flatten
from reparam.errors import DamagedInputError, StaleInputError, TrackingError
from reparam.files import dvc_hash, parse_table, require, rerun
from reparam.paths import Paths
from reparam.track import OFF, PARAMS_TAG, WEIGHTS_TAG, Run, Tracker, address


def download(run: Run, config: Config, card: DownloadCard, paths: Paths) -> None:
    """Log which files were delivered."""
    run.log_params(flatten(config.download, "download."))
    sizes = [file.bytes for file in card.files.values()]
    run.log_metrics({"files": len(sizes), "bytes": sum(sizes)})
    run.log_files([paths.raw / MANIFEST])


def preprocess(run: Run, config: Config, data: DataCard, data_hash: str, paths: Paths) -> None:
    """Log the processed data."""
    run.log_params(flatten(config.preprocess, "preprocess."))
    run.log_metrics(dict(DataMetrics.read(paths.data_metrics, "preprocess")))
    run.log_dataset(name=data.source, digest=data_hash, context="preprocess", shape=data.shape, counts=data.counts)
    run.log_files([paths.processed / CARD])


def training_begins(run: Run, config: Config, data: DataCard, data_hash: str) -> None:
    """Log what determines a training."""
    run.log_dataset(name=data.source, digest=data_hash, context="train", shape=data.shape, counts=data.counts)
    for section in ("download", "preprocess", "model", "objective", "train"):
        run.log_params(flatten(getattr(config, section), f"{section}."))


def epoch(run: Run, metrics: Mapping[str, float], number: int) -> None:
    """Log the metrics of an epoch. MLflow groups charts by what is before a slash: `train_loss` is `train/loss`."""
    grouped = {}
    for name, value in metrics.items():
        split, _, term = name.partition("_")
        grouped[f"{split}/{term}" if split in {"train", "validation"} else name] = value
    run.log_metrics(grouped, number)


def training(run: Run, model: ModelCard, paths: Paths) -> None:
    """Log a trained model; by its weights, later stages find this run."""
    run.set_tags({WEIGHTS_TAG: model.lineage.weights_sha256, PARAMS_TAG: model.lineage.params_sha256})
    run.log_metrics(TrainingMetrics.read_of(model, paths.training_metrics, "train").values)
    run.log_files([*sorted(paths.model.iterdir()), paths.history])


def evaluation(run: Run, model: ModelCard, paths: Paths) -> None:
    """Log metrics, KL of each latent, and figures."""
    run.log_and_share(EvaluationMetrics.read_of(model, paths.evaluation_metrics, "evaluate").values, "evaluation")
    rows = _rows(paths.latents, "evaluate", "dimension")
    known = {f"{row['dimension']:.0f}": row["kl"] for row in rows if "kl" in row}  # a learned prior has none
    run.log_metrics(known, group="latent_kl")
    files = (paths.evaluation_card, paths.evaluation_metrics, paths.scores, paths.latents)
    run.log_files([*files, *sorted(paths.figures.iterdir())], "evaluation")


def export(run: Run, model: ModelCard, paths: Paths) -> None:
    """Log parity, and register the exported model."""
    card = ExportCard.read_of(model, paths.onnx / MANIFEST, "export")
    run.log_and_share(ExportMetrics.read_of(model, paths.export_metrics, "export").values, "export")
    run.log_files([paths.export_metrics], "export")
    run.log_model(paths.onnx, card.source)


def report(run: Run, _: ModelCard, paths: Paths) -> None:
    """Log the page, and that of the times where there is one."""
    require(paths.report, made_by="report")
    run.log_files([path for path in (paths.report, paths.speed) if path.exists()], "report")


def everything(config: Config, paths: Paths, tracker: Tracker) -> bool:
    """Log the results that are there, as if they were made here; return False where the store has their training.

    Raises: MissingInputError, DamagedInputError, StaleInputError, TrackingError.
    """
    if address(paths) == OFF:
        raise TrackingError(f"MLFLOW_TRACKING_URI is {OFF!r}; name the store to log to")
    model = ModelCard.read(paths.model / CARD, "train")
    data = DataCard.read(paths.processed / CARD, "preprocess")
    raw = DownloadCard.read(paths.raw / MANIFEST, "download")
    if TrainedParams.of(config).hash != model.hash:
        raise StaleInputError(
            "params.yaml: model, objective, train: wanted the parameters of the model in models/vae, found others; run "
            "`git checkout` and `dvc pull` of the same revision first"
        )
    _require_results(model, paths)
    history = _rows(paths.history, "train", "epoch")
    if tracker.has_training(model.lineage.weights_sha256, model.lineage.params_sha256):
        return False
    with tracker.data_run("download", dvc_hash(paths.raw)) as run:
        download(run, config, raw, paths)
    with tracker.data_run("preprocess", model.lineage.data) as run:
        preprocess(run, config, data, model.lineage.data, paths)
    with tracker.training_run(model.lineage.data, name=title(config, data)) as run:
        training_begins(run, config, data, model.lineage.data)
        for row in history:
            epoch(run, row, int(row["epoch"]))
        training(run, model, paths)
    for stage, log in {"evaluate": evaluation, "export": export, "report": report}.items():
        with tracker.child_run(stage, dict(model.lineage)) as run:
            run.log_params(flatten(getattr(config, stage), f"{stage}."))
            log(run, model, paths)
    return True


def _require_results(model: ModelCard, paths: Paths) -> None:
    """Refuse to log only a part: a second try would find the training, and not log the rest."""
    DataMetrics.read(paths.data_metrics, "preprocess")
    read_training(model, paths)
    Evaluated.read(model, paths).require_files(paths)
    Exported.read(model, paths)
    require(paths.report, made_by="report")


def title(config: Config, data: DataCard) -> str:
    """Name a training that is no experiment of DVC."""
    return f"{config.model.kind} {config.model.network} {data.source}"


def _rows(path: Path, made_by: str, *columns: str) -> list[dict[str, float]]:
    """Read a table that has these columns. Raises: MissingInputError, DamagedInputError."""
    require(path, made_by)
    try:
        return parse_table(path.read_text(encoding="utf-8"), *columns)
    except ValueError as error:
        raise DamagedInputError(
            f"{path}: wanted a table of numbers, found a damaged one: {error}; {rerun(made_by)}"
        ) from None
