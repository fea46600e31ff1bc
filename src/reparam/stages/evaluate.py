"""data/processed, models/vae, params `evaluate` -> reports/evaluation: metrics and figures of the test split."""

import csv
import math
from typing import Any

import torch

from reparam import tracking
from reparam.config import Config, EvaluateConfig, flatten
from reparam.data import store
from reparam.data.batches import Batches
from reparam.errors import ParamsError
from reparam.evaluation import figures, gallery
from reparam.evaluation.metrics import Reports, Scores, headline, score
from reparam.evaluation.samplers import SAMPLERS, draw_codes
from reparam.files import whole_directory, whole_file, write_json
from reparam.lineage import source_hash
from reparam.models.build import AnyModel
from reparam.models.likelihoods import is_density
from reparam.models.storage import load_model, read_card
from reparam.paths import Paths
from reparam.runtime import make_deterministic, pick_device, random_stream


def run(config: Config, paths: Paths, device: str = "auto") -> None:
    """Score the trained model on the test split, and draw what it does."""
    settings, place = config.evaluate, pick_device(device)
    tracker = tracking.connect(paths)
    make_deterministic(settings.seed)
    model = load_model(paths.model, place)
    data_card, model_card = store.read_card(paths.processed), read_card(paths.model)
    split = store.read_split(paths.processed, "test")
    _check_sampler(model, model_card, settings)
    data = Batches(split.images, data_card, settings.batch_size, place)

    with tracker.child_run("evaluate", model_card["lineage"]) as run:
        run.log_params(flatten(settings, "evaluate."))
        with random_stream(settings.seed, "score"):
            scores = score(model, data, settings)
        reports = Reports(
            density=is_density(model.likelihood, data_card["binarization"]),
            posterior=model.stochastic_layers > 0,
            bits=model.likelihood.is_discrete,
        )
        metrics = headline(scores, settings.active_variance, reports, math.prod(data_card["shape"]))
        write_json(paths.evaluation_metrics, metrics)
        write_json(paths.evaluation_card, _describe(data_card, model_card, settings, len(data)))
        _write_latents(paths, scores, settings)
        with random_stream(settings.seed, "samples"):
            start = _start_of_samples(model, scores.means.shape[1], paths, settings, place)
        with whole_directory(paths.figures) as directory:
            for name, figure in gallery.draw(model, (data, split.labels), scores, settings, start).items():
                (directory / f"{name}.png").write_bytes(figures.png(figure))
        run.log_headline(metrics)
        run.log_metrics({f"latent_kl.{i}": value for i, value in enumerate(scores.latent_kl.tolist())})
        run.log_files([paths.evaluation_metrics, paths.latents, *sorted(paths.figures.iterdir())], "evaluation")


def _check_sampler(model: AnyModel, model_card: Any, settings: EvaluateConfig) -> None:
    is_pulled_to_prior = model.stochastic_layers > 0 or model_card["objective"]["name"] == "mmd"
    if settings.sampler == "prior" and not is_pulled_to_prior:
        raise ParamsError(
            "params.yaml: evaluate.sampler: wanted 'mixture' with an autoencoder, whose codes know no prior, "
            "found 'prior'; then `dvc repro` goes on from the trained model"
        )


def _start_of_samples(
    model: AnyModel, latent: int, paths: Paths, settings: EvaluateConfig, place: torch.device
) -> torch.Tensor:
    """Draw latents to generate images from. Shapes: -> (SAMPLES_PER_SIDE ** 2, latent)."""

    def codes() -> torch.Tensor:
        card, images = store.read_card(paths.processed), store.read_split(paths.processed, "train").images
        return draw_codes(model, Batches(images, card, settings.batch_size, place))

    return SAMPLERS[settings.sampler](gallery.SAMPLES_PER_SIDE**2, latent, codes, settings.mixture_components)


def _describe(data_card: Any, model_card: Any, settings: EvaluateConfig, images: int) -> dict[str, Any]:
    """Say what the metrics were measured on, and how."""
    return {
        "split": "test",
        "images": images,
        "units": "nats per image",
        "binarization": data_card["binarization"],
        **settings.model_dump(
            mode="json", include={"seed", "batch_size", "elbo_samples", "nll_samples", "active_variance", "sampler"}
        ),
        "lineage": {**model_card["lineage"], "evaluate_code_sha256": source_hash("evaluate")},
    }


def _write_latents(paths: Paths, scores: Scores, settings: EvaluateConfig) -> None:
    with whole_file(paths.latents) as partial, partial.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["dimension", "kl", "variance_of_mean", "active"])
        rows = zip(scores.latent_kl.tolist(), scores.latent_variance.tolist(), strict=True)
        for dimension, (kl, variance) in enumerate(rows):
            writer.writerow([dimension, f"{kl:.4f}", f"{variance:.4f}", int(variance > settings.active_variance)])
