"""Figures of curves: training epoch by epoch, bounds on log p(x) sample by sample, NLLs of other data."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullLocator

from reparam.figures.style import COLOURS, QUIET, WIDE, Array, literal, style

TERMS = {"loss": "loss", "reconstruction": "reconstruction", "kl": "KL"}
SCHEDULES = {"beta": "beta", "learning_rate": "learning rate"}  # columns that a history may have, and their titles
PER_ROW = 3
LINES = ("-", "--", ":")  # if there are more curves than colours


def plot_training(history: Mapping[str, Sequence[float]], best_epoch: int) -> Figure:
    """Plot loss, reconstruction and KL per epoch, for training and validation (if there was any), and schedules.

    Units: nats per image; schedules have their own.
    """
    with style():
        # An autoencoder has no KL.
        terms = [term for term in TERMS if term != "kl" or any(history["train_kl"])]
        schedules = [name for name in SCHEDULES if name in history]
        count = len(terms) + len(schedules)
        rows, columns = -(-count // PER_ROW), min(count, PER_ROW)
        figure = Figure(figsize=(8.8, 2.3 * rows))
        margins = {**WIDE, "wspace": 0.4, "hspace": 0.45}
        panels = list(figure.subplots(rows, columns, squeeze=False, gridspec_kw=margins).flat)
        for unused in panels[count:]:
            unused.remove()
        splits = [split for split in ("train", "validation") if f"{split}_loss" in history]
        for plot, term in zip(panels, terms, strict=False):
            curves = {split: history[f"{split}_{term}"] for split in splits}
            for colour, (split, curve) in zip(COLOURS, curves.items(), strict=False):
                _line(plot, history["epoch"], curve, colour, split)
            plot.set(title=TERMS[term], ylabel="nats per image")
            _fit_after_burn_in(plot, list(curves.values()))
        for plot, name in zip(panels[len(terms) :], schedules, strict=False):
            _line(plot, history["epoch"], history[name], COLOURS[2], name)
            plot.set(title=SCHEDULES[name])
            plot.set_ylim(bottom=0)
        for plot in panels[:count]:
            plot.axvline(best_epoch, color=QUIET, linewidth=0.8, linestyle=":")
            _name_epochs(plot)
        panels[0].legend()
        return figure


def plot_bounds(samples: Sequence[int], means: Sequence[float], errors: Sequence[float]) -> Figure:
    """Plot the importance-weighted bound against the number of samples, in a band of one standard error.

    Shapes: (L,) each. Units: nats per image.
    """
    with style():
        figure = Figure(figsize=(4.9, 2.8))
        axes = figure.subplots(gridspec_kw=WIDE)
        middle, error = np.asarray(means), np.asarray(errors)
        axes.set_xscale("log")
        axes.fill_between(samples, middle - error, middle + error, color=COLOURS[0], alpha=0.18, linewidth=0)
        axes.plot(samples, middle, color=COLOURS[0], marker="o", markersize=3.5, linewidth=1.4)
        decades = [count for count in samples if str(count).strip("0") == "1"]
        ticks = [*(count for count in decades if 2 * count <= samples[-1]), samples[-1]]
        axes.set_xticks(ticks, [f"{count:,}" for count in ticks])
        axes.xaxis.set_minor_locator(NullLocator())
        found = f"K = {samples[-1]:,}: {means[-1]:.2f} ± {errors[-1]:.2f}".replace("-", "−")
        axes.text(0.98, 0.04, found, transform=axes.transAxes, ha="right")
        axes.set(xlabel="samples per image, K", ylabel="bound on log p(x) (nats per image)")
        axes.set_title("The more samples, the tighter the bound (band: standard error)")
        return figure


def plot_outliers(usual: Array, unusual: Array, auroc: float) -> Figure:
    """Plot how surprising the images of the split are, and those that should be more so.

    Shapes: (N,), (M,). Units: nats per image.
    """
    with style():
        figure = Figure(figsize=(4.9, 2.4))
        axes = figure.subplots(gridspec_kw=WIDE)
        both = np.concatenate([usual, unusual])
        low, high = np.quantile(both, [0.0, 0.995])  # a few monsters would flatten the rest
        edges = np.linspace(low, max(high, low + 1e-6), 41).tolist()
        for values, colour, label in ((usual, COLOURS[0], "scored images"), (unusual, COLOURS[1], "other data")):
            weights = np.full(len(values), 1 / len(values))
            axes.hist(np.clip(values, low, edges[-1]), edges, weights=weights, color=colour, alpha=0.35)
            axes.hist(
                np.clip(values, low, edges[-1]), edges, weights=weights, color=colour, histtype="step", label=label
            )
        axes.set(xlabel="NLL (nats per image)", ylabel="share of images")
        axes.set_title(f"Other data is recognised by its NLL with an AUROC of {auroc:.3f}")
        axes.legend()
        return figure


def plot_losses(losses: Mapping[str, Mapping[int, float]], what: str) -> Figure:
    """Plot the loss of each experiment, by name and epoch. Units: nats per image."""
    with style():
        figure = Figure(figsize=(8.4, 3.1))
        axes = figure.subplots(gridspec_kw=WIDE)
        for number, (name, curve) in enumerate(losses.items()):
            axes.plot(
                list(curve),
                list(curve.values()),
                color=COLOURS[number % len(COLOURS)],
                linestyle=LINES[number // len(COLOURS) % len(LINES)],
                marker="o" if len(curve) == 1 else "",
                linewidth=1.4 if number else 2.8,  # so that the first shows below one that is the same
                label=literal(name.lstrip("_")),  # matplotlib hides what begins with an underscore
            )
        _fit_after_burn_in(axes, [list(curve.values()) for curve in losses.values()])
        _name_epochs(axes)
        axes.set_ylabel(f"{what} (nats per image)")
        axes.legend()
        return figure


def _line(axes: Axes, epochs: Sequence[float], curve: Sequence[float], colour: str, label: str) -> None:
    marker = "o" if len(epochs) == 1 else ""  # a line of one point is not seen
    axes.plot(epochs, curve, color=colour, linewidth=1.4, label=label, marker=marker, markersize=4)


def _name_epochs(axes: Axes) -> None:
    axes.set_xlabel("epoch")
    axes.set_xlim(left=0.5)  # the first epoch is 1
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))


def _fit_after_burn_in(axes: Axes, curves: Sequence[Sequence[float]]) -> None:
    """Let the first twentieth of each curve leave the plot at the top: it would dwarf the rest."""
    tail = np.concatenate([np.asarray(curve)[len(curve) // 20 :] for curve in curves])
    tail = tail[np.isfinite(tail)]
    if len(tail):
        margin = 0.06 * (tail.max() - tail.min() or 1.0)
        axes.set_ylim(tail.min() - margin, tail.max() + margin)
