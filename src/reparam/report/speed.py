"""Sizes, ELBOs and times of the exported graphs -> one HTML page beside the report.

Times depend on the machine, and the bytes of the report must not: so they have a page of their own, which DVC does not
keep.
"""

import os
from pathlib import Path

from reparam.client import Client
from reparam.client.speed import SHOWN, compare, measure
from reparam.pages.layout import environment

TEMPLATE = Path(__file__).with_suffix(".html")
SECONDS = 0.1  # for each call


def render(exported: Path, title: str, manifest: str) -> str:
    """Measure encoder and decoder of a folder that has variants, on the CPU of this machine; fill the template."""
    client = Client(exported, "cpu")
    found = dict(measure(exported, lambda path: Client(path, "cpu"), SHOWN, SECONDS))
    head, *rows = compare(client.metadata, found)
    page = environment(TEMPLATE.parent).get_template(TEMPLATE.name)
    return page.render(title=title, head=head, rows=rows, cores=os.cpu_count(), manifest=manifest)
