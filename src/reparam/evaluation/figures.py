"""From arrays to figures, in one quiet style."""

import io
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import matplotlib as mpl
import numpy as np
import numpy.typing as npt
from cycler import cycler
from matplotlib.axes import Axes
from matplotlib.figure import Figure

Array = npt.NDArray[np.floating]

# The first six: Okabe & Ito 2008, distinguishable with every common colour blindness; four more for ten classes.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#9A8F1B", "#4D4D4D", "#7F5FA8", "#A0A0A0")
STYLE: Any = {  # Any, because matplotlib types the keys one by one
    "axes.edgecolor": "#8A8F98",
    "axes.labelcolor": "#3A3F47",
    "axes.linewidth": 0.8,
    "axes.prop_cycle": cycler(color=COLOURS),
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 10,
    "axes.labelsize": 9,
    "figure.facecolor": "white",
    "font.family": "DejaVu Sans",  # ships with matplotlib, so figures are the same on every machine
    "font.size": 9,
    "legend.frameon": False,
    "savefig.dpi": 200,
    "text.color": "#3A3F47",
    "xtick.color": "#5A6069",
    "ytick.color": "#5A6069",
}


@contextmanager
def style() -> Iterator[None]:
    """Draw in our style, whatever the user has set."""
    with mpl.rc_context():
        mpl.rcdefaults()  # a matplotlibrc of the user must not change what a stage writes
        mpl.rcParams.update(STYLE)
        yield


def png(figure: Figure) -> bytes:
    """Render a PNG whose bytes depend on the figure alone."""
    buffer = io.BytesIO()
    with style():
        figure.savefig(buffer, format="png", bbox_inches="tight", pad_inches=0.08, metadata={"Software": None})
    return buffer.getvalue()


def image_rows(rows: Mapping[str, Array], labels: Sequence[object]) -> Figure:
    """Show named rows of images one above the other, a label above each column. Shapes: each (N, C, H, W); (N,)."""
    with style():
        figure = Figure(figsize=(0.78 * len(labels) + 1.2, 0.78 * len(rows) + 0.3))
        axes = figure.subplots(len(rows), len(labels), squeeze=False, gridspec_kw={"wspace": 0.06, "hspace": 0.06})
        for line, (name, images) in zip(axes, rows.items(), strict=True):
            for plot, image in zip(line, images, strict=True):
                _show(plot, image)
            line[0].set_ylabel(name, rotation=0, ha="right", va="center")
        for plot, label in zip(axes[0], labels, strict=True):
            plot.set_title(str(label), loc="center")
        return figure


def image_grid(images: Array, columns: int, title: str) -> Figure:
    """Tile images row by row. Shapes: (N, C, H, W), N a multiple of `columns`."""
    with style():
        rows = len(images) // columns
        figure = Figure(figsize=(4.6, 4.6 * rows / columns + 0.3))
        axes = figure.subplots()
        _show(axes, tile(images, columns, gap=1))
        axes.set_title(title)
        return figure


def latent_grid(images: Array, limit: float, dimensions: tuple[int, int], is_code: bool = False) -> Figure:
    """Show decoded images over a square of two latent dimensions. Shapes: (S*S, C, H, W), rows from top to bottom."""
    with style():
        steps = round(len(images) ** 0.5)
        figure = Figure(figsize=(5.0, 5.0))
        axes = figure.subplots()
        ordinate = f"$z_{{{dimensions[1]}}}$" if dimensions[0] != dimensions[1] else "(a single dimension: rows repeat)"
        unit = "units of the code" if is_code else "prior standard deviations"
        half = limit * steps / (steps - 1)  # the outermost images are centred on +-limit
        canvas = tile(images, steps, gap=1)
        axes.imshow(_colours(canvas), extent=(-half, half, -half, half), interpolation="nearest", **_grey())
        axes.set(xlabel=f"$z_{{{dimensions[0]}}}$  ({unit})", ylabel=ordinate)
        axes.set_title("Decoder mean; the other latent dimensions are 0")
        return figure


def latent_scatter(means: Array, labels: npt.NDArray[np.integer], dimensions: tuple[int, int]) -> Figure:
    """Plot posterior means by class. Shapes: (N, D), (N,)."""
    with style():
        figure = Figure(figsize=(5.6, 4.6))
        axes = figure.subplots()
        first, second = dimensions
        classes, numbers = np.unique(labels, return_inverse=True)
        colours = [COLOURS[number % len(COLOURS)] for number in numbers]
        size = float(np.clip(6000 / len(means), 2, 14))  # points; thousands of large ones would hide each other
        # All classes in one call, in the order of the images: the last class must not cover the others.
        axes.scatter(means[:, first], means[:, second], s=size, c=colours, alpha=0.8, linewidths=0)
        for number, label in enumerate(classes):
            axes.scatter([], [], s=25, color=COLOURS[number % len(COLOURS)], linewidths=0, label=str(label))
        axes.set(xlabel=f"posterior mean of $z_{{{first}}}$", ylabel=f"posterior mean of $z_{{{second}}}$")
        axes.set_title("Test images in the two most informative latent dimensions")
        axes.set_aspect("equal", adjustable="datalim")
        axes.legend(title="class", loc="center left", bbox_to_anchor=(1.0, 0.5), handletextpad=0.2)
        return figure


