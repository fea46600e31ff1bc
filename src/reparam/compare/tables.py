"""A comparison as plain tables on standard output."""

import sys
from collections.abc import Iterable

from rich.console import Console
from rich.table import Table
from rich.text import Text

from reparam.compare.differences import ABSENT, Cell, Comparison, spell

STYLES = {"better": "green", "worse": "red", "within noise": "dim"}
NOTE = (
    "A verdict is given beyond two standard errors of the difference. All are scored on the same images, so an error\n"
    "that takes them for independent is conservative."
)


def show(comparison: Comparison, page: str) -> None:
    """Print parameters and metrics; where nobody looks at a terminal, lines are as long as they need to be."""
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 10_000)
    names = [experiment.name for experiment in comparison.experiments]

    def table(title: str, head: Iterable[str], rows: Iterable[Iterable[str | Text]]) -> None:
        """Print one table without a box: the same on a terminal, in a file and in a pipe."""
        console.print(Text(title, style="bold"))
        grid = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0))
        for cell in head:
            grid.add_column(Text(cell, style="dim"), overflow="fold")
        for row in rows:
            grid.add_row(*(Text(cell) if isinstance(cell, str) else cell for cell in row))
        console.print(grid)
        console.print()

    experiments = comparison.experiments
    table("Experiments", ("", "origin"), [[experiment.name, experiment.origin] for experiment in experiments])
    rows = [[name, *values] for name, values in comparison.params.items()]
    count = comparison.equal_params
    table(f"Parameters: {len(rows)} differ, {count} are equal", ("", *names) if rows else (), rows)
    metrics = comparison.metrics.items()
    table("Metrics ± standard error", ("", *names), [[name, *map(_value, cells)] for name, cells in metrics])
    differences = [
        [Text(name), *map(_difference, cells[1:])] for name, cells in metrics if any(cell.difference for cell in cells)
    ]
    if differences:
        table(f"Difference from {names[0]}", ("", *names[1:]), differences)
    notes = [f"{experiment.name}: {note}" for experiment in experiments for note in experiment.notes]
    for line in [*comparison.obstacles, *notes, NOTE, f"{page}: written"]:
        console.print(Text(line), soft_wrap=True)


def _value(cell: Cell) -> str:
    return ABSENT if cell.value is None else spell(cell.value, cell.error)


def _difference(cell: Cell) -> Text:
    found = cell.difference
    if found is None:
        return Text(ABSENT)
    text = spell(found.value, found.error, sign="+")
    return Text.assemble(text, "  " if found.verdict else "", (found.verdict, STYLES.get(found.verdict, "")))
