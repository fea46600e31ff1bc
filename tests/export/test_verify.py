import hashlib
import json
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from exported_model import LATENT, OPSET, Exported, prepare, run_stage, torch_images
from onnx.backend.test.loader import load_model_tests
from onnx.reference import ReferenceEvaluator

from reparam.cards.export import GraphFacts, TensorFacts
from reparam.errors import ParityError
from reparam.export import triton, verify
from reparam.export.program import lowest_ir_version
from reparam.export.runtime import Runtime
from reparam.export.verify import batch_sizes, cases, check_graph, measure_parity
from reparam.models.draw import kl_to_standard_normal
from reparam.tolerance import tolerance_of

pytest_plugins = ["fixtures_export"]

NAMES = ("encoder", "decoder", "score")


def parity(exported: Exported, directory: Path, grey_pixels: str = "keep") -> dict[str, float]:
    """Measure the parity of files with the exported model."""
    with tempfile.TemporaryDirectory() as scratch, Runtime(Path(scratch)) as runtime:
        return measure_parity(exported.graphs(grey_pixels), runtime, directory, exported.images, seed=0)


@pytest.fixture
def directory(exported: Exported, tmp_path: Path) -> Path:
    """A copy of the exported files that may be spoilt."""
    return Path(shutil.copytree(exported.directory, tmp_path / "onnx"))


def change(path: Path, edit: Callable[[onnx.ModelProto], None]) -> None:
    model = onnx.load(path)
    edit(model)
    onnx.save(model, path)


def add_to_last_bias(path: Path, value: float) -> None:
    """Add a constant to the bias of the last layer."""

    def edit(model: onnx.ModelProto) -> None:
        last = [node for node in model.graph.node if node.op_type == "Gemm"][-1]
        [tensor] = [tensor for tensor in model.graph.initializer if tensor.name == last.input[2]]
        changed = onnx.numpy_helper.to_array(tensor) + np.float32(value)
        tensor.CopyFrom(onnx.numpy_helper.from_array(changed.astype(np.float32), tensor.name))

    change(path, edit)


# The promises of a graph


@pytest.mark.parametrize("name", NAMES)
def test_a_graph_keeps_its_promises(name: str, exported: Exported) -> None:
    check_graph(exported.directory / f"{name}.onnx", exported.graphs()[name], OPSET)


def test_another_opset_is_refused(exported: Exported) -> None:
    with pytest.raises(ParityError) as error:
        check_graph(exported.directory / "encoder.onnx", exported.graphs()["encoder"], 19)
    assert str(error.value) == "export: encoder.onnx: wanted opset {'': 19}, found {'': 20}"


@pytest.mark.parametrize(("opset", "version"), [(18, 8), (19, 9), (20, 9), (21, 10), (22, 10), (23, 11)])
def test_the_file_format_is_the_oldest_that_can_hold_an_opset(opset: int, version: int) -> None:
    assert lowest_ir_version(opset) == version


def test_a_file_format_that_old_runtimes_refuse_is_refused(directory: Path, exported: Exported) -> None:
    change(directory / "encoder.onnx", lambda model: setattr(model, "ir_version", 10))
    with pytest.raises(ParityError) as error:
        check_graph(directory / "encoder.onnx", exported.graphs()["encoder"], OPSET)
    assert str(error.value) == "export: encoder.onnx: wanted IR version 9, found 10"


def test_another_output_name_is_refused(directory: Path, exported: Exported) -> None:
    def rename(model: onnx.ModelProto) -> None:
        model.graph.output[0].name = "mu"
        for node in model.graph.node:
            node.output[:] = ["mu" if name == "mean" else name for name in node.output]

    change(directory / "encoder.onnx", rename)
    with pytest.raises(ParityError) as error:
        check_graph(directory / "encoder.onnx", exported.graphs()["encoder"], OPSET)
    images, log_variance = "images: uint8 (batch, 4, 6, 3)", "log_variance: float32 (batch, 2)"
    assert str(error.value) == (
        f"export: encoder.onnx: wanted inputs and outputs {[images, 'mean: float32 (batch, 2)', log_variance]}, "
        f"found {[images, 'mu: float32 (batch, 2)', log_variance]}"
    )


def test_a_graph_in_the_place_of_the_other_is_refused(directory: Path, exported: Exported) -> None:
    shutil.copy(directory / "encoder.onnx", directory / "decoder.onnx")
    with pytest.raises(ParityError, match=r"^export: decoder\.onnx: wanted inputs and outputs \['latents: "):
        check_graph(directory / "decoder.onnx", exported.graphs()["decoder"], OPSET)


