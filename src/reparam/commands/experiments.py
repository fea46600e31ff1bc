"""The experiments of DVC -> one table: what differs between them, and their headline metrics."""

import math
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

from rich.console import Console
from rich.table import Table
from rich.text import Text

from reparam.compare import revisions
from reparam.compare.differences import ABSENT, Obstacle, choose_metric, compare, find_obstacles, rank, spell
from reparam.compare.experiment import Experiment
from reparam.errors import UserError
from reparam.metrics import ERROR, HEADLINE, describe
from reparam.paths import Paths

COLUMNS = 160  # where nobody looks at a terminal
GAP = 2
TRAINED = "best_validation_loss"  # what there is of models that were not evaluated


@dataclass(frozen=True)
class Column:
    """A column of the table, by the name of a parameter or metric; a cell for each experiment."""

    name: str
    title: str
    cells: Sequence[str]
    is_metric: bool

    @property
    def width(self) -> int:
        return GAP + max(map(len, [self.title, *self.cells]))


def run(paths: Paths, sort: str = "", *, all_commits: bool = True) -> None:
    """Print the table.

    Raises: UserError if there is no experiment, or none has the metric or parameter to sort by.
    """
    found, notes = _read(paths, all_commits=all_commits)
    deciding = choose_metric(found)
    ranking = [name for name in (deciding, *HEADLINE) if name in found[0].metrics]
    ranking += [name for name in (HEADLINE[0], TRAINED) if any(name in one.metrics for one in found)]
    by = _named(sort, found) if sort else next(iter(ranking), HEADLINE[0])
    obstacles = {one.name: find_obstacles(found[0], one) if one is not found[0] else [] for one in found}
    barred = {name: {metric for one in why for metric in one.metrics} for name, why in obstacles.items()}
    ordered = sorted(found, key=lambda one: (by in barred[one.name], *_place(by, one)))
    notes += [
        f"{name}: in brackets, not comparable with {found[0].name}: {', '.join(reasons)}"
        for name, why in obstacles.items()
        if (reasons := _brief(one for one in why if set(one.metrics) & set(HEADLINE)))
    ]
    comparable = [one for one in ordered if not barred[one.name] & set(HEADLINE)]
    width = Console().width if sys.stdout.isatty() else COLUMNS
    console = Console(highlight=False, width=width)
    columns, left_out = _shown(
        [*_params(ordered, comparable), *_metrics([deciding, *HEADLINE, by], ordered, barred)], ordered, width
    )
    if left_out:
        notes.append(
            f"{', '.join(left_out)}: not shown, because the line is full; `reparam compare A B` shows all that differ"
        )
    _show(console, columns, ordered)
    for note in [*notes, "* best; `reparam compare A B` says whether two differ by more than noise"]:
        console.print(Text(note), soft_wrap=True)


def _read(paths: Paths, *, all_commits: bool) -> tuple[list[Experiment], list[str]]:
    """Read commits, the working copy where it differs, and experiments; say which cannot be read."""
    found: list[Experiment] = []
    notes: list[str] = []
    of: dict[str, list[tuple[str, str]]] = {}  # a note, and the experiments that it is of, with their revisions
    for row in _names(paths, all_commits=all_commits):
        try:
            experiment = revisions.read_revision(row.revision, paths)
        except UserError as error:
            notes.append(str(error))
            continue
        if experiment and (name := row.name_among(found, experiment)):
            found.append(replace(experiment, name=name))
            for note in experiment.notes:
                of.setdefault(note.replace(row.revision, "NAME"), []).append((name, row.revision))
    notes += [_shared_note(note, experiments) for note, experiments in of.items()]
    with suppress(UserError):
        here = revisions.read_workspace(paths)
        found = found if any(_is_same(here, one) for one in found) else [here, *found]
    if not found:
        raise UserError("experiments: wanted results to show, found none; run `dvc repro`, commit, and `dvc exp run`")
    return found, notes


def _shared_note(note: str, experiments: Sequence[tuple[str, str]]) -> str:
    """Say a note once for all experiments that share it; its commands say NAME for the name of any of them."""
    names = ", ".join(name for name, _ in experiments)
    if len(experiments) > 1:
        return f"{names}: {note}" + (" (NAME is one of these)" if "NAME" in note else "")
    name, revision = experiments[0]
    return f"{names}: {note.replace('NAME', revision if ' ' in name else name)}"


@dataclass(frozen=True)
class Row:
    """A commit or an experiment, before it is read."""

    name: str
    revision: str
    is_commit: bool

    def name_among(self, shown: Sequence[Experiment], read: Experiment) -> str:
        """Return a name that no row shown has; nothing if one shows the same.

        Many commits change no result, and the experiments of two of them may have the same name.
        """
        same = [one.name for one in shown if _is_same(one, read)]
        if same and (self.is_commit or self.name in same):
            return ""
        return f"{self.name} ({self.revision[:7]})" if any(one.name == self.name for one in shown) else self.name


