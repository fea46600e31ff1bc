import io
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import matplotlib.image
import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.cbook import is_math_text
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.offsetbox import AnnotationBbox
from PIL import Image
from subjects import settings, some_data, some_model, some_scores, some_split

from reparam.evaluate.subject import Subject
from reparam.figures.curves import plot_bounds, plot_losses, plot_outliers, plot_training
from reparam.figures.images import (
    as_shown,
    pixel_png,
    plot_blocks,
    plot_deviations,
    plot_gradient_noise,
    plot_grid,
    plot_rows,
    plot_table,
    tile,
)
from reparam.figures.latents import (
    axis_labels,
    plot_aggregate,
    plot_components,
    plot_latent_grid,
    plot_latent_scatter,
    plot_latent_use,
)
from reparam.figures.style import COLOURS, Array, literal, png


def some_images(count: int, channels: int = 1) -> Array:
    return np.random.default_rng(0).random((count, channels, 3, 4), dtype=np.float32)


def pixels(content: bytes) -> Array:
    """Decode a PNG. Shapes: (H, W, 4)."""
    return np.asarray(matplotlib.image.imread(io.BytesIO(content)))


def is_drawn(figure: Figure) -> bool:
    """Whether the rendered figure shows anything on its white paper."""
    picture = pixels(png(figure))[..., :3]
    return bool((picture < 0.5).any())


def named(axes: Axes) -> tuple[list[str], list[str]]:
    """The names of columns and rows, without what makes matplotlib take them literally."""
    columns, rows = (
        [text.get_text().replace("\\", "") for text in labels]
        for labels in (axes.get_xticklabels(), axes.get_yticklabels())
    )
    return columns, rows


def some_history(epochs: int) -> dict[str, list[float]]:
    names = [f"{split}_{term}" for split in ("train", "validation") for term in ("loss", "reconstruction", "kl")]
    curves = {name: [index + 100 / epoch for epoch in range(1, epochs + 1)] for index, name in enumerate(names)}
    return {"epoch": [float(epoch) for epoch in range(1, epochs + 1)], **curves}


# Tiles


def test_tiles_of_one_channel_lie_row_by_row_on_white() -> None:
    images = np.array([[[[0.1, 0.2]]], [[[0.3, 0.4]]], [[[0.5, 0.6]]]])  # (3, 1, 1, 2)
    assert tile(images, columns=2, gap=1).tolist() == [
        [
            [0.1, 0.2, 1.0, 0.3, 0.4],
            [1.0, 1.0, 1.0, 1.0, 1.0],
            [0.5, 0.6, 1.0, 1.0, 1.0],  # the last row is not full
        ]
    ]


def test_tiles_of_three_channels_keep_their_colours() -> None:
    images = np.arange(12).reshape(2, 3, 2, 1) / 12
    found = tile(images, columns=2, gap=0)
    assert found.shape == (3, 2, 2)
    for channel in range(3):
        assert found[channel].tolist() == [
            [images[0, channel, 0, 0], images[1, channel, 0, 0]],
            [images[0, channel, 1, 0], images[1, channel, 1, 0]],
        ]


def test_tiles_keep_their_number_type() -> None:
    assert tile(some_images(2), 2, gap=3).dtype == np.float32


# Files


def test_a_figure_gives_the_same_bytes_each_time() -> None:
    def render() -> bytes:
        return png(plot_grid(some_images(4), 2, "Samples"))

    assert render() == render()


def test_a_png_holds_the_picture_and_no_word_on_the_software() -> None:
    content = png(plot_grid(some_images(4), 2, "Samples"))
    assert content.startswith(b"\x89PNG\r\n\x1a\n")
    assert b"tEXt" not in content
    assert b"atplotlib" not in content
    height, width = pixels(content).shape[:2]
    assert 600 < height < 1200
    assert 600 < width < 1200


