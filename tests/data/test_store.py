import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from reparam import files
from reparam.data import store
from reparam.data.store import SPLITS, Images, Origin, Split, binarize, read_card, read_split, write_card
from reparam.errors import DamagedInputError, MissingInputError, StaleInputError

REMEDY = "run `dvc repro --force --single-item preprocess`"
CLASSES = ("red", "green", "blue")
ORIGIN = Origin(
    source="noise", options={}, binarization="none", classes=CLASSES, skipped={}, title="Noise", licence="CC0"
)


@pytest.fixture
def splits() -> dict[Any, Split]:
    """Three small splits of images of 2 channels, 3 rows and 4 columns."""
    random = np.random.default_rng(0)
    return {
        name: Split(
            random.integers(0, 256, (count, 2, 3, 4), dtype=np.uint8), random.integers(0, 3, count, dtype=np.int32)
        )
        for name, count in zip(SPLITS, (7, 2, 3), strict=True)
    }


@pytest.fixture
def stored(tmp_path: Path, splits: dict[Any, Split]) -> Path:
    """The splits on disk."""
    write_arrays(tmp_path, splits)
    write_card(tmp_path, ORIGIN, "unit")
    return tmp_path


def write_arrays(directory: Path, splits: Mapping[Any, Split]) -> None:
    for name, split in splits.items():
        np.save(directory / f"{name}-images.npy", split.images)
        np.save(directory / f"{name}-labels.npy", split.labels)


GREY = np.arange(256, dtype=np.uint8).reshape(1, 1, 16, 16)


def binarized(images: Images, how: str, seed: int, path: Path) -> Images:
    """What becomes of the images of a file."""
    np.save(path, images)
    binarize(path, how, seed)
    return np.load(path)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "images.npy"


@pytest.mark.parametrize("how", ["none", "dynamic"])
def test_grey_pixels_are_kept_where_nothing_is_drawn_yet(how: str, path: Path) -> None:
    np.save(path, GREY)
    before = path.read_bytes()
    binarize(path, how, seed=0)
    assert path.read_bytes() == before


def test_the_threshold_lies_between_127_and_128(path: Path) -> None:
    binary = binarized(GREY, "threshold", 0, path)
    assert (binary.dtype, binary.shape) == (np.uint8, GREY.shape)
    assert binary.ravel().tolist() == [0] * 128 + [255] * 128


def test_static_pixels_are_white_as_often_as_they_are_grey(path: Path) -> None:
    images = np.repeat(GREY, 4000, axis=0)
    binary = binarized(images, "static", 0, path)
    assert set(np.unique(binary)) == {0, 255}
    assert (binary.dtype, binary.shape) == (np.uint8, images.shape)
    # Five standard errors of 4,000 draws with probability one half.
    np.testing.assert_allclose((binary / 255).mean(0), GREY[0] / 255, atol=5 * 0.5 / 4000**0.5)
    assert set(binary[images == 0]) == {0}
    assert set(binary[images == 255]) == {255}


