"""Metrics and figures -> one HTML page that opens from disk without a network."""

import base64
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

TEMPLATE = Path(__file__).with_suffix(".html")

# Metric, name, and what it means in a sentence.
HEADLINES = (
    ("elbo", "ELBO", "Lower bound on log p(x); higher is better."),
    ("reconstruction", "Reconstruction", "Expected −log p(x|z), x given its latents; lower is better."),
    (
        "bce",
        "Cross-entropy",
        "Of grey pixels, which a Bernoulli gives no density: neither ELBO nor NLL; lower is better.",
    ),
    ("kl", "KL", "What the posterior tells beyond the prior; lower is cheaper."),
    ("nll", "NLL", "Importance-sampled −log p(x); lower is better."),
    ("bits_per_dim", "Bits per dimension", "The NLL in bits, per pixel and channel; lower is better."),
)
FIGURES = (
    ("contact_sheet", "Data", "Images of each split, as they are stored."),
    ("training_curves", "Training", "The dotted line marks the epoch whose weights were kept."),
    (
        "reconstructions",
        "Reconstructions",
        "Test images above what the model makes of them, which may see a random draw of black and white.",
    ),
    ("samples", "Samples", "What the decoder makes of latents drawn at random: no image was given."),
    ("latent_grid", "Latent grid", "The decoder over the two latent dimensions in most use."),
    ("latent_scatter", "Latent scatter", "Where the test images lie in those two dimensions."),
    ("latent_use", "Latent use", "How much each latent dimension tells about the image."),
)


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


def render(page: Page) -> str:
    """Fill the template; everything in it is escaped."""
    environment = Environment(
        loader=FileSystemLoader(TEMPLATE.parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["png"] = _data_uri
    template = environment.get_template(TEMPLATE.name)
    headlines = [(name, title, text) for name, title, text in HEADLINES if name in page.metrics]
    figures = [(name, title, text) for name, title, text in FIGURES if name in page.pictures]
    return template.render(page=page, headlines=headlines, figures=figures, sections=_sections(page.params))


def _data_uri(picture: bytes) -> Markup:
    return Markup("data:image/png;base64,") + base64.b64encode(picture).decode()


def _sections(params: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Group dotted parameter names by their section."""
    sections: dict[str, dict[str, Any]] = {}
    for path, value in params.items():
        section, _, name = path.partition(".")
        sections.setdefault(section, {})[name] = value
    return sections