def test_a_posterior_is_refused_of_an_autoencoder_and_missed_of_a_vae(exported: Exported, code: Exported) -> None:
    check_graph(code.directory / "encoder.onnx", code.graphs()["encoder"], OPSET)
    with pytest.raises(ParityError, match=r"wanted inputs and outputs .*, found .*'log_variance: "):
        check_graph(exported.directory / "encoder.onnx", code.graphs()["encoder"], OPSET)
    with pytest.raises(ParityError, match=r"wanted inputs and outputs .*'log_variance: .*, found "):
        check_graph(code.directory / "encoder.onnx", exported.graphs()["encoder"], OPSET)


def test_a_fixed_batch_size_is_refused(directory: Path, exported: Exported) -> None:
    def fix(model: onnx.ModelProto) -> None:
        for value in (*model.graph.input, *model.graph.output):
            value.type.tensor_type.shape.dim[0].dim_value = 2

    change(directory / "decoder.onnx", fix)
    with pytest.raises(ParityError, match=r"'latents: float32 \(batch, 2\)'.*, found .*'latents: float32 \(2, 2\)'"):
        check_graph(directory / "decoder.onnx", exported.graphs()["decoder"], OPSET)


# Parity


def test_exported_graphs_agree_with_torch(exported: Exported) -> None:
    errors = parity(exported, exported.directory)
    assert set(errors) == {"encoder_max_error", "decoder_max_error", "decoder_max_grey_levels", "score_max_error"}
    assert 0 < max(errors[f"{name}_max_error"] for name in ("encoder", "decoder")) < 5e-6  # in another order
    assert errors["score_max_error"] < 1e-3  # of hundreds of nats
    assert errors["decoder_max_grey_levels"] <= 1


@pytest.mark.parametrize(
    ("side", "sizes"), [(28, (1, 2, 17, 256)), (64, (1, 2, 17, 256)), (256, (1, 2, 17)), (512, (1, 2))]
)
def test_large_images_are_compared_and_served_in_small_batches(side: int, sizes: tuple[int, ...]) -> None:
    pixels, latents = (
        TensorFacts(name=name, dtype=dtype, shape=("batch", *row), range=(None, None), unit="", meaning="")
        for name, dtype, row in (("images", "uint8", (side, side, 3)), ("mean", "float32", (2,)))
    )
    for facts in (GraphFacts(inputs=(pixels,), outputs=(latents,)), GraphFacts(inputs=(latents,), outputs=(pixels,))):
        assert batch_sizes(facts) == sizes
        assert f"\nmax_batch_size: {sizes[-1]}\n" in triton.configuration("encoder", facts)


def test_all_sizes_of_batches_are_compared(exported: Exported) -> None:
    found = [case for case, _ in cases(exported.graphs()["encoder"], exported.images, seed=0)]
    assert found == ["batch of 1", "batch of 2", "batch of 17", "batch of 256", "extremes"]


@pytest.mark.parametrize("graph", ["encoder", "decoder"])
def test_an_error_within_the_tolerance_is_measured(graph: str, exported: Exported, directory: Path) -> None:
    add_to_last_bias(directory / f"{graph}.onnx", 8e-6)
    errors = parity(exported, directory)
    # A bias of the decoder passes through a sigmoid, whose slope is at most a quarter.
    wanted = 8e-6 if graph == "encoder" else 2e-6
    assert errors[f"{graph}_max_error"] == pytest.approx(wanted, abs=1.5e-6)


@pytest.mark.parametrize(("graph", "output"), [("encoder", "mean"), ("decoder", "images")])
@pytest.mark.parametrize("value", [0.1, np.nan], ids=["wrong", "nan"])
def test_a_broken_weight_is_caught(graph: str, output: str, value: float, exported: Exported, directory: Path) -> None:
    add_to_last_bias(directory / f"{graph}.onnx", value)
    with pytest.raises(ParityError, match=rf"^export: {graph}\.onnx, output '{output}', batch of 1: ") as error:
        parity(exported, directory)
    assert str(error.value).endswith("; try another export.opset in params.yaml")


def test_an_error_of_a_decoder_below_a_grey_level_is_caught_in_its_means(exported: Exported, directory: Path) -> None:
    add_to_last_bias(directory / "decoder.onnx", 1e-3)
    with pytest.raises(ParityError) as error:
        parity(exported, directory)
    assert "output 'mean', batch of 1: onnxruntime differs from torch by 0.0002" in str(error.value)
    assert "wanted at most 1e-05" in str(error.value)


