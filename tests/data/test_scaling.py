from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from exported_model import LATENT, prepare, run_stage
from torch import Tensor

from reparam.data import store
from reparam.data.scaling import Scaling
from reparam.data.store import SPLITS
from reparam.files import read_json
from reparam.models.likelihoods import LIKELIHOODS
from reparam.models.storage import load_model

KINDS = ("unit", "symmetric", "standard")


def card_of(directory: Path, images: np.ndarray, kind: str) -> dict[str, Any]:
    """The card of a store whose splits all hold these images (N, C, H, W)."""
    for name in SPLITS:
        np.save(directory / f"{name}-images.npy", images)
        np.save(directory / f"{name}-labels.npy", np.zeros(len(images), np.int32))
    return store.write_card(directory, {"classes": ["noise"]}, kind)


@pytest.fixture
def images() -> np.ndarray:
    """Images of three channels of different brightness and contrast, (50, 3, 4, 5)."""
    random = np.random.default_rng(0)
    low, high = ([0, 100, 30], [256, 200, 40])
    return random.integers(np.reshape(low, (3, 1, 1)), np.reshape(high, (3, 1, 1)), (50, 3, 4, 5), dtype=np.uint8)


def pixels(images: np.ndarray) -> Tensor:
    return torch.from_numpy(images).float() / 255


def test_unit_leaves_pixels_between_0_and_1(tmp_path: Path, images: np.ndarray) -> None:
    card = card_of(tmp_path, images, "unit")
    assert card["scaling"] == {"kind": "unit", "shift": [0.0] * 3, "scale": [1.0] * 3}
    assert torch.equal(Scaling(card)(pixels(images)), pixels(images))


def test_symmetric_takes_black_to_minus_1_and_white_to_1(tmp_path: Path, images: np.ndarray) -> None:
    card = card_of(tmp_path, images, "symmetric")
    assert card["scaling"] == {"kind": "symmetric", "shift": [0.5] * 3, "scale": [0.5] * 3}
    greys = torch.tensor([0.0, 0.25, 0.5, 1.0]).expand(3, 1, 4)
    assert Scaling(card)(greys)[1].tolist() == [[-1.0, -0.5, 0.0, 1.0]]


def test_standard_gives_each_channel_of_the_training_images_mean_0_and_variance_1(
    tmp_path: Path, images: np.ndarray
) -> None:
    card = card_of(tmp_path, images, "standard")
    grey = images / 255
    assert card["scaling"]["kind"] == "standard"
    assert card["scaling"]["shift"] == card["train_mean"] == pytest.approx(grey.mean((0, 2, 3)), abs=1e-6)
    wanted = pytest.approx(grey.std((0, 2, 3)), abs=1e-6)
    assert card["scaling"]["scale"] == card["train_standard_deviation"] == wanted
    scaled = Scaling(card)(pixels(images)).double()
    # The card holds six digits; the smallest deviation, of grey values from 30 to 39, is 0.011.
    torch.testing.assert_close(scaled.mean((0, 2, 3)), torch.zeros(3).double(), rtol=0, atol=1e-4)
    torch.testing.assert_close(scaled.var((0, 2, 3), correction=0), torch.ones(3).double(), rtol=0, atol=1e-3)


def test_standard_is_measured_on_the_training_images_alone(tmp_path: Path, images: np.ndarray) -> None:
    wanted = card_of(tmp_path, images, "standard")["scaling"]
    for name in ("validation", "test"):
        np.save(tmp_path / f"{name}-images.npy", np.zeros_like(images))
    assert store.write_card(tmp_path, {"classes": ["noise"]}, "standard")["scaling"] == wanted


@pytest.mark.parametrize("kind", KINDS)
def test_invert_takes_every_pixel_back(kind: str, tmp_path: Path, images: np.ndarray) -> None:
    scaling = Scaling(card_of(tmp_path, images, kind))
    greys = torch.arange(256).expand(2, 3, 1, 256) / 255
    found = scaling.invert(scaling(greys))
    torch.testing.assert_close(found, greys, rtol=0, atol=1e-6)
    assert torch.equal((found * 255).round(), greys * 255)


