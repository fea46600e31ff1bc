"""Studies whose experiments are run by a small script in the place of DVC."""

import json
import sys
from types import SimpleNamespace
from typing import Any

import pytest
from sweeps import DVC, Sweeps

from reparam.paths import Paths
from reparam.sweep import study as studies
from reparam.sweep import trial as trials
from reparam.sweep import worker


@pytest.fixture
def sweeps(project: Paths, monkeypatch: pytest.MonkeyPatch) -> Sweeps:
    def read(name: str, paths: Paths) -> Any:
        result = paths.root / f"{name}.result"
        return SimpleNamespace(metrics=json.loads(result.read_text())) if result.exists() else None

    script = project.root / "fake_dvc.py"
    script.write_text(DVC)
    monkeypatch.setattr(trials, "DVC", (sys.executable, "-I", str(script)))
    monkeypatch.setattr(trials, "read_revision", read)
    monkeypatch.setattr(trials, "SECONDS", 0.01)
    monkeypatch.setattr(worker, "SECONDS", 0.05)
    monkeypatch.setattr(studies, "source_hash", lambda stage: stage)
    found = Sweeps(project, project.root / "sweep.yaml")
    found.write()
    found.behave("begin(); finish()")
    return found
