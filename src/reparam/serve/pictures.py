"""PNG files that are sent to the service."""

import io
import struct

import numpy as np
import numpy.typing as npt
from PIL import Image

from reparam.data.images import MODES
from reparam.errors import UserError

PLAIN = ("1", "L", "P", "RGB")  # 8 bits or fewer, and nothing to see through


def read(body: bytes, shape: tuple[int, int, int], rows: int) -> npt.NDArray[np.uint8]:
    """Read images that are one below the other. Shapes: -> (at most `rows`, H, W, C).

    Raises: UserError if the file is damaged, or no such images of the model's size.
    """
    height, width, channels = shape
    if channels not in MODES:
        raise UserError(f"images: wanted JSON, because images of {channels} channels have no PNG, found a PNG")
    try:
        with Image.open(io.BytesIO(body), formats=["PNG"]) as image:
            if image.width != width or image.height % height or not height <= image.height <= rows * height:
                raise UserError(
                    f"images: wanted a PNG of {width} x {height} pixels, or up to {rows} of them one below the other, "
                    f"found {image.width} x {image.height}"
                )
            if image.mode not in PLAIN or "transparency" in image.info:
                raise UserError(f"images: wanted a PNG of 8 bits without transparency, found mode {image.mode}")
            return np.array(image.convert(MODES[channels])).reshape(-1, *shape)
    except (OSError, SyntaxError, ValueError, struct.error, Image.DecompressionBombError, Warning) as error:
        raise UserError(f"images: wanted a whole PNG file, found a damaged one ({type(error).__name__})") from None
