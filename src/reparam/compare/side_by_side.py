"""Experiments by name -> tables on standard output, and one HTML page."""

import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
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
from reparam.metrics import GROUPS, HEADLINE, VALIDATION, describe
from reparam.pages.layout import environment
from reparam.paths import Paths

TEMPLATE = Path(__file__).with_name("comparison.html")
PARITY = frozenset(name for name in GROUPS["Export"] if "_max_" in name)  # of one model with its export
STYLES = {"better": "green", "worse": "red", "within noise": "dim"}


@dataclass(frozen=True)
class Listing:
    """A table to print: on a terminal, or as Markdown."""

    title: str
    head: Sequence[str]
    rows: Sequence[Sequence[str | Text]]


def run(names: Sequence[str], paths: Paths, output: Path | None = None, *, as_markdown: bool = False) -> None:
    """Compare experiments with the first of them.

    Raises: UserError if one is not to be found.
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
    if as_markdown:
        sys.stdout.write(markdown(comparison))
    else:
        show(comparison, paths.relative(target))


def find(name: str, paths: Paths) -> Experiment:
    """Read the working copy, a revision or an experiment of DVC, or a run of MLflow, the first of them that exists.

    Raises: UserError if it is none of them.
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
    """Print parameters and telling metrics; where nobody looks at a terminal, lines are as long as they need to be."""
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 10_000)
    for listing in _listings(comparison, _telling(comparison)):
        _print(console, listing)
    said = [*_left_out(comparison), *_without_results(comparison), *_notes(comparison)]
    for line in [*said, f"{page}: written"]:
        console.print(Text(line), soft_wrap=True)
    for line in conclude(comparison):
        console.print(Text(line, style="bold"), soft_wrap=True)


def conclude(comparison: Comparison) -> Iterator[str]:
    """Say of each experiment whether it is better than the first, by the metric by which to choose.

    Where there are several seeds, the sentences are on groups, over their seeds.
    """
    by = comparison.deciding
    over = ", over seeds" if comparison.groups else ""
    names = comparison.groups or [experiment.name for experiment in comparison.experiments]
    cells = (comparison.seeds if comparison.groups else comparison.metrics).get(by, ())
    if not by and len(names) > 1 and comparison.metrics:
        yield (
            f"no verdict by which to choose: wanted one metric of the validation split, found none; elbo{VALIDATION} "
            "needs preprocess.validation above 0 and a density of the pixels"
        )
    for name, cell in zip(names[1:], cells[1:], strict=bool(cells)):
        yield f"{name}: {_verdict(cell, names[0], by)}{over}"


def _verdict(cell: Cell, first: str, by: str) -> str:
    found = cell.difference
    if found is None:
        return f"no verdict against {first}: {by} is not known of both"
    if found.value == found.error == 0:
        return f"the same as {first} by {by}"
    if not found.verdict:
        return f"no verdict against {first}: {by} does not compare, or one has no known error"
    word = {"within noise": "within noise of", "differs": "differs from"}.get(found.verdict, f"{found.verdict} than")
    return f"{word} {first} by {by} ({spell(found.value, found.error, '+')})"


def _telling(comparison: Comparison) -> dict[str, Sequence[Cell]]:
    """Leave out what is the same number in all, and the parity of each model with its own export."""
    return {name: cells for name, cells in comparison.metrics.items() if name not in PARITY and not _is_equal(cells)}


def _is_equal(cells: Sequence[Cell]) -> bool:
    return len({cell.value for cell in cells}) == 1 and not any(cell.error for cell in cells)


def _left_out(comparison: Comparison) -> Iterator[str]:
    equal = [f"{name} {_value(cells[0])}" for name, cells in comparison.metrics.items() if _is_equal(cells)]
    if equal:
        yield f"equal in all: {', '.join(equal)}"
    parity = [name for name, cells in comparison.metrics.items() if name in PARITY and not _is_equal(cells)]
    if parity:
        yield f"on the page alone, for each model with its own export: {', '.join(parity)}"


def markdown(comparison: Comparison) -> str:
    """Write a comment on a pull request: the headline metrics, and everything else folded below them."""
    lines = _markdown_table(_headline(comparison))
    for line in [*_without_results(comparison), *conclude(comparison)]:
        lines += [line, ""]
    lines += ["<details><summary>Parameters, all metrics, notes</summary>", ""]
    for listing in _listings(comparison, comparison.metrics):
        lines += _markdown_table(listing)
    return "\n".join([*lines, *(f"- {note}" for note in _notes(comparison)), "", "</details>"]) + "\n"


def _headline(comparison: Comparison) -> Listing:
    """List the metric by which to choose, then the headline metrics."""
    names = [experiment.name for experiment in comparison.experiments]
    wanted = dict.fromkeys(name for name in (comparison.deciding, *HEADLINE) if name in comparison.metrics)
    titles = {name: metric.title for name in wanted if (metric := describe(name))}
    rows = {title: comparison.metrics[name] for name, title in titles.items()}
    return _in_one("Headline metrics ± standard error", names, rows, "")


