import copy
import csv
import hashlib
import json
import logging
import math
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import numpy as np
import pytest
import some_cards
import torch
from conftest import SMALL, change
from ruamel.yaml import YAML
from subjects import ALWAYS_DRAWN, COUNTS, DENSITY, GENERATED, LABELS, LATENTS, POSTERIOR, with_errors

from reparam import logged
from reparam.cards.evaluation import EvaluationCard, EvaluationLineage, EvaluationMetrics
from reparam.cards.model import ModelCard
from reparam.config import Config, load_config
from reparam.data import store
from reparam.data.store import SPLITS
from reparam.download import stage as download
from reparam.errors import UserError
from reparam.evaluate import scoring
from reparam.evaluate import stage as evaluate
from reparam.evaluate.gallery import TILES
from reparam.evaluate.importance import MEMORY
from reparam.files import sha256
from reparam.lineage import source_hash
from reparam.metrics import HEADLINE
from reparam.paths import Paths
from reparam.preprocess import stage as preprocess
from reparam.train import stage as train

Write = Callable[[dict[str, Any]], None]

VALIDATED = {"elbo_validation", "reconstruction_validation", "kl_validation"}


def prepared(project: Paths, params: dict[str, Any], write_params: Write, **changes: dict[str, Any]) -> Config:
    """Train a model for one epoch, ready to be evaluated."""
    params["preprocess"]["limit"] = 60
    params["train"]["epochs"] = 1
    for section, values in changes.items():
        change(params[section], values)
    write_params(params)
    config = load_config(project.params)
    for stage in (download, preprocess, train):
        stage.run(config, project)
    return config


def written(project: Paths) -> dict[str, bytes]:
    folder = project.evaluation_metrics.parent
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def metrics(project: Paths) -> dict[str, float]:
    return EvaluationMetrics.read(project.evaluation_metrics, "evaluate").values


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
        evaluate={"sampler": "mixture", "mixture": {"components": 3}},
    )
    evaluate.run(config, project)
    first = written(project)
    drawn = (*ALWAYS_DRAWN, "interpolation", "components", "extremes", *TILES)
    files = {"metrics.json", "headline.json", "card.json", "scores.npz", "latents.csv"}
    assert set(first) == files | {f"figures/{name}.png" for name in drawn}
    assert (
        set(metrics(project))
        == with_errors({"reconstruction", "reconstruction_validation"} | LABELS | GENERATED) | COUNTS
    )
    assert card(project).settings.sampler == "mixture"
    assert [row["kl"] for row in latents(project.latents)] == ["0.0000"] * 3

    evaluate.run(config, project)
    assert written(project) == first
    named = {name.removeprefix("figures/"): content for name, content in first.items() if name != "card.json"}
    facts = card(project).files
    assert {name: it.sha256 for name, it in facts.items()} == {
        name: hashlib.sha256(content).hexdigest() for name, content in named.items()
    }


def test_the_sampler_changes_generated_images_and_nothing_else_that_was_measured(
    project: Paths, params: dict[str, Any], write_params: Write
) -> None:
    config = prepared(project, params, write_params)
    evaluate.run(config, project)
    first, measured = written(project), metrics(project)
    params["evaluate"]["sampler"] = "mixture"
    write_params(params)
    evaluate.run(load_config(project.params), project)
    second = written(project)
    assert {name for name in first if first[name] != second[name]} == {
        "figures/samples.png",
        "card.json",
        "headline.json",
        "metrics.json",
    }
    changed = {name for name, value in metrics(project).items() if value != measured[name]}
    assert "pca_frechet" in changed <= with_errors(GENERATED)


def test_the_headline_is_the_numbers_that_summary_prints(
    project: Paths, params: dict[str, Any], write_params: Write
) -> None:
    evaluate.run(prepared(project, params, write_params), project)
    headline = json.loads(project.headline.read_text())
    assert headline.pop("weights") == EvaluationMetrics.read(project.evaluation_metrics, "evaluate").weights
    assert headline == {name: metrics(project)[name] for name in HEADLINE if name in metrics(project)}


def test_grey_pixels_under_a_bernoulli_have_neither_elbo_nor_nll(
    project: Paths, params: dict[str, Any], write_params: Write
) -> None:
    evaluate.run(prepared(project, params, write_params, preprocess={"binarization": "none"}), project)
    scores = {"bce", "bce_validation", "kl_validation", "psnr"} | POSTERIOR
    assert set(metrics(project)) == with_errors(scores | LATENTS | LABELS | GENERATED) | COUNTS


