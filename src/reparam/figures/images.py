"""Figures of images: rows, grids, tables, and tiles without axes."""

import io
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from PIL import Image

from reparam.figures.style import WIDE, Array, literal, style

GREY: Any = {"cmap": "gray", "vmin": 0.0, "vmax": 1.0, "interpolation": "nearest"}
CELL = 0.78  # inches that an image takes
GAP = 0.06  # between images, in units of their width


def pixel_png(image: Array) -> bytes:
    """Write an image pixel by pixel, without axes or margins. Shapes: (C, H, W), in [0, 1]."""
    buffer = io.BytesIO()
    Image.fromarray((as_shown(image) * 255).round().astype(np.uint8)).save(buffer, format="PNG")
    return buffer.getvalue()


def plot_rows(rows: Mapping[str, Array], labels: Sequence[object]) -> Figure:
    """Show named rows of images one above the other, a label above each column, taken literally.

    Shapes: each (N, C, H, W); (N,).
    """
    with style():
        figure = Figure(figsize=(CELL * len(labels) + 1.2, CELL * len(rows) + 0.3))
        axes = figure.subplots()
        height, width = next(iter(rows.values())).shape[2:]
        tall = height / width  # in units of an image's width
        for line, images in enumerate(rows.values()):
            for column, image in enumerate(images):
                left, top = column * (1 + GAP), line * (tall + GAP)
                axes.imshow(as_shown(image), extent=(left, left + 1, top + tall, top), **GREY)
        axes.set(xlim=(0, left + 1), ylim=(top + tall, 0))
        axes.spines[:].set_visible(False)
        axes.xaxis.tick_top()
        axes.set_xticks(np.arange(len(labels)) * (1 + GAP) + 0.5, [literal(str(label)) for label in labels])
        axes.set_yticks(np.arange(len(rows)) * (tall + GAP) + tall / 2, list(rows))
        axes.tick_params(length=0, labelcolor=mpl.rcParams["text.color"])
        axes.tick_params(axis="x", labelsize=_font_size(labels))
        return figure


def plot_grid(images: Array, columns: int, title: str) -> Figure:
    """Tile images row by row. Shapes: (N, C, H, W), N a multiple of `columns`."""
    with style():
        rows = len(images) // columns
        figure = Figure(figsize=(4.6, 4.6 * rows / columns + 0.3))
        axes = figure.subplots()
        show(axes, tile(images, columns, gap=1))
        axes.set_title(title)
        return figure


def plot_table(images: Array, rows: Sequence[str], columns: Sequence[str], title: str, below: str = "") -> Figure:
    """Tile images under named columns and beside named rows. Shapes: (rows * columns, C, H, W), row by row."""
    with style():
        height, width = images.shape[2:]
        figure = Figure(figsize=(0.62 * len(columns), 0.62 * len(rows) * height / width + 0.5))
        axes = figure.subplots()
        show(axes, tile(images, len(columns), gap=1))
        axes.set_xticks(np.arange(len(columns)) * (width + 1) + (width - 1) / 2, columns)
        axes.set_yticks(np.arange(len(rows)) * (height + 1) + (height - 1) / 2, rows)
        axes.tick_params(length=0)
        axes.set_xlabel(below)
        axes.set_title(title)
        return figure


def plot_blocks(blocks: Mapping[str, Mapping[str, Array]], labels: Mapping[str, Sequence[str]]) -> Figure:
    """Show blocks of named rows under a title each, a label above each image. Shapes: each (N, C, H, W)."""
    with style():
        columns = max(len(names) for names in labels.values())
        lines = sum(len(rows) for rows in blocks.values())
        figure = Figure(figsize=(CELL * columns + 1.2, CELL * lines + 0.62 * len(blocks)))
        parts = figure.subplots(len(blocks), 1, squeeze=False, gridspec_kw={"hspace": 0.3})[:, 0]
        for axes, (title, rows) in zip(parts, blocks.items(), strict=True):
            names = labels[title]
            height, width = next(iter(rows.values())).shape[2:]
            show(axes, tile(np.concatenate(list(rows.values())), len(names), gap=1))
            axes.xaxis.tick_top()
            axes.set_xticks(np.arange(len(names)) * (width + 1) + (width - 1) / 2, names)
            axes.set_yticks(np.arange(len(rows)) * (height + 1) + (height - 1) / 2, list(rows))
            axes.tick_params(length=0)
            axes.set_title(title)
        return figure


def plot_deviations(rows: Mapping[str, Array], deviations: Array, labels: Sequence[object]) -> Figure:
    """Show rows of images above maps of the standard deviation of each pixel. Shapes: each (N, C, H, W); (N, H, W)."""
    figure = plot_rows({**rows, "sigma": np.zeros_like(deviations[:, None])}, labels)
    with style():
        low, high = float(deviations.min()), float(deviations.max())
        scale = LogNorm(low, max(high, 1.01 * low))  # a scale of no length cannot be drawn
        [axes] = figure.axes
        shown = axes.images[-len(deviations) :]
        for image, deviation in zip(shown, deviations, strict=True):
            image.set(data=deviation, cmap="cividis", norm=scale)
        bar = figure.colorbar(shown[0], ax=axes, fraction=0.03, pad=0.02)
        bar.outline.set_visible(False)
        bar.set_label("sigma\n(black to white is 1)")
        return figure


def plot_contact_sheet(splits: Mapping[str, npt.NDArray[np.uint8]]) -> Figure:
    """Show images from all over each split, a row each. Shapes: each (N, C, H, W) uint8."""
    columns = 16
    rows = {}
    for name, images in splits.items():
        chosen = images[np.linspace(0, len(images) - 1, min(columns, len(images))).astype(int)] / np.float32(255)
        blank = np.ones((columns - len(chosen), *chosen.shape[1:]), np.float32)
        rows[name] = np.concatenate([chosen, blank])
    return plot_rows(rows, [""] * columns)


def plot_gradient_noise(noise: Mapping[str, Mapping[int, float]]) -> Figure:
    """Plot variance over squared mean of gradient estimators by the number of samples."""
    with style():
        figure = Figure(figsize=(5.0, 3.0))
        axes = figure.subplots(gridspec_kw=WIDE)
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


def show(axes: Axes, image: Array) -> None:
    """Show an image without ticks or frame. Shapes: (C, H, W)."""
    axes.imshow(as_shown(image), **GREY)
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_visible(False)


def as_shown(image: Array) -> Array:
    """Turn an image the way matplotlib and Pillow want it. Shapes: (C, H, W) -> (H, W) or (H, W, C)."""
    return image[0] if len(image) == 1 else np.moveaxis(image, 0, -1)


def _font_size(labels: Sequence[object]) -> float:
    """Choose points at which the longest label fits above its image."""
    longest = max((len(str(label)) for label in labels), default=0)
    return min(10.0, 72 * CELL / (0.62 * max(1, longest)))