def test_a_png_has_room_for_every_label_and_no_more() -> None:
    names = {f"z{number}: {number} nats": np.zeros(9) for number in range(5)}
    points = np.array([[0.0, 1.0], [2.0, -1.0], [1.0, 1.0]])
    for figure in (
        plot_training(some_history(3), 2),
        plot_aggregate(names),
        plot_components(points[0], points, np.arange(3)),
        plot_losses({"first": {1: 3.0, 2: 2.0}, "second": {1: 4.0, 2: 1.0}}, "validation loss"),
        plot_bounds([1, 10, 100], [-3.0, -2.0, -1.5], [0.1, 0.1, 0.1]),
        plot_outliers(points[0], points[1], 0.9),
    ):
        ink = (pixels(png(figure))[..., :3] < 0.95).any(-1)
        for lines in (ink, ink[::-1], ink.T, ink.T[::-1]):
            assert int(lines.any(1).argmax()) in range(13, 32)  # 0.08 inches are 16 pixels


def test_rows_of_densities_have_a_label_each_that_covers_no_title() -> None:
    figure = plot_aggregate({f"z{number}: 1.00 nats": np.zeros(9) for number in range(8)})
    png(figure)
    assert [axes.get_ylabel() for axes in figure.axes] == ["density", "", "", ""] * 2
    labels = [axes.yaxis.label for axes in figure.axes[::4]]
    titles = [axes._left_title.get_window_extent() for axes in figure.axes]  # type: ignore[attr-defined]
    assert not any(label.get_window_extent().overlaps(title) for label in labels for title in titles)


def test_the_style_does_not_leak() -> None:
    before = dict(matplotlib.rcParams)
    png(plot_grid(some_images(1), 1, "Samples"))
    assert dict(matplotlib.rcParams) == before


# Figures


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("count", [1, 3, 10])
def test_rows_of_images_have_a_name_each_and_a_label_above_each_column(count: int, channels: int) -> None:
    rows = {"original": some_images(count, channels), "reconstruction": 1 - some_images(count, channels)}
    figure = plot_rows(rows, labels=list(range(10, 10 + count)))
    [axes] = figure.axes
    assert named(axes) == ([str(10 + i) for i in range(count)], ["original", "reconstruction"])
    shown = iter(axes.images)
    for row, images in enumerate(rows.values()):
        for column, (image, found) in enumerate(zip(images, shown, strict=False)):
            np.testing.assert_array_equal(found.get_array(), as_shown(image))
            assert found.get_clim() == (0, 1)  # black is 0 and white is 1, whatever the image holds
            left, right, bottom, top = found.get_extent()
            assert (right - left, bottom - top) == pytest.approx((1, 3 / 4))  # of 4x3 pixels
            assert axes.get_xticks()[column] == pytest.approx((left + right) / 2)
            assert axes.get_yticks()[row] == pytest.approx((bottom + top) / 2)
    assert (axes.get_xlim(), axes.get_ylim()) == ((0, right), (bottom, 0))
    assert is_drawn(figure)


NAMES = ["US$_x_$", "_a", "$5 and $6", "b"]


@pytest.mark.parametrize(
    ("text", "escaped"), [("b", "b"), ("$5", r"\$5"), ("a$_x_$", r"a\$_x_\$"), (r"a\$_x_\$", r"a\$_x_\$")]
)
def test_dollars_are_escaped_once(text: str, escaped: str) -> None:
    assert literal(text) == escaped
    assert not is_math_text(escaped)


def test_names_of_classes_are_no_formulas() -> None:
    rows = plot_rows({"original": some_images(4)}, NAMES)
    assert named(rows.axes[0])[0] == NAMES
    assert is_drawn(rows)
    plane = scattered(np.zeros((4, 2)), np.array(NAMES))
    legend = plane.axes[0].get_legend()
    assert legend is not None
    assert [text.get_text().replace("\\", "") for text in legend.get_texts()] == sorted(NAMES)
    assert is_drawn(plane)


def test_a_subject_gives_names_of_classes_that_can_be_drawn_in_rows_and_tables() -> None:
    data = replace(some_data(some_split(range(4))), classes=NAMES)
    subject = Subject(some_model(), data, settings(), some_scores(4, 3))
    names = subject.names(np.arange(4))
    assert [name.replace("\\", "") for name in names] == NAMES
    assert named(plot_rows({"": some_images(4)}, names).axes[0])[0] == NAMES
    assert is_drawn(plot_table(some_images(8), [f"{name} to b" for name in names], ["0", "1"], "Table"))