def test_static_pixels_are_drawn_by_the_seed_alone(path: Path) -> None:
    first, again, other = (binarized(GREY, "static", seed, path) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


@pytest.mark.parametrize("how", ["threshold", "static"])
@pytest.mark.parametrize("chunk", [1, 2, 5, 6], ids="chunks of {}".format)
def test_pixels_do_not_depend_on_the_chunks_that_they_are_drawn_in(
    chunk: int, how: str, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = np.random.default_rng(0).integers(0, 256, (5, 3, 4, 3), dtype=np.uint8)
    whole = binarized(images, how, 0, path)
    monkeypatch.setattr(store, "CHUNK", chunk)
    np.testing.assert_array_equal(binarized(images, how, 0, path), whole)


def test_what_is_stored_is_read_back(stored: Path, splits: dict[Any, Split]) -> None:
    for name, split in splits.items():
        found = read_split(stored, name)
        np.testing.assert_array_equal(found.images, split.images)
        np.testing.assert_array_equal(found.labels, split.labels)
        assert (found.images.dtype, found.labels.dtype) == (np.uint8, np.int32)


@pytest.mark.parametrize("how", ["none", "threshold", "static"])
def test_a_split_without_images_is_stored_and_read_back(how: str, tmp_path: Path, splits: dict[Any, Split]) -> None:
    splits["validation"] = Split(splits["validation"].images[:0], splits["validation"].labels[:0])
    write_arrays(tmp_path, splits)
    binarize(tmp_path / "validation-images.npy", how, (0, 1))
    card = write_card(tmp_path, ORIGIN, "standard")
    assert (card.splits["validation"].count, card.splits["validation"].classes) == (0, {})
    found = read_split(tmp_path, "validation")
    assert (found.images.shape, found.labels.shape) == ((0, 2, 3, 4), (0,))
    assert (found.images.dtype, found.labels.dtype) == (np.uint8, np.int32)


def test_images_are_mapped_rather_than_read_and_cannot_be_changed(stored: Path) -> None:
    images = read_split(stored, "train").images
    assert isinstance(images, np.memmap)
    with pytest.raises(ValueError, match="read-only"):
        images[0] = 0


def test_the_card_describes_the_store(stored: Path, splits: dict[Any, Split]) -> None:
    card = read_card(stored)
    train = splits["train"].images / 255
    assert card.train_mean == pytest.approx(train.mean((0, 2, 3)), abs=1e-6)
    assert card.train_standard_deviation == pytest.approx(train.std((0, 2, 3)), abs=1e-6)
    assert (card.source, card.binarization, card.classes, card.shape) == ("noise", "none", CLASSES, (2, 3, 4))
    assert list(card.splits) == list(SPLITS)
    for name, split in splits.items():
        described = card.splits[name]
        assert described.count == len(split.images)
        assert described.classes == {CLASSES[c]: int((split.labels == c).sum()) for c in np.unique(split.labels)}
        for kind in ("images", "labels"):
            content = (stored / f"{name}-{kind}.npy").read_bytes()
            assert getattr(described, f"{kind}_sha256") == hashlib.sha256(content).hexdigest()


def test_equal_data_give_equal_bytes(stored: Path, splits: dict[Any, Split], tmp_path: Path) -> None:
    (tmp_path / "again").mkdir()
    write_arrays(tmp_path / "again", splits)
    write_card(tmp_path / "again", ORIGIN, "unit")
    for path in (tmp_path / "again").iterdir():
        assert path.read_bytes() == (stored / path.name).read_bytes()


@pytest.mark.parametrize("chunk", [1, 3, 7], ids="chunks of {}".format)
def test_the_card_does_not_depend_on_the_chunks_that_it_is_counted_in(
    chunk: int, stored: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = read_card(stored)
    monkeypatch.setattr(store, "CHUNK", chunk)
    assert write_card(stored, ORIGIN, "unit") == before


@pytest.mark.parametrize("kind", ["unit", "symmetric", "standard"])
def test_the_card_that_is_returned_is_the_one_that_is_read(kind: str, stored: Path) -> None:
    card = write_card(stored, ORIGIN, kind)
    assert card.scaling.kind == kind
    assert read_card(stored) == card


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-5])


def cut_header(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:20])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def other_shape(path: Path) -> None:
    np.save(path, np.zeros((7, 2, 4, 3), np.uint8))


def other_dtype(path: Path) -> None:
    np.save(path, np.zeros((7, 2, 3, 4), np.float32))


