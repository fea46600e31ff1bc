"""Metrics and figures -> one HTML page that opens from disk without a network."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from reparam.cards.data import DataCard
from reparam.cards.evaluation import EvaluationCard, EvaluationMetrics
from reparam.cards.export import ExportCard, ExportMetrics
from reparam.cards.model import ModelCard
from reparam.config import Config, Section, flatten
from reparam.metrics import ERROR, GROUPS, Metric, members
from reparam.pages.layout import environment

TEMPLATE = Path(__file__).with_suffix(".html")
FEW = 3  # classes that a title names, at most
ELSEWHERE = ("Training", "Data")  # groups of metrics that other parts of the page show


class Picture(NamedTuple):
    """A figure, its title, and how to read it; `captions` fills in what depends on the data."""

    name: str
    title: str
    text: str
    is_wide: bool = False


PICTURES = {
    "Images": (
        Picture("reconstructions", "Reconstructions", "Images above their reconstructions{drawn}.", True),
        Picture("samples", "Samples", "Images decoded from latents that were drawn from {sampler}.", True),
        Picture("classes", "Classes", "The same latents with each label.", True),
        Picture("sigma", "Uncertainty", "The standard deviation that the decoder gives each pixel.", True),
        Picture("extremes", "Best and worst", "The images that the model reconstructs best and worst.", True),
    ),
    "Latent space": (
        Picture("latent_grid", "Latent grid", "The decoder over a plane through latent space."),
        Picture("latent_scatter", "Latent scatter", "Where the images lie in that plane; the small ones are examples."),
        Picture("traversals", "Traversals", "What each dimension changes, the most informative first.", True),
        Picture(
            "factors",
            "Factors",
            "Bright: the latent has much information about the factor. One bright square in a row is best.",
            True,
        ),
        Picture("interpolation", "Interpolation", "From one image to another, through latent space.", True),
        Picture(
            "components",
            "Principal components",
            "If only few bars are tall, the codes use few directions of the latent space.",
            True,
        ),
        Picture(
            "aggregate",
            "Aggregate posterior",
            "Where the latents of all images lie, against the prior that samples are drawn from.",
            True,
        ),
    ),
    "Data and training": (
        Picture("contact_sheet", "Data", "Images of each split, as they are stored{counts}.", True),
        Picture(
            "training_curves",
            "Training",
            "The dotted line marks the epoch whose weights were kept. Steep first epochs may be cut off.",
            True,
        ),
        Picture(
            "bounds", "Bound on log p(x)", "Where it still rises at its right end, more samples would raise the bound."
        ),
        Picture(
            "outliers",
            "Other data",
            "If the two histograms are apart, the likelihood recognises images of another kind.",
        ),
        Picture("latent_use", "Latent use", "How much information about the image each latent dimension has."),
    ),
}


@dataclass(frozen=True)
class Page:
    """The content of the page; `pictures` maps names to PNG bytes."""

    config: Config
    data: DataCard
    model: ModelCard
    evaluation: EvaluationCard
    metrics: EvaluationMetrics
    exported: ExportCard
    parity: ExportMetrics
    pictures: Mapping[str, bytes]


class Number(NamedTuple):
    """A metric as the page shows it."""

    title: str
    value: str
    beside: str  # its error, or the number that it is a part of
    text: str


def render(page: Page) -> str:
    """Fill the template."""
    has_tiles = {"grid_tiles", "traversal_tiles"} <= set(page.pictures)
    return (
        environment(TEMPLATE.parent)
        .get_template(TEMPLATE.name)
        .render(
            page=page,
            title=title(page),
            captions=_captions(page),
            numbers=_numbers(page),
            figures={
                title: shown
                for title, group in PICTURES.items()
                if (shown := [picture for picture in group if picture.name in page.pictures])
            },
            tiles=page.evaluation.tiles.model_dump() if has_tiles else None,
            sections={name: _spelled(section, own=True) for name, section in page.config},
            unused={name: spelled for name, section in page.config if (spelled := _spelled(section, own=False))},
            params_file=_params_file(page.config),
        )
    )


def title(page: Page) -> str:
    """Return the title of the params file, or name model, data and classes."""
    if page.config.report.title is not None:
        return page.config.report.title
    source, classes = page.data.source, page.data.classes
    shown = ", ".join(classes) if len(classes) <= FEW else f"{len(classes)} classes"
    of = "a folder of images" if source == "folder" else source
    return f"{page.model.kind_title} of {of}" + (f": {shown}" if len(classes) > 1 else "")


def _captions(page: Page) -> dict[str, str]:
    """Return the caption of each picture, by name."""
    counts = [f"{count} {name}" for name, count in page.data.counts.items() if count]
    is_drawn = page.data.binarization == "dynamic"
    facts = {
        "counts": f": {', '.join(counts)}",
        "drawn": "; the model sees a random draw of black and white" if is_drawn else "",
        "sampler": page.evaluation.sampled_from,
    }
    return {picture.name: picture.text.format(**facts) for group in PICTURES.values() for picture in group}


def _numbers(page: Page) -> dict[str, list[Number]]:
    values = page.metrics.values | page.parity.values
    return {
        group: [_number(name, metric, values, page) for name, metric in members(group, values)]
        for group in GROUPS
        if group not in ELSEWHERE
    }


def _number(name: str, metric: Metric, values: Mapping[str, float], page: Page) -> Number:
    """Spell a metric. The error of a single image is unknown: its 0 is not shown."""
    images, error, beside = _images_of(metric, page), values.get(f"{name}{ERROR}"), ""
    if metric.unit == "dimensions":
        beside = f"of {page.model.latent_size}"
    elif metric.unit == "grey levels":
        beside = metric.unit
    elif error is not None and images > 1:
        beside = f"± {error:{metric.form}}"
    part = "" if images == page.evaluation.images else f" Of {images} image{'s' if images > 1 else ''}."
    generated = page.evaluation.details.generated
    if generated and name in generated.training_images:
        part += f" Training images in their place: {generated.training_images[name]:{metric.form}}."
    value = f"{values[name]:z{metric.form}}".replace("-", "\u2212")
    return Number(metric.title, value, beside, metric.text.replace("`", "") + part)


def _images_of(metric: Metric, page: Page) -> int:
    """Return the number of images that a metric was measured on."""
    if metric.split:
        return page.data.counts[metric.split]
    facts = getattr(page.evaluation.details, metric.facts) if metric.facts else None
    return facts.images if facts else page.evaluation.images


def _spelled(section: Section, *, own: bool) -> dict[str, str]:
    """Spell parameters as params.yaml does, without quotes: those in force, or those of choices that are not taken."""
    others = section.unused()
    return {
        name: value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        for name, value in flatten(section).items()
        if own == (name.split(".")[0] not in others)
    }


def _params_file(section: Section, indent: str = "") -> str:
    """Spell parameters as a params.yaml; every JSON value is a YAML one."""
    lines, blocks, values = [], section.blocks(), flatten(section)
    for name in type(section).model_fields:
        if name in blocks:
            lines.append(f"{indent}{name}:\n{_params_file(getattr(section, name), f'{indent}  ')}")
        else:
            lines.append(f"{indent}{name}: {json.dumps(values[name], ensure_ascii=False)}\n")
    return "".join(lines)
