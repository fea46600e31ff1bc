"""Smaller copies of encoder and decoder: what they are, what they cost, and when they are kept."""

import itertools
import json
import logging
import re
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from conftest import small_section
from exported_model import LATENT, OPSET, Exported, prepare, run_stage
from policy import Policy
from some_cards import export_card
from torch import nn
from typer.testing import CliRunner

from reparam.cards.export import ExportCard, VariantFacts
from reparam.client import Client
from reparam.client.speed import compare
from reparam.errors import DamagedInputError, ParityError
from reparam.export import variants
from reparam.export.runtime import Runtime
from reparam.export.variants import MAKERS, Original, write_variants
from reparam.export.verify import run_torch
from reparam.report import speed
from reparam.shell import bench, commands

pytest_plugins = ["fixtures_export"]
INT8, STATIC, FP16 = ([f"{name}.{kind}.onnx" for name in ("encoder", "decoder")] for kind in MAKERS)

FLOAT = ["BatchNormalization", "Relu"]
CONVOLUTIONAL = {"network": "conv", "channels": [32], "hidden": [256], "norm": "batch", "activation": "relu"}


def export(root: Path, **changes: Any) -> Exported:
    prepared = prepare(root, **changes)
    run_stage(prepared.paths, variants=list(MAKERS))
    return prepared


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """A VAE with weights so large that 8 bits are too few for its ELBO; not to be changed."""
    return export(tmp_path_factory.mktemp("wide"), hidden=[160])


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """An autoencoder, which has no ELBO, with all its variants; not to be changed."""
    return export(tmp_path_factory.mktemp("kept"), hidden=[256], kind="autoencoder")


