"""Choose one of several GPUs for a process: one that no other process of ours on this machine has taken."""

import itertools
import os
import tempfile
from pathlib import Path

from filelock import FileLock, Timeout

_taken: list[FileLock] = []  # until the process ends, however it ends


def take_one(count: int) -> None:
    """Let this process see only one of `count` visible GPUs: the one that the fewest others have taken.

    So experiments that run side by side have a GPU each. Under torchrun, each process has the one of its rank.
    """
    if count < 2 or "LOCAL_RANK" in os.environ or _taken:
        return
    visible = os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(count)))
    names = [name.strip() for name in visible.split(",")][:count]
    folder = Path(tempfile.gettempdir()) / f"reparam-gpus-{os.getuid()}"
    folder.mkdir(exist_ok=True)
    for others, name in ((others, name) for others in itertools.count() for name in names):
        lock = FileLock(folder / f"{name.replace('/', '-')}-{others}.lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            continue
        _taken.append(lock)
        os.environ["CUDA_VISIBLE_DEVICES"] = name
        return
