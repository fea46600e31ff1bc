"""The graphs as a model repository, which Triton Inference Server loads as it is."""

import shutil
from collections.abc import Mapping
from pathlib import Path

from reparam.cards.export import GraphFacts, TensorFacts
from reparam.export.verify import batch_sizes

TRITON = "triton"
VERSION = "1"
TYPES = {"uint8": "TYPE_UINT8", "int64": "TYPE_INT64", "float32": "TYPE_FP32"}


def write_repository(graphs: Mapping[str, GraphFacts], directory: Path) -> None:
    """Write `triton/<name>/config.pbtxt` of each graph in a directory, and a copy of the graph."""
    for name, facts in graphs.items():
        version = directory / TRITON / name / VERSION
        version.mkdir(parents=True)
        shutil.copyfile(directory / f"{name}.onnx", version / "model.onnx")  # links are lost where folders are copied
        (version.parent / "config.pbtxt").write_text(configuration(name, facts), encoding="utf-8")


def configuration(name: str, facts: GraphFacts) -> str:
    """Describe a graph as Triton wants it: without the batch; waiting requests are computed as one, if it was tested.

    Source: Triton Inference Server, "Model Configuration".
    """
    return "".join(
        [
            f'name: "{name}"\nbackend: "onnxruntime"\nmax_batch_size: {max(batch_sizes(facts))}\n',
            *(_tensor("input", tensor) for tensor in facts.inputs),
            *(_tensor("output", tensor) for tensor in facts.outputs),
            "dynamic_batching { }\n",
        ]
    )


def _tensor(kind: str, tensor: TensorFacts) -> str:
    # Triton has no tensors without dimensions: a number of each image is sent as a list of one.
    sizes = ", ".join(map(str, tensor.row)) or "1"
    reshape = "" if tensor.row else "\n  reshape { shape: [ ] }"
    return f'{kind} {{\n  name: "{tensor.name}"\n  data_type: {TYPES[tensor.dtype]}\n  dims: [ {sizes} ]{reshape}\n}}\n'
