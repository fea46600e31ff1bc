"""The part of a data card that says what a model sees of the stored pixels."""

from typing import Any


def data_card(binarization: str, shift: float = 0.0, scale: float = 1.0, channels: int = 1) -> dict[str, Any]:
    """Describe pixels scaled to (pixel - shift) / scale; without numbers, in [0, 1]."""
    return {"binarization": binarization, "scaling": {"shift": [shift] * channels, "scale": [scale] * channels}}