@pytest.mark.parametrize("channels", [1, 3])
def test_an_image_grid_shows_every_image(channels: int) -> None:
    images = some_images(6, channels)
    figure = plot_grid(images, 3, "Six samples")
    [axes] = figure.axes
    shown = axes.images[0]
    tiled = tile(images, 3, gap=1)
    np.testing.assert_array_equal(shown.get_array(), tiled[0] if channels == 1 else tiled.transpose(1, 2, 0))
    assert axes.get_title(loc="left") == "Six samples"
    assert is_drawn(figure)


@pytest.mark.parametrize("steps", [2, 5])
def test_a_latent_grid_centres_its_outermost_images_on_the_limit(steps: int) -> None:
    figure = plot_latent_grid(some_images(steps**2), 2.0, ("across", "up"), "A grid")
    [axes] = figure.axes
    left, right, bottom, top = axes.images[0].get_extent()
    cell = (right - left) / steps
    assert (left + cell / 2, right - cell / 2, bottom + cell / 2, top - cell / 2) == pytest.approx((-2, 2, -2, 2))
    assert axes.images[0].origin == "upper"  # the first row of images belongs to the largest value of the second axis
    assert (axes.get_xlabel(), axes.get_ylabel(), axes.get_title(loc="left")) == ("across", "up", "A grid")
    assert is_drawn(figure)


def scattered(points: Array, labels: Any, pictures: Array | None = None) -> Figure:
    return plot_latent_scatter(points, labels, ("across", "up"), "Images", pictures)


@pytest.mark.parametrize("classes", [2, 10, 12])
def test_a_latent_scatter_shows_every_image_once_under_its_class(classes: int) -> None:
    means = np.random.default_rng(0).normal(size=(24, 2))
    labels = np.arange(24) % classes
    figure = scattered(means, labels)
    [axes] = figure.axes
    # In the order of the images, so that no class covers the others; behind the points, one empty mark for each class.
    points, *marks = axes.collections
    np.testing.assert_array_equal(np.asarray(points.get_offsets()), means)
    assert [len(mark.get_offsets()) for mark in marks] == [0] * classes
    colours = np.concatenate([mark.get_facecolor() for mark in marks])
    np.testing.assert_array_equal(points.get_facecolor()[:, :3], colours[labels][:, :3])
    assert len(np.unique(colours, axis=0)) == min(classes, len(COLOURS))
    legend = axes.get_legend()
    assert legend is not None
    assert [text.get_text() for text in legend.get_texts()] == [str(label) for label in range(classes)]
    assert (axes.get_xlabel(), axes.get_ylabel(), axes.get_title(loc="left")) == ("across", "up", "Images")
    assert is_drawn(figure)


@pytest.mark.parametrize("classes", [1, 21])
def test_a_latent_scatter_has_no_legend_where_it_would_say_nothing_or_too_much(classes: int) -> None:
    figure = scattered(np.random.default_rng(0).normal(size=(42, 2)), np.arange(42) % classes, some_images(classes))
    [axes] = figure.axes
    assert axes.get_legend() is None
    assert len(axes.artists) == (1 if classes == 1 else 0)
    assert len(axes.collections) == 1


@pytest.mark.parametrize("channels", [1, 3])
def test_a_latent_scatter_pins_a_picture_on_the_median_of_each_class(channels: int) -> None:
    points = np.array([[0.0, 1.0], [2.0, 5.0], [9.0, 3.0], [-1.0, -1.0]])
    pictures = some_images(2, channels)
    figure = scattered(points, np.array(["cat", "cat", "cat", "dog"]), pictures)
    cat, dog = figure.axes[0].artists
    assert isinstance(cat, AnnotationBbox)
    assert isinstance(dog, AnnotationBbox)
    assert (cat.xy, dog.xy) == ((2.0, 3.0), (-1.0, -1.0))
    for pin, picture, colour in zip((cat, dog), pictures, COLOURS, strict=False):
        np.testing.assert_array_equal(pin.offsetbox.get_data(), as_shown(picture))
        assert to_hex(pin.patch.get_edgecolor()).upper() == colour
    assert is_drawn(figure)


