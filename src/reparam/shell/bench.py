"""Measure how long the calls of a model take on this machine."""

import itertools
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from reparam.client import Client

BATCHES = (1, 256)
SECONDS = 0.5  # for each line
FEWEST = 5  # calls
WHOLE = "float32"  # the kind of the original graphs


CALLS = {"encode": "encoder", "decode": "decoder", "score": "score"}  # and their graphs
SHIPPED = ("encoder", "decoder")  # of which there are variants
Medians = dict[tuple[str, str, int], float]  # of a call, a kind of graphs and a batch; in seconds


def bench(model: Path, open_client: Callable[[Path], Client]) -> Iterator[str]:
    """Measure the time of calls: medians, on the machine as it is. Variants take turns with the original.

    A folder with variants has a second table: what each of them saves and costs, as the manifest says, and its times.
    """
    client = open_client(model)
    tried = client.metadata.get("variants", {}) if model.is_dir() else {}
    kinds = [kind for kind, facts in tried.items() if not facts["lost"]]
    yield f"{'call':<18} {'batch':>6} {'ms':>10} {'images/s':>12}{'  speed' if kinds else ''}"
    found: Medians = {}
    for batch, (call, role) in itertools.product(BATCHES, CALLS.items()):
        if role in client.graphs:
            copies = kinds if role in SHIPPED else []
            clients = {WHOLE: client, **{kind: open_client(model / f"{role}.{kind}.onnx") for kind in copies}}
            calls = {kind: _bound(its, call) for kind, its in clients.items()}
            seconds = _medians(calls, _drawn(client, call, batch))
            for kind, its in seconds.items():
                found[call, kind, batch] = its
                title = call if kind == WHOLE else f"{call} {kind}"
                speed = f" {seconds[WHOLE] / its:>5.2f}x" if kinds else ""
                yield f"{title:<18} {batch:>6} {its * 1000:>10.3f} {batch / its:>12,.0f}{speed}"
    if tried:
        yield ""
        yield from _variants(client.metadata, found)


def _variants(facts: Mapping[str, Any], found: Medians) -> Iterator[str]:
    """Say what each kind of graphs saves and costs, or why it was not written. Sizes are of encoder and decoder."""
    columns = list(itertools.product(("encode", "decode"), BATCHES))
    whole = {"bytes": sum(facts["files"][f"{role}.onnx"]["bytes"] for role in SHIPPED), "size_ratio": 1.0}
    times = "".join(f"{f'{call} {batch}, ms':>16}" for call, batch in columns)
    yield f"{'graphs':<12} {'kB':>9} {'smaller':>8} {'ELBO, nats':>11}{times}"
    for kind, its in {WHOLE: {**whole, "elbo_change": 0.0, "lost": None}, **facts["variants"]}.items():
        if its["lost"]:
            yield f"{kind:<12} not written: {its['lost']}"
            continue
        change = "" if its["elbo_change"] is None else f"{its['elbo_change']:+.4f}"
        times = "".join(f"{found[call, kind, batch] * 1000:>16.3f}" for call, batch in columns)
        yield f"{kind:<12} {its['bytes'] / 1000:>9,.0f} {its['size_ratio']:>7.2f}x {change:>11}{times}"


def _drawn(client: Client, call: str, batch: int) -> npt.NDArray[Any]:
    rng = np.random.default_rng(0)
    if call == "decode":
        return rng.standard_normal((batch, client.latent_size), dtype=np.float32)
    return rng.integers(0, 256, (batch, *client.image_shape), dtype=np.uint8)


def _bound(client: Client, call: str) -> Callable[[Any], Any]:
    return partial(getattr(client, call), **({"labels": 0} if client.classes else {}))


def _medians(calls: Mapping[str, Callable[[Any], Any]], values: Any) -> dict[str, float]:
    """Time calls in turns, so that what else the machine does slows all alike. Units: seconds."""
    for call in calls.values():
        call(values)  # the first one allocates
    taken: dict[str, list[float]] = {name: [] for name in calls}
    end = time.perf_counter() + SECONDS * len(calls)
    while min(map(len, taken.values())) < FEWEST or time.perf_counter() < end:
        for name, call in calls.items():
            start = time.perf_counter()
            call(values)
            taken[name].append(time.perf_counter() - start)
    return {name: statistics.median(times) for name, times in taken.items()}
