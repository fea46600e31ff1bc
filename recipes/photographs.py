"""Cut images out of the two photographs that scikit-learn brings, for want of faces."""

from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_sample_image


def write(directory: Path, count: int) -> Path:
    """Write a number of images from each photograph, the same each time; they overlap."""
    directory.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    for name in ("china.jpg", "flower.jpg"):
        photograph = Image.fromarray(load_sample_image(name))
        for number in range(count):
            side = int(rng.integers(64, 160))
            left, top = (int(rng.integers(extent - side)) for extent in photograph.size)
            cut = photograph.crop((left, top, left + side, top + side))
            cut.save(directory / f"{name.removesuffix('.jpg')}-{number:04}.png")
    return directory
