import inspect
import io
from collections.abc import Sequence
from dataclasses import replace
from typing import Any
from unittest.mock import MagicMock

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image
from some_cards import image_facts
from subjects import ALWAYS_DRAWN, GREY, SHAPE, settings, some_data, some_model, some_scores, some_split
from torch import Tensor

from reparam.cards.data import ImageFacts
from reparam.config import EvaluateConfig
from reparam.data.batches import Batches
from reparam.data.store import Images
from reparam.evaluate import gallery, walks
from reparam.evaluate.samplers import SAMPLERS
from reparam.evaluate.subject import Subject
from reparam.figures.images import plot_contact_sheet, tile
from reparam.figures.style import indexed, png
from reparam.models.latent import LatentModel
from reparam.report import page as report
from reparam.runtime import random_stream

SETTINGS = settings(nll_samples=1)
DRAWN = image_facts("dynamic")


def with_plane(plane: str) -> EvaluateConfig:
    return settings(nll_samples=1, grid={"range": 2.0, "plane": plane})


def subject_of(
    labels: list[int],
    kl: list[float],
    card: ImageFacts = DRAWN,
    model: LatentModel | None = None,
    config: EvaluateConfig = SETTINGS,
    **changes: Sequence[float] | Tensor,
) -> Subject:
    """A subject whose latents have these KLs, and a tenth of them as variance; its other scores are drawn."""
    images, latent, generator = len(labels), len(kl), torch.Generator().manual_seed(0)
    drawn = {
        "means": torch.randn(images, latent, generator=generator),
        "reconstruction": torch.rand(images, generator=generator),
        "latent_kl": kl,
        "latent_variance": [value / 10 for value in kl],
        "log_variances": torch.full((images, latent), -2.0),
    }
    scores = some_scores(images, latent, **drawn | changes)
    model = model or some_model(latent=latent, activation="tanh")
    return Subject(model, some_data(some_split(labels, model.shape), card), config, scores)


def draw(*arguments: Any) -> dict[str, Figure]:
    return gallery.plot_all(subject_of(*arguments))


def decoded_by(model: LatentModel) -> list[Tensor]:
    """Collect what the decoder is asked to decode."""
    found = list[Tensor]()
    model.decoder.register_forward_hook(lambda _module, inputs, _output: found.append(inputs[0]))
    return found


def rows(figure: Figure, columns: int) -> list[np.ndarray]:
    """Read the images back, row by row. Shapes: each (columns, H, W)."""
    shown = [np.asarray(image.get_array()) for image in figure.axes[0].images]
    return [np.stack(shown[start : start + columns]) for start in range(0, len(shown), columns)]


def titles(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.axes[0].get_xticklabels()]


def drawn(figure: Figure) -> bool:
    return png(figure).startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("latent", "labels", "plane"),
    [
        (1, [0] * 12, "dimensions"),
        (1, [3], "principal"),
        (2, [4, 4, 2], "principal"),
        (3, [0, 0], "dimensions"),
        (4, [7], "dimensions"),
        (400, [4, 4, 2], "dimensions"),
    ],
)
def test_every_picture_can_be_drawn(latent: int, labels: list[int], plane: str) -> None:
    pictures = gallery.plot_all(subject_of(labels, [1.0] * latent, config=with_plane(plane)))
    wanted = ["aggregate", "bounds"]
    wanted += ["interpolation", "extremes"] if len(labels) > 1 else []
    wanted += ["components"] if len(labels) > 1 and latent > 2 else []
    assert set(pictures) == {*ALWAYS_DRAWN, *wanted}
    if plane == "principal":  # the others would only be drawn again
        pictures = {name: pictures[name] for name in ("latent_grid", "latent_scatter")}
    assert all(map(drawn, pictures.values()))


def test_the_page_knows_all_that_may_be_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in list(vars(gallery).items()):
        if inspect.isfunction(value) and name.startswith(("_", "plot_")) and name != "plot_all":
            monkeypatch.setattr(gallery, name, lambda *_: Figure())
    everything = MagicMock(images=[0, 1], is_code=False)
    everything.model.likelihood.outputs, everything.model.latent_size = 2, 3
    everything.coded.facts = ["scale"]
    known = {picture.name for group in report.PICTURES.values() for picture in group}
    assert {*gallery.plot_all(everything), "contact_sheet", "training_curves", "outliers"} == known


