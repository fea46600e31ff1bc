"""What JavaScript computes, against onnxruntime: each operator alone, and whole graphs."""

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from exported_model import Exported, prepare
from onnx import TensorProto, helper, numpy_helper

from reparam.explorer import graph
from reparam.explorer.page import HERE, operators
from reparam.export.manifest import OLDEST_ONNXRUNTIME
from reparam.export.program import export_graphs

pytest_plugins = ["fixtures_export"]
pytestmark = pytest.mark.skipif(not shutil.which("node"), reason="needs node")

PROGRAM = """
const jobs = JSON.parse(require("fs").readFileSync(0));
console.log(JSON.stringify(jobs.map(({ graph, inputs }) => {
  const given = {};
  for (const [name, { shape, data }] of Object.entries(inputs)) given[name] = tensor(shape, Float32Array.from(data));
  return Object.values(network(graph)(given)).map(({ shape, data }) => ({ shape, data: [...data] }));
})));
"""
Arrays = dict[str, np.ndarray]


def in_javascript(jobs: list[tuple[bytes, Arrays]]) -> list[list[np.ndarray]]:
    """Compute graphs with node, all in one process."""
    described = [
        {
            "graph": graph.read(content, "a graph"),
            "inputs": {name: {"shape": x.shape, "data": x.ravel().tolist()} for name, x in inputs.items()},
        }
        for content, inputs in jobs
    ]
    program = (HERE / "network.js").read_text(encoding="utf-8") + PROGRAM
    done = subprocess.run(["node", "-e", program], input=json.dumps(described), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return [[np.reshape(x["data"], x["shape"]) for x in outputs] for outputs in json.loads(done.stdout)]


def in_onnxruntime(content: bytes, inputs: Arrays) -> list[np.ndarray]:
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    return session.run(None, inputs)


def check(jobs: list[tuple[bytes, Arrays]], names: list[str]) -> None:
    for name, job, found in zip(names, jobs, in_javascript(jobs), strict=True):
        for ours, wanted in zip(found, in_onnxruntime(*job), strict=True):
            assert ours.shape == wanted.shape, name
            np.testing.assert_allclose(ours, wanted, rtol=1e-5, atol=1e-5, err_msg=name)


# ---- operators

RNG = np.random.default_rng(0)


def numbers(*shape: int) -> np.ndarray:
    return RNG.normal(size=shape).astype(np.float32) * 2


def whole(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


X, ROW, ABOVE = numbers(2, 3, 4), numbers(3, 1), np.abs(numbers(2, 3, 4)) + 0.1
PICTURE, FOUR = numbers(2, 4, 5, 6), numbers(4)
HALVES = np.array([-2.5, -1.5, -0.5, 0.5, 1.5, 2.5, 0.49, 3.7], np.float32)
# Of each operator, its first input, constants for the others, and attributes; None: an input that is left out.
CASES: dict[str, list[tuple[list[Any], dict[str, Any]]]] = {
    **{name: [([X], {})] for name in ("Abs", "Erf", "Exp", "Gelu", "Neg", "Relu", "Sigmoid", "Softplus", "Tanh")},
    **{name: [([ABOVE], {})] for name in ("Log", "Reciprocal", "Sqrt")},
    **{name: [([X, X[::-1]], {}), ([X, ROW], {}), ([ROW, X], {})] for name in ("Add", "Div", "Mul", "Sub")},
    "Pow": [([ABOVE, np.float32(1.7)], {})],
    **{name: [([X, np.float32(0.5)], {})] for name in ("Greater", "GreaterOrEqual", "Less")},
    "Where": [([X, ROW, np.float32(7)], {})],  # of a condition, which the test makes of X
    "ArgMax": [([X], {"axis": -1, "keepdims": 0}), ([X], {"axis": 1}), ([np.zeros((2, 3), np.float32)], {"axis": 1})],
    "BatchNormalization": [
        ([x, FOUR, numbers(4), numbers(4), np.abs(FOUR)], {"epsilon": 1e-3}) for x in (PICTURE, numbers(3, 4))
    ],
    "InstanceNormalization": [([PICTURE, FOUR, numbers(4)], {"epsilon": 1e-3})],
    "GroupNormalization": [([PICTURE, FOUR, numbers(4)], {"epsilon": 1e-3, "num_groups": 2})],
    "LayerNormalization": [([X, numbers(4), numbers(4)], {"epsilon": 1e-3}), ([X, numbers(3, 4)], {"axis": -2})],
    "Cast": [([X], {"to": TensorProto.FLOAT})],
    "Clip": [([X, np.float32(-1), np.float32(0.5)], {}), ([X, None, np.float32(0.5)], {}), ([X, np.float32(-1)], {})],
    "Concat": [([X, numbers(2, 5, 4)], {"axis": 1}), ([X, numbers(2, 3, 1)], {"axis": -1})],
    "Conv": [
        ([PICTURE, numbers(7, 4, 3, 2)], {}),
        ([PICTURE, numbers(7, 4, 3, 2), numbers(7)], {"strides": [2, 3], "pads": [1, 0, 2, 1]}),
        ([PICTURE, numbers(6, 2, 2, 2), numbers(6)], {"group": 2, "dilations": [2, 1]}),
    ],
    "ConvTranspose": [
        ([PICTURE, numbers(4, 7, 3, 2)], {}),
        (
            [PICTURE, numbers(4, 7, 4, 3), numbers(7)],
            {"strides": [2, 3], "pads": [1, 0, 2, 1], "output_padding": [1, 0]},
        ),
        ([PICTURE, numbers(4, 3, 2, 2), numbers(6)], {"group": 2, "dilations": [2, 1]}),
    ],
    "Expand": [([ROW, whole(2, 3, 4)], {})],
    "Gather": [([np.array([[2, 0], [1, 1]], np.float32), numbers(3, 4)], {})],
    "Gemm": [
        ([numbers(2, 4), numbers(3, 4), numbers(3)], {"transB": 1}),
        ([numbers(2, 4), numbers(4, 3)], {}),
        ([numbers(2, 4), numbers(4, 3), numbers(1)], {}),
    ],
    **{name: [([X], {"axis": axis}) for axis in (-1, 1)] for name in ("LogSoftmax", "Softmax")},
    "MatMul": [([numbers(2, 4), numbers(4, 3)], {}), ([X, numbers(2, 4, 5)], {}), ([X, numbers(4, 5)], {})],
    "Min": [([X, X[::-1]], {}), ([X, ROW], {})],
    "ReduceSum": [([X, whole(1)], {}), ([X, whole(0, -1)], {"keepdims": 0})],
    "Reshape": [([X, whole(4, -1)], {}), ([X, whole(0, 6, 2)], {})],
    "Resize": [
        (
            [PICTURE, None, np.array([1, 1, 2, 3], np.float32)],
            {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"},
        )
    ],
    "Round": [([HALVES], {})],
    "Shape": [([X], {}), ([X], {"start": 0, "end": 1}), ([X], {"start": -2}), ([X], {"end": -1})],
    "Slice": [
        ([X, whole(1), whole(3), whole(-1)], {}),
        ([X, whole(0, -3), whole(2**62, -1), whole(1, 2), whole(2, 1)], {}),
        ([X, whole(0, 1), whole(1, 3)], {}),
    ],
    "Split": [([X, whole(1, 2)], {"axis": 1}), ([numbers(2, 5)], {"axis": -1, "num_outputs": 3})],
    "Squeeze": [([ROW, whole(-1)], {})],
    "Transpose": [([PICTURE], {"perm": [0, 2, 3, 1]})],
}


def model_of(operator: str, inputs: list[Any], attributes: dict[str, Any]) -> tuple[bytes, Arrays]:
    """A graph of one operator, whose other inputs are constants; what is no float comes out as one."""
    first, *others = inputs
    constants = [numpy_helper.from_array(np.asarray(x), f"c{i}") for i, x in enumerate(others) if x is not None]
    names = ["x", *("" if x is None else f"c{i}" for i, x in enumerate(others))]
    nodes = []
    if operator == "Gather":  # of the constant, at the first input
        nodes = [helper.make_node("Cast", ["x"], ["places"], to=TensorProto.INT64)]
        names = ["c0", "places"]
    elif operator == "Where":
        constants.append(numpy_helper.from_array(np.float32(0), "zero"))
        nodes = [helper.make_node("Greater", ["x", "zero"], ["condition"])]
        names[0] = "condition"
    count = {"Split": attributes.get("num_outputs", 2)}.get(operator, 1)
    outputs = [f"y{i}" for i in range(count)]
    nodes.append(helper.make_node(operator, names, [f"raw {name}" for name in outputs], **attributes))
    nodes += [helper.make_node("Cast", [f"raw {name}"], [name], to=TensorProto.FLOAT) for name in outputs]
    ports = [helper.make_tensor_value_info("x", TensorProto.FLOAT, first.shape)]
    results = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs]
    made = helper.make_graph(nodes, "one", ports, results, constants)
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    return model.SerializeToString(), {"x": np.ascontiguousarray(first)}


def test_every_operator_computes_what_onnxruntime_does() -> None:
    cases = [(name, *case) for name, its in CASES.items() for case in its]
    assert set(CASES) == operators()
    check([model_of(*case) for case in cases], [case[0] for case in cases])


# ---- graphs


def jobs_of(directory: Path, images: np.ndarray, *latent: int, **more: np.ndarray) -> list[tuple[bytes, Arrays]]:
    inputs: dict[str, Arrays] = {"encoder": {"images": images}, "decoder": {"latents": numbers(3, *latent)}}
    return [((directory / f"{name}.onnx").read_bytes(), given | more) for name, given in inputs.items()]


def test_encoder_and_decoder_compute_what_onnxruntime_does(
    exported: Exported, code: Exported, conditional: Exported
) -> None:
    jobs = [job for each in (exported, code) for job in jobs_of(each.directory, each.images[:3], 2)]
    jobs += jobs_of(conditional.directory, conditional.images[:3], 2, label=whole(2, 0, 1))
    check(jobs, ["encoder", "decoder"] * 3)


KINDS = {
    "convolutions": {"network": "conv", "norm": "layer"},
    "mixture": {"network": "conv", "activation": "silu", "norm": "batch", "likelihood": "logistic_mixture"},
    "residual": {"network": "resnet", "attention": True, "channels": [4, 6]},
    "image of latents": {"network": "resnet", "channels": [4, 6], "latent_channels": 3, "latent": None},
    "continuous": {"activation": "softplus", "likelihood": "continuous_bernoulli"},
    "up": {"kind": "hierarchical", "inference": "bottom_up", "activation": "relu"},
    "fsq": {"kind": "fsq", "levels": [4, 5]},
    "vq": {"kind": "vq", "codes": 8, "dimensions": 1},
    "codes of pixels": {
        "kind": "vq",
        "codes": 8,
        "dimensions": 3,
        "network": "resnet",
        "channels": [4, 6],
        "latent_channels": 3,
        "latent": None,
    },
    "down": {"kind": "hierarchical", "inference": "top_down", "activation": "tanh"},
    "labels": {"condition": "label", "size": 2, "network": "conv"},
    "labels of codes": {"condition": "label", "size": 2, "kind": "fsq", "levels": [4, 5]},
}


@pytest.mark.slow
@pytest.mark.parametrize("opset", OLDEST_ONNXRUNTIME)
@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_of_model_computes_what_onnxruntime_does(kind: str, opset: int, tmp_path: Path) -> None:
    prepared = prepare(tmp_path, **KINDS[kind])
    export_graphs(prepared.graphs(), opset, {}, tmp_path)
    label = {"label": whole(2, 0, 1)} if "condition" in KINDS[kind] else {}
    check(jobs_of(tmp_path, prepared.images[:3], *prepared.model.latent_shape, **label), ["encoder", "decoder"])


def test_a_graph_is_read_as_onnx_reads_it(exported: Exported) -> None:
    path = exported.directory / "encoder.onnx"
    found, wanted = graph.read(path.read_bytes(), "it"), onnx.load(path)
    assert [(node["op"], node["inputs"], node["outputs"]) for node in found["nodes"]] == [
        (node.op_type, list(node.input), list(node.output)) for node in wanted.graph.node
    ]
    assert [node["attributes"] for node in found["nodes"]] == [
        {
            attribute.name: value.decode()
            if isinstance(value := helper.get_attribute_value(attribute), bytes)
            else value
            for attribute in node.attribute
        }
        for node in wanted.graph.node
    ]
    assert found["outputs"] == ["mean", "log_variance"]
    assert found["metadata"] == {entry.key: entry.value for entry in wanted.metadata_props}
    assert {name: facts["shape"] for name, facts in found["constants"].items()} == {
        tensor.name: list(tensor.dims) for tensor in wanted.graph.initializer
    }
