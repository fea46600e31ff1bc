"""Images by name: files, folders, globs and arrays, read when they are needed."""

import bisect
import glob
import itertools
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from reparam.arrays import map_array
from reparam.data.images import MODES, UnreadableImageError, decode, to_square
from reparam.data.sources.folder import find_images
from reparam.errors import DamagedInputError, UserError
from reparam.files import refuse_special

Images = npt.NDArray[np.uint8]  # (B, H, W, C)
Shape = tuple[int, int, int]  # (H, W, C)
UNWRITABLE = re.compile("[\ud800-\udfff]")  # what Python gives for bytes of a name that are not UTF-8


@dataclass(frozen=True)
class Batch:
    """Some images in the order of their collection."""

    start: int  # how many images of the collection come before
    names: list[str]
    images: Images


@dataclass(frozen=True)
class ImageFiles:
    """Image files, read by Pillow as `preprocess` reads them."""

    paths: Sequence[Path]
    shape: Shape
    resize: bool

    def __len__(self) -> int:
        return len(self.paths)

    def name(self, row: int) -> str:
        return str(self.paths[row])

    def read(self, row: int) -> Images:
        """Raises: UserError if a file is no image, or of another size."""
        height, width, channels = self.shape
        try:
            image = decode(self.paths[row], channels)
        except UnreadableImageError as error:
            raise DamagedInputError(str(error)) from None
        if self.resize:
            return to_square(image, height).transpose(1, 2, 0)
        if image.size != (width, height):
            raise UserError(
                f"{self.paths[row]}: wanted {width} x {height} pixels, found {image.width} x {image.height}; --resize "
                "fits images as `reparam preprocess` does"
            )
        return np.asarray(image).reshape(self.shape)


@dataclass(frozen=True)
class Rows:
    """The images of an array that stays on the disk."""

    path: Path
    images: Images

    @classmethod
    def open(cls, path: Path, shape: Shape) -> "Rows":
        """Raises: UserError if the array is not of images of this shape."""
        array = open_array(path)
        if shape[2] == 1 and array.ndim == 3:
            array = array[..., None]
        if array.dtype != np.uint8 or array.shape[1:] != shape:
            raise UserError(
                f"{path}: wanted uint8 images of shape (N, {', '.join(map(str, shape))}), found {array.dtype} "
                f"{array.shape}"
            )
        return cls(path, array)

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle where the array is, not what is in it."""
        return Rows.open, (self.path, self.images.shape[1:])

    def __len__(self) -> int:
        return len(self.images)

    def name(self, row: int) -> str:
        return f"{self.path}[{row}]"

    def read(self, row: int) -> Images:
        image: Images = self.images[row]
        return image


class Collection:
    """All images that a command was given, in the order in which they were named."""

    def __init__(self, parts: Sequence[ImageFiles | Rows]) -> None:
        self._parts = parts
        self._starts = list(itertools.accumulate(map(len, parts), initial=0))

    @classmethod
    def find(cls, inputs: Sequence[str], shape: Shape, *, resize: bool) -> "Collection":
        """Find images by what a user typed.

        Raises: UserError if there are none.
        """
        height, width, channels = shape
        if resize and height != width:
            raise UserError(f"--resize: wanted a model of square images, found {width} x {height}")
        parts: list[ImageFiles | Rows] = []
        for is_array, paths in itertools.groupby(
            (path for text in inputs for path in _expand(text)), lambda path: path.suffix == ".npy"
        ):
            found = list(paths)
            if not is_array and channels not in MODES:
                raise UserError(f"{found[0]}: wanted a .npy file, because images of {channels} channels have no other")
            parts += [Rows.open(path, shape) for path in found] if is_array else [ImageFiles(found, shape, resize)]
        return cls(parts)

    def __len__(self) -> int:
        return self._starts[-1]

    def batches(self, span: range, size: int) -> Iterator[Batch]:
        """Read the images of a span, `size` at a time."""
        for start in range(span.start, span.stop, size):
            found = [self._locate(number) for number in range(start, min(start + size, span.stop))]
            names = [part.name(row) for part, row in found]
            yield Batch(start, names, np.stack([part.read(row) for part, row in found]))

    def _locate(self, number: int) -> tuple[ImageFiles | Rows, int]:
        part = bisect.bisect_right(self._starts, number) - 1
        return self._parts[part], number - self._starts[part]


def open_array(path: Path) -> npt.NDArray[Any]:
    """Map an array of numbers.

    Raises: UserError if the file holds none.
    """
    refuse_special(path)
    try:
        array = map_array(path)
    except ValueError as error:
        raise DamagedInputError(f"{path}: wanted an array as numpy.save writes it, found {error}") from None
    if not array.ndim:
        raise DamagedInputError(f"{path}: wanted an array as numpy.save writes it, found a single number")
    return array


def span_of(shard: str, count: int, size: int) -> range:
    """Return the part `i/n` of `count` things: whole batches, so that all parts together are what one run computes.

    Raises: UserError.
    """
    found = re.fullmatch(r"([0-9]{1,9})/([0-9]{1,9})", shard)
    first, last = map(int, found.groups()) if found else (0, 0)
    if not 1 <= first <= last:
        raise UserError(f"--shard: wanted i/n, the first of them 1/n, found {shard!r}")
    batches = -(-count // size)
    start, stop = (min(count, batches * part // last * size) for part in (first - 1, first))
    return range(start, stop)


def _expand(text: str) -> list[Path]:
    """Return the files that an argument means, each once: itself, those below a folder, or those that a pattern fits.

    Raises: UserError if there are none, or if their names cannot be written.
    """
    if not text:
        raise UserError("images: wanted names of files or folders, found an empty one; the current folder is `.`")
    path = Path(text)
    is_there = path.exists() or path.is_symlink()
    # By glob, because Path.glob takes no absolute pattern.
    matches = [text] if is_there else sorted(glob.glob(text, recursive=True))  # noqa: PTH207
    if not matches:
        raise UserError(f"{text}: found no file, folder, or files that this pattern fits")
    # A pattern that ends in ** fits a folder and also the files in it.
    found = list(dict.fromkeys(file for match in matches for file in _files(Path(match))))
    if odd := [os.fsencode(file) for file in found if UNWRITABLE.search(str(file))]:
        more = f" and {len(odd) - 1} more" if len(odd) > 1 else ""
        raise UserError(f"{text}: wanted names in UTF-8, found {odd[0]!r}{more}; rename the files or their folders")
    return found


def _files(path: Path) -> list[Path]:
    if path.is_dir():
        found = [path / name for name in find_images(path)]
        if not found:
            raise UserError(f"{path}: found no images in this folder")
        return found
    if not path.exists():
        raise UserError(f"{path}: wanted a file or folder, found a link that leads to none; mend or remove the link")
    refuse_special(path)  # to read a pipe, one would wait
    return [path]
