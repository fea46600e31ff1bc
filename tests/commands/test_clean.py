"""`reparam clean`: what interrupted work left is listed, and removed on request; what somebody needs stays."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from reparam.paths import Paths

KEPT = (
    "data/raw/digits.csv.gz",
    "models/vae/weights.safetensors",
    "reports/index.html",
    "mlflow.db",
    "params.yaml.bak",
)


def write(path: Path, size: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"x" * size)
    return path


@pytest.fixture
def left(project: Paths) -> Paths:
    """A working copy with something of everything, in which nothing runs."""
    for name in KEPT:
        write(project.root / name, 1000)
    write(project.resume / "abc/00000001-def.safetensors", 2_000_000)
    write(project.resume / "abc/lock")
    write(project.downloads / "mnist/train.gz", 300_000)
    write(project.downloads / "mnist.lock")
    write(project.root / "models/.partial-vae/weights.safetensors", 100_000)
    write(project.root / "reports/training/.partial-history.csv", 40_000)
    write(project.tracking_spool / "run.lock")
    return project


def files(paths: Paths) -> set[str]:
    return {path.relative_to(paths.root).as_posix() for path in paths.root.rglob("*") if path.is_file()}


LISTED = """\
       2.0 MB  .resume/abc: an interrupted training
       0.3 MB  data/.downloads/mnist: an unfinished download
       0.1 MB  models/.partial-vae: half-written by a process that was killed
       0.0 MB  reports/training/.partial-history.csv: half-written by a process that was killed
       0.0 MB  .tracking: notes on runs of MLflow
"""


def test_what_is_left_is_listed_and_removed_with_yes_alone(left: Paths, reparam: Callable[..., Any]) -> None:
    before = files(left)
    assert reparam("clean") == (0, f"{LISTED}`reparam clean --yes` removes this\n")
    assert files(left) == before
    assert reparam("clean", "--yes") == (0, f"{LISTED}removed\n")
    assert files(left) == {*KEPT, "params.yaml", "data/.downloads/mnist.lock"}
    assert reparam("clean", "--yes") == (0, "nothing to remove\n")


def test_what_somebody_needs_stays(left: Paths, reparam: Callable[..., Any]) -> None:
    write(left.locks / "train.pid").write_text(str(os.getpid()))
    write(left.tracking_spool / "run.jsonl", 10)
    before = files(left)
    with FileLock(left.resume / "abc/lock"), FileLock(left.downloads / "mnist.lock"):
        code, printed = reparam("clean", "--yes")
    assert (code, [line.partition("; stays: ")[2] for line in printed.splitlines()]) == (
        0,
        [
            "it is being trained",
            "it is being downloaded",
            "`reparam train` runs",
            "`reparam train` runs",
            "MLflow missed 1 runs, which `reparam replay` delivers",
            "",
        ],
    )
    assert files(left) == before


def test_checkpoints_that_other_machines_share_are_left_alone(
    left: Paths, reparam: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    shared = write(tmp_path_factory.mktemp("mounted") / "abc/00000001-def.safetensors", 1000)
    monkeypatch.setenv("REPARAM_RESUME_DIR", str(shared.parents[1]))
    code, printed = reparam("clean", "--yes")
    assert (code, "interrupted training" in printed, shared.exists()) == (0, False, True)


def test_checkpoints_of_a_trial_stay_while_it_is_trained(project: Paths, reparam: Callable[..., Any]) -> None:
    checkpoint = write(project.resume / "width-0/abc/00000001-def.safetensors", 1000)
    lock = write(project.resume / "width-0/abc/lock")
    with FileLock(lock):
        code, printed = reparam("clean", "--yes")
        assert (code, checkpoint.exists()) == (0, True)
        assert "  .resume/width-0/abc: an interrupted training; stays: it is being trained" in printed
    assert reparam("clean", "--yes")[0] == 0
    assert not checkpoint.exists()
