import importlib.util
import json
import os
import tarfile
import zipfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from conftest import small_section
from PIL import Image
from sklearn.datasets import load_digits

from reparam.cards.data import DownloadCard
from reparam.config import DownloadConfig
from reparam.data.sources.folder import ImageFiles
from reparam.data.sources.raw import ImageArrays
from reparam.data.sources.registry import SOURCES, download, read, write_manifest
from reparam.errors import DamagedInputError, MissingInputError, ParamsError, UserError
from reparam.files import sha256

REMEDY = "run `dvc repro --force --single-item download`"


def settings(source: str, **values: Any) -> DownloadConfig:
    return small_section("download", source=source, **values)


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    """The digits, freshly downloaded."""
    directory = tmp_path / "raw"
    directory.mkdir()
    download(settings("digits"), tmp_path, directory)
    write_manifest(settings("digits"), directory)
    return directory


@pytest.fixture
def scratch(tmp_path: Path) -> Path:
    (tmp_path / "scratch").mkdir()
    return tmp_path / "scratch"


def test_the_manifest_says_what_was_downloaded(raw: Path) -> None:
    manifest = json.loads((raw / "manifest.json").read_text())
    file = raw / "digits.csv.gz"
    assert manifest == {
        "checksum": DownloadCard.read(raw / "manifest.json", "download").digest,
        "source": "digits",
        "options": {},
        "title": "Optical recognition of handwritten digits, test part (Alpaydin & Kaynak 1998)",
        "licence": "CC BY 4.0",
        "files": {"digits.csv.gz": {"sha256": sha256(file), "bytes": file.stat().st_size}},
    }
    assert {path.name for path in raw.iterdir()} == {"digits.csv.gz", "manifest.json"}


@pytest.mark.parametrize("mirror", ["mirror", "~/mirror", "{base}/mirror", "file://{base}/mirror"])
def test_a_mirror_is_where_the_project_or_the_user_is_at_home(
    mirror: str, raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: SimpleNamespace(origin=f"{tmp_path}/none/x.py"))
    raw.rename(tmp_path / "mirror")
    raw.mkdir()
    download(settings("digits"), tmp_path, raw, [mirror.format(base=tmp_path)])
    assert (raw / "digits.csv.gz").read_bytes() == (tmp_path / "mirror/digits.csv.gz").read_bytes()


def test_the_home_of_nobody_is_a_mirror_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: SimpleNamespace(origin=f"{tmp_path}/none/x.py"))
    with pytest.raises(UserError) as caught:
        download(settings("digits"), tmp_path, tmp_path / "raw", ["~no such user"])
    line = str(caught.value).splitlines()[1]
    assert line == f"  {tmp_path}/~no such user/digits.csv.gz: No such file or directory"


def test_the_digits_are_those_of_scikit_learn(raw: Path, scratch: Path) -> None:
    card, found = read(raw, scratch)
    published = load_digits()
    assert card.source == "digits"
    assert list(found.splits) == ["all"]
    digits = found.splits["all"]
    assert isinstance(digits, ImageArrays)
    assert (digits.images.dtype, digits.images.shape) == (np.uint8, (1797, 1, 8, 8))
    assert (digits.labels.dtype, digits.labels.shape) == (np.int64, (1797,))
    np.testing.assert_array_equal(digits.images[:, 0], np.rint(published.images * 255 / 16))
    np.testing.assert_array_equal(digits.labels, published.target)
    assert (digits.images.min(), digits.images.max()) == (0, 255)
    assert found.classes == tuple("0123456789")


def test_the_bundled_part_of_mnist_has_500_images_of_each_digit(tmp_path: Path, scratch: Path) -> None:
    raw = tmp_path / "raw"
    raw.mkdir()
    download(settings("mnist_5k"), tmp_path, raw)
    write_manifest(settings("mnist_5k"), raw)
    card, found = read(raw, scratch)
    digits = found.splits["all"]
    assert isinstance(digits, ImageArrays)
    assert card.source == "mnist_5k"
    assert (digits.images.dtype, digits.images.shape) == (np.uint8, (5000, 1, 28, 28))
    assert np.bincount(digits.labels).tolist() == [500] * 10
    assert (digits.images.min(), digits.images.max()) == (0, 255)
    assert not digits.images[:, 0, 0].any()  # the border is black
    assert round(digits.images.mean() / 255, 2) == 0.13  # as that of MNIST


