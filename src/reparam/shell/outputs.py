"""Write tables and images, in the format that the name of the file has."""

import csv
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from reparam.errors import UserError
from reparam.files import whole_file

Images = npt.NDArray[np.uint8]  # (B, H, W, C)
Array = npt.NDArray[Any]
WriteTable = Callable[[Sequence[str], Array], None]  # names (B,), values (B, columns)
WriteArray = Callable[[Array], None]
MOST = 4096  # images in a picture; more would be a picture that viewers refuse
GAP = 2  # pixels between the images of a grid


@contextmanager
def table(
    path: Path | None, columns: Sequence[str], count: int, dtype: type[np.number[Any]] = np.float32
) -> Iterator[WriteTable]:
    """Yield `write(names, values)` for a table of images; without a path, it is printed as CSV.

    Raises: UserError if the file cannot be of the wanted kind.
    """
    kind = path.suffix if path else ".csv"
    if kind not in TABLES:
        raise UserError(f"{path}: wanted a name that ends in {', '.join(TABLES)}")
    with whole_file(path) if path else nullcontext() as partial, TABLES[kind](partial, columns, count, dtype) as write:
        yield write


@contextmanager
def pictures(path: Path, shape: tuple[int, int, int], count: int, *, in_pairs: bool = False) -> Iterator[WriteArray]:
    """Yield `write(images)` for uint8 images: all in one array, or side by side in a PNG file.

    Shapes: `shape` (H, W, C). With `in_pairs`, each line of a PNG holds an even number of images.
    Raises: UserError if the file cannot be of the wanted kind.
    """
    if path.suffix == ".npy":
        with whole_file(path) as partial, _rows(partial, (count, *shape), np.uint8) as write:
            yield write
        return
    if path.suffix != ".png" or shape[2] not in (1, 3):
        raise UserError(f"{path}: wanted a name that ends in .npy{', .png' if shape[2] in (1, 3) else ''}")
    if not 1 <= count <= MOST:
        raise UserError(f"{path}: wanted 1 to {MOST} images, found {count}; .npy takes any number")
    parts: list[Images] = []
    yield parts.append
    columns = math.ceil(math.sqrt(count))
    _save_png(grid(np.concatenate(parts), columns + columns % 2 if in_pairs else columns), path)


def grid(images: Images, columns: int) -> Images:
    """Put images side by side on white. Shapes: (B, H, W, C) -> (height, width, C)."""
    count, height, width, channels = images.shape
    lines = math.ceil(count / columns)
    sheet = np.full((lines, columns, height + GAP, width + GAP, channels), 255, np.uint8)
    sheet.reshape(-1, *sheet.shape[2:])[:count, :height, :width] = images
    return sheet.swapaxes(1, 2).reshape(lines * (height + GAP), columns * (width + GAP), channels)[:-GAP, :-GAP]


def _save_png(image: Images, path: Path) -> None:
    from PIL import Image

    with whole_file(path) as partial:
        Image.fromarray(image[..., 0] if image.shape[2] == 1 else image).save(partial, format="PNG")


@contextmanager
def _rows(path: Path, shape: tuple[int, ...], dtype: Any) -> Iterator[WriteArray]:
    """Yield `write(values)` for the next rows of an array that never is in memory as a whole."""
    array = np.lib.format.open_memmap(path, mode="w+", dtype=dtype, shape=shape)
    done = 0

    def write(values: Array) -> None:
        nonlocal done
        array[done : done + len(values)] = values
        done += len(values)

    yield write
    array.flush()


@contextmanager
def _npy(path: Path, columns: Sequence[str], count: int, dtype: Any) -> Iterator[WriteTable]:
    with _rows(path, (count, len(columns)), dtype) as write:
        yield lambda _, values: write(values)


@contextmanager
def _csv(path: Path | None, columns: Sequence[str], _count: int, dtype: Any) -> Iterator[WriteTable]:
    with path.open("w", encoding="utf-8", newline="") if path else nullcontext(sys.stdout) as file:
        lines = csv.writer(file, lineterminator="\n")
        head = iter([["image", *columns]])  # written with the first images, so that no mistake in them comes after it

        def write(names: Sequence[str], values: Array) -> None:
            lines.writerows(head)
            # As text of the shortest form that is the same number again.
            lines.writerows([name, *map(str, row)] for name, row in zip(names, values.astype(dtype), strict=True))

        yield write
        lines.writerows(head)


@contextmanager
def _parquet(path: Path, columns: Sequence[str], _count: int, dtype: Any) -> Iterator[WriteTable]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise UserError(".parquet: needs pyarrow; run `pip install pyarrow`, or write .csv or .npy") from None
    fields = [("image", pyarrow.string()), *((name, pyarrow.from_numpy_dtype(dtype)) for name in columns)]
    with parquet.ParquetWriter(path, pyarrow.schema(fields)) as file:
        yield lambda names, values: file.write_table(
            pyarrow.table([list(names), *values.astype(dtype).T], schema=file.schema)
        )


TABLES: dict[str, Callable[..., Any]] = {".csv": _csv, ".npy": _npy, ".parquet": _parquet}
