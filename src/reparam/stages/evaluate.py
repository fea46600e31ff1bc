"""data/processed, models/vae, params `evaluate` -> reports/evaluation: metrics and figures of the test split."""

import csv
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure

from reparam import tracking
from reparam.config import Config, EvaluateConfig, flatten
from reparam.data import store
from reparam.data.batches import Batches
from reparam.evaluation import figures
from reparam.evaluation.metrics import Scores, headline, score
from reparam.files import whole_directory, whole_file, write_json
from reparam.lineage import source_hash
from reparam.models.storage import load_model, read_card
from reparam.models.vae import VAE
from reparam.paths import Paths
from reparam.runtime import make_deterministic, pick_device, random_stream

RECONSTRUCTIONS = 10  # images, one of each class first
SAMPLES_PER_SIDE = 7


def run(config: Config, paths: Paths, device: str = "auto") -> None:
    """Score the trained model on the test split, and draw what it does."""
    settings, place = config.evaluate, pick_device(device)
    tracker = tracking.connect(paths)
    make_deterministic(settings.seed)
    model = load_model(paths.model, place)
    data_card, model_card = store.read_card(paths.processed), read_card(paths.model)
    split = store.read_split(paths.processed, "test")
    data = Batches(split.images, data_card["binarization"], settings.batch_size, place)

    with tracker.child_run("evaluate", model_card["lineage"]["weights_sha256"]) as run:
        run.log_params(flatten(settings, "evaluate."))
        with random_stream(settings.seed, "score"):
            scores = score(model, data, settings)
        is_density = not (data_card["binarization"] == "none" and model_card["model"]["likelihood"] == "bernoulli")
        metrics = headline(scores, settings.active_variance, is_density)
        write_json(paths.evaluation_metrics, metrics)
        write_json(paths.evaluation_card, _describe(data_card, model_card, settings, len(data)))
        _write_latents(paths, scores, settings)
        with whole_directory(paths.figures) as directory:
            for name, figure in _draw(model, data, split.labels, scores, settings).items():
                (directory / f"{name}.png").write_bytes(figures.png(figure))
        run.log_headline(metrics)
        run.log_metrics({f"latent_kl.{i}": value for i, value in enumerate(scores.latent_kl.tolist())})
        run.log_files(
            [paths.evaluation_metrics, paths.latents, *sorted(paths.figures.iterdir())],
            "evaluation",
        )


def _describe(data_card: Any, model_card: Any, settings: EvaluateConfig, images: int) -> dict[str, Any]:
    """Say what the metrics were measured on, and how."""
    return {
        "split": "test",
        "images": images,
        "units": "nats per image",
        "binarization": data_card["binarization"],
        **settings.model_dump(
            mode="json",
            include={"seed", "batch_size", "elbo_samples", "nll_samples", "active_variance"},
        ),
        "lineage": {**model_card["lineage"], "evaluate_code_sha256": source_hash("evaluate")},
    }


def _write_latents(paths: Paths, scores: Scores, settings: EvaluateConfig) -> None:
    with (
        whole_file(paths.latents) as partial,
        partial.open("w", newline="", encoding="utf-8") as file,
    ):
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["dimension", "kl", "variance_of_mean", "active"])
        rows = zip(scores.latent_kl.tolist(), scores.latent_variance.tolist(), strict=True)
        for dimension, (kl, variance) in enumerate(rows):
            writer.writerow(
                [
                    dimension,
                    f"{kl:.4f}",
                    f"{variance:.4f}",
                    int(variance > settings.active_variance),
                ]
            )


@torch.no_grad()
def _draw(
    model: VAE, data: Batches, labels: store.Labels, scores: Scores, settings: EvaluateConfig
) -> dict[str, Figure]:
    kl = scores.latent_kl.numpy()
    largest = np.argsort(-kl, kind="stable")
    # With a single latent dimension the second axis of grid and scatter repeats the first.
    plane = (int(largest[0]), int(largest[min(1, len(largest) - 1)]))

    with random_stream(settings.seed, "figures"):
        rows = _one_of_each_class(labels)
        originals = data.pixels(data.images[torch.from_numpy(rows).to(data.images.device)])
        reconstructed = model.decode(model.posterior(originals)[0])
        noise = torch.randn(SAMPLES_PER_SIDE**2, len(kl)).to(originals.device)
        samples = model.decode(noise)
    grid = model.decode(_plane_of_latents(plane, len(kl), settings).to(originals.device))
    return {
        "reconstructions": figures.reconstructions(_array(originals), _array(reconstructed), labels[rows].tolist()),
        "samples": figures.image_grid(_array(samples), SAMPLES_PER_SIDE, "Decoder means of draws from the prior"),
        "latent_grid": figures.latent_grid(_array(grid), settings.grid_range, plane),
        "latent_scatter": figures.latent_scatter(scores.means.numpy(), np.asarray(labels), plane),
        "latent_use": figures.latent_use(kl, (scores.latent_variance > settings.active_variance).numpy()),
    }


def _one_of_each_class(labels: store.Labels) -> np.ndarray:
    """Pick rows to show: the first of each class, then the first of the rest. Shapes: (N,) -> (<= RECONSTRUCTIONS,)."""
    first = np.unique(labels, return_index=True)[1]
    rest = np.setdiff1d(np.arange(len(labels)), first)
    chosen = np.concatenate([first, rest])[:RECONSTRUCTIONS]
    return chosen[np.argsort(labels[chosen], kind="stable")]


def _plane_of_latents(plane: tuple[int, int], latent: int, settings: EvaluateConfig) -> torch.Tensor:
    """Span two latent dimensions, top row first, all others at 0. Shapes: (S*S, D)."""
    steps = torch.linspace(-settings.grid_range, settings.grid_range, settings.grid_steps)
    z = torch.zeros(len(steps), len(steps), latent)
    z[..., plane[1]] = steps.flip(0)[:, None]
    z[..., plane[0]] = steps[None, :]
    return z.flatten(0, 1)


def _array(images: torch.Tensor) -> np.ndarray:
    return images.cpu().numpy()
