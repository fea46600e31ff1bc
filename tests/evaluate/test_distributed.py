"""Several processes that score one model together."""

import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from conftest import change
from ruamel.yaml import YAML

from reparam.config import load_config
from reparam.download import stage as download
from reparam.evaluate import stage as evaluate
from reparam.paths import Paths
from reparam.preprocess import stage as preprocess
from reparam.train import stage as train

# Each process of a launch loads this first: it notes who writes, and the one that VICTIM names dies within scoring.
HOOK = """
import os, signal
if "RANK" in os.environ:
    from reparam.evaluate import scoring, stage
    write, likelihoods, rank = stage._write, scoring._likelihoods, os.environ["RANK"]
    def note(*arguments):
        with open("writers", "a") as file:
            file.write(rank)
        write(*arguments)
    def die(*arguments):
        if rank == os.environ.get("VICTIM"):
            open("killed", "w").close()
            os.kill(os.getpid(), signal.SIGKILL)
        return likelihoods(*arguments)
    stage._write, scoring._likelihoods = note, die
"""


@pytest.mark.parametrize("processes", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_scores_of_several_processes_are_those_of_one(processes: int, tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, Path(__file__).with_name("shared_scores.py"), str(processes)]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, "equal 28"), done.stderr


@pytest.fixture
def trained(project: Paths, params: dict[str, Any]) -> Paths:
    """A working copy with a trained model and 101 images to score: 4 batches of 25 and one of 1."""
    change(params["preprocess"], {"limit": 101})
    change(params["train"], {"epochs": 1})
    change(params["evaluate"], {"batch_size": 25, "outliers": "data/processed"})
    with project.params.open("w") as file:
        YAML().dump(params, file)
    config = load_config(project.params)
    for stage in (download, preprocess, train):
        stage.run(config, project)
    (project.root / "hook").mkdir()
    (project.root / "hook/sitecustomize.py").write_text(HOOK)
    return project


def launch(project: Paths, processes: int, **variables: str) -> subprocess.CompletedProcess[str]:
    path = f"{project.root / 'hook'}{os.pathsep}{Path(evaluate.__file__).parents[2]}"
    settings = {"PYTHONPATH": path, "REPARAM_LAUNCH": f"torchrun --nproc-per-node {processes}", "REPARAM_DEVICE": "cpu"}
    command = [sys.executable, "-m", "reparam", "evaluate"]
    return subprocess.run(
        command,
        cwd=project.root,
        env={**os.environ, "MLFLOW_TRACKING_URI": "off", **settings, **variables},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )


def written(project: Paths) -> dict[str, bytes]:
    folder = project.evaluation_metrics.parent
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("processes", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_evaluate_under_a_launch_writes_the_bytes_of_one_process_and_once(processes: int, trained: Paths) -> None:
    evaluate.run(load_config(trained.params), trained, "cpu")
    wanted = written(trained)
    for path in (trained.evaluation_metrics, trained.evaluation_card, trained.scores):
        path.unlink()
    done = launch(trained, processes)
    assert done.returncode == 0, done.stderr
    assert written(trained) == wanted
    assert (trained.root / "writers").read_text() == "0"
    warnings = [line for line in done.stderr.splitlines() if line.startswith("WARNING: evaluate: nll has only")]
    assert len(warnings) == 1  # one process speaks


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_a_process_that_is_killed_ends_evaluation_within_seconds(victim: int, trained: Paths) -> None:
    done = launch(trained, 2, VICTIM=str(victim))
    assert time.time() - (trained.root / "killed").stat().st_mtime < 30  # of which a quiet machine needs two
    assert done.returncode == 1
    said = f"error: process {victim} was killed by SIGKILL, and the others were stopped; "
    assert re.fullmatch(rf"{re.escape(said)}.*run the same command again: .*\n", done.stderr)
    assert not trained.evaluation_metrics.exists()


def test_a_mistake_is_one_message(trained: Paths) -> None:
    (trained.model / "weights.safetensors").write_bytes(b"damaged")
    done = launch(trained, 2)
    assert done.returncode == 1
    assert re.fullmatch(r"error: \S+weights\.safetensors: wanted SHA-256 .*; run `dvc repro .*`\n", done.stderr)
