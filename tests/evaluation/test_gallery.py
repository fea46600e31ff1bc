from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import SMALL
from data_card import data_card
from matplotlib.figure import Figure
from torch import Tensor

from reparam.config import EvaluateConfig, ModelConfig
from reparam.data.batches import Batches
from reparam.evaluation import figures, gallery
from reparam.evaluation.metrics import Scores
from reparam.evaluation.samplers import SAMPLERS
from reparam.models.build import AnyModel, build_model

SHAPE = (1, 2, 3)
SETTINGS = EvaluateConfig.model_validate(
    SMALL["evaluate"] | {"batch_size": 4, "elbo_samples": 1, "nll_samples": 1, "grid_steps": 3, "grid_range": 2.0}
)


def some_model(latent: int, kind: str = "vae") -> AnyModel:
    torch.manual_seed(0)
    changes = {"kind": kind, "hidden": [5], "activation": "tanh", "latent": latent}
    return build_model(ModelConfig.model_validate(SMALL["model"] | changes), SHAPE)


def some_data(images: int, binarization: str, shift: float = 0.0, scale: float = 1.0) -> Batches:
    grey = np.random.default_rng(0).integers(0, 256, (images, *SHAPE), dtype=np.uint8)
    return Batches(grey, data_card(binarization, shift, scale), 4, torch.device("cpu"))


def some_scores(images: int, kl: list[float]) -> Scores:
    nothing = torch.zeros(images)
    means = torch.randn(images, len(kl), generator=torch.Generator().manual_seed(0))
    variance = torch.tensor([value / 10 for value in kl])
    return Scores(
        nothing, nothing, nothing, torch.tensor(kl, dtype=torch.float64), variance, means, layer_sizes=(len(kl),)
    )


def some_start(latent: int) -> Tensor:
    return torch.randn(gallery.SAMPLES_PER_SIDE**2, latent, generator=torch.Generator().manual_seed(1))


def draw(
    labels: list[int], kl: list[float], binarization: str = "dynamic", model: AnyModel | None = None
) -> dict[str, Figure]:
    data, scores = some_data(len(labels), binarization), some_scores(len(labels), kl)
    start = some_start(len(kl))
    return gallery.draw(model or some_model(len(kl)), (data, np.array(labels)), scores, SETTINGS, start)


def rows(figure: Figure, columns: int) -> list[np.ndarray]:
    """Read the images back, row by row. Shapes: each (columns, H, W)."""
    shown = [np.asarray(axes.images[0].get_array()) for axes in figure.axes]
    return [np.stack(shown[start : start + columns]) for start in range(0, len(shown), columns)]


def titles(figure: Figure) -> list[str]:
    return [axes.get_title() for axes in figure.axes if axes.get_title()]


@pytest.mark.parametrize("latent", [1, 2, 60])
@pytest.mark.parametrize("labels", [[0] * 12, [4, 4, 2], [7]], ids=["one class", "three images", "one image"])
def test_every_picture_can_be_drawn(latent: int, labels: list[int]) -> None:
    pictures = draw(labels, kl=[1.0] * latent)
    assert tuple(pictures) == gallery.FIGURES
    assert gallery.FIGURES == ("reconstructions", "samples", "latent_grid", "latent_scatter", "latent_use")
    for figure in pictures.values():
        assert figures.png(figure).startswith(b"\x89PNG")


def test_one_image_of_each_class_is_shown_first_and_in_the_order_of_the_classes() -> None:
    assert titles(draw([3, 1, 1, 2], kl=[1.0])["reconstructions"]) == ["1", "1", "2", "3"]
    labels = [9, 9, 9, 0, 1, 2, 3, 4, 5, 6, 7, 8, 8]
    assert titles(draw(labels, kl=[1.0])["reconstructions"]) == [str(label) for label in range(10)]
    assert len(titles(draw(list(range(14)), kl=[1.0])["reconstructions"])) == 10


def test_reconstructions_are_those_of_the_pixels_that_the_model_saw() -> None:
    model, data = some_model(2), some_data(3, "dynamic")
    original, seen, reconstruction = rows(draw([0, 1, 2], kl=[2.0, 1.0], model=model)["reconstructions"], columns=3)
    np.testing.assert_allclose(original, data.grey(torch.arange(len(data)))[:, 0].numpy() / 255, rtol=1e-6)
    assert set(np.unique(seen)) == {0.0, 1.0}
    with torch.no_grad():
        wanted = model.decode(model.posterior(torch.from_numpy(seen)[:, None])[0])
    np.testing.assert_allclose(reconstruction, wanted[:, 0].numpy(), rtol=1e-6)


def test_a_model_of_grey_images_saw_the_originals() -> None:
    model = some_model(2)
    original, reconstruction = rows(draw([0, 1, 2], [2.0, 1.0], "none", model)["reconstructions"], columns=3)
    with torch.no_grad():
        wanted = model.decode(model.posterior(torch.from_numpy(original)[:, None])[0])
    np.testing.assert_allclose(reconstruction, wanted[:, 0].numpy(), rtol=1e-6)


def test_pictures_show_pixels_whatever_scale_the_model_sees() -> None:
    model, data, scores = some_model(2), some_data(3, "dynamic", shift=0.5, scale=0.5), some_scores(3, [2.0, 1.0])
    pictures = gallery.draw(model, (data, np.arange(3)), scores, SETTINGS, some_start(2))
    original, seen, reconstruction = rows(pictures["reconstructions"], columns=3)
    np.testing.assert_allclose(original, data.grey(torch.arange(len(data)))[:, 0].numpy() / 255, rtol=1e-6)
    assert set(np.unique(seen)) == {0.0, 1.0}
    with torch.no_grad():
        decoded = model.decode(model.posterior(torch.from_numpy(seen * 2 - 1)[:, None])[0])
    np.testing.assert_allclose(reconstruction, decoded[:, 0].numpy() / 2 + 0.5, rtol=1e-6)
    for name in ("samples", "latent_grid"):
        [image] = [image for axes in pictures[name].axes for image in axes.images]
        shown = np.asarray(image.get_array())
        assert (
            0.5 < shown.min() < shown.max() <= 1.0
        )  # a sigmoid lies between 0 and 1, and its pixels in the upper half