def test_a_file_that_differs_from_the_published_one_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package, directory = tmp_path / "sklearn", tmp_path / "raw"
    address = package / "datasets/data/digits.csv.gz"
    address.parent.mkdir(parents=True)
    address.write_bytes(b"abc")
    spec = SimpleNamespace(origin=str(package / "__init__.py"))
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: spec)
    directory.mkdir()
    with pytest.raises(UserError) as caught:
        download(settings("digits"), tmp_path, directory)
    wanted = "sha256:09f66e6debdee2cd2b5ae59e0d6abbb73fc2b0e0185d2e1957e9ebb51e23aa22"
    assert str(caught.value) == (
        f"digits.csv.gz ({wanted}): no source gives this file\n"
        f"  {address.as_uri()}: wrong checksum: wanted {wanted}, "
        "found sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad\n"
        "set REPARAM_MIRRORS to a directory or server that holds it"
    )
    assert list(directory.iterdir()) == []


def test_without_scikit_learn_the_digits_say_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    with pytest.raises(UserError) as caught:
        download(settings("digits"), tmp_path, tmp_path)
    assert str(caught.value) == ("digits.csv.gz: ships inside sklearn, which is not installed; run `make install`")


def test_a_truncated_raw_file_is_refused(raw: Path, scratch: Path) -> None:
    path = raw / "digits.csv.gz"
    size = path.stat().st_size
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(DamagedInputError) as caught:
        read(raw, scratch)
    assert str(caught.value) == (
        f"{path}: wanted the {size} bytes that were downloaded, found 1000 bytes with another checksum; {REMEDY}"
    )


def test_a_raw_file_with_one_changed_byte_is_refused(raw: Path, scratch: Path) -> None:
    path = raw / "digits.csv.gz"
    content = bytearray(path.read_bytes())
    content[500] ^= 1
    path.write_bytes(content)
    with pytest.raises(DamagedInputError, match=f"found {len(content)} bytes with another checksum; {REMEDY}$"):
        read(raw, scratch)


def test_a_raw_file_that_is_gone_is_missed(raw: Path, scratch: Path) -> None:
    (raw / "digits.csv.gz").unlink()
    with pytest.raises(DamagedInputError, match=f"that were downloaded, found no file; {REMEDY}$"):
        read(raw, scratch)


def test_nothing_is_read_before_it_is_downloaded(tmp_path: Path) -> None:
    with pytest.raises(MissingInputError) as caught:
        read(tmp_path, tmp_path)
    assert str(caught.value) == f"{tmp_path}/manifest.json: not found; run `dvc repro download` first"


# What the parameters may name


def test_a_folder_must_be_named(tmp_path: Path) -> None:
    with pytest.raises(ParamsError) as caught:
        download(settings("folder"), tmp_path, tmp_path)
    assert str(caught.value) == (
        "params.yaml: download.folder.path: wanted a folder of images, a .zip or a .tar with download.source 'folder', "
        "found null"
    )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("path", ["/data/attributes.csv", "../attributes.csv", "tables/../../attributes.csv"])
def test_attributes_must_be_in_the_folder(path: str, tmp_path: Path) -> None:
    with pytest.raises(ParamsError) as caught:
        download(settings("folder", path="photos", attributes=path), tmp_path, tmp_path)
    assert str(caught.value) == (
        "params.yaml: download.folder.attributes: wanted the path of a CSV file in download.folder.path, which starts "
        f"there, found {path!r}; put the file into the folder"
    )


def test_a_label_without_attributes_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ParamsError) as caught:
        download(settings("folder", path="photos", label="hair"), tmp_path, tmp_path)
    assert str(caught.value) == (
        "params.yaml: download.folder.attributes: wanted the CSV file with the column of download.folder.label 'hair', "
        "found null; name the file, or set the label to null"
    )


def test_the_block_of_another_source_is_ignored(tmp_path: Path) -> None:
    config = settings("digits", path="nowhere", variant="letters", attributes="../a.csv", label="x")
    download(config, tmp_path, tmp_path)
    assert write_manifest(config, tmp_path).options == {}
    assert write_manifest(settings("emnist", variant="letters"), tmp_path).options == {"variant": "letters"}


