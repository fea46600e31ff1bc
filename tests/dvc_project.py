"""The project in temporary git repositories, under real DVC.

One small run of all six stages is shared; tests work on copies of it, most of them with a fresh tracking database.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import venv
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from conftest import CHANGES, change, once
from mlflow import MlflowClient
from mlflow.entities import Run
from ruamel.yaml import YAML

STAGES = ("download", "preprocess", "train", "evaluate", "export", "report")
PROJECT = Path(__file__).parent.parent


# In `src/` of each project: a stage writes the names of the modules that it loaded to where MODULES says.
NOTE_MODULES = """
import atexit, os, sys
from pathlib import Path

if "MODULES" in os.environ and sys.orig_argv[1:3] == ["-m", "reparam"]:
    note = Path(os.environ["MODULES"], f"{sys.orig_argv[3]}.modules")
    atexit.register(lambda: note.write_text(" ".join(sys.modules)))
"""


class Project:
    """A git repository with the project in it, and what a person types there."""

    def __init__(self, root: Path, **environment: str) -> None:
        self.root = root
        kept = {
            name: value for name, value in os.environ.items() if not name.startswith(("DVC_", "MLFLOW_", "REPARAM_"))
        }
        self.environment = kept | {
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "DVC_SITE_CACHE_DIR": str(root.parent / "dvc-site-cache"),
            "DVC_NO_ANALYTICS": "true",
            "GIT_AUTHOR_NAME": "test",
            "GIT_AUTHOR_EMAIL": "test@localhost",
            "GIT_COMMITTER_NAME": "test",
            "GIT_COMMITTER_EMAIL": "test@localhost",
            **environment,
        }

    def __call__(self, command: str) -> str:
        """Run a command line that must succeed; return what it printed."""
        done = subprocess.run(command.split(), cwd=self.root, env=self.environment, capture_output=True, text=True)
        assert done.returncode == 0, f"{command}: exit {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def type_in(self, *lines: str, **environment: str) -> str:
        """Run lines of one shell, which must succeed; return what they printed."""
        command, variables = ["bash", "-ec", "\n".join(lines)], self.environment | environment
        done = subprocess.run(command, cwd=self.root, env=variables, capture_output=True, text=True)
        assert done.returncode == 0, f"{lines}: exit {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def commit(self, message: str) -> None:
        self("git add --all")
        self(f"git commit --quiet --message {message}")

    def hashes(self) -> dict[str, str]:
        """Map every output in `dvc.lock` to its hash."""
        lock = YAML(typ="safe").load(self.root / "dvc.lock")
        outs = [out for stage in lock["stages"].values() for out in stage["outs"]]
        return {out["path"]: out["md5"] for out in outs}

    def metrics(self, stage: str) -> dict[str, float]:
        """What a stage reports, without the hashes of what it is of."""
        found = json.loads((self.root / f"reports/{stage}/metrics.json").read_text())
        return {name: value for name, value in found.items() if not isinstance(value, str)}

    def modules(self, stage: str) -> set[str]:
        """What a stage loaded when it ran in `finished`."""
        return set((self.root.parent / f"{stage}.modules").read_text().split())

    def client(self) -> MlflowClient:
        return MlflowClient(f"sqlite:///{self.root / 'mlflow.db'}")

    def runs(self, experiment: str = "reparam") -> list[Run]:
        """Read every run of an experiment back from the store, oldest first."""
        client = self.client()
        found = client.get_experiment_by_name(experiment)
        return (
            []
            if found is None
            else list(client.search_runs([found.experiment_id], order_by=["attributes.start_time ASC"]))
        )

    def training_runs(self) -> dict[str, Run]:
        """Map the name of each training run to it, after checking everything that must hold of every store."""
        runs = self.runs()
        assert {run.info.status for run in [*runs, *self.runs("reparam-data")]} <= {"FINISHED"}
        training = {run.info.run_id: run for run in runs if run.data.tags["reparam.stage"] == "train"}
        for run in runs:
            artifacts = Path(run.info.artifact_uri.removeprefix("file://"))
            assert artifacts.is_relative_to(self.root)
            assert any(artifacts.rglob("*")), f"{run.info.run_name} has no artifacts"
            if run.info.run_id not in training:
                parent = training[run.data.tags["mlflow.parentRunId"]]
                assert run.data.tags["reparam.weights_sha256"] == parent.data.tags["reparam.weights_sha256"]
        assert not (self.root / "mlruns").exists()
        return {run.info.run_name: run for run in training.values()}

    def stages_below(self, parent: Run) -> list[str]:
        below = [run for run in self.runs() if run.data.tags.get("mlflow.parentRunId") == parent.info.run_id]
        return sorted(run.data.tags["reparam.stage"] for run in below)


def project_in(root: Path, changes: Mapping[str, Mapping[str, Any]], **environment: str) -> Project:
    """Make a repository of the project as it is in the working tree, with other parameters, committed."""
    files = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=PROJECT,
        capture_output=True,
        text=True,
        check=True,
    )
    for name in filter(None, files.stdout.split("\0")):
        if not name.startswith(("tests/", ".ci/")) and name != "dvc.lock" and (PROJECT / name).exists():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(PROJECT / name, root / name)
    (root / "src/sitecustomize.py").write_text(NOTE_MODULES)
    for metrics in root.glob("reports/*/*.json"):  # those of a run in the working tree
        metrics.unlink()
    yaml = YAML()
    params = yaml.load(root / "params.yaml")
    for section, values in changes.items():
        change(params[section], values)
    yaml.dump(params, root / "params.yaml")
    project = Project(root, **environment)
    project("git init --quiet --initial-branch main")
    project.commit("start")
    return project


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A small run of the whole pipeline, committed. Copy it, do not change it."""

    def make(directory: Path) -> None:
        project = project_in(directory / "project", CHANGES, MODULES=str(directory))
        project("dvc repro --quiet")
        project.commit("finished")

    return Project(once(tmp_path_factory, "finished-under-dvc", make) / "project")


@pytest.fixture
def project(finished: Project, tmp_path: Path) -> Project:
    """A copy of the finished run, without its tracking database."""
    return copy_of(finished, tmp_path / "project")


def copy_of(source: Project, root: Path, **environment: str) -> Project:
    ignore = shutil.ignore_patterns("mlflow.db*", "mlartifacts", "tmp")
    shutil.copytree(source.root, root, symlinks=True, ignore=ignore)
    return Project(root, **environment)


def clone_of(repository: Path, root: Path) -> Project:
    """Clone a repository, and make a `.venv` in it as `make install` leaves it.

    Its packages are those of this environment: `test_install.py` installs.
    """
    subprocess.run(["git", "clone", "--quiet", repository, root], check=True)
    here, there = Path(sys.executable).parent, root / ".venv/bin"
    venv.create(there.parent, with_pip=False, symlinks=True)
    (packages,) = there.parent.glob("lib/python*/site-packages")
    (packages / "here.pth").write_text(f"{root / 'src'}\n{sysconfig.get_path('purelib')}\n")
    for name in ("dvc", "mlflow", "reparam"):
        script = (here / name).read_text(encoding="utf-8")
        (there / name).write_text(re.sub("^#!.*", f"#!{there}/python", script), encoding="utf-8")
        (there / name).chmod(0o755)
    (there.parent / ".reparam-installed").touch()  # newer than the pins, so `make` installs nothing
    project = Project(root)
    others = [part for part in os.environ["PATH"].split(os.pathsep) if Path(part) != here]
    project.environment["PATH"] = os.pathsep.join(others)
    project.environment.pop("PYTHONPATH", None)  # the clone has its own source
    return project