@pytest.mark.parametrize("channels", [1, 3])
def test_the_contact_sheet_shows_images_from_all_over_each_split(channels: int) -> None:
    def numbered(count: int) -> np.ndarray:
        return np.broadcast_to(np.arange(count, dtype=np.uint8).reshape(-1, 1, 1, 1), (count, channels, 2, 3)).copy()

    figure = gallery.contact_sheet({"train": numbered(31), "validation": numbered(16), "test": numbered(1)})
    shown = [np.asarray(axes.images[0].get_array()) for axes in figure.axes]
    assert {image.shape for image in shown} == {(2, 3) if channels == 1 else (2, 3, 3)}
    greys = [round(float(image.max()) * 255) for image in shown]
    assert greys == [*range(0, 31, 2), *range(16), 0, *[255] * 15]
    assert [axes.get_ylabel() for axes in figure.axes if axes.get_ylabel()] == ["train", "validation", "test"]


def test_the_latent_plane_spans_the_two_dimensions_of_the_largest_kl() -> None:
    model, decoded = some_model(4), list[Tensor]()
    model.decoder.register_forward_hook(lambda _module, inputs, _output: decoded.append(inputs[0]))
    pictures = draw([0, 1, 2], kl=[0.5, 3.0, 0.1, 4.0], model=model)
    reconstructed, sampled, plane = decoded
    assert (reconstructed.shape, sampled.shape) == ((3, 4), (49, 4))
    # Row by row from the top: dimension 3 grows to the right, dimension 1 upwards, the others stay 0.
    assert plane.tolist() == [[0.0, y, 0.0, x] for y in (2.0, 0.0, -2.0) for x in (-2.0, 0.0, 2.0)]
    for name in ("latent_grid", "latent_scatter"):
        [axes] = pictures[name].axes
        assert "z_{3}" in axes.get_xlabel()
        assert "z_{1}" in axes.get_ylabel()


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_the_samples_are_decoded_from_the_latents_given_and_named_after_where_those_came_from(sampler: str) -> None:
    model, decoded, start = some_model(60), list[Tensor](), some_start(60)
    model.decoder.register_forward_hook(lambda _module, inputs, _output: decoded.append(inputs[0]))
    data, scores = some_data(3, "dynamic"), some_scores(3, [1.0] * 60)
    settings = SETTINGS.model_copy(update={"sampler": sampler})
    pictures = gallery.draw(model, (data, np.arange(3)), scores, settings, start)
    assert torch.equal(decoded[1], start)
    [axes] = pictures["samples"].axes
    source = {"prior": "the prior", "mixture": "a fitted mixture"}[sampler]
    assert axes.get_title(loc="left") == f"Decoder means of draws from {source}"


def test_an_autoencoder_is_drawn_in_the_plane_of_its_most_varied_codes() -> None:
    model, decoded = some_model(3, "autoencoder"), list[Tensor]()
    model.decoder.register_forward_hook(lambda _module, inputs, _output: decoded.append(inputs[0]))
    scores = some_scores(3, [0.0, 0.0, 0.0])  # there is no KL to choose by
    scores = replace(scores, latent_variance=torch.tensor([0.5, 0.001, 2.0], dtype=torch.float64))
    pictures = gallery.draw(model, (some_data(3, "none"), np.arange(3)), scores, SETTINGS, some_start(3))
    assert decoded[2].tolist() == [[y, 0.0, x] for y in (2.0, 0.0, -2.0) for x in (-2.0, 0.0, 2.0)]
    [grid], [use] = pictures["latent_grid"].axes, pictures["latent_use"].axes
    assert grid.get_xlabel() == "$z_{2}$  (units of the code)"
    assert use.get_ylabel() == "variance over images"
    assert [bar.get_height() for bar in use.containers[0].patches] == [2.0, 0.5, 0.001]
    assert use.get_title(loc="left") == "2 of 3 latent dimensions are active"


def test_a_hierarchy_is_drawn_in_all_its_latents() -> None:
    model = some_model(2, "hierarchical")  # and six above
    pictures = draw([0, 1, 2], kl=[0.1] * 7 + [5.0], model=model)
    [grid] = pictures["latent_grid"].axes
    assert grid.get_xlabel() == "$z_{7}$  (prior standard deviations)"
    for figure in pictures.values():
        assert figures.png(figure).startswith(b"\x89PNG")


def test_active_dimensions_are_those_above_the_threshold() -> None:
    [axes] = draw([0, 1], kl=[0.05, 0.2, 3.0])["latent_use"].axes  # variances 0.005, 0.02, 0.3
    assert axes.get_title(loc="left") == "2 of 3 latent dimensions are active"


def test_pictures_are_the_same_each_time_and_leave_the_random_stream_alone() -> None:
    before = torch.get_rng_state()
    model = some_model(2)
    torch.set_rng_state(before)
    first = {name: figures.png(figure) for name, figure in draw([0, 1, 2], [2.0, 1.0], model=model).items()}
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(7)
    second = {name: figures.png(figure) for name, figure in draw([0, 1, 2], [2.0, 1.0], model=model).items()}
    assert first == second
