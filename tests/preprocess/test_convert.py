import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from reparam.config import PreprocessConfig
from reparam.data.images import Pixels, convert_arrays, to_square
from reparam.data.sources.folder import ImageFiles
from reparam.data.sources.raw import ImageArrays
from reparam.errors import UserError
from reparam.preprocess import convert as module
from reparam.preprocess.convert import Shape, common_shape, convert, none_readable, refuse_unreadable

RANDOM = np.random.default_rng(0)
SETTINGS: dict[str, Any] = {
    "seed": 0,
    "image_size": None,
    "channels": 1,
    "classes": None,
    "validation": 0.1,
    "test": 0.2,
    "limit": None,
    "binarization": "none",
    "scaling": "unit",
    "on_error": "fail",
}
NO_IMAGE = "not a whole image of any of the formats BMP, GIF, JPEG, PNG, PPM, TIFF, WEBP"


def settings(**values: Any) -> PreprocessConfig:
    return PreprocessConfig.model_validate(SETTINGS | values)


def noise(count: int, channels: int, height: int = 3, width: int = 4) -> Pixels:
    return RANDOM.integers(0, 256, (count, channels, height, width), dtype=np.uint8)


def arrays(images: Pixels) -> ImageArrays:
    return ImageArrays(images, np.zeros(len(images), np.int64))


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """The file to write, alone in its directory."""
    (tmp_path / "store").mkdir()
    return tmp_path / "store/images.npy"


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Decode in this process, because starting others takes a second."""
    monkeypatch.setattr(module, "_workers", lambda _chunks: ThreadPoolExecutor(1))


@pytest.fixture
def save(tmp_path: Path) -> Callable[[Pixels], ImageFiles]:
    """Write images (N, C, H, W) as files whose names hold blanks and letters beyond ASCII."""

    def write(images: Pixels) -> ImageFiles:
        root = tmp_path / "images"
        root.mkdir()
        names = tuple(f"ein Bild Nr. {number:02}, schön.png" for number in range(len(images)))
        for name, pixels in zip(names, images, strict=True):
            Image.fromarray(pixels[0] if len(pixels) == 1 else pixels.transpose(1, 2, 0)).save(root / name)
        return ImageFiles(root, names, (0,) * len(names), ("all",))

    return write


def rows(*numbers: int) -> Any:
    return np.array(numbers, np.int64)


def as_npy(images: Pixels, path: Path) -> bytes:
    """The bytes of a plain `.npy` file."""
    np.save(path, images)
    return path.read_bytes()


# Arrays


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("chunk", [1, 2, 4, 5, 8192], ids="chunks of {}".format)
def test_arrays_are_copied_row_by_row(
    chunk: int, channels: int, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "ARRAY_CHUNK", chunk)
    images, chosen = noise(9, channels), rows(1, 3, 4, 8)
    shape = common_shape(arrays(images), chosen, settings(channels=channels))
    assert shape == Shape(channels, height=3, width=4, size=None)
    assert convert(arrays(images), chosen, shape, store) == {}
    assert store.read_bytes() == as_npy(images[chosen], tmp_path / "wanted.npy")
    assert list(store.parent.iterdir()) == [store]


@pytest.mark.parametrize("chunk", [1, 3, 8192], ids="chunks of {}".format)
def test_arrays_are_resized_to_a_square(chunk: int, store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ARRAY_CHUNK", chunk)
    images, chosen = noise(5, 3, height=6, width=8), rows(0, 2, 3, 4)
    shape = common_shape(arrays(images), chosen, settings(channels=3, image_size=4))
    assert shape == Shape(3, height=4, width=4, size=4)
    convert(arrays(images), chosen, shape, store)
    found = np.load(store)
    assert (found.dtype, found.shape) == (np.uint8, (4, 3, 4, 4))
    np.testing.assert_array_equal(found, convert_arrays(images[chosen], 4, 3))


def test_grey_arrays_become_colour_and_colour_arrays_grey(store: Path) -> None:
    grey = noise(2, 1)
    convert(arrays(grey), rows(0, 1), Shape(3, 3, 4, None), store)
    np.testing.assert_array_equal(np.load(store), np.repeat(grey, 3, axis=1))
    red, green, blue = np.zeros((3, 1, 3, 3, 4), np.uint8)
    red[:, 0], green[:, 1], blue[:, 2] = 255, 255, 255
    convert(arrays(np.concatenate([red, green, blue])), rows(0, 1, 2), Shape(1, 3, 4, None), store)
    # The luma of ITU-R 601: 0.299, 0.587, 0.114.
    assert np.load(store)[:, 0, 0, 0].tolist() == [76, 150, 29]


def test_arrays_in_any_layout_of_memory_are_stored_in_one(store: Path, tmp_path: Path) -> None:
    images = noise(4, 3, height=5, width=5)
    turned = np.asfortranarray(images)
    convert(arrays(turned), rows(0, 1, 2, 3), Shape(3, 5, 5, None), store)
    assert store.read_bytes() == as_npy(images, tmp_path / "wanted.npy")


# Files


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("chunk", [1, 2, 4, 5, 256], ids="chunks of {}".format)
@pytest.mark.usefixtures("in_process")
def test_files_are_decoded_row_by_row(
    chunk: int,
    channels: int,
    save: Callable[[Pixels], ImageFiles],
    store: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "CHUNK", chunk)
    images, chosen = noise(9, channels), rows(1, 3, 4, 8)
    files = save(images)
    shape = common_shape(files, chosen, settings(channels=channels))
    assert shape == Shape(channels, height=3, width=4, size=None)
    assert convert(files, chosen, shape, store) == {}
    assert store.read_bytes() == as_npy(images[chosen], tmp_path / "wanted.npy")
    assert list(store.parent.iterdir()) == [store]


@pytest.mark.usefixtures("in_process")
def test_files_of_mixed_sizes_and_modes_become_squares_of_one(tmp_path: Path, store: Path) -> None:
    pictures = {
        "wide.png": Image.fromarray(noise(1, 3, 6, 12)[0].transpose(1, 2, 0)),
        "high.jpg": Image.fromarray(noise(1, 3, 30, 7)[0].transpose(1, 2, 0)),
        "grey.png": Image.fromarray(noise(1, 1, 4, 4)[0, 0]),
        "palette.gif": Image.fromarray(noise(1, 1, 9, 5)[0, 0]).convert("P"),
    }
    for name, picture in pictures.items():
        picture.save(tmp_path / name)
    files = ImageFiles(tmp_path, tuple(pictures), (0,) * 4, ("all",))
    shape = common_shape(files, rows(0, 1, 2, 3), settings(channels=3, image_size=4))
    assert shape == Shape(3, 4, 4, 4)
    assert convert(files, rows(0, 1, 2, 3), shape, store) == {}
    found = np.load(store)
    assert (found.dtype, found.shape) == (np.uint8, (4, 3, 4, 4))
    for name, pixels in zip(pictures, found, strict=True):
        with Image.open(tmp_path / name) as image:
            np.testing.assert_array_equal(pixels, to_square(image.convert("RGB"), 4))


@pytest.mark.usefixtures("in_process")
def test_mixed_sizes_without_an_image_size_say_what_gives_them_one(tmp_path: Path, store: Path) -> None:
    for name, size in (("a.png", (4, 3)), ("b.png", (3, 4)), ("c.png", (4, 3))):
        Image.new("L", size, 9).save(tmp_path / name)
    files = ImageFiles(tmp_path, ("a.png", "b.png", "c.png"), (0,) * 3, ("all",))
    with pytest.raises(UserError) as caught:
        convert(files, rows(0, 1, 2), common_shape(files, rows(0, 1, 2), settings()), store)
    assert str(caught.value) == (
        f"preprocess: {tmp_path}/b.png: wanted 4x3 pixels like the first image, found 3x4; set "
        "preprocess.image_size in params.yaml to give all one size"
    )


@pytest.mark.parametrize("chunk", [1, 2, 3, 256], ids="chunks of {}".format)
@pytest.mark.usefixtures("in_process")
def test_unreadable_images_are_left_out_and_reported(
    chunk: int, save: Callable[[Pixels], ImageFiles], store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "CHUNK", chunk)
    monkeypatch.setattr(module, "ARRAY_CHUNK", chunk)
    images = noise(8, 1)
    files = save(images)
    (files.root / files.names[0]).write_bytes(b"no image")
    cut = files.root / files.names[5]
    cut.write_bytes(cut.read_bytes()[:-30])  # the end of the pixels
    (files.root / files.names[6]).unlink()
    chosen = rows(0, 2, 3, 5, 6, 7)
    shape = common_shape(files, chosen, settings())
    assert shape == Shape(1, 3, 4, None)  # of the first that can be read
    unreadable = convert(files, chosen, shape, store)
    assert list(unreadable) == [0, 5, 6]
    assert (unreadable[0], unreadable[6]) == (NO_IMAGE, os.strerror(2))
    assert unreadable[5]
    assert store.read_bytes() == as_npy(images[[2, 3, 7]], tmp_path / "wanted.npy")
    assert list(store.parent.iterdir()) == [store]


@pytest.mark.usefixtures("in_process")
def test_a_store_of_which_nothing_is_readable_is_empty(save: Callable[[Pixels], ImageFiles], store: Path) -> None:
    files = save(noise(3, 1))
    for name in files.names:
        (files.root / name).write_bytes(b"")
    assert list(convert(files, rows(0, 1, 2), Shape(1, 3, 4, None), store)) == [0, 1, 2]
    assert np.load(store).shape == (0, 1, 3, 4)


# Worker processes


def test_the_store_does_not_depend_on_the_number_of_workers(
    save: Callable[[Pixels], ImageFiles], store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "CHUNK", 3)
    images = noise(10, 3)
    files = save(images)
    for row in (4, 9):
        (files.root / files.names[row]).write_bytes(b"no image")
    kept = [row for row in range(10) if row not in (4, 9)]
    wanted = as_npy(images[kept], tmp_path / "wanted.npy")
    for workers in ("1", "3"):
        monkeypatch.setenv("REPARAM_WORKERS", workers)
        unreadable = convert(files, np.arange(10), Shape(3, 3, 4, None), store)
        assert list(unreadable.items()) == [(4, NO_IMAGE), (9, NO_IMAGE)]
        assert store.read_bytes() == wanted
        store.unlink()


@pytest.mark.parametrize(("workers", "chunks", "started"), [("1", 9, 1), ("3", 9, 3), ("3", 2, 2), ("3", 0, 1)])
def test_there_are_no_more_workers_than_asked_for_or_needed(
    workers: str, chunks: int, started: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    monkeypatch.setattr(module, "ProcessPoolExecutor", lambda count, mp_context: asked.append(count))
    monkeypatch.setenv("REPARAM_WORKERS", workers)
    module._workers(chunks)
    assert asked == [started]


@pytest.mark.parametrize("value", ["0", "-1", "two", "", "9" * 5_000])
def test_a_number_of_workers_that_is_none_is_refused(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REPARAM_WORKERS", value)
    with pytest.raises(UserError) as caught:
        module._workers(1)
    assert str(caught.value) == f"REPARAM_WORKERS: wanted a number of processes, found {value!r}; fix or unset it"


# What is reported of unreadable images


REMEDY = "fix or remove them, or set preprocess.on_error to skip in params.yaml"


def test_a_split_without_a_readable_image_says_why() -> None:
    assert str(none_readable("test", {f"{number}.png": "empty" for number in range(22)})).splitlines() == [
        "preprocess: no image of the test split is readable, of 22:",
        *(f"  {number}.png: empty" for number in range(20)),
        "  and 2 more",
        "fix them, or give other images",
    ]


def test_readable_images_are_no_mistake() -> None:
    assert refuse_unreadable({}) is None  # type: ignore[func-returns-value]


@pytest.mark.parametrize(("count", "title"), [(1, "1 unreadable image:"), (20, "20 unreadable images:")])
def test_unreadable_images_are_counted_and_listed(count: int, title: str) -> None:
    names = [f"class {number}/schön.png" for number in range(count)]
    with pytest.raises(UserError) as caught:
        refuse_unreadable(dict.fromkeys(names, "Truncated File Read"))
    assert str(caught.value).splitlines() == [
        f"preprocess: {title}",
        *(f"  {name}: Truncated File Read" for name in names),
        REMEDY,
    ]


def test_of_many_unreadable_images_the_first_twenty_are_listed() -> None:
    with pytest.raises(UserError) as caught:
        refuse_unreadable({f"{number}.png": f"reason {number}" for number in range(23)})
    assert str(caught.value).splitlines() == [
        "preprocess: 23 unreadable images:",
        *(f"  {number}.png: reason {number}" for number in range(20)),
        "  and 3 more",
        REMEDY,
    ]
