"""The model repository for Triton says what the graphs say."""

import re
from pathlib import Path
from typing import Any

import onnx
import pytest
from exported_model import Exported, prepare, run_stage

from reparam.export.triton import configuration, write_repository

pytest_plugins = ["fixtures_export"]

NAMES = ("encoder", "decoder", "score")
TENSOR = re.compile(
    r'^(input|output) \{\n  name: "(\w+)"\n  data_type: TYPE_(\w+)\n  dims: \[ ([\d, ]+) \]\n'
    r"(  reshape \{ shape: \[ \] \}\n)?\}$",
    re.MULTILINE,
)
TYPES = {"UINT8": onnx.TensorProto.UINT8, "FP32": onnx.TensorProto.FLOAT}


def described(text: str) -> list[tuple[Any, ...]]:
    """Kind, name, type and shape without the batch of all tensors that a configuration has."""
    return [
        (kind, name, TYPES[dtype], () if reshape else tuple(map(int, sizes.split(", "))))
        for kind, name, dtype, sizes, reshape in TENSOR.findall(text)
    ]


def signature(path: Path) -> list[tuple[Any, ...]]:
    """The same of a graph."""
    graph = onnx.load(path).graph
    values = [("input", value) for value in graph.input] + [("output", value) for value in graph.output]
    return [
        (kind, value.name, tensor.elem_type, tuple(size.dim_value for size in tensor.shape.dim[1:]))
        for kind, value in values
        if (tensor := value.type.tensor_type)
    ]


@pytest.fixture(scope="module")
def repository(exported: Exported, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The repository of the exported graphs."""
    directory = tmp_path_factory.mktemp("bundle")
    for name in NAMES:
        (directory / f"{name}.onnx").write_bytes((exported.directory / f"{name}.onnx").read_bytes())
    write_repository({name: graph.facts for name, graph in exported.graphs().items()}, directory)
    return directory / "triton"


@pytest.mark.parametrize("name", NAMES)
def test_a_configuration_has_the_inputs_and_outputs_of_its_graph(name: str, repository: Path) -> None:
    text = (repository / name / "config.pbtxt").read_text()
    assert described(text) == signature(repository / name / "1/model.onnx")
    assert len(described(text)) == {"encoder": 3, "decoder": 3, "score": 5}[name]


def test_a_repository_has_a_folder_of_each_model_and_one_of_its_version(repository: Path, exported: Exported) -> None:
    files = {path.relative_to(repository).as_posix(): path for path in repository.rglob("*") if path.is_file()}
    assert set(files) == {f"{name}/{file}" for name in NAMES for file in ("config.pbtxt", "1/model.onnx")}
    for name in NAMES:
        assert files[f"{name}/1/model.onnx"].read_bytes() == (exported.directory / f"{name}.onnx").read_bytes()


def test_requests_are_batched_and_the_name_is_that_of_the_folder(exported: Exported) -> None:
    assert configuration("decoder", exported.graphs()["decoder"].facts) == (
        'name: "decoder"\n'
        'backend: "onnxruntime"\n'
        "max_batch_size: 256\n"
        'input {\n  name: "latents"\n  data_type: TYPE_FP32\n  dims: [ 2 ]\n}\n'
        'output {\n  name: "images"\n  data_type: TYPE_UINT8\n  dims: [ 4, 6, 3 ]\n}\n'
        'output {\n  name: "mean"\n  data_type: TYPE_FP32\n  dims: [ 4, 6, 3 ]\n}\n'
        "dynamic_batching { }\n"
    )


def test_a_number_of_each_image_is_a_list_of_one_to_triton(exported: Exported) -> None:
    text = configuration("score", exported.graphs()["score"].facts)
    assert '  name: "kl"\n  data_type: TYPE_FP32\n  dims: [ 1 ]\n  reshape { shape: [ ] }\n}\n' in text


def test_the_stage_writes_a_repository_on_request_and_lists_its_files(tmp_path: Path, exported: Exported) -> None:
    prepared = prepare(tmp_path, kind="autoencoder")
    run_stage(prepared.paths, triton=True)
    manifest = (prepared.directory / "manifest.json").read_text()
    assert {path.name for path in (prepared.directory / "triton").iterdir()} == {"encoder", "decoder"}
    assert '"triton/encoder/config.pbtxt"' in manifest
    assert '"triton": true' in manifest
    assert not (exported.directory / "triton").exists()