@pytest.mark.parametrize("kind", KINDS)
def test_what_lies_beyond_black_and_white_is_cut_off(kind: str, tmp_path: Path, images: np.ndarray) -> None:
    scaling = Scaling(card_of(tmp_path, images, kind))
    found = scaling.invert(torch.tensor([-1e3, 1e3]).expand(3, 1, 2))
    assert found.tolist() == [[[0.0, 1.0]]] * 3


@pytest.mark.parametrize("value", [0, 7, 255])
@pytest.mark.parametrize("kind", KINDS)
def test_images_of_one_colour_are_not_divided_by_zero(kind: str, value: int, tmp_path: Path) -> None:
    images = np.full((4, 1, 2, 2), value, np.uint8)
    card = card_of(tmp_path, images, kind)
    assert card["train_standard_deviation"] == [0.0]
    scaling = Scaling(card)
    scaled = scaling(pixels(images))
    assert torch.isfinite(scaled).all()
    if kind == "standard":
        assert card["scaling"]["scale"] == [1.0]
        torch.testing.assert_close(scaled, torch.zeros_like(scaled), rtol=0, atol=1e-6)
    torch.testing.assert_close(scaling.invert(scaled), pixels(images), rtol=0, atol=1e-6)


def test_a_scaling_holds_no_weights_and_moves_with_its_module(tmp_path: Path, images: np.ndarray) -> None:
    scaling = Scaling(card_of(tmp_path, images, "standard"))
    assert list(scaling.parameters()) == []
    assert scaling.state_dict() == {}  # or weights would not load where the data are others
    assert scaling.to("meta")(torch.zeros(2, 3, 4, 5, device="meta")).device.type == "meta"


# In exported graphs


class Gaussian:
    """Normal pixels of standard deviation 1: a density of images on any scale."""

    outputs = 1
    needs_binary = False

    def log_prob(self, output: Tensor, target: Tensor) -> Tensor:
        return torch.distributions.Normal(output, 1.0).log_prob(target).sum((-3, -2, -1))

    def mean(self, output: Tensor) -> Tensor:
        return output


def run(path: Path, inputs: np.ndarray) -> list[np.ndarray]:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    outputs: list[np.ndarray] = session.run(None, {session.get_inputs()[0].name: inputs})
    return outputs


@pytest.mark.parametrize("kind", ["symmetric", "standard"])
def test_exported_graphs_take_and_give_pixels_whatever_scale_the_model_sees(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(LIKELIHOODS, "bernoulli", Gaussian)  # under the name that the fixture's model has
    exported = prepare(tmp_path, binarization="none", scaling=kind)
    run_stage(exported.paths)
    card = read_json(exported.paths.processed / "card.json", made_by="preprocess")
    shift, scale = (np.float32(card["scaling"][name]) for name in ("shift", "scale"))
    assert kind == card["scaling"]["kind"]
    assert not np.array_equal(shift, np.zeros(3))
    model = load_model(exported.paths.model, torch.device("cpu"))

    latents = 2 * np.random.default_rng(1).standard_normal((200, LATENT), dtype=np.float32)
    found, mean = run(exported.directory / "decoder.onnx", latents)
    with torch.no_grad():
        decoded = model.decode(torch.from_numpy(latents)).permute(0, 2, 3, 1).numpy()  # (B, H, W, C)
    wanted = decoded * scale + shift
    assert wanted.min() < 0 < 1 < wanted.max()  # some are darker than black, some brighter than white
    assert (mean.min(), mean.max()) == (0.0, 1.0)
    np.testing.assert_allclose(mean, wanted.clip(0, 1), rtol=0, atol=1e-5)
    np.testing.assert_array_equal(found, np.rint(mean * 255).astype(np.uint8))
    assert found.dtype == np.uint8

    posterior = run(exported.directory / "encoder.onnx", exported.images)
    scaled = (exported.images / np.float32(255) - shift) / scale
    with torch.no_grad():
        references = model.posterior(torch.from_numpy(scaled).permute(0, 3, 1, 2))
    for output, reference in zip(posterior, references, strict=True):
        np.testing.assert_allclose(output, reference.numpy(), rtol=1e-4, atol=1e-5)

    metrics = read_json(exported.paths.export_metrics, made_by="export")
    assert max(metrics["encoder_max_error"], metrics["decoder_max_error"]) < 1e-4
    assert metrics["served_elbo_loss"] == 0.0