def _is_same(one: Experiment, other: Experiment) -> bool:
    """Return whether two have the same parameters and results; other weights would give other metrics."""
    return (one.params, one.metrics) == (other.params, other.metrics)


def _names(paths: Paths, *, all_commits: bool) -> Iterator[Row]:
    """List commits, each with its experiments: first the commit that is checked out."""
    from dvc.exceptions import DvcException
    from dvc.repo import Repo
    from scmrepo.exceptions import SCMError

    try:
        with Repo(str(paths.root)) as repo:
            head = repo.scm.get_rev()
            branch = str(repo.scm.get_ref("HEAD", follow=False)).partition("refs/heads/")[2]  # empty if detached
            found = {head: [], **repo.experiments.ls(all_commits=all_commits)}
    except (DvcException, SCMError) as error:
        raise UserError(f"experiments: {str(error).splitlines()[0]}; `reparam doctor` says what is missing") from None
    for commit, experiments in found.items():
        yield Row(branch if commit == head and branch else commit[:7], commit, is_commit=True)
        yield from (Row(name, revision, is_commit=False) for name, revision in experiments)


def _named(by: str, experiments: Sequence[Experiment]) -> str:
    """Return the metric or parameter that is meant by its name, or by the last word of that."""
    known = dict.fromkeys(name for one in experiments for name in (*one.params, *one.metrics))
    meant = [name for name in known if by in (name, name.rpartition(".")[2])]
    if len(meant) != 1:
        measured = [name for name in experiments[0].metrics if not name.endswith(ERROR)]
        raise UserError(
            f"--sort {by}: wanted a parameter or metric, found {' and '.join(meant) or 'none'} of that name; metrics "
            f"are {', '.join(measured)}"
        )

    return meant[0]


def _place(by: str, one: Experiment) -> tuple[bool, float, str]:
    """Put the best first, by a metric, or the smallest value of a parameter; those that have none come last."""
    value = one.metrics.get(by, one.params.get(by))
    return value is None, rank(by, value) if isinstance(value, int | float) else math.inf, str(value)


def _brief(obstacles: Iterable[Obstacle]) -> list[str]:
    """Spell obstacles: once for all images, and without the value of the first experiment."""
    return list(dict.fromkeys("other images" if one.is_of_images else one.what for one in obstacles))


def _params(experiments: Sequence[Experiment], comparable: Sequence[Experiment]) -> list[Column]:
    """Make a column of each parameter that differs, under its last word where that is clear.

    First come those that differ between comparable experiments, because the last ones are left out of a narrow table.
    """
    differing = compare(experiments).params
    first = compare(comparable).params if len(comparable) > 1 else {}
    differing = {name: differing[name] for name in (*first, *differing)}
    words = Counter(name.rpartition(".")[2] for name in differing)
    short = {name: name.rpartition(".")[2] for name in differing}
    return [
        Column(name, short[name] if words[short[name]] == 1 else name, cells, is_metric=False)
        for name, cells in differing.items()
    ]


def _metrics(
    names: Iterable[str], experiments: Sequence[Experiment], barred: Mapping[str, set[str]]
) -> Iterator[Column]:
    """Make a column of each metric among names, in which the best of those that can be compared is marked."""
    for name in dict.fromkeys(names):
        if (metric := describe(name)) is None:  # a parameter
            continue
        rivals = [one for one in experiments if name in one.metrics and name not in barred[one.name]]
        best = min((rank(name, one.metrics[name]) for one in rivals), default=0.0)
        is_contest = len(rivals) > 1 and metric.best
        cells = []
        for one in experiments:
            value = one.metrics.get(name)
            text = ABSENT if value is None else spell(value, one.metrics.get(f"{name}{ERROR}"))
            if one in rivals:
                cells.append(f"{text}{'*' if is_contest and rank(name, one.metrics[name]) == best else ' '}")
            else:
                cells.append(f"{text} " if value is None else f"({text})")
        if set(cells) != {f"{ABSENT} "}:
            yield Column(name, f"{metric.title} ", cells, is_metric=True)


def _shown(columns: Sequence[Column], experiments: Sequence[Experiment], width: int) -> tuple[list[Column], list[str]]:
    """Leave out the last parameters where a line would be too long."""
    shown, left_out = list(columns), list[str]()
    names = max(len(one.name) for one in experiments)
    while names + sum(column.width for column in shown) > width and not shown[0].is_metric:
        last = [column for column in shown if not column.is_metric][-1]
        shown.remove(last)
        left_out.insert(0, last.name)
    return shown, left_out


def _show(console: Console, columns: Sequence[Column], experiments: Sequence[Experiment]) -> None:
    grid = Table(box=None, pad_edge=False, padding=(0, GAP, 0, 0))
    grid.add_column("", no_wrap=True)
    for column in columns:
        grid.add_column(Text(column.title, style="dim"), justify="right" if column.is_metric else "left", no_wrap=True)
    for number, one in enumerate(experiments):
        cells = [column.cells[number] for column in columns]
        grid.add_row(Text(one.name), *(Text(cell, style="bold" if cell.endswith("*") else "") for cell in cells))
    console.print(grid)
