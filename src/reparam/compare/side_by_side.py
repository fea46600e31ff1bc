"""Experiments by name -> tables on standard output, and one HTML page."""

from collections.abc import Sequence
from pathlib import Path

from reparam.compare import page, sources, tables
from reparam.compare.differences import compare
from reparam.errors import UserError
from reparam.files import whole_file
from reparam.paths import Paths


def run(names: Sequence[str], paths: Paths, output: Path | None = None) -> None:
    """Compare experiments with the first of them.

    Raises: UserError where one is not to be found.
    """
    if len(names) < 2:
        raise UserError(
            f"compare: wanted two experiments or more, found only {names[0]!r}; `reparam compare workspace {names[0]}` "
            "compares it with what lies in the working copy"
        )
    comparison = compare([sources.find(name, paths) for name in names])
    target = output or paths.comparison
    with whole_file(target) as partial:
        partial.write_text(page.render(comparison), encoding="utf-8")
    tables.show(comparison, paths.relative(target))
