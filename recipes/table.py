"""results/*.json, published.yaml -> RESULTS.md, the pictures in it, and the line `# Measured:` on top of each recipe.

Only what was measured is printed. (DVC compares the values of a recipe, so its comments may change.)
"""

import json
import math
import re
import statistics
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from ruamel.yaml import YAML

from reparam.figures.style import COLOURS, png, style

HERE = Path(__file__).parent
PIXELS = 784
LOG_PI = 392 * math.log(math.pi)  # of 784 Gaussian pixels with variance 1/2; see the recipes' headers

Metrics = dict[str, float]
MEASURES: dict[str, tuple[str, Callable[[Metrics], float]]] = {
    "negative_elbo": ("negative ELBO", lambda m: -m["elbo"]),
    "bce_plus_kl": ("cross-entropy + KL, one sample", lambda m: m["bce"] + m["kl"]),
    "nll": ("NLL", lambda m: m["nll"]),
    "psnr": ("PSNR, dB", lambda m: m["psnr"]),
    "squared_error": ("summed squared error", lambda m: m["reconstruction"] - LOG_PI),
    "squared_error_plus_kl": ("summed squared error + KL", lambda m: -m["elbo"] - LOG_PI),
    "mean_squared_error": ("squared error per pixel, standardised", lambda m: (m["reconstruction"] - LOG_PI) / PIXELS),
    "arena_loss": (
        "squared error per pixel + 0.1 KL per latent",
        lambda m: (m["reconstruction"] - LOG_PI) / PIXELS + 0.1 * m["kl"] / 5,
    ),
}
RENAMED = {"download.path": "download.folder.path"}
PARTS = ("reconstruction", "kl", "nll")