def test_an_encoder_that_treats_grey_pixels_otherwise_is_caught(exported: Exported) -> None:
    with pytest.raises(ParityError, match=r"^export: encoder\.onnx, output 'mean', batch of 1: "):
        parity(exported, exported.directory, "threshold")


def test_a_graph_that_is_right_for_a_single_image_only_is_caught(exported: Exported, directory: Path) -> None:
    def add_batch_size_minus_one(model: onnx.ModelProto) -> None:
        for node in model.graph.node:
            node.output[:] = ["right" if name == "mean" else name for name in node.output]
        make, one = onnx.helper.make_node, onnx.numpy_helper.from_array(np.ones(1, np.float32), "one")
        model.graph.initializer.append(one)
        model.graph.node.extend(
            [
                make("Shape", ["images"], ["size"], start=0, end=1),
                make("Cast", ["size"], ["float_size"], to=onnx.TensorProto.FLOAT),
                make("Sub", ["float_size", "one"], ["surplus"]),
                make("Add", ["right", "surplus"], ["mean"]),
            ]
        )

    change(directory / "encoder.onnx", add_batch_size_minus_one)
    check_graph(directory / "encoder.onnx", exported.graphs()["encoder"], OPSET)
    with pytest.raises(ParityError, match=r"^export: encoder\.onnx, output 'mean', batch of 2: .* differs .* by 1, "):
        parity(exported, directory)


def go_wrong_far_out(path: Path, error: float) -> None:
    """Add an error to the means of a decoder, of batches with a latent further out than 5.5."""

    def edit(model: onnx.ModelProto) -> None:
        for node in model.graph.node:
            node.output[:] = ["right" if name == "mean" else name for name in node.output]
        numbers = {"edge": 5.5, "factor": error / (verify.EXTREME - 5.5)}
        for name, value in numbers.items():
            model.graph.initializer.append(onnx.numpy_helper.from_array(np.float32(value), name))
        make = onnx.helper.make_node
        model.graph.node.extend(
            [
                make("Abs", ["latents"], ["sizes"]),
                make("ReduceMax", ["sizes"], ["largest"], keepdims=0),
                make("Sub", ["largest", "edge"], ["beyond"]),
                make("Relu", ["beyond"], ["excess"]),
                make("Mul", ["excess", "factor"], ["error"]),
                make("Add", ["right", "error"], ["mean"]),
            ]
        )

    change(path, edit)


def test_an_error_far_out_is_caught_and_may_be_ten_times_as_large(exported: Exported, directory: Path) -> None:
    go_wrong_far_out(directory / "decoder.onnx", 8e-5)
    assert parity(exported, directory)["decoder_max_error"] < 5e-6  # which is that of usual latents
    shutil.copy(exported.directory / "decoder.onnx", directory)
    go_wrong_far_out(directory / "decoder.onnx", 1.5e-4)
    with pytest.raises(ParityError) as caught:
        parity(exported, directory)
    assert str(caught.value).startswith("export: decoder.onnx, output 'mean', extremes: onnxruntime differs from torch")
    assert "by 0.00015, wanted at most 0.0001;" in str(caught.value)


@pytest.mark.parametrize(("side", "wanted"), [(28, 1e-5), (64, 1e-5), (128, 5.66e-5), (256, 3.2e-4)])
def test_the_tolerance_grows_with_images_that_are_large(side: int, wanted: float) -> None:
    assert tolerance_of(side, side) == pytest.approx(wanted, rel=1e-3)


def test_a_failing_export_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prepared = prepare(tmp_path)
    monkeypatch.setattr(verify, "tolerance_of", lambda *_: -1.0)
    with pytest.raises(ParityError):
        run_stage(prepared.paths)
    assert sorted(path.name for path in prepared.paths.onnx.parent.iterdir()) == ["vae"]
    assert not prepared.paths.export_metrics.exists()


# What goes with the graphs


def test_golden_files_hold_inputs_and_what_torch_makes_of_them(exported: Exported) -> None:
    with np.load(exported.directory / "golden.npz", allow_pickle=False) as golden:
        found = dict(golden)
    images = exported.images[::5]
    with torch.no_grad():
        mean, log_variance = exported.model.posterior(torch_images(images))
        decoded = exported.model.decode(mean).permute(0, 2, 3, 1).numpy()
    wanted = {
        "images": images,
        "mean": mean.numpy(),
        "log_variance": log_variance.numpy(),
        "latents": mean.numpy(),
        "decoded_images": np.rint(decoded * 255).astype(np.uint8),
        "decoded_mean": decoded,
        **scored(exported, found["epsilon"]),
    }
    assert {name: (array.shape, array.dtype) for name, array in found.items()} == {
        name: (array.shape, array.dtype) for name, array in wanted.items()
    }
    for name, array in wanted.items():
        np.testing.assert_array_equal(found[name], array, err_msg=name)


