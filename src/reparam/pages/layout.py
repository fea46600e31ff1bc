"""The environment for templates of pages that open from disk without a network, and their common layout."""

import base64
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from reparam.pages.policy import policy


def environment(directory: Path) -> Environment:
    """Make the environment for the templates of a directory: they extend `layout.html`, and values are escaped."""
    made = Environment(
        loader=FileSystemLoader([directory, Path(__file__).parent]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    made.filters["png"] = _data_uri
    made.filters["policy"] = policy
    return made


def _data_uri(picture: bytes) -> Markup:
    return Markup("data:image/png;base64,") + base64.b64encode(picture).decode()
