"""A large file is read once by all processes of a machine, and again as soon as anything about it has changed."""

import os
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from reparam.files import sha256
from reparam.machine import verified

Reader = Callable[[Path], str]


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file that counts as large, and as one that changed long ago."""
    monkeypatch.setattr(verified, "LARGE", 4)
    monkeypatch.setattr(verified, "SETTLED", -1.0)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    path = tmp_path / "train-images.npy"
    path.write_bytes(b"images")
    time.sleep(0.05)  # clocks of files tick every few milliseconds
    return path


@pytest.fixture
def read() -> list[Path]:
    """The files that were read from the first to the last byte."""
    return []


@pytest.fixture
def compute(read: list[Path]) -> Reader:
    def reader(path: Path) -> str:
        read.append(path)
        return sha256(path)

    return reader


def test_a_file_is_read_once(file: Path, compute: Reader, read: list[Path]) -> None:
    digest = sha256(file)
    assert [verified.matches(file, digest, compute) for _ in range(3)] == [True, True, True]
    assert read == [file]


def test_another_digest_is_not_that_of_a_known_file(file: Path, compute: Reader) -> None:
    digest = sha256(file)
    assert verified.matches(file, digest, compute)
    assert not verified.matches(file, digest[::-1], compute)
    assert verified.matches(file, digest, compute)


def in_place(path: Path) -> None:
    with path.open("r+b") as stream:
        stream.write(b"x")


def with_its_old_time(path: Path) -> None:
    before = path.stat()
    in_place(path)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def by_another_file(path: Path) -> None:
    other = path.with_name("other")
    other.write_bytes(b"others")
    shutil.copystat(path, other)
    other.replace(path)


@pytest.mark.parametrize("change", [in_place, with_its_old_time, by_another_file])
def test_a_file_that_changed_is_read_again(change: Callable[[Path], None], file: Path, compute: Reader) -> None:
    digest = sha256(file)
    assert verified.matches(file, digest, compute)
    change(file)
    assert not verified.matches(file, digest, compute)


def test_a_file_that_changes_while_it_is_read_is_not_remembered(file: Path, read: list[Path]) -> None:
    digest = sha256(file)

    def slow(path: Path) -> str:
        read.append(path)
        found = sha256(path)
        path.write_bytes(b"others")
        return found

    assert verified.matches(file, digest, slow)
    assert not verified.matches(file, digest, slow)
    assert read == [file, file]


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        pytest.param("SETTLED", 60.0, id="changed a moment ago"),
        pytest.param("LARGE", 7, id="small"),
        pytest.param("directory", lambda: Path("missing"), id="no place for a note"),
    ],
)
def test_a_file_that_is_not_remembered_is_read_each_time(
    setting: str, value: object, file: Path, compute: Reader, read: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verified, setting, value)
    assert [verified.matches(file, sha256(file), compute) for _ in range(2)] == [True, True]
    assert read == [file, file]


def test_a_note_that_is_not_whole_is_none(file: Path, compute: Reader, read: list[Path]) -> None:
    digest = sha256(file)
    assert verified.matches(file, digest, compute)
    [note] = file.parent.rglob("*.verified")
    note.write_text(note.read_text()[:-1])
    assert verified.matches(file, digest, compute)
    assert read == [file, file]
