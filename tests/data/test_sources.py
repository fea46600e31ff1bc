import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from sklearn.datasets import load_digits

from reparam.data.sources import SOURCES, download, read
from reparam.errors import DamagedInputError, MissingInputError, UserError
from reparam.files import sha256

REMEDY = "run `dvc repro --force --single-item download`"


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    """The digits, freshly downloaded."""
    download("digits", tmp_path)
    return tmp_path


def test_the_manifest_tells_what_was_downloaded(raw: Path) -> None:
    manifest = json.loads((raw / "manifest.json").read_text())
    file = raw / "digits.csv.gz"
    assert manifest == {
        "source": "digits",
        "title": "Optical recognition of handwritten digits, test part (Alpaydin & Kaynak 1998)",
        "licence": "CC BY 4.0",
        "files": {"digits.csv.gz": {"sha256": sha256(file), "bytes": file.stat().st_size}},
    }
    assert {path.name for path in raw.iterdir()} == {"digits.csv.gz", "manifest.json"}


def test_the_digits_are_those_of_scikit_learn(raw: Path) -> None:
    name, images, labels = read(raw)
    published = load_digits()
    assert name == "digits"
    assert (images.dtype, images.shape) == (np.uint8, (1797, 1, 8, 8))
    assert (labels.dtype, labels.shape) == (np.int64, (1797,))
    np.testing.assert_array_equal(images[:, 0], np.rint(published.images * 255 / 16))
    np.testing.assert_array_equal(labels, published.target)
    assert (images.min(), images.max()) == (0, 255)


def test_a_file_that_differs_from_the_published_one_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fetch(directory: Path) -> None:
        (directory / "digits.csv.gz").write_bytes(b"abc")

    monkeypatch.setitem(SOURCES, "digits", dataclasses.replace(SOURCES["digits"], fetch=fetch))
    with pytest.raises(UserError) as caught:
        download("digits", tmp_path)
    wanted = SOURCES["digits"].checksums["digits.csv.gz"]
    assert str(caught.value) == (
        "digits: digits.csv.gz has SHA-256 ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad, "
        f"wanted {wanted}: the file differs from the published one; reinstall or fetch it again"
    )
    assert not (tmp_path / "manifest.json").exists()


def test_a_truncated_raw_file_is_refused(raw: Path) -> None:
    path = raw / "digits.csv.gz"
    size = path.stat().st_size
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(DamagedInputError) as caught:
        read(raw)
    assert str(caught.value) == (
        f"{path}: wanted the {size} bytes that were downloaded, found 1000 bytes with another checksum; {REMEDY}"
    )


def test_a_raw_file_with_one_changed_byte_is_refused(raw: Path) -> None:
    path = raw / "digits.csv.gz"
    content = bytearray(path.read_bytes())
    content[500] ^= 1
    path.write_bytes(content)
    with pytest.raises(DamagedInputError, match=f"found {len(content)} bytes with another checksum; {REMEDY}$"):
        read(raw)


def test_a_raw_file_that_is_gone_is_missed(raw: Path) -> None:
    (raw / "digits.csv.gz").unlink()
    with pytest.raises(DamagedInputError, match=f"that were downloaded, found no file; {REMEDY}$"):
        read(raw)


def test_nothing_is_read_before_it_is_downloaded(tmp_path: Path) -> None:
    with pytest.raises(MissingInputError) as caught:
        read(tmp_path)
    assert str(caught.value) == f"{tmp_path}/manifest.json: not found; run `dvc repro download` first"
