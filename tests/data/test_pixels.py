from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from conftest import small_section
from exported_model import LATENT, prepare, run_stage
from some_cards import image_facts
from torch import Tensor

from reparam.cards.data import DataCard, Scaling
from reparam.cards.export import ExportMetrics
from reparam.data import store
from reparam.data.batches import Batches, View
from reparam.data.pixels import Pixels
from reparam.data.store import SPLITS
from reparam.models.likelihoods import LIKELIHOODS
from reparam.models.storage import load_model

CPU = torch.device("cpu")
KINDS = ("unit", "symmetric", "standard")


def card_of(directory: Path, images: np.ndarray, kind: Any, binarization: Any = "none") -> DataCard:
    """The card of a store whose splits all hold these images (N, C, H, W)."""
    for name in SPLITS:
        np.save(directory / f"{name}-images.npy", images)
        np.save(directory / f"{name}-labels.npy", np.zeros(len(images), np.int32))
    return store.write_card(directory, store.Origin("noise", {}, binarization, ("noise",), {}, "Noise", "CC0"), kind)


@pytest.fixture
def images() -> np.ndarray:
    """Images of three channels of different brightness and contrast, (50, 3, 4, 5)."""
    random = np.random.default_rng(0)
    low, high = ([0, 100, 30], [256, 200, 40])
    return random.integers(np.reshape(low, (3, 1, 1)), np.reshape(high, (3, 1, 1)), (50, 3, 4, 5), dtype=np.uint8)


# Scaling


def test_unit_leaves_pixels_between_0_and_1(tmp_path: Path, images: np.ndarray) -> None:
    card = card_of(tmp_path, images, "unit")
    assert card.scaling == Scaling(kind="unit", shift=(0.0,) * 3, scale=(1.0,) * 3)
    assert torch.equal(Pixels(card)(torch.from_numpy(images)), torch.from_numpy(images).float() / 255)


def test_symmetric_takes_black_to_minus_1_and_white_to_1(tmp_path: Path, images: np.ndarray) -> None:
    card = card_of(tmp_path, images, "symmetric")
    assert card.scaling == Scaling(kind="symmetric", shift=(0.5,) * 3, scale=(0.5,) * 3)
    greys = torch.tensor([0.0, 0.25, 0.5, 1.0]).expand(3, 1, 4)
    assert Pixels(card).scaled(greys)[1].tolist() == [[-1.0, -0.5, 0.0, 1.0]]


def test_standard_gives_each_channel_of_the_training_images_mean_0_and_variance_1(
    tmp_path: Path, images: np.ndarray
) -> None:
    card = card_of(tmp_path, images, "standard")
    grey = images / 255
    assert card.scaling.kind == "standard"
    assert card.scaling.shift == card.train_mean == pytest.approx(grey.mean((0, 2, 3)), abs=1e-6)
    wanted = pytest.approx(grey.std((0, 2, 3)), abs=1e-6)
    assert card.scaling.scale == card.train_standard_deviation == wanted
    scaled = Pixels(card)(torch.from_numpy(images)).double()
    # The card holds six digits; the smallest deviation, of grey values from 30 to 39, is 0.011.
    torch.testing.assert_close(scaled.mean((0, 2, 3)), torch.zeros(3).double(), rtol=0, atol=1e-4)
    torch.testing.assert_close(scaled.var((0, 2, 3), correction=0), torch.ones(3).double(), rtol=0, atol=1e-3)


def test_standard_is_measured_on_the_training_images_alone(tmp_path: Path, images: np.ndarray) -> None:
    wanted = card_of(tmp_path, images, "standard").scaling
    for name in ("validation", "test"):
        np.save(tmp_path / f"{name}-images.npy", np.zeros_like(images))
    origin = store.Origin("noise", {}, "none", ("noise",), {}, "Noise", "CC0")
    assert store.write_card(tmp_path, origin, "standard").scaling == wanted


@pytest.mark.parametrize("binarization", ["none", "dynamic"])
@pytest.mark.parametrize("kind", KINDS)
def test_what_the_model_sees_of_every_grey_value_can_be_taken_back(
    kind: str, binarization: str, tmp_path: Path, images: np.ndarray
) -> None:
    pixels = Pixels(card_of(tmp_path, images, kind, binarization))
    greys = torch.arange(256, dtype=torch.uint8).expand(2, 3, 1, 256)
    wanted = greys / 255
    if binarization == "dynamic":  # black and white of the same draws
        wanted = (torch.rand(greys.shape, generator=torch.Generator().manual_seed(3)) < wanted).float()
    found = pixels.unscaled(pixels(greys, torch.Generator().manual_seed(3)))
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-6)
    assert torch.equal((found * 255).round(), (wanted * 255).round())


