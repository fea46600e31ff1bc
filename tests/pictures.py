"""Image files whose pixels are known, and what an eye sees of them."""

import gzip
import hashlib
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

Pixels = npt.NDArray[np.uint8]

HEIGHT, WIDTH = 4, 6
# What is in each file that `draw_modes` draws, in the order of their names.
MODES = ("cmyk.tif", "exif.png", "grey 16 bits.png", "grey.bmp", "palette.gif", "rgb.png", "rgba.png")


def noise(seed: int, *shape: int) -> Pixels:
    """Random pixels, the same for the same seed."""
    return np.random.default_rng(seed).integers(0, 256, shape or (HEIGHT, WIDTH), dtype=np.uint8)


def draw(path: Path, pixels: Pixels, **options: Any) -> Path:
    """Save pixels (H, W) or (H, W, C) in the format of the path's extension, and return the path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)
    return path


def draw_modes(folder: Path) -> Pixels:
    """Draw one image of each mode, and return what is seen: (N, H, W, 3)."""
    colours = noise(1, len(MODES), HEIGHT, WIDTH, 3)
    cmyk, exif, deep, grey, palette, rgb, rgba = colours
    # Without black, the inks are the complements of red, green and blue.
    Image.fromarray(np.dstack([255 - cmyk, np.zeros_like(cmyk[:, :, 0])]), "CMYK").save(folder / MODES[0])
    orientation = Image.Exif()
    orientation[274] = 6  # to be turned clockwise
    draw(folder / MODES[1], np.ascontiguousarray(np.rot90(exif)), exif=orientation)
    deep[:], grey[:] = deep[:, :, :1], grey[:, :, :1]
    draw(folder / MODES[2], deep[:, :, 0].astype(np.uint16) * 257)  # type: ignore[arg-type]
    draw(folder / MODES[3], grey[:, :, 0])
    indexed = Image.fromarray(np.arange(HEIGHT * WIDTH, dtype=np.uint8).reshape(HEIGHT, WIDTH)).convert("P")
    indexed.putpalette(palette.tobytes())
    indexed.save(folder / MODES[4])
    draw(folder / MODES[5], rgb)
    alpha = noise(2)
    draw(folder / MODES[6], np.dstack([rgba, alpha]))
    rgba[:] = on_white(rgba, alpha[:, :, None])
    return colours


def on_white(values: Pixels, alpha: Pixels) -> Pixels:
    """What is seen where white shines through, rounded."""
    weight = alpha.astype(np.int64)
    return ((2 * (values * weight + 255 * (255 - weight)) + 255) // 510).astype(np.uint8)


def luma(pixels: Pixels) -> Pixels:
    """Grey of (..., 3) by ITU-R 601 in Pillow's fixed-point weights."""
    weighted = pixels.astype(np.uint32) @ np.array([19595, 38470, 7471], np.uint32)
    return ((weighted + 0x8000) >> 16).astype(np.uint8)


def pack(folder: Path, archive: Path, top: str = "") -> Path:
    """Put the content of a folder into a .zip or .tar archive, below a folder `top`; return the path of the archive."""
    members = sorted(path for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
    names = {path: f"{top}{path.relative_to(folder).as_posix()}" for path in members}
    if archive.suffix == ".zip":
        with zipfile.ZipFile(archive, "w") as file:
            for path, name in names.items():
                file.write(path, name)
    else:
        with tarfile.open(archive, "w:gz" if archive.name.endswith("gz") else "w") as tar:
            for path, name in names.items():
                tar.add(path, name)
    return archive


def write_mnist(folder: Path, counts: tuple[int, int] = (40, 10)) -> list[tuple[str, str]]:
    """Write a small MNIST, of noise, in the four files of the large one; return their names and MD5s."""
    folder.mkdir(parents=True)
    resources = []
    for seed, (part, count) in enumerate(zip(("train", "t10k"), counts, strict=True)):
        images, labels = noise(seed, count, 28, 28), (np.arange(count) % 10).astype(np.uint8)
        for kind, values in (("images-idx3", images), ("labels-idx1", labels)):
            header = bytes([0, 0, 8, values.ndim]) + np.array(values.shape, ">i4").tobytes()
            content = gzip.compress(header + values.tobytes(), mtime=0)
            (folder / f"{part}-{kind}-ubyte.gz").write_bytes(content)
            resources.append((f"{part}-{kind}-ubyte.gz", hashlib.md5(content).hexdigest()))
    return resources