@pytest.mark.usefixtures("blank_figures")
def test_grey_values_are_scored_in_bits_per_pixel(project: Paths, params: dict[str, Any], write_params: Write) -> None:
    config = prepared(
        project, params, write_params, preprocess={"binarization": "none"}, model={"likelihood": "discretised_logistic"}
    )
    evaluate.run(config, project)
    found = metrics(project)
    assert found["bits_per_dim"] == pytest.approx(found["nll"] / (64 * math.log(2)), abs=1e-4)  # images of 8x8 pixels
    assert found["bits_per_dim_se"] == pytest.approx(found["nll_se"] / (64 * math.log(2)), abs=1e-4)
    assert card(project).conditions["is_discrete"] is True  # so that `compare` judges it against no density


@pytest.mark.usefixtures("blank_figures")
def test_a_hierarchy_is_scored_layer_by_layer(project: Paths, params: dict[str, Any], write_params: Write) -> None:
    evaluate.run(prepared(project, params, write_params, model={"kind": "hierarchical", "upper": [2]}), project)
    found = metrics(project)
    assert found["kl_layer_1"] + found["kl_layer_2"] == pytest.approx(found["kl"], abs=2e-4)
    rows = latents(project.latents)
    assert [row["dimension"] for row in rows] == ["0", "1", "2", "3", "4"]
    of_layers = [sum(float(row["kl"]) for row in part) for part in (rows[:3], rows[3:])]
    assert of_layers == pytest.approx([found["kl_layer_1"], found["kl_layer_2"]], abs=3e-4)


@pytest.mark.usefixtures("blank_figures")
@pytest.mark.parametrize("prior", ["mixture", "vamp"])
def test_a_model_with_a_learned_prior_is_scored_but_its_dimensions_have_no_kl(
    prior: str, project: Paths, params: dict[str, Any], write_params: Write
) -> None:
    evaluate.run(prepared(project, params, write_params, model={"prior": prior, "components": 7}), project)
    found = metrics(project)
    assert found["elbo"] == pytest.approx(-found["reconstruction"] - found["kl"], abs=2e-4)
    assert -found["elbo"] > found["nll"]
    assert [(row["kl"], row["kl_se"]) for row in latents(project.latents)] == [("", "")] * 3
    run = MagicMock()
    logged.evaluation(run, ModelCard.read(project.model / "card.json", "train"), project)
    run.log_metrics.assert_called_once_with({}, group="latent_kl")


# One trained model, evaluated in several ways