@pytest.fixture(scope="module")
def convolutional(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """An autoencoder with a convolution, its normalisation and a ReLU, and its variants; not to be changed."""
    return export(tmp_path_factory.mktemp("convolutional"), kind="autoencoder", **CONVOLUTIONAL)


@pytest.fixture
def original(exported: Exported, tmp_path: Path) -> Iterator[Original]:
    """The graphs of a small model in a directory of their own."""
    directory = tmp_path / "onnx"
    directory.mkdir()
    for name in exported.graphs():
        shutil.copy(exported.directory / f"{name}.onnx", directory)
    with tempfile.TemporaryDirectory() as scratch, Runtime(Path(scratch)) as runtime:
        yield Original(exported.graphs(), directory, runtime, {"images": exported.images})


def facts(exported: Exported) -> dict[str, VariantFacts]:
    return ExportCard.read(exported.directory / "manifest.json", "export").variants


def files(directory: Path) -> set[str]:
    return {path.name for path in directory.glob("*.*.onnx")}


# What is kept


def test_a_variant_that_loses_too_much_is_not_written_and_the_manifest_says_why(wide: Exported) -> None:
    found = facts(wide)["int8"]
    assert found.elbo_change is not None
    assert abs(found.elbo_change) > 0.5
    assert found.lost == f"wanted an ELBO that changes by at most 0.5 nats, found {found.elbo_change:.3g}"
    assert found.size_ratio > 2.5
    assert files(wide.directory) == set(FP16)


def test_a_variant_that_pays_is_written_and_listed(wide: Exported) -> None:
    found, listed = facts(wide)["fp16"], ExportCard.read(wide.directory / "manifest.json", "export").files
    assert found.lost is None
    assert found.bytes == sum(listed[name].bytes for name in FP16)
    whole = sum(listed[f"{name}.onnx"].bytes for name in ("encoder", "decoder"))
    assert found.size_ratio == round(whole / found.bytes, 2) >= 1.8
    assert found.max_error is not None
    assert 0 < found.max_error < found.tolerance == 0.005


def test_the_change_of_the_elbo_is_that_of_rounded_weights(wide: Exported) -> None:
    graph = wide.graphs()["score"]
    noise = np.random.default_rng(0).standard_normal((len(wide.images), LATENT), dtype=np.float32)
    inputs = {"images": wide.images, "epsilon": noise}

    def elbo() -> float:
        _, nll, kl = run_torch(graph, inputs)
        return float(-(nll + kl).astype(np.float64).mean())

    before, state = elbo(), {name: value.clone() for name, value in wide.model.state_dict().items()}
    for value in wide.model.parameters():
        if value.numel() >= variants.FEW:
            value.data = value.data.half().float()
    after = elbo()
    wide.model.load_state_dict(state)
    assert facts(wide)["fp16"].elbo_change == pytest.approx(after - before, abs=2e-4)


def test_without_a_score_size_and_parity_decide(kept: Exported) -> None:
    assert {kind: (each.elbo_change, each.lost) for kind, each in facts(kept).items()} == {
        "int8": (None, None),
        "int8_static": (None, None),
        "fp16": (None, None),
    }
    assert facts(kept)["int8"].size_ratio > 3
    assert files(kept.directory) == {*INT8, *STATIC, *FP16}


def test_a_small_model_gains_too_little(original: Original, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        found = write_variants(["int8", "int8"], original, OPSET)
    assert list(found) == ["int8"]
    assert caplog.messages == [
        "export: no encoder.int8.onnx and decoder.int8.onnx: wanted files at least 1.8 times smaller, found "
        f"{found['int8'].size_ratio}"
    ]
    assert files(original.directory) == set()


def test_numbers_that_are_not_finite_are_refused(original: Original, monkeypatch: pytest.MonkeyPatch) -> None:
    def spoil(source: Path, target: Path, _calibration: Any) -> None:
        model = onnx.load(source)
        for tensor in model.graph.initializer:
            values = onnx.numpy_helper.to_array(tensor)
            if values.size >= variants.FEW:
                tensor.CopyFrom(onnx.numpy_helper.from_array(np.full_like(values, np.nan), tensor.name))
        onnx.save(model, target)

    monkeypatch.setitem(MAKERS, "fp16", spoil)  # type: ignore[arg-type]
    found = write_variants(["fp16"], original, OPSET)["fp16"]
    assert (found.max_error, found.elbo_change) == (None, None)
    assert found.lost == (
        "wanted a difference from float32 of at most 0.005 times the scale, found nan; wanted files at least 1.8 times "
        "smaller, found 1; wanted an ELBO that changes by at most 0.5 nats, found nan"
    )


def test_a_variant_that_does_not_run_ends_the_export(original: Original) -> None:
    class Broken(Runtime):
        def __init__(self) -> None:
            pass

        def run(self, path: Path, *_: Any) -> list[Any]:
            raise RuntimeError(f"{path.name}: onnxruntime ended: out of order")

    with pytest.raises(ParityError) as error:
        write_variants(["fp16"], replace(original, runtime=Broken()), OPSET)
    assert str(error.value) == (
        "export: encoder.onnx: onnxruntime ended: out of order; take fp16 out of export.variants in params.yaml"
    )


def test_the_order_of_variants_makes_no_other_export(kept: Exported) -> None:
    card = export_card(variants=facts(kept))
    assert card.is_with(small_section("export", variants=["fp16", "int8_static", "int8"]))
    assert not card.is_with(small_section("export", variants=["fp16"]))


# What they are


@pytest.mark.parametrize("name", [*INT8, *STATIC, *FP16])
def test_a_variant_has_the_facts_of_its_original_and_small_weights(name: str, kept: Exported) -> None:
    role, kind, _ = name.split(".")
    before, after = onnx.load(kept.directory / f"{role}.onnx"), onnx.load(kept.directory / name)
    assert after.metadata_props == before.metadata_props
    assert (after.producer_name, after.ir_version, len(after.graph.value_info)) == ("reparam", 9, 0)
    large = [tensor for tensor in after.graph.initializer if onnx.numpy_helper.to_array(tensor).size > 256]
    wanted = onnx.TensorProto.FLOAT16 if kind == "fp16" else onnx.TensorProto.INT8
    assert [tensor.data_type for tensor in large] == [wanted] * 2
    kinds = {"MatMulInteger", "QuantizeLinear", "Gemm"} & {node.op_type for node in after.graph.node}
    assert kinds == {"int8": {"MatMulInteger"}, "int8_static": {"QuantizeLinear", "Gemm"}, "fp16": {"Gemm"}}[kind]


@pytest.mark.parametrize("kind", MAKERS)
def test_equal_graphs_make_equal_variants(kind: str, exported: Exported, tmp_path: Path) -> None:
    inputs = {"images": exported.images, "epsilon": np.ones((len(exported.images), LATENT), np.float32)}
    for name in ("first", "second"):
        MAKERS[kind](exported.directory / "score.onnx", tmp_path / name, inputs)
    assert (tmp_path / "first").read_bytes() == (tmp_path / "second").read_bytes()


# With integers in convolutions


def test_a_convolution_and_its_normalisation_become_one_of_seven_bits(tmp_path: Path) -> None:
    prepared = prepare(tmp_path, **CONVOLUTIONAL)
    run_stage(prepared.paths)
    whole = prepared.directory / "encoder.onnx"
    MAKERS["int8_static"](whole, tmp_path / "small.onnx", {"images": prepared.images[:20]})
    before, graph = onnx.load(whole).graph, onnx.load(tmp_path / "small.onnx").graph
    assert [node.op_type for node in before.node if node.op_type in FLOAT] == FLOAT * 2
    # What is left is that of the fully connected layer, whose output is not rounded.
    assert [node.op_type for node in graph.node if node.op_type in FLOAT] == FLOAT

    makers = {output: node for node in graph.node for output in node.output}
    arrays = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}
    [conv] = [node for node in graph.node if node.op_type == "Conv"]
    _, step, zero = makers[conv.input[0]].input
    assert (arrays[step], arrays[zero]) == (pytest.approx(1 / 255), 0)  # so that no pixel is rounded
    weights, scale, _ = (arrays[name] for name in makers[conv.input[1]].input)
    assert (weights.dtype, np.abs(weights).max(axis=(1, 2, 3)).tolist()) == (np.int8, [64] * 32)

    layer, norm = next(
        (layer, norm)
        for layer, norm in itertools.pairwise(prepared.model.modules())
        if isinstance(layer, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d)
    )
    assert norm.running_var is not None
    factor = norm.weight / (norm.running_var + norm.eps).sqrt()
    wanted = (layer.weight * factor[:, None, None, None]).detach().numpy() / scale[:, None, None, None]
    assert 0.45 < np.abs(weights - wanted).max() < 0.501


def test_it_is_kept_and_its_answers_depend_on_no_other_image(convolutional: Exported) -> None:
    found = facts(convolutional)["int8_static"]
    assert (found.lost, found.tolerance) == (None, 0.2)
    assert found.max_error is not None
    assert 0 < found.max_error < 0.1
    client = Client(convolutional.directory / "encoder.int8_static.onnx")
    together, alone = client.encode(convolutional.images)[0], client.encode(convolutional.images[:1])[0]
    np.testing.assert_allclose(together[:1], alone, rtol=1e-6)


def test_it_is_calibrated_on_training_images_their_codes_and_extremes(original: Original, tmp_path: Path) -> None:
    seen = {}

    def remember(source: Path, target: Path, calibration: Any) -> None:
        seen[source.stem] = calibration
        shutil.copy(source, target)

    images = original.test["images"][5:8]
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(MAKERS, "int8_static", remember)  # type: ignore[arg-type]
        write_variants(["int8_static"], replace(original, train={"images": images}), OPSET)
    codes = original.run(original.directory / "encoder.onnx", "encoder", {"images": images})[0]
    assert {name: list(inputs) for name, inputs in seen.items()} == {
        "encoder": ["images"],
        "decoder": ["latents"],
        "score": ["images", "epsilon"],
    }
    for name in ("encoder", "score"):
        np.testing.assert_array_equal(seen[name]["images"][:3], images)
        assert [np.unique(image).tolist() for image in seen[name]["images"][3:]] == [[0], [255]]
    np.testing.assert_array_equal(seen["decoder"]["latents"], [*codes, [-6] * LATENT, [6] * LATENT])
    noise = np.random.default_rng(0).standard_normal((3, LATENT), dtype=np.float32)
    np.testing.assert_array_equal(seen["score"]["epsilon"], [*noise, [-6] * LATENT, [6] * LATENT])


def test_two_exports_have_equal_bytes(convolutional: Exported) -> None:
    before = {path: path.read_bytes() for path in convolutional.directory.glob("*.int8_static.onnx")}
    assert len(before) == 2
    run_stage(convolutional.paths, variants=list(MAKERS))
    assert {path: path.read_bytes() for path in before} == before


def test_a_conditional_model_is_calibrated_with_them(tmp_path: Path) -> None:
    conditional = prepare(tmp_path, condition="label", size=2, kind="autoencoder", hidden=[512])
    run_stage(conditional.paths, variants=["int8_static"])
    assert facts(conditional)["int8_static"].lost is None
    assert files(conditional.directory) == set(STATIC)


@pytest.mark.parametrize(("kinds", "oldest"), [(["int8"], "1.23.0"), (["int8_static"], "1.24.1")])
def test_with_opset_23_it_needs_a_newer_runtime(kinds: list[str], oldest: str, tmp_path: Path) -> None:
    wide = prepare(tmp_path, kind="autoencoder", hidden=[256])
    run_stage(wide.paths, variants=kinds, opset=23)
    assert ExportCard.read(wide.directory / "manifest.json", "export").oldest_onnxruntime == oldest


def test_a_codebook_is_refused_because_a_code_jumps_to_another(tmp_path: Path) -> None:
    codes = prepare(tmp_path, "none", kind="vq", latent=6, codes=9, dimensions=3, likelihood="gaussian", hidden=[512])
    run_stage(codes.paths, variants=["int8_static"])
    found = facts(codes)["int8_static"]
    assert found.lost == (
        f"wanted a difference from float32 of at most 0.2 times the scale, found {found.max_error:.3g}"
    )
    assert files(codes.directory) == set()


# Using them


@pytest.mark.parametrize(("kind", "tolerance"), [("int8", 0.2), ("int8_static", 0.2), ("fp16", 0.005)])
def test_the_client_opens_a_variant_and_the_folder_as_before(kind: str, tolerance: float, kept: Exported) -> None:
    whole, small = Client(kept.directory), Client(kept.directory / f"encoder.{kind}.onnx")
    assert (whole.graphs, small.graphs) == (("encoder", "decoder"), ("encoder",))
    wanted, found = whole.encode(kept.images)[0], small.encode(kept.images)[0]
    assert 0 < np.abs(found - wanted).max() <= tolerance * np.abs(wanted).max()


def test_a_damaged_variant_is_refused(kept: Exported, tmp_path: Path) -> None:
    directory = Path(shutil.copytree(kept.directory, tmp_path / "onnx"))
    content = bytearray((directory / "encoder.int8.onnx").read_bytes())
    content[len(content) // 2] ^= 1
    (directory / "encoder.int8.onnx").write_bytes(content)
    with pytest.raises(DamagedInputError, match=r"encoder\.int8\.onnx: its SHA-256 is not that in manifest\.json"):
        Client(directory / "encoder.int8.onnx")


def test_bench_compares_variants_with_their_original(kept: Exported, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("reparam.shell.bench.SECONDS", 0)
    head, *lines = reparam_model("bench", "--model", str(kept.directory)).splitlines()
    assert head.split() == ["call", "batch", "ms", "images/s", "speed"]
    titles = [name + kind for name in ("encode", "decode") for kind in ("", " int8", " int8_static", " fp16")]
    assert [line[:18].rstrip() for line in lines[:16]] == titles * 2
    assert [line.split()[-1] for line in lines[:16:4]] == ["1.00x"] * 4
    assert [line[:12].rstrip() for line in lines[16:]] == ["", "graphs", "float32", *facts(kept)]
    assert [line.split()[1] for line in lines[19:]] == [f"{fact.bytes / 1000:,.0f}" for fact in facts(kept).values()]


def test_the_report_has_a_page_of_size_elbo_and_times(kept: Exported, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("reparam.report.speed.SECONDS", 0)
    text = speed.render(kept.directory, "A <b> model", "0123abcd")
    assert "A &lt;b&gt; model" in text
    assert "<code>0123abcd</code>" in text
    assert Policy(text).allows_exactly_what_is_there
    head, *rows = [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row) for row in re.findall(r"<tr>(.*?)</tr>", text)]
    assert head == ["graphs", "kB", "smaller", "ELBO, nats"] + [
        f"{call} {batch}, ms" for call in ("encode", "decode") for batch in (1, 256)
    ]
    assert [row[:2] for row in rows[1:]] == [[kind, f"{its.bytes / 1000:,.0f}"] for kind, its in facts(kept).items()]
    assert rows[0][0] == "float32"
    assert min(float(time) for row in rows for time in row[4:]) > 0


def test_bench_sums_up_what_each_variant_saves_and_costs() -> None:
    small = {"bytes": 560_000, "size_ratio": 3.57, "elbo_change": -0.0077, "lost": None}
    tried = {
        "int8": small,
        "fp16": {**small, "elbo_change": None},
        "int8_static": {**small, "lost": "wanted this, found that"},
    }
    sizes = {"encoder.onnx": {"bytes": 1_500_000}, "decoder.onnx": {"bytes": 500_000}, "score.onnx": {"bytes": 9}}
    times = itertools.product(("encode", "decode", "score"), ("float32", "int8", "fp16"), (1, 256))
    seconds = {key: number / 1000 for number, key in enumerate(times)}
    found = list(bench._aligned(compare({"files": sizes, "variants": tried}, seconds)))
    assert found == [
        "graphs              kB  smaller  ELBO, nats    encode 1, ms  encode 256, ms    decode 1, ms  decode 256, ms",
        "float32          2,000    1.00x     +0.0000           0.000           1.000           6.000           7.000",
        "int8               560    3.57x     -0.0077           2.000           3.000           8.000           9.000",
        "fp16               560    3.57x                       4.000           5.000          10.000          11.000",
        "int8_static  not written: wanted this, found that",
    ]


def test_verify_holds_a_variant_to_its_own_tolerance(kept: Exported, tmp_path: Path) -> None:
    said = reparam_model("verify", "--model", str(kept.directory / "encoder.int8.onnx"))
    assert "encoder, mean: largest difference 0." in said
    directory = Path(shutil.copytree(kept.directory, tmp_path / "onnx"))
    manifest = json.loads((directory / "manifest.json").read_text())
    manifest["variants"]["int8"]["tolerance"] = 1e-6
    (directory / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ParityError, match=r"encoder\.int8\.onnx: encoder, mean: wanted at most "):
        reparam_model("verify", "--model", str(directory / "encoder.int8.onnx"))


def test_the_model_card_lists_what_was_kept(wide: Exported) -> None:
    page, change = (wide.directory / "README.md").read_text(encoding="utf-8"), facts(wide)["fp16"]
    assert (
        "\n| `encoder.fp16.onnx`, `decoder.fp16.onnx` | as above | as above; "
        f"{change.size_ratio} times smaller, ELBO {change.elbo_change:+.3f} nats |\n| `golden.npz`"
    ) in page
    assert "encoder.int8" not in page


def reparam_model(*arguments: str) -> str:
    result = CliRunner().invoke(commands.app, list(arguments), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout
