"""Images whose factors of variation are known: dSprites, and a smaller set of the same kind, which we draw."""

import math
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from reparam.arrays import DAMAGED
from reparam.cards.data import FactorFacts
from reparam.config import DownloadConfig
from reparam.data.sources.raw import Factors, ImageArrays, Pixels, Raw
from reparam.data.sources.transport import RemoteFile
from reparam.errors import DamagedInputError
from reparam.files import rerun, whole_file

SHAPES = ("square", "ellipse", "heart")
FACTORS = ("shape", "scale", "rotation", "x", "y")
DSPRITES = "dsprites_ndarray_co1sh3sc6or40x32y32_64x64.npz"
CHUNK = 4096  # images that are unpacked at once

# Of `sprites`: 4,608 images, no two of them alike.
SPRITES = "sprites.npz"
SIZES = (len(SHAPES), 4, 6, 8, 8)
SIDE = 32  # pixels
REACH = (4.0, 7.0)  # pixels from the centre of a sprite to its farthest point, for the smallest and the largest
CENTRES = (8.2, 23.8)  # of sprites, in pixels: the first and the last one; the largest sprite stays inside


def dsprites_files() -> list[RemoteFile]:
    """Name the file of dSprites. Its page gives no checksum; pythae, disent, latte and others quote this one."""
    address = f"https://github.com/google-deepmind/dsprites-dataset/raw/master/{DSPRITES}"
    return [RemoteFile(DSPRITES, "md5:7da33b31b13a06f4b04a70402ce90c2e", (address,))]


def draw_sprites(_config: DownloadConfig, directory: Path, _mirrors: Sequence[str]) -> None:
    """Draw a sprite for each combination of factors, the same each time, into a file in the format of dSprites."""
    factors = np.indices(SIZES).reshape(len(SIZES), -1).T  # (N, F); the last factor changes first
    images = np.stack([_sprite(*row) for row in factors.tolist()]).astype(np.uint8)
    classes = np.pad(factors, ((0, 0), (1, 0)))  # the first factor there is the colour, which does not vary
    with whole_file(directory / SPRITES) as partial, partial.open("wb") as file:
        np.savez(file, imgs=images, latents_classes=classes)


def _sprite(shape: int, scale: int, rotation: int, x: int, y: int) -> npt.NDArray[np.bool_]:
    """Draw one sprite: true where the middle of a pixel is inside. Shapes: -> (SIDE, SIDE)."""
    reach, centre = np.linspace(*REACH, SIZES[1])[scale], np.linspace(*CENTRES, SIZES[3])
    rows, columns = np.indices((SIDE, SIDE)) + 0.5
    right, up = (columns - centre[x]) / reach, (centre[y] - rows) / reach
    angle = math.pi / 2 * rotation / SIZES[2]  # a quarter turn in all, after which a square looks the same again
    u, v = right * math.cos(angle) + up * math.sin(angle), up * math.cos(angle) - right * math.sin(angle)
    match SHAPES[shape]:
        case "square":
            inside = np.maximum(abs(u), abs(v)) <= math.sqrt(0.5)
        case "ellipse":
            inside = u**2 + (2 * v) ** 2 <= 1
        case _:  # the heart (x² + y² - 1)³ = x² y³, in the unit circle
            u, v = 1.25 * u, 1.25 * v + 0.15
            inside = (u**2 + v**2 - 1) ** 3 <= u**2 * v**3
    return np.asarray(inside)


def read_sprites(directory: Path, scratch: Path, *, name: str) -> Raw:
    """Read a file in the format of dSprites, except its pickled part; the label of a sprite is its shape.

    Raises: DamagedInputError.
    """
    path = directory / name
    try:
        return _read(path, scratch)
    except (*DAMAGED, LookupError) as error:
        raise DamagedInputError(
            f"{path}: wanted a file in the format of dSprites, found none ({error}); {rerun('download')}"
        ) from None


def _read(path: Path, scratch: Path) -> Raw:
    # numpy refuses to unpickle. It would leave a file open that it opened itself and that is no archive.
    with path.open("rb") as file, np.load(file) as arrays:
        missing = {"imgs", "latents_classes"} - set(arrays.files)
        if missing:
            raise DamagedInputError(f"{path}: wanted the array {min(missing)}, found none; {rerun('download')}")
        factors: Factors = arrays["latents_classes"][:, 1:]
    images = _unpack(path, scratch / "images.npy")
    found = (images.ndim, len(images), factors.shape[1:])
    if found != (3, len(factors), (len(FACTORS),)):
        raise DamagedInputError(
            f"{path}: wanted images (N, H, W) and {1 + len(FACTORS)} factors of each, found {images.shape} and "
            f"{len(factors)} rows of {1 + factors.shape[1]}; {rerun('download')}"
        )
    facts = tuple(
        FactorFacts(name=factor, size=int(values.max()) + 1, is_ordered=factor != "shape")
        for factor, values in zip(FACTORS, factors.T, strict=True)
    )
    return Raw({"all": ImageArrays(images[:, None], factors[:, 0], factors)}, SHAPES, facts)


def _unpack(path: Path, target: Path) -> Pixels:
    """Write the images, which are 0 or 1, in black and white: mapped, because those of dSprites take 3 GB of memory."""
    with zipfile.ZipFile(path) as archive, archive.open("imgs.npy") as file:
        np.lib.format.read_magic(file)
        shape, is_fortran, dtype = np.lib.format.read_array_header_1_0(file)
        if is_fortran or dtype != np.uint8:
            raise ValueError(f"images of type {dtype}")
        images = np.lib.format.open_memmap(target, mode="w+", dtype=np.uint8, shape=shape)
        size = math.prod(shape[1:])
        for start in range(0, len(images), CHUNK):
            part = images[start : start + CHUNK]
            pixels = np.frombuffer(file.read(len(part) * size), np.uint8).reshape(part.shape)
            if pixels.max(initial=0) > 1:
                raise ValueError("pixels other than 0 and 1")
            part[:] = 255 * pixels
    return images
