"""Proof that the exported graphs compute what the trained model computes."""

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import torch

from reparam.cards.export import GraphFacts, TensorFacts
from reparam.errors import NonFiniteError, ParityError
from reparam.export.onnx import CODES, Graph
from reparam.export.program import lowest_ir_version
from reparam.export.runtime import Runtime
from reparam.tolerance import tolerance_of

BATCH_SIZES = (1, 2, 17, 256)
NUMBERS = 17 * 3 * 256 * 256  # of an input or output of a batch; 256 images of 256 x 256 pixels take tens of GB
EXTREMES = "extremes"
EXTREME = 6.0  # of latents and noise, in standard deviations: one normal draw in 500 million is beyond
# Times the tolerance. A white image can lie 30 standard deviations out, where a rounded code moves the image more: 2e-5
# on the default data.
EXTREME_TOLERANCE = 10
TIES = 1e-3  # of codes

Array = npt.NDArray[Any]


def check_graph(path: Path, graph: Graph, opset: int) -> None:
    """Run the ONNX checker, and compare the file with the promised opset, format, inputs and outputs.

    Raises: ParityError.
    """
    model = onnx.load(path)
    onnx.checker.check_model(model, full_check=True)
    promised = [_signature(tensor) for tensor in (*graph.facts.inputs, *graph.facts.outputs)]
    for what, promise, is_found in (
        ("opset", {"": opset}, {entry.domain: entry.version for entry in model.opset_import}),
        ("IR version", lowest_ir_version(opset), model.ir_version),
        ("inputs and outputs", promised, [_describe(value) for value in (*model.graph.input, *model.graph.output)]),
    ):
        if promise != is_found:
            raise ParityError(f"export: {path.name}: wanted {what} {promise}, found {is_found}")


def measure_parity(
    graphs: Mapping[str, Graph], runtime: Runtime, directory: Path, images: Array, seed: int
) -> dict[str, float]:
    """Compare graphs under onnxruntime with torch: real images and normal draws at several batch sizes, and extremes.

    Shapes: images (N, H, W, C) uint8. Returns the largest absolute error of each graph's float outputs, and the largest
    difference in grey levels of the decoder's images, both without the extremes.
    Raises: ParityError if a float is off by more than a tolerance x max(1, scale), or a grey level by more than one.
    """
    errors: dict[str, float] = {}
    for name, graph in graphs.items():
        for case, inputs in cases(graph, images, seed):
            try:
                found = runtime.run(directory / f"{name}.onnx", inputs, graph.outputs)
            except RuntimeError as problem:
                raise ParityError(f"export: {problem}; try another export.opset in params.yaml") from None
            right = run_torch(graph, inputs)
            if CODES in graph.outputs:
                found = _without_ties(graph.outputs, right, found, f"{name}.onnx, {case}")
            for output, wanted, value in zip(graph.outputs, right, found, strict=True):
                key = f"{name}_max_grey_levels" if wanted.dtype == np.uint8 else f"{name}_max_error"
                tolerance = tolerance_of(*images.shape[1:3]) * (EXTREME_TOLERANCE if case == EXTREMES else 1)
                error = _largest_error(wanted, value)
                allowed = 1.0 if wanted.dtype == np.uint8 else tolerance * max(1.0, float(np.abs(wanted).max()))
                if not error <= allowed:  # also catches NaN
                    if not np.isfinite(wanted).all():
                        raise NonFiniteError(
                            f"export: {name}, output {output!r}, {case}: the model computes numbers that are not "
                            "finite; train it with a lower train.learning_rate, or set train.clip_norm"
                        )
                    raise ParityError(
                        f"export: {name}.onnx, output {output!r}, {case}: onnxruntime differs from torch by "
                        f"{error:.3g}, wanted at most {allowed:.3g}; try another export.opset in params.yaml"
                    )
                if case != EXTREMES:
                    errors[key] = max(errors.get(key, 0.0), error)
    return errors


def _without_ties(outputs: list[str], wanted: list[Array], found: list[Array], what: str) -> list[Array]:
    """Replace a few codes that differ, and their vectors, by those of torch: a tie may be rounded to either code.

    Raises: ParityError if more than a few differ.
    """
    codes, vectors = outputs.index(CODES), outputs.index("mean")
    differs = wanted[codes] != found[codes]  # (B, P)
    if differs.sum() > max(1, TIES * differs.size):
        raise ParityError(
            f"export: {what}: wanted the codes of torch, at most one or {TIES:.1%} of them different, found "
            f"{differs.sum()} of {differs.size} different; try another export.opset in params.yaml"
        )
    settled = list(found)
    rows, *shape = wanted[vectors].shape
    each = differs.reshape(rows, 1, *shape[1:]) if shape[1:] else differs.repeat(shape[0] // differs.shape[1], 1)
    for output, mask in ((codes, differs), (vectors, each)):
        settled[output] = np.where(mask, wanted[output], found[output])
    return settled


def _largest_error(wanted: Array, found: Array) -> float:
    with np.errstate(invalid="ignore"):  # of an infinity from another: NaN
        return float(np.abs(wanted.astype(np.float64) - found.astype(np.float64)).max())


def run_torch(graph: Graph, inputs: Mapping[str, Array]) -> list[Array]:
    """Compute the outputs of a graph with torch."""
    with torch.no_grad():
        return [output.numpy() for output in graph(*(torch.tensor(inputs[name]) for name in graph.inputs))]


def batch_sizes(facts: GraphFacts) -> tuple[int, ...]:
    """Return how many images are compared together: one, two and, unless they are too large, more."""
    largest = max(math.prod(tensor.row) for tensor in (*facts.inputs, *facts.outputs))
    return tuple(size for size in BATCH_SIZES if size <= 2 or size * largest <= NUMBERS)


def cases(graph: Graph, images: Array, seed: int) -> Iterator[tuple[str, dict[str, Array]]]:
    """Yield inputs of a graph, and what they are. Shapes: images (N, H, W, C)."""
    rng = np.random.default_rng(seed)
    for size in batch_sizes(graph.facts):
        batch = images[rng.integers(len(images), size=size)]
        yield (
            f"batch of {size}",
            {
                tensor.name: batch if tensor.dtype == "uint8" else _drawn(tensor, size, rng)
                for tensor in graph.facts.inputs
            },
        )
    yield EXTREMES, {tensor.name: extremes(tensor) for tensor in graph.facts.inputs}


def _drawn(tensor: TensorFacts, size: int, rng: np.random.Generator) -> Array:
    """Draw numbers of an input, or count through the labels. Shapes: -> (size, ...)."""
    if tensor.dtype == "int64":
        return np.arange(size) % (int(tensor.range[1] or 0) + 1)
    return rng.standard_normal((size, *tensor.row), dtype=np.float32)


def extremes(tensor: TensorFacts) -> Array:
    """Return the lowest and the highest sensible values of an input. Shapes: (2, ...)."""
    low, high = (-EXTREME, EXTREME) if tensor.dtype == "float32" else tensor.range
    return np.stack([np.full(tensor.row, value, tensor.dtype) for value in (low, high)])


def _signature(tensor: TensorFacts) -> str:
    return f"{tensor.name}: {tensor.dtype} ({', '.join(map(str, tensor.shape))})"


def _describe(value: Any) -> str:
    tensor = value.type.tensor_type
    sizes = ", ".join(size.dim_param or str(size.dim_value) for size in tensor.shape.dim)
    return f"{value.name}: {onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type)} ({sizes})"
