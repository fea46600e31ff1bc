"""Pictures of what recipes measured."""

import json
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from reparam.figures.style import COLOURS, style


def by_change(result: dict[str, Any]) -> list[list[dict[str, Any]]]:
    """Group runs that differ by their seed alone."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for run in result["runs"]:
        groups.setdefault(json.dumps(run["swept"]), []).append(run)
    return list(groups.values())


def curves(results: dict[str, Any]) -> Figure:
    """Draw the training loss of the first run of each recipe, for each value of what was swept."""
    with style():
        columns = 4
        rows = -(-len(results) // columns)
        figure = Figure(figsize=(10, 1.9 * rows), layout="constrained")
        plots = figure.subplots(rows, columns, squeeze=False).flat
        for plot in plots:
            plot.set_visible(False)
        for plot, (name, result) in zip(figure.axes, results.items(), strict=False):
            plot.set_visible(True)
            for runs in by_change(result):
                history = runs[0]["history"]
                label = ", ".join(str(value) for value in runs[0]["swept"].values())
                plot.plot(history["epoch"], history["train_loss"], linewidth=1.3, label=label)
            plot.set_title(name)
            if len(by_change(result)) > 1:
                plot.legend(fontsize=6)
        figure.supxlabel("epoch", fontsize=9)
        figure.supylabel("training loss (nats per image)", fontsize=9)
        return figure


def rate_distortion(result: dict[str, Any]) -> Figure:
    """Draw KL against reconstruction, run by run."""
    with style():
        figure = Figure(figsize=(5.2, 3.6), layout="constrained")
        plot = figure.subplots()
        points = [(run["metrics"]["kl"], run["metrics"]["reconstruction"], run["swept"]) for run in result["runs"]]
        plot.plot([rate for rate, _, _ in points], [distortion for _, distortion, _ in points], marker="o")
        for rate, distortion, swept in points:
            plot.annotate(f"β {swept['objective.beta']}", (rate, distortion), (6, 4), textcoords="offset points")
        plot.set(xlabel="rate: KL (nats per image)", ylabel="distortion: reconstruction (nats per image)")
        return figure


def penalties(results: dict[str, Any]) -> Figure:
    """Compare the autoencoders with a penalty with the plain ones."""
    with style():
        figure = Figure(figsize=(10, 3.0), layout="constrained")
        noise, activations, jacobian = figure.subplots(1, 3)
        for run in results["denoising-ae"]["runs"]:
            found = run["codes"]["squared_error_under_noise"]
            noise.plot(
                [float(level) for level in found],
                list(found.values()),
                marker="o",
                markersize=3,
                label=objective_name(run),
            )
        noise.set(
            xlabel="noise on the input (black to white is 1)", ylabel="squared error per pixel", title="denoising"
        )
        noise.legend()
        centres = np.linspace(-4, 4, 41)[:-1] + 0.1
        for run in results["sparse-ae"]["runs"]:
            activations.plot(
                centres, run["codes"]["activation_histogram"], label=objective_name(run), drawstyle="steps-mid"
            )
        activations.set(xlabel="activation (root mean square is 1)", ylabel="share of activations", title="sparse")
        activations.set_yscale("log")
        shares = [run["codes"]["activation_histogram"] for run in results["sparse-ae"]["runs"]]
        if not any(sum(row[:20]) for row in shares):  # sigmoid units are never negative
            activations.set_xlim(0, 4)
        activations.legend()
        runs = results["contractive-ae"]["runs"]
        norms = [run["codes"]["relative_squared_jacobian_norm"] for run in runs]
        jacobian.bar([objective_name(run) for run in runs], norms, color=COLOURS[: len(runs)], width=0.5)
        jacobian.set(ylabel="squared Jacobian norm / code variance", title="contractive")
        return figure


def objective_name(run: dict[str, Any]) -> str:
    """Name the objective of a run as a reader knows it."""
    name: str = run["swept"]["objective.name"]
    return {"reconstruction": "plain"}.get(name, name)