@pytest.mark.parametrize("kind", KINDS)
def test_what_lies_beyond_black_and_white_is_cut_off(kind: str, tmp_path: Path, images: np.ndarray) -> None:
    pixels = Pixels(card_of(tmp_path, images, kind))
    found = pixels.unscaled(torch.tensor([-1e3, 1e3]).expand(3, 1, 2))
    assert found.tolist() == [[[0.0, 1.0]]] * 3


@pytest.mark.parametrize("value", [0, 7, 255])
@pytest.mark.parametrize("kind", KINDS)
def test_images_of_one_colour_are_not_divided_by_zero(kind: str, value: int, tmp_path: Path) -> None:
    images = np.full((4, 1, 2, 2), value, np.uint8)
    card = card_of(tmp_path, images, kind)
    assert card.train_standard_deviation == (0.0,)
    pixels = Pixels(card)
    scaled = pixels(torch.from_numpy(images))
    assert torch.isfinite(scaled).all()
    if kind == "standard":
        assert card.scaling.scale == (1.0,)
        torch.testing.assert_close(scaled, torch.zeros_like(scaled), rtol=0, atol=1e-6)
    torch.testing.assert_close(pixels.unscaled(scaled), torch.from_numpy(images) / 255, rtol=0, atol=1e-6)


def test_pixels_hold_no_weights_and_move_with_their_module(tmp_path: Path, images: np.ndarray) -> None:
    pixels = Pixels(card_of(tmp_path, images, "standard"))
    assert list(pixels.parameters()) == []
    assert pixels.state_dict() == {}  # or weights would not load where the data are others
    assert pixels.to("meta")(torch.zeros(2, 3, 4, 5, dtype=torch.uint8, device="meta")).device.type == "meta"


def test_each_channel_is_scaled_by_its_own_numbers() -> None:
    scaling = Scaling(kind="standard", shift=(0.0, 0.5), scale=(1.0, 0.25))
    seen = Pixels(image_facts("none").model_copy(update={"scaling": scaling}))(
        torch.full((3, 2, 2, 2), 255, dtype=torch.uint8)
    )
    assert seen[:, 0].unique().tolist() == [1.0]
    assert seen[:, 1].unique().tolist() == [2.0]


# Drawing


def grey(*values: int, count: int = 1) -> Tensor:
    """Images of four pixels. Shapes: -> (count, 1, 2, 2) uint8."""
    return torch.tensor(values, dtype=torch.uint8).reshape(1, 1, 2, 2).repeat(count, 1, 1, 1)


def test_grey_values_become_floats_between_0_and_1() -> None:
    seen = Pixels(image_facts("none"))(grey(0, 1, 128, 255))
    torch.testing.assert_close(seen, torch.tensor([[[[0.0, 1 / 255], [128 / 255, 1.0]]]]))
    assert seen.dtype == torch.float32


SOURCES: dict[str, Callable[[], torch.Generator | None]] = {
    "torch's own": lambda: None,
    "given": lambda: torch.Generator().manual_seed(0),
}


@pytest.mark.parametrize("source", SOURCES)
def test_dynamic_pixels_are_black_or_white_with_the_grey_value_as_mean(source: str) -> None:
    torch.manual_seed(0)
    draws = 4000
    seen = Pixels(image_facts("dynamic"))(grey(0, 51, 128, 255, count=draws), SOURCES[source]())
    assert set(seen.unique().tolist()) == {0.0, 1.0}
    mean = seen.mean(0).flatten()
    # Black and white are certain; five standard errors of `draws` draws for the rest.
    assert (mean[0].item(), mean[3].item()) == (0.0, 1.0)
    assert mean[1].item() == pytest.approx(0.2, abs=5 * 0.4 / draws**0.5)
    assert mean[2].item() == pytest.approx(128 / 255, abs=5 * 0.5 / draws**0.5)


def test_dynamic_pixels_are_drawn_again_each_time_from_torchs_generator() -> None:
    pixels, images = Pixels(image_facts("dynamic")), torch.full((4, 1, 8, 8), 128, dtype=torch.uint8)
    torch.manual_seed(0)
    first, second = (pixels(images) for _ in range(2))
    assert not torch.equal(first, second)
    torch.manual_seed(0)
    assert torch.equal(pixels(images), first)


