"""Estimate the hours that a measured recipe trained, where they were not recorded.

    python recipes/hours.py vamp-vae

Trains the recipe with the budget of its result for one epoch and for three, so that their difference is two epochs. The
epochs of all runs of the result times half of it are written into results/<recipe>.json, as `hours_later`.
"""

import json
import os
import tempfile
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from reparam import recipes
from reparam.download import stage as download
from reparam.files import write_json
from reparam.paths import Paths
from reparam.preprocess import stage as preprocess
from reparam.train import stage as train

HERE = Path(__file__).parent
FEW, MORE = 1, 3  # epochs


def main(names: Annotated[list[str], typer.Argument(help="Names of recipes that were measured.")]) -> None:
    """Time two epochs of each recipe, and write down the hours of all its epochs."""
    for name in names:
        path = HERE / "results" / f"{name}.json"
        result = json.loads(path.read_text(encoding="utf-8"))
        with tempfile.TemporaryDirectory(prefix="reparam-") as scratch:
            paths = Paths(Path(scratch), HERE.parent)
            # The first run compiles what later ones find ready.
            _, few, more = (_seconds(name, result["budget"], paths, count) for count in (FEW, FEW, MORE))
        epoch = (more - few) / (MORE - FEW)
        epochs = sum(len(run["history"]["epoch"]) for run in result["runs"])
        write_json(path, result | {"hours_later": round(epochs * epoch / 3600, 2)})
        typer.echo(f"{name}: {epochs} epochs of {epoch:.2f} s")


def _seconds(name: str, budget: dict[str, Any], paths: Paths, epochs: int) -> float:
    """Train so many epochs, and return the seconds of the stage."""
    config = recipes.read(HERE, name, {**budget, "train.epochs": epochs})
    if not paths.processed.exists():
        download.run(config, paths)
        preprocess.run(config, paths)
    start = time.monotonic()
    train.run(config, paths, os.environ.get("REPARAM_DEVICE", "auto"))
    return time.monotonic() - start


if __name__ == "__main__":
    typer.run(main)
