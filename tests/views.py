"""Images as a model sees them."""

from typing import Any

import torch

from reparam.data.batches import Batches, View
from reparam.data.pixels import Pixels
from reparam.data.store import Images


def view_of(images: Images, card: dict[str, Any], batch_size: int = 4) -> View:
    """Show images as a data card says."""
    return View(Batches(images, batch_size, torch.device("cpu")), Pixels(card))
