"""Files in the formats as published, small enough to be made here; and MNIST itself, where it is at hand."""

import gzip
import hashlib
import io
import pickle
import struct
import tarfile
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import pytest
import scipy.io
from conftest import small_section
from PIL import Image
from torchvision import datasets

from reparam.data.sources import registry as sources
from reparam.data.sources.folder import ImageFiles
from reparam.data.sources.raw import ImageArrays, Raw
from reparam.data.sources.torchvision_sets import files, read
from reparam.errors import UserError

Array = npt.NDArray[Any]
RANDOM = np.random.default_rng(0)


@pytest.fixture
def scratch(tmp_path: Path) -> Path:
    (tmp_path / "scratch").mkdir()
    return tmp_path / "scratch"


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[Path]:
    """Where the files as delivered are; reading them leaves them as they are."""
    path = tmp_path / "raw"
    path.mkdir()
    yield path
    assert not any(file.is_symlink() or file.is_dir() for file in path.iterdir())


def noise(*shape: int) -> Array:
    return RANDOM.integers(0, 256, shape, dtype=np.uint8)


def idx(values: Array) -> bytes:
    """The format of MNIST: two zeros, 8 for bytes, the number of dimensions, their big-endian lengths, the values."""
    return struct.pack(f">HBB{values.ndim}I", 0, 8, values.ndim, *values.shape) + values.astype(np.uint8).tobytes()


def md5(path: Path) -> str:
    return hashlib.md5(path.read_bytes()).hexdigest()


def write(directory: Path, contents: Mapping[str, bytes]) -> None:
    for name, content in contents.items():
        (directory / name).write_bytes(content)


def array_splits(raw: Raw) -> dict[str, ImageArrays]:
    for split in raw.splits.values():
        assert isinstance(split, ImageArrays)
        assert (split.images.dtype, split.labels.dtype) == (np.uint8, np.int64)
    return raw.splits  # type: ignore[return-value]


# What there is to fetch


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        (
            "MNIST",
            {
                "train-images-idx3-ubyte.gz": "f68b3c2dcbeaaa9fbdd348bbdeb94873",
                "train-labels-idx1-ubyte.gz": "d53e105ee54ea40749a09fcbcd1e9432",
                "t10k-images-idx3-ubyte.gz": "9fb629c4189551a2d022fa330f9573f3",
                "t10k-labels-idx1-ubyte.gz": "ec29112dd5afa0611ce80d1b7f02629c",
            },
        ),
        (
            "FashionMNIST",
            {
                "train-images-idx3-ubyte.gz": "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
                "train-labels-idx1-ubyte.gz": "25c81989df183df01b3e8a0aad5dffbe",
                "t10k-images-idx3-ubyte.gz": "bef4ecab320f06d8554ea6380940ec79",
                "t10k-labels-idx1-ubyte.gz": "bb300cfdad3c16e7a12a480ee83cd310",
            },
        ),
        (
            "KMNIST",
            {
                "train-images-idx3-ubyte.gz": "bdb82020997e1d708af4cf47b453dcf7",
                "train-labels-idx1-ubyte.gz": "e144d726b3acfaa3e44228e80efcd344",
                "t10k-images-idx3-ubyte.gz": "5c965bf0a639b31b8f53240b1b52f4d7",
                "t10k-labels-idx1-ubyte.gz": "7320c461ea6c1c855c0b718fb2a4b134",
            },
        ),
        ("EMNIST", {"gzip.zip": "58c8d27c78d21e728a6bc7b3cc06412e"}),
        ("CIFAR10", {"cifar-10-python.tar.gz": "c58f30108f718f92721af3b95e74349a"}),
        (
            "SVHN",
            {
                "train_32x32.mat": "e26dedcc434d2e4c54c9b2d4a06d8373",
                "test_32x32.mat": "eb5a983be6a315427106f1b164d9cef3",
            },
        ),
        (
            "CelebA",
            {
                "img_align_celeba.zip": "00d2c5bc6d35e252742224ab0c1e8fcb",
                "list_eval_partition.txt": "d32c9cbf5e040fd4025c592c306e6668",
            },
        ),
    ],
)
def test_the_files_of_a_set_have_the_published_checksums(name: str, wanted: dict[str, str]) -> None:
    found = files(name)
    assert {file.name: file.checksum for file in found} == {file: f"md5:{digest}" for file, digest in wanted.items()}
    for file in found:
        # All but CelebA, which is on Google Drive, can be fetched from an address that ends in the file's name.
        assert bool(file.urls) == (name != "CelebA")
        assert all("://" in url and url.endswith(f"/{file.name}") for url in file.urls)