def test_as_many_images_of_each_class_are_shown_in_the_order_of_the_classes() -> None:
    assert titles(draw([3, 1, 1, 2], [1.0])["reconstructions"]) == ["1", "1", "2", "3"]
    labels = [9, 9, 9, 0, 1, 2, 3, 4, 5, 6, 7, 8, 8]
    assert titles(draw(labels, [1.0])["reconstructions"]) == [str(label) for label in range(10)]
    assert len(titles(draw(list(range(14)), [1.0])["reconstructions"])) == 10
    labels = [1] * 3 + [2] * 9 + [3] * 8
    assert titles(draw(labels, [1.0])["reconstructions"]) == ["1"] * 3 + ["2"] * 4 + ["3"] * 3


def test_reconstructions_are_those_of_the_pixels_that_the_model_saw() -> None:
    subject = subject_of([0, 1, 2], [2.0, 1.0])
    original, seen, reconstruction = rows(gallery.plot_all(subject)["reconstructions"], columns=3)
    np.testing.assert_allclose(original, subject.data.scored.images[:, 0] / 255, rtol=1e-6)
    assert set(np.unique(seen)) == {0.0, 1.0}
    with torch.no_grad():
        wanted = subject.model.decode(subject.model.posterior(torch.from_numpy(seen)[:, None])[0])
    np.testing.assert_allclose(reconstruction, wanted[:, 0].numpy(), rtol=1e-6)


def test_a_model_of_grey_images_saw_the_originals() -> None:
    subject = subject_of([0, 1, 2], [2.0, 1.0], GREY)
    original, reconstruction = rows(gallery.plot_all(subject)["reconstructions"], columns=3)
    with torch.no_grad():
        wanted = subject.model.decode(subject.model.posterior(torch.from_numpy(original)[:, None])[0])
    np.testing.assert_allclose(reconstruction, wanted[:, 0].numpy(), rtol=1e-6)


def test_pictures_show_pixels_whatever_scale_the_model_sees() -> None:
    subject = subject_of([0, 1, 2], [2.0, 1.0], image_facts("dynamic", shift=0.5, scale=0.5))
    pictures = gallery.plot_all(subject)
    original, seen, reconstruction = rows(pictures["reconstructions"], columns=3)
    np.testing.assert_allclose(original, subject.data.scored.images[:, 0] / 255, rtol=1e-6)
    assert set(np.unique(seen)) == {0.0, 1.0}
    with torch.no_grad():
        decoded = subject.model.decode(subject.model.posterior(torch.from_numpy(seen * 2 - 1)[:, None])[0])
    np.testing.assert_allclose(reconstruction, decoded[:, 0].numpy() / 2 + 0.5, rtol=1e-6)
    for name in ("samples", "latent_grid"):
        [image] = [image for axes in pictures[name].axes for image in axes.images]
        shown = np.asarray(image.get_array())
        # A sigmoid lies between 0 and 1, and its pixels in the upper half.
        assert 0.5 < shown.min() < shown.max() <= 1.0


@pytest.mark.parametrize("channels", [1, 3])
def test_the_contact_sheet_shows_images_from_all_over_each_split(channels: int) -> None:
    def numbered(count: int) -> np.ndarray:
        return np.broadcast_to(np.arange(count, dtype=np.uint8).reshape(-1, 1, 1, 1), (count, channels, 2, 3)).copy()

    figure = plot_contact_sheet({"train": numbered(31), "validation": numbered(16), "test": numbered(1)})
    [axes] = figure.axes
    shown = [np.asarray(image.get_array()) for image in axes.images]
    assert {image.shape for image in shown} == {(2, 3) if channels == 1 else (2, 3, 3)}
    greys = [round(float(image.max()) * 255) for image in shown]
    assert greys == [*range(0, 31, 2), *range(16), 0, *[255] * 15]
    assert [text.get_text() for text in axes.get_yticklabels()] == ["train", "validation", "test"]


