import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from exported_model import LATENT, OPSET, Exported, prepare, run_stage, torch_images

from reparam.errors import ParityError
from reparam.export import verify
from reparam.export.verify import check_graph, measure_parity

pytest_plugins = ["fixtures_export"]

POSTERIOR, IMAGES = ("mean", "log_variance"), ("images", "mean")
OUTPUTS = {"encoder.onnx": POSTERIOR, "decoder.onnx": IMAGES}


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


@pytest.mark.parametrize("name", ["encoder.onnx", "decoder.onnx"])
def test_a_graph_keeps_its_promises(name: str, exported: Exported) -> None:
    check_graph(exported.directory / name, OUTPUTS[name], OPSET)


def test_another_opset_is_refused(exported: Exported) -> None:
    with pytest.raises(ParityError) as error:
        check_graph(exported.directory / "encoder.onnx", POSTERIOR, 19)
    assert str(error.value) == "export: encoder.onnx: wanted opset {'': 19}, found {'': 20}"


def test_another_output_name_is_refused(directory: Path) -> None:
    def rename(model: onnx.ModelProto) -> None:
        model.graph.output[0].name = "mu"
        for node in model.graph.node:
            node.output[:] = ["mu" if name == "mean" else name for name in node.output]

    change(directory / "encoder.onnx", rename)
    with pytest.raises(ParityError) as error:
        check_graph(directory / "encoder.onnx", POSTERIOR, OPSET)
    assert str(error.value) == (
        "export: encoder.onnx: wanted inputs and outputs "
        "{'images': ('uint8', 4), 'mean': ('float32', 2), 'log_variance': ('float32', 2)}, "
        "found {'images': ('uint8', 4), 'mu': ('float32', 2), 'log_variance': ('float32', 2)}"
    )


def test_a_graph_in_the_place_of_the_other_is_refused(directory: Path) -> None:
    shutil.copy(directory / "encoder.onnx", directory / "decoder.onnx")
    with pytest.raises(ParityError, match=r"^export: decoder\.onnx: wanted inputs and outputs \{'latents': "):
        check_graph(directory / "decoder.onnx", IMAGES, OPSET)


def test_a_posterior_is_refused_of_an_autoencoder_and_missed_of_a_vae(exported: Exported, code: Exported) -> None:
    check_graph(code.directory / "encoder.onnx", ("mean",), OPSET)
    with pytest.raises(ParityError) as error:
        check_graph(exported.directory / "encoder.onnx", ("mean",), OPSET)
    assert str(error.value) == (
        "export: encoder.onnx: wanted inputs and outputs {'images': ('uint8', 4), 'mean': ('float32', 2)}, "
        "found {'images': ('uint8', 4), 'mean': ('float32', 2), 'log_variance': ('float32', 2)}"
    )
    with pytest.raises(ParityError, match=r"wanted inputs and outputs .*'log_variance'.*, found "):
        check_graph(code.directory / "encoder.onnx", POSTERIOR, OPSET)


def test_a_fixed_batch_size_is_refused(directory: Path) -> None:
    def fix(model: onnx.ModelProto) -> None:
        for value in (*model.graph.input, *model.graph.output):
            value.type.tensor_type.shape.dim[0].dim_value = 2
        del model.graph.value_info[:]

    change(directory / "decoder.onnx", fix)
    with pytest.raises(ParityError) as error:
        check_graph(directory / "decoder.onnx", IMAGES, OPSET)
    assert str(error.value) == (
        "export: decoder.onnx: wanted tensors with a fixed batch size [], found ['latents', 'images', 'mean']"
    )


# Parity


def test_exported_graphs_agree_with_torch(exported: Exported) -> None:
    errors = measure_parity(exported.encoder(), exported.decoder, exported.directory, exported.images, seed=0)
    assert list(errors) == ["encoder_max_error", "decoder_max_error", "decoder_max_grey_levels"]
    assert (
        0 < max(errors["encoder_max_error"], errors["decoder_max_error"]) < 5e-6
    )  # float32, computed in another order
    assert errors["decoder_max_grey_levels"] <= 1


