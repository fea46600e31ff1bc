import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from reparam.data.store import SPLITS, Split, binarize, read_card, read_split, split_indices, write_store
from reparam.errors import DamagedInputError, MissingInputError, UserError

REMEDY = "run `dvc repro --force --single-item preprocess`"


@pytest.fixture
def splits() -> dict[Any, Split]:
    """Three small splits of images of 2 channels, 3 rows and 4 columns."""
    random = np.random.default_rng(0)
    return {
        name: Split(
            random.integers(0, 256, (count, 2, 3, 4), dtype=np.uint8), random.integers(0, 3, count, dtype=np.int64)
        )
        for name, count in zip(SPLITS, (7, 2, 3), strict=True)
    }


@pytest.fixture
def stored(tmp_path: Path, splits: dict[Any, Split]) -> Path:
    """The splits on disk."""
    write_store(tmp_path, splits, {"source": "noise", "binarization": "none"})
    return tmp_path


def test_splits_are_a_partition_of_the_wanted_sizes() -> None:
    parts = split_indices(1797, 0.1, 0.2, seed=0)
    assert {name: len(rows) for name, rows in parts.items()} == {"train": 1258, "validation": 180, "test": 359}
    assert list(parts) == list(SPLITS)
    assert sorted(np.concatenate(list(parts.values())).tolist()) == list(range(1797))


def test_splits_are_shuffled_by_the_seed_alone() -> None:
    first, again, other = (split_indices(1000, 0.1, 0.2, seed) for seed in (0, 0, 1))
    for name in SPLITS:
        np.testing.assert_array_equal(first[name], again[name])
        assert set(first[name]) != set(other[name])
        assert (np.diff(first[name]) > 0).all()  # in the order of the source
    # Drawn from everywhere: a test split off one end would have its median there.
    assert 400 < np.median(first["test"]) < 600


@pytest.mark.parametrize(
    ("count", "validation", "test", "empty"),
    [(10, 0.01, 0.2, "validation"), (10, 0.2, 0.01, "test"), (10, 0.5, 0.5, "train"), (10, 0.9, 0.9, "train")],
)
def test_an_empty_split_is_refused(count: int, validation: float, test: float, empty: str) -> None:
    with pytest.raises(UserError) as caught:
        split_indices(count, validation, test, seed=0)
    assert str(caught.value) == (
        f"preprocess: the {empty} split of {count} images is empty with validation_fraction {validation} and "
        f"test_fraction {test}; change them in params.yaml"
    )


GREY = np.arange(256, dtype=np.uint8).reshape(1, 1, 16, 16)


@pytest.mark.parametrize("how", ["none", "dynamic"])
def test_grey_pixels_are_kept_where_nothing_is_drawn_yet(how: str) -> None:
    np.testing.assert_array_equal(binarize(GREY, how, seed=0), GREY)


def test_the_threshold_lies_between_127_and_128() -> None:
    binary = binarize(GREY, "threshold", seed=0).ravel()
    assert binary.dtype == np.uint8
    assert binary.tolist() == [0] * 128 + [255] * 128


def test_static_pixels_are_white_as_often_as_they_are_grey() -> None:
    images = np.repeat(GREY, 4000, axis=0)
    binary = binarize(images, "static", seed=0)
    assert set(np.unique(binary)) == {0, 255}
    assert binary.dtype == np.uint8
    # Five standard errors of 4,000 draws with probability one half.
    np.testing.assert_allclose((binary / 255).mean(0), GREY[0] / 255, atol=5 * 0.5 / 4000**0.5)
    assert set(binary[images == 0]) == {0}
    assert set(binary[images == 255]) == {255}


def test_static_pixels_are_drawn_by_the_seed_alone() -> None:
    first, again, other = (binarize(GREY, "static", seed) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


def test_what_is_stored_is_read_back(stored: Path, splits: dict[Any, Split]) -> None:
    for name, split in splits.items():
        found = read_split(stored, name)
        np.testing.assert_array_equal(found.images, split.images)
        np.testing.assert_array_equal(found.labels, split.labels)
        assert (found.images.dtype, found.labels.dtype) == (np.uint8, np.int64)


def test_images_are_mapped_rather_than_read_and_cannot_be_changed(stored: Path) -> None:
    images = read_split(stored, "train").images
    assert isinstance(images, np.memmap)
    with pytest.raises(ValueError, match="read-only"):
        images[0] = 0


def test_the_card_describes_the_store(stored: Path, splits: dict[Any, Split]) -> None:
    card = read_card(stored)
    train = splits["train"].images / 255
    assert card["train_mean"] == pytest.approx(train.mean(), abs=1e-6)
    assert card["train_standard_deviation"] == pytest.approx(train.std(), abs=1e-6)
    facts = {name: card[name] for name in ("source", "binarization", "shape", "dtype", "layout", "range")}
    assert facts == {
        "source": "noise",
        "binarization": "none",
        "shape": [2, 3, 4],
        "dtype": "uint8",
        "layout": "NCHW",
        "range": [0, 255],
    }
    assert list(card["splits"]) == list(SPLITS)
    for name, split in splits.items():
        described = card["splits"][name]
        assert described["count"] == len(split.images)
        assert described["classes"] == {str(c): int((split.labels == c).sum()) for c in np.unique(split.labels)}
        for kind in ("images", "labels"):
            content = (stored / f"{name}-{kind}.npy").read_bytes()
            assert described[f"{kind}_sha256"] == hashlib.sha256(content).hexdigest()


def test_equal_data_give_equal_bytes(stored: Path, splits: dict[Any, Split], tmp_path: Path) -> None:
    (tmp_path / "again").mkdir()
    write_store(tmp_path / "again", splits, {"source": "noise", "binarization": "none"})
    for path in (tmp_path / "again").iterdir():
        assert path.read_bytes() == (stored / path.name).read_bytes()


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
        (pickled, "found Array can't be memory-mapped: Python objects in dtype."),
        (empty, "No data left in file"),
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
    np.save(path, np.zeros(4, np.int64))
    with pytest.raises(DamagedInputError) as caught:
        read_split(stored, "test")
    assert str(caught.value) == f"{path}: wanted int64 (3,), found int64 (4,); {REMEDY}"


def test_a_truncated_card_is_refused(stored: Path) -> None:
    cut(stored / "card.json")
    with pytest.raises(DamagedInputError) as caught:
        read_split(stored, "train")
    assert str(caught.value).startswith(f"{stored}/card.json: not valid JSON (")
    assert str(caught.value).endswith(f"; {REMEDY}")


def test_nothing_is_read_before_it_is_preprocessed(tmp_path: Path) -> None:
    with pytest.raises(MissingInputError) as caught:
        read_split(tmp_path, "train")
    assert str(caught.value) == f"{tmp_path}/card.json: not found; run `dvc repro preprocess` first"


def test_the_card_is_written_last(tmp_path: Path, splits: dict[Any, Split], monkeypatch: pytest.MonkeyPatch) -> None:
    save = np.save

    def fail_at_the_test_split(path: Path, array: Any) -> None:
        if path.name == "test-labels.npy":
            raise OSError(28, "No space left on device", str(path))
        save(path, array)

    monkeypatch.setattr(np, "save", fail_at_the_test_split)
    with pytest.raises(OSError, match="No space left"):
        write_store(tmp_path, splits, {})
    assert (tmp_path / "train-images.npy").exists()
    assert not (tmp_path / "card.json").exists()