def scored(exported: Exported, epsilon: np.ndarray) -> dict[str, np.ndarray]:
    """What the score of the golden images should be at one posterior sample."""
    x, noise = torch_images(exported.images[::5]), torch.from_numpy(epsilon)
    with torch.no_grad():
        mean, log_variance = exported.model.posterior(x)
        output = exported.model.output(mean + (0.5 * log_variance).exp() * noise)
        log_px = exported.model.likelihood.log_prob(output, x)
        kl = kl_to_standard_normal(mean, log_variance).sum(1)
    reconstruction = output.sigmoid().permute(0, 2, 3, 1).numpy()
    values = {"negative_log_likelihood": -log_px.numpy(), "kl": kl.numpy()}
    return {"epsilon": epsilon, "reconstruction": reconstruction, **values}


@pytest.mark.parametrize("name", NAMES)
def test_a_test_in_onnxs_own_form_is_loaded_and_passed_by_onnxs_reference(
    name: str, exported: Exported, tmp_path: Path
) -> None:
    case_directory = shutil.copytree(exported.directory / "tests" / name, tmp_path / "bundle" / f"test_{name}")
    shutil.copy(exported.directory / f"{name}.onnx", case_directory / "model.onnx")
    [case] = load_model_tests(str(tmp_path), "bundle")
    assert (case.rtol, case.atol) == (1e-4, 1e-5)
    assert case.model_dir == str(case_directory)

    def read(kind: str, values: Any) -> dict[str, np.ndarray]:
        files = [case_directory / f"test_data_set_0/{kind}_{number}.pb" for number in range(len(values))]
        tensors = [onnx.TensorProto.FromString(file.read_bytes()) for file in files]
        assert [tensor.name for tensor in tensors] == [value.name for value in values]
        return {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in tensors}

    model = onnx.load(case_directory / "model.onnx")
    inputs, wanted = read("input", model.graph.input), read("output", model.graph.output)
    found = ReferenceEvaluator(model).run(None, inputs)
    for output, value in zip(wanted.values(), found, strict=True):
        np.testing.assert_allclose(value, output, rtol=case.rtol, atol=1 if value.dtype == np.uint8 else case.atol)


def test_the_manifest_names_every_file_by_its_content(exported: Exported) -> None:
    manifest = json.loads((exported.directory / "manifest.json").read_text())
    paths = (path for path in exported.directory.rglob("*") if path.is_file() and path.name != "manifest.json")
    names = {path.relative_to(exported.directory).as_posix() for path in paths}
    assert {"decoder.onnx", "encoder.onnx", "score.onnx", "golden.npz", "tests/score/data.json"} <= names
    assert manifest.pop("files") == {
        name: {
            "sha256": hashlib.sha256((exported.directory / name).read_bytes()).hexdigest(),
            "bytes": (exported.directory / name).stat().st_size,
        }
        for name in names
    }
    parity = json.loads(exported.paths.export_metrics.read_text())
    assert manifest.pop("parity") == {name: parity[name] for name in parity if "_max_" in name}
    assert manifest.pop("graphs").keys() == {"encoder", "decoder", "score"}
    assert manifest.pop("scores")["images"] == 40
    assert manifest.pop("codes")["images"] == 40
    [entry] = onnx.load(exported.directory / "encoder.onnx").metadata_props
    versions = {"opset": OPSET, "ir_version": 9, "oldest_onnxruntime": "1.17.0"}
    assert manifest == {**json.loads(entry.value), **versions, "triton": False, "variants": {}}
    assert manifest["latent_size"] == LATENT


def test_the_stage_reports_parity_and_skew(exported: Exported) -> None:
    metrics = json.loads(exported.paths.export_metrics.read_text())
    assert list(metrics) == [
        "weights",
        "encoder_max_error",
        "decoder_max_error",
        "decoder_max_grey_levels",
        "score_max_error",
        "served_elbo",
        "served_elbo_se",
        "served_elbo_loss",
        "served_elbo_loss_se",
    ]
    assert metrics["encoder_max_error"] < 1e-5
    assert metrics["served_elbo"] < 0