def _in_one(title: str, names: Sequence[str], rows: Mapping[str, Sequence[Cell]], deciding: str) -> Listing:
    """List values, each row with its differences from the first experiment; the one by which to choose in bold."""
    names, found = _with_results(names, rows)
    compared = names[1:] if any(cell.difference for cells in found.values() for cell in cells) else []
    listed = [
        _row(name, [*map(_value, cells), *(_difference(cell) for cell in cells[1:] if compared)], deciding)
        for name, cells in found.items()
    ]
    return Listing(title, ("", *names, *(f"{other} against {names[0]}" for other in compared)), listed)


def _row(name: str, cells: Sequence[str | Text], deciding: str) -> list[str | Text]:
    if name != deciding:
        return [name, *cells]
    return [Text(cell, style="bold") if isinstance(cell, str) else cell for cell in (name, *cells)]


def _with_results(names: Sequence[str], rows: Mapping[str, Sequence[Cell]]) -> tuple[list[str], dict[str, list[Cell]]]:
    """Leave out the columns and rows in which nothing was measured."""
    kept = [i for i in range(len(names)) if any(cells and cells[i].value is not None for cells in rows.values())]
    return [names[i] for i in kept], {name: [cells[i] for i in kept] for name, cells in rows.items() if cells}


def _without_results(comparison: Comparison) -> list[str]:
    return [f"{experiment.name}: no results" for experiment in comparison.experiments if not experiment.metrics]


def _markdown_table(listing: Listing) -> list[str]:
    lines = [f"### {listing.title}", ""]
    if listing.rows:
        lines += [_markdown_row(listing.head), _markdown_row("---" for _ in listing.head)]
        lines += [*map(_markdown_row, listing.rows), ""]
    return lines


def _markdown_row(cells: Iterable[str | Text]) -> str:
    return "".join(f"| {str(cell).replace('|', chr(92) + '|')} " for cell in cells) + "|"


def _notes(comparison: Comparison) -> list[str]:
    of_each = [f"{experiment.name}: {note}" for experiment in comparison.experiments for note in experiment.notes]
    return [*comparison.notes, *of_each]


def _listings(comparison: Comparison, rows: Mapping[str, Sequence[Cell]]) -> list[Listing]:
    experiments, by = comparison.experiments, comparison.deciding
    names = [experiment.name for experiment in experiments]
    params = [[name, *values] for name, values in comparison.params.items()]
    differ = "1 differs" if len(params) == 1 else f"{len(params)} differ"
    choice = f"; choose by {by}" if by else ""
    found = [
        Listing("Experiments", ("", "origin"), [[experiment.name, experiment.origin] for experiment in experiments]),
        Listing(f"Parameters: {differ}, {comparison.equal_params} are equal", ("", *names), params),
        *_cells(f"Metrics ± standard error{choice}", names, rows, by),
    ]
    if comparison.groups:
        title = f"Mean over seeds ± standard deviation between seeds{choice}"
        over = {name: comparison.seeds[name] for name in rows}
        found += _cells(title, comparison.groups, over, by)
    return found


def _cells(title: str, names: Sequence[str], rows: Mapping[str, Sequence[Cell]], deciding: str) -> Iterator[Listing]:
    """List values, and how they differ from the first: of two in one table, because a line has space for it."""
    if len(names) == 2:
        yield _in_one(title, names, rows, deciding)
        return
    names, found = _with_results(names, rows)
    yield Listing(title, ("", *names), [_row(name, [*map(_value, cells)], deciding) for name, cells in found.items()])
    differing = {name: cells[1:] for name, cells in found.items() if any(cell.difference for cell in cells)}
    if differing:
        differences = [_row(name, [*map(_difference, cells)], deciding) for name, cells in differing.items()]
        yield Listing(f"Difference from {names[0]}", ("", *names[1:]), differences)


def _print(console: Console, listing: Listing) -> None:
    """Print one table without a box: the same on a terminal, in a file and in a pipe."""
    console.print(Text(listing.title, style="bold"))
    grid = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0))
    for cell in listing.head if listing.rows else ():
        grid.add_column(Text(cell, style="dim"), overflow="fold")
    for row in listing.rows:
        grid.add_row(*(Text(cell) if isinstance(cell, str) else cell for cell in row))
    console.print(grid)
    console.print()


def _value(cell: Cell) -> str:
    return ABSENT if cell.value is None else spell(cell.value, cell.error)


def _difference(cell: Cell) -> Text:
    found = cell.difference
    if found is None:
        return Text(ABSENT)
    text = spell(found.value, found.error, sign="+")
    return Text.assemble(text, "  " if found.verdict else "", (found.verdict, STYLES.get(found.verdict, "")))


def render(comparison: Comparison) -> str:
    """Fill the template; everything in it is escaped."""
    made = environment(TEMPLATE.parent)
    made.globals["spell"] = spell
    trained = [experiment for experiment in comparison.experiments if experiment.losses]
    splits = sorted({experiment.loss_split for experiment in trained})
    losses = {
        f"{experiment.name} ({experiment.loss_split})" if len(splits) > 1 else experiment.name: experiment.losses
        for experiment in trained
    }
    curves = png(plot_losses(losses, f"{' or '.join(splits)} loss")) if trained else None
    verdicts = list(conclude(comparison))
    return made.get_template(TEMPLATE.name).render(comparison=comparison, curves=curves, verdicts=verdicts)
