"""A repository of git and DVC with experiments in it."""

import shutil
import sys
from pathlib import Path

import pytest
from experiments import type_in, write_results
from ruamel.yaml import YAML

from reparam.paths import Paths

PIPELINE = """
stages:
  all:
    cmd: this is never run
    outs:
      - models/onnx
      - reports/training/history.csv
      - reports/evaluation/card.json
      - reports/evaluation/figures
      - reports/evaluation/scores.npz
    metrics:
      - reports/training/metrics.json: {cache: false}
      - reports/evaluation/metrics.json: {cache: false}
      - reports/export/metrics.json: {cache: false}
"""


@pytest.fixture(scope="session")
def repository_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A commit without results, then `main` with some, and the experiment `wide`."""
    root = tmp_path_factory.mktemp("dvc") / "repository"
    (root / ".dvc").mkdir(parents=True)
    (root / ".dvc/config").write_text("[core]\n    analytics = false\n")
    (root / ".dvc/.gitignore").write_text("/cache\n/tmp\n/config.local\n")
    (root / "dvc.yaml").write_text(PIPELINE)
    shipped = YAML(typ="safe").load(Path(__file__).parents[2] / "params.yaml")
    paths = Paths(root, root)
    shutil.copy(Path(__file__).parents[2] / "params.yaml", paths.params)
    dvc = (sys.executable, "-m", "dvc")
    type_in(root, "git", "init", "--quiet", "--initial-branch", "main")
    type_in(root, "git", "add", "--all")
    type_in(root, "git", "commit", "--quiet", "--message", "start")
    write_results(paths, shipped, -20.0)
    type_in(root, *dvc, "commit", "--quiet", "--force")
    type_in(root, "git", "add", "--all")
    type_in(root, "git", "commit", "--quiet", "--message", "finished")
    shipped["model"]["latent"] = 20
    write_results(paths, shipped, -18.0, nll_samples=5)
    type_in(root, *dvc, "commit", "--quiet", "--force")
    type_in(root, *dvc, "exp", "save", "--quiet", "--name", "wide")
    return root


@pytest.fixture
def repository(
    project: Paths, repository_once: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> Paths:
    """The repository as the working copy; nobody changes it."""
    monkeypatch.chdir(repository_once)
    monkeypatch.setenv("DVC_SITE_CACHE_DIR", str(repository_once.parent / "site"))
    return Paths.here()
