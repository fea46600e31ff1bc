import io
import os
import subprocess
import sys
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from reparam.evaluation import figures


def some_images(count: int, channels: int = 1) -> figures.Array:
    return np.random.default_rng(0).random((count, channels, 3, 4), dtype=np.float32)


def pixels(content: bytes) -> figures.Array:
    """Decode a PNG. Shapes: (H, W, 4)."""
    return np.asarray(matplotlib.image.imread(io.BytesIO(content)))


def is_drawn(figure: Figure) -> bool:
    """Whether the rendered figure shows anything on its white paper."""
    picture = pixels(figures.png(figure))[..., :3]
    return bool((picture < 0.5).any())


def some_history(epochs: int) -> dict[str, list[float]]:
    names = [f"{split}_{term}" for split in ("train", "validation") for term in ("loss", "reconstruction", "kl")]
    curves = {name: [index + 100 / epoch for epoch in range(1, epochs + 1)] for index, name in enumerate(names)}
    return {"epoch": [float(epoch) for epoch in range(1, epochs + 1)], **curves}


# Tiles


def test_tiles_of_one_channel_lie_row_by_row_on_white() -> None:
    images = np.array([[[[0.1, 0.2]]], [[[0.3, 0.4]]], [[[0.5, 0.6]]]])  # (3, 1, 1, 2)
    assert figures.tile(images, columns=2, gap=1).tolist() == [
        [
            [0.1, 0.2, 1.0, 0.3, 0.4],
            [1.0, 1.0, 1.0, 1.0, 1.0],
            [0.5, 0.6, 1.0, 1.0, 1.0],  # the last row is not full
        ]
    ]


def test_tiles_of_three_channels_keep_their_colours() -> None:
    images = np.arange(12).reshape(2, 3, 2, 1) / 12
    found = figures.tile(images, columns=2, gap=0)
    assert found.shape == (3, 2, 2)
    for channel in range(3):
        assert found[channel].tolist() == [
            [images[0, channel, 0, 0], images[1, channel, 0, 0]],
            [images[0, channel, 1, 0], images[1, channel, 1, 0]],
        ]


def test_tiles_keep_their_number_type() -> None:
    assert figures.tile(some_images(2), 2, gap=3).dtype == np.float32


# Files


def test_a_figure_gives_the_same_bytes_each_time() -> None:
    def render() -> bytes:
        return figures.png(figures.image_grid(some_images(4), 2, "Samples"))

    assert render() == render()


def test_a_png_holds_the_picture_and_no_word_on_the_software() -> None:
    content = figures.png(figures.image_grid(some_images(4), 2, "Samples"))
    assert content.startswith(b"\x89PNG\r\n\x1a\n")
    assert b"tEXt" not in content
    assert b"atplotlib" not in content
    height, width = pixels(content).shape[:2]
    assert 600 < height < 1200
    assert 600 < width < 1200


def test_the_style_does_not_leak() -> None:
    before = dict(matplotlib.rcParams)
    figures.png(figures.image_grid(some_images(1), 1, "Samples"))
    assert dict(matplotlib.rcParams) == before


# Figures


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("count", [1, 3, 10])
def test_rows_of_images_have_a_name_each_and_a_label_above_each_column(count: int, channels: int) -> None:
    rows = {"original": some_images(count, channels), "reconstruction": 1 - some_images(count, channels)}
    figure = figures.image_rows(rows, labels=list(range(10, 10 + count)))
    axes = figure.axes
    assert [plot.get_title() for plot in axes] == [str(10 + i) for i in range(count)] + [""] * count
    assert [axes[0].get_ylabel(), axes[count].get_ylabel()] == ["original", "reconstruction"]
    for row, images in enumerate(rows.values()):
        for column in range(count):
            wanted = images[column, 0] if channels == 1 else images[column].transpose(1, 2, 0)
            [shown] = axes[row * count + column].images
            np.testing.assert_array_equal(shown.get_array(), wanted)
            assert shown.get_clim() == (0, 1)  # black is 0 and white is 1, whatever the image holds
    assert is_drawn(figure)