@pytest.mark.parametrize(("images", "size"), [(1, 14), (1_000, 6), (100_000, 2)])
def test_the_more_images_a_latent_scatter_shows_the_smaller_they_are(images: int, size: float) -> None:
    figure = scattered(np.zeros((images, 2)), np.zeros(images, np.int32))
    assert figure.axes[0].collections[0].get_sizes().tolist() == [size]


def test_a_latent_scatter_of_a_single_image_can_be_drawn() -> None:
    assert is_drawn(scattered(np.zeros((1, 2)), np.array([4])))


@pytest.mark.parametrize("latent", [1, 2, 60])
def test_latent_use_orders_the_dimensions_by_their_kl(latent: int) -> None:
    kl = np.arange(1, latent + 1, dtype=float)  # the last dimension is the most used
    active = kl > latent / 2
    figure = plot_latent_use(kl, active)
    [axes] = figure.axes
    bars = axes.containers[0].patches
    assert [bar.get_height() for bar in bars] == sorted(kl, reverse=True)
    assert [text.get_text() for text in axes.get_xticklabels()] == [str(i) for i in reversed(range(latent))]
    wanted = [COLOURS[0] if used else COLOURS[-1] for used in reversed(active)]
    assert [to_hex(bar.get_facecolor()).upper() for bar in bars] == wanted
    assert axes.get_title(loc="left") == f"{active.sum()} of {latent} latent dimensions are active"
    assert is_drawn(figure)


def test_samples_of_a_prior_that_is_no_standard_normal_are_shown_as_they_are() -> None:
    rng = np.random.default_rng(0)
    prior = np.stack([rng.uniform(-1, 1, 10_000), rng.uniform(0, 2, 10_000)], 1)
    figure = plot_aggregate({"first": rng.normal(size=100), "second": rng.normal(size=100)}, prior)
    for axes, middle in zip(figure.axes, (0.0, 1.0), strict=True):
        _, outline = axes.patches
        heights, edges, _ = outline.get_data()
        assert heights[(edges[:-1] > middle - 0.9) & (edges[1:] < middle + 0.9)] == pytest.approx(0.5, abs=0.06)
        assert heights[(edges[1:] < middle - 1.1) | (edges[:-1] > middle + 1.1)].max() == 0
    assert [text.get_text() for text in figure.axes[0].get_legend().get_texts()] == ["q(z)", "p(z)"]
    assert figure.get_supxlabel() == "z"


@pytest.mark.parametrize(("is_code", "use"), [(False, "KL (nats per image)"), (True, "variance over images")])
def test_a_code_has_a_variance_for_a_kl(is_code: bool, use: str) -> None:
    [axes] = plot_latent_use(np.array([1.0, 0.5]), np.array([True, False]), is_code).axes
    assert axes.get_ylabel() == use


def test_hundreds_of_latent_dimensions_go_without_numbers() -> None:
    figure = plot_latent_use(np.linspace(0, 1, 400), np.arange(400) > 390)
    [axes] = figure.axes
    assert len(axes.containers[0].patches) == 400
    assert len(axes.get_xticks()) < 20
    assert axes.get_xlabel() == "latent dimensions, from most to least used"
    assert is_drawn(figure)


def test_axes_of_a_plane_name_coordinates_and_unit() -> None:
    assert axis_labels(("z7", "z12"), "metres") == ("z₇  (metres)", "z₁₂  (metres)")
    assert axis_labels(("component 1", ""), "metres") == ("component 1  (metres)", "")


def test_components_show_shares_of_the_variance_and_their_sum() -> None:
    points, labels = np.array([[0.0, 1.0], [2.0, -1.0], [1.0, 1.0]]), np.array([0, 1, 1])
    figure = plot_components(np.array([3.0, 1.0, 0.0]), points, labels)
    shares, plane = figure.axes
    assert [bar.get_height() for bar in shares.patches] == [0.75, 0.25, 0.0]
    assert list(shares.lines[0].get_ydata()) == [0.75, 1.0, 1.0]
    np.testing.assert_array_equal(np.asarray(plane.collections[0].get_offsets()), points)
    assert is_drawn(figure)


