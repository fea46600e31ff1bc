import base64
import hashlib
import math
import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import small_section
from ruamel.yaml import YAML
from some_cards import (
    PARITY,
    evaluation_card,
    evaluation_metrics,
    export_metrics,
    hash_of,
    model_card,
    training_metrics,
)

from reparam import cli, track
from reparam.cards.model import ModelCard, TrainedParams
from reparam.compare import side_by_side
from reparam.compare.differences import DISCRETE, Cell, Comparison, Difference, compare, judge, spell
from reparam.compare.experiment import Experiment
from reparam.compare.side_by_side import find, render
from reparam.config import flatten, load_config
from reparam.errors import TrackingError, UserError
from reparam.metrics import METRICS as METRICS_DESCRIBED
from reparam.metrics import describe
from reparam.models.likelihoods import LIKELIHOODS
from reparam.paths import Paths

PICTURE = b"\x89PNG of "
CONDITIONS = evaluation_card().conditions | {"nll_samples": 100}
METRICS = {"elbo": -20.0, "elbo_se": 0.3, "nll": 19.0, "nll_se": 0.3, "active_units": 9.0}
UNSPREAD = "the spread between seeds is unknown of first, other: compare several values of train.seed"
ABOVE = "A verdict above the seeds is one on these weights: another seed gives others."


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


# ---- verdicts


@pytest.mark.parametrize("name", [*METRICS_DESCRIBED, "kl_layer_1", "something_new"])
def test_a_verdict_knows_which_way_is_better(name: str) -> None:
    best = getattr(describe(name), "best", "")
    above, below = judge(name, 10.0, 2.0, 1.0), judge(name, 10.0, -2.0, 1.0)
    wanted = {"higher": ("better", "worse"), "lower": ("worse", "better"), "": ("differs", "differs")}
    # Of what is best at 0 or 1, both start above it.
    assert (above, below) == wanted.get(best, ("worse", "better"))


def test_what_is_best_at_a_value_gets_better_towards_it_from_either_side() -> None:
    assert judge("ais_minus_nll", -0.5, 0.4, 0.1) == "better"
    assert judge("ais_minus_nll", -0.5, 1.1, 0.1) == "worse"
    assert judge("pca_density", 0.4, 0.5, 0.1) == "better"
    assert judge("pca_density", 0.9, 0.5, 0.1) == "worse"


@pytest.mark.parametrize("metric", ["elbo", "nll", "kl"])
def test_a_difference_within_the_noise_gives_no_other_verdict(metric: str) -> None:
    assert {judge(metric, 1.0, sign * 0.5, 0.5) for sign in (1, -1)} == {"within noise"}
    assert "within noise" not in {judge(metric, 1.0, sign * 0.5001, 0.5) for sign in (1, -1)}


@pytest.mark.parametrize(("value", "verdict"), [(-19.001, "within noise"), (-18.999, "better")])
def test_the_noise_is_two_standard_errors(value: float, verdict: str) -> None:
    one, other = (experiment(metrics={"elbo": elbo, "elbo_se": 0.5 / 2**0.5}) for elbo in (-20.0, value))
    assert difference(compare([one, other]), "elbo").verdict == verdict


def test_the_error_of_a_difference_is_the_root_of_the_sum_of_squares() -> None:
    other = experiment(metrics={"elbo": -18.0, "elbo_se": 0.4})
    first_cell, cell = compare([experiment(), other]).metrics["elbo"]
    assert first_cell == Cell(-20.0, 0.3, None)
    assert cell == Cell(-18.0, 0.4, Difference(2.0, pytest.approx(0.5), "better"))


@pytest.mark.parametrize("error", [None, 0.0, math.nan])
def test_without_a_known_error_there_is_a_difference_and_no_verdict(error: float | None) -> None:
    given = {} if error is None else {"elbo_se": error}
    one, other = (experiment(metrics={"elbo": value, **given}) for value in (-20.0, -10.0))
    found = compare([one, other]).metrics["elbo"][1].difference
    assert found is not None
    assert (found.value, found.verdict) == (10.0, "")


def test_a_metric_that_one_of_the_two_does_not_have_has_no_difference() -> None:
    other = experiment(metrics={"kl": 5.0, "kl_se": 0.1})
    metrics = compare([experiment(), other]).metrics
    assert list(metrics) == ["elbo", "nll", "active_units", "kl"]
    assert metrics["elbo"][1] == Cell(None, None, None)
    assert metrics["kl"] == [Cell(None, None, None), Cell(5.0, 0.1, None)]


MISSING = "not known"
JUDGED = ("elbo", "nll", "auroc", "ais_nll", "ais_minus_nll", "ais_gap", "kl", "knn_accuracy")
UNJUDGED = ("pca_precision", "pca_frechet")  # without an error
LIKELIHOOD = ["elbo", "nll", "ais_nll"]