def test_the_latent_plane_spans_the_two_dimensions_of_the_largest_kl() -> None:
    subject = subject_of([0, 1, 2], [0.5, 3.0, 0.1, 4.0])
    decoded = decoded_by(subject.model)
    pictures = gallery.plot_all(subject)
    reconstructed, sampled, plane = decoded[:3]
    assert (reconstructed.shape, sampled.shape) == ((3, 4), (49, 4))
    # Row by row from the top: dimension 3 grows to the right, dimension 1 upwards, the others stay 0.
    assert plane.tolist() == [[0.0, y, 0.0, x] for y in (2.0, 0.0, -2.0) for x in (-2.0, 0.0, 2.0)]
    for name in ("latent_grid", "latent_scatter"):
        [axes] = pictures[name].axes
        assert "z₃ " in axes.get_xlabel()
        assert "z₁ " in axes.get_ylabel()


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_the_samples_are_decoded_from_draws_of_the_sampler_and_named_after_it(sampler: str) -> None:
    subject = subject_of([0, 1, 2], [1.0] * 5, config=settings(nll_samples=1, sampler=sampler))
    with random_stream(SETTINGS.seed, "samples"):
        start = subject.codes(49)
    decoded = decoded_by(subject.model)
    [axes] = gallery.plot_all(subject)["samples"].axes
    assert torch.equal(decoded[1], start)
    assert axes.get_title(loc="left") == f"Decoder means of draws from {SAMPLERS[sampler].origin}"


def test_an_autoencoder_is_drawn_around_its_mean_code_where_codes_vary_most() -> None:
    model = some_model(kind="autoencoder")
    # There is no KL to choose by.
    subject = subject_of([0, 1, 2], [0.0, 0.0, 0.0], GREY, model, latent_variance=[0.5, 0.001, 2.0])
    decoded = decoded_by(model)
    pictures = gallery.plot_all(subject)
    means = subject.scores.means
    middle, spread = means.mean(0), means.std(0, correction=0)
    steps = [[y, 0.0, x] for y in (2.0, 0.0, -2.0) for x in (-2.0, 0.0, 2.0)]
    torch.testing.assert_close(decoded[2], (middle + torch.tensor(steps) * spread).float())
    [grid], [use] = pictures["latent_grid"].axes, pictures["latent_use"].axes
    assert grid.get_xlabel() == "z₂  (standard deviations of the code)"
    assert grid.get_title(loc="left") == "Decoder mean; the other latent dimensions are at their mean"
    assert use.get_ylabel() == "variance over images"
    assert [bar.get_height() for bar in use.containers[0].patches] == [2.0, 0.5, 0.001]
    assert use.get_title(loc="left") == "2 of 3 latent dimensions are active"
    points = np.asarray(pictures["latent_scatter"].axes[0].collections[0].get_offsets())
    np.testing.assert_allclose(points, ((means - middle) / spread)[:, [2, 0]].numpy())
    [traversals] = pictures["traversals"].axes
    names = [text.get_text() for text in traversals.get_yticklabels()]
    assert names == ["z₂: 2.00 variance", "z₀: 0.50 variance"]
    assert "aggregate" not in pictures
    assert "bounds" not in pictures


def test_a_hierarchy_is_drawn_in_all_its_latents() -> None:
    model = some_model(kind="hierarchical", latent=2, upper=[6])
    pictures = gallery.plot_all(subject_of([0, 1, 2], [0.1] * 7 + [5.0], model=model))
    [grid] = pictures["latent_grid"].axes
    assert grid.get_xlabel() == "z₇  (prior standard deviations)"
    for figure in pictures.values():
        assert png(figure).startswith(b"\x89PNG")


def test_active_dimensions_are_those_above_the_threshold() -> None:
    [axes] = draw([0, 1], [0.05, 0.2, 3.0])["latent_use"].axes  # variances 0.005, 0.02, 0.3
    assert axes.get_title(loc="left") == "2 of 3 latent dimensions are active"


