"""Which images to measure where all would take too long."""

import torch
from torch import Tensor


def evenly_spaced(count: int, limit: int) -> Tensor:
    """Return all of `count` rows, or `limit` of them at equal distances. Shapes: -> (min(count, limit),)."""
    kept = min(count, limit)
    return torch.arange(kept) * count // kept if kept else torch.arange(0)