@pytest.mark.parametrize(
    ("condition", "value", "barred"),
    [
        ("images_sha256", "9" * 64, JUDGED),
        ("split", "validation", JUDGED),
        ("split", MISSING, JUDGED),
        ("binarization", "static", JUDGED),
        ("scaling", ((0.5, 0.5),), LIKELIHOOD),
        ("outliers", "data/noise", ["auroc"]),
        ("annealing.images", 10, ["ais_nll", "ais_minus_nll", "ais_gap"]),
        ("annealing.chains", 2, ["ais_nll", "ais_minus_nll", "ais_gap"]),
        ("annealing.steps", 9, ["ais_nll", "ais_minus_nll", "ais_gap"]),
        ("generated.images", 50, UNJUDGED),
        ("generated.components", 8, UNJUDGED),
        ("data", "other.dir", UNJUDGED),
        ("neighbours", 3, ["knn_accuracy", "pca_precision"]),
        ("nll_samples", 5, ["nll", "auroc", "ais_minus_nll"]),
        ("nll_samples", MISSING, ["nll", "auroc", "ais_minus_nll"]),
        ("elbo_samples", 7, []),
    ],
)
def test_what_a_metric_depends_on_bars_a_verdict_where_it_differs(
    condition: str, value: object, barred: Sequence[str]
) -> None:
    metrics = dict.fromkeys((*JUDGED, *UNJUDGED), 1.0) | {f"{name}_se": 0.1 for name in JUDGED}
    larger = {name: 9 * number for name, number in metrics.items()}
    changed = {name: found for name, found in (CONDITIONS | {condition: value}).items() if found != MISSING}
    alike, different = experiment("alike", metrics=larger), experiment("other", metrics=larger, conditions=changed)
    found = compare([experiment(metrics=metrics), alike, different])
    told = [note for note in found.notes if "no verdict" in note]
    if barred:
        assert told == [
            f"other: {condition} is {value}, of first {CONDITIONS[condition]}; no verdict on {', '.join(barred)}"
        ]
    else:
        assert told == []
    for name in JUDGED:
        assert difference(found, name).verdict != ""
        assert (difference(found, name, 2).verdict == "") == (name in barred)


def test_conditions_that_are_known_of_neither_give_no_verdict() -> None:
    unknown = [experiment(conditions={}), experiment("other", metrics=METRICS | {"elbo": -10.0}, conditions={})]
    assert difference(compare(unknown), "elbo") == Difference(10.0, pytest.approx(0.3 * 2**0.5), "")


# ---- the same images

OURS = np.array([-20.0, -30.0, -10.0, -20.0])  # mean -20, standard error 4.08
THEIRS = np.array(
    [-19.0, -29.5, -9.0, -18.5]
)  # 1, 0.5, 1 and 1.5 better: 1 on average, with a standard error of 0.2041
SCORED = {"elbo": -20.0, "elbo_se": 4.0825, "kl": 5.0, "kl_se": 0.5}


def scored_pair(**changes: Any) -> list[Experiment]:
    """Two experiments that were scored on four images; of the second, something may differ."""
    theirs = {"metrics": SCORED | {"elbo": -19.0, "elbo_se": 4.3}, "scores": {"elbo": THEIRS}}
    other = experiment("other", params={"model.latent": 20, "train.seed": 0}, **theirs)
    return [experiment(metrics=SCORED, scores={"elbo": OURS}), replace(other, **changes)]


def test_differences_on_the_same_images_are_paired() -> None:
    found = compare(scored_pair())
    # Deviations from 1 are 0, -0.5, 0, 0.5: a variance of 0.5 / 3, and an error of sqrt(0.5 / 3 / 4).
    assert difference(found, "elbo") == Difference(1.0, pytest.approx(0.2041241452), "better", is_paired=True)
    assert found.notes == [
        "other: paired, same images: elbo",
        "other: not paired, as of independent images: kl",
        ABOVE,
        UNSPREAD,
    ]


def test_the_same_two_would_be_within_noise_were_they_not_paired() -> None:
    found = compare(scored_pair(scores={}))
    assert difference(found, "elbo") == Difference(1.0, pytest.approx(math.hypot(4.0825, 4.3)), "within noise")
    assert found.notes == ["other: not paired, as of independent images: elbo, kl", ABOVE, UNSPREAD]


@pytest.mark.parametrize(
    "conditions",
    [
        CONDITIONS | {"images_sha256": "9" * 64},
        CONDITIONS | {"split": "train"},
        CONDITIONS | {"binarization": "none"},
        {},
    ],
)
def test_images_that_are_not_known_to_be_the_same_are_not_paired(conditions: dict[str, Any]) -> None:
    found = compare(scored_pair(conditions=conditions))
    assert not difference(found, "elbo").is_paired
    assert not any("same images" in note for note in found.notes)


def test_other_training_data_are_no_obstacle_where_the_scored_images_are_the_same() -> None:
    found = compare(scored_pair(conditions=CONDITIONS | {"data": "other.dir"}))
    assert difference(found, "elbo").verdict == "better"
    assert difference(found, "elbo").is_paired


