"""The README: short, and every command in it does what it says."""

import re
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dvc_project import Project, finished, project
from ruamel.yaml import YAML
from test_docs import code, lines_of_shell

from reparam.commands import summary
from reparam.paths import Paths

README = Path(__file__).parents[1] / "README.md"
TEXT = README.read_text(encoding="utf-8")
PICTURES = ["docs/pictures/samples.png", "docs/pictures/latent-grid.png", "docs/pictures/report.png"]
INSTALL = ["make run", "make test", ". .venv/bin/activate"]  # what `make` in this very environment has done
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

    def type_in(*lines: str) -> str:
        done = subprocess.run(
            ["bash", "-ec", "\n".join(lines)], cwd=project.root, env=project.environment, capture_output=True, text=True
        )
        assert done.returncode == 0, f"{lines}\n{done.stdout}\n{done.stderr}"
        return done.stdout

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