@pytest.mark.parametrize("latent", [3, 400])
def test_components_of_codes_that_are_all_equal_can_be_drawn(latent: int) -> None:
    figure = plot_components(np.zeros(latent), np.zeros((5, 2)), np.zeros(5, int))
    assert len(figure.axes[0].patches) == min(latent, 20)
    assert is_drawn(figure)


@pytest.mark.parametrize("dimensions", [1, 4, 5, 12])
def test_an_aggregate_posterior_has_a_panel_for_each_dimension(dimensions: int) -> None:
    z = {f"z{number}": np.random.default_rng(number).normal(size=2000) for number in range(dimensions)}
    figure = plot_aggregate(z)
    assert [axes.get_title(loc="left") for axes in figure.axes] == list(z)
    for axes, values in zip(figure.axes, z.values(), strict=True):
        [steps] = axes.patches
        density, edges, _ = steps.get_data()
        inside = np.mean((values >= edges[0]) & (values <= edges[-1]))
        assert (density * np.diff(edges)).sum() == pytest.approx(inside)
        [normal] = axes.lines
        assert max(normal.get_ydata()) == pytest.approx((2 * np.pi) ** -0.5)
    assert is_drawn(figure)


def test_an_aggregate_posterior_far_from_the_prior_is_in_view() -> None:
    [axes] = plot_aggregate({"far": np.full(10, 9.0)}).axes
    low, high = axes.get_xlim()
    assert low < -9
    assert high > 9


@pytest.mark.parametrize("channels", [1, 3])
def test_an_image_table_names_rows_and_columns_in_the_middle_of_their_images(channels: int) -> None:
    images = some_images(6, channels)  # of 3x4 pixels
    figure = plot_table(images, ["above", "below"], ["a", "b", "c"], "Six images", "steps")
    [axes] = figure.axes
    np.testing.assert_array_equal(axes.images[0].get_array(), as_shown(tile(images, 3, 1)))
    assert list(axes.get_xticks()) == [1.5, 6.5, 11.5]
    assert list(axes.get_yticks()) == [1.0, 5.0]
    assert [text.get_text() for text in axes.get_xticklabels()] == ["a", "b", "c"]
    assert [text.get_text() for text in axes.get_yticklabels()] == ["above", "below"]
    assert (axes.get_title(loc="left"), axes.get_xlabel()) == ("Six images", "steps")
    assert is_drawn(figure)


def test_image_blocks_have_a_title_and_labels_each() -> None:
    blocks = {name: {"original": some_images(2), "reconstruction": 1 - some_images(2)} for name in ("Best", "Worst")}
    figure = plot_blocks(blocks, {"Best": ["1", "2"], "Worst": ["9", "8"]})
    best, worst = figure.axes
    assert (best.get_title(loc="left"), worst.get_title(loc="left")) == ("Best", "Worst")
    assert [text.get_text() for text in worst.get_xticklabels()] == ["9", "8"]
    assert [text.get_text() for text in worst.get_yticklabels()] == ["original", "reconstruction"]
    wanted = tile(np.concatenate([some_images(2), 1 - some_images(2)]), 2, 1)[0]
    np.testing.assert_array_equal(best.images[0].get_array(), wanted)
    assert is_drawn(figure)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("sigma", [0.1, 3.0])
def test_deviation_maps_are_below_the_images_on_one_scale(channels: int, sigma: float) -> None:
    deviations = np.full((2, 3, 4), 0.1)
    deviations[1, 0, 0] = sigma
    figure = plot_deviations({"original": some_images(2, channels)}, deviations, ["7", "8"])
    axes, bar = figure.axes
    for shown, deviation in zip(axes.images[2:], deviations, strict=True):
        np.testing.assert_array_equal(shown.get_array(), deviation)
        assert shown.get_clim() == pytest.approx((0.1, max(sigma, 0.101)))
        assert shown.get_cmap().name == "cividis"
    assert axes.images[0].get_cmap().name == "gray"
    assert bar.get_ylabel() == "sigma\n(black to white is 1)"
    assert named(axes) == (["7", "8"], ["original", "sigma"])
    assert is_drawn(figure)