@pytest.mark.parametrize("scores", [THEIRS[:3], THEIRS[:1]])
def test_scores_of_other_numbers_of_images_are_not_paired(scores: np.ndarray) -> None:
    assert not difference(compare(scored_pair(scores={"elbo": scores})), "elbo").is_paired


def test_the_same_scores_give_no_difference_and_no_verdict() -> None:
    found = compare(scored_pair(scores={"elbo": OURS}))
    assert difference(found, "elbo") == Difference(0.0, 0.0, "", is_paired=True)


# ---- seeds


def seeded(name: str, seed: int, elbo: float, latent: int = 12, **changes: Any) -> Experiment:
    params = {"model.latent": latent, "train.seed": seed}
    return experiment(name, params=params, metrics={"elbo": elbo, "elbo_se": 0.3}, **changes)


def test_experiments_that_differ_in_their_seed_alone_are_a_group() -> None:
    runs = [seeded("a0", 0, -20.0), seeded("b0", 0, -18.0, latent=20), seeded("a1", 1, -21.0), seeded("a2", 2, -19.0)]
    found = compare([*runs, seeded("b1", 1, -17.0, latent=20)])
    assert found.groups == ["a0, a1, a2", "b0, b1"]
    first, second = found.seeds["elbo"]
    assert first == Cell(-20.0, 1.0, None)
    assert (second.value, second.error) == (-17.5, pytest.approx(0.5**0.5))
    # Errors of means: 1 / 3 and 0.5 / 2; 7/12 squared over (1/9/2 + 1/16/1) are 2.88 degrees of freedom, of which
    # the 97.5 % quantile is 3.26: the noise is 3.26 x 0.7638 = 2.49.
    assert second.difference == Difference(2.5, pytest.approx((7 / 12) ** 0.5), "better")
    assert found.notes[-1] == ABOVE


def test_a_difference_that_seeds_make_is_within_noise_however_many_images_there_are() -> None:
    runs = [seeded("a0", 0, -20.0), seeded("a1", 1, -21.0), seeded("b0", 0, -19.0, latent=20)]
    found = compare([*runs, seeded("b1", 1, -20.5, latent=20)])
    assert found.seeds["elbo"][1].difference.verdict == "within noise"


def test_with_one_seed_the_spread_is_unknown_and_nothing_is_said_over_seeds() -> None:
    found = compare([experiment(), experiment("other", params={"model.latent": 20, "train.seed": 0})])
    assert (found.groups, found.seeds, found.notes[-1]) == ([], {}, UNSPREAD)


def test_a_single_seed_beside_several_has_a_difference_and_no_verdict() -> None:
    found = compare([seeded("a0", 0, -20.0), seeded("a1", 1, -22.0), seeded("b", 0, -18.0, latent=20)])
    assert found.groups == ["a0, a1", "b"]
    assert found.seeds["elbo"][1] == Cell(-18.0, None, Difference(3.0, None, ""))
    assert found.notes[-1] == "the spread between seeds is unknown of b: compare several values of train.seed"


def test_one_seed_that_is_named_twice_counts_once() -> None:
    found = compare([seeded("a", 0, -20.0), seeded("again", 0, -20.0)])
    assert (found.groups, found.seeds) == ([], {})


def test_conditions_bar_a_verdict_over_seeds_too() -> None:
    others = {"conditions": CONDITIONS | {"split": "train"}}
    runs = [seeded("a0", 0, -20.0), seeded("a1", 1, -20.1)]
    found = compare([*runs, *(seeded(f"b{i}", i, -9.0 - i / 10, 20, **others) for i in range(2))])
    assert found.seeds["elbo"][1].difference.verdict == ""


# ---- densities


def test_a_density_and_a_probability_of_grey_values_give_no_verdict() -> None:
    params = [{"model.likelihood": name} for name in ("gaussian", "discretised_logistic")]
    metrics = {"elbo": -20.0, "elbo_se": 0.3, "ais_nll": 19.0, "ais_nll_se": 0.3, "kl": 5.0, "kl_se": 0.01}
    one, other = (
        experiment(name, params=given, metrics=metrics | {"kl": kl, "elbo": -kl})
        for name, given, kl in zip(("first", "other"), params, (5.0, 9.0), strict=True)
    )
    found = compare([one, other])
    assert found.notes[:1] == [
        "other: the likelihood is discretised_logistic, of first gaussian: one is a density, one is not; "
        "no verdict on elbo, ais_nll"
    ]
    assert [difference(found, name).verdict for name in ("elbo", "kl")] == ["", "differs"]


def test_the_discrete_likelihoods_are_those_that_say_so() -> None:
    config = load_config(Path(__file__).parents[2] / "params.yaml").model
    assert {name for name, make in LIKELIHOODS.items() if make(*config.arguments(name)).is_discrete} == DISCRETE


# ---- parameters


