"""Graphs whose matrix products and convolutions compute with 8-bit integers."""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy.typing as npt
import onnx

from reparam.export import program

AT_ONCE = 16  # images, because calibration keeps many layers in memory

Array = npt.NDArray[Any]
Arrays = Mapping[str, Array]  # by the names of inputs


def dynamic(source: Path, target: Path, _calibration: Arrays) -> None:
    """Store the weights of matrix products as 8-bit integers; their inputs are rounded as they come."""
    # Not above: the module takes long to import, and only this file needs it.
    from onnxruntime.quantization import quantize_dynamic

    # Of 7 bits: sums of products of 8 saturate on processors without VNNI, which would give other numbers than here.
    # Source: onnxruntime, "Quantize ONNX models", on U8S8 and reduce_range.
    _write(
        source,
        target,
        lambda model: quantize_dynamic(model, target, op_types_to_quantize=["MatMul", "Gemm"], reduce_range=True),
    )


def static(source: Path, target: Path, calibration: Arrays) -> None:
    """Also round what convolutions compute, by the range of each of their tensors on calibration inputs.

    Shapes: calibration (n, ...) each.
    """
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
    from onnxscript.rewriter import rewrite
    from onnxscript.rewriter.rules import common

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.batches = _batches(calibration)

        def get_next(self) -> dict[str, Array] | None:
            return next(self.batches, None)

    def quantize(model: Any) -> None:
        quantize_static(
            # Else a convolution, its normalisation and a ReLU would not be one operator on integers.
            rewrite(model, pattern_rewrite_rules=[common.fuse_batchnorm_into_conv_rule]),
            target,
            Reader(),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=["Conv", "Gemm", "MatMul", "Relu"],
            per_channel=True,
            # With weights of 7 bits, as above. Source: docstring of `quantize_static`, on processors without VNNI.
            activation_type=QuantType.QUInt8,
            reduce_range=True,
            # Products of two computed tensors (attention) stay as they are, and so do the outputs of the last layers.
            extra_options={"MatMulConstBOnly": True, "OpTypesToExcludeOutputQuantization": ["Gemm", "MatMul"]},
        )

    _write(source, target, quantize)


def _batches(inputs: Arrays) -> Iterator[dict[str, Array]]:
    count = len(next(iter(inputs.values())))
    for start in range(0, count, AT_ONCE):
        yield {name: values[start : start + AT_ONCE] for name, values in inputs.items()}


def _write(source: Path, target: Path, quantize: Callable[[Any], None]) -> None:
    model = onnx.load(source)
    kept = [(entry.key, entry.value) for entry in model.metadata_props]
    # Otherwise it warns that the graph should be optimised first, which would fit one runtime on one machine.
    model.metadata_props.add(key="onnx.quant.pre_process", value="onnxruntime.quant")
    quantize(model)
    model = onnx.load(target)
    program.clean(model)
    for key, value in kept:
        model.metadata_props.add(key=key, value=value)
    onnx.save(model, target)
