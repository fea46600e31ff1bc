"""How threads wait that have nothing to compute: OpenMP reads it when torch is loaded, so it is decided before."""

import os
import statistics
import time
from pathlib import Path

SAMPLES = 9
SECONDS_BETWEEN_SAMPLES = 0.002


def choose_wait_policy(directory: Path, system: Path = Path("/")) -> None:
    """Let waiting threads spin where nobody else computes, else sleep. Where OMP_WAIT_POLICY is set, it stands.

    On a quiet machine, spinning nearly halves the time of an epoch; beside others it trebles it, and what OpenMP does
    by itself, to spin for a while, makes it ten times as long. The results are the same.
    """
    alone = not (_may_run_side_by_side(directory) or (system / "dev/nvidia0").exists() or _is_busy(system))
    os.environ.setdefault("OMP_WAIT_POLICY", "ACTIVE" if alone else "PASSIVE")


def _may_run_side_by_side(directory: Path) -> bool:
    """Whether this is a workspace of `dvc exp run --temp` or of a queue worker, which start at the same moment."""
    return (".dvc", "tmp", "exps") in zip(directory.parts, directory.parts[1:], directory.parts[2:], strict=False)


def _is_busy(system: Path) -> bool:
    """Whether somebody else computes; taken to be so where the system does not tell."""
    running = []  # threads that could run at a moment, this one among them
    for _ in range(SAMPLES):
        try:
            load = (system / "proc/loadavg").read_text(encoding="utf-8")
            running.append(int(load.split()[3].split("/")[0]))
        except (OSError, IndexError, ValueError):
            return True
        time.sleep(SECONDS_BETWEEN_SAMPLES)
    return statistics.median(running) > 1
