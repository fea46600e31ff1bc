"""Scores of codes whose disentanglement is known by construction."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from subjects import GREY, settings, some_data, some_model, some_scores, some_split

from reparam.cards.data import FactorFacts
from reparam.data.store import Split
from reparam.evaluate import disentanglement, gallery
from reparam.evaluate.disentanglement import Coded, dci, factor_vae_score, gap, mutual_information, sap, weigh
from reparam.evaluate.measures import measure
from reparam.evaluate.subject import Subject

Array = npt.NDArray[Any]
SCORES = {"mig", "sap", "dci_disentanglement", "dci_completeness", "dci_informativeness", "factor_vae_score"}


@pytest.fixture(autouse=True)
def few_votes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disentanglement, "VOTES", (400, 400))
    monkeypatch.setattr(disentanglement, "TREES", 10)


def grid(*sizes: int, repeat: int = 1) -> Array:
    """All combinations of factors, each as often, in a random order."""
    rows = np.array(list(np.ndindex(*sizes)) * repeat)
    return np.random.default_rng(0).permutation(rows)


def coded(codes: Array, factors: Array, ordered: Sequence[bool] | None = None) -> Coded:
    ordered = ordered or [True] * factors.shape[1]
    facts = [
        FactorFacts(name=f"factor {n}", size=int(values.max()) + 1, is_ordered=is_ordered)
        for n, (values, is_ordered) in enumerate(zip(factors.T, ordered, strict=True))
    ]
    return Coded(codes.astype(np.float64), factors, facts)


def scores(subject: Coded) -> dict[str, float]:
    found = dci(subject)
    return {
        "mig": gap(mutual_information(subject, 20)),
        "sap": gap(sap(subject)),
        "disentanglement": found.disentanglement,
        "completeness": found.completeness,
        "informativeness": found.informativeness,
        "factor_vae": factor_vae_score(subject, np.random.default_rng(0)),
    }


def test_a_latent_for_each_factor_has_the_best_score_of_all() -> None:
    factors = grid(3, 4, 5, repeat=6)
    # In another order, at another scale, one backwards, and a latent that has collapsed.
    codes = np.column_stack([0.5 * factors[:, 2], -2.0 * factors[:, 0], np.zeros(len(factors)), factors[:, 1]])
    found = scores(coded(codes, factors))
    assert found == pytest.approx(dict.fromkeys(found, 1.0), abs=1e-6)


def test_two_factors_that_are_turned_into_each_other_have_no_gap() -> None:
    factors = grid(2, 2, repeat=50)
    a, b = factors.T
    turned = coded(np.column_stack([a + b, a - b]), factors)
    # Each latent has three values, 1 : 2 : 1, of which either factor leaves two: 1.5 - 1 = 0.5 bits.
    np.testing.assert_allclose(mutual_information(turned, 20), 0.5, atol=1e-12)
    np.testing.assert_allclose(sap(turned), 0.5, atol=1e-12)  # the squared correlation of a + b with a
    assert gap(mutual_information(turned, 20)) == pytest.approx(0, abs=1e-12)
    assert gap(sap(turned)) == pytest.approx(0, abs=1e-12)
    found = dci(turned)
    assert found.informativeness == 1  # all is there, but not apart
    assert found.disentanglement < 0.5
    assert found.completeness < 0.5
    assert factor_vae_score(turned, np.random.default_rng(0)) == pytest.approx(0.5, abs=0.08)  # guessing


def test_codes_that_know_nothing_score_about_nothing() -> None:
    factors = grid(4, 4, 4, repeat=20)
    noise = coded(np.random.default_rng(1).normal(size=(len(factors), 3)), factors)
    found = scores(noise)
    for name in ("mig", "sap", "disentanglement", "completeness"):
        assert 0 <= found[name] < 0.05, name
    assert found["informativeness"] == pytest.approx(1 / 4, abs=0.06)  # guessing one of four values
    assert found["factor_vae"] == pytest.approx(1 / 3, abs=0.1)  # guessing one of three factors


def test_mutual_information_is_that_of_a_known_joint_distribution() -> None:
    # P(z, v): 3/8 on the diagonal, 1/8 off it.
    pairs = np.repeat([[0, 0], [1, 1], [0, 1], [1, 0]], [3, 3, 1, 1], axis=0)
    information = math.log(2) + 2 * (3 / 8) * math.log(3 / 4) + 2 * (1 / 8) * math.log(1 / 4)
    found = mutual_information(coded(pairs[:, :1], pairs[:, 1:]), 2)
    np.testing.assert_allclose(found, [[information / math.log(2)]], rtol=1e-12)
    # Of a single latent, the second best says nothing.
    assert gap(found) == pytest.approx(information / math.log(2), rel=1e-12)


@pytest.mark.parametrize(("bins", "wanted"), [(2, 0.5), (4, 1.0)])
def test_bins_that_are_too_wide_hide_what_a_latent_says(bins: int, wanted: float) -> None:
    factors = grid(4, repeat=10)
    assert gap(mutual_information(coded(factors, factors), bins)) == pytest.approx(wanted, rel=1e-12)


def test_a_factor_without_order_is_guessed_by_thresholds() -> None:
    factors = grid(3, 4, repeat=20)
    # Codes in another order than the numbers: no line fits them, two thresholds do.
    codes = np.column_stack([np.array([0.0, 2.0, 1.0])[factors[:, 0]], factors[:, 1]])
    found = sap(coded(codes, factors, [False, True]))
    assert found[0, 0] == 1
    assert found[1, 0] == pytest.approx(1 / 3, abs=0.1)  # guessing
    np.testing.assert_allclose(found[:, 1], [0, 1], atol=1e-12)
    # As Kumar et al. define it, guessing counts: the gap of such a factor is 1 - 1 / 3 at most.
    np.testing.assert_allclose(sap(coded(codes, factors))[0, 0], 0.25, atol=1e-12)


def test_the_balanced_accuracy_of_a_rare_value_counts_as_much_as_others() -> None:
    factors = np.random.default_rng(0).permutation(np.repeat([[0], [1]], [285, 15], axis=0))
    constant_but_one = np.column_stack([np.zeros(300), np.arange(300) % 2])
    found = sap(coded(constant_but_one, factors, [False]))
    assert found[0, 0] == 0  # a constant predicts nothing
    assert found[1, 0] < 0.8  # where accuracy would be 0.95


def test_importance_is_weighed_as_in_the_article() -> None:
    # Of three latents, the first is about both factors, the second about one, the third about none.
    importance = np.array([[0.25, 0.25], [0.5, 0.0], [0.0, 0.0]])
    found = weigh(importance)
    shares = (2 / 3, 1 / 3)
    entropy = -sum(share * math.log(share) for share in shares) / math.log(3)
    assert found == pytest.approx((0.5 * 0 + 0.5 * 1, 0.75 * (1 - entropy) + 0.25 * 1), rel=1e-12)


def test_the_vote_of_a_latent_that_hardly_varies_does_not_count() -> None:
    factors = grid(3, 3, repeat=20)
    noise = np.random.default_rng(0).normal(size=len(factors))
    # Over its own variance, the third latent varies as much as others: it must not even be asked.
    codes = np.column_stack([factors, 1e-3 * noise])
    assert factor_vae_score(coded(codes, factors), np.random.default_rng(0)) == 1
    assert factor_vae_score(coded(np.zeros((len(factors), 2)), factors), np.random.default_rng(0)) == 0


# Within an evaluation


def subject_of(
    count: int = 60, factors: bool = True, codes: str = "mean", images: int = 1000, constant: Sequence[int] = ()
) -> Subject:
    """A model whose posterior means are the factors, with noise of deviation 0.1; some factors may be constant."""
    rows = grid(2, 3, repeat=count // 6)
    split = some_split([0] * count)
    means = torch.from_numpy(np.column_stack([rows, np.zeros(count)]))
    rows[:, constant] = 1
    facts = coded(rows, rows).facts
    data = some_data(Split(split.images, split.labels, rows.astype(np.int32) if factors else None), GREY)
    data = type(data)(**{**vars(data), "factors": facts if factors else None})
    scored = some_scores(count, 3, means=means, log_variances=torch.full((count, 3), 2 * math.log(0.1)))
    asked = {"images": images, "codes": codes}
    return Subject(some_model(), data, settings(disentanglement=asked, nll_samples=1), scored)


def test_scores_are_measured_where_factors_are_known_and_they_are_asked_for() -> None:
    found = measure(subject_of(), None)
    assert {name: found.metrics[name] for name in SCORES} == pytest.approx(dict.fromkeys(SCORES, 1.0), abs=1e-4)
    facts = found.details.disentanglement
    assert facts is not None
    assert (facts.images, facts.codes, facts.bins) == (60, "mean", 20)
    assert "factors" in gallery.plot_all(subject_of())


def test_a_factor_that_is_the_same_for_all_images_changes_no_score() -> None:
    found = measure(subject_of(constant=[1]), None)
    assert {name: found.metrics[name] for name in SCORES} == pytest.approx(dict.fromkeys(SCORES, 1.0), abs=1e-4)
    warning = "disentanglement: factor 1 is the same for all compared images, so no score counts it"
    assert [one for one in found.warnings if one.startswith("disentanglement")] == [warning]
    assert "factors" in gallery.plot_all(subject_of(constant=[1]))
    assert "factors" not in gallery.plot_all(subject_of(constant=[0, 1]))


def test_scores_of_draws_are_those_of_noisier_codes() -> None:
    means, draws = (subject_of(codes=codes).coded for codes in ("mean", "sample"))
    assert means is not None
    assert draws is not None
    np.testing.assert_array_equal(means.factors, draws.factors)
    assert (draws.codes - means.codes).std() == pytest.approx(0.1, abs=0.02)


def test_some_images_at_random_are_measured_instead_of_all() -> None:
    found = subject_of(images=40).coded
    assert found is not None
    assert found.codes.shape == (40, 3)
    np.testing.assert_array_equal(found.codes[:, :2], found.factors)


def test_without_being_asked_nothing_is_measured_or_said() -> None:
    found = measure(subject_of(images=0), None)
    assert SCORES & set(found.metrics) == set()
    assert (found.details.disentanglement, found.details.not_measured) == (None, {})
    assert not [warning for warning in found.warnings if "disentanglement" in warning]
    assert "factors" not in gallery.plot_all(subject_of(images=0))


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"factors": False}, "wanted images with known factors, as of sprites, dsprites and a folder with attributes"),
        ({"images": 29}, "wanted 30 images at least, found 29"),
        ({"constant": [0, 1]}, "wanted a factor that differs between the images, found none"),
    ],
)
def test_it_is_said_why_scores_are_missing(changes: dict[str, Any], reason: str) -> None:
    found = measure(subject_of(**changes), None)
    assert SCORES & set(found.metrics) == set()
    assert found.details.not_measured == {"disentanglement": f"not measured: {reason}"}
    assert f"disentanglement: not measured: {reason}" in found.warnings
