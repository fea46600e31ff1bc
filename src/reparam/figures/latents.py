"""Figures of latent space: the decoder over a plane, images in it, and how much each dimension says."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.offsetbox import AnnotationBbox, OffsetImage

from reparam.figures.images import GREY, as_shown, tile
from reparam.figures.style import COLOURS, WIDE, Array, indexed, literal, style

Labels = npt.NDArray[Any]  # (N,), numbers or names of classes
NAMED = 20  # classes that a legend or thumbnails can distinguish, at most
NUMBERED = 60  # bars that can have a number each, at most
PER_ROW = 4


def plot_latent_grid(images: Array, limit: float, axis_labels: tuple[str, str], title: str) -> Figure:
    """Show decoded images over a square of latents. Shapes: (S*S, C, H, W), rows from top to bottom."""
    with style():
        steps = round(len(images) ** 0.5)
        figure = Figure(figsize=(5.0, 5.0))
        axes = figure.subplots()
        half = limit * steps / (steps - 1)  # the outermost images are centred on +-limit
        axes.imshow(as_shown(tile(images, steps, gap=1)), extent=(-half, half, -half, half), **GREY)
        axes.set(xlabel=axis_labels[0], ylabel=axis_labels[1])
        axes.set_title(title)
        return figure


def plot_latent_scatter(
    points: Array, labels: Labels, axis_labels: tuple[str, str], title: str, pictures: Array | None = None
) -> Figure:
    """Plot images by class, and one of each class, if given, in the middle of it.

    Shapes: points (N, 2), labels (N,), pictures (classes, C, H, W) in the order of `np.unique`.
    """
    with style():
        figure = Figure(figsize=(5.6, 4.6))
        axes = figure.subplots()
        scatter(axes, points, labels)
        axes.set(xlabel=axis_labels[0], ylabel=axis_labels[1])
        axes.set_title(title)
        axes.set_aspect("equal", adjustable="datalim")
        if pictures is not None and len(pictures) <= NAMED:
            for number, (label, picture) in enumerate(zip(np.unique(labels), pictures, strict=True)):
                _pin(axes, picture, np.median(points[labels == label], 0), COLOURS[number % len(COLOURS)])
        return figure


def scatter(axes: Axes, points: Array, labels: Labels) -> None:
    """Plot points in the colours of their classes, with a legend where that is of use. Shapes: (N, 2), (N,)."""
    classes, numbers = np.unique(labels, return_inverse=True)
    colours = [COLOURS[number % len(COLOURS)] for number in numbers]
    size = float(np.clip(6000 / len(points), 2, 14))  # points; thousands of large ones would hide each other
    # All classes in one call, in the order of the images: the last class must not cover the others.
    axes.scatter(points[:, 0], points[:, 1], s=size, c=colours, alpha=0.8, linewidths=0)
    if 1 < len(classes) <= NAMED:
        for number in range(len(classes)):
            axes.scatter([], [], s=25, color=COLOURS[number % len(COLOURS)], linewidths=0, label=str(number))
        legend = axes.legend(title="class", loc="center left", bbox_to_anchor=(1.0, 0.5), handletextpad=0.2)
        # Named afterwards: a legend leaves out what begins with an underscore.
        for text, label in zip(legend.get_texts(), classes, strict=True):
            text.set_text(literal(str(label)))


def plot_latent_use(use: Array, active: npt.NDArray[np.bool_], is_code: bool = False) -> Figure:
    """Show the KL of each latent dimension (of a code: its variance), active ones in colour. Shapes: (D,), (D,)."""
    with style():
        figure = Figure(figsize=(5.6, 2.6))
        axes = figure.subplots()
        order = np.argsort(-use, kind="stable")
        colours = [COLOURS[0] if active[i] else COLOURS[-1] for i in order]
        axes.bar(np.arange(len(use)), use[order], color=colours, width=0.7 if len(use) <= NUMBERED else 1.0)
        if len(use) <= NUMBERED:
            axes.set_xticks(np.arange(len(use)), [str(i) for i in order], fontsize=min(9, 300 / len(use)))
        axes.set(
            xlabel="latent dimension" if len(use) <= NUMBERED else "latent dimensions, from most to least used",
            ylabel="variance over images" if is_code else "KL (nats per image)",
            xlim=(-0.6, max(len(use), 4) - 0.4),
        )
        axes.set_title(f"{int(active.sum())} of {len(use)} latent dimensions are active")
        return figure


def plot_components(variances: Array, points: Array, labels: Labels) -> Figure:
    """Show how much principal components of posterior means explain, and images in the first two.

    Shapes: variances (D,), largest first, points (N, 2), labels (N,).
    """
    with style():
        figure = Figure(figsize=(8.0, 3.2))
        left, right = figure.subplots(1, 2, width_ratios=(1, 1.2), gridspec_kw={**WIDE, "wspace": 0.15})
        total = variances.sum()
        shares = variances / total if total > 0 else np.zeros_like(variances)
        numbers = np.arange(1, len(shares) + 1)[:NAMED]
        left.bar(numbers, shares[:NAMED], color=COLOURS[0], width=0.7, label="each")
        left.plot(
            numbers, shares.cumsum()[:NAMED], color=COLOURS[3], marker="o", markersize=3, linewidth=1.2, label="so far"
        )
        left.set(xlabel="principal component", ylabel="share of the variance of posterior means", ylim=(0, 1.02))
        left.set_xticks(numbers if len(numbers) <= 12 else numbers[::2])
        left.legend(loc="center right")
        left.set_title("Explained variance")
        scatter(right, points, labels)
        right.set(xlabel="component 1 (standard deviations)", ylabel="component 2 (standard deviations)")
        right.set_title("Images in the first two components")
        return figure


def plot_aggregate(samples: Mapping[str, Array], prior: Array | None = None) -> Figure:
    """Compare samples of the aggregate posterior with the prior, a named dimension a panel.

    Shapes: each (N,), prior (M, panels), samples of a prior that is not N(0, I).
    """
    with style():
        columns = min(PER_ROW, len(samples))
        rows = -(-len(samples) // columns)
        height = 1.5 * rows + 0.5
        figure = Figure(figsize=(max(2.3 * columns, 3.2), height))
        margins = {"left": 0.03, "right": 1.0, "bottom": 0.5 / height, "top": 1.0, "wspace": 0.03, "hspace": 0.25}
        panels = list(figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True, gridspec_kw=margins).flat)
        for unused in panels[len(samples) :]:
            unused.remove()
        reach = max(4.0, *(float(np.quantile(np.abs(values), 0.999)) for values in samples.values()))
        edges = np.linspace(-reach, reach, 41)
        x = np.linspace(-reach, reach, 201)
        for number, (plot, (name, values)) in enumerate(zip(panels, samples.items(), strict=False)):
            plot.stairs(_density(values, edges), edges, fill=True, color=COLOURS[5], label="q(z)")
            if prior is None:
                plot.plot(x, np.exp(-x * x / 2) / np.sqrt(2 * np.pi), color="#3A3F47", linewidth=1, label="N(0, 1)")
            else:
                plot.stairs(_density(prior[:, number], edges), edges, color="#3A3F47", linewidth=1, label="p(z)")
            plot.set_title(name)
            plot.set_yticks([])
            plot.spines["left"].set_visible(False)
        for plot in panels[: len(samples) : columns]:
            plot.set_ylabel("density")
        for plot in panels[max(0, len(samples) - columns) : len(samples)]:
            plot.tick_params(labelbottom=True)
        panels[0].legend(handlelength=1, fontsize=7, loc="upper left", borderaxespad=0)
        figure.supxlabel("z (prior standard deviations)" if prior is None else "z", fontsize=9)
        return figure


def plot_factors(information: Array, latents: Sequence[str], factors: Sequence[str]) -> Figure:
    """Plot the information of latents about factors, one row for each factor. Shapes: information (D, F), in [0, 1]."""
    with style():
        figure = Figure(figsize=(0.55 * max(len(latents), 5), 0.45 * len(factors) + 0.4))
        axes = figure.subplots()
        axes.imshow(information.T, cmap="viridis", vmin=0, vmax=1, aspect="auto")
        axes.set_xticks(np.arange(len(latents)), latents)
        axes.set_yticks(np.arange(len(factors)), [literal(name) for name in factors])
        for (row, column), share in np.ndenumerate(information.T):
            axes.text(column, row, f"{share:.2f}", ha="center", va="center", fontsize=7, color="wk"[int(share > 0.6)])
        axes.spines[:].set_visible(False)
        axes.tick_params(length=0)
        axes.set_title("Mutual information with a latent, over the entropy of the factor")
        return figure


def _density(values: Array, edges: Array) -> Array:
    density: Array = np.histogram(values, edges)[0] / (len(values) * (edges[1] - edges[0]))
    return density


def axis_labels(names: Sequence[str], unit: str) -> tuple[str, str]:
    """Spell out what the axes of a plane show; a plane of one direction has one name."""
    first, second = (indexed(name) if name.startswith("z") else name for name in names)
    return f"{first}  ({unit})", f"{second}  ({unit})" if second else ""


def _pin(axes: Axes, picture: Array, place: Array, colour: str) -> None:
    """Put a small picture on a place of the plot, in a frame."""
    image = OffsetImage(
        as_shown(picture), zoom=20 / max(picture.shape[1:]), cmap="gray", norm=Normalize(0, 1), interpolation="nearest"
    )
    frame = {"edgecolor": colour, "linewidth": 1.4, "boxstyle": "square,pad=0.0"}
    axes.add_artist(AnnotationBbox(image, (float(place[0]), float(place[1])), pad=0.1, bboxprops=frame))
