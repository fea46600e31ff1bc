"""The README: short, and every command in it does what it says."""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import requests
from dvc_project import Project, clone_of, finished, project
from requests.adapters import HTTPAdapter
from ruamel.yaml import YAML
from test_docs import code, lines_of_shell
from urllib3.util import Retry

from reparam.commands import summary
from reparam.paths import Paths

README = Path(__file__).parents[1] / "README.md"
TEXT = README.read_text(encoding="utf-8")
PICTURES = ["docs/pictures/samples.png", "docs/pictures/latent-grid.png", "docs/pictures/report.png"]
MAKE_RUN, MAKE_TEST, ACTIVATE = INSTALL = ["make run", "make test", ". .venv/bin/activate"]
BROWSE = "mlflow ui --backend-store-uri sqlite:///mlflow.db"


def test_it_is_short() -> None:
    assert len(TEXT.splitlines()) <= 120
    assert len(TEXT.split()) <= 900


def test_it_shows_three_small_pictures() -> None:
    assert re.findall(r"!\[[^\]]+\]\(([^)]+)\)", TEXT) == PICTURES
    files = [README.parent / picture for picture in PICTURES]
    assert sum(file.stat().st_size for file in files) < 300_000


def beta(params: str) -> float:
    return YAML(typ="safe").load(params)["objective"]["beta"]


def test_the_commands_for_experiments_leave_a_sane_workspace(project: Project) -> None:
    project("git reset --quiet HEAD~1")  # to where `make run` has just run for the first time
    project.environment["PYTHONPATH"] = str(project.root / "src")  # for `reparam`
    add, commit, run, compare, apply, restore, checkout, branch = (
        line for line in lines_of_shell(README) if line not in [*INSTALL, BROWSE]
    )

    type_in = project.type_in
    type_in(add, commit)
    first = project.hashes()
    type_in(run)
    assert (project("git status --porcelain"), project.hashes()) == ("", first)
    (row,) = project.training_runs().values()  # of a temporary copy, in the store of the real repository
    assert (row.info.run_name, row.data.params["objective.beta"]) == ("gentle", "0.5")
    assert project.stages_below(row) == ["evaluate", "export", "report"]
    assert re.search(r"objective\.beta +1\.0 +0\.5", type_in(compare))

    type_in(apply)
    assert beta((project.root / "params.yaml").read_text()) == 0.5
    assert project.hashes()["models/onnx"] != first["models/onnx"]
    type_in(restore, checkout)
    assert (project("git status --porcelain"), project.hashes()) == ("", first)
    assert project("dvc status").strip() == "Data and pipelines are up to date."

    type_in(branch)
    assert beta(project("git show softer:params.yaml")) == 0.5
    assert project("git status --porcelain") == ""


@pytest.fixture
def clone(finished: Project, tmp_path: Path) -> Project:
    """A clone where nothing ran."""
    made = clone_of(finished.root, tmp_path / "clone")
    made("git checkout --quiet HEAD~1")
    return made


@pytest.mark.slow
def test_make_runs_the_pipeline_and_prints_the_headline(clone: Project) -> None:
    printed = clone.type_in(MAKE_RUN)
    for stage in ("download", "preprocess", "train", "evaluate", "export", "report"):
        assert f"Running stage '{stage}'" in printed
    for name in ("ELBO", "NLL", "ONNX parity", "report", "experiments"):
        assert re.search(rf"^(│ )?{name} ", printed, re.M), printed
    table = TEXT.partition("## What comes out")[2].partition("## Use")[0]
    files = re.findall(r"^\| `([^`]+)` ", table, re.M)
    assert len(files) == 5
    assert [name for name in files if not list(clone.root.glob(name))] == []
    assert clone("git status --porcelain --untracked-files=no") == ""
    assert "didn't change, skipping" in clone.type_in(MAKE_RUN)


@pytest.mark.slow
def test_make_runs_the_tests(clone: Project) -> None:
    one = "tests/test_metrics.py::test_no_metric_is_described_twice -p no:cacheprovider"
    root = README.parent
    command = f"{MAKE_TEST} --directory {root} VENV={clone.root / '.venv'}"
    printed = clone.type_in(command, PYTEST_ADDOPTS=one, PYTHONPATH=str(root / "src"))
    assert re.search(r"^=* 1 passed in ", printed, re.M), printed


@pytest.mark.slow
def test_an_activated_shell_has_the_python_and_the_commands_of_the_clone(clone: Project) -> None:
    printed = clone.type_in(
        ACTIVATE,
        "command -v python dvc mlflow reparam",
        "python -c 'import reparam; print(reparam.__file__)'",
        "reparam --version",
    )
    *commands, package, version = printed.splitlines()
    assert commands == [str(clone.root / ".venv/bin" / name) for name in ("python", "dvc", "mlflow", "reparam")]
    assert package == str(clone.root / "src/reparam/__init__.py")
    assert version.startswith("reparam ")


@pytest.mark.slow
def test_the_page_of_mlflow_opens_and_knows_the_trained_model(clone: Project, finished: Project) -> None:
    shutil.copy(finished.root / "mlflow.db", clone.root)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = ["bash", "-ec", f"{ACTIVATE}\n{BROWSE} --port {port}"]
    server = subprocess.Popen(command, cwd=clone.root, env=clone.environment, start_new_session=True)
    try:
        address = f"http://127.0.0.1:{port}"
        session = requests.Session()
        retry = Retry(120, allowed_methods=None, backoff_factor=1, backoff_max=1)
        session.mount("http://", HTTPAdapter(max_retries=retry))
        page = session.get(address, timeout=60).text
        asked = {"max_results": 10}
        found = session.post(f"{address}/ajax-api/2.0/mlflow/experiments/search", json=asked, timeout=60).json()
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()
    assert "<title>MLflow</title>" in page
    assert {"reparam", "reparam-data"} <= {experiment["name"] for experiment in found["experiments"]}


def test_every_command_is_run_by_a_test_above() -> None:
    lines = lines_of_shell(README)
    assert len(lines) == len(set(lines)) == len(INSTALL) + 8 + 1  # eight are of experiments
    assert {*INSTALL, BROWSE} <= set(lines)


def test_the_tutorial_has_the_same_commands() -> None:
    tutorial = lines_of_shell(README.parent / "docs/tutorial.md")
    assert [line for line in lines_of_shell(README) if line not in [*tutorial, "make test"]] == []


def test_mlflow_is_opened_as_the_summary_says(finished_paths: Paths, capsys: pytest.CaptureFixture[str]) -> None:
    summary.show(finished_paths)
    assert BROWSE in lines_of_shell(README)
    assert f"experiments   {BROWSE}\n" in capsys.readouterr().out


@pytest.fixture
def finished_paths(finished: Project, monkeypatch: pytest.MonkeyPatch) -> Paths:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(finished.root)
    return Paths(finished.root, finished.root)


@pytest.mark.parametrize("document", ["README.md", "docs/tutorial.md", "docs/how-to/app.md"])
def test_the_model_runs_in_an_app(document: str, finished: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(finished.root)
    for program in code(README.parent / document, "python"):
        found: dict[str, Any] = {}
        exec(program, found)
        assert (found["images"].shape, found["images"].dtype) == ((16, 8, 8, 1), np.uint8)
        if "mean, log_variance" in program:
            assert found["mean"].shape == found["log_variance"].shape == (16, 3)
