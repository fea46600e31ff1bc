"""Remember which large files this machine has verified, so that stages and processes do not read each of them again."""

import time
from collections.abc import Callable
from contextlib import suppress
from hashlib import sha256 as hash_of
from pathlib import Path

from reparam.machine.private import directory

LARGE = 1 << 24  # bytes; smaller files are read in less than 30 ms
SETTLED = (
    2.0  # seconds; a file that changed later may change again without a new time, because clocks of files are coarse
)


def matches(path: Path, digest: str, compute: Callable[[Path], str]) -> bool:
    """Whether `compute` gives this digest for a file, or gave it before, and the file is the same since.

    A file is the same while its inode, its size and the time of its last change are; programs cannot set that time.
    """
    if path.stat().st_size < LARGE:
        return compute(path) == digest
    note, state = _note(path), f"{digest} {_state(path)}"
    with suppress(OSError):
        if note.read_text(encoding="ascii") == state:
            return True
    is_settled = time.time() - path.stat().st_ctime > SETTLED
    if compute(path) != digest:
        return False
    if is_settled and state == f"{digest} {_state(path)}":
        with suppress(OSError):  # then the next process reads the file again, as it does where a note is not whole
            note.write_text(state, encoding="ascii")
    return True


def _note(path: Path) -> Path:
    return directory() / f"{hash_of(str(path.resolve()).encode()).hexdigest()[:24]}.verified"


def _state(path: Path) -> str:
    found = path.stat()
    return f"{found.st_dev} {found.st_ino} {found.st_size} {found.st_mtime_ns} {found.st_ctime_ns}"
