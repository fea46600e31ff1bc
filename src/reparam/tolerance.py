"""How far onnxruntime may be from torch, which computes the same in another order."""

import math

TOLERANCE = 1e-5  # times the largest absolute value where that exceeds 1
PIXELS = 64 * 64
GROWTH = 1.25  # 32 times the tolerance at 256 x 256


def tolerance_of(height: int, width: int) -> float:
    """Return the tolerance for images of this size: TOLERANCE up to PIXELS, and more for larger ones.

    onnxruntime adds up the pixels of a group norm one after the other, so its rounding grows with them. Measured with
    network `resnet`, relative to the largest value: 3e-6 at 64 x 64 and 1e-4 at 256 x 256, of images that are all
    black or white 2e-5 and 2e-3.
    """
    return TOLERANCE * math.pow(max(1.0, height * width / PIXELS), GROWTH)
