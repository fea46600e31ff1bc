"""Metrics and figures -> one HTML page that opens from disk without a network."""

import base64
import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

TEMPLATE = Path(__file__).with_suffix(".html")


class Number(NamedTuple):
    """How a metric is shown, and what it means in a sentence."""

    metric: str
    title: str
    text: str
    digits: int = 2


LIKELIHOOD = (
    Number("elbo", "ELBO", "Lower bound on log p(x); higher is better."),
    Number("nll", "NLL", "Importance-sampled −log p(x); lower is better."),
    Number("ais_nll", "NLL by annealing", "−log p(x) by annealed importance sampling, a check of the NLL."),
    Number(
        "ais_minus_nll",
        "Annealing − importance",
        "Difference to the NLL on the same images; about 0 when both are right.",
    ),
    Number(
        "ais_gap",
        "Gap of annealing",
        "Between the annealed bounds on simulated images: as much may the annealed NLL be off.",
    ),
    Number(
        "nll_effective_samples", "Effective samples", "How many of its samples the NLL of the median image rests on.", 1
    ),
    Number("bits_per_dim", "Bits per dimension", "The NLL in bits, per pixel and channel; lower is better.", 3),
    Number("reconstruction", "Reconstruction", "Expected −log p(x|z), x given its latents; lower is better."),
    Number(
        "bce",
        "Cross-entropy",
        "Of grey pixels, which a Bernoulli gives no density: neither ELBO nor NLL; lower is better.",
    ),
    Number(
        "auroc",
        "Outliers told apart",
        "Chance that an outlier has a larger NLL than a scored image; 0.5 is guessing.",
        3,
    ),
)
LATENTS = (
    Number("kl", "KL", "What the posterior tells beyond the prior; lower is cheaper."),
    Number(
        "mutual_information", "Mutual information", "What latents tell about which image it is: one part of the KL."
    ),
    Number(
        "marginal_kl", "Marginal KL", "How far the posterior of all images together is from the prior: the other part."
    ),
    Number(
        "total_correlation", "Total correlation", "How much latent dimensions tell about each other; 0: independent."
    ),
)
REPRESENTATION = (
    Number(
        "knn_accuracy", "Nearest neighbours", "Share of images whose class their neighbours in latent space tell.", 3
    ),
    Number(
        "probe_accuracy", "Linear probe", "Share of images whose class a linear classifier of the latents tells.", 3
    ),
)
GENERATION = (
    Number("pca_precision", "Precision", "Share of generated images that look real; higher is better.", 3),
    Number("pca_recall", "Recall", "Share of real images that could have been generated; higher is better.", 3),
    Number("pca_density", "Density", "How many real images generated ones are near to; about 1 is best.", 3),
    Number(
        "pca_coverage", "Coverage", "Share of real images that have a generated one near them; higher is better.", 3
    ),
    Number(
        "pca_frechet",
        "Fréchet distance",
        "Between generated and real images, in components of pixels; lower is better.",
    ),
)


class Picture(NamedTuple):
    """A figure, its title, and how to read it."""

    name: str
    title: str
    text: str
    is_wide: bool = False


PICTURES = {
    "Data, training, numbers": (
        Picture("contact_sheet", "Data", "Images of each split, as they are stored.", True),
        Picture("training_curves", "Training", "The dotted line marks the epoch whose weights were kept.", True),
        Picture("bounds", "Bound on log p(x)", "Flat at its right end: more samples would change little."),
        Picture("outliers", "Other data", "Apart: the likelihood tells images of another kind from those it knows."),
        Picture("latent_use", "Latent use", "How much each latent dimension tells about the image."),
    ),
    "Images": (
        Picture(
            "reconstructions",
            "Reconstructions",
            "Images above what the model makes of them; it may see a random draw of black and white.",
            True,
        ),
        Picture("extremes", "Best and worst", "The images that the model reconstructs best and worst.", True),
        Picture("samples", "Samples", "What the decoder makes of latents drawn at random: no image was given.", True),
        Picture("sigma", "Uncertainty", "The standard deviation that the decoder gives each pixel.", True),
    ),
    "Latent space": (
        Picture("latent_grid", "Latent grid", "The decoder over a plane through latent space."),
        Picture("latent_scatter", "Latent scatter", "Where the images lie in that plane; the small ones are examples."),
        Picture("traversals", "Traversals", "What each dimension changes, those that tell most first.", True),
        Picture("interpolation", "Interpolation", "From one image to another, through latent space.", True),
        Picture("components", "Principal components", "Few tall bars: images fill few directions of it.", True),
        Picture(
            "aggregate",
            "Aggregate posterior",
            "Where the latents of all images lie, against the prior that samples are drawn from.",
            True,
        ),
    ),
}
# What `evaluate` draws of every model.
REQUIRED = ("reconstructions", "samples", "latent_grid", "latent_scatter", "latent_use", "traversals")


@dataclass(frozen=True)
class Page:
    """What the page shows; the mappings are the stages' JSON files as they are, `pictures` maps names to PNG bytes."""

    title: str
    data: Mapping[str, Any]
    model: Mapping[str, Any]
    metrics: Mapping[str, float]
    evaluation: Mapping[str, Any]
    parity: Mapping[str, float]
    manifest: Mapping[str, Any]
    params: Mapping[str, Any]
    pictures: Mapping[str, bytes]