def test_celeba_says_that_it_cannot_be_fetched(directory: Path, tmp_path: Path) -> None:
    config = small_section("download", source="celeba")
    with pytest.raises(UserError) as caught:
        sources.download(config, tmp_path, directory)
    assert str(caught.value) == (
        "img_align_celeba.zip (md5:00d2c5bc6d35e252742224ab0c1e8fcb): no source gives this file\n"
        "  no mirror is set, and no address is published\n"
        "set REPARAM_MIRRORS to a directory or server that holds it"
    )


# The family of MNIST


def mnist_files(images: Mapping[str, Array], labels: Mapping[str, Array]) -> dict[str, bytes]:
    """The four files; splits are named `train` and `t10k`."""
    return {
        **{f"{split}-images-idx3-ubyte.gz": gzip.compress(idx(values)) for split, values in images.items()},
        **{f"{split}-labels-idx1-ubyte.gz": gzip.compress(idx(values)) for split, values in labels.items()},
    }


@pytest.mark.parametrize("name", ["MNIST", "FashionMNIST", "KMNIST"])
def test_mnist_and_its_kin_are_read_from_idx_files(
    name: str, directory: Path, scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = {"train": noise(5, 28, 28), "t10k": noise(3, 28, 28)}
    labels = {"train": np.array([3, 9, 0, 3, 1]), "t10k": np.array([7, 0, 9])}
    write(directory, mnist_files(images, labels))
    kind = getattr(datasets, name)
    monkeypatch.setattr(kind, "resources", [(file, md5(directory / file)) for file, _ in kind.resources])
    raw = read(name, directory, scratch, "")
    splits = array_splits(raw)
    assert list(splits) == ["train", "test"]
    for split, published in (("train", "train"), ("test", "t10k")):
        np.testing.assert_array_equal(splits[split].images, images[published][:, None])
        np.testing.assert_array_equal(splits[split].labels, labels[published])
    assert len(raw.classes) == 10
    assert all(isinstance(label, str) for label in raw.classes)
    assert (
        raw.classes[9] == {"MNIST": "9 - nine", "FashionMNIST": "Ankle boot", "KMNIST": "wo"}[name]
    )  # the names that torchvision gives


def test_a_file_with_another_checksum_is_never_read(
    directory: Path, scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Where a file of the wrong content has the right name, torchvision would fetch it again; not in these tests.
    monkeypatch.setattr(datasets.MNIST, "mirrors", [(scratch / "nowhere").as_uri() + "/"])
    write(directory, mnist_files({"train": noise(5, 28, 28), "t10k": noise(3, 28, 28)}, {}))
    with pytest.raises(RuntimeError, match=r"Error downloading train-images-idx3-ubyte\.gz"):
        read("MNIST", directory, scratch, "")


LETTERS = tuple("abcdefghijklmnopqrstuvwxyz")
BALANCED = tuple("0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabdefghnqrt")  # Cohen et al. 2017, fig. 2: 47 classes
BYCLASS = tuple("0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz")


def emnist_zip(contents: Mapping[str, tuple[Array, Array]]) -> bytes:
    """The one file of EMNIST: `gzip/emnist-<variant>-<split>-images-idx3-ubyte.gz` and so on."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, (images, labels) in contents.items():
            archive.writestr(f"gzip/emnist-{name}-images-idx3-ubyte.gz", gzip.compress(idx(images)))
            archive.writestr(f"gzip/emnist-{name}-labels-idx1-ubyte.gz", gzip.compress(idx(labels)))
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("variant", "labels", "classes"),
    [
        ("letters", [0, 25, 1], LETTERS),
        ("balanced", [0, 46, 36], BALANCED),
        ("bymerge", [0, 46, 36], BALANCED),
        ("byclass", [0, 61, 36], BYCLASS),
        ("digits", [9, 0, 4], tuple("0123456789")),
        ("mnist", [9, 0, 4], tuple("0123456789")),
    ],
)
def test_a_variant_of_emnist_is_read_upright(
    variant: str,
    labels: list[int],
    classes: tuple[str, ...],
    directory: Path,
    scratch: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    upright = {"train": noise(3, 28, 28), "test": noise(2, 28, 28)}
    # As published: rows and columns exchanged, and the other variants beside it.
    contents = {
        f"{name}-{split}": (
            images.transpose(0, 2, 1) if name == variant else np.zeros_like(images),
            np.array(labels[: len(images)]) + (variant == "letters"),  # which are numbered from 1
        )
        for name in datasets.EMNIST.splits
        for split, images in upright.items()
    }
    write(directory, {"gzip.zip": emnist_zip(contents)})
    monkeypatch.setattr(datasets.EMNIST, "md5", md5(directory / "gzip.zip"))
    raw = read("EMNIST", directory, scratch, variant)
    splits = array_splits(raw)
    assert list(splits) == ["train", "test"]
    for split, images in upright.items():
        np.testing.assert_array_equal(splits[split].images, images[:, None])
        np.testing.assert_array_equal(splits[split].labels, labels[: len(images)])
    assert raw.classes == classes


# CIFAR-10


CIFAR_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


class Python2Pickler(pickle._Pickler):
    """Pickles as the Python 2 of 2009 did: text and bytes are one, and `align` of a dtype is the number 0."""

    def reducer_override(self, value: Any) -> Any:
        if isinstance(value, np.dtype):
            return np.dtype, ("u1", 0, 1), value.__reduce__()[2]
        return NotImplemented

    def save_string(self, value: str | bytes) -> None:
        content = value.encode() if isinstance(value, str) else value
        self.write(pickle.BINSTRING + struct.pack("<I", len(content)) + content)

    dispatch: ClassVar[dict[type, Any]] = {**pickle._Pickler.dispatch, str: save_string, bytes: save_string}


def pickled(value: Any) -> bytes:
    buffer = io.BytesIO()
    Python2Pickler(buffer, protocol=2).dump(value)
    return buffer.getvalue().replace(b"cnumpy._core.", b"cnumpy.core.")  # where it was until NumPy 2


@pytest.fixture
def cifar(directory: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, tuple[Array, list[int]]]:
    """The archive with two images in each of its six batches: name of the batch -> images (2, 3, 32, 32), labels."""
    kind = datasets.CIFAR10
    names = [name for name, _ in (*kind.train_list, *kind.test_list)]
    batches = {name: (noise(2, 3, 32, 32), RANDOM.integers(0, 10, 2).tolist()) for name in names}
    contents = {
        # Source: the data set's page: a row holds 1024 red, 1024 green and 1024 blue values, each row by row.
        name: pickled({"batch_label": name, "labels": labels, "data": images.reshape(2, 3072), "filenames": ["a", "b"]})
        for name, (images, labels) in batches.items()
    }
    contents["batches.meta"] = pickled({"num_cases_per_batch": 2, "label_names": list(CIFAR_CLASSES), "num_vis": 3072})
    with tarfile.open(directory / kind.filename, "w:gz") as archive:
        for name, content in contents.items():
            member = tarfile.TarInfo(f"{kind.base_folder}/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))

    digests = {name: hashlib.md5(content).hexdigest() for name, content in contents.items()}
    monkeypatch.setattr(kind, "tgz_md5", md5(directory / kind.filename))
    monkeypatch.setattr(kind, "train_list", [[name, digests[name]] for name in names[:5]])
    monkeypatch.setattr(kind, "test_list", [[names[5], digests[names[5]]]])
    monkeypatch.setattr(kind, "meta", {**kind.meta, "md5": digests["batches.meta"]})
    return batches


def test_cifar_is_read_in_red_green_and_blue(
    cifar: dict[str, tuple[Array, list[int]]], directory: Path, scratch: Path
) -> None:
    raw = read("CIFAR10", directory, scratch, "")
    splits = array_splits(raw)
    *training, (test_images, test_labels) = cifar.values()
    assert list(splits) == ["train", "test"]
    np.testing.assert_array_equal(splits["train"].images, np.concatenate([images for images, _ in training]))
    np.testing.assert_array_equal(splits["train"].labels, [label for _, labels in training for label in labels])
    np.testing.assert_array_equal(splits["test"].images, test_images)
    np.testing.assert_array_equal(splits["test"].labels, test_labels)
    assert raw.classes == CIFAR_CLASSES


# SVHN


def test_svhn_is_read_from_matlab_files_and_its_ten_is_a_zero(
    directory: Path, scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = {"train": noise(4, 3, 32, 32), "test": noise(2, 3, 32, 32)}
    labels = {"train": [1, 10, 9, 2], "test": [10, 5]}
    listed = dict(datasets.SVHN.split_list)
    for split, values in images.items():
        path = directory / f"{split}_32x32.mat"
        # As published: X (32, 32, 3, N) and y (N, 1), in which 10 is the digit 0.
        scipy.io.savemat(path, {"X": values.transpose(2, 3, 1, 0), "y": np.array(labels[split], np.uint8)[:, None]})
        listed[split] = [listed[split][0], path.name, md5(path)]
    monkeypatch.setattr(datasets.SVHN, "split_list", listed)
    raw = read("SVHN", directory, scratch, "")
    splits = array_splits(raw)
    assert list(splits) == ["train", "test"]
    for split, values in images.items():
        np.testing.assert_array_equal(splits[split].images, values)
        np.testing.assert_array_equal(splits[split].labels, [label % 10 for label in labels[split]])
    assert raw.classes == tuple("0123456789")


# CelebA


def test_celeba_comes_in_its_three_published_splits(directory: Path, scratch: Path) -> None:
    greys = {f"{number:06}.jpg": 20 * number for number in range(1, 7)}
    with zipfile.ZipFile(directory / "img_align_celeba.zip", "w") as archive:
        for name, grey in greys.items():
            buffer = io.BytesIO()
            Image.new("RGB", (178, 218), (grey, grey, grey)).save(buffer, "JPEG")
            archive.writestr(f"img_align_celeba/{name}", buffer.getvalue())
    parts = {"000001.jpg": 0, "000002.jpg": 1, "000003.jpg": 0, "000004.jpg": 2, "000005.jpg": 2, "000006.jpg": 0}
    partition = "".join(f"{name} {part}\n" for name, part in parts.items())
    write(directory, {"list_eval_partition.txt": partition.encode()})
    raw = read("CelebA", directory, scratch, "")
    assert list(raw.splits) == ["train", "validation", "test"]
    for split, numbers in (("train", (1, 3, 6)), ("validation", (2,)), ("test", (4, 5))):
        found = raw.splits[split]
        assert isinstance(found, ImageFiles)
        assert found.names == tuple(f"img_align_celeba/{number:06}.jpg" for number in numbers)
        assert found.labels == (0,) * len(numbers)
        for name, number in zip(found.names, numbers, strict=True):
            with Image.open(found.root / name) as image:
                assert image.size == (178, 218)
                assert image.getpixel((0, 0)) == (20 * number,) * 3
    assert raw.classes == ("face",)


# MNIST itself


@pytest.fixture(scope="module")
def mnist(mnist_files: Path, tmp_path_factory: pytest.TempPathFactory) -> Raw:
    """The real MNIST, downloaded from a mirror that is a directory, and read."""
    base = tmp_path_factory.mktemp("mnist")
    for name in ("raw", "scratch"):
        (base / name).mkdir()
    config = small_section("download", source="mnist")
    sources.download(config, base, base / "raw", [str(mnist_files)])
    sources.write_manifest(config, base / "raw")
    return sources.read(base / "raw", base / "scratch")[1]


def test_the_real_mnist_is_complete(mnist: Raw) -> None:
    splits = array_splits(mnist)
    # Sums of all grey values, and images of each digit: facts of the data set, counted from the published files.
    facts = {
        split: (found.images.shape, int(found.images.sum(dtype=np.int64)), np.bincount(found.labels).tolist())
        for split, found in splits.items()
    }
    assert facts == {
        "train": ((60_000, 1, 28, 28), 1_567_298_545, [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]),
        "test": ((10_000, 1, 28, 28), 264_923_200, [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]),
    }
    assert splits["train"].labels[:10].tolist() == [5, 0, 4, 1, 9, 2, 1, 3, 1, 4]
    assert splits["test"].labels[:10].tolist() == [7, 2, 1, 0, 4, 1, 4, 9, 5, 9]


def test_the_real_mnist_passes_torchvisions_own_checks(mnist_files: Path) -> None:
    for file, digest in datasets.MNIST.resources:
        assert md5(mnist_files / file) == digest


def test_the_real_mnist_is_what_torchvision_reads(mnist: Raw, mnist_files: Path, tmp_path: Path) -> None:
    (tmp_path / "MNIST").mkdir()
    (tmp_path / "MNIST/raw").mkdir()
    for file in mnist_files.iterdir():
        (tmp_path / "MNIST/raw" / file.name).symlink_to(file)
    for split, is_train in (("train", True), ("test", False)):
        published = datasets.MNIST(tmp_path, train=is_train, download=True)
        found = array_splits(mnist)[split]
        np.testing.assert_array_equal(found.images[:, 0], published.data.numpy())
        np.testing.assert_array_equal(found.labels, published.targets.numpy())
