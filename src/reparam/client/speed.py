"""Measure how long the calls of a model and of its variants take on this machine."""

import itertools
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from reparam.client.client import Client

BATCHES = (1, 256)
FEWEST = 5  # calls
WHOLE = "float32"  # the kind of the original graphs
CALLS = {"encode": "encoder", "decode": "decoder", "score": "score"}  # and their graphs
SHOWN = ("encode", "decode")  # the calls of graphs that have variants
Timing = tuple[str, str, int]  # a call, a kind of graphs and a batch
Medians = dict[Timing, float]  # in seconds


def measure(
    model: Path, open_client: Callable[[Path], Client], names: Sequence[str], seconds: float
) -> Iterator[tuple[Timing, float]]:
    """Measure the calls with these names, for so many seconds each; yield medians. Units: seconds a call."""
    client = open_client(model)
    kinds = [kind for kind, facts in tried(client, model).items() if not facts["lost"]]
    for batch, call in itertools.product(BATCHES, names):
        role = CALLS[call]
        if role in client.graphs:
            copies = kinds if call in SHOWN else []
            clients = {WHOLE: client, **{kind: open_client(model / f"{role}.{kind}.onnx") for kind in copies}}
            calls = {kind: _bound(its, call) for kind, its in clients.items()}
            medians = _medians(calls, _drawn(client, call, batch), seconds)
            yield from (((call, kind, batch), its) for kind, its in medians.items())


def compare(facts: Mapping[str, Any], found: Medians) -> Iterator[tuple[str, ...]]:
    """Say what each kind of graphs saves and costs, or why it was not written: cells of a table, titles first.

    `facts` are those of a manifest with variants. Sizes are of encoder and decoder.
    """
    columns = list(itertools.product(SHOWN, BATCHES))
    whole = {
        "bytes": sum(facts["files"][f"{CALLS[call]}.onnx"]["bytes"] for call in SHOWN),
        "size_ratio": 1.0,
        "elbo_change": 0.0,
        "lost": None,
    }
    yield "graphs", "kB", "smaller", "ELBO, nats", *(f"{call} {batch}, ms" for call, batch in columns)
    for kind, its in {WHOLE: whole, **facts["variants"]}.items():
        if its["lost"]:
            yield kind, f"not written: {its['lost']}"
            continue
        change = "" if its["elbo_change"] is None else f"{its['elbo_change']:+.4f}"
        times = (f"{found[call, kind, batch] * 1000:.3f}" for call, batch in columns)
        yield kind, f"{its['bytes'] / 1000:,.0f}", f"{its['size_ratio']:.2f}x", change, *times


def tried(client: Client, model: Path) -> Mapping[str, Any]:
    """Return the facts of the variants that the exporter tried. A single graph has none."""
    facts: Mapping[str, Any] = client.metadata.get("variants", {}) if model.is_dir() else {}
    return facts


def _drawn(client: Client, call: str, batch: int) -> npt.NDArray[Any]:
    rng = np.random.default_rng(0)
    if call == "decode":
        return rng.standard_normal((batch, client.latent_size), dtype=np.float32)
    return rng.integers(0, 256, (batch, *client.image_shape), dtype=np.uint8)


def _bound(client: Client, call: str) -> Callable[[Any], Any]:
    return partial(getattr(client, call), **({"labels": 0} if client.classes else {}))


def _medians(calls: Mapping[str, Callable[[Any], Any]], values: Any, seconds: float) -> dict[str, float]:
    """Time calls in turns, so that what else the machine does slows all alike. Units: seconds."""
    for call in calls.values():
        call(values)  # the first one allocates
    taken: dict[str, list[float]] = {name: [] for name in calls}
    end = time.perf_counter() + seconds * len(calls)
    while min(map(len, taken.values())) < FEWEST or time.perf_counter() < end:
        for name, call in calls.items():
            start = time.perf_counter()
            call(values)
            taken[name].append(time.perf_counter() - start)
    return {name: statistics.median(times) for name, times in taken.items()}
