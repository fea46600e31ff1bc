"""Small files in the formats of static MNIST and OMNIGLOT: the real ones cannot be had in a test."""

import io
import random
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import scipy.io
from conftest import small_section

from reparam.data.sources import records
from reparam.data.sources.raw import ImageArrays, Raw
from reparam.data.sources.registry import SOURCES, download, read, write_manifest
from reparam.data.sources.transport import RemoteFile, fetch
from reparam.errors import DamagedInputError, UserError

Array = npt.NDArray[Any]
RANDOM = np.random.default_rng(0)
COUNTS = {"train": 60, "test": 50}


def arrays(raw: Raw, split: str) -> ImageArrays:
    found = raw.splits[split]
    assert isinstance(found, ImageArrays)
    return found


def write_amat(directory: Path) -> dict[str, Array]:
    """The three files, which numpy writes as Larochelle did."""
    published = {"train": "train", "validation": "valid", "test": "test"}
    images = {split: RANDOM.integers(0, 2, (count, 784)) for split, count in zip(published, (5, 2, 3), strict=True)}
    for split, values in images.items():
        np.savetxt(directory / f"binarized_mnist_{published[split]}.amat", values, fmt="%d")
    return images


def test_static_mnist_keeps_its_splits_and_pixels(tmp_path: Path) -> None:
    images = write_amat(tmp_path)
    raw = SOURCES["binarized_mnist"].read(tmp_path, tmp_path)
    assert list(raw.splits) == ["train", "validation", "test"]
    assert raw.classes == ("digit",)
    for split, values in images.items():
        found = arrays(raw, split)
        np.testing.assert_array_equal(found.images.reshape(-1, 784), 255 * values)
        assert (found.images.shape[1:], found.images.dtype) == ((1, 28, 28), np.uint8)
        assert found.labels.tolist() == [0] * len(values)


def test_the_sizes_of_the_published_files_are_those_of_their_images() -> None:
    # 50,000 and 10,000 images, as TensorFlow Datasets lists the files: 78,400,000 and 15,680,000 bytes.
    assert (2 * records.PIXELS * 50_000, 2 * records.PIXELS * 10_000) == (78_400_000, 15_680_000)


@pytest.mark.parametrize("content", [b"0 1 2 " * 784, b"0 1\n" * 10, b"x" * 1568])
def test_lines_of_anything_else_are_refused(content: bytes, tmp_path: Path) -> None:
    write_amat(tmp_path)
    (tmp_path / "binarized_mnist_valid.amat").write_bytes(content)
    with pytest.raises(DamagedInputError, match=r"valid.amat: wanted lines of 784 digits 0 or 1, found others; run "):
        SOURCES["binarized_mnist"].read(tmp_path, tmp_path)


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records, "COUNTS", COUNTS)


def matlab(**changes: Any) -> dict[str, Array]:
    """What Burda's file holds: images and marks in columns."""
    found: dict[str, Any] = {}
    for prefix, count in zip(("", "test"), COUNTS.values(), strict=True):
        found[f"{prefix}data"] = RANDOM.random((784, count))
        found[f"{prefix}target"] = np.eye(50)[np.arange(count) % 50].T
        found[f"{prefix}targetchar"] = np.ones((1, count))
    return {name: value for name, value in (found | changes).items() if value is not None}


@pytest.mark.usefixtures("few")
def test_omniglot_is_read_upright_from_a_mirror_without_a_checksum(tmp_path: Path) -> None:
    arrays_ = matlab()
    # A bar in the second row of the first image: column by column, it is every 28th pixel.
    arrays_["data"][:, 0] = 0
    arrays_["data"][1::28, 0] = 1
    (tmp_path / "mirror").mkdir()
    (tmp_path / "raw").mkdir()
    scipy.io.savemat(tmp_path / "mirror/chardata.mat", arrays_)
    config = small_section("download", source="omniglot")
    download(config, tmp_path, tmp_path / "raw", ["mirror"])
    write_manifest(config, tmp_path / "raw")
    card, raw = read(tmp_path / "raw", tmp_path)
    assert list(card.files) == ["chardata.mat"]
    train, test = arrays(raw, "train"), arrays(raw, "test")
    assert (train.images.shape, test.images.shape) == ((60, 1, 28, 28), (50, 1, 28, 28))
    assert train.images[0, 0].tolist() == [[0] * 28, [255] * 28, *[[0] * 28] * 26]
    np.testing.assert_array_equal(test.images[7, 0].T.ravel(), np.rint(255 * arrays_["testdata"][:, 7]))
    assert train.labels.tolist() == [*range(50), *range(10)]
    assert (len(raw.classes), raw.classes[0], raw.classes[-1]) == (50, "alphabet 1", "alphabet 50")


@pytest.mark.usefixtures("few")
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data": None}, r"wanted data \(784, 60\), found none"),
        ({"testdata": np.zeros((784, 49))}, r"wanted testdata \(784, 50\), found \(784, 49\)"),
        ({"data": np.full((784, 60), 1.5)}, "wanted data from 0 to 1, found other values"),
        ({"data": np.full((784, 60), np.nan)}, "wanted data from 0 to 1, found other values"),
        ({"target": np.zeros((50, 60))}, "wanted one alphabet for each image, found none or several in target"),
    ],
)
def test_what_is_known_of_omniglot_is_checked_for_want_of_a_checksum(
    changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    scipy.io.savemat(tmp_path / "chardata.mat", matlab(**changes))
    with pytest.raises(DamagedInputError, match=f"chardata.mat: {message}; run `dvc repro"):
        SOURCES["omniglot"].read(tmp_path, tmp_path)


@pytest.mark.parametrize("content", [b"<html>not found</html>" * 100, b""])
def test_what_is_no_file_of_matlab_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "chardata.mat").write_bytes(content)
    with pytest.raises(DamagedInputError, match="wanted a file of MATLAB 5, found none"):
        SOURCES["omniglot"].read(tmp_path, tmp_path)


def test_a_file_that_makes_the_reader_crash_is_refused(tmp_path: Path) -> None:
    found, chance = io.BytesIO(), random.Random(22)  # with which scipy 1.17 ends by a segmentation fault
    scipy.io.savemat(found, {"data": np.arange(600.0).reshape(20, 30) / 600, "target": np.eye(5)})
    content = bytearray(found.getvalue())
    for _ in range(chance.randint(1, 6)):
        content[chance.randrange(len(content) if chance.random() < 0.5 else 300)] = chance.randrange(256)
    (tmp_path / "chardata.mat").write_bytes(content)
    with pytest.raises(DamagedInputError, match=r"chardata\.mat: wanted "):
        SOURCES["omniglot"].read(tmp_path, tmp_path)


def test_a_file_without_a_published_checksum_is_missed_like_others(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^chardata.mat \(no published checksum\): no source gives this file"):
        fetch(RemoteFile("chardata.mat", "", ()), tmp_path, ())


def test_the_splits_of_the_records_are_those_of_the_papers() -> None:
    assert records.COUNTS == {"train": 24_345, "test": 8_070}