def latent_use(use: Array, active: npt.NDArray[np.bool_], is_code: bool = False) -> Figure:
    """Show the KL of each latent dimension (of a code: its variance), active ones in colour. Shapes: (D,), (D,)."""
    with style():
        figure = Figure(figsize=(5.6, 2.6))
        axes = figure.subplots()
        order = np.argsort(-use, kind="stable")
        colours = [COLOURS[0] if active[i] else COLOURS[-1] for i in order]
        axes.bar(np.arange(len(use)), use[order], color=colours, width=0.7)
        axes.set_xticks(np.arange(len(use)), [str(i) for i in order], fontsize=min(9, 300 / len(use)))
        axes.set(
            xlabel="latent dimension",
            ylabel="variance over images" if is_code else "KL (nats per image)",
            xlim=(-0.6, max(len(use), 4) - 0.4),
        )
        axes.set_title(f"{int(active.sum())} of {len(use)} latent dimensions are active")
        return figure


def training_curves(history: Mapping[str, Sequence[float]], best_epoch: int) -> Figure:
    """Plot loss, reconstruction and KL per epoch, for training and, where there was any, validation.

    Units: nats per image.
    """
    with style():
        figure = Figure(figsize=(9.2, 2.7), layout="constrained")
        # Of an autoencoder there is no KL to show.
        terms = [term for term in ("loss", "reconstruction", "kl") if term != "kl" or any(history["train_kl"])]
        axes = figure.subplots(1, len(terms))
        splits = [split for split in ("train", "validation") if f"{split}_loss" in history]
        for plot, term in zip(axes, terms, strict=True):
            for colour, split in zip(COLOURS, splits, strict=False):
                plot.plot(history["epoch"], history[f"{split}_{term}"], color=colour, linewidth=1.4, label=split)
            plot.axvline(best_epoch, color="#8A8F98", linewidth=0.8, linestyle=":")
            plot.set_title("KL" if term == "kl" else term)
            plot.set_xlabel("epoch")
            _fit_after_burn_in(plot, [history[f"{split}_{term}"] for split in splits])
        axes[0].set_ylabel("nats per image")
        axes[0].legend()
        return figure


def gradient_noise(noise: Mapping[str, Mapping[int, float]]) -> Figure:
    """Plot variance over squared mean of gradient estimators by the number of samples."""
    with style():
        figure = Figure(figsize=(5.6, 3.6), layout="constrained")
        axes = figure.subplots()
        for name, row in noise.items():
            axes.loglog(list(row), list(row.values()), marker="o", markersize=4, linewidth=1.4, label=name)
        axes.set_xticks(list(row), [str(samples) for samples in row])
        axes.minorticks_off()
        axes.set(xlabel="posterior samples per image", ylabel="variance / squared gradient")
        axes.set_title("Noise of the gradient that the encoder gets")
        axes.legend()
        return figure


def tile(images: Array, columns: int, gap: int) -> Array:
    """Lay images out row by row on white, `gap` pixels apart.

    Shapes: (N, C, H, W) -> (C, rows*H, columns*W) without gaps.
    """
    count, channels, height, width = images.shape
    rows = -(-count // columns)
    canvas = np.ones((channels, rows * (height + gap) - gap, columns * (width + gap) - gap), images.dtype)
    for index, image in enumerate(images):
        top, left = index // columns * (height + gap), index % columns * (width + gap)
        canvas[:, top : top + height, left : left + width] = image
    return canvas


def _fit_after_burn_in(axes: Axes, curves: Sequence[Sequence[float]]) -> None:
    # The first epochs dwarf the rest: the first twentieth of the run may leave the plot at the top.
    tail = np.concatenate([np.asarray(curve)[len(curve) // 20 :] for curve in curves])
    margin = 0.06 * (tail.max() - tail.min() or 1.0)
    axes.set_ylim(tail.min() - margin, tail.max() + margin)


def _show(axes: Axes, image: Array) -> None:
    axes.imshow(_colours(image), interpolation="nearest", **_grey())
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_visible(False)


def _colours(image: Array) -> Array:
    return image[0] if len(image) == 1 else np.moveaxis(image, 0, -1)  # (C, H, W) -> (H, W) or (H, W, C)


def _grey() -> dict[str, Any]:
    return {"cmap": "gray", "vmin": 0.0, "vmax": 1.0}