def other_values(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def pickled(path: Path) -> None:
    np.save(path, np.array([{"never": "unpickled"}], dtype=object), allow_pickle=True)


@pytest.mark.parametrize(
    ("damage", "found"),
    [
        (cut, "mmap length is greater than file size"),
        (cut_header, "EOF: reading array header"),
        (Path.unlink, "No such file or directory"),
        (other_shape, "found uint8 (7, 2, 4, 3);"),
        (other_dtype, "found float32 (7, 2, 3, 4);"),
        (pickled, r"found none (Array can't be memory-mapped: Python objects in dtype.); "),
        (empty, "No data left in file"),
        (other_values, "found other values, by their checksum;"),
    ],
)
def test_a_damaged_file_is_named_with_what_was_wanted_and_what_to_do(damage: Any, found: str, stored: Path) -> None:
    path = stored / "train-images.npy"
    damage(path)
    with pytest.raises(DamagedInputError) as caught:
        read_split(stored, "train")
    message = str(caught.value)
    assert message.startswith(f"{path}: wanted uint8 (7, 2, 3, 4), found ")
    assert found in message
    assert message.endswith(f"; {REMEDY}")


def test_damaged_labels_are_noticed_too(stored: Path) -> None:
    path = stored / "test-labels.npy"
    np.save(path, np.zeros(4, np.int32))
    with pytest.raises(DamagedInputError) as caught:
        read_split(stored, "test")
    assert str(caught.value) == f"{path}: wanted int32 (3,), found int32 (4,); {REMEDY}"


def test_a_truncated_card_is_refused(stored: Path) -> None:
    cut(stored / "card.json")
    with pytest.raises(DamagedInputError) as caught:
        read_split(stored, "train")
    assert str(caught.value).startswith(f"{stored}/card.json: not valid JSON (")
    assert str(caught.value).endswith(f"; {REMEDY}")


def test_images_that_a_model_was_not_trained_on_are_refused_by_the_fact_that_differs(stored: Path) -> None:
    card = read_card(stored)
    scaling = card.scaling.model_copy(update={"shift": (0.25, 0.5)})
    for name, value, difference in (
        ("source", "digits", "source: wanted digits, {}, found noise"),
        ("scaling", scaling, "scaling.shift: wanted [0.25, 0.5], {}, found [0.0, 0.0]"),
        ("shape", (2, 4, 4), "shape: wanted [2, 4, 4], {}, found [2, 3, 4]"),
    ):
        with pytest.raises(StaleInputError) as caught:
            store.read_card_of(stored, card.images.model_copy(update={name: value}), card.digest)
        wanted = difference.format("as the model in models/vae was trained on")
        assert str(caught.value) == f"{stored}: {wanted}; run `dvc repro`"
    with pytest.raises(StaleInputError) as caught:
        store.read_card_of(stored, card.images, "0" * 64)
    assert str(caught.value) == (
        f"{stored}/card.json: checksum: wanted {'0' * 64}, as the model in models/vae was trained on, found "
        f"{card.digest}; run `dvc repro`"
    )
    assert store.read_card_of(stored, card.images, card.digest) == card


def test_nothing_is_read_before_it_is_preprocessed(tmp_path: Path) -> None:
    with pytest.raises(MissingInputError) as caught:
        read_split(tmp_path, "train")
    assert str(caught.value) == f"{tmp_path}/card.json: not found; run `dvc repro preprocess` first"


def test_labels_of_another_type_are_refused(stored: Path) -> None:
    path = stored / "test-labels.npy"
    np.save(path, np.load(path).astype(np.int64))
    with pytest.raises(DamagedInputError) as caught:
        read_split(stored, "test")
    assert str(caught.value) == f"{path}: wanted int32 (3,), found int64 (3,); {REMEDY}"


def test_the_card_is_written_last(tmp_path: Path, splits: dict[Any, Split]) -> None:
    write_arrays(tmp_path, splits)
    (tmp_path / "test-labels.npy").unlink()
    with pytest.raises(FileNotFoundError):
        write_card(tmp_path, ORIGIN, "unit")
    assert (tmp_path / "train-images.npy").exists()
    assert not (tmp_path / "card.json").exists()


def test_a_disk_that_is_full_at_the_card_leaves_none(
    tmp_path: Path, splits: dict[Any, Split], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(path: Path) -> None:
        raise OSError(28, os.strerror(28), str(path))

    write_arrays(tmp_path, splits)
    monkeypatch.setattr(files, "_flush", fail)
    with pytest.raises(OSError, match="No space left"):
        write_card(tmp_path, ORIGIN, "unit")
    assert {path.suffix for path in tmp_path.iterdir()} == {".npy"}
