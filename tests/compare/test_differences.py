import math
import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from experiments import CONDITIONS, METRICS, difference, experiment, seeded

from reparam.compare.differences import (
    Cell,
    Difference,
    choose_metric,
    compare,
    find_obstacles,
    is_better,
    judge,
    spell,
)
from reparam.compare.experiment import Experiment
from reparam.metrics import METRICS as METRICS_DESCRIBED
from reparam.metrics import describe

UNSPREAD = "first, other: the spread between seeds is unknown with one seed; compare several values of train.seed"
ON_WEIGHTS = "A verdict on single experiments is about their weights: another seed gives other weights."


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
    assert list(metrics) == ["elbo", "kl", "nll", "active_units"]
    assert metrics["elbo"][1] == Cell(None, None, None)
    assert metrics["kl"] == [Cell(None, None, None), Cell(5.0, 0.1, None)]


MISSING = "not known"
GENERATED = ["pca_precision", "pca_frechet"]
OTHER_SPLITS = ["elbo_validation", "served_elbo_loss"]  # than `evaluate.split`
SCORED_ONES = ("elbo", "nll", "auroc", "ais_nll", "ais_minus_nll", "ais_gap", "kl", "knn_accuracy", *GENERATED)
JUDGED = (*SCORED_ONES, *OTHER_SPLITS)
LIKELIHOOD = ["elbo", "nll", "ais_nll"]


@pytest.mark.parametrize(
    ("condition", "value", "barred"),
    [
        ("images_sha256", "9" * 64, SCORED_ONES),
        ("validation_sha256", "9" * 64, ["elbo_validation"]),
        ("test_sha256", "9" * 64, ["served_elbo_loss"]),
        ("train_sha256", "9" * 64, []),
        ("split", "validation", SCORED_ONES),
        ("split", MISSING, SCORED_ONES),
        ("binarization", "static", JUDGED),
        ("scaling", ((0.5, 0.5),), [*LIKELIHOOD, "elbo_validation"]),
        ("outliers", "data/noise", ["auroc"]),
        ("annealing.images", 10, ["ais_nll", "ais_minus_nll", "ais_gap"]),
        ("annealing.chains", 2, ["ais_nll", "ais_minus_nll", "ais_gap"]),
        ("annealing.steps", 9, ["ais_nll", "ais_minus_nll", "ais_gap"]),
        ("generated.images", 50, GENERATED),
        ("generated.components", 8, GENERATED),
        ("data", "other.dir", GENERATED),
        ("neighbours", 3, ["knn_accuracy", "pca_precision"]),
        ("nll_samples", 5, ["nll", "auroc", "ais_minus_nll"]),
        ("nll_samples", MISSING, ["nll", "auroc", "ais_minus_nll"]),
        ("elbo_samples", 7, []),
    ],
)
def test_what_a_metric_depends_on_bars_a_verdict_where_it_differs(
    condition: str, value: object, barred: Sequence[str]
) -> None:
    metrics = dict.fromkeys(JUDGED, 1.0) | {f"{name}_se": 0.1 for name in JUDGED}
    larger = {name: 9 * number for name, number in metrics.items()}
    changed = {name: found for name, found in (CONDITIONS | {condition: value}).items() if found != MISSING}
    alike, different = experiment("alike", metrics=larger), experiment("other", metrics=larger, conditions=changed)
    found = compare([experiment(metrics=metrics), alike, different])
    lost = [note for note in found.notes if "no verdict" in note]
    if barred:
        theirs, ours = (re.sub(r"(\w)\1{31,}", r"\1" * 8, str(known)) for known in (value, CONDITIONS[condition]))
        assert lost == [f"other: {condition} is {theirs}, that of first is {ours}; no verdict on {', '.join(barred)}"]
    else:
        assert lost == []
    for name in JUDGED:
        assert difference(found, name).verdict != ""
        assert (difference(found, name, 2).verdict == "") == (name in barred)


def test_conditions_that_are_known_of_neither_give_no_verdict() -> None:
    unknown = [experiment(conditions={}), experiment("other", metrics=METRICS | {"elbo": -10.0}, conditions={})]
    assert difference(compare(unknown), "elbo") == Difference(10.0, pytest.approx(0.3 * 2**0.5), "")


def test_files_that_are_absent_give_no_verdict_and_no_line_for_each_condition() -> None:
    absent = experiment("other", metrics=METRICS | {"elbo": -10.0}, conditions={}, notes=("not here: a.json",))
    for pair in ([experiment(), absent], [absent, experiment()]):
        found = compare(pair)
        assert {name: row[1].difference.verdict for name, row in found.metrics.items() if row[1].difference} == {
            "elbo": "",
            "nll": "",
        }
        assert found.notes == [ON_WEIGHTS, UNSPREAD.replace("first, other", pair[0].name)]  # of the same seed
        (obstacle,) = find_obstacles(*pair)
        assert (obstacle.what, obstacle.metrics) == (
            "the evaluation of other is not known",
            ["elbo", "nll", "active_units"],
        )


# ---- the metric to choose by