@pytest.mark.parametrize("channels", [1, 3])
def test_an_image_grid_shows_every_image(channels: int) -> None:
    images = some_images(6, channels)
    figure = figures.image_grid(images, 3, "Six samples")
    [axes] = figure.axes
    shown = axes.images[0]
    tiled = figures.tile(images, 3, gap=1)
    np.testing.assert_array_equal(shown.get_array(), tiled[0] if channels == 1 else tiled.transpose(1, 2, 0))
    assert axes.get_title(loc="left") == "Six samples"
    assert is_drawn(figure)


@pytest.mark.parametrize("steps", [2, 5])
def test_a_latent_grid_centres_its_outermost_images_on_the_limit(steps: int) -> None:
    figure = figures.latent_grid(some_images(steps**2), limit=2.0, dimensions=(7, 3))
    [axes] = figure.axes
    left, right, bottom, top = axes.images[0].get_extent()
    cell = (right - left) / steps
    assert (left + cell / 2, right - cell / 2, bottom + cell / 2, top - cell / 2) == pytest.approx((-2, 2, -2, 2))
    assert axes.images[0].origin == "upper"  # the first row of images belongs to the largest value of the second axis
    assert "z_{7}" in axes.get_xlabel()
    assert "z_{3}" in axes.get_ylabel()
    assert is_drawn(figure)


@pytest.mark.parametrize("latent", [1, 2, 60])
@pytest.mark.parametrize("classes", [1, 10, 12])
def test_a_latent_scatter_shows_every_image_once_under_its_class(latent: int, classes: int) -> None:
    means = np.random.default_rng(0).normal(size=(24, latent))
    labels = np.arange(24) % classes
    plane = (latent - 1, 0)
    figure = figures.latent_scatter(means, labels, plane)
    [axes] = figure.axes
    # In the order of the images, so that no class covers the others; behind the points, one empty mark for each class.
    points, *marks = axes.collections
    np.testing.assert_array_equal(np.asarray(points.get_offsets()), means[:, list(plane)])
    assert [len(mark.get_offsets()) for mark in marks] == [0] * classes
    colours = np.concatenate([mark.get_facecolor() for mark in marks])
    np.testing.assert_array_equal(points.get_facecolor()[:, :3], colours[labels][:, :3])
    assert len(np.unique(colours, axis=0)) == min(classes, len(figures.COLOURS))
    legend = axes.get_legend()
    assert legend is not None
    assert [text.get_text() for text in legend.get_texts()] == [str(label) for label in range(classes)]
    assert f"z_{{{latent - 1}}}" in axes.get_xlabel()
    assert "z_{0}" in axes.get_ylabel()
    assert is_drawn(figure)


@pytest.mark.parametrize(("images", "size"), [(1, 14), (1_000, 6), (100_000, 2)])
def test_the_more_images_a_latent_scatter_shows_the_smaller_they_are(images: int, size: float) -> None:
    figure = figures.latent_scatter(np.zeros((images, 2)), np.zeros(images, np.int32), (0, 1))
    assert figure.axes[0].collections[0].get_sizes().tolist() == [size]


def test_a_latent_scatter_of_a_single_image_can_be_drawn() -> None:
    assert is_drawn(figures.latent_scatter(np.zeros((1, 2)), np.array([4]), (0, 1)))


@pytest.mark.parametrize("latent", [1, 2, 60])
def test_latent_use_orders_the_dimensions_by_their_kl(latent: int) -> None:
    kl = np.arange(1, latent + 1, dtype=float)  # the last dimension is the most used
    active = kl > latent / 2
    figure = figures.latent_use(kl, active)
    [axes] = figure.axes
    bars = axes.containers[0].patches
    assert [bar.get_height() for bar in bars] == sorted(kl, reverse=True)
    assert [text.get_text() for text in axes.get_xticklabels()] == [str(i) for i in reversed(range(latent))]
    wanted = [figures.COLOURS[0] if used else figures.COLOURS[-1] for used in reversed(active)]
    assert [to_hex(bar.get_facecolor()).upper() for bar in bars] == wanted
    assert axes.get_title(loc="left") == f"{active.sum()} of {latent} latent dimensions are active"
    assert is_drawn(figure)


