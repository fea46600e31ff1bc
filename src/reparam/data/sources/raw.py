"""Raw data as a source delivers it: images in memory or in files, with their labels and splits."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from reparam.cards.data import FactorFacts
from reparam.data.sources.folder import ImageFiles

Pixels = npt.NDArray[np.uint8]  # (N, C, H, W)
Labels = npt.NDArray[np.int64]  # (N,)
Factors = npt.NDArray[np.int64]  # (N, F)


@dataclass(frozen=True)
class ImageArrays:
    """Images (N, C, H, W) and their labels (N,), all of one size, and their factors of variation where known."""

    images: Pixels
    labels: Labels
    factors: Factors | None = None


@dataclass(frozen=True)
class Raw:
    """The splits that a source publishes ("train", "validation", "test"), or all images as the one split "all"."""

    splits: dict[str, ImageArrays | ImageFiles]
    classes: tuple[str, ...]  # the name of each label
    factors: tuple[FactorFacts, ...] | None = None  # of all splits, or of none