def test_bounds_are_plotted_against_the_number_of_samples_in_their_band() -> None:
    figure = plot_bounds([1, 2, 5, 10, 15], [-9.0, -8.0, -7.5, -7.25, -7.125], [0.5] * 5)
    [axes] = figure.axes
    assert axes.get_xscale() == "log"
    assert [text.get_text() for text in axes.get_xticklabels()] == ["1", "15"]  # 10 would touch 15
    [line] = axes.lines
    assert list(line.get_xdata()) == [1, 2, 5, 10, 15]
    assert list(line.get_ydata()) == [-9.0, -8.0, -7.5, -7.25, -7.125]
    corners = axes.collections[0].get_paths()[0].vertices
    assert (corners[:, 1].min(), corners[:, 1].max()) == (-9.5, -6.625)
    assert [text.get_text() for text in axes.texts] == ["K = 15: −7.12 ± 0.50"]
    assert is_drawn(figure)


def test_a_bound_of_one_sample_can_be_drawn() -> None:
    figure = plot_bounds([1], [-9.0], [0.5])
    assert [text.get_text() for text in figure.axes[0].get_xticklabels()] == ["1"]
    assert is_drawn(figure)


@pytest.mark.parametrize("channels", [1, 3])
def test_a_pixel_png_is_the_image_pixel_by_pixel(channels: int) -> None:
    image = np.array([0.0, 0.25, 1.0, 0.5, 0.75, 0.1] * channels).reshape(channels, 2, 3)
    content = pixel_png(image)
    with Image.open(io.BytesIO(content)) as found:
        np.testing.assert_array_equal(np.asarray(found), (as_shown(image) * 255).round())
    assert pixel_png(image) == content


def test_gradient_noise_is_drawn_on_logarithmic_axes_a_line_for_each_estimator() -> None:
    noise = {"score function": {1: 100.0, 5: 20.0, 50: 2.0}, "reparameterised": {1: 1.0, 5: 0.2, 50: 0.02}}
    figure = plot_gradient_noise(noise)
    [axes] = figure.axes
    assert (axes.get_xscale(), axes.get_yscale()) == ("log", "log")
    assert {
        line.get_label(): dict(zip(line.get_xdata(), line.get_ydata(), strict=True)) for line in axes.lines
    } == noise
    assert [text.get_text() for text in axes.get_xticklabels()] == ["1", "5", "50"]
    assert is_drawn(figure)


@pytest.mark.parametrize("epochs", [1, 2, 100])
def test_training_curves_show_both_splits_and_the_best_epoch(epochs: int) -> None:
    history = some_history(epochs)
    figure = plot_training(history, best_epoch=epochs)
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["loss", "reconstruction", "KL"]
    for axes, term in zip(figure.axes, ("loss", "reconstruction", "kl"), strict=True):
        train, validation, best = axes.lines
        for line, split in ((train, "train"), (validation, "validation")):
            assert line.get_label() == split
            assert list(line.get_xdata()) == history["epoch"]
            assert list(line.get_ydata()) == history[f"{split}_{term}"]
        assert set(best.get_xdata()) == {epochs}
        left, right = axes.get_xlim()
        shown = [tick for tick in axes.get_xticks() if left <= tick <= right]
        assert 1 <= min(shown) <= max(shown) <= epochs
        assert [tick for tick in shown if tick % 1] == []
    assert is_drawn(figure)


def test_training_curves_without_validation_show_training_alone() -> None:
    history = {name: curve for name, curve in some_history(4).items() if not name.startswith("validation")}
    figure = plot_training(history, best_epoch=4)
    for axes, term in zip(figure.axes, ("loss", "reconstruction", "kl"), strict=True):
        train, best = axes.lines
        assert (train.get_label(), list(train.get_ydata())) == ("train", history[f"train_{term}"])
        assert set(best.get_xdata()) == {4}
        assert axes.get_ylim()[0] < min(history[f"train_{term}"]) < max(history[f"train_{term}"]) < axes.get_ylim()[1]
    legend = figure.axes[0].get_legend()
    assert legend is not None
    assert [text.get_text() for text in legend.get_texts()] == ["train"]
    assert is_drawn(figure)