def test_parameters_that_differ_are_shown_and_equal_ones_are_counted() -> None:
    other = experiment(params={"model.latent": 20, "train.seed": 0})
    found = compare([experiment(), other, experiment()])
    assert (found.params, found.equal_params) == ({"model.latent": ["12", "20", "12"]}, 1)


def test_equal_numbers_are_equal_however_they_are_written() -> None:
    found = compare(
        [experiment(params={"a.one": 1, "a.list": [2]}), experiment(params={"a.one": 1.0, "a.list": [2.0]})]
    )
    assert (found.params, found.equal_params) == ({}, 2)


def test_values_are_spelled_as_in_params_yaml() -> None:
    values = {"a.list": [16, "relu"], "a.none": None, "a.yes": True, "a.rate": 1e-5, "a.word": "none"}
    other = {"a.list": [16], "a.none": 3, "a.yes": False, "a.rate": 2e-5, "a.word": "all"}
    found = compare([experiment(params=values), experiment(params=other)]).params
    assert [row[0] for row in found.values()] == ["[16, relu]", "null", "true", "1e-05", "none"]


def test_true_is_not_1() -> None:
    found = compare([experiment(params={"a.b": True}), experiment(params={"a.b": 1})])
    assert found.params == {"a.b": ["true", "1"]}


def test_a_section_that_is_not_known_does_not_differ_but_a_parameter_that_is_not_there_does() -> None:
    other = experiment(params={"model.latent": 12, "model.extra": 1})
    found = compare([experiment(), other])
    assert (found.params, found.equal_params) == ({"model.extra": ["—", "1"]}, 2)


@pytest.mark.parametrize(
    ("value", "error", "sign", "spelled"),
    [
        (-20.1264, 0.3, "", "-20.13 ± 0.30"),
        (3.76813, 0.0387, "+", "+3.768 ± 0.039"),
        (1234.5, 12.0, "", "1234 ± 12"),
        (-0.0001, 0.2, "+", "+0.00 ± 0.20"),
        (0.72699999, None, "+", "+0.727"),
        (0.0, None, "+", "0"),
        (30.0, 0.0, "", "30"),
    ],
)
def test_a_number_has_the_places_of_its_error(value: float, error: float | None, sign: str, spelled: str) -> None:
    assert spell(value, error, sign) == spelled


# ---- the page


