"""data/processed, models/vae, params `evaluate` -> reports/evaluation: metrics and figures of a split."""

import csv
import logging
import math
from pathlib import Path

import numpy as np
import torch

from reparam import track
from reparam.cards import (
    CARD,
    DataCard,
    Details,
    EvaluationCard,
    EvaluationLineage,
    EvaluationMetrics,
    ModelCard,
    SplitName,
    Tiles,
)
from reparam.config import Config, EvaluateConfig, flatten
from reparam.data import store
from reparam.data.batches import Batches
from reparam.data.pixels import Pixels
from reparam.errors import ParamsError
from reparam.evaluate import gallery
from reparam.evaluate.assessment import Assessed, Findings, assess
from reparam.evaluate.importance import read_curve
from reparam.evaluate.metrics import Reports, Scores, headline, score
from reparam.evaluate.samplers import SAMPLERS, draw_codes
from reparam.evaluate.subject import Labels
from reparam.evaluate.view import View
from reparam.figures.curves import plot_outliers
from reparam.figures.style import png
from reparam.files import to_json, whole_directory, whole_file
from reparam.lineage import source_hash
from reparam.models.storage import load_model
from reparam.paths import Paths
from reparam.runtime import make_deterministic, pick_device, random_stream

log = logging.getLogger(__name__)

BLACK_AND_WHITE = ("threshold", "static")  # binarizations after which no grey value is stored


def run(config: Config, paths: Paths, device: str = "auto", tracker: track.Tracker | None = None) -> None:
    """Score the trained model on a split, measure what its latents and samples are worth, and draw what it does."""
    settings, place = config.evaluate, pick_device(device)
    tracker = tracker or track.connect(paths)
    make_deterministic(settings.seed)
    model = load_model(paths.model, place).requires_grad_(False)  # nothing here trains
    data_card, model_card = store.read_card(paths.processed), ModelCard.read(paths.model / CARD, "train")
    scored, train = (_read_split(paths, name) for name in (settings.split, "train"))
    outliers = None if settings.outliers is None else _read_outliers(Path(settings.outliers), data_card)
    _check_sampler(model_card, settings)

    def view(images: store.Images) -> View:
        return View(Batches(images, settings.batch_size, place), Pixels(data_card).to(place))

    data = view(scored.images)

    def codes(count: int) -> torch.Tensor:
        """Draw latents to generate images from. Shapes: -> (count, D)."""
        name, latent = settings.sampler, scores.means.shape[1]
        its = settings.arguments(name)
        return SAMPLERS[name](count, latent, lambda: draw_codes(model, view(train.images)), *its)

    tracker.ready()
    with tracker.child_run("evaluate", dict(model_card.lineage)) as run:
        run.log_params(flatten(settings, "evaluate."))
        reports = Reports(
            density=model_card.is_density, posterior=model.stochastic_layers > 0, bits=model.likelihood.is_discrete
        )
        with random_stream(settings.seed, "score"):
            scores = score(model, data, settings, is_density=reports.density)
        subject = Assessed(model, data, scored, train, scores, settings, view)
        findings = assess(subject, codes, outliers, is_density=reports.density)
        for warning in findings.warnings:
            log.warning("evaluate: %s", warning)
        metrics = headline(scores, settings.active_variance, reports, math.prod(data_card.shape)) | findings.metrics
        EvaluationMetrics.of(model_card.lineage, metrics).write(paths.evaluation_metrics)
        _write_latents(paths, scores, settings)
        if "nll" in metrics:
            findings.details["bounds"] = _curve(scores, settings)
        with random_stream(settings.seed, "samples"):
            start = codes(gallery.SAMPLES_PER_SIDE**2)
        tiles = _draw(paths, subject, np.array(data_card.classes)[scored.labels], findings, (start, reports))
        _describe(model_card, settings, len(data), findings, tiles).write(paths.evaluation_card)
        run.log_headline(metrics)
        run.log_metrics({f"latent_kl.{i}": value for i, value in enumerate(scores.latent_kl.tolist())})
        run.log_files([paths.evaluation_metrics, paths.latents, *sorted(paths.figures.iterdir())], "evaluation")


