import itertools
import json
import math
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from exported_model import LATENT, OPSET, SHAPE, Exported, prepare, run_stage, torch_images
from onnxruntime.quantization import quantize_dynamic
from some_cards import image_facts
from torch import Tensor

from reparam.cards.export import ExportMetrics
from reparam.cards.model import ModelCard
from reparam.data.pixels import Pixels
from reparam.export import stage as export
from reparam.export.onnx import serve
from reparam.export.program import export_graphs
from reparam.export.stage import serving_skew
from reparam.export.verify import check_graph
from reparam.lineage import source_hash
from reparam.models.draw import Draw, Estimator
from reparam.models.likelihoods import LIKELIHOODS, Bernoulli

pytest_plugins = ["fixtures_export"]


def run(path: Path, inputs: np.ndarray) -> list[np.ndarray]:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    outputs: list[np.ndarray] = session.run(None, {session.get_inputs()[0].name: inputs})
    return outputs


def metadata(path: Path) -> dict[str, str]:
    return {entry.key: entry.value for entry in onnx.load(path).metadata_props}


@pytest.fixture(scope="module")
def threshold_encoder(exported: Exported, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An encoder that sees grey pixels as black or white."""
    directory = tmp_path_factory.mktemp("threshold")
    export_graphs(exported.graphs("threshold"), OPSET, {}, directory)
    return directory / "encoder.onnx"


def grey(value: int) -> np.ndarray:
    channels, height, width = SHAPE
    return np.full((1, height, width, channels), value, np.uint8)


@pytest.mark.parametrize("size", [1, 3, 40])
def test_the_encoder_gives_the_posterior_of_images(size: int, exported: Exported) -> None:
    images = exported.images[:size]
    found = run(exported.directory / "encoder.onnx", images)
    with torch.no_grad():
        wanted = exported.model.posterior(torch_images(images))
    for output, reference in zip(found, wanted, strict=True):
        assert output.shape == (size, LATENT)
        np.testing.assert_allclose(output, reference.numpy(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("size", [1, 3, 40])
def test_the_decoder_gives_images_in_grey_levels_and_their_means(size: int, exported: Exported) -> None:
    latents = np.random.default_rng(1).standard_normal((size, LATENT), dtype=np.float32)
    images, mean = run(exported.directory / "decoder.onnx", latents)
    with torch.no_grad():
        wanted = exported.model.decode(torch.from_numpy(latents)).permute(0, 2, 3, 1).numpy()
    np.testing.assert_allclose(mean, wanted, rtol=0, atol=1e-5)
    np.testing.assert_array_equal(images, np.rint(mean * 255).astype(np.uint8))
    assert images.max() - images.min() > 100


def test_an_encoder_that_keeps_grey_pixels_sees_every_level(exported: Exported) -> None:
    means = [run(exported.directory / "encoder.onnx", grey(value))[0].tolist() for value in (0, 127, 128, 255)]
    assert all(first != second for first, second in itertools.pairwise(means))


def test_an_encoder_with_a_threshold_sees_black_up_to_127_and_white_from_128(threshold_encoder: Path) -> None:
    black, dark, bright, white = (run(threshold_encoder, grey(value))[0].tolist() for value in (0, 127, 128, 255))
    assert dark == black
    assert bright == white
    assert black != white


def test_grey_is_served_as_it_is_or_as_black_and_white() -> None:
    levels = torch.tensor([0.0, 127 / 255, 128 / 255, 1.0])
    assert torch.equal(serve(levels, "keep"), levels)
    assert serve(levels, "threshold").tolist() == [0.0, 0.0, 1.0, 1.0]
    assert serve(levels, "threshold").dtype == torch.float32


def test_all_graphs_hold_what_an_app_must_know(exported: Exported) -> None:
    card = ModelCard.read(exported.paths.model / "card.json", "train")
    wanted = {
        "format": 4,
        "image": {"layout": "NHWC", "shape": [4, 6, 3], "dtype": "uint8", "range": [0, 255]},
        "kind": "vae",
        "kind_title": "Variational autoencoder",
        "latent_size": LATENT,
        "latent_shape": [LATENT],
        "classes": [],
        "has_prior": True,
        "prior": "standard normal",
        "codebook": None,
        "likelihood": "bernoulli",
        "is_density": True,
        "sigma": None,
        "binarization": "dynamic",
        "scaling": {"kind": "unit", "shift": [0.0] * 3, "scale": [1.0] * 3},
        "grey_pixels": "keep",
        "source": "noise",
        "title": "Noise",
        "licence": "CC0",
        "params": {name: getattr(card, name).model_dump(mode="json") for name in ("model", "objective", "train")},
        "lineage": {
            **card.lineage.model_dump(),
            "model_card_sha256": card.digest,
            "export_code_sha256": source_hash("export"),
        },
    }
    for name in ("encoder.onnx", "decoder.onnx", "score.onnx"):
        found = metadata(exported.directory / name)
        assert list(found) == ["reparam"]
        assert json.loads(found["reparam"]) == wanted


def test_the_same_model_gives_the_same_bytes_in_another_directory(exported: Exported, tmp_path: Path) -> None:
    again = prepare(tmp_path / "somewhere else")
    run_stage(again.paths)
    first, second = (
        {path.relative_to(at): path.read_bytes() for path in at.rglob("*") if path.is_file()}
        for at in (exported.directory, again.directory)
    )
    assert first == second
    assert again.paths.export_metrics.read_bytes() == exported.paths.export_metrics.read_bytes()


@pytest.mark.parametrize("name", ["encoder.onnx", "decoder.onnx", "score.onnx"])
def test_a_file_holds_no_trace_of_the_source_that_it_came_from(name: str, exported: Exported) -> None:
    content = (exported.directory / name).read_bytes()
    words = [word.decode() for word in re.findall(rb"[\x20-\x7e]{4,}", content)]
    traces = [".py", "site-packages", "pkg.torch", "Traceback", "forward", str(exported.paths.root), str(Path.home())]
    assert [word for word in words for trace in traces if trace in word] == []
    assert not [word for word in words if re.match(r"/\w+/", word)]  # an absolute path
    assert (onnx.load(exported.directory / name).producer_name, onnx.load(exported.directory / name).doc_string) == (
        "reparam",
        "",
    )


def test_each_file_holds_its_own_weights_alone_under_their_names_in_the_model(exported: Exported) -> None:
    found = {}
    for half in ("encoder", "decoder", "score"):
        graph = onnx.load(exported.directory / f"{half}.onnx").graph
        found[half] = {tensor.name for tensor in graph.initializer if tensor.name.startswith("model.")}
        assert not graph.value_info  # a quantiser would stumble over it
    weights = {f"model.{name}" for name in exported.model.state_dict()}
    assert found["encoder"] | found["decoder"] == weights
    assert found["encoder"] == {name for name in weights if name.startswith("model.encoder")}
    assert found["score"] == weights


@pytest.mark.parametrize("opset", [18, 23])  # the ends of the range that params.yaml may name
def test_other_opsets_can_be_written_and_run(opset: int, exported: Exported, tmp_path: Path) -> None:
    export_graphs(exported.graphs(), opset, {}, tmp_path)
    inputs = {"encoder.onnx": exported.images, "decoder.onnx": np.ones((2, LATENT), np.float32)}
    for name, graph in exported.graphs().items():
        check_graph(tmp_path / f"{name}.onnx", graph, opset)
    for name in inputs:
        for found, wanted in zip(*(run(at / name, inputs[name]) for at in (tmp_path, exported.directory)), strict=True):
            np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-5 if found.dtype == np.float32 else 1)


# Models of every kind

# What is exported differs by kind, network, norm and likelihood. Each line has one of each, so that all are covered; a
# likelihood that no line has gets a line of its own.
IMAGE_OF_LATENTS = {"channels": [4, 6], "latent_channels": 3, "latent": None}  # 3 x 2 x 3 of images of 4 x 6 pixels
MODELS: dict[str, dict[str, Any]] = {
    "code": {"kind": "autoencoder", "likelihood": "gaussian", "mean": "sigmoid"},
    "convolutional code": {"kind": "autoencoder", "network": "conv", "norm": "batch", "likelihood": "bernoulli"},
    "one layer": {"kind": "vae", "norm": "layer", "likelihood": "continuous_bernoulli", "activation": "tanh"},
    "batch norm": {"kind": "vae", "norm": "batch", "likelihood": "gaussian_per_pixel", "activation": "softplus"},
    "convolutional": {"kind": "vae", "network": "conv", "likelihood": "gaussian_learned", "activation": "relu"},
    "convolutional, layer norm": {"kind": "vae", "network": "conv", "norm": "layer", "likelihood": "laplace"},
    "convolutional, mixture": {"kind": "vae", "network": "conv", "norm": "batch", "likelihood": "logistic_mixture"},
    "convolutional, learned prior": {"kind": "vae", "network": "conv", "prior": "mixture", "activation": "gated"},
    "down": {"kind": "hierarchical", "inference": "top_down", "likelihood": "discretised_logistic"},
    "up": {"kind": "hierarchical", "inference": "bottom_up", "likelihood": "bernoulli", "norm": "batch"},
    "residual": {"kind": "vae", "network": "resnet", "likelihood": "laplace", "attention": True},
    "residual, image of latents": {"kind": "vae", "network": "resnet", "likelihood": "laplace", **IMAGE_OF_LATENTS},
    "residual, image of codes": {"kind": "autoencoder", "network": "resnet", **IMAGE_OF_LATENTS},
    "residual, image and learned prior": {"kind": "vae", "network": "resnet", "prior": "mixture", **IMAGE_OF_LATENTS},
    "convolutional, down": {"kind": "hierarchical", "network": "conv", "norm": "batch", "activation": "silu"},
}
COVERED = {model.get("likelihood") for model in MODELS.values()}
MODELS |= {name: {"kind": "vae", "likelihood": name} for name in LIKELIHOODS if name not in COVERED}
# With the slow tests: other models have each of their kinds, networks, norms and likelihoods, in other pairs.
SLOW = {
    *("convolutional code", "convolutional, layer norm", "residual", "residual, image of codes", "convolutional, down")
}


def test_the_models_below_cover_every_choice() -> None:
    assert {model["kind"] for model in MODELS.values()} == {"autoencoder", "vae", "hierarchical"}
    pairs = {(model.get("network", "mlp"), model.get("norm", "none")) for model in MODELS.values()}
    assert pairs == {*itertools.product(("mlp", "conv"), ("none", "batch", "layer")), ("resnet", "none")}


@pytest.mark.parametrize("name", [pytest.param(name, marks=[pytest.mark.slow] * (name in SLOW)) for name in MODELS])
def test_every_model_is_exported_as_torch_computes_it(name: str, tmp_path: Path) -> None:
    is_code = MODELS[name]["kind"] == "autoencoder"
    layers = {"hierarchical": 2}.get(MODELS[name]["kind"], 1)
    scaling = "standard" if "gaussian" in MODELS[name].get("likelihood", "") and not is_code else "unit"
    prepared = prepare(tmp_path, binarization="none", scaling=scaling, **MODELS[name])
    run_stage(prepared.paths)  # which measures parity at several batch sizes

    latent = [3, 2, 3] if "latent_channels" in MODELS[name] else [LATENT + (3 if layers > 1 else 0)]
    facts = json.loads(metadata(prepared.directory / "encoder.onnx")["reparam"])
    assert (facts["kind"], facts["latent_size"]) == (MODELS[name]["kind"], math.prod(latent))
    assert facts["latent_shape"] == latent
    assert facts["likelihood"] == MODELS[name].get("likelihood", "bernoulli")

    def signature(values: Any) -> dict[str, list[Any]]:
        return {value.name: [size.dim_value or "any" for size in value.type.tensor_type.shape.dim] for value in values}

    encoder, decoder = (onnx.load(prepared.directory / f"{graph}.onnx").graph for graph in ("encoder", "decoder"))
    posterior = {output: ["any", *latent] for output in (["mean"] if is_code else ["mean", "log_variance"])}
    assert signature(encoder.input) == {"images": ["any", 4, 6, 3]}
    assert signature(encoder.output) == posterior
    assert signature(decoder.input) == {"latents": ["any", *latent]}
    assert signature(decoder.output) == {"images": ["any", 4, 6, 3], "mean": ["any", 4, 6, 3]}

    x = prepared.pixels.scaled(torch_images(prepared.images))
    with torch.no_grad():
        wanted = prepared.model.posterior(x)[: len(posterior)]
        decoded = prepared.pixels.unscaled(prepared.model.decode(wanted[0])).permute(0, 2, 3, 1).numpy()
        wanted = [values.view(-1, *latent) for values in wanted]
    for found, reference in zip(run(prepared.directory / "encoder.onnx", prepared.images), wanted, strict=True):
        np.testing.assert_allclose(found, reference.numpy(), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(run(prepared.directory / "decoder.onnx", wanted[0].numpy())[1], decoded, atol=1e-5)
    is_served = not is_code and MODELS[name].get("likelihood", "bernoulli") != "bernoulli"
    with np.load(prepared.directory / "golden.npz", allow_pickle=False) as golden:
        scored = {"epsilon", "reconstruction", "negative_log_likelihood", "kl"} if is_served else set()
        assert set(golden) == {"images", *posterior, "latents", "decoded_images", "decoded_mean"} | scored
        np.testing.assert_allclose(golden["mean"], wanted[0][::5].numpy(), rtol=1e-5, atol=1e-5)
        np.testing.assert_array_equal(golden["latents"], golden["mean"])
        np.testing.assert_allclose(golden["decoded_mean"], decoded[::5], rtol=0, atol=1e-5)
    check_shape(prepared, is_scored=is_served)
    measured = ExportMetrics.read(prepared.paths.export_metrics, "export").values
    is_measured = is_served and prepared.pixels.is_drawn
    assert ("served_elbo" in measured) == is_measured


def check_shape(prepared: Exported, *, is_scored: bool) -> None:
    """Hold the graphs of a model to what runtimes and quantisers want of them."""
    graphs = {path.stem: onnx.load(path) for path in prepared.directory.glob("*.onnx")}
    assert set(graphs) == {"encoder", "decoder"} | ({"score"} if is_scored else set())
    for name, model in graphs.items():
        assert model.ir_version == 9
        operators = [node.op_type for node in model.graph.node]
        makers = {output: node.op_type for node in model.graph.node for output in node.output}
        # No zeros or ones in the shape of others; and a clipped sigmoid would be a sigmoid.
        assert "Expand" not in operators, name
        clipped = [makers.get(node.input[0]) for node in model.graph.node if node.op_type == "Clip"]
        assert "Sigmoid" not in clipped
        quantized = prepared.directory.parent / f"{name}-int8.onnx"
        quantize_dynamic(prepared.directory / f"{name}.onnx", quantized, op_types_to_quantize=["MatMul", "Gemm"])
        onnxruntime.InferenceSession(quantized)


def test_a_batch_norm_is_exported_as_it_evaluates_and_not_as_it_trains(tmp_path: Path) -> None:
    prepared = prepare(tmp_path, norm="batch")
    prepared.model.train()
    export_graphs(prepared.graphs(), OPSET, {}, tmp_path)
    alone, together = (run(tmp_path / "encoder.onnx", prepared.images[:size])[0] for size in (1, 40))
    np.testing.assert_allclose(alone[0], together[0], rtol=1e-5, atol=1e-5)
    with torch.no_grad():
        wanted = prepared.model.eval().posterior(torch_images(prepared.images))[0]
    np.testing.assert_allclose(together, wanted.numpy(), rtol=1e-5, atol=1e-5)


# Serving skew


class SquaredDistance:
    """Replaces a model: what it loses is how far the encoded image is from the scored one.

    Each white pixel has a cost, whatever was encoded.
    """

    likelihood = SimpleNamespace(outputs=1)

    def __init__(self, cost: float) -> None:
        self.cost = cost
        self.asked: list[tuple[Tensor, Tensor, float]] = []

    def draw(
        self, x: Tensor, target: Tensor, samples: int, estimator: Estimator = "pathwise", labels: Tensor | None = None
    ) -> Draw:
        self.asked.append((x, target, torch.rand(()).item()))
        distance = (x - target).square().sum((1, 2, 3)).expand(samples, -1)
        log_px = -distance - self.cost * target.sum((1, 2, 3))
        return Draw(log_px=log_px, log_pz=torch.nan * distance, log_qz=torch.nan * distance, kl=distance + 1)


def skew(
    images: np.ndarray, grey_pixels: str, binarization: str = "dynamic", cost: float = 0.0
) -> tuple[dict[str, float], SquaredDistance]:
    model: Any = SquaredDistance(cost)
    return serving_skew(model, images, Pixels(image_facts(binarization)), grey_pixels), model


@pytest.mark.parametrize("grey_pixels", ["keep", "threshold"])
def test_of_black_and_white_images_no_skew_is_measured(grey_pixels: str, exported: Exported) -> None:
    binary = np.where(exported.images >= 128, 255, 0).astype(np.uint8).transpose(0, 3, 1, 2)
    assert serving_skew(exported.model, binary, Pixels(image_facts("dynamic", channels=3)), grey_pixels) == {}


def test_grey_images_are_scored_as_training_saw_them_and_encoded_as_apps_do() -> None:
    images = np.random.default_rng(0).integers(0, 127, (50, 1, 8, 8), dtype=np.uint8)  # a threshold would see black
    found, model = skew(images, "keep")
    (plain, first_target, first_draw), (served, target, draw) = model.asked
    assert torch.equal(plain, target)
    assert torch.equal(first_target, target)
    assert set(target.unique().tolist()) == {0.0, 1.0}
    torch.testing.assert_close(served, torch.from_numpy(images).float() / 255)
    # Each pixel is white with the probability of its grey value: five standard deviations of a mean over 3,200 pixels.
    assert target.mean().item() == pytest.approx(served.mean().item(), abs=5 * 0.5 / 3_200**0.5)
    assert draw == first_draw  # the same noise, so that the difference is that of the images
    distances = (served - target).square().sum((1, 2, 3)).numpy()
    distance, error = distances.mean(), 2 * distances.std(ddof=1) / 50**0.5
    assert found == {
        "served_elbo": pytest.approx(-2 * distance - 1, abs=1e-4),
        "served_elbo_se": pytest.approx(error, abs=1e-4),
        "served_elbo_loss": pytest.approx(2 * distance, abs=1e-4),
        "served_elbo_loss_se": pytest.approx(error, abs=1e-4),
    }


def test_the_error_of_the_skew_is_that_of_the_differences_of_the_same_images() -> None:
    """However much images differ in what they cost anyway."""
    images = np.random.default_rng(0).integers(0, 127, (50, 1, 8, 8), dtype=np.uint8)
    plain, _ = skew(images, "keep")
    costly, model = skew(images, "keep", cost=1000.0)
    white = model.asked[1][1].sum((1, 2, 3)).numpy()
    assert costly["served_elbo_se"] == pytest.approx(1000 * white.std(ddof=1) / 50**0.5, rel=1e-2)
    assert costly["served_elbo_loss_se"] == plain["served_elbo_loss_se"] < 1e-3 * costly["served_elbo_se"]


def test_a_threshold_is_part_of_the_skew() -> None:
    images = np.random.default_rng(0).integers(0, 256, (5, 1, 8, 8), dtype=np.uint8)
    _, model = skew(images, "threshold")
    assert torch.equal(model.asked[1][0], torch.from_numpy(images >= 128).float())


def test_the_skew_is_the_same_each_time_and_leaves_the_random_stream_alone(exported: Exported) -> None:
    images = exported.images.transpose(0, 3, 1, 2)
    before = torch.get_rng_state()
    pixels = Pixels(image_facts("dynamic", channels=3))
    first = serving_skew(exported.model, images, pixels, "keep")
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(3)
    assert serving_skew(exported.model, images, pixels, "keep") == first
    assert first["served_elbo_loss"] != 0.0


def test_grey_images_are_scored_as_they_are_if_training_saw_them_so() -> None:
    images = np.random.default_rng(0).integers(0, 256, (5, 1, 8, 8), dtype=np.uint8)
    grey = torch.from_numpy(images).float() / 255
    kept, model = skew(images, "keep", binarization="none")
    assert (kept, model.asked) == ({}, [])

    lost, model = skew(images, "threshold", binarization="none")
    assert torch.equal(model.asked[1][1], grey)
    assert lost["served_elbo_loss"] > 0


def test_a_model_of_grey_images_has_no_elbo_to_lose(tmp_path: Path) -> None:
    trained_on_grey = prepare(tmp_path, binarization="none")
    run_stage(trained_on_grey.paths, grey_pixels="keep")
    metrics = ExportMetrics.read(trained_on_grey.paths.export_metrics, "export").values
    assert set(metrics) == {"encoder_max_error", "decoder_max_error", "decoder_max_grey_levels"}


@pytest.mark.parametrize("size", [1, 3, 7, 20, 50])
def test_the_skew_does_not_depend_on_how_many_images_are_drawn_at_once(
    size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    # 50 images in batches of 7 leave one: a mean of batch means would count it seven times.
    images = np.random.default_rng(0).integers(0, 127, (50, 1, 8, 8), dtype=np.uint8)
    images[-1] = 255
    whole, _ = skew(images, "keep")
    monkeypatch.setattr(export, "SKEW_BATCH", size)
    found, model = skew(images, "keep")
    assert [len(x) for x, _, _ in model.asked] == 2 * ([size] * (50 // size) + [50 % size] * (50 % size > 0))
    assert found == pytest.approx(whole, abs=2e-4)


def test_batches_change_only_the_noise_of_a_real_models_skew(
    exported: Exported, monkeypatch: pytest.MonkeyPatch
) -> None:
    images, pixels = exported.images.transpose(0, 3, 1, 2), Pixels(image_facts("dynamic", channels=3))
    monkeypatch.setattr(export, "SKEW_SAMPLES", 2_000)
    whole = serving_skew(exported.model, images, pixels, "keep")
    monkeypatch.setattr(export, "SKEW_BATCH", 7)
    parts = serving_skew(exported.model, images, pixels, "keep")
    assert parts != whole  # other draws of the posterior
    # Each is a mean over 40 images of 2,000 samples each; a tenth of a nat is some five standard errors.
    assert parts == pytest.approx(whole, abs=0.1)
    # Without noise, only rounding is left.
    monkeypatch.setattr(torch, "randn", torch.zeros)
    quiet = serving_skew(exported.model, images, pixels, "keep")
    monkeypatch.setattr(export, "SKEW_BATCH", 128)
    assert serving_skew(exported.model, images, pixels, "keep") == pytest.approx(quiet, abs=2e-4)


def test_an_autoencoder_has_no_elbo_to_lose(tmp_path: Path) -> None:
    prepared = prepare(tmp_path, kind="autoencoder", likelihood="gaussian")
    run_stage(prepared.paths)
    metrics = ExportMetrics.read(prepared.paths.export_metrics, "export").values
    assert set(metrics) == {"encoder_max_error", "decoder_max_error", "decoder_max_grey_levels"}


# A likelihood that ONNX cannot express


class StudentT(Bernoulli):
    """Needs the logarithm of the gamma function, which ONNX lacks."""

    needs_binary = False

    def log_prob(self, output: Tensor, target: Tensor) -> Tensor:
        return torch.distributions.StudentT(output.exp(), output).log_prob(target).sum((-3, -2, -1))


def test_a_likelihood_that_onnx_cannot_express_is_exported_without_a_score(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(LIKELIHOODS, "bernoulli", StudentT)
    prepared = prepare(tmp_path, binarization="none")
    run_stage(prepared.paths)
    assert sorted(path.name for path in prepared.directory.glob("*.onnx")) == ["decoder.onnx", "encoder.onnx"]
    [warning] = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert warning.startswith("export: no score.onnx: ONNX cannot express log_prob of StudentT: ")
    assert "score_max_error" not in ExportMetrics.read(prepared.paths.export_metrics, "export").values
