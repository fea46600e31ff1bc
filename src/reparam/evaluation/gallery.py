"""What to draw of a trained model."""

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import torch
from matplotlib.figure import Figure
from torch import Tensor

from reparam.config import EvaluateConfig
from reparam.data.batches import Batches
from reparam.data.store import Images, Labels
from reparam.evaluation import figures
from reparam.evaluation.metrics import Scores
from reparam.models.draw import Model
from reparam.runtime import random_stream

RECONSTRUCTIONS = 10  # images, one of each class first
SAMPLES_PER_SIDE = 7
SAMPLED_FROM = {"prior": "the prior", "mixture": "a fitted mixture"}
FIGURES = ("reconstructions", "samples", "latent_grid", "latent_scatter", "latent_use")


@torch.no_grad()
def draw(
    model: Model, data: tuple[Batches, Labels], scores: Scores, settings: EvaluateConfig, start: Tensor
) -> dict[str, Figure]:
    """Draw reconstructions, samples and latent space of the split that `scores` came from; one figure per name.

    Shapes: start (SAMPLES_PER_SIDE ** 2, D), the latents to generate images from.
    """
    images, labels = data
    is_code = not model.stochastic_layers
    use = (scores.latent_variance if is_code else scores.latent_kl).numpy()
    largest = np.argsort(-use, kind="stable")
    # With a single latent dimension the second axis of grid and scatter repeats the first.
    plane = (int(largest[0]), int(largest[min(1, len(largest) - 1)]))

    show = images.scaling.invert
    with random_stream(settings.seed, "figures"):
        rows = _one_of_each_class(labels)
        grey = images.grey(torch.from_numpy(rows))
        pixels = images.pixels(grey)
        reconstructed = model.decode(model.posterior(pixels)[0])
    samples = model.decode(start.to(pixels.device))
    grid = model.decode(_plane_of_latents(plane, len(use), settings).to(pixels.device))
    pictured = {"original": grey.float() / 255, "as seen": show(pixels), "reconstruction": show(reconstructed)}
    if not images.is_dynamic:  # the model sees the original
        del pictured["as seen"]
    return {
        "reconstructions": figures.image_rows(
            {name: _array(images) for name, images in pictured.items()}, labels[rows].tolist()
        ),
        "samples": figures.image_grid(
            _array(show(samples)), SAMPLES_PER_SIDE, f"Decoder means of draws from {SAMPLED_FROM[settings.sampler]}"
        ),
        "latent_grid": figures.latent_grid(_array(show(grid)), settings.grid_range, plane, is_code),
        "latent_scatter": figures.latent_scatter(scores.means.numpy(), np.asarray(labels), plane),
        "latent_use": figures.latent_use(use, (scores.latent_variance > settings.active_variance).numpy(), is_code),
    }


def contact_sheet(splits: Mapping[str, Images]) -> Figure:
    """Show images from all over each split, a row or two a split. Shapes: each (N, C, H, W) uint8."""
    columns = 16
    rows = {}
    for name, images in splits.items():
        chosen = images[np.linspace(0, len(images) - 1, min(columns, len(images))).astype(int)] / np.float32(255)
        blank = np.ones((columns - len(chosen), *chosen.shape[1:]), np.float32)
        rows[name] = np.concatenate([chosen, blank])
    return figures.image_rows(rows, [""] * columns)


def _one_of_each_class(labels: Labels) -> npt.NDArray[np.int64]:
    """Pick rows to show: the first of each class, then the first of the rest. Shapes: (N,) -> (<= RECONSTRUCTIONS,)."""
    first = np.unique(labels, return_index=True)[1]
    rest = np.setdiff1d(np.arange(len(labels)), first)
    chosen = np.concatenate([first, rest])[:RECONSTRUCTIONS]
    return chosen[np.argsort(labels[chosen], kind="stable")]


def _plane_of_latents(plane: tuple[int, int], latent: int, settings: EvaluateConfig) -> Tensor:
    """Span two latent dimensions, top row first, all others at 0. Shapes: (S*S, D)."""
    steps = torch.linspace(-settings.grid_range, settings.grid_range, settings.grid_steps)
    z = torch.zeros(len(steps), len(steps), latent)
    z[..., plane[1]] = steps.flip(0)[:, None]
    z[..., plane[0]] = steps[None, :]
    return z.flatten(0, 1)


def _array(images: Tensor) -> npt.NDArray[np.float32]:
    array: npt.NDArray[np.float32] = images.cpu().numpy()
    return array