@pytest.mark.parametrize("graph", ["encoder", "decoder"])
def test_an_error_within_the_tolerance_is_measured(graph: str, exported: Exported, directory: Path) -> None:
    add_to_last_bias(directory / f"{graph}.onnx", 8e-6)
    errors = measure_parity(exported.encoder(), exported.decoder, directory, exported.images, seed=0)
    # A bias of the decoder passes through a sigmoid, whose slope is at most a quarter.
    wanted = 8e-6 if graph == "encoder" else 2e-6
    assert errors[f"{graph}_max_error"] == pytest.approx(wanted, abs=1.5e-6)


@pytest.mark.parametrize(("graph", "output"), [("encoder", "mean"), ("decoder", "images")])
@pytest.mark.parametrize("value", [0.1, np.nan], ids=["wrong", "nan"])
def test_a_broken_weight_is_caught(graph: str, output: str, value: float, exported: Exported, directory: Path) -> None:
    add_to_last_bias(directory / f"{graph}.onnx", value)
    with pytest.raises(ParityError, match=rf"^export: {graph}\.onnx, output '{output}', batch of 1: ") as error:
        measure_parity(exported.encoder(), exported.decoder, directory, exported.images, seed=0)
    assert str(error.value).endswith("; try another export.opset in params.yaml")


def test_an_error_of_a_decoder_below_a_grey_level_is_caught_in_its_means(exported: Exported, directory: Path) -> None:
    add_to_last_bias(directory / "decoder.onnx", 1e-3)
    with pytest.raises(ParityError) as error:
        measure_parity(exported.encoder(), exported.decoder, directory, exported.images, seed=0)
    assert "output 'mean', batch of 1: onnxruntime differs from torch by 0.0002" in str(error.value)
    assert "wanted at most 1e-05" in str(error.value)


def test_an_encoder_that_treats_grey_pixels_otherwise_is_caught(exported: Exported) -> None:
    with pytest.raises(ParityError, match=r"^export: encoder\.onnx, output 'mean', batch of 1: "):
        measure_parity(exported.encoder("threshold"), exported.decoder, exported.directory, exported.images, seed=0)


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
    check_graph(directory / "encoder.onnx", POSTERIOR, OPSET)
    with pytest.raises(ParityError, match=r"^export: encoder\.onnx, output 'mean', batch of 2: .* differs .* by 1, "):
        measure_parity(exported.encoder(), exported.decoder, directory, exported.images, seed=0)


def test_a_failing_export_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prepared = prepare(tmp_path)
    monkeypatch.setattr(verify, "TOLERANCE", -1.0)
    with pytest.raises(ParityError):
        run_stage(prepared.paths)
    assert sorted(path.name for path in prepared.paths.onnx.parent.iterdir()) == ["vae"]
    assert not prepared.paths.export_metrics.exists()


# What goes with the graphs


def test_golden_files_hold_inputs_and_what_torch_makes_of_them(exported: Exported) -> None:
    with np.load(exported.directory / "golden.npz", allow_pickle=False) as golden:
        found = dict(golden)
    images = exported.images[:8]
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
    }
    assert {name: (array.shape, array.dtype) for name, array in found.items()} == {
        name: (array.shape, array.dtype) for name, array in wanted.items()
    }
    for name, array in wanted.items():
        np.testing.assert_array_equal(found[name], array, err_msg=name)


def test_the_manifest_names_every_file_by_its_content(exported: Exported) -> None:
    manifest = json.loads((exported.directory / "manifest.json").read_text())
    names = ["decoder.onnx", "encoder.onnx", "golden.npz"]
    assert sorted(path.name for path in exported.directory.iterdir()) == [*names, "manifest.json"]
    assert manifest.pop("files") == {
        name: {
            "sha256": hashlib.sha256((exported.directory / name).read_bytes()).hexdigest(),
            "bytes": (exported.directory / name).stat().st_size,
        }
        for name in names
    }
    [entry] = onnx.load(exported.directory / "encoder.onnx").metadata_props
    assert manifest == {**json.loads(entry.value), "opset": OPSET}
    assert manifest["latent_size"] == LATENT


def test_the_stage_reports_parity_and_skew(exported: Exported) -> None:
    metrics = json.loads(exported.paths.export_metrics.read_text())
    assert list(metrics) == [
        "weights",
        "encoder_max_error",
        "decoder_max_error",
        "decoder_max_grey_levels",
        "served_elbo",
        "served_elbo_se",
        "served_elbo_loss",
        "served_elbo_loss_se",
    ]
    assert metrics["encoder_max_error"] < 1e-5
    assert metrics["served_elbo"] < 0
