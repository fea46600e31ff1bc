"""A conditional model, exported: what its files say and compute, and what apps make of it."""

import json
import re
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from exported_model import CLASSES, LATENT, Exported, prepare, run_stage, torch_images
from serving import Service, column, error, png

from reparam.client import Client
from reparam.client.labels import number_of
from reparam.errors import UserError
from reparam.explorer.page import render
from reparam.models.model import Model
from reparam.serve.routes import Limits
from reparam.shell import work
from reparam.shell.verify import verify
from reparam.track.registry import _schema

pytest_plugins = ["fixtures_export"]
KNOWN = "labels 0 to 2: 0 (cat), 1 (dog), 2 (owl)"


@pytest.fixture
def client(conditional: Exported) -> Client:
    return Client(conditional.directory, device="cpu")


def test_each_graph_takes_a_label_of_each_image(conditional: Exported, client: Client) -> None:
    manifest = json.loads((conditional.directory / "manifest.json").read_text())
    assert manifest["classes"] == list(CLASSES)
    assert client.classes == CLASSES
    for name in ("encoder", "decoder", "score"):
        graph = onnx.load(conditional.directory / f"{name}.onnx").graph
        [label] = [value for value in graph.input if value.name == "label"]
        assert label.type.tensor_type.elem_type == onnx.TensorProto.INT64
        assert [size.dim_param for size in label.type.tensor_type.shape.dim] == ["batch"]
        assert manifest["graphs"][name]["inputs"][-1] == {
            "name": "label",
            "dtype": "int64",
            "shape": ["batch"],
            "range": [0.0, 2.0],
            "unit": "",
            "meaning": "class of an image, as `classes` of the manifest numbers them",
        }


@pytest.mark.parametrize("label", range(len(CLASSES)))
@torch.no_grad()
def test_each_label_has_the_outputs_that_torch_gives_it(conditional: Exported, client: Client, label: int) -> None:
    images, model = conditional.images[:5], Model(conditional.model, torch.full((5,), label))
    x = torch_images(images)
    mean, log_variance = client.encode(images, label)
    for found, wanted in zip((mean, log_variance), model.posterior(x), strict=True):
        np.testing.assert_allclose(found, wanted.numpy(), rtol=0, atol=1e-5)
    np.testing.assert_allclose(
        client.decode_mean(mean, label), model.decode(torch.from_numpy(mean)).permute(0, 2, 3, 1), rtol=0, atol=1e-5
    )
    score = client.score(images, 0, labels=label)
    log_px = model.likelihood.log_prob(model.output(model.posterior(x)[0]), x)
    np.testing.assert_allclose(score.negative_log_likelihood, -log_px, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        {"network": "conv", "stride": 2},
        {"kind": "hierarchical", "inference": "top_down"},
        {"kind": "autoencoder"},
        {"prior": "vamp", "components": 3},
    ],
    ids=lambda changes: "-".join(map(str, changes.values())),
)
def test_any_kind_is_exported_with_labels(changes: dict[str, object], tmp_path: Path) -> None:
    made = prepare(tmp_path, condition="label", size=2, **changes)
    run_stage(made.paths)  # which fails unless all labels agree with torch
    model, latents = Client(made.directory, device="cpu"), np.ones((1, made.model.latent_size))
    assert (model.decode_mean(latents, 0) != model.decode_mean(latents, 1)).any()


def test_images_of_several_labels_are_those_of_each(client: Client, conditional: Exported) -> None:
    images, labels = conditional.images[:7], np.arange(7) % 3
    each = [client.encode(images[[row]], int(label))[0][0] for row, label in enumerate(labels)]
    np.testing.assert_allclose(client.encode(images, labels)[0], each, rtol=0, atol=1e-6)
    small = Client(conditional.directory, device="cpu", batch=2)
    np.testing.assert_allclose(small.score(images, 0, labels=labels).kl, client.score(images, 0, labels=labels).kl)
    samples = client.sample(3, seed=1, label=[2, 0, 1])
    for row, label in enumerate((2, 0, 1)):
        np.testing.assert_array_equal(samples[row], client.sample(3, seed=1, label=label)[row])
    np.testing.assert_array_equal(
        client.reconstruct(images, labels), client.decode(client.encode(images, labels)[0], labels)
    )
    [codes] = client.embed(images, label=1)
    np.testing.assert_array_equal(codes, client.encode(images, 1)[0])
    assert client.interpolate(images[0], images[1], 4, label=2).shape == (4, *client.image_shape)


@pytest.mark.parametrize(
    ("label", "message"),
    [
        (None, f"sample: wanted a label for each image, because the model was trained with {KNOWN}"),
        (3, f"sample: wanted {KNOWN}, found label 3"),
        (-1, f"sample: wanted {KNOWN}, found label -1"),
        ([0, 1], "sample: wanted one label, a whole number, or 3 of them, found int64 (2,)"),
        (1.0, "sample: wanted one label, a whole number, or 3 of them, found float64 ()"),
        (True, "sample: wanted one label, a whole number, or 3 of them, found bool ()"),
        ([[0], [0, 1]], "sample: wanted one label, a whole number, or 3 of them, found no array"),
    ],
)
def test_labels_that_the_model_does_not_know_are_refused(client: Client, label: object, message: str) -> None:
    with pytest.raises(UserError, match=f"^{re.escape(message)}$"):
        client.sample(3, seed=0, label=label)  # type: ignore[arg-type]


