"""The README of an exported model: a model card, in the form that model hubs read."""

import math
from collections.abc import Iterable
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from reparam.cards.export import ExportCard, TensorFacts

README = "README.md"
# As model hubs spell licences; they know others as `other`, with a name.
LICENCES = {
    "CC BY 4.0": "cc-by-4.0",
    "CC BY-SA 3.0": "cc-by-sa-3.0",
    "CC BY-SA 4.0": "cc-by-sa-4.0",
    "CC0": "cc0-1.0",
    "MIT": "mit",
}
BINARIZATION = {
    "none": "as they are",
    "threshold": "as black or white, cut at the middle",
    "static": "as black or white, drawn once",
    "dynamic": "as black or white, drawn again at each visit",
}


def render(card: ExportCard) -> str:
    """Write the page of a model, in Markdown."""
    # Not escaped, because it is not HTML.
    environment = Environment(  # noqa: S701
        loader=FileSystemLoader(Path(__file__).parent), undefined=StrictUndefined, keep_trailing_newline=True
    )
    return environment.get_template("readme.md").render(
        card=card,
        licence_id=LICENCES.get(card.licence, "other"),
        binarization=BINARIZATION[card.binarization],
        pixels=math.prod(card.image.shape),
        ports=_ports,
        label=', "label": golden["label"]' if card.classes else "",
        zero_labels=', "label": np.zeros(16, np.int64)' if card.classes else "",
    )


def _ports(tensors: Iterable[TensorFacts]) -> str:
    return "; ".join(f"`{tensor.name}`, {tensor.dtype} ({', '.join(map(str, tensor.shape))})" for tensor in tensors)
