"""A store that the tests of tracking share, each with an experiment of its own."""

import os
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from absent import Absent
from in_process import InProcess

from reparam.paths import Paths

LEFTOVER = "mlruns/0/meta.yaml"


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository with a fresh database, which takes a second, beside a leftover `mlruns` folder."""
    root = tmp_path_factory.mktemp("repository")
    (root / LEFTOVER).parent.mkdir(parents=True)
    (root / LEFTOVER).write_text("left over")
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith(("DVC_", "MLFLOW_"))]:
            patch.delenv(name)
        patch.chdir(root)
        InProcess.open(Paths(root, root))
    return root


@pytest.fixture
def paths(project: Paths, store: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Paths:
    """A scratch copy whose tracking goes to `store`, to an experiment of this test alone."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", request.node.name)
    return Paths(project.root, store)


@pytest.fixture
def tracker(paths: Paths) -> InProcess:
    """The open store."""
    return InProcess.open(paths)


@pytest.fixture
def spool_folder(paths: Paths) -> Iterator[Path]:
    """The folder of spools, which the tests of this module share, left as it was."""
    there = paths.tracking_spool.exists()
    yield paths.tracking_spool
    if not there:
        shutil.rmtree(paths.tracking_spool)


@pytest.fixture
def absent(tracker: InProcess) -> Absent:
    return Absent(tracker.client)


@pytest.fixture
def shaky(tracker: InProcess, absent: Absent, paths: Paths) -> Iterator[InProcess]:
    """`tracker`, with a client that goes away when `absent.away` is set."""
    yield InProcess(replace(tracker.store, client=absent))
    shutil.rmtree(paths.tracking_spool, ignore_errors=True)
