"""Inputs and right answers, so that an app in any language can test its own port."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from reparam.export.onnx import Graph
from reparam.export.verify import run_torch
from reparam.tolerance import TOLERANCE, tolerance_of

GOLDEN = "golden.npz"
TESTS = "tests"
RUNNER_TOLERANCES = {"rtol": 1e-4, "atol": 1e-5}  # as ONNX's test runner reads them: others compute in another order

Array = npt.NDArray[Any]
Cases = dict[str, tuple[dict[str, Array], dict[str, Array]]]  # inputs and outputs of each graph, by name


def write_golden(graphs: Mapping[str, Graph], directory: Path, images: Mapping[str, Array]) -> None:
    """Write what torch computes of some images, as one `.npz`, and in the form of ONNX's own tests.

    The decoder is given the posterior means, the score random noise. Shapes: images (N, H, W, C), and perhaps label
    (N,).
    """
    cases: Cases = {}
    given: dict[str, Array] = dict(images)
    for name, graph in graphs.items():
        inputs = {tensor: given[tensor] for tensor in graph.inputs}
        outputs = dict(zip(graph.outputs, run_torch(graph, inputs), strict=True))
        cases[name] = inputs, outputs
        if name == "encoder":
            given["latents"] = outputs["mean"]
            given["epsilon"] = np.random.default_rng(0).standard_normal(outputs["mean"].shape, dtype=np.float32)
    decoded: dict[str, Any] = {f"decoded_{name}": array for name, array in cases["decoder"][1].items()}
    others = {name: case for name, case in cases.items() if name != "decoder"}
    arrays: dict[str, Any] = {name: array for case in others.values() for part in case for name, array in part.items()}
    np.savez(directory / GOLDEN, **arrays, latents=given["latents"], **decoded)
    more = tolerance_of(*images["images"].shape[1:3]) / TOLERANCE  # than that of small images
    tolerances = {name: value * more for name, value in RUNNER_TOLERANCES.items()}
    for name, case in cases.items():
        _write_test(directory / TESTS / name, *case, tolerances)


def _write_test(
    directory: Path, inputs: dict[str, Array], outputs: dict[str, Array], tolerances: dict[str, float]
) -> None:
    """Write a test in the form of ONNX's runners, which want the graph beside it as `model.onnx`."""
    data = directory / "test_data_set_0"
    data.mkdir(parents=True)
    (directory / "data.json").write_text(json.dumps(tolerances) + "\n", encoding="utf-8")
    for kind, arrays in (("input", inputs), ("output", outputs)):
        for number, (name, array) in enumerate(arrays.items()):
            tensor = onnx.numpy_helper.from_array(np.ascontiguousarray(array), name)
            (data / f"{kind}_{number}.pb").write_bytes(tensor.SerializeToString(deterministic=True))