class Outline(HTMLParser):
    """Tags, links and text of a page."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.links: list[str] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [str(value) for name, value in attributes if name in {"src", "href"}]

    def handle_data(self, data: str) -> None:
        self.text = re.sub(r"\s+", " ", f"{self.text} {data}")


def test_the_page_says_every_number_and_holds_every_picture() -> None:
    other = experiment(
        "other",
        params={"model.latent": 20, "train.seed": 0},
        metrics=METRICS | {"elbo": -18.0},
        samples=PICTURE + b"other",
        notes=("not found: something",),
    )
    html = render(compare([experiment(), other, experiment("third", conditions={})]))
    outline = Outline(html)
    for words in (
        "3 experiments side by side",
        "elbo -20.00 ± 0.30 -18.00 ± 0.30 +2.00 ± 0.42 better -20.00 ± 0.30 +0.00 ± 0.42",
        "nll 19.00 ± 0.30 19.00 ± 0.30 +0.00 ± 0.42 within noise",
        "model.latent 12 20 12",
        "1 differ, 1 are equal",
        "third: split is not known, of first test; no verdict on elbo, nll",
        "other : not found: something",
    ):
        assert words in outline.text
    _, curves, *samples = [link.removeprefix("data:image/png;base64,") for link in outline.links]
    assert base64.b64decode(curves).startswith(b"\x89PNG\r\n")
    assert [base64.b64decode(picture) for picture in samples] == [PICTURE, PICTURE + b"other", PICTURE]


def test_the_page_is_self_contained_and_shares_the_style_of_the_report() -> None:
    html = render(compare([experiment(), experiment()]))
    outline = Outline(html)
    assert [link for link in outline.links if not link.startswith("data:")] == []
    assert not {"script", "iframe", "object", "embed", "base"} & set(outline.tags)
    assert not re.search(r"https?:|@import|url\(", html)
    assert html.count("prefers-color-scheme: dark") == 2
    assert html.count("<style>") == 1
    assert "--paper: #0d1117" in html
    assert html.count("<table>") == html.count('<div class="card scroll">\n    <table>') == 2


def test_everything_on_the_page_is_escaped() -> None:
    evil = '<script>alert("x")</script>'
    poisoned = experiment(
        evil,
        origin=evil,
        params={f"model.{evil}": evil},
        metrics={evil: 1.0, "elbo": -20.0, "elbo_se": 0.3},
        conditions={"split": evil},
        notes=(evil,),
    )
    html = render(compare([experiment(), poisoned]))
    assert "script" not in Outline(html).tags
    assert evil not in html


def test_a_page_of_experiments_without_results_says_so() -> None:
    bare = experiment(metrics={}, losses={}, samples=None)
    text = Outline(render(compare([bare, bare]))).text
    for words in ("None could be read.", "No curves could be read.", "Not found."):
        assert words in text


def test_seeds_have_a_table_of_their_own() -> None:
    text = Outline(
        render(compare([seeded("a", 0, -20.0), seeded("b", 1, -21.0), seeded("c", 0, -1.0, latent=20)]))
    ).text
    assert "Over seeds a, b c elbo -20.50 ± 0.71 -1 +19.5" in text


def test_curves_name_the_split_where_it_is_not_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[Any] = []
    plot = side_by_side.plot_losses
    monkeypatch.setattr(side_by_side, "plot_losses", lambda *given: drawn.append(given) or plot(*given))
    first, second = experiment("a"), experiment("c", losses={1: 9.0})
    render(compare([first, second]))
    render(compare([first, replace(second, loss_split="train")]))
    assert drawn == [
        ({"a": first.losses, "c": second.losses}, "validation loss"),
        ({"a (validation)": first.losses, "c (train)": second.losses}, "train or validation loss"),
    ]


# ---- files of the working copy and of revisions


def write_results(paths: Paths, params: dict[str, Any], elbo: float, **evaluate: Any) -> ModelCard:
    """What the stages leave, of a model with these parameters; return its card."""
    with paths.params.open("w", encoding="utf-8") as file:
        YAML().dump(params, file)
    config = load_config(paths.params)
    model = model_card(TrainedParams.of(config), weights=sha256_of(elbo))
    settings = small_section("evaluate", **{"nll_samples": 100} | evaluate)
    cards = {
        paths.model / "card.json": model,
        paths.training_metrics: training_metrics(model),
        paths.evaluation_metrics: evaluation_metrics(model, numbers(elbo)),
        paths.evaluation_card: evaluation_card(model, settings=settings),
        paths.export_metrics: export_metrics(model),
    }
    for path, card in cards.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        card.write(path)
    paths.history.write_text(f"epoch,train_loss,validation_loss\n1,31,30\n2,27,{-elbo}\n")
    np.savez(paths.scores, elbo=elbo * np.array([0.95, 1.0, 1.05]))
    paths.figures.mkdir(parents=True, exist_ok=True)
    (paths.figures / "samples.png").write_bytes(PICTURE + str(elbo).encode())
    return model


def numbers(elbo: float) -> dict[str, float]:
    return {"elbo": elbo, "elbo_se": 0.25, "active_units": 9, "images": 359}


def sha256_of(value: object) -> str:
    return hashlib.sha256(str(value).encode()).hexdigest()


def test_the_working_copy_is_read_as_it_lies_there(project: Paths, params: dict[str, Any]) -> None:
    write_results(project, params, -20.0)
    found = find("workspace", project)
    assert found.params == flatten(params)
    assert found.params["model.latent"] == 3
    assert found.metrics == {"best_epoch": 80, "epochs": 120, **numbers(-20.0), **PARITY}
    assert found.conditions == CONDITIONS
    assert (found.loss_split, found.losses) == ("validation", {1: 30.0, 2: 20.0})
    assert (found.samples, found.notes) == (PICTURE + b"-20.0", ())
    assert found.scores["elbo"].tolist() == [-19.0, -20.0, -21.0]


def test_what_was_measured_of_another_model_is_withheld(project: Paths, params: dict[str, Any]) -> None:
    # As `dvc exp run --temp -S train.epochs=2 train` leaves it: a new model, and the evaluation of the one before.
    before = write_results(project, params, -20.0)
    after = training_metrics(model_card(weights=hash_of("9")), best_epoch=2, epochs=2)
    after.write(project.training_metrics)
    found = find("workspace", project)
    assert found.metrics == {"best_epoch": 2, "epochs": 2}
    assert (found.conditions, dict(found.scores), found.samples) == ({}, {}, None)
    assert found.notes == tuple(
        f"reports/{name}: withheld: wanted results of the trained model (weights {'9' * 12}), found those of "
        f"another one (weights {before.weights}); run `dvc repro`"
        for name in ("evaluation/card.json", "evaluation/metrics.json", "export/metrics.json")
    )


def test_without_validation_the_curve_is_that_of_training(project: Paths, params: dict[str, Any]) -> None:
    write_results(project, params, -20.0)
    project.history.write_text("epoch,train_loss\n1,31\n2,27\n")
    found = find("workspace", project)
    assert (found.loss_split, found.losses) == ("train", {1: 31.0, 2: 27.0})


def test_parameters_that_were_changed_after_training_are_told(
    project: Paths, params: dict[str, Any], write_params: Callable[[dict[str, Any]], None]
) -> None:
    write_results(project, params, -20.0)
    params["model"]["latent"] = 7
    write_params(params)
    (note,) = find("workspace", project).notes
    assert note.startswith("params.yaml was changed after training")


@pytest.mark.parametrize("content", ["", "{", "[]", "epoch\n1\n", "epoch,validation_loss\n1,many\n"])
def test_damaged_files_are_told_and_the_rest_is_read(content: str, project: Paths, params: dict[str, Any]) -> None:
    write_results(project, params, -20.0)
    project.history.write_text(content)
    project.evaluation_card.write_text("{")
    found = find("workspace", project)
    card, history = found.notes
    assert card.startswith("reports/evaluation/card.json: damaged: not valid JSON (")
    assert history.startswith("reports/training/history.csv: damaged: ")
    assert {note.endswith("; run `dvc repro`") for note in found.notes} == {True}
    assert found.metrics["elbo"] == -20.0
    assert (found.conditions, found.samples) == ({}, None)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"\x93NUMPY", b"no archive"])
def test_damaged_scores_are_told_and_nothing_is_paired(content: bytes, project: Paths, params: dict[str, Any]) -> None:
    write_results(project, params, -20.0)
    project.scores.write_bytes(content)
    found = find("workspace", project)
    assert dict(found.scores) == {}
    assert found.notes[0].startswith("reports/evaluation/scores.npz: damaged: ")


def test_an_empty_working_copy_holds_no_experiment(project: Paths) -> None:
    project.params.unlink()
    with pytest.raises(UserError) as caught:
        find("workspace", project)
    assert str(caught.value) == (
        "workspace (working copy): wanted an experiment, found none of its files; run `dvc repro`"
    )


PIPELINE = """
stages:
  all:
    cmd: this is never run
    outs:
      - reports/training/history.csv
      - reports/evaluation/card.json
      - reports/evaluation/figures
      - reports/evaluation/scores.npz
    metrics:
      - reports/training/metrics.json: {cache: false}
      - reports/evaluation/metrics.json: {cache: false}
      - reports/export/metrics.json: {cache: false}
