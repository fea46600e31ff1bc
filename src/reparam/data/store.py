"""The processed format: per split one `.npy` of uint8 images and one of labels, and a JSON card that describes them."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from reparam.errors import DamagedInputError, UserError
from reparam.files import read_json, rerun, sha256, write_json

Images = npt.NDArray[np.uint8]  # (N, C, H, W)
Labels = npt.NDArray[np.int64]  # (N,)
SplitName = Literal["train", "validation", "test"]
SPLITS: tuple[SplitName, ...] = ("train", "validation", "test")
CARD = "card.json"


@dataclass(frozen=True)
class Split:
    """Images (N, C, H, W) and their labels (N,)."""

    images: Images
    labels: Labels


def split_indices(
    count: int, validation_fraction: float, test_fraction: float, seed: int
) -> dict[SplitName, npt.NDArray[np.int64]]:
    """Partition 0..count-1 at random into the three splits.

    Raises: UserError where a split would be empty.
    """
    order = np.random.default_rng(seed).permutation(count)
    test, validation = round(count * test_fraction), round(count * validation_fraction)
    parts = {"test": order[:test], "validation": order[test : test + validation], "train": order[test + validation :]}
    for name, part in parts.items():
        if not len(part):
            raise UserError(
                f"preprocess: the {name} split of {count} images is empty with validation_fraction "
                f"{validation_fraction} and test_fraction {test_fraction}; change them in params.yaml"
            )
    return {name: np.sort(parts[name]) for name in SPLITS}


def binarize(images: Images, how: str, seed: int) -> Images:
    """Make pixels black or white once and for all, where `how` says so.

    `dynamic` keeps the grey values, because training draws from them anew at each visit.
    """
    if how == "threshold":
        return np.where(images >= 128, 255, 0).astype(np.uint8)
    if how == "static":
        # A grey value of 255 is always white, and 0 never, because the draw is below 1.
        white = np.random.default_rng(seed).random(images.shape, dtype=np.float32) < images / np.float32(255)
        return np.where(white, 255, 0).astype(np.uint8)
    return images


def write_store(directory: Path, splits: Mapping[SplitName, Split], facts: Mapping[str, Any]) -> dict[str, Any]:
    """Write splits into an empty directory, and last the card, which is returned."""
    train = splits["train"].images
    card: dict[str, Any] = {
        **facts,
        "shape": list(train.shape[1:]),
        "dtype": "uint8",
        "layout": "NCHW",
        "range": [0, 255],
        "train_mean": round(float(train.mean()) / 255, 6),
        "train_standard_deviation": round(float(train.std()) / 255, 6),
        "splits": {},
    }
    for name, split in splits.items():
        files = {"images": split.images, "labels": split.labels}
        for kind, array in files.items():
            np.save(directory / f"{name}-{kind}.npy", np.ascontiguousarray(array))
        card["splits"][name] = {
            "count": len(split.images),
            "classes": {
                str(label): int(n) for label, n in zip(*np.unique(split.labels, return_counts=True), strict=True)
            },
            **{f"{kind}_sha256": sha256(directory / f"{name}-{kind}.npy") for kind in files},
        }
    write_json(directory / CARD, card)
    return card


def read_card(directory: Path) -> Any:
    """Read what the store says of itself.

    Raises: MissingInputError, DamagedInputError.
    """
    return read_json(directory / CARD, made_by="preprocess")


def read_split(directory: Path, name: SplitName) -> Split:
    """Map the images of one split into memory and check that they are what the card promises.

    Raises: MissingInputError, DamagedInputError.
    """
    card = read_card(directory)
    count = card["splits"][name]["count"]
    images = _read_array(directory / f"{name}-images.npy", (count, *card["shape"]), np.uint8)
    labels = _read_array(directory / f"{name}-labels.npy", (count,), np.int64)
    return Split(images, labels)


def _read_array(path: Path, shape: tuple[int, ...], dtype: type[np.generic]) -> Any:
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (EOFError, OSError, ValueError) as error:  # a missing file, a short one, or no .npy at all
        found = str(error)
    else:
        if array.shape == shape and array.dtype == dtype:
            return array
        found = f"{array.dtype} {array.shape}"
    raise DamagedInputError(f"{path}: wanted {np.dtype(dtype).name} {shape}, found {found}; {rerun('preprocess')}")
