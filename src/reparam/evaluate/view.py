"""Images of a split, as they are stored and as the model sees them, and evenly spaced ones if there are too many."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from reparam.data.batches import Batches
from reparam.data.pixels import Pixels


@dataclass(frozen=True)
class View:
    """Images of a split, and what the model sees of them."""

    batches: Batches
    pixels: Pixels

    def __len__(self) -> int:
        """Count images."""
        return len(self.batches)

    @property
    def device(self) -> torch.device:
        return self.batches.device

    def seen(self, seed: int) -> Iterator[Tensor]:
        """Yield what the model sees of every image, in the order of the store. Shapes: (B, C, H, W) float32."""
        return self.pixels.of(self.batches.in_order(), seed)

    def with_labels(self, seed: int) -> Iterator[tuple[Tensor, ...]]:
        """Yield the same, with the labels of the images if there are labels, (B,) int64."""
        labels = self.batches.labels
        if labels is None:
            return ((x,) for x in self.seen(seed))
        return zip(self.seen(seed), torch.split(labels, self.batches.batch_size), strict=False)


def evenly_spaced(count: int, limit: int) -> Tensor:
    """Return all of `count` rows, or `limit` of them at equal distances. Shapes: -> (min(count, limit),)."""
    kept = min(count, limit)
    return torch.arange(kept) * count // kept if kept else torch.arange(0)
