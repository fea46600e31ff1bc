"""Section `report`."""

from typing import Annotated

from pydantic import Field

from reparam.config.section import Section


class ReportConfig(Section):
    """The page `reports/index.html`."""

    title: Annotated[str, Field(min_length=1)] | None
    """Title of the page; null names model, data and classes."""
