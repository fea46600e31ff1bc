"""Turn raw images into the arrays of the store, a chunk at a time, so that memory does not grow with their number."""

import os
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import numpy.typing as npt
from rich.console import Console
from rich.progress import track

from reparam.config import PreprocessConfig
from reparam.data.images import UnreadableImageError, convert_arrays, decode, to_square
from reparam.data.sources.folder import ImageFiles
from reparam.data.sources.raw import ImageArrays, Pixels
from reparam.errors import UserError
from reparam.machine.environment import whole
from reparam.machine.threads import cores

CHUNK = 256  # images a worker takes at once: the work outweighs handing it over, and the bar still moves
ARRAY_CHUNK = 8192  # images copied at once where they need no decoding
LISTED = 20  # unreadable images that a message names

Rows = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Shape:
    """The facts that all stored images share."""

    channels: int
    height: int
    width: int
    size: int | None  # `preprocess.image_size`


def common_shape(collection: ImageArrays | ImageFiles, rows: Rows, config: PreprocessConfig) -> Shape:
    """Return the shape of the stored images; without `image_size` it is that of the first readable one."""
    size = config.image_size
    if size is not None:
        return Shape(config.channels, size, size, size)
    if isinstance(collection, ImageArrays):
        height, width = collection.images.shape[2:]
        return Shape(config.channels, height, width, size)
    unreadable = {}
    for row in rows:
        try:
            image = decode(collection.root / collection.names[row], config.channels)
        except UnreadableImageError as error:
            unreadable[collection.names[row]] = error.reason
        else:
            return Shape(config.channels, image.height, image.width, size)
    raise none_readable("train", unreadable)


def convert(collection: ImageArrays | ImageFiles, rows: Rows, shape: Shape, path: Path) -> dict[int, str]:
    """Write the images of `rows` to a `.npy` file (N, C, H, W); return the rows that could not be read, and why.

    The file holds the readable images alone, in the order of `rows`.
    """
    full = (len(rows), shape.channels, shape.height, shape.width)
    _create(path, full)
    if isinstance(collection, ImageArrays):
        _copy_arrays(collection, rows, shape, path)
        return {}
    unreadable = _decode_files(collection, rows, shape, path)
    if unreadable:
        _drop(path, np.flatnonzero(np.isin(rows, list(unreadable))))
    return unreadable


def refuse_unreadable(unreadable: dict[str, str]) -> None:
    """Raise UserError that counts and lists the unreadable images, if there are any."""
    if unreadable:
        count = f"{len(unreadable)} unreadable image{'s' if len(unreadable) > 1 else ''}"
        raise UserError(
            f"preprocess: {count}:\n{_list(unreadable)}\n"
            "fix or remove them, or set preprocess.on_error to skip in params.yaml"
        )


def none_readable(split: str, unreadable: dict[str, str]) -> UserError:
    """Return the error that no image of a split is readable."""
    return UserError(
        f"preprocess: no image of the {split} split is readable, of {len(unreadable)}:\n{_list(unreadable)}\n"
        "fix them, or give other images"
    )


def _list(unreadable: dict[str, str]) -> str:
    lines = [f"  {name}: {reason}" for name, reason in list(unreadable.items())[:LISTED]]
    more = [f"  and {len(unreadable) - LISTED} more"] if len(unreadable) > LISTED else []
    return "\n".join([*lines, *more])


def _create(path: Path, shape: tuple[int, ...]) -> None:
    # A memory map: workers write into the file, and the pages of a finished chunk can leave memory.
    np.lib.format.open_memmap(path, mode="w+", dtype=np.uint8, shape=shape).flush()
    if hasattr(os, "posix_fallocate"):  # missing on macOS
        # A full disk is an error here; later, the first page without a place on the disk would kill the process.
        with path.open("r+b") as file:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)


def _copy_arrays(collection: ImageArrays, rows: Rows, shape: Shape, path: Path) -> None:
    target = np.load(path, mmap_mode="r+")
    for start in range(0, len(rows), ARRAY_CHUNK):
        chosen = collection.images[rows[start : start + ARRAY_CHUNK]]
        target[start : start + ARRAY_CHUNK] = convert_arrays(chosen, shape.size, shape.channels)
    target.flush()


def _decode_files(files: ImageFiles, rows: Rows, shape: Shape, path: Path) -> dict[int, str]:
    chunks = [(start, rows[start : start + CHUNK]) for start in range(0, len(rows), CHUNK)]
    work = partial(_decode_chunk, files.root, shape, path)
    jobs = ((start, [(int(row), files.names[row]) for row in chunk]) for start, chunk in chunks)
    unreadable: dict[int, str] = {}
    console = Console(stderr=True)
    try:
        with _workers(len(chunks)) as pool:
            results = pool.map(work, jobs)
            for failed in track(results, "images", len(chunks), console=console, disable=not console.is_terminal):
                unreadable |= failed
    except BrokenProcessPool:
        raise UserError(
            "preprocess: a process that decodes images was killed, probably because memory ran out; set "
            "REPARAM_WORKERS=1"
        ) from None
    return unreadable


def _workers(chunks: int) -> ProcessPoolExecutor:
    wanted = whole("REPARAM_WORKERS", cores(), "a number of processes", least=1)
    # Spawned, because a fork of a process that has threads (torch, MLflow) can hang.
    return ProcessPoolExecutor(max(1, min(wanted, chunks)), mp_context=get_context("spawn"))


def _decode_chunk(root: Path, shape: Shape, path: Path, job: tuple[int, list[tuple[int, str]]]) -> dict[int, str]:
    start, items = job
    target = np.load(path, mmap_mode="r+")
    unreadable = {}
    for offset, (row, name) in enumerate(items):
        try:
            target[start + offset] = _decode_one(root / name, shape)
        except UnreadableImageError as error:
            unreadable[row] = error.reason
    return unreadable


def _decode_one(path: Path, shape: Shape) -> Pixels:
    image = decode(path, shape.channels)
    if shape.size is not None:
        return to_square(image, shape.size)
    if (image.height, image.width) != (shape.height, shape.width):
        # Not "unreadable": which image came first must not decide which ones are left out.
        raise UserError(
            f"preprocess: {path}: wanted {shape.width}x{shape.height} pixels like the first image, found "
            f"{image.width}x{image.height}; set preprocess.image_size in params.yaml to give all one size"
        )
    return np.atleast_3d(np.asarray(image)).transpose(2, 0, 1)


def _drop(path: Path, positions: Rows) -> None:
    """Rewrite a `.npy` file without some of its rows."""
    full = np.load(path, mmap_mode="r")
    kept = np.setdiff1d(np.arange(len(full)), positions)
    shorter = path.with_name(f".partial-{path.name}")
    _create(shorter, (len(kept), *full.shape[1:]))
    target = np.load(shorter, mmap_mode="r+")
    for start in range(0, len(kept), ARRAY_CHUNK):
        target[start : start + ARRAY_CHUNK] = full[kept[start : start + ARRAY_CHUNK]]
    target.flush()
    shorter.replace(path)