def test_a_generator_that_is_given_leaves_torchs_alone() -> None:
    pixels, images = Pixels(image_facts("dynamic")), torch.full((4, 1, 8, 8), 128, dtype=torch.uint8)
    before = torch.get_rng_state()
    first, second = (pixels(images, torch.Generator().manual_seed(seed)) for seed in (0, 1))
    assert not torch.equal(first, second)
    assert torch.equal(pixels(images, torch.Generator().manual_seed(0)), first)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("binarization", ["none", "threshold", "static"])
def test_other_pixels_are_never_drawn(binarization: str) -> None:
    pixels, images = Pixels(image_facts(binarization)), grey(0, 10, 128, 255, count=10)
    before, generator = torch.get_rng_state(), torch.Generator().manual_seed(0)
    assert torch.equal(pixels(images), images / 255)
    assert torch.equal(pixels(images, generator), images / 255)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(generator.get_state(), torch.Generator().manual_seed(0).get_state())


@pytest.mark.parametrize("binarization", ["none", "dynamic"])
def test_pixels_are_scaled_as_the_card_says_after_they_are_drawn(binarization: str) -> None:
    images = grey(0, 51, 204, 255)
    plain, scaled = (
        Pixels(card)(images, torch.Generator().manual_seed(0))
        for card in (image_facts(binarization), image_facts(binarization, shift=0.5, scale=0.25))
    )
    torch.testing.assert_close(scaled, (plain - 0.5) / 0.25)
    assert (scaled.min().item(), scaled.max().item()) == (-2.0, 2.0)
    assert scaled.dtype == torch.float32


# All images of a split


def test_held_out_pixels_are_one_draw_whatever_the_model_draws_and_however_they_are_batched() -> None:
    images = np.random.default_rng(0).integers(0, 256, (50, 1, 3, 5), dtype=np.uint8)
    pixels = Pixels(image_facts("dynamic"))

    def seen(batch_size: int, seed: int, noise: int) -> Tensor:
        batches = []
        for x, _ in View(Batches(images, batch_size, CPU), pixels).seen(seed):
            torch.randn(noise)  # as a model does between batches
            batches.append(x)
        return torch.cat(batches)

    once = seen(50, seed=0, noise=0)
    for batch_size in (1, 7, 16, 50):
        assert torch.equal(seen(batch_size, seed=0, noise=3), once)
    assert not torch.equal(seen(50, seed=1, noise=0), once)
    assert set(once.unique().tolist()) == {0.0, 1.0}
    assert once.mean().item() == pytest.approx((images / 255).mean(), abs=5 * 0.5 / images.size**0.5)


@pytest.mark.parametrize("binarization", ["none", "dynamic"])
def test_what_the_model_sees_is_the_same_of_images_that_are_read_ahead(
    binarization: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = np.random.default_rng(0).integers(0, 256, (10, 1, 3, 5), dtype=np.uint8)
    pixels, order, seen = Pixels(image_facts(binarization)), torch.randperm(10), []
    for fraction in ("1", "0"):
        monkeypatch.setenv("REPARAM_RESIDENT_FRACTION", fraction)
        data = Batches(images, 4, CPU)
        torch.manual_seed(0)
        visits = [pixels(images) for visit in (order, order[4:]) for images, _ in data.visit(visit)]
        seen.append([*visits, *(x for x, _ in View(data, pixels).seen(3))])
    assert all(torch.equal(*pair) for pair in zip(*seen, strict=True))


@pytest.mark.parametrize("binarization", ["none", "dynamic"])
def test_a_split_without_images_is_never_seen(binarization: str) -> None:
    data = Batches(np.zeros((0, 1, 2, 2), np.uint8), 4, CPU)
    assert list(View(data, Pixels(image_facts(binarization))).seen(0)) == []


# In exported graphs


class Gaussian:
    """Normal pixels of standard deviation 1: a density of images on any scale."""

    outputs = 1
    needs_binary = False
    sigma = None

    def __init__(self, config: object) -> None:
        pass

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
    model = small_section("model")
    # Under the name that the fixture's model has.
    monkeypatch.setitem(LIKELIHOODS, "bernoulli", lambda: Gaussian(model.gaussian))
    exported = prepare(tmp_path, binarization="none", scaling=kind)
    run_stage(exported.paths)
    card = store.read_card(exported.paths.processed)
    shift, scale = (np.float32(getattr(card.scaling, name)) for name in ("shift", "scale"))
    assert kind == card.scaling.kind
    assert not np.array_equal(shift, np.zeros(3))
    model, _ = load_model(exported.paths.model, torch.device("cpu"))

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

    metrics = ExportMetrics.read(exported.paths.export_metrics, "export").values
    assert max(metrics["encoder_max_error"], metrics["decoder_max_error"]) < 1e-4
    assert "served_elbo_loss" not in metrics  # apps send what training saw
