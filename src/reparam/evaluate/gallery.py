"""Plot the figures of a trained model."""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch
from matplotlib.figure import Figure

from reparam.cards.evaluation import GridTiles, TileDimension, Tiles, TraversalTiles
from reparam.evaluate import walks
from reparam.evaluate.disentanglement import mutual_information
from reparam.evaluate.importance import read_curve
from reparam.evaluate.subject import Rows, Subject, as_array
from reparam.figures.curves import plot_bounds
from reparam.figures.images import pixel_png, plot_blocks, plot_deviations, plot_grid, plot_rows, plot_table, tile
from reparam.figures.latents import (
    NAMED,
    axis_labels,
    plot_aggregate,
    plot_components,
    plot_factors,
    plot_latent_grid,
    plot_latent_scatter,
    plot_latent_use,
)
from reparam.figures.style import indexed, literal
from reparam.runtime import random_stream

RECONSTRUCTIONS = 10  # images, as many of each class
EXTREMES = 10  # images at either end
SAMPLES_PER_SIDE = 7
DIMENSIONS = 12  # of the latents, at most, that figures walk along or compare with the prior
STEPS = 11  # of a walk through latent space
FINE_STEPS = 21  # of a walk under a slider
PRIOR_SAMPLES = 20_000
PAIRS = 6  # of images that are joined by a walk
TILES = ("grid_tiles", "traversal_tiles")


@torch.no_grad()
def plot_all(subject: Subject) -> dict[str, Figure]:
    """Plot the scored images, the model's view of them, and its latent space; one figure per name."""
    pictures = {
        "reconstructions": _reconstructions(subject),
        "samples": _samples(subject),
        "latent_grid": _latent_grid(subject),
        "latent_scatter": _latent_scatter(subject),
        "latent_use": plot_latent_use(subject.use.numpy(), subject.active.numpy(), not subject.has_latent_kl),
        "traversals": _traversals(subject),
    }
    are_several = len(subject.images) > 1
    others: dict[str, tuple[bool, Callable[[Subject], Figure]]] = {
        "classes": (subject.data.is_conditional, _classes),
        "interpolation": (are_several, _interpolation),
        "components": (are_several and subject.model.latent_size > 2, _components),
        "aggregate": (not subject.is_code, _aggregate),
        "bounds": (subject.has_elbo, _bounds),
        "extremes": (are_several, _extremes),
        "factors": (subject.coded is not None and len(subject.coded.facts) > 0, _factors),
        "sigma": (subject.model.likelihood.outputs > 1, _sigma),  # where the decoder puts out more than a mean
    }
    return pictures | {name: picture(subject) for name, (is_wanted, picture) in others.items() if is_wanted}


@torch.no_grad()
def tiles(subject: Subject) -> tuple[dict[str, bytes], Tiles]:
    """Arrange latent grid and traversals for a page to cut up: without axes, margins or rescaling.

    Return PNGs under the names of TILES, and what they show.
    """
    limit, steps, walked = subject.settings.grid.range, subject.settings.grid.steps, _walked(subject)
    grid = subject.on_plane
    moved = subject.decode_usual(walks.traverse(subject.frame, walked, FINE_STEPS, limit))
    pictures = (pixel_png(tile(grid, steps, 0)), pixel_png(tile(moved, FINE_STEPS, 0)))
    facts = Tiles(
        image=grid.shape[2:],
        range=limit,
        grid=GridTiles(steps=steps, names=subject.plane.names, unit=f"{subject.plane.unit}{subject.with_usual}"),
        traversals=TraversalTiles(
            steps=FINE_STEPS,
            unit=f"{subject.frame.unit}{subject.with_usual}",
            use="nats" if subject.has_latent_kl else "variance",
            dimensions=tuple(TileDimension(number=n, use=round(float(subject.use[n]), 4)) for n in walked),
        ),
    )
    return dict(zip(TILES, pictures, strict=True)), facts


def _reconstructions(subject: Subject) -> Figure:
    rows = subject.some_of_each_class(RECONSTRUCTIONS)
    return plot_rows(subject.reconstruct(rows, subject.drawn(rows)), subject.names(rows))


def _samples(subject: Subject) -> Figure:
    with random_stream(subject.settings.seed, "samples"):
        start = subject.codes(SAMPLES_PER_SIDE**2)
    title = f"Decoder means of draws from {subject.sampler.origin}"
    labels = "\nas many of each label as in the split" if subject.data.is_conditional else ""
    return plot_grid(subject.decode(start, subject.proportional(len(start))), SAMPLES_PER_SIDE, f"{title}{labels}")


def _classes(subject: Subject) -> Figure:
    numbers = np.unique(subject.data.scored.labels)[:DIMENSIONS]
    with random_stream(subject.settings.seed, "classes"):
        z = subject.codes(STEPS)
    images = subject.decode(z.repeat(len(numbers), 1), numbers.repeat(STEPS))
    title = f"Decoder means with each label, of the same draws from {subject.sampler.origin} in each row"
    rows = [literal(subject.data.classes[number]) for number in numbers]
    return plot_table(images, rows, [str(number) for number in range(1, STEPS + 1)], title, "draw")


def _latent_grid(subject: Subject) -> Figure:
    grid, labels = subject.settings.grid, axis_labels(subject.plane.names, subject.plane.unit)
    title = {
        "dimensions": f"Decoder mean; the other latent dimensions are {subject.frame.middle}",
        "principal": "Decoder mean along two principal components",
    }[grid.plane] + subject.with_usual
    ordinate = labels[1] or "(a single dimension: rows repeat)"
    return plot_latent_grid(subject.on_plane, grid.range, (labels[0], ordinate), title)


