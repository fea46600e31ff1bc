"""Measure how long the calls of a model take on this machine."""

import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from reparam.client import Client

BATCHES = (1, 256)
SECONDS = 0.5  # for each line
FEWEST = 5  # calls


def bench(model: Path, open_client: Callable[[Path], Client]) -> Iterator[str]:
    """Measure the time of calls: medians, on the machine as it is. Variants take turns with the original."""
    client = open_client(model)
    kinds = [
        kind for kind, facts in client.metadata.get("variants", {}).items() if model.is_dir() and not facts["lost"]
    ]
    rng = np.random.default_rng(0)
    yield f"{'call':<18} {'batch':>6} {'ms':>10} {'images/s':>12}{'  speed' if kinds else ''}"
    for batch in BATCHES:
        images = rng.integers(0, 256, (batch, *client.image_shape), dtype=np.uint8)
        latents = rng.standard_normal((batch, client.latent_size), dtype=np.float32)
        label = {"labels": 0} if client.classes else {}
        for name, role, values in (
            ("encode", "encoder", images),
            ("decode", "decoder", latents),
            ("score", "score", images),
        ):
            if role in client.graphs:
                clients = {name: client}
                if role != "score":  # of which there are no variants
                    clients |= {f"{name} {kind}": open_client(model / f"{role}.{kind}.onnx") for kind in kinds}
                seconds = _medians(
                    {title: partial(getattr(its, name), **label) for title, its in clients.items()}, values
                )
                for title, its in seconds.items():
                    speed = f" {seconds[name] / its:>5.2f}x" if kinds else ""
                    yield f"{title:<18} {batch:>6} {its * 1000:>10.3f} {batch / its:>12,.0f}{speed}"


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