def test_pictures_are_the_same_each_time_and_leave_the_random_stream_alone() -> None:
    subject = subject_of([0, 1, 2], [2.0, 1.0])
    before = torch.get_rng_state()
    first = {name: png(figure) for name, figure in gallery.plot_all(subject).items()}
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(7)
    second = {name: png(figure) for name, figure in gallery.plot_all(subject).items()}
    assert first == second


def test_names_of_classes_change_no_draw() -> None:
    plain = subject_of([0, 1, 2], [2.0, 1.0])
    named = replace(plain, data=replace(plain.data, classes=["ape", "bee", "cat"]))
    before, after = (gallery.plot_all(subject)["reconstructions"] for subject in (plain, named))
    assert titles(before) == ["0", "1", "2"]
    assert titles(after) == ["ape", "bee", "cat"]
    np.testing.assert_array_equal(rows(before, 3), rows(after, 3))


# Planes and walks


def test_the_principal_plane_spans_standard_deviations_along_the_principal_components() -> None:
    means = torch.tensor([[1.0, 5.0, 0.0], [1.0, -3.0, 0.0], [2.0, 1.0, 0.0], [0.0, 1.0, 0.0]], dtype=torch.float64)
    plane = walks.principal_components(means).plane
    torch.testing.assert_close(plane.origin, torch.tensor([1.0, 1.0, 0.0], dtype=torch.float64))
    wanted = torch.tensor([[0.0, 8**0.5, 0.0], [0.5**0.5, 0.0, 0.0]], dtype=torch.float64)
    torch.testing.assert_close(plane.directions, wanted)
    coordinates = plane.coordinates(means)
    torch.testing.assert_close(coordinates.var(0, correction=0), torch.ones(2, dtype=torch.float64))
    assert plane.coordinates(plane.latents(3, 2.0))[:3, 0].tolist() == pytest.approx([-2.0, 0.0, 2.0])


def test_the_grid_and_the_scatter_share_the_principal_plane() -> None:
    subject = subject_of([0, 1, 2], [1.0] * 4, config=with_plane("principal"))
    pictures, means = gallery.plot_all(subject), subject.means
    points = np.asarray(pictures["latent_scatter"].axes[0].collections[0].get_offsets())
    np.testing.assert_allclose(points, walks.principal_components(means).plane.coordinates(means).numpy())
    for name in ("latent_grid", "latent_scatter"):
        [axes] = pictures[name].axes
        assert axes.get_xlabel() == "component 1  (standard deviations of posterior means)"
        assert axes.get_ylabel() == "component 2  (standard deviations of posterior means)"


def test_of_a_single_latent_dimension_classes_are_drawn_one_above_the_other() -> None:
    subject = subject_of([5, 9, 5], [1.0])
    pictures, means = gallery.plot_all(subject), subject.scores.means
    [axes] = pictures["latent_scatter"].axes
    points = np.asarray(axes.collections[0].get_offsets())
    np.testing.assert_allclose(points, [[means[0, 0], 0], [means[1, 0], 1], [means[2, 0], 0]])
    assert axes.get_ylabel() == "number of the class"
    assert pictures["latent_grid"].axes[0].get_ylabel() == "(a single dimension: rows repeat)"


def test_traversals_move_one_active_dimension_at_a_time_those_of_most_use_first() -> None:
    subject = subject_of([0, 1, 2], [0.5, 3.0, 0.05, 4.0])  # dimension 2 is not active
    decoded = decoded_by(subject.model)
    pictures = gallery.plot_all(subject)
    walk = decoded[3].reshape(3, 11, 4)
    for number, row in zip((3, 1, 0), walk, strict=True):
        torch.testing.assert_close(row[:, number], torch.linspace(-2, 2, 11))
        assert row.count_nonzero() == 10
    [axes] = pictures["traversals"].axes
    names = [text.get_text() for text in axes.get_yticklabels()]
    assert names == ["z₃: 4.00 nats", "z₁: 3.00 nats", "z₀: 0.50 nats"]
    columns = [text.get_text() for text in axes.get_xticklabels()]
    assert columns == ["−2", "−1.6", "−1.2", "−0.8", "−0.4", "0", "0.4", "0.8", "1.2", "1.6", "2"]
    assert axes.get_xlabel() == "prior standard deviations"


