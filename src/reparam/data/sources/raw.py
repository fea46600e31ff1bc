"""What a source delivers before it is processed: images in memory or in files, with their labels and splits."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from reparam.data.sources.folder import ImageFiles

Pixels = npt.NDArray[np.uint8]  # (N, C, H, W)
Labels = npt.NDArray[np.int64]  # (N,)


@dataclass(frozen=True)
class ImageArrays:
    """Images (N, C, H, W) and their labels (N,), all of one size."""

    images: Pixels
    labels: Labels


@dataclass(frozen=True)
class Raw:
    """The splits that a source publishes ("train", "validation", "test"), or all images as the one split "all"."""

    splits: dict[str, ImageArrays | ImageFiles]
    classes: tuple[str, ...]  # the name of each label
