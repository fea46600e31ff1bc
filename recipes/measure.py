"""Run one recipe, for several seeds and values of a parameter, and write down what came of it.

    python recipes/measure.py kingma-mlp --seed 0 --seed 1 --seed 2
    python recipes/measure.py beta-sweep --sweep objective.beta=0.1,1,10 --set train.epochs=5

    python recipes/measure.py vamp-vae --work runs/vamp-vae    # a long one: killed, the same command goes on

With --work, models that are trained already are only evaluated again, with today's source.

Each run goes through the stages `download` to `evaluate` in a directory of its own. What determines the result and the
result itself go to results/<recipe>.json, the pictures of the first run to figures/<recipe>/.
"""

import csv
import json
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path
from typing import Annotated, Any

import photographs
import scenes
import torch
import typer
from origin import GENERATORS, PHOTOGRAPHS, RENDERED, SCENES, determined_by
from ruamel.yaml import YAML

from reparam import recipes
from reparam.cards.card import CARD
from reparam.cards.evaluation import EvaluationMetrics
from reparam.cards.model import ModelCard
from reparam.config import Config
from reparam.data import store
from reparam.data.batches import Batches, View
from reparam.data.pixels import Pixels
from reparam.download import stage as download
from reparam.errors import UserError
from reparam.evaluate import stage as evaluate
from reparam.files import write_json
from reparam.models.storage import load_model
from reparam.objectives import Setting, corrupt, squared_jacobian_norm
from reparam.paths import Paths
from reparam.preprocess import stage as preprocess
from reparam.runtime import pick_device, random_stream
from reparam.train import stage as train

HERE = Path(__file__).parent
PICTURES = ("samples", "latent_grid", "reconstructions")
# What a result depends on.
SOURCES = ("--", "src", "recipes/*.yaml", *(f"recipes/{name}" for name in GENERATORS.values()))
IMAGES = {PHOTOGRAPHS: partial(photographs.write, count=1000), SCENES: partial(scenes.write, count=RENDERED)}
SECONDS = "seconds"  # the file beside a model's data that has the time of its training
NOISE_LEVELS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8)  # standard deviations, black to white being 1
CODES_FOR_JACOBIAN = 1000  # test images; their mean is known to a percent


@dataclass(frozen=True)
class Variant:
    """One run of a recipe: what was changed in its file."""

    recipe: str
    changes: dict[str, Any]


def main(
    recipe: str,
    seed: Annotated[list[int], typer.Option(help="train.seed; may be given several times.")] = [0],  # noqa: B006
    set_: Annotated[list[str], typer.Option("--set", help="section.name=value, the budget.")] = [],  # noqa: B006
    sweep: Annotated[str, typer.Option(help="section.name=value,value,...")] = "",
    codes: Annotated[bool, typer.Option(help="Also measure how codes react to noise and to the image.")] = False,
    photographs: Annotated[bool, typer.Option(help="Train on a folder of cut-outs from two photographs.")] = False,
    scenes: Annotated[bool, typer.Option(help="Train on a folder of scenes that scenes.py renders.")] = False,
    work: Annotated[Path | None, typer.Option(help="Folder for the runs, which killed ones go on in.")] = None,
) -> None:
    """Run a recipe and write results/<recipe>.json."""
    name, _, values = sweep.partition("=")
    budget = dict(_assignment(text) for text in set_)
    swept = [{name: _parse(value)} for value in values.split(",")] if sweep else [{}]
    figures = HERE / "figures" / recipe
    shutil.rmtree(figures, ignore_errors=True)
    if photographs or scenes:
        budget |= {"download.source": "folder", "download.folder.path": PHOTOGRAPHS if photographs else SCENES}
    origin = origin_of(recipe, budget)  # before the runs: who edits the source meanwhile does not change what runs
    runs = []
    sources = set[str]()  # hashes of those that trained
    seconds = list[float]()  # of each training that was timed
    with tempfile.TemporaryDirectory(prefix="reparam-") as scratch:
        for change, number in product(swept, seed):
            variant = Variant(recipe, {**budget, **change, "train.seed": number})
            paths = Paths((work or Path(scratch)).absolute() / str(len(runs)), (work or HERE.parent).absolute())
            found = _run(variant, paths, figures if not runs else None, codes)
            runs.append({**found, "seed": number, "swept": change})
            sources.add(ModelCard.read(paths.model / CARD, "train").lineage.code_sha256)
            if (timed := paths.root / SECONDS).exists():
                seconds.append(float(timed.read_text(encoding="ascii")))
    place = pick_device(os.environ.get("REPARAM_DEVICE", "auto"))
    device = torch.cuda.get_device_name(place) if place.type == "cuda" else "CPU"
    path = HERE / "results" / f"{recipe}.json"
    trained = _origin_of_training(path, sources, origin)
    origins = {"origin": trained} if trained == origin else {"origin": trained, "evaluated": origin}
    hours = {"hours": round(sum(seconds) / 3600, 2)} if len(seconds) == len(runs) else {}  # of all runs together
    write_json(path, {"recipe": recipe, "budget": budget, "device": device, **hours, **origins, "runs": runs})


