"""Experiments by name -> tables on standard output, and one HTML page."""

import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from reparam.compare import revisions, runs
from reparam.compare.differences import ABSENT, Cell, Comparison, compare, spell
from reparam.compare.experiment import Experiment
from reparam.errors import TrackingError, UserError
from reparam.figures.curves import plot_losses
from reparam.figures.style import png
from reparam.files import whole_file
from reparam.paths import Paths
from reparam.report.page import environment

TEMPLATE = Path(__file__).with_name("comparison.html")
STYLES = {"better": "green", "worse": "red", "within noise": "dim"}


def run(names: Sequence[str], paths: Paths, output: Path | None = None) -> None:
    """Compare experiments with the first of them.

    Raises: UserError where one is not to be found.
    """
    if len(names) < 2:
        raise UserError(
            f"compare: wanted two experiments or more, found only {names[0]!r}; `reparam compare workspace {names[0]}` "
            "compares it with what lies in the working copy"
        )
    comparison = compare([find(name, paths) for name in names])
    target = output or paths.comparison
    with whole_file(target) as partial:
        partial.write_text(render(comparison), encoding="utf-8")
    show(comparison, paths.relative(target))


def find(name: str, paths: Paths) -> Experiment:
    """Read the working copy, else a revision or an experiment of DVC, else a run of MLflow.

    Raises: UserError where it is none of them.
    """
    if name == revisions.WORKSPACE:
        return revisions.read_workspace(paths)
    wanted = "wanted `workspace`, a revision of git, an experiment of DVC, or a run of MLflow"
    if not name:
        raise UserError(f"compare: {wanted}, found an empty name")
    found = revisions.read_revision(name, paths)
    if found is not None:
        return found
    try:
        found = runs.read_run(name, paths)
    except TrackingError as error:
        raise TrackingError(f"{name}: no revision of git and no experiment of DVC; {error}") from None
    if found is None:
        raise UserError(
            f"{name}: {wanted} (an id, 6 or more digits of it, or a name), found none; `dvc exp show` lists "
            "experiments, `mlflow ui` (with --backend-store-uri as `reparam summary` prints it) lists runs"
        )
    return found


def show(comparison: Comparison, page: str) -> None:
    """Print parameters and metrics; where nobody looks at a terminal, lines are as long as they need to be."""
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 10_000)
    experiments, metrics = comparison.experiments, comparison.metrics
    names = [experiment.name for experiment in experiments]
    _table(console, "Experiments", ("", "origin"), [[experiment.name, experiment.origin] for experiment in experiments])
    rows = [[name, *values] for name, values in comparison.params.items()]
    count = comparison.equal_params
    _table(console, f"Parameters: {len(rows)} differ, {count} are equal", ("", *names) if rows else (), rows)
    _tables(console, "Metrics ± standard error", names, metrics)
    if comparison.groups:
        _tables(console, "Mean over seeds ± standard deviation between seeds", comparison.groups, comparison.seeds)
    notes = [f"{experiment.name}: {note}" for experiment in experiments for note in experiment.notes]
    for line in [*comparison.notes, *notes, f"{page}: written"]:
        console.print(Text(line), soft_wrap=True)


def _tables(console: Console, title: str, names: Sequence[str], rows: Mapping[str, Sequence[Cell]]) -> None:
    """Print values, and how they differ from the first."""
    spelled = {
        name: [ABSENT if cell.value is None else spell(cell.value, cell.error) for cell in cells]
        for name, cells in rows.items()
    }
    _table(console, title, ("", *names), [[name, *values] for name, values in spelled.items()])
    differing = {name: cells[1:] for name, cells in rows.items() if any(cell.difference for cell in cells)}
    if differing:
        differences: list[list[str | Text]] = [[name, *map(_difference, cells)] for name, cells in differing.items()]
        _table(console, f"Difference from {names[0]}", ("", *names[1:]), differences)


def _table(console: Console, title: str, head: Iterable[str], rows: Iterable[Iterable[str | Text]]) -> None:
    """Print one table without a box: the same on a terminal, in a file and in a pipe."""
    console.print(Text(title, style="bold"))
    grid = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0))
    for cell in head:
        grid.add_column(Text(cell, style="dim"), overflow="fold")
    for row in rows:
        grid.add_row(*(Text(cell) if isinstance(cell, str) else cell for cell in row))
    console.print(grid)
    console.print()


def _difference(cell: Cell) -> Text:
    found = cell.difference
    if found is None:
        return Text(ABSENT)
    text = spell(found.value, found.error, sign="+")
    return Text.assemble(text, "  " if found.verdict else "", (found.verdict, STYLES.get(found.verdict, "")))


def render(comparison: Comparison) -> str:
    """Fill the template, which extends that of the report; everything in it is escaped."""
    made = environment(TEMPLATE.parent)
    made.globals["spell"] = spell
    trained = [experiment for experiment in comparison.experiments if experiment.losses]
    splits = sorted({experiment.loss_split for experiment in trained})
    losses = {
        f"{experiment.name} ({experiment.loss_split})" if len(splits) > 1 else experiment.name: experiment.losses
        for experiment in trained
    }
    curves = png(plot_losses(losses, f"{' or '.join(splits)} loss")) if trained else None
    return made.get_template(TEMPLATE.name).render(comparison=comparison, curves=curves)
