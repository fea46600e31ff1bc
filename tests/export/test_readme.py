"""The README of an exported model, and its program in Python; `test_snippets.py` has the other languages."""

import math
import re
from collections.abc import Callable

import numpy as np
import onnx
import pytest
from exported_model import Exported
from ruamel.yaml import YAML

from reparam.client import Client

pytest_plugins = ["fixtures_export"]


def test_the_head_is_what_a_model_hub_reads(exported: Exported, code: Exported) -> None:
    heads = [YAML(typ="safe").load(files.readme().split("---\n")[1]) for files in (exported, code)]
    assert heads[0] == {
        "library_name": "onnx",
        "license": "cc0-1.0",
        "tags": ["onnx", "image-generation", "vae", "reparam"],
        "datasets": ["noise"],
        "metrics": ["elbo"],
    }
    assert "metrics" not in heads[1]


def test_the_page_says_how_old_a_runtime_may_be_and_which_scores_are_usual(exported: Exported) -> None:
    page = exported.readme()
    assert "wherever onnxruntime 1.17.0 or newer runs" in page
    assert "| percent of images below | 1 | 5 | 25 | 50 | 75 | 95 | 99 |\n|---|---|---|---|---|---|---|---|\n" in page
    assert "licence: CC0" in page
    assert (
        "wrong without an error, as OpenCV's DNN module was with hierarchical encoders. Test each with `golden" in page
    )
    assert "{{" not in page
    assert "{%" not in page


def test_the_python_program_gives_the_golden_answers(files: Exported, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(files.directory)
    found: dict[str, np.ndarray] = {}
    exec(files.snippet("python"), found)
    with np.load("golden.npz", allow_pickle=False) as golden:
        np.testing.assert_allclose(found["mean"], golden["mean"], rtol=1e-5, atol=1e-5)
        assert np.abs(found["reconstructed"].astype(int) - golden["decoded_images"]).max() <= 1
    found["golden"].close()  # type: ignore[attr-defined]
    facts = Client(".", device="cpu").metadata
    if facts["codebook"]:
        np.testing.assert_array_equal(found["latents"], found["mean"])
    assert ("generated" in found) == facts["has_prior"]
    if facts["has_prior"]:
        assert (found["latents"].shape, found["latents"].dtype) == ((16, *facts["latent_shape"]), np.float32)
        assert found["generated"].shape == (16, 4, 6, 3)


def test_it_calls_images_unusual_that_score_above_99_percent_of_the_test_split(
    exported: Exported, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(exported.directory)
    found: dict[str, np.ndarray] = {}
    exec(exported.snippet("python"), found)
    found["golden"].close()  # type: ignore[attr-defined]
    scores = Client(".", device="cpu").score(exported.images, samples=0).negative_elbo
    wanted = scores[::5] > float(np.percentile(scores, 99))  # the golden images are spread over the split
    assert found["is_unusual"].tolist() == wanted.tolist()


# Programs in other languages, which `test_snippets.py` compiles and runs: what they say of graphs

Call = tuple[list[str], str]  # names of the inputs, and of the output
Given = tuple[str, tuple[int, ...]]  # type and shape of an input
TYPES = {"byte": "uint8", "long": "int64", "uint8_t": "uint8", "int64_t": "int64"}


def shape_of(text: str) -> tuple[int, ...]:
    return tuple(map(int, text.split(", ")))


def read_javascript(text: str) -> tuple[list[Call], list[Given]]:
    inputs = [re.findall(r"(\w+)(?:: \w+)?", call) for call in re.findall(r"\.run\(\{ (.*?) \}\)", text)]
    outputs = re.findall(r"const \{ (\w+) \}", text) + re.findall(r"decoded\.(\w+)\.dims", text)
    tensors = re.findall(r'ort\.Tensor\("(\w+)", .*?, \[([\d, ]+)\]\);', text)
    return list(zip(inputs, outputs, strict=True)), [(dtype, shape_of(shape)) for dtype, shape in tensors]


def read_csharp(text: str) -> tuple[list[Call], list[Given]]:
    named = dict(re.findall(r'var (\w+) = NamedOnnxValue\.CreateFromTensor\("(\w+)"', text))
    runs = re.findall(r'\.Run\(new\[\] \{ (.*?) \}, new\[\] \{ "(\w+)" \}\)', text)
    calls = [([named[name] for name in inputs.split(", ")], output) for inputs, output in runs]
    tensors = re.findall(r"DenseTensor<(\w+)>\(new (\w+)\[(\d+)\], new\[\] \{ ([\d, ]+) \}", text)
    assert all(dtype == other and int(size) == math.prod(shape_of(shape)) for dtype, other, size, shape in tensors)
    return calls, [(TYPES[dtype], shape_of(shape)) for dtype, _, _, shape in tensors]


def read_cpp(text: str) -> tuple[list[Call], list[Given]]:
    names = {name: re.findall(r'"(\w+)"', its) for name, its in re.findall(r"char\* (\w+)\[\] = \{(.*?)\}", text)}
    runs = re.findall(r"\.Run\(Ort::RunOptions\{\}, (\w+), given, std::size\(given\), (\w+), 1\)", text)
    sizes = {name: (dtype, int(size)) for dtype, size, name in re.findall(r"array<(\w+), (\d+)> (\w+)", text)}
    tensors = re.findall(r"CreateTensor<(\w+)>\(memory, (\w+)\.data\(\), \2\.size\(\), (\w+)\.data", text)
    shapes = {"shape": shape_of(re.findall(r"shape\{([\d, ]+)\}", text)[0]), "count": (1,)}
    assert all(sizes[values] == (dtype, math.prod(shapes[shape])) for dtype, values, shape in tensors)
    assert all(sizes[shape] == ("int64_t", len(shapes[shape])) for _, _, shape in tensors)
    given = [(TYPES[dtype], shapes[shape]) for dtype, _, shape in tensors]
    return [(names[inputs], names[output][0]) for inputs, output in runs], given


@pytest.mark.parametrize(
    ("language", "read"), [("js", read_javascript), ("csharp", read_csharp), ("cpp", read_cpp)], ids=["js", "c#", "c++"]
)
def test_the_other_programs_know_names_types_and_shapes(
    language: str, read: Callable[[str], tuple[list[Call], list[Given]]], files: Exported
) -> None:
    graphs = {name: onnx.load(files.directory / f"{name}.onnx").graph for name in ("encoder", "decoder")}
    calls, given = read(files.snippet(language))
    assert calls == [
        ([value.name for value in graphs["encoder"].input], "mean"),
        ([value.name for value in graphs["decoder"].input], "images"),
    ]
    assert given == [
        (
            str(onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)),
            (1, *(size.dim_value for size in value.type.tensor_type.shape.dim[1:])),
        )
        for value in graphs["encoder"].input
    ]
