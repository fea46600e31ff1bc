"""How long the calls of a model take on this machine."""

import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from reparam.client import Client

BATCHES = (1, 256)
SECONDS = 0.5  # for each line
FEWEST = 5  # calls


def bench(client: Client) -> Iterator[str]:
    """Say how long calls take: medians, with the machine as it is."""
    rng = np.random.default_rng(0)
    yield f"{'call':<10} {'batch':>6} {'ms':>10} {'images/s':>12}"
    for batch in BATCHES:
        images = rng.integers(0, 256, (batch, *client.image_shape), dtype=np.uint8)
        latents = rng.standard_normal((batch, client.latent_size), dtype=np.float32)
        calls: dict[str, tuple[str, Callable[..., Any], Any]] = {
            "encode": ("encoder", client.encode, images),
            "decode": ("decoder", client.decode, latents),
            "score": ("score", client.score, images),
        }
        for name, (role, call, values) in calls.items():
            if role in client.graphs:
                seconds = _median(call, values)
                yield f"{name:<10} {batch:>6} {seconds * 1000:>10.3f} {batch / seconds:>12,.0f}"


def _median(call: Callable[[Any], Any], values: Any) -> float:
    call(values)  # the first one allocates
    taken: list[float] = []
    end = time.perf_counter() + SECONDS
    while len(taken) < FEWEST or time.perf_counter() < end:
        start = time.perf_counter()
        call(values)
        taken.append(time.perf_counter() - start)
    return statistics.median(taken)
