"""What to draw of a trained model."""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from matplotlib.figure import Figure
from torch import Tensor

from reparam.config import EvaluateConfig
from reparam.evaluate import latent_walks
from reparam.evaluate.importance import read_curve
from reparam.evaluate.metrics import Reports, Scores
from reparam.evaluate.subject import Labels, Rows, Subject, as_array
from reparam.evaluate.view import View
from reparam.figures.curves import plot_bounds
from reparam.figures.images import pixel_png, plot_blocks, plot_deviations, plot_grid, plot_rows, plot_table, tile
from reparam.figures.latents import (
    NAMED,
    axis_labels,
    plot_aggregate,
    plot_components,
    plot_latent_grid,
    plot_latent_scatter,
    plot_latent_use,
)
from reparam.models.draw import Model

RECONSTRUCTIONS = 10  # images, one of each class first
EXTREMES = 10  # images at either end
SAMPLES_PER_SIDE = 7
DIMENSIONS = 12  # of the latents, that are walked along or compared with the prior, at most
STEPS = 11  # of a walk
FINE_STEPS = 21  # of a walk under a slider
PAIRS = 6  # of images that are joined by a walk
SAMPLED_FROM = {"prior": "the prior", "mixture": "a fitted mixture"}
FIGURES = ("reconstructions", "samples", "latent_grid", "latent_scatter", "latent_use", "traversals")
OTHER_FIGURES = ("interpolation", "components", "aggregate", "bounds", "extremes", "sigma")  # where there is a point
TILES = ("grid_tiles", "traversal_tiles")


@torch.no_grad()
def draw(
    model: Model,
    data: tuple[View, Labels],
    scores: Scores,
    settings: EvaluateConfig,
    start: Tensor,
    *,
    reports: Reports | None = None,
) -> dict[str, Figure]:
    """Draw the split that `scores` came from, the model's view of it, and its latent space; one figure per name.

    `reports` says whether bounds on log p(x) are any; without it, they are taken for such where they are numbers.
    Shapes: start (SAMPLES_PER_SIDE ** 2, D), the latents to generate images from.
    """
    subject = Subject(model, data, scores, settings)
    images, latents = len(subject.labels), len(subject.use)
    title = f"Decoder means of draws from {SAMPLED_FROM[settings.sampler]}"
    pictures = {
        "reconstructions": _reconstructions(subject),
        "samples": plot_grid(subject.decode(start), SAMPLES_PER_SIDE, title),
        "latent_grid": _latent_grid(subject),
        "latent_scatter": _latent_scatter(subject),
        "latent_use": plot_latent_use(subject.use.numpy(), subject.active.numpy(), subject.is_code),
        "traversals": _traversals(subject),
    }
    are_bounds = not scores.bounds.isnan().any() and (reports is None or reports.density)
    others: dict[str, tuple[bool, Callable[[Subject], Figure]]] = {
        "interpolation": (images > 1, _interpolation),
        "components": (images > 1 and latents > 2, _components),
        "aggregate": (not subject.is_code, _aggregate),
        "bounds": (not subject.is_code and bool(are_bounds), _bounds),
        "extremes": (images > 1, partial(_extremes, is_density=reports is None or reports.density)),
        "sigma": (model.likelihood.outputs > 1, _sigma),
    }
    return pictures | {name: picture(subject) for name, (is_wanted, picture) in others.items() if is_wanted}


@torch.no_grad()
def tiles(
    model: Model, data: tuple[View, Labels], scores: Scores, settings: EvaluateConfig
) -> tuple[dict[str, bytes], dict[str, Any]]:
    """Draw latent grid and traversals without axes or margins, one pixel of an image a pixel, for a page to cut up.

    Return PNGs under the names of TILES, and what they show, ready for JSON.
    """
    subject = Subject(model, data, scores, settings)
    limit, steps, walked = settings.grid.range, settings.grid.steps, _walked(subject)
    grid = subject.decode(subject.plane.latents(steps, limit))
    walks = subject.decode(latent_walks.traverse(subject.means, walked, (FINE_STEPS, limit), subject.is_code))
    pictures = (pixel_png(tile(grid, steps, 0)), pixel_png(tile(walks, FINE_STEPS, 0)))
    facts = {
        "image": list(grid.shape[2:]),
        "range": limit,
        "grid": {"steps": steps, "names": list(subject.plane.names), "unit": subject.plane.unit},
        "traversals": {
            "steps": FINE_STEPS,
            "unit": latent_walks.UNITS[subject.is_code],
            "use": "variance" if subject.is_code else "nats",
            "dimensions": [{"number": number, "use": round(float(subject.use[number]), 4)} for number in walked],
        },
    }
    return dict(zip(TILES, pictures, strict=True)), facts


def _reconstructions(subject: Subject) -> Figure:
    rows = subject.one_of_each_class(RECONSTRUCTIONS)
    return plot_rows(subject.reconstruct(rows, subject.drawn(rows)), subject.names(rows))


def _latent_grid(subject: Subject) -> Figure:
    grid, labels = subject.settings.grid, axis_labels(subject.plane.names, subject.plane.unit)
    images = subject.decode(subject.plane.latents(grid.steps, grid.range))
    title = {
        "dimensions": f"Decoder mean; the other latent dimensions are {_others(subject)}",
        "principal": "Decoder mean along two principal components",
    }[grid.plane]
    ordinate = labels[1] or "(a single dimension: rows repeat)"
    return plot_latent_grid(images, grid.range, (labels[0], ordinate), title)


