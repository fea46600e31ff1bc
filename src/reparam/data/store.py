"""The processed format: per split a `.npy` of uint8 images, of labels and, where known, of factors; a JSON card."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import numpy.typing as npt

from reparam.arrays import map_array
from reparam.cards.card import CARD
from reparam.cards.data import (
    Binarization,
    DataCard,
    FactorFacts,
    ImageFacts,
    Scaling,
    ScalingKind,
    SplitFacts,
    SplitName,
)
from reparam.config import flatten
from reparam.errors import DamagedInputError, StaleInputError
from reparam.files import rerun, sha256
from reparam.machine import verified

Images = npt.NDArray[np.uint8]  # (N, C, H, W)
Labels = npt.NDArray[np.int32]  # (N,)
Factors = npt.NDArray[np.int32]  # (N, F)
Channels = tuple[float, ...]  # a value for each
SPLITS: tuple[SplitName, ...] = ("train", "validation", "test")

CHUNK = 8192  # images handled at once, unless they are large
CHUNK_BYTES = 1 << 22


@dataclass(frozen=True)
class Split:
    """Images (N, C, H, W), their labels (N,) and, where known, their factors of variation."""

    images: Images
    labels: Labels
    factors: Factors | None = None

    def thinned(self, limit: int) -> Self:
        """Return evenly spaced images, `limit` at most, with their labels."""
        rows = evenly_spaced(len(self.labels), limit)
        return replace(self, images=self.images[rows], labels=self.labels[rows], factors=None)


def evenly_spaced(count: int, limit: int) -> npt.NDArray[np.int64]:
    """Return all of `count` rows, or `limit` of them at equal distances. Shapes: -> (min(count, limit),)."""
    kept = min(count, limit)
    return np.arange(kept) * count // max(1, kept)


def binarize(path: Path, how: str, seed: tuple[int, ...]) -> None:
    """Make the pixels of a `.npy` file black or white once and for all, if `how` asks for it.

    `dynamic` keeps the grey values, because training draws from them again at each visit.
    """
    if how not in ("threshold", "static"):
        return
    rng = np.random.default_rng(seed)
    for grey in _pieces(path, "r+"):
        # A grey value of 255 is always white, and 0 never, because the draw is below 1.
        draw = rng.random(grey.shape, dtype=np.float32) * np.float32(255) if how == "static" else np.float32(127.5)
        grey[:] = np.where(draw < grey, 255, 0)


@dataclass(frozen=True)
class Origin:
    """The facts that the arrays lack; the fields are those of the card."""

    source: str
    options: dict[str, str]
    binarization: Binarization
    classes: tuple[str, ...]
    skipped: dict[str, str]
    title: str
    licence: str
    factors: tuple[FactorFacts, ...] | None = None


def write_card(directory: Path, origin: Origin, scaling: ScalingKind) -> DataCard:
    """Describe the arrays in a directory, write the card last of all, and return it."""
    train = np.load(directory / "train-images.npy", mmap_mode="r")
    mean, deviation = _moments(directory / "train-images.npy", train.shape[1])
    card = DataCard(
        **vars(origin),
        scaling=_scale(scaling, mean, deviation, is_drawn=origin.binarization == "dynamic"),
        shape=train.shape[1:],
        train_mean=mean,
        train_standard_deviation=deviation,
        splits={name: _describe(directory, name, origin.classes) for name in SPLITS},
    )
    card.write(directory / CARD)
    return card


def read_card(directory: Path) -> DataCard:
    """Read the card of the store.

    Raises: MissingInputError, DamagedInputError.
    """
    return DataCard.read(directory / CARD, "preprocess")


def read_card_of(directory: Path, trained_on: ImageFacts, card_sha256: str) -> DataCard:
    """Read the card of the store, and check that its images are those that a model was trained on.

    Raises: MissingInputError, DamagedInputError, StaleInputError.
    """
    card = read_card(directory)
    wanted, found = (flatten(facts.model_dump(mode="json")) for facts in (trained_on, card.images))
    for name, value in wanted.items():
        _require_equal(f"{directory}: {name}", value, found[name])
    _require_equal(f"{directory / CARD}: checksum", card_sha256, card.digest)
    return card


def _require_equal(what: str, wanted: object, found: object) -> None:
    if wanted != found:
        raise StaleInputError(
            f"{what}: wanted {wanted}, as the model in models/vae was trained on, found {found}; run `dvc repro`"
        )


def read_split(directory: Path, name: SplitName, *, is_verified: bool = False) -> Split:
    """Map the images of one split into memory, and check them against the card.

    If another process of this machine verifies the checksums, this one need not.

    Raises: MissingInputError, DamagedInputError.
    """
    card = read_card(directory)
    facts = card.splits[name]
    shape = (facts.count, *card.shape)
    digests = ("", "") if is_verified else (facts.images_sha256, facts.labels_sha256)
    images = _read_array(directory / f"{name}-images.npy", shape, np.uint8, digests[0])
    labels = _read_array(directory / f"{name}-labels.npy", shape[:1], np.int32, digests[1])
    if card.factors is None:
        return Split(images, labels)
    digest = "" if is_verified else facts.factors_sha256 or ""
    factors = _read_array(directory / f"{name}-factors.npy", (facts.count, len(card.factors)), np.int32, digest)
    return Split(images, labels, factors)


def _read_array(path: Path, shape: tuple[int, ...], dtype: type[np.generic], digest: str) -> Any:
    try:
        array = map_array(path)
    except (OSError, ValueError) as error:  # a missing file, a short one, or no .npy at all
        found = str(error)
    else:
        found = f"{array.dtype} {array.shape}"
        if array.shape == shape and array.dtype == dtype:
            if not digest or verified.matches(path, digest, sha256):
                return array
            found = "other values, by their checksum"
    raise DamagedInputError(f"{path}: wanted {np.dtype(dtype).name} {shape}, found {found}; {rerun('preprocess')}")


def _describe(directory: Path, name: SplitName, classes: Sequence[str]) -> SplitFacts:
    images, labels, factors = (directory / f"{name}-{kind}.npy" for kind in ("images", "labels", "factors"))
    numbers, counts = np.unique(np.load(labels), return_counts=True)
    return SplitFacts(
        count=len(np.load(images, mmap_mode="r")),
        classes={classes[number]: int(count) for number, count in zip(numbers, counts, strict=True)},
        images_sha256=sha256(images),
        labels_sha256=sha256(labels),
        factors_sha256=sha256(factors) if factors.exists() else None,
    )


def _scale(kind: ScalingKind, mean: Channels, deviation: Channels, *, is_drawn: bool) -> Scaling:
    """Return the shift and scale of pixels; images of one colour are not scaled."""
    # Under `dynamic` the model sees draws of black and white, whose variance is m (1 - m), not the grey values.
    seen = tuple(round((m * (1 - m)) ** 0.5, 6) for m in mean) if is_drawn else deviation
    half, nothing, one = ((value,) * len(mean) for value in (0.5, 0.0, 1.0))
    shift, scale = {
        "unit": (nothing, one),
        "symmetric": (half, half),
        "standard": (mean, tuple(d or 1.0 for d in seen)),
    }[kind]
    return Scaling(kind=kind, shift=shift, scale=scale)


def _pieces(path: Path, mode: Literal["r", "r+"]) -> Iterator[Images]:
    """Map a `.npy` file piece by piece: mapped pages count as memory of the process. Shapes: (n, C, H, W)."""
    whole = np.load(path, mmap_mode="r")
    rows = min(CHUNK, max(1, CHUNK_BYTES // max(1, whole[:1].nbytes)))
    for start in range(0, len(whole), rows):
        yield np.load(path, mmap_mode=mode)[start : start + rows]


def _moments(path: Path, channels: int) -> tuple[Channels, Channels]:
    """Return mean and standard deviation per channel, from exact counts of the 256 values. Units: [0, 1]."""
    counts = np.zeros((channels, 256), np.int64)
    for images in _pieces(path, "r"):
        for channel, pixels in enumerate(images.swapaxes(0, 1)):
            counts[channel] += np.bincount(pixels.ravel(), minlength=256)
    values = np.arange(256) / 255
    mean = counts @ values / counts.sum(1)
    deviation = np.sqrt((counts * (values - mean[:, None]) ** 2).sum(1) / counts.sum(1))
    return tuple(mean.round(6).tolist()), tuple(deviation.round(6).tolist())
