"""One sentence on each experiment: whether it is better than the first, by the metric by which to choose."""

from collections.abc import Iterator

from reparam.compare.differences import Cell, Comparison, spell
from reparam.metrics import VALIDATION


def conclude(comparison: Comparison) -> Iterator[str]:
    """Yield the sentences: over seeds where there are several, otherwise on single experiments."""
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
        yield f"{name}: {_of(cell, names[0], by)}{over}"


def _of(cell: Cell, first: str, by: str) -> str:
    found = cell.difference
    if found is None:
        return f"no verdict against {first}: {by} is not known of both"
    if found.value == found.error == 0:
        return f"the same as {first} by {by}"
    if not found.verdict:
        return f"no verdict against {first}: {by} does not compare, or one has no known error"
    word = {"within noise": "within noise of", "differs": "differs from"}.get(found.verdict, f"{found.verdict} than")
    return f"{word} {first} by {by} ({spell(found.value, found.error, '+')})"
