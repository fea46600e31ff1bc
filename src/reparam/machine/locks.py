"""One process at a time runs a stage in a working copy."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from reparam.errors import BusyError


@contextmanager
def held(directory: Path, stage: str) -> Iterator[None]:
    """Hold the lock of a stage; the system releases it when the process ends, however it ends.

    Under torchrun the first process holds it for all.

    Raises: BusyError if another process holds it.
    """
    if os.environ.get("RANK", "0") != "0":
        yield
        return
    directory.mkdir(parents=True, exist_ok=True)
    lock, owner = FileLock(directory / f"{stage}.lock"), directory / f"{stage}.pid"
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise BusyError(_describe(stage, owner)) from None
    try:
        owner.write_text(f"{os.getpid()}\n", encoding="ascii")
        yield
    finally:
        owner.unlink(missing_ok=True)
        lock.release()


def _describe(stage: str, owner: Path) -> str:
    process = "another process"
    with suppress(OSError, ValueError):  # it may end, or not have written its number yet
        process = f"process {int(owner.read_text(encoding='ascii'))}"
    return (
        f"{stage}: wanted to be the only one that runs this stage in this working copy, found {process}; wait for it, "
        "or end it with `kill`, and run again"
    )


def running(directory: Path) -> dict[str, int]:
    """Return the processes of stages that run, by their stage."""
    found = {}
    for path in sorted(directory.glob("*.pid")):
        with suppress(OSError, ValueError):  # it may end, or not have written its number yet
            if is_alive(number := int(path.read_text(encoding="ascii"))):
                found[path.stem] = number
    return found


def is_alive(process: int) -> bool:
    """Return whether a process with this number exists."""
    try:
        os.kill(process, 0)
    except PermissionError:
        return True
    except (ProcessLookupError, OverflowError):  # the number of no process
        return False
    return True