@pytest.mark.parametrize(
    ("is_code", "use", "unit"),
    [(False, "KL (nats per image)", "prior standard deviations"), (True, "variance over images", "units of the code")],
)
def test_a_code_has_units_of_its_own_and_a_variance_for_a_kl(is_code: bool, use: str, unit: str) -> None:
    [bars] = figures.latent_use(np.array([1.0, 0.5]), np.array([True, False]), is_code).axes
    assert bars.get_ylabel() == use
    [grid] = figures.latent_grid(some_images(4), 1.0, (1, 0), is_code).axes
    assert grid.get_xlabel() == f"$z_{{1}}$  ({unit})"


def test_gradient_noise_is_drawn_on_logarithmic_axes_a_line_for_each_estimator() -> None:
    noise = {"score function": {1: 100.0, 5: 20.0, 50: 2.0}, "reparameterised": {1: 1.0, 5: 0.2, 50: 0.02}}
    figure = figures.gradient_noise(noise)
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
    figure = figures.training_curves(history, best_epoch=epochs)
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["loss", "reconstruction", "KL"]
    for axes, term in zip(figure.axes, ("loss", "reconstruction", "kl"), strict=True):
        train, validation, best = axes.lines
        for line, split in ((train, "train"), (validation, "validation")):
            assert line.get_label() == split
            assert list(line.get_xdata()) == history["epoch"]
            assert list(line.get_ydata()) == history[f"{split}_{term}"]
        assert set(best.get_xdata()) == {epochs}
    assert is_drawn(figure)


def test_training_curves_without_validation_show_training_alone() -> None:
    history = {name: curve for name, curve in some_history(4).items() if not name.startswith("validation")}
    figure = figures.training_curves(history, best_epoch=4)
    for axes, term in zip(figure.axes, ("loss", "reconstruction", "kl"), strict=True):
        train, best = axes.lines
        assert (train.get_label(), list(train.get_ydata())) == ("train", history[f"train_{term}"])
        assert set(best.get_xdata()) == {4}
        assert axes.get_ylim()[0] < min(history[f"train_{term}"]) < max(history[f"train_{term}"]) < axes.get_ylim()[1]
    legend = figure.axes[0].get_legend()
    assert legend is not None
    assert [text.get_text() for text in legend.get_texts()] == ["train"]
    assert is_drawn(figure)


def test_training_curves_let_the_first_epochs_leave_at_the_top() -> None:
    history = some_history(100)
    figure = figures.training_curves(history, best_epoch=100)
    low, high = figure.axes[0].get_ylim()
    loss = history["train_loss"] + history["validation_loss"]
    assert low < min(loss)
    assert history["validation_loss"][5] < high < history["train_loss"][1]


def test_constant_curves_can_be_drawn() -> None:
    history = {name: [1.0] * len(values) for name, values in some_history(3).items()} | {"epoch": [1.0, 2.0, 3.0]}
    assert is_drawn(figures.training_curves(history, best_epoch=1))


def test_a_matplotlibrc_of_the_user_changes_nothing(tmp_path: Path) -> None:
    code = (
        "import hashlib, numpy as np; from reparam.evaluation import figures; "
        "picture = figures.png(figures.latent_use(np.array([1.0, 0.5]), np.array([True, False]))); "
        "print(hashlib.sha256(picture).hexdigest())"
    )
    rc = tmp_path / "matplotlibrc"
    rc.write_text("axes.grid: True\naxes.facecolor: yellow\nfont.size: 20\n")
    source = str(Path(figures.__file__).parents[2])
    environments = [os.environ | {"PYTHONPATH": source} | extra for extra in ({}, {"MATPLOTLIBRC": str(rc)})]
    plain, coloured = (
        subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True).stdout
        for env in environments
    )
    assert len(plain.strip()) == 64
    assert coloured == plain
