"""Proof that the exported graphs compute what the trained model computes."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import torch

from reparam.errors import ParityError
from reparam.export.onnx import DECODER, ENCODER, DecoderGraph, EncoderGraph

BATCH_SIZES = (1, 2, 7, 64)
TOLERANCE = 1e-5  # times the largest absolute value where that exceeds 1
SIGNATURES = {
    ENCODER: {"images": ("uint8", 4), "mean": ("float32", 2), "log_variance": ("float32", 2)},
    DECODER: {"latents": ("float32", 2), "images": ("uint8", 4), "mean": ("float32", 4)},
}
INPUTS = ("images", "latents")
GOLDEN = "golden.npz"

Array = npt.NDArray[Any]


def check_graph(path: Path, outputs: Sequence[str], opset: int) -> None:
    """Run the ONNX checker, and hold the file to the promised opset, names, types, ranks and dynamic batch.

    Raises: ParityError.
    """
    model = onnx.load(path)
    onnx.checker.check_model(model, full_check=True)
    versions = {entry.domain: entry.version for entry in model.opset_import}
    found = {value.name: _describe(value) for value in (*model.graph.input, *model.graph.output)}
    fixed = [
        value.name
        for value in (*model.graph.input, *model.graph.output)
        if not value.type.tensor_type.shape.dim[0].dim_param
    ]
    signature = {name: kind for name, kind in SIGNATURES[path.name].items() if name in (*outputs, *INPUTS)}
    for what, wanted, is_found in (
        ("opset", {"": opset}, versions),
        ("inputs and outputs", signature, found),
        ("tensors with a fixed batch size", [], fixed),
    ):
        if wanted != is_found:
            raise ParityError(f"export: {path.name}: wanted {what} {wanted}, found {is_found}")


def measure_parity(
    encoder: EncoderGraph, decoder: DecoderGraph, directory: Path, images: Array, seed: int
) -> dict[str, float]:
    """Compare both graphs under onnxruntime with torch, at several batch sizes, on real images and prior samples.

    Shapes: images (N, H, W, C) uint8. Returns the largest absolute error of each graph's float outputs, and the largest
    difference in grey levels of the decoder's images.
    Raises: ParityError where a float is off by more than TOLERANCE x max(1, scale), or a grey level by more than one.
    """
    rng = np.random.default_rng(seed)
    errors = {"encoder_max_error": 0.0, "decoder_max_error": 0.0, "decoder_max_grey_levels": 0.0}
    for size in BATCH_SIZES:
        batch = images[rng.integers(len(images), size=size)]
        z = rng.standard_normal((size, encoder.model.latent_size), dtype=np.float32)
        for name, graph, inputs in ((ENCODER, encoder, batch), (DECODER, decoder, z)):
            for output, wanted, found in zip(
                graph.outputs, _torch(graph, inputs), _onnx(directory / name, inputs), strict=True
            ):
                is_grey = wanted.dtype == np.uint8
                error = float(np.abs(wanted.astype(np.float64) - found.astype(np.float64)).max())
                allowed = 1.0 if is_grey else TOLERANCE * max(1.0, float(np.abs(wanted).max()))
                if not error <= allowed:  # also catches NaN
                    raise ParityError(
                        f"export: {name}, output {output!r}, batch of {size}: onnxruntime differs from torch by "
                        f"{error:.3g}, wanted at most {allowed:.3g}; try another export.opset in params.yaml"
                    )
                key = "decoder_max_grey_levels" if is_grey else f"{Path(name).stem}_max_error"
                errors[key] = max(errors[key], error)
    return errors


def write_golden(encoder: EncoderGraph, decoder: DecoderGraph, directory: Path, images: Array) -> None:
    """Write inputs and torch's outputs, so that an app in any language can test its own port.

    Shapes: images (N, H, W, C).
    """
    encoded: dict[str, Any] = dict(zip(encoder.outputs, _torch(encoder, images), strict=True))
    decoded, decoded_mean = _torch(decoder, encoded["mean"])
    np.savez(
        directory / GOLDEN,
        images=images,
        **encoded,
        latents=encoded["mean"],
        decoded_images=decoded,
        decoded_mean=decoded_mean,
    )


def _describe(value: Any) -> tuple[str, int]:
    tensor = value.type.tensor_type
    return str(onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type)), len(tensor.shape.dim)


@torch.no_grad()
def _torch(graph: Any, inputs: Array) -> list[Array]:
    return [output.numpy() for output in graph(torch.tensor(inputs))]


def _onnx(path: Path, inputs: Array) -> list[Array]:
    # Imported here, because it takes a while and only this function needs it.
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    outputs: list[Array] = session.run(None, {session.get_inputs()[0].name: inputs})
    return outputs
