import csv
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from reparam.config import Config, load_config
from reparam.evaluation.gallery import FIGURES
from reparam.paths import Paths
from reparam.stages import download, evaluate, preprocess, train

Write = Callable[[dict[str, Any]], None]


def prepared(project: Paths, params: dict[str, Any], write_params: Write, **changes: dict[str, Any]) -> Config:
    """Train a model for one epoch, ready to be evaluated."""
    params["preprocess"]["limit"] = 60
    params["train"]["epochs"] = 1
    for section, values in changes.items():
        params[section].update(values)
    write_params(params)
    config = load_config(project.params)
    for stage in (download, preprocess, train):
        stage.run(config, project)
    return config


def written(project: Paths) -> dict[str, bytes]:
    folder = project.evaluation_metrics.parent
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def metrics(project: Paths) -> dict[str, float]:
    found: dict[str, float] = json.loads(project.evaluation_metrics.read_text())
    return found


def latents(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


def test_a_mixture_generates_images_of_an_autoencoder_the_same_each_time(
    project: Paths, params: dict[str, Any], write_params: Write
) -> None:
    config = prepared(
        project,
        params,
        write_params,
        model={"kind": "autoencoder"},
        objective={"name": "reconstruction"},
        preprocess={"binarization": "threshold"},
        evaluate={"sampler": "mixture", "mixture_components": 3},
    )
    evaluate.run(config, project)
    first = written(project)
    assert set(first) == {"metrics.json", "card.json", "latents.csv", *(f"figures/{name}.png" for name in FIGURES)}
    assert set(metrics(project)) == {"reconstruction", "reconstruction_se", "active_units", "images"}
    assert json.loads(project.evaluation_card.read_text())["sampler"] == "mixture"
    assert [row["kl"] for row in latents(project.latents)] == ["0.0000"] * 3

    evaluate.run(config, project)
    assert written(project) == first


def test_the_sampler_changes_the_samples_and_nothing_that_was_measured(
    project: Paths, params: dict[str, Any], write_params: Write
) -> None:
    config = prepared(project, params, write_params)
    evaluate.run(config, project)
    first = written(project)
    params["evaluate"]["sampler"] = "mixture"
    write_params(params)
    evaluate.run(load_config(project.params), project)
    second = written(project)
    assert {name for name in first if first[name] != second[name]} == {"figures/samples.png", "card.json"}


def test_grey_pixels_under_a_bernoulli_have_neither_elbo_nor_nll(
    project: Paths, params: dict[str, Any], write_params: Write
) -> None:
    evaluate.run(prepared(project, params, write_params, preprocess={"binarization": "none"}), project)
    assert set(metrics(project)) == {"bce", "bce_se", "kl", "kl_se", "active_units", "images"}


def test_grey_values_are_scored_in_bits_per_pixel(project: Paths, params: dict[str, Any], write_params: Write) -> None:
    config = prepared(
        project, params, write_params, preprocess={"binarization": "none"}, model={"likelihood": "discretised_logistic"}
    )
    evaluate.run(config, project)
    found = metrics(project)
    assert found["bits_per_dim"] == pytest.approx(found["nll"] / (64 * math.log(2)), abs=1e-4)  # images of 8x8 pixels
    assert found["bits_per_dim_se"] == pytest.approx(found["nll_se"] / (64 * math.log(2)), abs=1e-4)


def test_a_hierarchy_is_scored_layer_by_layer(project: Paths, params: dict[str, Any], write_params: Write) -> None:
    evaluate.run(prepared(project, params, write_params, model={"kind": "hierarchical", "upper": [2]}), project)
    found = metrics(project)
    assert found["kl_layer_1"] + found["kl_layer_2"] == pytest.approx(found["kl"], abs=2e-4)
    rows = latents(project.latents)
    assert [row["dimension"] for row in rows] == ["0", "1", "2", "3", "4"]
    of_layers = [sum(float(row["kl"]) for row in part) for part in (rows[:3], rows[3:])]
    assert of_layers == pytest.approx([found["kl_layer_1"], found["kl_layer_2"]], abs=3e-4)
