"""Choose how threads wait, before torch is loaded and OpenMP reads the choice. Count cores."""

import os
import statistics
import sys
import time
from pathlib import Path
from typing import NoReturn

QUICK = (9, 0.002)  # samples, and the seconds between them
THOROUGH = (100, 0.02)
COPIES = Path(".dvc", "tmp", "exps")  # where DVC makes the copies of a repository that experiments run in

_spin_by_choice = False


class OthersCompute(SystemExit):
    """Training left a checkpoint and ended; started again, it goes on with waiting threads that sleep."""


def choose_wait_policy(directory: Path, system: Path = Path("/"), *, computes: bool = True) -> None:
    """Let waiting threads spin if nobody else computes, otherwise sleep. If OMP_WAIT_POLICY is set, it is kept.

    On a quiet machine, spinning nearly halves the time of an epoch; beside others it makes it several times as long.
    OpenMP's default, to spin for a while and then sleep, is slow as well. The results are the same.
    Pass `computes=False` for a process that computes little: its threads sleep.
    """
    global _spin_by_choice  # noqa: PLW0603  # a fact of this process, as the environment is
    has_company = _may_run_side_by_side(directory) or (system / "dev/nvidia0").exists() or _is_busy(1, QUICK, system)
    alone = computes and not has_company
    _spin_by_choice = alone and "OMP_WAIT_POLICY" not in os.environ
    os.environ.setdefault("OMP_WAIT_POLICY", "ACTIVE" if alone else "PASSIVE")


def cores() -> int:
    """Count the cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def others_came(threads: int, system: Path = Path("/")) -> bool:
    """Return whether waiting threads spin, but another process has computed for seconds.

    `threads` are those of this process.
    """
    return _spin_by_choice and all(_is_busy(threads, samples, system) for samples in (QUICK, THOROUGH))


def start_again() -> NoReturn:
    """Run the same command in the place of this process, with threads that sleep."""
    os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
    sys.stdout.flush()
    sys.stderr.flush()
    os.execv(sys.executable, [sys.executable, "-m", "reparam", *sys.argv[1:]])  # noqa: S606  # ourselves, without a shell


def _may_run_side_by_side(directory: Path) -> bool:
    """Return whether this is a workspace of `dvc exp run --temp` or of a queue worker: several start at once."""
    return any(place.match(f"*/{COPIES}") for place in (directory, *directory.parents))


def _is_busy(threads: int, samples: tuple[int, float], system: Path) -> bool:
    """Return whether more threads compute than ours; true if the system does not count them."""
    count, seconds = samples
    running = []  # threads that could run at a moment, ours among them
    for _ in range(count):
        try:
            load = (system / "proc/loadavg").read_text(encoding="utf-8")
            running.append(int(load.split()[3].split("/")[0]))
        except (OSError, IndexError, ValueError):
            return True
        time.sleep(seconds)
    return statistics.median(running) > threads
