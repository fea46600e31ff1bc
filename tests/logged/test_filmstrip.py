import io
from typing import Any

import numpy as np
import pytest
import torch
from conftest import small_section
from matplotlib.image import imread
from some_cards import image_facts

from reparam.data.batches import Batches
from reparam.data.pixels import Pixels
from reparam.errors import UserError
from reparam.logged.filmstrip import COLUMNS, Filmstrip, epochs_between_pictures
from reparam.models.build import build_model
from reparam.models.latent import LatentModel
from reparam.track.run import NoRun

PIXELS = Pixels(image_facts("none"))
SHAPE = (1, 32, 16)  # two rows of it, enlarged four times, are wider than SMALLEST_SIDE


class Album(NoRun):
    """A run that keeps what it is given: name and pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.pictures: dict[str, np.ndarray] = {}

    def log_picture(self, name: str, content: bytes) -> None:
        self.pictures[name] = imread(io.BytesIO(content))


def some_model(**changes: Any) -> LatentModel:
    torch.manual_seed(0)
    return build_model(small_section("model", **{"hidden": [5], "latent": 2} | changes), SHAPE)


def some_images(count: int) -> Batches:
    grey = np.random.default_rng(0).integers(0, 256, (count, *SHAPE), dtype=np.uint8)
    return Batches(grey, 4, torch.device("cpu"))


def test_a_picture_shows_images_reconstructions_and_samples_of_every_so_many_epochs() -> None:
    album = Album()
    filmstrip, model = Filmstrip(some_images(12), PIXELS, album, 3, every=2, has_prior=True), some_model()
    state = torch.get_rng_state()
    for epoch in range(1, 6):
        filmstrip.show(model, epoch)
    assert torch.equal(torch.get_rng_state(), state)
    assert model.training
    assert list(album.pictures) == ["filmstrip/epoch-0002.png", "filmstrip/epoch-0004.png"]
    first, second = album.pictures.values()
    np.testing.assert_array_equal(first, second)  # the same images and draws, of the same model
    # Images of 32 x 16 are enlarged four times, with four pixels between them.
    assert first.shape[:2] == (3 * (4 * 32 + 4) + 4, COLUMNS * (4 * 16 + 4) + 4)
    shown = first[4 : 4 + 128 : 4, 4 : 4 + 64 : 4, 0]
    x = PIXELS(some_images(12).take(torch.tensor([0])))
    np.testing.assert_allclose(shown, x[0, 0].numpy(), atol=1 / 255)
    with torch.no_grad():
        wanted = model.eval().decode(model.posterior(x)[0])
    np.testing.assert_allclose(first[136 : 136 + 128 : 4, 4 : 4 + 64 : 4, 0], wanted[0, 0].numpy(), atol=1 / 255)


@pytest.mark.parametrize(
    ("changes", "has_prior", "rows"),
    [
        ({}, True, 3),
        ({"kind": "hierarchical"}, True, 3),
        ({"kind": "autoencoder", "likelihood": "gaussian"}, False, 2),
        ({"kind": "autoencoder", "likelihood": "gaussian"}, True, 3),
    ],
)
def test_few_images_are_repeated_and_there_are_samples_where_there_is_a_prior(
    changes: dict[str, Any], has_prior: bool, rows: int
) -> None:
    album, pixels, model = Album(), Pixels(image_facts("dynamic")), some_model(**changes)
    state = torch.get_rng_state()
    Filmstrip(some_images(1), pixels, album, 3, every=1, has_prior=has_prior).show(model, 1)
    assert torch.equal(torch.get_rng_state(), state)
    (picture,) = album.pictures.values()
    assert len(picture) == rows * (4 * 32 + 4) + 4


def test_nothing_is_shown_where_nothing_was_asked_for() -> None:
    album = Album()
    Filmstrip(some_images(1), PIXELS, album, 3, every=0, has_prior=True).show(some_model(), 10)
    assert not album.pictures


@pytest.mark.parametrize(("text", "wanted"), [(None, 10), ("0", 0), ("25", 25)])
def test_the_environment_says_how_often(text: str | None, wanted: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("REPARAM_PICTURES_EVERY", raising=False)
    if text is not None:
        monkeypatch.setenv("REPARAM_PICTURES_EVERY", text)
    assert epochs_between_pictures() == wanted


@pytest.mark.parametrize("text", ["", "-1", "2.5", "often", "²", "9" * 5_000])
def test_what_is_no_number_of_epochs_is_refused(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REPARAM_PICTURES_EVERY", text)
    with pytest.raises(UserError) as error:
        epochs_between_pictures()
    assert str(error.value) == (
        f"REPARAM_PICTURES_EVERY: wanted a whole number of epochs, or 0 for no pictures, found {text!r}; "
        "fix or unset it"
    )
