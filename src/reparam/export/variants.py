"""Smaller copies of encoder and decoder: made, measured, and kept where they pay."""

import logging
import shutil
import tempfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from reparam.cards.export import VariantFacts
from reparam.errors import ParityError
from reparam.export import manifest, quantize, verify
from reparam.export.onnx import Graph
from reparam.export.runtime import Runtime

log = logging.getLogger(__name__)

STATIC = "int8_static"  # which alone needs images of the training split
SHIPPED = ("encoder", "decoder")  # the score is also copied, but only to measure the loss
# Largest difference from the float32 graphs, times the largest absolute value where that exceeds 1.
VARIANT_TOLERANCES = {"int8": 0.2, STATIC: 0.2, "fp16": 0.005}
LEAST_RATIO = 1.8  # of sizes: a copy that is hardly smaller is not worth a second file
MOST_NATS = 0.5  # of the ELBO
FEW = 64  # numbers: a cast of fewer takes more room than it saves

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Original:
    """Float32 graphs, the directory of their files, and inputs: the test split, and some of the training split.

    Shapes: images (N, H, W, C), and label (N,) if the model is conditional.
    """

    graphs: Mapping[str, Graph]
    directory: Path
    runtime: Runtime
    test: dict[str, Array]
    train: Mapping[str, Array] = field(default_factory=dict)  # for int8_static alone

    def run(self, path: Path, name: str, inputs: Mapping[str, Array]) -> list[Array]:
        """Compute the float outputs of a graph or of a copy of it."""
        outputs = [tensor.name for tensor in self.graphs[name].facts.outputs if tensor.dtype == "float32"]
        return self.runtime.run(path, inputs, outputs)


def write_variants(kinds: Iterable[str], original: Original, opset: int) -> dict[str, VariantFacts]:
    """Write `<name>.<kind>.onnx` beside the graphs if it pays; return the findings for every kind.

    Raises: ParityError if onnxruntime cannot run a copy.
    """
    return {kind: _write_variant(kind, original, opset) for kind in dict.fromkeys(kinds)}


def _write_variant(kind: str, original: Original, opset: int) -> VariantFacts:
    with tempfile.TemporaryDirectory() as scratch:
        made = {name: Path(scratch) / f"{name}.{kind}.onnx" for name in original.graphs}
        calibration = _calibration(original) if kind == STATIC else {}
        for name, path in made.items():
            MAKERS[kind](original.directory / f"{name}.onnx", path, calibration.get(name, {}))
            verify.check_graph(path, original.graphs[name], opset)
        try:
            facts = _measure(kind, original, made)
        except RuntimeError as problem:
            raise ParityError(f"export: {problem}; take {kind} out of export.variants in params.yaml") from None
        if facts.lost:
            log.warning("export: no %s: %s", " and ".join(made[name].name for name in SHIPPED), facts.lost)
        else:
            for name in SHIPPED:
                shutil.copy(made[name], original.directory)
    return facts


def _calibration(original: Original) -> dict[str, dict[str, Array]]:
    """Return inputs of each graph: training images and their codes, and the extremes of the parity check."""
    codes = original.run(original.directory / "encoder.onnx", "encoder", original.train)[0]
    noise = np.random.default_rng(0).standard_normal(codes.shape, dtype=np.float32)
    values = {**original.train, "latents": codes, "epsilon": noise}
    return {
        name: {
            tensor.name: np.concatenate([values[tensor.name], verify.extremes(tensor)]) for tensor in graph.facts.inputs
        }
        for name, graph in original.graphs.items()
    }


def _measure(kind: str, original: Original, made: Mapping[str, Path]) -> VariantFacts:
    size = sum(made[name].stat().st_size for name in SHIPPED)
    ratio = sum((original.directory / f"{name}.onnx").stat().st_size for name in SHIPPED) / size
    error = max_error(original, made)
    change = elbo_change(original, made["score"]) if "score" in made else 0.0
    tolerance = VARIANT_TOLERANCES[kind]
    lost = [
        f"wanted {what}, found {found:.3g}"
        for what, found, is_good in (
            (f"a difference from float32 of at most {tolerance} times the scale", error, error <= tolerance),
            (f"files at least {LEAST_RATIO} times smaller", ratio, ratio >= LEAST_RATIO),
            (f"an ELBO that changes by at most {MOST_NATS} nats", change, abs(change) <= MOST_NATS),
        )
        if not is_good  # also NaN
    ]
    return VariantFacts(
        bytes=size,
        size_ratio=round(ratio, 2),
        max_error=float(f"{error:.3g}") if np.isfinite(error) else None,
        tolerance=tolerance,
        elbo_change=round(change, 4) if "score" in made and np.isfinite(change) else None,
        lost="; ".join(lost) or None,
    )


def max_error(original: Original, made: Mapping[str, Path]) -> float:
    """Return the largest difference of encoder and decoder from float32, over the cases of the parity check.

    Units: the largest absolute value of an output where that exceeds 1.
    """
    errors = []
    for name in SHIPPED:
        for _, inputs in verify.cases(original.graphs[name], original.test["images"], seed=0):
            wanted = original.run(original.directory / f"{name}.onnx", name, inputs)
            for one, other in zip(wanted, original.run(made[name], name, inputs), strict=True):
                errors.append(np.abs(one - other).max() / max(1.0, np.abs(one).max()))
    return float(np.max(errors))  # NaN where any is


def elbo_change(original: Original, score: Path) -> float:
    """Return by how much a copy of the score raises the ELBO of the test split, on the same posterior noise.

    The score has the weights of encoder and decoder, and no other tensors of weights. Units: nats per image.
    """
    size = original.graphs["decoder"].facts.inputs[0].row
    epsilon = np.random.default_rng(0).standard_normal((len(original.test["images"]), *size), dtype=np.float32)
    before, after = (
        manifest.score(original.runtime, path, original.test, epsilon)
        for path in (original.directory / "score.onnx", score)
    )
    return float((before - after).mean())


def _halve(source: Path, target: Path, _calibration: Mapping[str, Array]) -> None:
    """Store weights as float16, from which the graph makes float32: it runs wherever the original does, as fast."""
    model, casts = onnx.load(source), []
    for tensor in model.graph.initializer:
        values = onnx.numpy_helper.to_array(tensor)
        if values.dtype == np.float32 and values.size >= FEW:
            name, half = tensor.name, f"{tensor.name}_fp16"
            casts.append(onnx.helper.make_node("Cast", [half], [name], name=f"{half}_cast", to=onnx.TensorProto.FLOAT))
            with np.errstate(over="ignore"):  # an infinite weight shows as a difference
                tensor.CopyFrom(onnx.numpy_helper.from_array(values.astype(np.float16), half))
    nodes = [*casts, *model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    onnx.save(model, target)


MAKERS: Mapping[str, Callable[[Path, Path, Mapping[str, Array]], None]] = {
    "int8": quantize.dynamic,
    STATIC: quantize.static,
    "fp16": _halve,
}
