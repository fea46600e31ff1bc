"""data/processed, models/vae, params `evaluate` -> reports/evaluation: metrics and figures of a split."""

import csv
import logging
import math
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import torch

from reparam import logged, track
from reparam.cards.card import FileFacts, Files
from reparam.cards.data import DataCard, SplitName
from reparam.cards.evaluation import EvaluationCard, EvaluationLineage, EvaluationMetrics, Tiles
from reparam.cards.model import Metrics, ModelCard
from reparam.config import Config, EvaluateConfig, flatten
from reparam.data import store
from reparam.data.pixels import Pixels
from reparam.distributed import joined
from reparam.errors import ParamsError
from reparam.evaluate import gallery
from reparam.evaluate.findings import Findings
from reparam.evaluate.measures import measure
from reparam.evaluate.outliers import read_outliers
from reparam.evaluate.samplers import SAMPLERS
from reparam.evaluate.subject import Data, Subject
from reparam.figures.curves import plot_outliers
from reparam.figures.style import png
from reparam.files import whole_directory, whole_file
from reparam.lineage import source_hash
from reparam.metrics import HEADLINE
from reparam.models.storage import read_model, rebuild
from reparam.paths import Paths, anchored
from reparam.runtime import make_deterministic, pick_device

log = logging.getLogger(__name__)

LONGEST_WAIT = timedelta(days=7)  # of the first process that has scored its images for the last one


def run(config: Config, paths: Paths, device: str = "auto", tracker: track.Tracker | None = None) -> None:
    """Score the trained model on a split, measure its latents and samples, and plot figures.

    Under torchrun, the processes share the images to score; the first one does the rest.
    """
    place = pick_device(device)
    tracker = tracker or track.connect(paths)
    with joined(place, LONGEST_WAIT) as world:
        settings = world.agree_on(config.evaluate)
        make_deterministic(settings.seed)
        # Other machines need not have the model.
        model_card, weights = world.agree_on(read_model(paths.model) if world.is_first else None)
        model = rebuild(model_card, weights, place).requires_grad_(False)  # nothing here trains
        data_card = store.read_card_of(paths.processed, model_card.data, model_card.lineage.data_card_sha256)
        _check_sampler(model_card, settings)
        data = _read_data(paths, data_card, model_card, settings, place, is_verified=not world.is_first_here)
        outliers = (
            None if settings.outliers is None else read_outliers(anchored(settings.outliers, paths.shared), data_card)
        )
        tracker.ready()
        with tracker.child_run("evaluate", dict(model_card.lineage)) as run:
            run.log_params(flatten(settings, "evaluate."))
            subject = Subject.scored(model, data, settings, world)
            findings = measure(subject, outliers, world)
            if world.is_first:
                _write(paths, subject, findings, data_card, model_card)
                logged.evaluation(run, model_card, paths)


def _write(paths: Paths, subject: Subject, findings: Findings, data_card: DataCard, model_card: ModelCard) -> None:
    """Write metrics, scores and figures, and last of all the card that has their checksums."""
    for warning in findings.warnings:
        log.warning("evaluate: %s", warning)
    EvaluationMetrics.of(model_card.lineage, findings.metrics).write(paths.evaluation_metrics)
    headline = {name: findings.metrics[name] for name in HEADLINE if name in findings.metrics}
    Metrics.of(model_card.lineage, headline).write(paths.headline)
    _write_scores(paths.scores, findings)
    _write_latents(paths.latents, subject)
    tiles = _write_figures(paths.figures, subject, findings)
    files = [paths.evaluation_metrics, paths.headline, paths.scores, paths.latents, *sorted(paths.figures.iterdir())]
    facts = {path.name: FileFacts.of(path) for path in files}
    _describe(data_card, model_card, subject, findings, tiles, facts).write(paths.evaluation_card)


def _read_data(
    paths: Paths, data: DataCard, model: ModelCard, settings: EvaluateConfig, place: torch.device, *, is_verified: bool
) -> Data:
    names = dict.fromkeys((settings.split, "train", "validation"))
    splits = {name: store.read_split(paths.processed, name, is_verified=is_verified) for name in names}
    _require_images(settings.split, splits[settings.split])
    _require_images("train", splits["train"])
    return Data(
        scored=splits[settings.split],
        train=splits["train"],
        validation=splits["validation"],
        classes=data.classes,
        pixels=Pixels(data).to(place),
        is_density=model.is_density,
        is_black_and_white=data.is_black_and_white,
        batch_size=settings.batch_size,
        factors=data.factors,
        is_conditional=bool(model.classes),
    )


def _require_images(name: SplitName, split: store.Split) -> None:
    if not len(split.images):
        raise ParamsError(
            f"params.yaml: evaluate.split: wanted a split with images, found {name!r}, which has none; choose another, "
            "or give it a share under preprocess"
        )


def _check_sampler(model: ModelCard, settings: EvaluateConfig) -> None:
    if SAMPLERS[settings.sampler].needs_prior and not model.has_prior:
        others = " or ".join(repr(name) for name, sampler in SAMPLERS.items() if not sampler.needs_prior)
        raise ParamsError(
            f"params.yaml: evaluate.sampler: wanted {others} with this model, which was trained without a prior, found "
            f"{settings.sampler!r}; then `dvc repro` goes on from the trained model"
        )


def _write_scores(path: Path, findings: Findings) -> None:
    """Write what each image contributes to the means, so that models can be compared image by image."""
    arrays: dict[str, Any] = {name: values.cpu().numpy() for name, values in findings.of_images.items()}
    with whole_file(path) as partial, partial.open("wb") as file:
        np.savez(file, **arrays)


def _write_latents(path: Path, subject: Subject) -> None:
    with whole_file(path) as partial, partial.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["dimension", "kl", "kl_se", "variance_of_mean", "active"])
        scores = subject.scores
        columns = (scores.latent_kl, scores.latent_kl_error, scores.latent_variance, subject.active.int())
        rows = zip(*(column.tolist() for column in columns), strict=True)
        for dimension, (kl, error, variance, is_active) in enumerate(rows):
            known = ["", ""] if math.isnan(kl) else [f"{kl:.4f}", f"{error:.4f}"]
            writer.writerow([dimension, *known, f"{variance:.4f}", is_active])


def _write_figures(directory: Path, subject: Subject, findings: Findings) -> Tiles:
    """Write all figures, and return the facts by which the page cuts up two of them."""
    figures = gallery.plot_all(subject)
    if findings.outlier_nll is not None:
        usual, unusual = subject.scores.nll.numpy(), findings.outlier_nll.numpy()
        figures["outliers"] = plot_outliers(usual, unusual, findings.metrics["auroc"])
    pictures = {name: png(figure) for name, figure in figures.items()}
    tiles, places = gallery.tiles(subject)
    with whole_directory(directory) as partial:
        for name, content in (pictures | tiles).items():
            (partial / f"{name}.png").write_bytes(content)
    return places


def _describe(
    data: DataCard, model: ModelCard, subject: Subject, findings: Findings, tiles: Tiles, files: Files
) -> EvaluationCard:
    """Return the data and settings that the metrics were measured with."""
    return EvaluationCard(
        data=data.images,
        is_discrete=model.is_discrete,
        images=len(subject.images),
        images_sha256={name: split.images_sha256 for name, split in data.splits.items()},
        settings=subject.settings,
        sampled_from=subject.sampler.origin,
        details=findings.details,
        warnings=tuple(findings.warnings),
        tiles=tiles,
        files=files,
        lineage=EvaluationLineage.of(model, evaluate_code_sha256=source_hash("evaluate")),
    )
