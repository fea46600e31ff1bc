"""Section `export`."""

from typing import Annotated, Literal

from pydantic import Field

from reparam.config.section import Section


class ExportConfig(Section):
    """The exported ONNX graphs."""

    opset: Annotated[int, Field(ge=18, le=23)]  # what torch's exporter writes and onnxruntime runs
    """Version of the ONNX operators."""

    grey_pixels: Literal["keep", "threshold"]
    """Treatment of pixels between black and white by the exported encoder."""

    variants: Annotated[tuple[Literal["int8", "int8_static", "fp16"], ...], Field(strict=False, max_length=3)]
    """Copies with weights of 8 bits (int8: of fully connected layers; int8_static: also of convolutions) or 16 (fp16:
    all), written where they pay."""

    triton: bool
    """Whether the graphs are also written as a model repository of Triton Inference Server."""