def test_a_model_without_labels_refuses_one(exported: Exported) -> None:
    client = Client(exported.directory, device="cpu")
    assert client.classes == ()
    for call in (
        lambda: client.sample(3, seed=0, label=1),
        lambda: client.encode(exported.images[:1], 1),
        lambda: client.decode(np.zeros((1, LATENT)), 1),
    ):
        with pytest.raises(UserError, match=r"wanted no label, because the model was trained without, found 1$"):
            call()


def test_a_class_is_named_or_numbered() -> None:
    assert [number_of(text, CLASSES) for text in ("owl", "0", "2")] == [2, 0, 2]
    assert number_of("1", ("1", "0")) == 0  # names first
    for text in ("cow", "3", "-1", "9" * 5000, "\N{SUPERSCRIPT TWO}", "\N{ARABIC-INDIC DIGIT TWO}"):
        with pytest.raises(UserError, match=rf"^label: wanted {re.escape(KNOWN)}, by number or name, found '{text}'$"):
            number_of(text, CLASSES)
    with pytest.raises(UserError, match=r"^label: wanted no label, because the model was trained without, found '1'$"):
        number_of("1", ())


def test_the_shell_samples_a_class(client: Client, tmp_path: Path) -> None:
    work.sample(client, 3, 0, 1.0, tmp_path / "owls.npy", "owl")
    np.testing.assert_array_equal(np.load(tmp_path / "owls.npy"), client.sample(3, 0, label=2))
    with pytest.raises(UserError, match=rf"^label: wanted {re.escape(KNOWN)}, by number or name, found none$"):
        work.sample(client, 3, 0, 1.0, tmp_path / "owls.npy")
    assert "labels      cat, dog, owl" in work.info(client)


def test_the_golden_answers_are_given_the_labels_of_the_split(conditional: Exported) -> None:
    with np.load(conditional.directory / "golden.npz") as golden:
        np.testing.assert_array_equal(golden["label"], np.arange(0, 40, 5) % 3)
    assert "decoder, mean" in "".join(verify(conditional.directory))


def test_the_page_says_which_labels_there_are(conditional: Exported) -> None:
    assert "each graph has an input `label`, for each image a whole number from 0 to 2" in conditional.readme()


def test_mlflow_knows_of_the_label(conditional: Exported) -> None:
    schema = _schema(onnx.load(conditional.directory / "encoder.onnx").graph.input)
    assert [(spec.name, spec.type, spec.shape) for spec in schema.inputs] == [
        ("images", np.dtype("uint8"), (-1, 4, 6, 3)),
        ("label", np.dtype("int64"), (-1,)),
    ]


def test_a_label_out_of_range_is_no_crash_of_the_runtime(conditional: Exported) -> None:
    session = onnxruntime.InferenceSession(conditional.directory / "decoder.onnx", providers=["CPUExecutionProvider"])
    inputs = {"latents": np.zeros((1, LATENT), np.float32), "label": np.array([3])}
    with pytest.raises(onnxruntime.capi.onnxruntime_pybind11_state.InvalidArgument):
        session.run(None, inputs)


def test_the_service_takes_labels(client: Client, conditional: Exported) -> None:
    images, labels = conditional.images[:3], [2, 0, 1]
    body = {"images": images.tolist(), "label": labels}
    with Service(client, Limits(rows=8, bytes=200_000)) as service:
        np.testing.assert_allclose(
            service.post("/encode", body).json()["mean"], client.encode(images, labels)[0], atol=1e-6
        )
        found = service.post("/reconstruct", body).json()["images"]
        np.testing.assert_array_equal(found, client.reconstruct(images, labels))
        found = service.post("/sample", {"count": 2, "seed": 3, "label": 1}).json()["images"]
        np.testing.assert_array_equal(found, client.sample(2, 3, label=1))
        found = service.send("/encode?label=owl", png(column(images)), "image/png").json()["mean"]
        np.testing.assert_allclose(found, client.encode(images, 2)[0], atol=1e-6)
        kl = service.post("/score", body).json()["kl"]
        np.testing.assert_allclose(kl, client.score(images, 0, labels=labels).kl, rtol=1e-5)
        code = np.zeros((2, LATENT), np.float32)
        found = service.infer("decoder", latents=code, label=np.array([0, 2]))["images"]
        np.testing.assert_array_equal(found, client.decode(code, [0, 2]))
        assert error(service.post("/sample", {"label": 3})) == (400, f"sample: wanted {KNOWN}, found label 3")
        status, message = error(service.post("/encode", {"images": images.tolist()}))
        assert (status, message[:37]) == (400, "label: wanted a label for each image,")
        wrong = {"name": "label", "shape": [1], "datatype": "INT64", "data": [3]}
        latents = {"name": "latents", "shape": [1, LATENT], "datatype": "FP32", "data": [0.0] * LATENT}
        refused = service.post("/v2/models/decoder/infer", {"inputs": [latents, wrong]})
        assert error(refused) == (400, f"inputs.label: wanted {KNOWN}, found label 3")
        wrong["data"] = [2**63]
        refused = service.post("/v2/models/decoder/infer", {"inputs": [latents, wrong]})
        assert error(refused) == (400, "inputs.label: wanted whole numbers of 64 bits with a sign, found others")
        status, message = error(service.send(f"/encode?label={'9' * 5000}", png(column(images)), "image/png"))
        assert (status, message[: len(KNOWN) + 14]) == (400, f"label: wanted {KNOWN}")
        assert service.get("/").text == render(conditional.directory)