def _latent_scatter(subject: Subject) -> Figure:
    labels = axis_labels(subject.plane.names, subject.plane.unit)
    points = subject.plane.coordinates(subject.means).numpy()
    classes, numbers = np.unique(subject.class_names, return_inverse=True)
    title, ordinate = "Posterior means in the plane of the latent grid", labels[1]
    if not ordinate:  # of a single dimension the other axis is free
        title, ordinate = "Posterior means by class", "number of the class"
        points[:, 1] = numbers
    pictures = None
    if 1 < len(classes) <= NAMED:
        middles = [_middle(points, np.flatnonzero(numbers == number)) for number in range(len(classes))]
        pictures = subject.stored(np.array(middles))
    return plot_latent_scatter(points, subject.class_names, (labels[0], ordinate), title, pictures)


def _traversals(subject: Subject) -> Figure:
    limit, walked = subject.settings.grid.range, _walked(subject)
    z = walks.traverse(subject.frame, walked, STEPS, limit)
    columns = [f"{value:.3g}".replace("-", "−") for value in walks.spread(STEPS, limit).tolist()]
    title = (
        f"Decoder mean along one latent dimension at a time; the others are {subject.frame.middle}{subject.with_usual}"
    )
    rows = [subject.name_and_use(number) for number in walked]
    return plot_table(subject.decode_usual(z), rows, columns, title, subject.frame.unit)


def _interpolation(subject: Subject) -> Figure:
    first, second = subject.pairs(PAIRS)
    labels = subject.data.scored.labels[first].repeat(STEPS)
    between = subject.decode(walks.interpolate(subject.means[first], subject.means[second], STEPS), labels)
    between = between.reshape(len(first), STEPS, *between.shape[1:])
    images = np.concatenate([subject.stored(first)[:, None], between, subject.stored(second)[:, None]], axis=1)
    names = zip(subject.names(first), subject.names(second), strict=True)
    rows = [f"{a} to {b}" if subject.is_labelled else "" for a, b in names]
    columns = ["image", *(f"{share:.0%}" for share in np.linspace(0, 1, STEPS)), "image"]
    title = "Decoder mean along straight lines between the posterior means of two images"
    return plot_table(images.reshape(-1, *images.shape[2:]), rows, columns, title)


def _components(subject: Subject) -> Figure:
    points = subject.components.plane.coordinates(subject.means)
    return plot_components(subject.components.variances.numpy(), points.numpy(), subject.class_names)


def _aggregate(subject: Subject) -> Figure:
    chosen = walks.by_use(subject.use)[:DIMENSIONS]
    means, log_variances = subject.means[:, chosen], subject.scores.log_variances.double()[:, chosen]
    with subject.draws():
        z = means + (0.5 * log_variances).exp() * torch.randn(means.shape, dtype=means.dtype)
        prior = subject.model.prior.sample(torch.empty(PRIOR_SAMPLES, subject.model.latent_size))[:, chosen]
    names = [subject.name_and_use(number) for number in chosen]
    shown = None if subject.model.prior.is_standard else prior.cpu().numpy()
    return plot_aggregate(dict(zip(names, z.T.numpy(), strict=True)), shown)


def _bounds(subject: Subject) -> Figure:
    return plot_bounds(*read_curve(subject.scores.bounds, subject.settings.nll_samples))


def _extremes(subject: Subject) -> Figure:
    losses = subject.scores.reconstruction
    ranked = torch.argsort(losses, stable=True).numpy()
    count = min(EXTREMES, len(ranked) // 2)
    chosen: dict[str, Rows] = {"Best": ranked[:count], "Worst": ranked[::-1][:count]}
    measure = "−log p(x|z)" if subject.data.is_density else "cross-entropy"
    titles = {name: f"{name} reconstructed: {measure}, nats" for name in chosen}
    return plot_blocks(
        {titles[name]: subject.reconstruct(rows, subject.seen(rows)) for name, rows in chosen.items()},
        {titles[name]: [f"{value:.1f}" for value in losses[rows.copy()].tolist()] for name, rows in chosen.items()},
    )


def _sigma(subject: Subject) -> Figure:
    rows = subject.some_of_each_class(RECONSTRUCTIONS)
    model = subject.of(rows)
    pixels = subject.drawn(rows)
    deviations = model.likelihood.deviation(model.output(model.posterior(pixels)[0])) * subject.data.pixels.scale
    # In a pixel of several channels, the root of their mean square; in units where black to white is 1.
    maps: npt.NDArray[np.float32] = as_array(deviations.square().mean(1).sqrt())
    return plot_deviations(subject.reconstruct(rows, pixels), maps, subject.names(rows))


def _factors(subject: Subject) -> Figure:
    assert subject.coded is not None
    found = mutual_information(subject.coded, subject.settings.disentanglement.bins)
    chosen = walks.by_use(subject.use)[:DIMENSIONS]
    return plot_factors(found[chosen], [indexed(f"z{n}") for n in chosen], [fact.name for fact in subject.coded.facts])


def _walked(subject: Subject) -> list[int]:
    return walks.choose_dimensions(subject.use, subject.active, DIMENSIONS)


def _middle(points: npt.NDArray[np.floating], rows: Rows) -> int:
    """Return the row whose point is nearest to the median of these rows. Shapes: (N, 2), (n,)."""
    distances = np.square(points[rows] - np.median(points[rows], 0)).sum(1)
    return int(rows[distances.argmin()])