def test_every_source_says_what_it_is_and_on_what_terms() -> None:
    ours = [
        *("digits", "mnist_5k", "mnist", "fashion_mnist", "kmnist", "emnist", "cifar10", "svhn", "celeba"),
        *("binarized_mnist", "omniglot", "dsprites", "sprites", "folder"),
    ]
    assert [name for name in SOURCES if name in ours] == ours
    assert all(source.title and source.licence for source in SOURCES.values())
    assert [name for name in ours if SOURCES[name].options] == ["emnist"]
    assert {name: SOURCES[name].optional for name in ours if SOURCES[name].optional} == {
        "folder": ("attributes", "label")
    }


# Folders of images


def paint(path: Path, grey: int) -> Path:
    """Write an image of one grey."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", (2, 3), grey).save(path)
    return path


@pytest.fixture
def pets(tmp_path: Path) -> Path:
    """A folder with two classes, and a file that is no image."""
    folder = tmp_path / "my pets"
    paint(folder / "cat/one.png", 10)
    paint(folder / "cat/naïve.png", 20)
    paint(folder / "dog/three.png", 30)
    (folder / "notes.txt").write_text("not an image")
    return folder


def zipped(folder: Path, prefix: str = "") -> Path:
    archive = folder.with_name("pets.zip")
    with zipfile.ZipFile(archive, "w") as file:
        for path in sorted(folder.rglob("*.png")):
            file.write(path, prefix + path.relative_to(folder).as_posix())
    return archive


def tarred(folder: Path) -> Path:
    archive = folder.with_name("pets.tar.gz")
    with tarfile.open(archive, "w:gz") as file:
        file.add(folder, "pets")
    return archive


@pytest.mark.parametrize(
    "pack", [lambda folder: folder, zipped, lambda folder: zipped(folder, "pets/"), tarred],
    ids=["folder", "zip", "wrapped zip", "wrapped tar.gz"],
)  # fmt: skip
def test_a_folder_and_an_archive_of_it_are_the_same_data(pack: Any, pets: Path, tmp_path: Path, scratch: Path) -> None:
    config = settings("folder", path=str(pack(pets)))
    directory = tmp_path / "raw"
    directory.mkdir()
    download(config, tmp_path, directory)
    write_manifest(config, directory)
    card, raw = read(directory, scratch)
    assert (card.source, raw.classes) == ("folder", ("cat", "dog"))
    images = raw.splits["all"]
    assert isinstance(images, ImageFiles)
    assert images.names == ("cat/naïve.png", "cat/one.png", "dog/three.png")
    assert images.labels == (0, 0, 1)
    greys = [int(np.asarray(Image.open(images.root / name))[0, 0]) for name in images.names]
    assert greys == [20, 10, 30]


def test_of_a_folder_the_images_alone_are_copied(pets: Path, tmp_path: Path) -> None:
    directory = tmp_path / "raw"
    directory.mkdir()
    config = settings("folder", path=str(pets))
    download(config, tmp_path, directory)
    card = write_manifest(config, directory)
    assert list(card.files) == ["images/cat/naïve.png", "images/cat/one.png", "images/dog/three.png"]


def test_what_a_killed_download_left_of_another_folder_is_not_mixed_in(pets: Path, tmp_path: Path) -> None:
    directory = tmp_path / "raw"
    paint(directory / "images/hamster/left over.png", 0)
    download(settings("folder", path=str(pets)), tmp_path, directory)
    assert sorted(path.name for path in (directory / "images").iterdir()) == ["cat", "dog"]


@pytest.mark.parametrize(
    ("path", "found"),
    [
        ("nowhere", "nothing"),
        ("~no such user/x", "nothing"),
        ("/dev/zero", "a device, pipe or socket"),
        ("pipe", "a device, pipe or socket"),
    ],
)
def test_what_is_neither_a_folder_nor_a_file_is_named(path: str, found: str, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    directory = tmp_path / "raw"
    directory.mkdir()
    with pytest.raises(UserError) as caught:
        download(settings("folder", path=path), tmp_path, directory)
    assert str(caught.value) == (
        f"download.folder.path: wanted a folder of images, a .zip or a .tar, found {found} at {tmp_path / path}; "
        "fix it in params.yaml"
    )
    assert list(directory.iterdir()) == []