"""


def type_in(root: Path, *command: str) -> str:
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


@pytest.fixture(scope="module")
def repository_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A commit without results, then `main` with some, and the experiment `wide`."""
    root = tmp_path_factory.mktemp("dvc") / "repository"
    (root / ".dvc").mkdir(parents=True)
    (root / ".dvc/config").write_text("[core]\n    analytics = false\n")
    (root / ".dvc/.gitignore").write_text("/cache\n/tmp\n/config.local\n")
    (root / "dvc.yaml").write_text(PIPELINE)
    shipped = YAML(typ="safe").load(Path(__file__).parents[2] / "params.yaml")
    paths = Paths(root, root)
    shutil.copy(Path(__file__).parents[2] / "params.yaml", paths.params)
    dvc = (sys.executable, "-m", "dvc")
    type_in(root, "git", "init", "--quiet", "--initial-branch", "main")
    type_in(root, "git", "add", "--all")
    type_in(root, "git", "commit", "--quiet", "--message", "start")
    write_results(paths, shipped, -20.0)
    type_in(root, *dvc, "commit", "--quiet", "--force")
    type_in(root, "git", "add", "--all")
    type_in(root, "git", "commit", "--quiet", "--message", "finished")
    shipped["model"]["latent"] = 20
    write_results(paths, shipped, -18.0, nll_samples=5)
    type_in(root, *dvc, "commit", "--quiet", "--force")
    type_in(root, *dvc, "exp", "save", "--quiet", "--name", "wide")
    return root