def main() -> None:
    """Write the table."""
    published = YAML(typ="safe").load(HERE / "published.yaml")
    results = {}
    for name in published:
        path = HERE / "results" / f"{name}.json"
        if path.exists():
            results[name] = _renamed(json.loads(path.read_text(encoding="utf-8")))
    lines = [
        "# What the recipes measured",
        "",
        "Written by `dvc repro` in this directory. Test split; nats per image unless the number says otherwise;",
        "± is the standard deviation over seeds where there are several. The budget is what was changed in the",
        "recipe's file; nothing else was.",
        "",
        "| recipe | published | measured | | seeds | budget | device |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, facts in published.items():
        lines += _rows(name, facts, results.get(name))
        _write_measured(HERE / f"{name}.yaml", facts, results.get(name))
    lines += [
        "",
        "## Parts",
        "",
        "Those of standardised pixels are densities of the pixels as standardised.",
        "",
        "| recipe | reconstruction | KL | NLL |",
        "|---|---|---|---|",
    ]
    for name, result in results.items():
        lines += [_parts(name, runs) for runs in _by_change(result)]
    lines += _pictures(results)
    (HERE / "RESULTS.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


def _renamed(result: dict[str, Any]) -> dict[str, Any]:
    """Call the parameters of older measurements by their names of today."""
    return result | {"budget": {RENAMED.get(path, path): value for path, value in result["budget"].items()}}


def _write_measured(recipe: Path, facts: dict[str, str], result: dict[str, Any] | None) -> None:
    found = ["nothing yet."]
    if result is not None:
        title, measure = MEASURES[facts["measure"]]
        budget = "".join(f", {path} {value}" for path, value in result["budget"].items())
        values = [
            f"{_spread([measure(run['metrics']) for run in runs])}{_change(runs).replace(', ', ' with ', 1)}"
            for runs in _by_change(result)
        ]
        count = len(_by_change(result)[0])
        seeds = f"{count} seeds" if count > 1 else "one seed"
        found = [f"{title} {'; '.join(values)}", f"({seeds}{budget}, {result['device']})."]
    text = textwrap.fill(" ".join(["Measured:", *found]), 118, initial_indent="# ", subsequent_indent="# ")
    old = recipe.read_text(encoding="utf-8")
    recipe.write_text(
        re.sub(r"^# Measured:(.|\n)*?\n(?=\n)", lambda _: f"{text}\n", old, flags=re.MULTILINE), encoding="utf-8"
    )


def _rows(name: str, facts: dict[str, str], result: dict[str, Any] | None) -> list[str]:
    if result is None:
        return [f"| `{name}` | {facts['published']} | not measured | | | | |"]
    title, measure = MEASURES[facts["measure"]]
    budget = ", ".join(f"{path} {value}" for path, value in result["budget"].items()) or "as in its file"
    rows = []
    for runs in _by_change(result):
        measured = _spread([measure(run["metrics"]) for run in runs])
        seeds = ", ".join(str(run["seed"]) for run in runs)
        cells = (f"`{name}`{_change(runs)}", facts["published"], measured, title, seeds, budget, result["device"])
        rows.append(f"| {' | '.join(cells)} |")
    return rows


def _parts(name: str, runs: Sequence[dict[str, Any]]) -> str:
    cells = []
    for part in PARTS:
        found = [run["metrics"][part] for run in runs if part in run["metrics"]]
        cells.append(_spread(found) if found else "")
    return f"| `{name}`{_change(runs)} | {' | '.join(cells)} |"


def _by_change(result: dict[str, Any]) -> list[list[dict[str, Any]]]:
    """Group runs that differ by their seed alone."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for run in result["runs"]:
        groups.setdefault(json.dumps(run["swept"]), []).append(run)
    return list(groups.values())


def _change(runs: Sequence[dict[str, Any]]) -> str:
    return "".join(f", {path} {value}" for path, value in runs[0]["swept"].items())


def _spread(values: Sequence[float]) -> str:
    mean = statistics.fmean(values)
    digits = 4 if abs(mean) < 1 else 2
    spread = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{mean:.{digits}f}{spread}" if any(isinstance(value, float) for value in values) else f"{mean:g}{spread}"


def _pictures(results: dict[str, Any]) -> list[str]:
    lines = []
    pictures = {}
    if results:
        pictures["curves"] = ("Loss per epoch", "Training loss of the first run of each recipe.", _curves(results))
    if "beta-sweep" in results:
        pictures["rate-distortion"] = (
            "Rate and distortion",
            "`beta-sweep`: what beta buys.",
            _rate_distortion(results["beta-sweep"]),
        )
    penalised = [results.get(f"{kind}-ae", {"runs": [{}]}) for kind in ("denoising", "sparse", "contractive")]
    if all("codes" in run for result in penalised for run in result["runs"]):
        pictures["penalties"] = (
            "What the penalties buy",
            "Each beside the plain autoencoder of its own file, trained for the same epochs.",
            _penalties(results),
        )
    (HERE / "pictures").mkdir(exist_ok=True)
    for name, (title, text, figure) in pictures.items():
        (HERE / "pictures" / f"{name}.png").write_bytes(png(figure))
        lines += ["", f"## {title}", "", text, "", f"![{title}](pictures/{name}.png)"]
        if name == "penalties":
            lines += ["", *_penalty_table(results)]
    return lines


def _curves(results: dict[str, Any]) -> Figure:
    with style():
        columns = 4
        rows = -(-len(results) // columns)
        figure = Figure(figsize=(10, 1.9 * rows), layout="constrained")
        plots = figure.subplots(rows, columns, squeeze=False).flat
        for plot in plots:
            plot.set_visible(False)
        for plot, (name, result) in zip(figure.axes, results.items(), strict=False):
            plot.set_visible(True)
            for runs in _by_change(result):
                history = runs[0]["history"]
                label = ", ".join(str(value) for value in runs[0]["swept"].values())
                plot.plot(history["epoch"], history["train_loss"], linewidth=1.3, label=label)
            plot.set_title(name)
            if len(_by_change(result)) > 1:
                plot.legend(fontsize=6)
        figure.supxlabel("epoch", fontsize=9)
        figure.supylabel("training loss (nats per image)", fontsize=9)
        return figure


def _rate_distortion(result: dict[str, Any]) -> Figure:
    with style():
        figure = Figure(figsize=(5.2, 3.6), layout="constrained")
        plot = figure.subplots()
        points = [(run["metrics"]["kl"], run["metrics"]["reconstruction"], run["swept"]) for run in result["runs"]]
        plot.plot([rate for rate, _, _ in points], [distortion for _, distortion, _ in points], marker="o")
        for rate, distortion, swept in points:
            plot.annotate(f"β {swept['objective.beta']}", (rate, distortion), (6, 4), textcoords="offset points")
        plot.set(xlabel="rate: KL (nats per image)", ylabel="distortion: reconstruction (nats per image)")
        return figure


def _penalties(results: dict[str, Any]) -> Figure:
    with style():
        figure = Figure(figsize=(10, 3.0), layout="constrained")
        noise, activations, jacobian = figure.subplots(1, 3)
        for run in results["denoising-ae"]["runs"]:
            found = run["codes"]["squared_error_under_noise"]
            noise.plot(
                [float(level) for level in found], list(found.values()), marker="o", markersize=3, label=_name(run)
            )
        noise.set(
            xlabel="noise on the input (black to white is 1)", ylabel="squared error per pixel", title="denoising"
        )
        noise.legend()
        centres = np.linspace(-4, 4, 41)[:-1] + 0.1
        for run in results["sparse-ae"]["runs"]:
            activations.plot(centres, run["codes"]["activation_histogram"], label=_name(run), drawstyle="steps-mid")
        activations.set(xlabel="activation (root mean square is 1)", ylabel="share of activations", title="sparse")
        activations.set_yscale("log")
        shares = [run["codes"]["activation_histogram"] for run in results["sparse-ae"]["runs"]]
        if not any(sum(row[:20]) for row in shares):  # sigmoid units are never negative
            activations.set_xlim(0, 4)
        activations.legend()
        runs = results["contractive-ae"]["runs"]
        norms = [run["codes"]["relative_squared_jacobian_norm"] for run in runs]
        jacobian.bar([_name(run) for run in runs], norms, color=COLOURS[: len(runs)], width=0.5)
        jacobian.set(ylabel="squared Jacobian norm / code variance", title="contractive")
        return figure


def _penalty_table(results: dict[str, Any]) -> list[str]:
    lines = [
        "| recipe | objective | error per pixel | under noise 0.5 | codes near 0 | Jacobian² | over code variance |",
        "|---|---|---|---|---|---|---|",
    ]
    for kind in ("denoising", "sparse", "contractive"):
        for run in results[f"{kind}-ae"]["runs"]:
            codes = run["codes"]
            errors = codes["squared_error_under_noise"]
            lines.append(
                f"| `{kind}-ae` | {run['swept']['objective.name']} | {errors['0.0']:.4f} | {errors['0.5']:.4f} "
                f"| {codes['near_zero_fraction']:.1%} | {codes['squared_jacobian_norm']:.3f} "
                f"| {codes['relative_squared_jacobian_norm']:.5f} |"
            )
    return lines


def _name(run: dict[str, Any]) -> str:
    name: str = run["swept"]["objective.name"]
    return {"reconstruction": "plain"}.get(name, name)


if __name__ == "__main__":
    main()
