"""Results of recipes that outlive changes of the source."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
DENSITY = "src/reparam/models/vae.py"


@pytest.fixture
def house(tmp_path: Path) -> Path:
    """A repository of the source and the recipes, with a result of `smoke`."""
    for folder in ("src", "recipes"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__", "*.json"))
    git(tmp_path, "init", "--quiet")
    keep(tmp_path)
    run(tmp_path, "measure.py", "smoke", "--seed", "3", "--set", "train.epochs=2")
    return tmp_path


def git(house: Path, *words: str) -> None:
    identity = ("-c", "user.name=somebody", "-c", "user.email=somebody@example.org")
    subprocess.run(["git", *identity, *words], cwd=house, check=True)


def keep(house: Path) -> None:
    git(house, "add", "--all")
    git(house, "commit", "--quiet", "--message", "a change")


def run(house: Path, *words: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(house / "src"), "REPARAM_DEVICE": "cpu"}
    command = [sys.executable, *words]
    return subprocess.run(command, cwd=house / "recipes", env=environment, capture_output=True, text=True, check=False)


def result(house: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((house / "recipes/results/smoke.json").read_text(encoding="utf-8"))
    return found


@pytest.mark.slow
def test_a_change_that_changes_no_number_is_confirmed_and_any_other_refused(house: Path) -> None:
    before, source = result(house), (house / DENSITY).read_text(encoding="utf-8")
    (house / DENSITY).write_text(f"{source}\n# A comment.\n", encoding="utf-8")
    keep(house)
    done = run(house, "confirm.py", "smoke")
    commit = before["origin"]["commit"][:7]
    assert (done.returncode, done.stdout.splitlines()[-1]) == (
        0,
        f"smoke: a short run gives the numbers of commit {commit}",
    )
    after = result(house)
    confirmed = after.pop("confirmed")
    assert after == before
    assert confirmed["determined_by"]["parameters"] == before["origin"]["determined_by"]["parameters"]
    assert confirmed["determined_by"]["train"] != before["origin"]["determined_by"]["train"]

    (house / DENSITY).write_text(source.replace("- 0.5 * log_variance", "- 0.4 * log_variance"), encoding="utf-8")
    done = run(house, "confirm.py", "smoke")
    assert done.returncode == 1
    message = done.stderr.splitlines()[-1]
    assert message.startswith(f"error: smoke: wanted the numbers of commit {commit} in a short run, ")
    assert "found others: nll " in message
    assert message.endswith("; measure the recipe again")
    assert result(house)["confirmed"] == confirmed


def test_what_was_never_measured_cannot_be_confirmed(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "recipes", tmp_path / "recipes", ignore=shutil.ignore_patterns("results"))
    (tmp_path / "src").symlink_to(ROOT / "src")
    done = run(tmp_path, "confirm.py", "smoke")
    path = tmp_path / "recipes/results/smoke.json"
    assert (done.returncode, done.stderr) == (
        1,
        f"error: smoke: wanted a recipe that was measured, found no {path}; run measure.py smoke\n",
    )