def environment(*directories: Path) -> Environment:
    """Make what fills templates: of these directories, and that of the page; everything in them is escaped."""
    made = Environment(
        loader=FileSystemLoader([*directories, TEMPLATE.parent]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    made.filters["png"] = _data_uri
    made.filters["policy"] = _policy
    return made


def render(page: Page) -> str:
    """Fill the template."""
    template = environment().get_template(TEMPLATE.name)
    return template.render(
        page=page,
        numbers=_numbers(page.metrics, _annealed_images(page.evaluation)),
        figures={
            title: shown
            for title, group in PICTURES.items()
            if (shown := [p for p in group if p.name in page.pictures])
        },
        tiles=_tiles(page),
        sections=_sections(page.params),
        params_file=_params_file(page.params),
    )


def _numbers(metrics: Mapping[str, float], annealed: int | None) -> dict[str, list[tuple[Number, str, str]]]:
    """List the metrics that there are, group by group: how each is shown, its value, and its error or nothing.

    `annealed` is the number of images behind what annealing tells, where that is known.
    """
    layers = tuple(
        Number(
            name, f"KL of layer {name.removeprefix('kl_layer_')}", "Its part of the KL; layer 1 is next to the image."
        )
        for name in metrics
        if name.startswith("kl_layer_") and not name.endswith("_se")
    )
    groups = {
        "Likelihood": LIKELIHOOD,
        "Latents": (LATENTS[0], *layers, *LATENTS[1:]),
        "Representation": REPRESENTATION,
        "Generation": GENERATION,
    }
    found: dict[str, list[tuple[Number, str, str]]] = {}
    for title, group in groups.items():
        found[title] = [
            (
                _with_images(number, annealed),
                _spell(metrics[number.metric], number),
                _spell(_error(number.metric, metrics, annealed), number),
            )
            for number in group
            if number.metric in metrics
        ]
    return found


def _annealed_images(evaluation: Mapping[str, Any]) -> int | None:
    images: int | None = evaluation.get("details", {}).get("annealed", {}).get("images")
    return images


def _with_images(number: Number, annealed: int | None) -> Number:
    """Say of how many images the NLL by annealing is: the NLL is of all."""
    if number.metric != "ais_nll" or annealed is None:
        return number
    return number._replace(text=number.text.replace("−log p(x)", f"−log p(x) of {_count(annealed)}", 1))


def _count(images: int) -> str:
    return "1 image" if images == 1 else f"{images} images"


def _error(metric: str, metrics: Mapping[str, float], annealed: int | None) -> float | None:
    """Return a standard error; None of a single image, whose error is not known and written as 0."""
    images = annealed if metric.startswith("ais_") and annealed is not None else metrics.get("images")
    return None if images == 1 else metrics.get(f"{metric}_se")


def _spell(value: float | None, number: Number) -> str:
    return "" if value is None else f"{value:z.{number.digits}f}"


def _tiles(page: Page) -> Mapping[str, Any] | None:
    """Return what the pre-rendered tiles show, where all is there that it takes to play with them."""
    has_pictures = {"grid_tiles", "traversal_tiles"} <= set(page.pictures)
    tiles: Mapping[str, Any] | None = page.evaluation.get("tiles")
    return tiles if has_pictures else None


def _data_uri(picture: bytes) -> Markup:
    return Markup("data:image/png;base64,") + base64.b64encode(picture).decode()


def _policy(elements: str) -> str:
    """Allow the given styles and scripts by their hashes, pictures within the page, and nothing else.

    Source: Content Security Policy Level 3, sec. 6.7. A data block (`<script type=...>`) is not run, and needs no hash.
    """
    rules = ["default-src 'none'", "base-uri 'none'", "form-action 'none'", "img-src data:"]
    for name in ("style", "script"):
        texts = re.findall(f"<{name}>(.*?)</{name}>", elements, re.DOTALL)
        hashes = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in texts]
        rules += [" ".join([f"{name}-src", *(f"'sha256-{found}'" for found in hashes)])] if hashes else []
    return "; ".join(rules)


def _sections(params: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Group dotted parameter names by their section."""
    sections: dict[str, dict[str, Any]] = {}
    for path, value in params.items():
        section, _, name = path.partition(".")
        sections.setdefault(section, {})[name] = value
    return sections


def _params_file(params: Mapping[str, Any]) -> str:
    """Spell parameters as a params.yaml; every JSON value is a YAML one."""
    lines: list[str] = []
    above: list[str] = []  # sections and blocks that the line before is in
    for path, value in params.items():
        *blocks, name = path.split(".")
        for depth, block in enumerate(blocks):
            if above[: depth + 1] != blocks[: depth + 1]:
                lines.append(f"{'  ' * depth}{block}:\n")
        lines.append(f"{'  ' * len(blocks)}{name}: {json.dumps(value, ensure_ascii=False)}\n")
        above = blocks
    return "".join(lines)
