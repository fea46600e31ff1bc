"""Write whole files or none, and name files by their content."""

import csv
import errno
import hashlib
import io
import json
import math
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from reparam.errors import MissingInputError

try:
    import fcntl
except ImportError:  # Windows has no such locks
    fcntl = None  # type: ignore[assignment]

MANY = 256  # files
NO_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP)  # of some file systems in a network, and of buckets that are mounted


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Yield a path to write to; `path` appears, complete and on disk, when the block ends without an error."""
    refuse_special(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".partial-{path.name}")
    with _alone(partial, path):
        try:
            yield partial
            _flush(partial)
            partial.replace(path)
            _flush(path.parent)
        finally:
            partial.unlink(missing_ok=True)


@contextmanager
def _alone(partial: Path, path: Path) -> Iterator[None]:
    """Lock a file while it is written, if there are locks, so that two processes never mix their bytes.

    Raises: OSError if another process writes it.
    """
    with partial.open("ab") as file:
        if fcntl is not None:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                message = "another process is writing it; wait for its end, and run again"
                raise OSError(errno.EBUSY, message, str(path)) from None
            except OSError as error:
                if error.errno not in NO_LOCKS:
                    raise
        yield


def refuse_special(path: Path) -> None:
    """Raise OSError if the path exists and is no regular file: `--output /dev/null` would replace the device."""
    if path.exists() and not path.is_file():
        raise OSError(errno.EINVAL, "wanted a file, found a folder, device or pipe; name another path", str(path))


@contextmanager
def whole_directory(path: Path, *, durable: bool = True) -> Iterator[Path]:
    """Yield a directory to fill; it takes the place of `path` when the block ends without an error.

    Without `durable`, files may not be on the disk yet: enough for files that need not outlive the process.
    """
    if path.exists() and not path.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, "is a file, wanted a directory; move it away", str(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    partial, old = (path.with_name(f".partial-{path.name}"), path.with_name(f".partial-old-{path.name}"))
    _remove(partial)
    partial.mkdir()
    try:
        yield partial
        if durable:
            _flush_all(list(partial.rglob("*")))
        _swap(path, partial, old)
    except OSError as error:
        if error.errno:
            error.filename = error.filename or str(path)  # the system does not name the file when a disk is full
        raise
    finally:
        _remove(partial)


@contextmanager
def scratch_directory(beside: Path) -> Iterator[Path]:
    """Yield an empty directory and remove it when the block ends; first remove what a killed process left of it."""
    scratch = beside.with_name(f".partial-scratch-{beside.name}")
    _remove(scratch)
    scratch.mkdir(parents=True)
    try:
        yield scratch
    finally:
        _remove(scratch)


def write_json(path: Path, value: Any) -> None:
    """Write JSON with one spelling per value, so that equal values give equal bytes."""
    with whole_file(path) as partial:
        partial.write_text(to_json(value), encoding="utf-8")


def to_json(value: Any) -> str:
    """Spell a value as JSON, each in one way only."""
    return json.dumps(value, indent=2, allow_nan=False) + "\n"


def parse_table(text: str, *columns: str) -> list[dict[str, float]]:
    """Read rows of numbers, written as CSV; a row lacks the columns that are blank in it.

    Raises: ValueError if there is no row, or a row lacks one of these columns, or has anything but finite numbers.
    """
    try:
        rows = [
            {name: float(value) for name, value in row.items() if value != ""}
            for row in csv.DictReader(io.StringIO(text, newline=""))
        ]
    except (csv.Error, TypeError) as error:  # a field without end; a row that is shorter or longer than the first
        raise ValueError(str(error)) from None
    if not rows or not all(math.isfinite(value) for row in rows for value in row.values()):
        raise ValueError("not rows of finite numbers")
    if missing := [name for name in columns if any(name not in row for row in rows)]:
        raise ValueError(f"no column {', '.join(missing)}")
    return rows


def require_writable(*paths: Path) -> None:
    """Raise PermissionError before long work whose output could not be stored."""
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        if not os.access(path.parent, os.W_OK):
            raise PermissionError(errno.EACCES, "no permission to write", str(path.parent))


def rerun(stage: str) -> str:
    """Name the command that makes a stage's outputs again, for messages about damaged ones."""
    return f"run `dvc repro --force --single-item {stage}`"


def require(path: Path, made_by: str) -> None:
    """Raise MissingInputError unless `path`, an output of the stage `made_by`, is there."""
    if not path.exists():
        raise MissingInputError(f"{path}: not found; run `dvc repro {made_by}` first")


def sha256(path: Path) -> str:
    """Hash the content of one file."""
    digest = hashlib.sha256()
    # Not by `file_digest`, whose large buffer costs more than hashing a small file; folders hold many of them.
    with path.open("rb", buffering=0) as file:
        while block := file.read(1 << 16):
            digest.update(block)
    return digest.hexdigest()


def dvc_hash(directory: Path) -> str:
    """Hash a directory exactly as DVC does, so that the value can be found in `dvc.lock`.

    Source: `dvc_data.hashfile.tree`: the MD5 of a JSON list of (MD5, relative path), sorted by path.
    """
    entries = []
    for file in directory.rglob("*"):
        if file.is_file():
            with file.open("rb") as stream:
                digest = hashlib.file_digest(stream, "md5").hexdigest()
            entries.append({"md5": digest, "relpath": file.relative_to(directory).as_posix()})
    entries.sort(key=lambda entry: entry["relpath"])
    listing = json.dumps(entries, sort_keys=True).encode()
    return hashlib.md5(listing, usedforsecurity=False).hexdigest() + ".dir"


def _swap(path: Path, new: Path, old: Path) -> None:
    if path.exists() and not os.access(path, os.W_OK):
        raise PermissionError(errno.EACCES, "no permission to replace it", str(path))
    _remove(old)
    if path.exists():
        path.rename(old)
    try:
        new.rename(path)
    except OSError:
        if old.exists():
            old.rename(path)
        raise
    _flush(path.parent)
    _remove(old)


def _flush_all(files: list[Path]) -> None:
    if len(files) > MANY and hasattr(os, "sync"):
        os.sync()  # once for all: one by one, 40,000 small files take minutes
    else:
        for file in files:
            _flush(file)


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove(directory: Path) -> None:
    if directory.exists():
        shutil.rmtree(directory)
