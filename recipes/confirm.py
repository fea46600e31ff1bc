"""Show that later changes of the source did not change a result: a long measurement need not be repeated then.

    python recipes/confirm.py vamp-vae

Runs a short version of the recipe twice on this machine, once with the source that the result was measured with and
once with today's. If the loss of each epoch and each metric are equal to the last digit, writes so into
results/<recipe>.json, and the table no longer calls the row stale.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Annotated, Any

import typer
from measure import origin_of
from origin import PHOTOGRAPHS, SCENES
from plots import by_change

from reparam.errors import UserError
from reparam.files import write_json

HERE = Path(__file__).parent
# Of each split 1,000 images, whose batches are as large as in the result, and enough epochs for each part of the code.
SHORT = {"preprocess.limit": 1000, "train.epochs": 3, "evaluate.nll_samples": 10, "evaluate.annealing.images": 0}
FLAGS = {PHOTOGRAPHS: "--photographs", SCENES: "--scenes"}


def main(recipes: Annotated[list[str], typer.Argument(help="Names of recipes that were measured.")]) -> None:
    """Compare short runs of the source that measured a result and of today's."""
    for recipe in recipes:
        path = HERE / "results" / f"{recipe}.json"
        if not path.exists():
            raise UserError(f"{recipe}: wanted a recipe that was measured, found no {path}; run measure.py {recipe}")
        result = json.loads(path.read_text(encoding="utf-8"))
        trained = result.get("origin") or {"commit": None}
        # Of models that were evaluated again, losses and metrics are of two commits.
        commits = {"history": trained["commit"], "metrics": result.get("evaluated", trained)["commit"]}
        for commit in commits.values():
            if not commit or commit.endswith("+"):
                raise UserError(f"{recipe}: wanted a result of a commit, found {commit}; run measure.py {recipe} again")
        with tempfile.TemporaryDirectory(prefix="reparam-") as scratch:
            trees = {commit: Path(scratch) / commit for commit in commits.values()}
            for commit, tree in trees.items():
                _write_source(commit, tree)
            today = Path(scratch) / "today"
            for folder in ("src", "recipes"):
                shutil.copytree(HERE.parent / folder, today / folder, ignore=shutil.ignore_patterns("__pycache__"))
            for runs in by_change(result):
                found = _short_run(today, recipe, result["budget"], runs[0])
                wanted = {commit: _short_run(tree, recipe, result["budget"], runs[0]) for commit, tree in trees.items()}
                for part, commit in commits.items():
                    if different := differences(wanted[commit][part], found[part]):
                        raise UserError(
                            f"{recipe}: wanted the numbers of commit {commit[:7]} in a short run, found others: "
                            f"{'; '.join(different)}; measure the recipe again"
                        )
        write_json(path, result | {"confirmed": origin_of(recipe, result["budget"])})
        names = " and ".join(commit[:7] for commit in trees)
        typer.echo(f"{recipe}: a short run gives the numbers of commit {names}")


def differences(wanted: dict[str, Any], found: dict[str, Any]) -> list[str]:
    """Name what differs between two runs, in losses of epochs or in metrics."""
    return [
        f"{name} {wanted.get(name)} -> {found.get(name)}"
        for name in sorted(wanted.keys() | found.keys())
        if wanted.get(name) != found.get(name)
    ]


def _write_source(commit: str, directory: Path) -> None:
    """Write the source of a commit, as far as measurements need it."""
    directory.mkdir()
    archive = subprocess.run(
        ["git", "archive", commit, "src", "recipes"], cwd=HERE.parent, capture_output=True, check=False
    )
    if archive.returncode:
        raise UserError(f"wanted commit {commit[:7]} in this repository, found none; fetch it")
    subprocess.run(["tar", "x"], cwd=directory, input=archive.stdout, check=True)


def _short_run(tree: Path, recipe: str, budget: dict[str, Any], run: dict[str, Any]) -> dict[str, Any]:
    """Measure a short version of a run with the source in a directory."""
    changes = {path: value for path, value in budget.items() if not path.startswith("download.")}
    changes |= run["swept"] | SHORT
    settings = [word for path, value in changes.items() for word in ("--set", f"{path}={json.dumps(value)}")]
    flags = [FLAGS[budget["download.folder.path"]]] if "download.folder.path" in budget else []
    command = [sys.executable, "measure.py", recipe, "--seed", str(run["seed"]), *settings, *flags]
    environment = os.environ | {"PYTHONPATH": str(tree / "src")}
    subprocess.run(command, cwd=tree / "recipes", env=environment, check=True)
    found: dict[str, Any] = json.loads((tree / f"recipes/results/{recipe}.json").read_text(encoding="utf-8"))["runs"][0]
    return found


if __name__ == "__main__":
    try:
        typer.run(main)
    except UserError as error:
        raise SystemExit(f"error: {error}") from None
