import json
from pathlib import Path

import pytest
from conftest import small_section

from reparam.cards.evaluation import Details
from reparam.config import flatten
from reparam.evaluate import disentanglement, fidelity, measures
from reparam.metrics import ERROR, GROUPS, HEADLINE, METRICS, describe, members, stage_of
from reparam.paths import Paths

ROOT = Path(__file__).parents[1]


def test_every_number_that_a_run_reports_is_described(finished: Paths) -> None:
    reported = [finished.data_metrics, finished.training_metrics, finished.evaluation_metrics, finished.export_metrics]
    names = {name for path in reported for name in json.loads(path.read_text())} - {"weights", "history_sha256"}
    assert {"train_images", "best_validation_loss", "elbo", "elbo_se", "served_elbo_loss"} < names
    assert [name for name in sorted(names) if describe(name.removesuffix(ERROR)) is None] == []


def test_a_metric_with_a_best_value_is_measured_by_the_stage_that_reports_it(finished: Paths) -> None:
    reported = {"train": finished.training_metrics, "evaluate": finished.evaluation_metrics}
    for stage, path in (reported | {"export": finished.export_metrics}).items():
        names = [name for name in json.loads(path.read_text()) if name in METRICS and METRICS[name].best]
        assert len(names) > 0
        assert {stage_of(name) for name in names} == {stage}


def test_no_metric_is_described_twice() -> None:
    assert len(METRICS) == sum(len(group) for group in GROUPS.values())
    assert set(HEADLINE) < set(METRICS)


def test_descriptions_state_the_constants_that_are_computed_with() -> None:
    assert f"below {measures.FEW}," in METRICS["nll_effective_samples"].text
    assert f"at most {fidelity.BEST:g} " in METRICS["psnr"].text
    assert f"{fidelity.WINDOW} x {fidelity.WINDOW} pixels" in METRICS["ssim"].applies
    assert f"groups of {disentanglement.FIXED} images" in METRICS["factor_vae_score"].text


@pytest.mark.parametrize("name", METRICS)
def test_a_description_is_complete(name: str) -> None:
    metric = METRICS[name]
    assert metric.title
    assert metric.text.endswith(".")
    assert f"{-1.23456:z{metric.form}}"
    assert set(metric.depends) - {"data"} <= set(flatten(small_section("evaluate")))
    assert f"| `{name}` | {metric.title} |" in (ROOT / "docs/reference/metrics.md").read_text(encoding="utf-8")


def test_numbers_of_fewer_images_say_where_their_number_is() -> None:
    named = {metric.facts for metric in METRICS.values() if metric.facts}
    assert named <= set(Details.model_fields)
    settings = {"annealed": "annealing", "disentanglement": "disentanglement", "generated": "generated"}
    assert named == {*settings, "mutual_information"}  # whose number has no setting
    for name, metric in METRICS.items():
        limits = {setting.split(".")[0] for setting in metric.depends if setting.endswith(".images")}
        assert limits == ({settings[metric.facts]} if metric.facts in settings else set()), name


def test_the_layers_of_a_hierarchy_are_described_by_their_number() -> None:
    layer = describe("kl_layer_2")
    assert layer is not None
    assert (layer.title, layer.best) == ("KL of layer 2", "")
    assert [describe(name) for name in ("kl_layer_", "kl_layer_x", "elbo_se", "nonesuch")] == [None] * 4
    shown = [name for name, _ in members("Latents", ["kl_layer_2", "active_units", "kl", "elbo", "kl_layer_1"])]
    assert shown == ["kl", "kl_layer_2", "kl_layer_1", "active_units"]


def test_scores_of_the_validation_split_are_described_as_those_they_repeat() -> None:
    metric = describe("elbo_validation")
    assert metric is not None
    assert (metric.title, metric.best, metric.split) == ("ELBO, validation", "higher", "validation")
    assert [describe(name) for name in ("nll_validation", "_validation", "elbo_validation_se")] == [None] * 3
    shown = [name for name, _ in members("Likelihood", ["nll", "elbo_validation", "elbo", "kl_validation"])]
    assert shown == ["elbo", "elbo_validation", "nll"]