def test_training_curves_show_the_schedules_that_the_history_knows() -> None:
    history = some_history(3)
    figure = plot_training(history | {"beta": [0.0, 0.5, 1.0], "learning_rate": [3e-4, 2e-4, 1e-4]}, 2)
    titles = [axes.get_title(loc="left") for axes in figure.axes]
    assert titles == ["loss", "reconstruction", "KL", "beta", "learning rate"]
    for axes, values in zip(figure.axes[3:], ([0.0, 0.5, 1.0], [3e-4, 2e-4, 1e-4]), strict=True):
        curve, best = axes.lines
        assert list(curve.get_ydata()) == values
        assert set(best.get_xdata()) == {2}
        assert axes.get_ylabel() == ""
    assert [axes.get_ylabel() for axes in figure.axes[:3]] == ["nats per image"] * 3
    assert is_drawn(figure)


def test_training_curves_of_an_autoencoder_know_no_kl() -> None:
    history = some_history(3) | {"train_kl": [0.0] * 3, "validation_kl": [0.0] * 3, "learning_rate": [0.1] * 3}
    figure = plot_training(history, 2)
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["loss", "reconstruction", "learning rate"]


def test_training_curves_let_the_first_epochs_leave_at_the_top() -> None:
    history = some_history(100)
    figure = plot_training(history, best_epoch=100)
    low, high = figure.axes[0].get_ylim()
    loss = history["train_loss"] + history["validation_loss"]
    assert low < min(loss)
    assert history["validation_loss"][5] < high < history["train_loss"][1]


def test_constant_curves_can_be_drawn() -> None:
    history = {name: [1.0] * len(values) for name, values in some_history(3).items()} | {"epoch": [1.0, 2.0, 3.0]}
    assert is_drawn(plot_training(history, best_epoch=1))


def test_a_matplotlibrc_of_the_user_changes_nothing(tmp_path: Path) -> None:
    code = (
        "import hashlib, numpy as np; from reparam.figures.style import png; "
        "from reparam.figures.latents import plot_latent_use; "
        "picture = png(plot_latent_use(np.array([1.0, 0.5]), np.array([True, False]))); "
        "print(hashlib.sha256(picture).hexdigest())"
    )
    rc = tmp_path / "matplotlibrc"
    rc.write_text("axes.grid: True\naxes.facecolor: yellow\nfont.size: 20\n")
    source = str(Path(sys.modules[png.__module__].__file__).parents[2])
    environments = [os.environ | {"PYTHONPATH": source} | extra for extra in ({}, {"MATPLOTLIBRC": str(rc)})]
    plain, coloured = (
        subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True).stdout
        for env in environments
    )
    assert len(plain.strip()) == 64
    assert coloured == plain


def test_outliers_are_shown_beside_the_scored_images_as_shares() -> None:
    usual, unusual = np.linspace(90, 110, 50), np.linspace(140, 160, 20)
    (axes,) = plot_outliers(usual, unusual, 1.0).axes
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["scored images", "other data"]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("NLL (nats per image)", "share of images")
    assert axes.get_title(loc="left") == "Other data is recognised by its NLL with an AUROC of 1.000"
    heights = [patch.get_height() for container in axes.containers[:1] for patch in container]
    assert sum(heights) == pytest.approx(1.0)


def test_outliers_that_are_all_the_same_can_be_drawn() -> None:
    figure = plot_outliers(np.full(3, 7.0), np.full(2, 7.0), 0.5)
    assert png(figure).startswith(b"\x89PNG")


def test_losses_of_experiments_have_a_line_each_of_another_look() -> None:
    (axes,) = plot_losses({f"_{number}$": {1: 30.0, 2: 25.0} for number in range(12)}, "validation loss").axes
    lines = axes.get_lines()
    assert len({(line.get_color(), line.get_linestyle()) for line in lines}) == 12
    assert (list(lines[3].get_xdata()), list(lines[3].get_ydata())) == ([1, 2], [30.0, 25.0])
    assert axes.get_legend().get_texts()[3].get_text() == r"3\$"
    assert axes.get_ylabel() == "validation loss (nats per image)"


def test_losses_that_are_no_numbers_leave_room_for_the_others() -> None:
    (axes,) = plot_losses({"a": {1: float("nan"), 2: float("inf")}, "b": {1: 30.0, 2: 25.0}}, "train loss").axes
    assert axes.get_ylim() == pytest.approx((25.0 - 0.3, 30.0 + 0.3))