@pytest.mark.parametrize(("kl", "chosen"), [([0.0, 0.01], [1]), ([1.0] * 20, list(range(12)))])
def test_traversals_are_at_least_one_and_at_most_twelve(kl: list[float], chosen: list[int]) -> None:
    [axes] = draw([0, 1], kl)["traversals"].axes
    assert [text.get_text().split(":")[0] for text in axes.get_yticklabels()] == [indexed(f"z{i}") for i in chosen]


def cells(figure: Figure, columns: int) -> np.ndarray:
    """Read tiles of SHAPE, a pixel apart, back. Shapes: (rows, columns, H, W)."""
    [axes] = figure.axes
    canvas = np.pad(np.asarray(axes.images[0].get_array()), ((0, 1), (0, 1)))
    height, width = SHAPE[1] + 1, SHAPE[2] + 1
    return canvas.reshape(-1, height, columns, width).swapaxes(1, 2)[:, :, :-1, :-1]


def test_interpolation_goes_straight_from_one_image_to_one_of_another_class() -> None:
    labels = [0, 1, 2, 3, 0, 1, 2, 3]
    subject = subject_of(labels, [2.0, 1.0])
    figure = gallery.plot_all(subject)["interpolation"]
    found = cells(figure, 13)
    stored = subject.data.scored.images[:, 0] / np.float32(255)
    seen = list[int]()
    for line, text in zip(found, figure.axes[0].get_yticklabels(), strict=True):
        first, second = (int(np.abs(stored - end).sum((1, 2)).argmin()) for end in (line[0], line[-1]))
        np.testing.assert_allclose(line[[0, -1]], stored[[first, second]], rtol=1e-6)
        assert text.get_text() == f"{labels[first]} to {labels[second]}"
        assert labels[first] != labels[second]
        means = subject.scores.means[[first, second]].float()
        with torch.no_grad():
            wanted = subject.model.decode(torch.lerp(means[:1], means[1:], torch.linspace(0, 1, 11)[:, None]))
        np.testing.assert_allclose(line[1:-1], wanted[:, 0].numpy(), rtol=1e-5)
        seen += [first, second]
    assert 2 <= len(found) <= 4
    assert len(set(seen)) == len(seen)


def test_interpolation_joins_six_pairs_at_most_and_any_images_where_there_are_no_classes() -> None:
    figure = draw([0] * 20, [2.0, 1.0])["interpolation"]
    assert cells(figure, 13).shape[0] == 6
    assert [text.get_text() for text in figure.axes[0].get_yticklabels()] == [""] * 6


# What the numbers look like


def test_the_aggregate_posterior_is_made_of_one_draw_for_each_image() -> None:
    means = 0.5 * torch.randn(4000, 2, generator=torch.Generator().manual_seed(0))
    log_variances = torch.full_like(means, np.log(0.75))
    subject = subject_of([0] * 4000, [0.5, 3.0], GREY, means=means, log_variances=log_variances)
    panels = gallery.plot_all(subject)["aggregate"].axes
    assert [axes.get_title(loc="left") for axes in panels] == ["z₁: 3.00 nats", "z₀: 0.50 nats"]
    for axes in panels:  # 0.25 + 0.75 is the variance of the prior
        density, edges, _ = axes.patches[0].get_data()
        places, shares = (edges[1:] + edges[:-1]) / 2, density * np.diff(edges)
        assert (shares * places).sum() == pytest.approx(0, abs=0.06)
        assert (shares * places**2).sum() == pytest.approx(1, abs=0.08)


def test_the_aggregate_posterior_shows_twelve_dimensions_at_most() -> None:
    assert len(draw([0, 1], [1.0] * 400)["aggregate"].axes) == 12


