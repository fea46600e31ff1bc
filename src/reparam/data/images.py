"""Image files and arrays of images to one format: 8 bits, grey or RGB, square.

It imports Pillow and numpy alone, so that worker processes start quickly.
"""

import struct
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image, UnidentifiedImageError
from PIL.Image import Transpose

Pixels = npt.NDArray[np.uint8]

# Recognised by the content, whatever the file's name; a format not listed here (EPS) may start other programs.
FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
MODES = {1: "L", 3: "RGB"}  # Pillow's names, by the number of channels
WHITE = 255
# Source: EXIF 2.32, tag 274. ImageOps.exif_transpose would do, but rewrites the block, and fails where it cannot.
UPRIGHT = {
    2: Transpose.FLIP_LEFT_RIGHT,
    3: Transpose.ROTATE_180,
    4: Transpose.FLIP_TOP_BOTTOM,
    5: Transpose.TRANSPOSE,
    6: Transpose.ROTATE_270,
    7: Transpose.TRANSVERSE,
    8: Transpose.ROTATE_90,
}
LONGEST = (
    8  # times the shorter side: `to_square` resizes only so much of a strip, because the square comes from its middle
)
# Pillow 13 raised the first five for 120,000 files damaged at random; its issues report the others.
DAMAGE = (
    OSError,
    SyntaxError,
    ValueError,
    Image.DecompressionBombError,
    Image.DecompressionBombWarning,
    ArithmeticError,
    EOFError,
    LookupError,
    TypeError,
    struct.error,
)


class UnreadableImageError(Exception):
    """A file holds no whole image; the caller decides between failing and skipping."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(path, reason)  # as `args`, because only these travel between processes
        self.path = path
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"


def decode(path: Path, channels: int) -> Image.Image:
    """Read the first frame of an image file as the eye sees it: upright, and transparency on white.

    White, because most viewers show it behind transparent images. Colour profiles are ignored, as in torchvision.
    Raises: UnreadableImageError.
    """
    mode = MODES[channels]
    try:
        # `catch_warnings` changes the whole process: share the work among processes, not threads.
        with warnings.catch_warnings():
            # Pillow warns of metadata that make no sense; the pixels do, or raise an error.
            warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            # Opened here, because Pillow maps what it opens itself, and garbles TIFFs that are mapped and turned.
            with path.open("rb") as file, Image.open(file, formats=FORMATS) as image:
                image.load()
                return _convert(_turn_upright(_make_opaque(image), _orientation(image)), mode)
    except UnidentifiedImageError:
        raise UnreadableImageError(path, f"not a whole image of any of the formats {', '.join(FORMATS)}") from None
    except DAMAGE as error:
        raise UnreadableImageError(path, getattr(error, "strerror", None) or str(error)) from error


def to_square(image: Image.Image, size: int) -> Pixels:
    """Resize the shorter side to `size`, bilinear and antialiased, and cut out the square in the middle.

    Shapes: -> (C, size, size).
    Source: torchvision.transforms.functional.resize and center_crop of PIL images, equal to the last bit where the
    sides differ by no more than LONGEST times.
    """
    width, height = image.size
    # A strip of 1 x 60,000 pixels, enlarged whole, would take gigabytes.
    image = _crop(image, min(width, LONGEST * height), min(height, LONGEST * width))
    short = min(image.size)
    width, height = (int(size * side / short) for side in image.size)
    return _to_array(_crop(image.resize((width, height), Image.Resampling.BILINEAR), size, size))


def convert_arrays(images: Pixels, size: int | None, channels: int) -> Pixels:
    """Convert arrays as `decode` and `to_square` convert files; images that already fit are returned unchanged.

    Shapes: (N, 1 or 3, H, W) -> (N, channels, size, size), or (N, channels, H, W) without a size.
    """
    count, _, height, width = images.shape
    shape = (count, channels, size or height, size or width)
    if images.shape == shape:
        return images
    mode = MODES[channels]
    fitted = np.empty(shape, np.uint8)
    for row, pixels in enumerate(images):
        image = _convert(Image.fromarray(pixels[0] if len(pixels) == 1 else pixels.transpose(1, 2, 0)), mode)
        fitted[row] = _to_array(image) if size is None else to_square(image, size)
    return fitted


def _orientation(image: Image.Image) -> Any:
    try:
        return image.getexif().get(ExifTags.Base.Orientation)
    except SyntaxError:  # no EXIF block at all; viewers show such an image as it is stored
        return None


def _turn_upright(image: Image.Image, orientation: Any) -> Image.Image:
    return image.transpose(UPRIGHT[orientation]) if orientation in UPRIGHT else image


def _make_opaque(image: Image.Image) -> Image.Image:
    if image.mode.startswith(("I", "F")):
        return _to_8_bits(image)
    if not image.has_transparency_data:
        return image
    if image.mode == "La":  # premultiplied; Pillow has no direct way from here to RGBA
        image = image.convert("LA")
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))


def _to_8_bits(image: Image.Image) -> Image.Image:
    # Pillow leaves 12-bit and white-is-zero values of TIFFs as they are; nothing says what floats and 32 bits mean.
    tags: Any = getattr(image, "tag_v2", None)
    if image.mode == "F" or (tags and (image.mode == "I" or (tags.get(258), tags.get(262)) != ((16,), 1))):
        raise ValueError(f"no agreed black and white for mode {image.mode}; save it with 8 bits, or as 16-bit grey")
    values = np.asarray(image).astype(np.int64)
    grey = (values + 128) // 257  # rounded: 65535 = 257 * 255
    if "transparency" in image.info:
        grey[values == image.info["transparency"]] = WHITE
    return Image.fromarray(grey.astype(np.uint8))


def _convert(image: Image.Image, mode: str) -> Image.Image:
    # Always by way of RGB, so that grey is the ITU-R 601 luma of the colours.
    return image if image.mode == mode else image.convert("RGB").convert(mode)


def _crop(image: Image.Image, width: int, height: int) -> Image.Image:
    left, top = round((image.width - width) / 2), round((image.height - height) / 2)
    return image.crop((left, top, left + width, top + height))


def _to_array(image: Image.Image) -> Pixels:
    return np.array(np.atleast_3d(np.asarray(image)).transpose(2, 0, 1), order="C")  # (C, H, W)
