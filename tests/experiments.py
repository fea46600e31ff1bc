"""Experiments to compare, written by hand, and the files that stages leave of one."""

import hashlib
import os
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from ruamel.yaml import YAML
from some_cards import evaluation_card, evaluation_metrics, export_card, export_metrics, model_card, training_metrics

from reparam.cards.card import FileFacts
from reparam.cards.model import ModelCard, TrainedParams
from reparam.compare.differences import Comparison, Difference
from reparam.compare.experiment import Experiment
from reparam.config import load_config
from reparam.paths import Paths

PICTURE = b"\x89PNG of "
CONDITIONS = evaluation_card().conditions | {"nll_samples": 100}
METRICS = {"elbo": -20.0, "elbo_se": 0.3, "nll": 19.0, "nll_se": 0.3, "active_units": 9.0}


def experiment(name: str = "first", **changes: Any) -> Experiment:
    """An experiment of which all is known but the scores of images."""
    known = Experiment(
        name=name,
        origin="somewhere",
        params={"model.latent": 12, "train.seed": 0},
        metrics=METRICS,
        conditions=CONDITIONS,
        losses={1: 30.0, 2: 25.0},
        loss_split="validation",
        samples=PICTURE,
        scores={},
        notes=(),
    )
    return replace(known, **changes)


def difference(found: Comparison, name: str, column: int = 1) -> Difference:
    """The difference of a metric from that of the first experiment."""
    cell = found.metrics[name][column].difference
    assert cell is not None
    return cell


def seeded(name: str, seed: int, elbo: float, latent: int = 12, **changes: Any) -> Experiment:
    params = {"model.latent": latent, "train.seed": seed}
    return experiment(name, params=params, metrics={"elbo": elbo, "elbo_se": 0.3}, **changes)


def write_results(paths: Paths, params: dict[str, Any], elbo: float, **evaluate: Any) -> ModelCard:
    """What the stages leave, of a model with these parameters; return its card."""
    params["evaluate"] |= {"nll_samples": 100} | evaluate
    with paths.params.open("w", encoding="utf-8") as file:
        YAML().dump(params, file)
    config = load_config(paths.params)
    model = model_card(TrainedParams.of(config), weights=sha256_of(elbo))
    history = f"epoch,train_loss,validation_loss\n1,31,30\n2,27,{-elbo}\n"
    cards = {
        paths.model / "card.json": model,
        paths.training_metrics: training_metrics(model, history.encode()),
        paths.evaluation_metrics: evaluation_metrics(model, numbers(elbo)),
        paths.export_metrics: export_metrics(model),
        paths.onnx / "manifest.json": export_card(model, **config.export.model_dump(exclude={"variants"})),
    }
    for path, card in cards.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        card.write(path)
    paths.history.write_text(history)
    np.savez(paths.scores, elbo=elbo * np.array([0.95, 1.0, 1.05]))
    paths.figures.mkdir(parents=True, exist_ok=True)
    (paths.figures / "samples.png").write_bytes(PICTURE + str(elbo).encode())
    files = [paths.evaluation_metrics, paths.scores, paths.figures / "samples.png"]
    facts = {path.name: FileFacts.of(path) for path in files}
    evaluation_card(model, settings=config.evaluate, files=facts).write(paths.evaluation_card)
    return model


def numbers(elbo: float) -> dict[str, float]:
    return {"elbo": elbo, "elbo_se": 0.25, "active_units": 9, "images": 359}


def sha256_of(value: object) -> str:
    return hashlib.sha256(str(value).encode()).hexdigest()


def type_in(root: Path, *command: str) -> str:
    """Run a command of git or DVC, and return what it printed."""
    identity = {f"GIT_{who}_{what}": "n@localhost" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
    environment = {
        **os.environ,
        **identity,
        "DVC_NO_ANALYTICS": "true",
        "DVC_SITE_CACHE_DIR": str(root.parent / "site"),
    }
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.strip()