@pytest.fixture
def repository(
    project: Paths, repository_once: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> Paths:
    """The repository as the working copy; nobody changes it."""
    monkeypatch.chdir(repository_once)
    monkeypatch.setenv("DVC_SITE_CACHE_DIR", str(repository_once.parent / "site"))
    return Paths.here()


def test_revisions_and_experiments_are_read_through_the_cache_of_dvc(repository: Paths) -> None:
    commit = type_in(repository.root, "git", "rev-parse", "HEAD")
    for name in ("main", commit, commit[:7], "HEAD"):
        found = find(name, repository)
        assert found.name == (commit[:7] if commit.startswith(name) else name)
        assert found.origin == f"revision {commit[:7]}"
        assert found.params["model.latent"] == 12
        assert (found.metrics["elbo"], found.samples) == (-20.0, PICTURE + b"-20.0")
        assert (found.losses, found.conditions, found.notes) == ({1: 30.0, 2: 20.0}, CONDITIONS, ())
    wide = find("wide", repository)
    assert (wide.params["model.latent"], wide.metrics["elbo"], wide.losses[2]) == (20, -18.0, 18.0)
    assert wide.conditions["nll_samples"] == 5


def test_a_revision_that_was_never_run_has_parameters_alone_and_says_what_to_do(repository: Paths) -> None:
    found = find("HEAD~1", repository)
    assert found.params["model.latent"] == 12
    assert (found.metrics, found.losses, found.samples) == ({}, {}, None)
    assert found.notes == (
        "not found: reports/training/metrics.json, reports/evaluation/card.json, reports/evaluation/metrics.json, "
        "reports/export/metrics.json, reports/training/history.csv, reports/evaluation/figures/samples.png, "
        "reports/evaluation/scores.npz; it was not run at this revision: run `dvc exp run`, and compare that "
        "experiment",
    )


def test_what_the_cache_does_not_have_is_told_with_the_command_that_gets_it(
    repository: Paths, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = repository.root / ".dvc/cache"
    cache.rename(cache.with_name("tmp-away"))
    try:
        found = find("wide", repository)
    finally:
        cache.with_name("tmp-away").rename(cache)
    assert (found.metrics["elbo"], found.losses) == (-18.0, {})
    (note,) = found.notes
    assert note.startswith("not found: reports/evaluation/card.json, reports/training/history.csv, reports/")
    assert "`dvc fetch` gets what is on a remote; `dvc exp apply wide` " in note


def test_an_unknown_name_says_what_was_wanted_and_what_lists_it(repository: Paths) -> None:
    for name in ("nonesuch", "abc123", "it's", "a b", "main:params.yaml"):
        with pytest.raises(UserError) as caught:
            find(name, repository)
        assert str(caught.value) == (
            f"{name}: wanted `workspace`, a revision of git, an experiment of DVC, or a run of MLflow (an id, 6 or "
            "more digits of it, or a name), found none; `dvc exp show` lists experiments, `mlflow ui` (with "
            "--backend-store-uri as `reparam summary` prints it) lists runs"
        )
    with pytest.raises(UserError, match="found an empty name"):
        find("", repository)


def test_where_there_is_no_repository_a_name_is_unknown(project: Paths) -> None:
    with pytest.raises(UserError, match=r"^main: wanted `workspace`, a revision of git"):
        find("main", project)


# ---- runs of MLflow


@pytest.fixture(scope="module")
def store_once(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str, str]:
    """A store with a run that was evaluated, and one that was interrupted; their ids."""
    root = tmp_path_factory.mktemp("store")
    (root / "samples.png").write_bytes(PICTURE)
    evaluation_card().write(root / "card.json")
    np.savez(root / "scores.npz", elbo=np.array([-21.0, -19.0]))
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith(("DVC_", "MLFLOW_"))]:
            patch.delenv(name)
        patch.setenv("DVC_EXP_NAME", "bonny-bream")
        tracker = track.connect(Paths(root, root))
        with tracker.training_run("hash.dir") as run:
            run.log_params({"model.latent": 12, "model.mlp.hidden": [16, 8], "train.learning_rate": 1e-5})
            for epoch, loss in enumerate((30.0, 20.0), start=1):
                run.log_metrics({"train_loss": loss + 1, "validation_loss": loss, "images_per_second": 9.0}, epoch)
            run.log_metrics({"best_epoch": 2, "best_validation_loss": 20.0})
            run.set_tags({track.WEIGHTS_TAG: "weights"})
        with tracker.child_run("evaluate", {"weights_sha256": "weights"}) as child:
            child.log_params({"evaluate.nll_samples": 100, "evaluate.split": "test", "evaluate.outliers": None})
            child.log_params({"evaluate.generated.images": 50})
            child.log_headline({"elbo": -20.0, "elbo_se": 0.25, "images": 359})
            child.log_metrics({"latent_kl.0": 1.0})
            child.log_files([root / name for name in ("samples.png", "card.json", "scores.npz")], "evaluation")
        with suppress(KeyboardInterrupt), tracker.child_run("evaluate", {"weights_sha256": "weights"}) as child:
            child.log_params({"evaluate.nll_samples": 7})
            raise KeyboardInterrupt
        with tracker.child_run("export", {"weights_sha256": "weights"}) as child:
            child.log_headline({"encoder_max_error": 1e-7})
        patch.setenv("DVC_EXP_NAME", "dull-dace")
        tracker = track.connect(Paths(root, root))
        with suppress(KeyboardInterrupt), tracker.training_run("hash.dir") as other:
            other.log_metrics({"train_loss": 40.0}, 1)
            raise KeyboardInterrupt
        with tracker.training_run("hash.dir"):
            pass
    return root, run.run_id, other.run_id


@pytest.fixture
def store(project: Paths, store_once: tuple[Path, str, str], monkeypatch: pytest.MonkeyPatch) -> tuple[Paths, str, str]:
    root, evaluated, interrupted = store_once
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    return Paths(project.root, root), evaluated, interrupted


def test_a_run_is_read_by_its_id_its_beginning_its_name_and_a_run_below_it(store: tuple[Paths, str, str]) -> None:
    paths, run, _ = store
    for name in (run, run[:6], "bonny-bream", "export"):
        found = find(name, paths)
        assert found.name == (run[:8] if run.startswith(name) else name)
        assert found.origin == f"MLflow run {run[:8]} (bonny-bream)"
        assert found.params == {
            "model.latent": 12,
            "model.mlp.hidden": [16, 8],
            "train.learning_rate": 1e-5,
            "evaluate.nll_samples": 100,
            "evaluate.split": "test",
            "evaluate.outliers": None,
            "evaluate.generated.images": 50,
        }
        assert found.metrics == {
            "best_epoch": 2,
            "best_validation_loss": 20.0,
            "elbo": -20.0,
            "elbo_se": 0.25,
            "images": 359,
            "encoder_max_error": 1e-7,
        }
        assert found.conditions == evaluation_card().conditions
        assert found.scores["elbo"].tolist() == [-21.0, -19.0]
        assert (found.loss_split, found.losses) == ("validation", {1: 30.0, 2: 20.0})
        assert (found.samples, found.notes) == (PICTURE, ())


def test_an_unfinished_run_shows_what_there_is(store: tuple[Paths, str, str]) -> None:
    paths, _, run = store
    found = find(run, paths)
    assert (found.loss_split, found.losses, found.metrics, found.samples) == ("train", {1: 40.0}, {}, None)
    assert found.notes == (
        "the run is KILLED",
        "no evaluation was logged below this run: run `dvc repro` with its parameters",
        "not found: evaluation/card.json among its artifacts",
        "not found: evaluation/scores.npz among its artifacts",
        "not found: evaluation/samples.png among its artifacts",
    )


def test_a_name_of_several_runs_wants_an_id(store: tuple[Paths, str, str]) -> None:
    paths, _, run = store
    with pytest.raises(UserError, match=rf"^dull-dace: wanted one run of MLflow, found 2: .*{run}.*; give"):
        find("dull-dace", paths)


def test_a_store_without_the_run_says_so(store: tuple[Paths, str, str]) -> None:
    paths, _, _ = store
    for name in ("nonesuch", "0" * 32, "000000", "bonny-bream' OR ''='"):
        with pytest.raises(UserError, match="found none; `dvc exp show` lists experiments, `mlflow ui`"):
            find(name, paths)


@pytest.mark.parametrize("uri", ["", "sqlite:///{root}/other.db", "file://{root}/mlruns"])
def test_looking_for_a_run_makes_no_store(uri: str, project: Paths, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri.format(root=project.root))
    with pytest.raises(UserError, match=r"^nonesuch: wanted"):
        find("nonesuch", project)
    assert [path.name for path in project.root.iterdir()] == ["params.yaml"]


def test_a_server_that_cannot_be_reached_is_told_at_once(project: Paths, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{port}")
    with pytest.raises(TrackingError, match=r"^nonesuch: no revision of git and no experiment of DVC; MLflow at http"):
        find("nonesuch", project)


# ---- the command


def test_the_command_prints_plain_tables_and_writes_the_page(
    repository: Paths, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "page.html"
    monkeypatch.setattr(sys, "argv", ["reparam", "compare", "main", "wide", "workspace", "--output", str(target)])
    with pytest.raises(SystemExit) as caught:
        cli.main()
    assert caught.value.code == 0
    printed = capsys.readouterr().out
    lines = [re.sub(r" {2,}", " | ", line.strip()) for line in printed.splitlines()]
    assert [line for line in lines if line.startswith(("Param", "model.", "elbo", "best", "wide: 1"))] == [
        f"Parameters: 1 differ, {len(flatten(load_config(repository.params))) - 1} are equal",
        "model.latent | 12 | 20 | 20",
        "best_epoch | 80 | 80 | 80",
        "elbo | -20.00 ± 0.25 | -18.00 ± 0.25 | -18.00 ± 0.25",
        "best_epoch | 0 | 0",
        "elbo | +2.000 ± 0.058 | better | +2.000 ± 0.058 | better",
    ]
    assert not re.search(r"[│┃━─\x1b…]", printed)
    assert lines[-1] == f"{target}: written"
    assert "3 experiments side by side" in target.read_text(encoding="utf-8")


def test_the_page_stands_among_the_reports_unless_told_otherwise(project: Paths, params: dict[str, Any]) -> None:
    write_results(project, params, -20.0)
    side_by_side.run(["workspace", "workspace"], project)
    assert project.comparison == project.root / "reports/compare.html"
    assert "2 experiments side by side" in project.comparison.read_text(encoding="utf-8")


def test_one_experiment_is_not_enough(project: Paths) -> None:
    with pytest.raises(UserError, match=r"^compare: wanted two experiments or more, found only 'wide'; "):
        side_by_side.run(["wide"], project)
    assert not project.comparison.exists()


def test_a_comparison_of_files_loads_neither_torch_nor_mlflow_nor_dvc(project: Paths, params: dict[str, Any]) -> None:
    write_results(project, params, -20.0)
    code = (
        "import sys; from reparam.compare import side_by_side; from reparam.paths import Paths;"
        "side_by_side.run(['workspace', 'workspace'], Paths.here());"
        "assert not {'torch', 'mlflow', 'dvc'} & set(sys.modules)"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(cli.__file__).parents[1])}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