def origin_of(recipe: str, budget: dict[str, Any]) -> dict[str, Any]:
    """Say of which source, parameters and torch a result is; a `+` after the commit: of changes that are in none."""
    found = [
        subprocess.run(["git", *words, *SOURCES], cwd=HERE.parent, capture_output=True, text=True, check=False)
        for words in (("rev-parse", "HEAD"), ("status", "--porcelain"))
    ]
    commit = found[0].stdout.split("\n")[0] + "+" * bool(found[1].stdout) if found[0].returncode == 0 else None
    hashes = determined_by(HERE, recipe, budget)
    return {"commit": commit, "torch": torch.__version__, "determined_by": hashes}


def _origin_of_training(path: Path, sources: set[str], today: dict[str, Any]) -> dict[str, Any]:
    """Return the origin of models: today's, or if they were trained before, that of the result that knows them."""
    known = [json.loads(path.read_text(encoding="utf-8")).get("origin")] if path.exists() else []
    for origin in (today, *known):
        if origin and sources == {origin["determined_by"]["train"]}:
            return dict(origin)
    raise UserError(f"{path}: wanted models that today's source trained, or one result's, found others; empty --work")


def _run(variant: Variant, paths: Paths, figures: Path | None, codes: bool) -> dict[str, Any]:
    if variant.changes.get("download.source") == "folder":
        write = IMAGES[variant.changes["download.folder.path"]]
        variant.changes["download.folder.path"] = str(write(paths.root / "images"))
    config = recipes.read(HERE, variant.recipe, variant.changes)
    device = os.environ.get("REPARAM_DEVICE", "auto")
    if not paths.model.exists():
        download.run(config, paths)
        preprocess.run(config, paths)
        with _timed(paths.root / SECONDS):
            train.run(config, paths, device)
    evaluate.run(config, paths, device)
    found: dict[str, Any] = {
        "metrics": EvaluationMetrics.read(paths.evaluation_metrics, "evaluate").values,
        "history": _read_history(paths.history),
    }
    if codes:
        found["codes"] = _measure_codes(paths, config)
    if figures:
        figures.mkdir(parents=True)
        for picture in PICTURES:
            shutil.copyfile(paths.figures / f"{picture}.png", figures / f"{picture}.png")
    return found


@contextmanager
def _timed(path: Path) -> Iterator[None]:
    """Add the seconds that pass to those in a file, also if training is told to stop."""
    before, start = float(path.read_text(encoding="ascii")) if path.exists() else 0.0, time.perf_counter()
    try:
        yield
    finally:
        path.write_text(f"{before + time.perf_counter() - start:.1f}\n", encoding="ascii")


def _read_history(path: Path) -> dict[str, list[float]]:
    with path.open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return {name: [float(row[name]) for row in rows] for name in rows[0]}


def _measure_codes(paths: Paths, config: Config) -> dict[str, Any]:
    """Measure reconstruction under noise, the spread of codes, and how fast they change with the image."""
    place = pick_device(os.environ.get("REPARAM_DEVICE", "auto"))
    card = store.read_card(paths.processed)
    model, _ = load_model(paths.model, place)
    data = Batches(store.read_split(paths.processed, "test").images, config.evaluate.batch_size, place)
    pixels = Pixels(card).to(place)
    black, white = (pixels.scaled(torch.full((1, 1, 1), value, device=place)) for value in (0.0, 1.0))
    setting = Setting(torch.tensor(torch.inf), black, white)
    errors = dict.fromkeys(NOISE_LEVELS, 0.0)
    codes: list[torch.Tensor] = []
    norms: list[torch.Tensor] = []
    with random_stream(0, "codes"), torch.no_grad():
        for x, _ in View(data, pixels).seen(0):
            codes.append(model.posterior(x)[0])
            if sum(len(part) for part in norms) < CODES_FOR_JACOBIAN:
                norms.append(squared_jacobian_norm(model, x))
            for level in NOISE_LEVELS:
                seen = model.decode(model.posterior(corrupt(x, "gaussian", level, setting))[0])
                # In units of pixels from black to white, per pixel.
                error = ((seen - x) / (white - black)).square().mean((1, 2, 3)).sum()
                errors[level] += error.item() / len(data)
    every = torch.cat(codes)
    # In units of the root mean square of all codes, because a penalty must not win by making all codes small.
    relative = every / every.square().mean().sqrt()
    histogram = torch.histc(relative.clamp(-4, 4).float().cpu(), bins=40, min=-4, max=4) / relative.numel()
    return {
        "squared_error_under_noise": {str(level): round(error, 6) for level, error in errors.items()},
        "activation_histogram": [round(share, 6) for share in histogram.tolist()],
        "near_zero_fraction": round((relative.abs() < 0.1).float().mean().item(), 4),
        "squared_jacobian_norm": round(torch.cat(norms).mean().item(), 4),
        # The same in units of the codes' own variance: a small code is not yet a contracted one.
        "relative_squared_jacobian_norm": round((torch.cat(norms).mean() / every.var(0, correction=0).sum()).item(), 6),
    }


def _assignment(text: str) -> tuple[str, Any]:
    path, _, value = text.partition("=")
    return path, _parse(value)


def _parse(value: str) -> Any:
    return YAML(typ="safe", pure=True).load(value)


if __name__ == "__main__":
    try:
        typer.run(main)
    except UserError as error:
        raise SystemExit(f"error: {error}") from None
