"""Print how long the calls of a model take on this machine."""

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from reparam.client import Client
from reparam.client.speed import CALLS, WHOLE, Medians, compare, measure, tried

SECONDS = 0.5  # for each line


def bench(model: Path, open_client: Callable[[Path], Client]) -> Iterator[str]:
    """Measure the time of calls: medians, on the machine as it is. Variants take turns with the original.

    A folder with variants has a second table: what each of them saves and costs, as the manifest says, and its times.
    """
    client = open_client(model)
    copies, found = tried(client, model), Medians()
    has_kept = any(not facts["lost"] for facts in copies.values())
    yield f"{'call':<18} {'batch':>6} {'ms':>10} {'images/s':>12}{'  speed' if has_kept else ''}"
    for (call, kind, batch), its in measure(model, open_client, tuple(CALLS), SECONDS):
        found[call, kind, batch] = its
        title = call if kind == WHOLE else f"{call} {kind}"
        speed = f" {found[call, WHOLE, batch] / its:>5.2f}x" if has_kept else ""
        yield f"{title:<18} {batch:>6} {its * 1000:>10.3f} {batch / its:>12,.0f}{speed}"
    if copies:
        yield ""
        yield from _aligned(compare(client.metadata, found))


def _aligned(rows: Iterable[tuple[str, ...]]) -> Iterator[str]:
    widths = (9, 8, 11, 15, 15, 15, 15)
    for kind, *cells in rows:
        if len(cells) == 1:
            yield f"{kind:<12} {cells[0]}"
        else:
            yield f"{kind:<12}" + "".join(f" {cell:>{width}}" for cell, width in zip(cells, widths, strict=True))