def test_bounds_are_drawn_where_the_likelihood_is_one_of_these_pixels() -> None:
    bounds = torch.tensor([[-3.0, -2.0, -1.0]] * 4)
    subject = subject_of([0, 1, 2, 3], [1.0], config=settings(nll_samples=5), bounds=bounds)
    pictures = gallery.plot_all(subject)
    [line] = pictures["bounds"].axes[0].lines
    assert (list(line.get_xdata()), list(line.get_ydata())) == ([1, 2, 5], [-3.0, -2.0, -1.0])
    others = gallery.plot_all(replace(subject, data=replace(subject.data, is_density=False)))
    assert set(pictures) - set(others) == {"bounds"}
    names = [[axes.get_title(loc="left") for axes in found["extremes"].axes] for found in (pictures, others)]
    assert names == [
        [f"{which} reconstructed: {measure}, nats" for which in ("Best", "Worst")]
        for measure in ("−log p(x|z)", "cross-entropy")
    ]


@pytest.mark.parametrize(("images", "count"), [(2, 1), (5, 2), (50, 10)])
def test_extremes_are_the_best_and_the_worst_with_their_nats(images: int, count: int) -> None:
    subject = subject_of([0] * images, [2.0, 1.0], GREY)
    losses = sorted(subject.scores.reconstruction.tolist())
    best, worst = gallery.plot_all(subject)["extremes"].axes
    assert [text.get_text() for text in best.get_xticklabels()] == [f"{value:.1f}" for value in losses[:count]]
    assert [text.get_text() for text in worst.get_xticklabels()] == [f"{value:.1f}" for value in losses[::-1][:count]]
    assert [text.get_text() for text in best.get_yticklabels()] == ["original", "reconstruction"]


def test_extremes_show_the_very_draw_that_was_scored() -> None:
    subject = subject_of([0] * 9, [2.0, 1.0])
    best, _worst = gallery.plot_all(subject)["extremes"].axes
    seen = torch.cat([x for x, _ in subject.images.seen(SETTINGS.seed)])[subject.scores.reconstruction.argsort()[:4]]
    with torch.no_grad():
        decoded = subject.model.decode(subject.model.posterior(seen)[0])
    canvas = np.asarray(best.images[0].get_array())
    for row, images in ((1, seen), (2, decoded)):
        top = row * (SHAPE[1] + 1)
        found = canvas[top : top + SHAPE[1]]
        np.testing.assert_allclose(found, tile(images.numpy(), 4, 1)[0], rtol=1e-6)


@pytest.mark.parametrize(
    ("kind", "shift", "scale"), [("vae", 0.5, 0.25), ("hierarchical", 0.0, 1.0), ("autoencoder", 0.0, 1.0)]
)
def test_a_decoder_that_gives_each_pixel_a_deviation_shows_it(kind: str, shift: float, scale: float) -> None:
    model = some_model(kind=kind, likelihood="gaussian_per_pixel", latent=2)
    latent = 4 if kind == "hierarchical" else 2
    with torch.no_grad():
        for parameter in model.decoder.parameters():
            parameter.zero_()
        list(model.decoder.parameters())[-1].view(2, -1)[1] = -1.0  # log sigma, of every pixel
    pictures = draw([0, 1, 2], [1.0] * latent, image_facts("none", shift, scale), model)
    shown = [np.asarray(image.get_array()) for image in pictures["sigma"].axes[0].images[6:9]]
    # The likelihood bounds log sigma between -6 and 2, softly: -1 becomes a little less.
    np.testing.assert_allclose(shown, np.full((3, *SHAPE[1:]), np.exp(-1.0) * scale), rtol=0.05)
    assert np.ptp(shown) < 1e-6
    assert drawn(pictures["sigma"])


def test_likelihoods_without_a_deviation_for_each_pixel_show_none() -> None:
    for likelihood in ("bernoulli", "gaussian", "gaussian_learned"):
        assert "sigma" not in draw([0, 1], [1.0, 1.0], GREY, some_model(latent=2, likelihood=likelihood))


# Tiles


def pixels(content: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(content)) as image:
        return np.asarray(image)