@pytest.fixture(scope="module")
def trained_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working copy with a model that knows digits; `trained` copies it, nobody changes it."""
    root = tmp_path_factory.mktemp("trained")
    params = copy.deepcopy(SMALL)
    params["preprocess"]["limit"] = 300
    params["train"] |= {"epochs": 20, "patience": 20, "batch_size": 32}
    params["evaluate"] |= {"nll_samples": 20}
    with (root / "params.yaml").open("w", encoding="utf-8") as file:
        YAML().dump(params, file)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", "off")
        for stage in (download, preprocess, train):
            stage.run(load_config(root / "params.yaml"), Paths(root, root))
    return root


@pytest.fixture
def trained(project: Paths, trained_once: Path, monkeypatch: pytest.MonkeyPatch) -> Paths:
    """`project`, with the trained model in it, and without figures, which take most of the time."""
    shutil.copytree(trained_once, project.root, dirs_exist_ok=True)
    monkeypatch.setattr(evaluate.gallery, "plot_all", lambda *_, **__: {})
    monkeypatch.setattr(evaluate.gallery, "tiles", lambda *_: ({}, some_cards.TILES))
    return project


def evaluated(trained: Paths, **changes: Any) -> dict[str, float]:
    """Evaluate with other parameters of that section; return the metrics."""
    values = YAML(typ="safe").load(trained.params)
    values["evaluate"] |= changes
    with trained.params.open("w", encoding="utf-8") as file:
        YAML().dump(values, file)
    evaluate.run(load_config(trained.params), trained)
    return metrics(trained)


def refused(trained: Paths, **changes: Any) -> str:
    """Evaluate with parameters that are wrong; return the one message, after which nothing is there."""
    with pytest.raises(UserError) as raised:
        evaluated(trained, **changes)
    assert not trained.evaluation_metrics.parent.exists()
    return str(raised.value)


def card(project: Paths) -> EvaluationCard:
    return EvaluationCard.read(project.evaluation_card, "evaluate")


def other_images(directory: Path, shape: tuple[int, ...] = (1, 8, 8), tests: int = 80, how: str = "dynamic") -> str:
    """Write a data/processed of noise, and name it as params.yaml does."""
    directory.mkdir(parents=True)
    random = np.random.default_rng(0)
    for name, count in zip(SPLITS, (5, 5, tests), strict=True):
        np.save(directory / f"{name}-images.npy", random.integers(0, 256, (count, *shape), dtype=np.uint8))
        np.save(directory / f"{name}-labels.npy", np.zeros(count, np.int32))
    store.write_card(directory, store.Origin("noise", {}, how, ("noise",), {}, "Noise", "CC0"), "unit")
    return str(directory)


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_the_split_of_the_params_is_scored_and_recorded(split: str, trained: Paths) -> None:
    found = evaluated(trained, split=split)
    facts = store.read_card(trained.processed).splits[split]
    assert found["images"] == card(trained).images == facts.count
    assert (card(trained).settings.split, card(trained).conditions["images_sha256"]) == (split, facts.images_sha256)


def test_a_split_without_images_is_refused(project: Paths, params: dict[str, Any], write_params: Write) -> None:
    prepared(project, params, write_params, preprocess={"validation": 0})
    message = refused(project, split="validation")
    assert message.startswith("params.yaml: evaluate.split: wanted a split with images, found 'validation'")
    assert "choose another" in message


@pytest.mark.parametrize(
    ("changes", "wanted"),
    [
        ({"shape": (1, 4, 4)}, "wanted images of shape (1, 8, 8), as the model's, found (1, 4, 4) in "),
        ({"shape": (3, 8, 8)}, "wanted images of shape (1, 8, 8), as the model's, found (3, 8, 8) in "),
        ({"tests": 0}, "wanted a test split with images, found none in "),
    ],
    ids=["size", "channels", "no image"],
)
def test_outliers_that_the_model_cannot_score_are_refused(
    changes: dict[str, Any], wanted: str, trained: Paths, tmp_path: Path
) -> None:
    directory = other_images(tmp_path / "others", **changes)
    assert refused(trained, outliers=directory).startswith(f"params.yaml: evaluate.outliers: {wanted}{directory}")


def test_grey_outliers_are_refused_where_the_images_of_the_model_are_black_and_white(
    project: Paths, params: dict[str, Any], write_params: Write
) -> None:
    prepared(project, params, write_params, preprocess={"binarization": "threshold"})
    message = refused(project, outliers=other_images(project.root / "grey", how="none"))
    assert "wanted black and white images, as the model's, found grey ones (binarization 'none')" in message
    assert message.endswith("preprocess them with preprocess.binarization 'threshold'")


def test_outliers_that_are_not_there_are_refused(trained: Paths) -> None:
    message = refused(trained, outliers="data/others")
    assert message.startswith("params.yaml: evaluate.outliers: wanted a directory that `preprocess` wrote")
    assert "data/others" in message


def test_outliers_are_looked_for_in_the_repository_not_in_the_scratch_copy(trained: Paths, tmp_path: Path) -> None:
    message = refused(replace(trained, shared=tmp_path / "repository"), outliers="data/others")
    assert f"found no card.json in {tmp_path / 'repository/data/others'}; name" in message


def test_the_card_says_what_was_measured_and_how(
    trained: Paths, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    others = other_images(tmp_path / "others")
    with caplog.at_level(logging.WARNING):
        evaluated(trained, split="validation", seed=3, precision="bf16_matmul", outliers=others, active_variance=50.0)
    found, data, model = card(trained), store.read_card(trained.processed), read_model_card(trained)
    count = data.splits["validation"].count
    assert (found.images, found.images_sha256) == (count, {name: it.images_sha256 for name, it in data.splits.items()})
    assert (found.data, found.data.binarization) == (data.images, "dynamic")
    settings = found.settings
    assert (settings.split, settings.seed, settings.precision) == ("validation", 3, "bf16_matmul")
    assert (settings.outliers, settings.active_variance) == (others, 50.0)
    generated = found.details.generated
    assert generated is not None
    assert (generated.images, generated.components) == (count, 50)
    assert set(generated.training_images) == GENERATED
    assert found.details.outliers is not None
    assert found.details.outliers.images == min(count, 80)
    assert found.lineage == EvaluationLineage(
        **dict(model.lineage), model_card_sha256=model.digest, evaluate_code_sha256=source_hash("evaluate")
    )
    assert found.is_of(model)
    assert [record.getMessage() for record in caplog.records] == [f"evaluate: {text}" for text in found.warnings]


def test_the_metrics_hold_the_hash_of_the_weights_that_they_are_of(trained: Paths) -> None:
    evaluated(trained)
    metrics = json.loads(trained.evaluation_metrics.read_text())
    assert metrics["weights"] == sha256(trained.model / "weights.safetensors")[:12]
    assert EvaluationMetrics.read(trained.evaluation_metrics, "evaluate").is_of(read_model_card(trained))


def read_model_card(paths: Paths) -> ModelCard:
    return ModelCard.read(paths.model / "card.json", "train")


@pytest.mark.usefixtures("blank_figures")
def test_a_warning_is_logged_and_recorded(
    project: Paths, params: dict[str, Any], write_params: Write, caplog: pytest.LogCaptureFixture
) -> None:
    config = prepared(project, params, write_params, objective={"beta": 1000.0})
    with caplog.at_level(logging.WARNING):
        evaluate.run(config, project)
    few, warning, variety = card(project).warnings
    assert variety.startswith("generated images come near only")
    assert few.startswith("nll has only ")
    assert "latents have collapsed" in warning or "posterior collapse" in warning
    assert f"evaluate: {warning}" in [record.getMessage() for record in caplog.records]


@pytest.mark.parametrize(("precision", "distance"), [("bf16_matmul", 0.1), ("bf16", 0.3)])
def test_a_lower_precision_gives_nearly_the_same_nll_and_ends_with_the_score(
    precision: str, distance: float, trained: Paths, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen, importance = set(), scoring.importance_of
    full = evaluated(trained)

    def spy(*args: Any) -> Any:
        chosen.add(torch.get_float32_matmul_precision())
        return importance(*args)

    monkeypatch.setattr(scoring, "importance_of", spy)
    before = torch.get_float32_matmul_precision()
    lower = evaluated(trained, precision=precision)
    assert lower["nll"] == pytest.approx(full["nll"], abs=distance)
    assert lower["kl"] == pytest.approx(full["kl"], abs=distance)
    assert chosen == {{"bf16_matmul": "medium", "bf16": "highest"}[precision]}
    assert torch.get_float32_matmul_precision() == before == "highest"
    assert card(trained).settings.precision == precision


def test_the_same_seed_writes_the_same_bytes_and_another_seed_other_numbers(trained: Paths, tmp_path: Path) -> None:
    everything = {"outliers": other_images(tmp_path / "others"), "annealing": {"images": 5, "chains": 2, "steps": 5}}
    first = evaluated(trained, **everything)
    assert set(first) == (
        with_errors(DENSITY | LATENTS | LABELS | {"auroc", "ais_nll", "ais_minus_nll", "ais_gap"})
        | with_errors(VALIDATED | GENERATED)
        | COUNTS
        | {"nll_effective_samples"}
    )
    before = written(trained)
    torch.rand(3)
    evaluated(trained)
    assert written(trained) == before

    second = evaluated(trained, seed=1)
    for name in ("nll", "elbo", "mutual_information", "pca_frechet", "ais_nll", "ais_gap"):
        assert first[name] != second[name], name
    assert second["nll"] == pytest.approx(first["nll"], abs=1)


def test_the_memory_for_scoring_changes_only_what_is_drawn(trained: Paths, monkeypatch: pytest.MonkeyPatch) -> None:
    ample = evaluated(trained)
    monkeypatch.setitem(MEMORY, "cpu", 2**20)
    little = evaluated(trained)
    assert ample["kl"] == little["kl"]
    assert ample["nll"] == pytest.approx(little["nll"], abs=0.5)


def test_noise_is_recognised_among_digits(trained: Paths, tmp_path: Path) -> None:
    found = evaluated(trained, outliers=other_images(tmp_path / "others"))
    assert found["auroc"] > 0.9
    assert 0 <= found["auroc_se"] < 0.03
    outliers = card(trained).details.outliers
    assert outliers is not None
    assert outliers.nll > found["nll"] + 10


def test_the_test_images_themselves_are_no_outliers(trained: Paths) -> None:
    found = evaluated(trained, outliers=str(trained.processed))
    assert found["auroc"] == pytest.approx(0.5, abs=0.02)  # but for the noise of importance sampling
