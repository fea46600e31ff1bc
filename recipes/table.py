"""results/*.json, published.yaml -> RESULTS.md, the pictures in it, and the line `# Measured:` on top of each recipe.

Only what was measured is printed. (DVC compares the values of a recipe, so its comments may change.)
"""

import json
import math
import re
import statistics
import textwrap
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from origin import determined_by
from plots import by_change, curves, penalties, rate_distortion
from ruamel.yaml import YAML

from reparam.errors import ParamsError
from reparam.figures.style import png

HERE = Path(__file__).parent
PIXELS = 784
LOG_PI = 392 * math.log(math.pi)  # of 784 Gaussian pixels with variance 1/2; see the recipes' headers

Metrics = dict[str, float]
Facts = dict[str, Any]  # of a recipe, in published.yaml
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
COLUMNS = ("recipe", "published ± tolerance", "measured", "", "difference", "verdict", "active units", "seeds")
TABLES: dict[str, tuple[str, dict[str, str]]] = {  # title: what to know, and metrics by the titles of columns
    "Parts": (
        "Those of standardised pixels are densities of the pixels as standardised. Effective samples are those of the "
        "NLL in the median image: with fewer than 10, the NLL is too high.",
        {"reconstruction": "reconstruction", "KL": "kl", "NLL": "nll", "effective samples": "nll_effective_samples"},
    ),
    "Disentanglement": (
        "Of posterior means. docs/how-to/disentanglement.md has the variants of the scores. The sprites have "
        "five factors. With three latents in use, the FactorVAE score is at most the share that three factors have in "
        "the votes, which are the same for all seeds of training.",
        {
            "MIG": "mig",
            "SAP": "sap",
            "DCI disentanglement": "dci_disentanglement",
            "completeness": "dci_completeness",
            "informativeness": "dci_informativeness",
            "FactorVAE score": "factor_vae_score",
        },
    ),
    "Reconstructed images and codes": (
        "PSNR in dB, entropy in bits per image.",
        {
            "PSNR": "psnr",
            "SSIM": "ssim",
            "codes in use": "codebook_usage",
            "perplexity": "codebook_perplexity",
            "entropy of codes": "code_entropy_bits",
        },
    ),
}
ROUNDING = {"train.compile"}  # parameters that change a result only by rounding


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
        "± is the standard deviation over seeds if there are several. A row passes whose mean is within the tolerance",
        "of the published number; one of fewer epochs than the recipe's has no verdict, and a verdict names what else",
        "was changed in the recipe.",
        "",
        f"| {' | '.join(COLUMNS)} |",
        "|---" * len(COLUMNS) + "|",
    ]
    for name, facts in published.items():
        lines += _rows(name, facts, results.get(name))
        _write_measured(HERE / f"{name}.yaml", facts, results.get(name))
    lines += _how(results, published)
    lines += ["", "## Where published numbers are from", ""]
    cited: dict[str, list[str]] = {}
    for name, facts in published.items():
        cited.setdefault(_cited(facts), []).append(f"`{name}`")
    lines += [f"- {', '.join(names)}: {text}." for text, names in cited.items()]
    for title in TABLES:
        lines += _metrics(title, results)
    lines += _pictures(results)
    (HERE / "RESULTS.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


def _renamed(result: dict[str, Any]) -> dict[str, Any]:
    """Call the parameters of older measurements by their names of today."""
    return result | {"budget": {RENAMED.get(path, path): value for path, value in result["budget"].items()}}


def _write_measured(recipe: Path, facts: Facts, result: dict[str, Any] | None) -> None:
    found = ["nothing yet."]
    if result is not None:
        title, measure = MEASURES[facts["measure"]]
        budget = "".join(f", {path} {value}" for path, value in result["budget"].items())
        values = [
            f"{_spread([measure(run['metrics']) for run in runs])}{_change(runs).replace(', ', ' with ', 1)}"
            for runs in by_change(result)
        ]
        count = len(by_change(result)[0])
        seeds = f"{count} seeds" if count > 1 else "one seed"
        found = [f"{title} {'; '.join(values)}", f"({seeds}{budget}, {result['device']})."]
    text = textwrap.fill(" ".join(["Measured:", *found]), 118, initial_indent="# ", subsequent_indent="# ")
    old = recipe.read_text(encoding="utf-8")
    recipe.write_text(
        re.sub(r"^# Measured:(.|\n)*?\n(?=\n)", lambda _: f"{text}\n", old, flags=re.MULTILINE), encoding="utf-8"
    )


def _rows(name: str, facts: Facts, result: dict[str, Any] | None) -> list[str]:
    published = _published(facts)
    if result is None:
        return [f"| `{name}` | {published} | not measured |{' |' * (len(COLUMNS) - 3)}"]
    title, measure = MEASURES[facts["measure"]]
    rows = []
    for runs in by_change(result):
        values = [measure(run["metrics"]) for run in runs]
        seeds = ", ".join(str(run["seed"]) for run in runs)
        gate = _gate(facts, statistics.fmean(values), result["budget"])
        measured = (_spread(values), title, *gate, _active_units(facts, runs))
        rows.append(f"| {' | '.join((f'`{name}`{_change(runs)}', published, *measured, seeds))} |")
    return rows


def _how(results: dict[str, Any], published: dict[str, Facts]) -> list[str]:
    """Say what each recipe was measured with: in a table of its own, because a wider one fits no page."""
    lines = [
        *("", "## How they were measured", ""),
        "The budget is what was changed in the recipe's file; nothing else was. A result is stale where parameters,",
        "torch, or the source of a stage that changes results, differ from those that it was measured with; unless",
        "`confirm.py` found that a short run of today's source gives the same numbers, to the last digit, as one of",
        "the source that measured it. Hours are those of training, of all runs of a row together; `about` those that",
        "were not recorded are as many as today's source would take (`hours.py`). Those of all epochs of a recipe are",
        *("extrapolated from its second epoch. Both estimates are of two cores, the second one compiled.", ""),
        *("| recipe | budget | device | hours | measured at |", "|---|---|---|---|---|"),
    ]
    for name, result in results.items():
        budget = ", ".join(f"{path} {value}" for path, value in result["budget"].items()) or "as in its file"
        hours = "not recorded"
        if "hours" in result or "hours_later" in result:
            hours = f"{result['hours']:.1f}" if "hours" in result else f"about {result['hours_later']:.1f}"
        if "train.epochs" in result["budget"] and "hours" in published[name]:
            hours += f"; all epochs about {published[name]['hours']:g}"
        lines.append(f"| `{name}` | {budget} | {result['device']} | {hours} | {_origin(name, result)} |")
    return lines


def _published(facts: Facts) -> str:
    return f"{facts['published']:.2f} ± {facts['tolerance']:g}" if "published" in facts else "no number"


def _cited(facts: Facts) -> str:
    """Say where a number is from, or why there is none."""
    parts = [facts["source"], facts["unit"]] if "published" in facts else [f"no number: {facts['reason']}"]
    return "; ".join([*parts, *([facts["note"]] if "note" in facts else [])])


def _gate(facts: Facts, mean: float, budget: dict[str, Any]) -> tuple[str, str]:
    """Return the difference to the published number, and whether it is within the tolerance: lower is better."""
    if "published" not in facts:
        return "", f"none: {facts['note']}" if "note" in facts else "none"
    difference = mean - facts["published"]
    verdict = "pass" if abs(difference) <= facts["tolerance"] else "fail" if difference > 0 else "fail: it is better"
    others = ", ".join(path for path in budget if path not in ROUNDING)
    verdict += f" (with another {others})" if others else ""
    return f"{difference:+.2f}", "none: fewer epochs" if "train.epochs" in budget else verdict


def _active_units(facts: Facts, runs: Sequence[dict[str, Any]]) -> str:
    """Return the latents in use, beside those that the source prints."""
    found = [float(run["metrics"]["active_units"]) for run in runs if "active_units" in run["metrics"]]
    if not found:
        return ""
    beside = f" (published {facts['active_units']})" if "active_units" in facts else ""
    mean = statistics.fmean(found)
    return f"{mean:,.0f}{beside}" if mean >= 1000 else f"{mean:.3g}{beside}"


def _origin(name: str, result: dict[str, Any]) -> str:
    """Say what a result was measured with, and what has changed since."""
    origin = result.get("origin")
    if origin is None:
        return "stale: before commits were recorded"
    commit, mark = str(origin["commit"]).removesuffix("+"), "+" * str(origin["commit"]).endswith("+")
    place = f"{commit[:7]}{mark}, torch {origin['torch']}"
    if "evaluated" in result:
        place += f", evaluated at {str(result['evaluated']['commit'])[:7]}"
    try:
        today = determined_by(HERE, name, result["budget"])
    except ParamsError:  # of a parameter that is there no longer
        today = {"parameters": ""}
    evaluated = result.get("evaluated", origin)["determined_by"].get("evaluate")
    known = origin["determined_by"] | {"evaluate": evaluated}
    changed = [part for part, digest in today.items() if known.get(part) != digest]
    torchs = {one["torch"].partition("+")[0] for one in (origin, result.get("evaluated", origin))}
    if torchs != {_pinned_torch()}:
        return f"stale since {place}: {', '.join([*changed, 'torch'])}"  # both short runs of `confirm.py` use today's
    confirmed = result.get("confirmed")
    if changed and confirmed and confirmed["determined_by"] == today:
        return f"{place}; {str(confirmed['commit'])[:7]} gives the same in a short run"
    return f"stale since {place}: {', '.join(changed)}" if changed else place


@cache
def _pinned_torch() -> str:
    """Return the version of torch that the project installs."""
    pins = (Path(__file__).parents[1] / "constraints.txt").read_text(encoding="utf-8")
    [version] = re.findall(r"^torch==(\S+)$", pins, re.MULTILINE)
    return str(version)


def _metrics(title: str, results: dict[str, Any]) -> list[str]:
    """Show the metrics of one of the TABLES, of all recipes that have some of them."""
    text, columns = TABLES[title]
    lines = ["", f"## {title}", "", text, "", f"| recipe | {' | '.join(columns)} |", "|---" * (1 + len(columns)) + "|"]
    for name, result in results.items():
        for runs in by_change(result):
            found = [
                [run["metrics"][metric] for run in runs if metric in run["metrics"]] for metric in columns.values()
            ]
            if any(found):
                cells = " | ".join(_spread(values) if values else "" for values in found)
                lines.append(f"| `{name}`{_change(runs)} | {cells} |")
    return lines


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
        pictures["curves"] = ("Loss per epoch", "Training loss of the first run of each recipe.", curves(results))
    if "beta-sweep" in results:
        pictures["rate-distortion"] = (
            "Rate and distortion",
            "`beta-sweep`: what beta buys.",
            rate_distortion(results["beta-sweep"]),
        )
    penalised = [results.get(f"{kind}-ae", {"runs": [{}]}) for kind in ("denoising", "sparse", "contractive")]
    if all("codes" in run for result in penalised for run in result["runs"]):
        pictures["penalties"] = (
            "What the penalties buy",
            "Each beside the plain autoencoder of its own file, trained for the same epochs.",
            penalties(results),
        )
    (HERE / "pictures").mkdir(exist_ok=True)
    for name, (title, text, figure) in pictures.items():
        figure.draw_without_rendering()  # lays it out, before `png` asks for its size
        (HERE / "pictures" / f"{name}.png").write_bytes(png(figure))
        lines += ["", f"## {title}", "", text, "", f"![{title}](pictures/{name}.png)"]
        if name == "penalties":
            lines += ["", *_penalty_table(results)]
    return lines


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


if __name__ == "__main__":
    main()