@pytest.mark.parametrize("plane", ["dimensions", "principal"])
def test_tiles_are_the_decoded_images_edge_to_edge(plane: str) -> None:
    subject = subject_of([0, 1, 2, 3, 4], [2.0, 0.01, 1.0], config=with_plane(plane))
    model = subject.model
    pictures, facts = gallery.tiles(subject)
    assert tuple(pictures) == gallery.TILES
    grid, moved = (pixels(pictures[name]) for name in gallery.TILES)
    assert grid.shape == (3 * 2, 3 * 3)
    assert moved.shape == (2 * 2, 21 * 3)
    chosen = walks.plane_of_dimensions(subject.scores.latent_kl, subject.frame)
    z = (chosen if plane == "dimensions" else walks.principal_components(subject.means).plane).latents(3, 2.0)
    along = torch.zeros(21, 3)
    along[:, 2] = torch.linspace(-2, 2, 21)
    with torch.no_grad():
        first, last, walk = model.decode(z[:1].float()), model.decode(z[-1:].float()), model.decode(along)
    for found, wanted in ((grid[:2, :3], first), (grid[-2:, -3:], last)):
        np.testing.assert_allclose(found, wanted[0, 0].numpy() * 255, atol=0.51)
    np.testing.assert_allclose(moved[2:], tile(walk.numpy(), 21, 0)[0] * 255, atol=0.51)
    names = ["z0", "z2"] if plane == "dimensions" else ["component 1", "component 2"]
    unit = "prior standard deviations" if plane == "dimensions" else "standard deviations of posterior means"
    assert facts.model_dump(mode="json") == {
        "image": [2, 3],
        "range": 2.0,
        "grid": {"steps": 3, "names": names, "unit": unit},
        "traversals": {
            "steps": 21,
            "unit": "prior standard deviations",
            "use": "nats",
            "dimensions": [{"number": 0, "use": 2.0}, {"number": 2, "use": 1.0}],
        },
    }


def test_tiles_are_the_same_each_time_and_draw_nothing() -> None:
    subject = subject_of([0, 1, 2], [0.0], GREY, some_model(kind="autoencoder", latent=1))
    before = torch.get_rng_state()
    first, second = gallery.tiles(subject), gallery.tiles(subject)
    assert first == second
    assert torch.equal(torch.get_rng_state(), before)
    assert first[1].grid.names == ("z0", "")


def test_images_of_three_channels_are_drawn_and_cut_in_colour() -> None:
    subject = subject_of([0, 1] * 3, [1.0, 1.0], image_facts("none", channels=3), some_model((3, 2, 3), latent=2))
    assert all(map(drawn, gallery.plot_all(subject).values()))
    tiles, _ = gallery.tiles(subject)
    assert pixels(tiles["grid_tiles"]).shape == (6, 9, 3)


def test_images_go_to_the_device_once_and_components_are_found_once(monkeypatch: pytest.MonkeyPatch) -> None:
    copied, found, components = list[int](), list[int](), walks.principal_components

    class Counted(Batches):
        def __init__(self, images: Images, *rest: Any) -> None:
            copied.append(len(images))
            super().__init__(images, *rest)

    monkeypatch.setattr("reparam.evaluate.subject.Batches", Counted)
    monkeypatch.setattr(walks, "principal_components", lambda means: found.append(len(means)) or components(means))
    subject = Subject.scored(some_model(), some_data(some_split([0, 1, 2, 0])), with_plane("principal"))
    assert {"components", "latent_grid", "latent_scatter"} <= set(gallery.plot_all(subject))
    gallery.tiles(subject)
    assert (copied, found) == ([4], [4])


def test_principal_components_of_many_dimensions_are_those_of_all_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    means = torch.randn(5, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    known = walks.principal_components(means)
    monkeypatch.setattr(walks, "MANY", 7)
    found = walks.principal_components(means)
    torch.testing.assert_close(found.variances, known.variances[:5])
    torch.testing.assert_close(found.directions[:4], known.directions[:4])  # five images vary in four directions
    assert found.directions.shape == (5, 8)