def _draw(
    paths: Paths, subject: Assessed, labels: Labels, findings: Findings, shown: tuple[torch.Tensor, Reports]
) -> Tiles:
    """Write all figures, and return what the page must know of those that it cuts up.

    `shown` are the latents to generate images from, and which numbers mean something.
    """
    model, scores, settings = subject.model, subject.scores, subject.settings
    start, reports = shown
    drawn = gallery.draw(model, (subject.data, labels), scores, settings, start, reports=reports)
    if findings.outlier_nll is not None:
        both = scores.nll.numpy(), findings.outlier_nll.numpy()
        drawn["outliers"] = plot_outliers(*both, findings.metrics["auroc"])
    pictures = {name: png(figure) for name, figure in drawn.items()}
    tiles, places = gallery.tiles(model, (subject.data, labels), scores, settings)
    with whole_directory(paths.figures) as directory:
        for name, content in (pictures | tiles).items():
            (directory / f"{name}.png").write_bytes(content)
    return Tiles.parse(to_json(places).encode())


def _read_split(paths: Paths, name: SplitName) -> store.Split:
    split = store.read_split(paths.processed, name)
    if not len(split.images):
        raise ParamsError(
            f"params.yaml: evaluate.split: wanted a split with images, found {name!r}, which has none; choose another, "
            "or give it a share under preprocess"
        )
    return split


def _read_outliers(directory: Path, data_card: DataCard) -> store.Images:
    if not (directory / CARD).is_file():
        raise ParamsError(
            f"params.yaml: evaluate.outliers: wanted a directory that `preprocess` wrote, found no {CARD} in "
            f"{directory}; name a data/processed of other images, or null"
        )
    card = store.read_card(directory)
    if card.shape != data_card.shape:
        raise ParamsError(
            f"params.yaml: evaluate.outliers: wanted images of shape {data_card.shape}, as the model's, found "
            f"{card.shape} in {directory}; preprocess them with the same preprocess.image_size and channels"
        )
    # Under `dynamic` both are drawn from at each visit; else they would be told apart by being grey, or not being so.
    is_drawn = data_card.binarization == "dynamic"
    if not is_drawn and (data_card.binarization in BLACK_AND_WHITE) != (card.binarization in BLACK_AND_WHITE):
        kinds = ("grey", "black and white")
        wanted, found = (kinds[side.binarization in BLACK_AND_WHITE] for side in (data_card, card))
        raise ParamsError(
            f"params.yaml: evaluate.outliers: wanted {wanted} images, as the model's, found {found} ones "
            f"(binarization {card.binarization!r}) in {directory}; preprocess them with preprocess.binarization "
            f"{data_card.binarization!r}"
        )
    images = store.read_split(directory, "test").images
    if not len(images):
        raise ParamsError(f"params.yaml: evaluate.outliers: wanted a test split with images, found none in {directory}")
    return images


def _check_sampler(model_card: ModelCard, settings: EvaluateConfig) -> None:
    if settings.sampler == "prior" and not model_card.has_prior:
        raise ParamsError(
            "params.yaml: evaluate.sampler: wanted 'mixture' with an autoencoder, whose codes know no prior, "
            "found 'prior'; then `dvc repro` goes on from the trained model"
        )


def _describe(
    model_card: ModelCard, settings: EvaluateConfig, images: int, findings: Findings, tiles: Tiles
) -> EvaluationCard:
    """Say what the metrics were measured on, and how."""
    return EvaluationCard(
        images=images,
        binarization=model_card.data.binarization,
        settings=settings,
        details=Details.parse(to_json({**findings.details, "not_measured": findings.not_measured}).encode()),
        warnings=tuple(findings.warnings),
        tiles=tiles,
        lineage=EvaluationLineage(
            **dict(model_card.lineage),
            model_card_sha256=model_card.digest,
            evaluate_code_sha256=source_hash("evaluate"),
        ),
    )


def _curve(scores: Scores, settings: EvaluateConfig) -> list[dict[str, float]]:
    """List the bounds on log p(x) of the first K samples, with their standard errors."""
    columns = read_curve(scores.bounds, settings.nll_samples)
    return [
        {"samples": samples, "bound": round(bound, 4), "bound_se": round(error, 4)}
        for samples, bound, error in zip(*columns, strict=True)
    ]


def _write_latents(paths: Paths, scores: Scores, settings: EvaluateConfig) -> None:
    with whole_file(paths.latents) as partial, partial.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["dimension", "kl", "kl_se", "variance_of_mean", "active"])
        columns = (scores.latent_kl, scores.latent_kl_error, scores.latent_variance)
        for dimension, (kl, error, variance) in enumerate(zip(*(column.tolist() for column in columns), strict=True)):
            is_active = int(variance > settings.active_variance)
            writer.writerow([dimension, f"{kl:.4f}", f"{error:.4f}", f"{variance:.4f}", is_active])