def _latent_scatter(subject: Subject) -> Figure:
    labels = axis_labels(subject.plane.names, subject.plane.unit)
    points = subject.plane.coordinates(subject.means).numpy()
    classes, numbers = np.unique(subject.labels, return_inverse=True)
    title, ordinate = "Posterior means in the plane of the latent grid", labels[1]
    if not ordinate:  # of a single dimension the other axis is free
        title, ordinate = "Posterior means by class", "number of the class"
        points[:, 1] = numbers
    pictures = None
    if 1 < len(classes) <= NAMED:
        middles = [_middle(points, np.flatnonzero(numbers == number)) for number in range(len(classes))]
        pictures = subject.stored(np.array(middles))
    return plot_latent_scatter(points, subject.labels, (labels[0], ordinate), title, pictures)


def _traversals(subject: Subject) -> Figure:
    limit, walked = subject.settings.grid.range, _walked(subject)
    z = latent_walks.traverse(subject.means, walked, (STEPS, limit), subject.is_code)
    columns = [f"{value:.3g}".replace("-", "−") for value in latent_walks.spread(STEPS, limit).tolist()]
    title = f"Decoder mean along one latent dimension at a time; the others are {_others(subject)}"
    rows = [subject.name_and_use(number) for number in walked]
    return plot_table(subject.decode(z), rows, columns, title, latent_walks.UNITS[subject.is_code])


def _interpolation(subject: Subject) -> Figure:
    first, second = subject.pairs(PAIRS)
    walks = subject.decode(latent_walks.interpolate(subject.means[first], subject.means[second], STEPS))
    walks = walks.reshape(len(first), STEPS, *walks.shape[1:])
    images = np.concatenate([subject.stored(first)[:, None], walks, subject.stored(second)[:, None]], axis=1)
    names = zip(subject.names(first), subject.names(second), strict=True)
    rows = [f"{a} to {b}" if subject.is_labelled else "" for a, b in names]
    columns = ["image", *(f"{share:.0%}" for share in np.linspace(0, 1, STEPS)), "image"]
    title = "Decoder mean along straight lines between the posterior means of two images"
    return plot_table(images.reshape(-1, *images.shape[2:]), rows, columns, title)


def _components(subject: Subject) -> Figure:
    variances, _ = latent_walks.principal_components(subject.means)
    points = latent_walks.plane_of_components(subject.means).coordinates(subject.means)
    return plot_components(variances.numpy(), points.numpy(), subject.labels)


def _aggregate(subject: Subject) -> Figure:
    chosen = latent_walks.by_use(subject.use)[:DIMENSIONS]
    means, log_variances = subject.means[:, chosen], subject.scores.log_variances.double()[:, chosen]
    with subject.draws():
        z = means + (0.5 * log_variances).exp() * torch.randn(means.shape, dtype=means.dtype)
    names = [subject.name_and_use(number) for number in chosen]
    return plot_aggregate(dict(zip(names, z.T.numpy(), strict=True)))


def _bounds(subject: Subject) -> Figure:
    return plot_bounds(*read_curve(subject.scores.bounds, subject.settings.nll_samples))


def _extremes(subject: Subject, *, is_density: bool) -> Figure:
    losses = subject.scores.reconstruction
    ranked = torch.argsort(losses, stable=True).numpy()
    count = min(EXTREMES, len(ranked) // 2)
    chosen: dict[str, Rows] = {"Best": ranked[:count], "Worst": ranked[::-1][:count]}
    measure = "−log p(x|z)" if is_density else "cross-entropy"
    titles = {name: f"{name} reconstructed: {measure}, nats" for name in chosen}
    return plot_blocks(
        {titles[name]: subject.reconstruct(rows, subject.scored(rows)) for name, rows in chosen.items()},
        {titles[name]: [f"{value:.1f}" for value in losses[rows.copy()].tolist()] for name, rows in chosen.items()},
    )


def _sigma(subject: Subject) -> Figure:
    rows, model = subject.one_of_each_class(RECONSTRUCTIONS), subject.model
    pixels = subject.drawn(rows)
    deviations = model.likelihood.deviation(model.output(model.posterior(pixels)[0])) * subject.images.pixels.scale
    # In a pixel of several channels, the root of their mean square; in units where black to white is 1.
    maps: npt.NDArray[np.float32] = as_array(deviations.square().mean(1).sqrt())
    return plot_deviations(subject.reconstruct(rows, pixels), maps, subject.names(rows))


def _walked(subject: Subject) -> list[int]:
    return latent_walks.choose_dimensions(subject.use, subject.active, DIMENSIONS)


def _others(subject: Subject) -> str:
    return "at their mean" if subject.is_code else "0"


def _middle(points: npt.NDArray[np.floating], rows: Rows) -> int:
    """Return the one of these rows that is nearest to their median. Shapes: (N, 2), (n,)."""
    distances = np.square(points[rows] - np.median(points[rows], 0)).sum(1)
    return int(rows[distances.argmin()])
