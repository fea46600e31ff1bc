"""A score graph made by hand, and an exported model that has it."""

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

NOISE = 3  # numbers of `epsilon` for each image, another number than that of latents
SHAPE = (4, 6, 3)  # (H, W, C)
OUTPUTS = ("reconstruction", "negative_log_likelihood", "kl")


def reference(images: np.ndarray, epsilon: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What the graph computes: some negative log-likelihood and KL of each image. Shapes: (B, H, W, C), (B, E)."""
    pixels = images.reshape(len(images), -1).astype(np.float64) / 255
    return (pixels * pixels).sum(1) + epsilon.astype(np.float64).sum(1), pixels.sum(1)


def with_score(directory: Path, target: Path) -> Path:
    """Copy an exported model and add `score.onnx`, as an export of format 4 has it."""
    shutil.copytree(directory, target, dirs_exist_ok=True)
    for path in target.glob("*.onnx"):
        graph = onnx.load(path)
        (entry,) = graph.metadata_props
        entry.value = entry.value.replace('"format": 2', '"format": 4')
        onnx.save(graph, path)
    _save(entry.value, target / "score.onnx")
    with np.load(target / "golden.npz") as file:
        kept = {name: file[name] for name in file if name not in ("epsilon", *OUTPUTS)}
    np.savez(target / "golden.npz", **kept)
    relist(target)
    return target


def relist(directory: Path) -> None:
    """Write the manifest again after files were changed on purpose."""
    path = directory / "manifest.json"
    manifest = json.loads(path.read_text())
    graph = onnx.load(directory / "decoder.onnx")
    manifest |= json.loads(graph.metadata_props[0].value)
    files = (file for file in sorted(directory.rglob("*")) if file.is_file() and file != path)
    contents = {file.relative_to(directory).as_posix(): file.read_bytes() for file in files}
    manifest["files"] = {
        name: {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
        for name, content in contents.items()
    }
    path.write_text(json.dumps(manifest))


def _save(metadata: str, path: Path) -> None:
    nodes = [
        helper.make_node("Cast", ["images"], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("Flatten", ["floats"], ["flat"]),
        helper.make_node("Div", ["flat", "white"], ["pixels"]),
        helper.make_node("ReduceSum", ["pixels", "axes"], ["kl"], keepdims=0),
        helper.make_node("Mul", ["pixels", "pixels"], ["squares"]),
        helper.make_node("ReduceSum", ["squares", "axes"], ["error"], keepdims=0),
        helper.make_node("ReduceSum", ["epsilon", "axes"], ["noise"], keepdims=0),
        helper.make_node("Add", ["error", "noise"], ["negative_log_likelihood"]),
        helper.make_node("Div", ["floats", "white"], ["reconstruction"]),
    ]
    number = TensorProto.FLOAT
    graph = helper.make_graph(
        nodes,
        "score",
        [
            helper.make_tensor_value_info("images", TensorProto.UINT8, ["batch", *SHAPE]),
            helper.make_tensor_value_info("epsilon", number, ["batch", NOISE]),
        ],
        [
            helper.make_tensor_value_info("reconstruction", number, ["batch", *SHAPE]),
            helper.make_tensor_value_info("negative_log_likelihood", number, ["batch"]),
            helper.make_tensor_value_info("kl", number, ["batch"]),
        ],
        [numpy_helper.from_array(np.float32(255), "white"), numpy_helper.from_array(np.array([1]), "axes")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    model.metadata_props.add(key="reparam", value=metadata)
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, path)
