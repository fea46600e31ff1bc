"""Find, show and, on request, remove leftovers of interrupted work that can be made again."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from reparam.machine import locks
from reparam.paths import Paths

MEGABYTE = 1e6


@dataclass(frozen=True)
class Leftover:
    """A file or folder, its description, and the lock that its owner holds; `kept` is the reason if it must stay."""

    path: Path
    what: str
    lock: Path | None = None
    kept: str = ""

    @property
    def size(self) -> int:
        """All bytes in it."""
        files = [self.path, *self.path.rglob("*")]
        return sum(file.stat().st_size for file in files if file.is_file() and not file.is_symlink())

    def line(self, name: str) -> str:
        """Show it in one line."""
        return f"{self.size / MEGABYTE:>10,.1f} MB  {name}: {self.what}{f'; stays: {self.kept}' if self.kept else ''}"

    def remove(self) -> None:
        """Remove it, unless its owner came back."""
        with _free(self.lock) as is_free:
            if is_free and self.path.is_dir():
                shutil.rmtree(self.path)
            elif is_free:
                self.path.unlink(missing_ok=True)


def find(paths: Paths) -> list[Leftover]:
    """List the leftovers, with their owners."""
    return [*_trainings(paths), *_downloads(paths), *_halves(paths), *_spools(paths)]


def _trainings(paths: Paths) -> Iterator[Leftover]:
    """List the checkpoints of the repository; those that REPARAM_RESUME_DIR names may belong to other machines."""
    if not paths.resume.is_relative_to(paths.shared):
        return
    # Those of a trial of a sweep are one level deeper, below a folder of its name.
    files = [path for name in ("lock", "*.safetensors") for path in paths.resume.rglob(name)]
    for directory in sorted({path.parent for path in files}):
        lock = directory / "lock"
        yield Leftover(directory, "an interrupted training", lock, _user(lock, "it is being trained"))


def _downloads(paths: Paths) -> Iterator[Leftover]:
    for directory in sorted(path for path in paths.downloads.glob("*") if path.is_dir()):
        lock = directory.with_name(f"{directory.name}.lock")
        yield Leftover(directory, "an unfinished download", lock, _user(lock, "it is being downloaded"))


def _halves(paths: Paths) -> Iterator[Leftover]:
    """Outputs that a killed stage had not finished."""
    stages = ", ".join(locks.running(paths.locks))
    kept = f"`reparam {stages}` runs" if stages else ""
    folders = [path for name in ("data", "models", "reports", "reports/*/") for path in paths.root.glob(name)]
    for folder in sorted({paths.root, paths.shared, *folders}):
        for path in sorted(folder.glob(".partial-*")):
            yield Leftover(path, "half-written by a process that was killed", kept=kept)


def _spools(paths: Paths) -> Iterator[Leftover]:
    spool = paths.tracking_spool
    if spool.is_dir():
        missed = len(list(spool.glob("*.jsonl")))
        kept = f"MLflow missed {missed} runs, which `reparam replay` delivers" if missed else ""
        yield Leftover(spool, "notes on runs of MLflow", kept=kept)


def _user(lock: Path, how: str) -> str:
    with _free(lock) as is_free:
        return "" if is_free else how


@contextmanager
def _free(path: Path | None) -> Iterator[bool]:
    """Hold a lock if there is one; yield whether nobody else does."""
    if path is None or not path.exists():
        yield True
        return
    lock = FileLock(path)
    with suppress(Timeout):
        lock.acquire(timeout=0)
    try:
        yield lock.is_locked
    finally:
        lock.release()