@pytest.mark.parametrize(
    ("metrics", "deciding"),
    [
        (["elbo", "kl", "elbo_validation", "kl_validation"], "elbo_validation"),
        (["reconstruction", "reconstruction_validation"], "reconstruction_validation"),
        (["bce", "bce_validation"], "bce_validation"),
        (["bce", "kl", "bce_validation", "kl_validation"], ""),
        (["elbo", "nll"], ""),
        ([], ""),
    ],
)
def test_the_metric_to_choose_by_is_of_the_validation_split_and_comes_first(metrics: list[str], deciding: str) -> None:
    one = experiment(metrics=dict.fromkeys(["images", *metrics], 1.0))
    found = compare([one, one])
    assert found.deciding == choose_metric([one, one]) == deciding
    assert not deciding or next(iter(found.metrics)) == deciding
    assert list(found.metrics)[-1] == ("images" if metrics[-1:] != ["kl_validation"] else "kl_validation")


def test_losses_of_different_objectives_have_no_difference() -> None:
    params = {"objective.name": "elbo", "objective.beta": 1.0}
    first = experiment(params=params, metrics={"best_validation_loss": 9.0})
    other = replace(first, name="other", metrics={"best_validation_loss": 7.0})
    assert difference(compare([first, other]), "best_validation_loss") == Difference(-2.0, None, "")
    gentle = replace(other, params=params | {"objective.beta": 0.5})
    found = compare([first, gentle])
    assert found.metrics["best_validation_loss"] == [Cell(9.0, None, None), Cell(7.0, None, None)]
    assert found.notes[0] == "other: objective.beta is 0.5, that of first is 1.0; no verdict on best_validation_loss"


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
        ON_WEIGHTS,
        UNSPREAD,
    ]


def test_the_same_two_would_be_within_noise_were_they_not_paired() -> None:
    found = compare(scored_pair(scores={}))
    assert difference(found, "elbo") == Difference(1.0, pytest.approx(math.hypot(4.0825, 4.3)), "within noise")
    assert found.notes == ["other: not paired, as of independent images: elbo, kl", ON_WEIGHTS, UNSPREAD]


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


def test_scores_of_the_validation_split_are_paired_whatever_split_was_evaluated() -> None:
    metrics = {"elbo_validation": -20.0, "elbo_validation_se": 4.0825}
    first = experiment(metrics=metrics, scores={"elbo_validation": OURS})
    better = {"metrics": metrics | {"elbo_validation": -19.0}, "scores": {"elbo_validation": THEIRS}}
    other = experiment("other", conditions=CONDITIONS | {"split": "train", "images_sha256": "1" * 64}, **better)
    found = difference(compare([first, other]), "elbo_validation")
    assert found == Difference(1.0, pytest.approx(0.2041241452), "better", is_paired=True)


def test_other_training_data_are_no_obstacle_where_the_scored_images_are_the_same() -> None:
    found = compare(scored_pair(conditions=CONDITIONS | {"data": "other.dir"}))
    assert difference(found, "elbo").verdict == "better"
    assert difference(found, "elbo").is_paired


@pytest.mark.parametrize("scores", [THEIRS[:3], THEIRS[:1]])
def test_scores_of_other_numbers_of_images_are_not_paired(scores: np.ndarray) -> None:
    assert not difference(compare(scored_pair(scores={"elbo": scores})), "elbo").is_paired


def test_the_same_scores_give_no_difference_and_no_verdict() -> None:
    first, other = scored_pair(scores={"elbo": OURS})
    found = compare([first, replace(other, metrics=first.metrics)])
    assert difference(found, "elbo") == Difference(0.0, 0.0, "", is_paired=True)


def test_scores_that_are_not_those_of_the_metric_are_not_paired() -> None:
    assert not difference(compare(scored_pair(scores={"elbo": OURS})), "elbo").is_paired


# ---- seeds


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
    assert found.notes[-1] == ON_WEIGHTS


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
    assert (
        found.notes[-1] == "b: the spread between seeds is unknown with one seed; compare several values of train.seed"
    )


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
        experiment(
            name,
            params=given,
            metrics=metrics | {"kl": kl, "elbo": -kl},
            conditions=CONDITIONS | {"is_discrete": is_discrete},
        )
        for name, given, kl, is_discrete in zip(("first", "other"), params, (5.0, 9.0), (False, True), strict=True)
    )
    found = compare([one, other])
    assert found.notes[:1] == [
        "other: the likelihood is discretised_logistic, that of first is gaussian: only one is of the 256 grey values; "
        "no verdict on elbo, ais_nll"
    ]
    assert [difference(found, name).verdict for name in ("elbo", "kl")] == ["", "differs"]


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
        (30.0, -0.5, "", "30.00 ± -0.50"),  # of a damaged file
    ],
)
def test_a_number_has_the_places_of_its_error(value: float, error: float | None, sign: str, spelled: str) -> None:
    assert spell(value, error, sign) == spelled


@pytest.mark.parametrize(
    ("name", "value", "than", "wanted"),
    [
        ("elbo", -1.0, -2.0, True),
        ("nll", 1.0, 2.0, True),
        ("nll", 2.0, 1.0, False),
        ("ais_minus_nll", -0.1, 0.2, True),
        ("pca_density", 1.68, 0.9, False),
        ("pca_density", 4.2, 1.68, False),
        ("pca_coverage", 0.9, 0.8, True),
        ("kl", 1.0, 2.0, None),
        ("nonesuch", 1.0, 2.0, None),
    ],
)
def test_which_value_is_better(name: str, value: float, than: float, wanted: bool | None) -> None:
    assert is_better(name, value, than) is wanted
