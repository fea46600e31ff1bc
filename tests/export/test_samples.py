"""The picture of the model card."""

import numpy as np
import pytest
from exported_model import Exported
from PIL import Image

from reparam.client import Client
from reparam.export.samples import GAP

pytest_plugins = ["fixtures_export"]


def cells(exported: Exported, columns: int, rows: int) -> np.ndarray:
    """The images of the picture in their own size. Shapes: -> (N, H, W, C)."""
    height, width, channels = Client(exported.directory).image_shape
    with Image.open(exported.directory / "samples.png") as picture:
        pixels = np.asarray(picture).reshape(picture.height, picture.width, channels)
    times = (pixels.shape[0] // rows - 2 * GAP) // height
    assert pixels.shape == (rows * (times * height + 2 * GAP), columns * (times * width + 2 * GAP), channels)
    assert times * max(height, width) >= 64
    framed = pixels.reshape(rows, -1, columns, times * width + 2 * GAP, channels).swapaxes(1, 2)
    framed = framed.reshape(rows * columns, *framed.shape[2:])
    assert (framed[:, :GAP] == 255).all()  # white between them
    return framed[:, GAP:-GAP:times, GAP:-GAP:times]


def test_a_model_with_a_prior_shows_what_it_generates(exported: Exported) -> None:
    found = cells(exported, columns=8, rows=4)
    client = Client(exported.directory)
    usual = client.sample(400, seed=0)
    assert len(np.unique(found.reshape(32, -1), axis=0)) > 16
    assert usual.min() <= found.min() <= found.max() <= usual.max()
    np.testing.assert_allclose(found.mean(0), usual.mean(0), atol=0.5 * usual.std())


def test_the_classes_of_a_conditional_model_follow_each_other(conditional: Exported) -> None:
    found = cells(conditional, columns=8, rows=4)
    client = Client(conditional.directory)
    count = len(client.classes)
    for label in range(count):
        usual = client.sample(400, seed=0, label=label).mean(0)
        others = client.sample(400, seed=0, label=(label + 1) % count).mean(0)
        mean = found[label::count].mean(0)
        assert np.abs(mean - usual).mean() < np.abs(mean - others).mean()


def test_a_model_without_a_prior_shows_its_golden_answers(code: Exported) -> None:
    with np.load(code.directory / "golden.npz") as golden:
        images, decoded = golden["images"], golden["decoded_images"]
    columns = len(images)
    np.testing.assert_array_equal(cells(code, columns, rows=2), np.concatenate([images, decoded]))


def check_listed(exported: Exported) -> None:
    facts = Client(exported.directory).metadata["files"]["samples.png"]  # whose checksum it verifies
    assert facts["bytes"] == (exported.directory / "samples.png").stat().st_size
    assert "![samples](samples.png)" in (exported.directory / "README.md").read_text()


def test_every_kind_has_a_picture_that_the_manifest_lists(files: Exported) -> None:
    check_listed(files)


def test_models_with_a_learned_prior_have_one_too(mixed: Exported) -> None:
    check_listed(mixed)
    found, client = cells(mixed, columns=8, rows=4).astype(float), Client(mixed.directory)
    usual = client.sample(400, seed=0).astype(float)
    assert found.std(0).mean() == pytest.approx(usual.std(0).mean(), rel=0.5)
