"""How threads wait that have nothing to compute: OpenMP reads it when torch is loaded, so it is decided before."""

import os
import statistics
import time
from pathlib import Path

SAMPLES = 9
SECONDS_BETWEEN_SAMPLES = 0.002


def choose_wait_policy(directory: Path, load: Path = Path("/proc/loadavg")) -> None:
    """Let waiting threads sleep where others compute, too; alone, they spin as OpenMP does by itself.

    Spinning halves the time of an epoch on a quiet machine, and trebles it on a busy one (benchmarks/RESULTS.md). The
    results are the same. Where OMP_WAIT_POLICY is set, it stands.
    """
    if "OMP_WAIT_POLICY" not in os.environ and (_may_run_side_by_side(directory) or _is_busy(load)):
        os.environ["OMP_WAIT_POLICY"] = "PASSIVE"


def _may_run_side_by_side(directory: Path) -> bool:
    """Whether this is a workspace of `dvc exp run --temp` or of a queue worker, which start at the same moment."""
    return (".dvc", "tmp", "exps") in zip(directory.parts, directory.parts[1:], directory.parts[2:], strict=False)


def _is_busy(load: Path) -> bool:
    """Whether somebody else computes, as far as the system tells."""
    others = []
    for _ in range(SAMPLES):
        try:
            running = int(load.read_text(encoding="utf-8").split()[3].split("/")[0])  # threads that could run now
        except (OSError, IndexError, ValueError):
            return False
        others.append(running - 1)
        time.sleep(SECONDS_BETWEEN_SAMPLES)
    return statistics.median(others) >= 1
