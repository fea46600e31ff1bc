import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from conftest import small_section
from data_card import data_card
from linear_gaussian import hierarchy_evidence, linear_hierarchy, linear_vae, vae_evidence
from torch import Tensor
from torch.distributions import MultivariateNormal
from views import view_of

from reparam.config import EvaluateConfig
from reparam.data.store import Images, Split
from reparam.evaluate import annealing, assessment
from reparam.evaluate.aggregate import aggregate
from reparam.evaluate.annealing import Annealed
from reparam.evaluate.assessment import Assessed, Findings, assess
from reparam.evaluate.importance import importance
from reparam.evaluate.metrics import score, standard_error
from reparam.evaluate.representation import Labelled, probe
from reparam.evaluate.sample_quality import fit_projection, pca_quality
from reparam.evaluate.unusual import auroc
from reparam.evaluate.view import View
from reparam.models.build import AnyModel, build_model
from reparam.models.likelihoods import Gaussian
from reparam.runtime import random_stream

SHAPE = (1, 4, 4)
SCALED = data_card("dynamic", shift=0.5, scale=0.25)

LATENTS = {"mutual_information", "marginal_kl", "total_correlation"}
LABELS = {"knn_accuracy", "probe_accuracy"}
GENERATED = {f"pca_{name}" for name in ("precision", "recall", "density", "coverage", "frechet")}
OUTLIERS = {"auroc"}
ANNEALED = {"ais_nll", "ais_minus_nll", "ais_gap"}
# Not means over images, so that they have no standard error.
WITHOUT_ERROR = GENERATED


def settings(**changes: Any) -> EvaluateConfig:
    small = {"batch_size": 32, "elbo_samples": 2, "nll_samples": 20, "generated": {"images": 50, "components": 5}}
    slow = {"annealing": {"images": 6, "chains": 3, "steps": 5}}
    return small_section("evaluate", **small | slow | changes)


def some_model(scale: float = 3.0, **changes: Any) -> AnyModel:
    """An untrained model, whose latents nevertheless depend on the image."""
    small = {"hidden": [6], "latent": 3, "upper": [2], "upper_hidden": [5]}
    torch.manual_seed(0)
    model = build_model(small_section("model", **small | changes), SHAPE).eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(scale)
    return model


def some_split(count: int, seed: int) -> Split:
    """Images of two kinds, bright above or bright below."""
    random = np.random.default_rng(seed)
    images = random.integers(0, 120, (count, *SHAPE), dtype=np.uint8)
    labels = random.integers(0, 2, count, dtype=np.int32)
    images[labels == 0, :, :2] += 130
    images[labels == 1, :, 2:] += 130
    return Split(images, labels)


def measured(model: AnyModel, split: Split | None = None, card: dict[str, Any] = SCALED, **changes: Any) -> Assessed:
    """Score a split, so that the rest can be assessed."""
    config, scored = settings(**changes), split or some_split(90, seed=0)

    def view(images: Images) -> View:
        return view_of(images, card, config.batch_size)

    with random_stream(config.seed, "score"):
        scores = score(model, view(scored.images), config)
    train = some_split(80, seed=1) if split is None else split
    return Assessed(model, view(scored.images), scored, train, scores, config, view)


def assessed(subject: Assessed, *, outliers: bool = True, is_density: bool = True) -> Findings:
    return assess(subject, codes_of(subject), some_outliers() if outliers else None, is_density=is_density)


def codes_of(subject: Assessed) -> Callable[[int], Tensor]:
    return lambda count: torch.randn(count, subject.scores.means.shape[1])


def some_outliers() -> Images:
    return np.random.default_rng(5).integers(0, 256, (200, *SHAPE), dtype=np.uint8)


def with_errors(names: set[str]) -> set[str]:
    return names | {f"{name}_se" for name in names - WITHOUT_ERROR}


def assert_the_reason_is_given(found: Findings) -> None:
    reason = "not measured: this model has no likelihood of these pixels"
    assert {name: found.details[name] for name in ("outliers", "annealed")} == {"outliers": reason, "annealed": reason}
    assert found.warnings[-2:] == [f"outliers: {reason}", f"annealed: {reason}"]


# What there is to measure


def test_a_vae_is_measured_in_every_way() -> None:
    found = assessed(measured(some_model()))
    assert set(found.metrics) == with_errors(LATENTS | LABELS | GENERATED | OUTLIERS | ANNEALED)
    assert set(found.details) == {"mutual_information", "generated", "outliers", "annealed"}
    assert all(math.isfinite(value) for value in found.metrics.values())
    assert found.outlier_nll is not None
    assert found.outlier_nll.shape == (90,)  # as many as were scored, of 200


def test_an_autoencoder_has_neither_posterior_nor_likelihood_to_measure() -> None:
    found = assessed(measured(some_model(kind="autoencoder")))
    assert set(found.metrics) == with_errors(LABELS | GENERATED)
    assert found.outlier_nll is None
    assert_the_reason_is_given(found)


@pytest.mark.parametrize("inference", ["bottom_up", "top_down"])
def test_the_mutual_information_of_a_hierarchy_is_not_measured_but_all_else_is(inference: str) -> None:
    found = assessed(measured(some_model(kind="hierarchical", inference=inference)))
    assert set(found.metrics) == with_errors(LABELS | GENERATED | OUTLIERS | ANNEALED)


@pytest.mark.parametrize("kind", ["vae", "hierarchical"])
def test_without_a_density_nothing_that_needs_a_likelihood_is_measured(kind: str) -> None:
    found = assessed(measured(some_model(kind=kind), card=data_card("none")), is_density=False)
    assert set(found.metrics) == with_errors((LATENTS if kind == "vae" else set()) | LABELS | GENERATED)
    assert found.outlier_nll is None
    assert_the_reason_is_given(found)


def test_what_the_settings_leave_out_is_not_measured() -> None:
    found = assessed(measured(some_model(), generated={"images": 0}, annealing={"images": 0}), outliers=False)
    assert set(found.metrics) == with_errors(LATENTS | LABELS)
    assert set(found.details) == {"mutual_information"}


def test_labels_of_a_single_class_are_not_guessed() -> None:
    subject = measured(some_model())
    subject.train.labels[:] = 1
    assert set(assessed(subject).metrics) == with_errors(LATENTS | GENERATED | OUTLIERS | ANNEALED)


def test_it_is_told_why_there_is_no_accuracy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(assessment, "LEARNED_FROM", 1)
    found = assessed(measured(some_model()))
    assert set(found.metrics) & with_errors(LABELS) == set()
    assert found.details["accuracy"] == "wanted training images of two classes at least, found 1 of class 0 alone"


def test_a_single_image_is_assessed_as_far_as_it_goes() -> None:
    found = assessed(measured(some_model(), some_split(1, seed=0), annealing={"images": 1}))
    assert set(found.metrics) == with_errors(OUTLIERS | ANNEALED)


# Values


def test_latents_are_measured_at_one_sample_of_each_posterior() -> None:
    subject = measured(some_model())
    found, scores = assessed(subject), subject.scores
    with random_stream(subject.settings.seed, "latents"):
        z = torch.normal(scores.means, (scores.log_variances / 2).exp())
    wanted = aggregate(scores.means, scores.log_variances, z, limit=1000)
    # Other noise than the one that was drawn: the same numbers but for that.
    for name in LATENTS:
        assert found.metrics[name] == pytest.approx(getattr(wanted, name), abs=4 * getattr(wanted, f"{name}_se"))
        assert found.metrics[f"{name}_se"] == pytest.approx(getattr(wanted, f"{name}_se"), rel=0.5)
    assert found.details["mutual_information"] == {"bound": round(math.log(90), 4), "images": 90}
    parts = found.metrics["mutual_information"] + found.metrics["marginal_kl"]
    assert parts == pytest.approx(scores.kl.mean().item(), abs=4 * wanted.kl_se)


@pytest.mark.parametrize("limit", [10_000, 30])
def test_labels_are_guessed_from_posterior_means(limit: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(assessment, "LEARNED_FROM", limit)
    subject = measured(some_model(), card=data_card("none"))
    rows = torch.arange(80) if limit > 80 else torch.arange(30) * 80 // 30
    pixels = torch.from_numpy(subject.train.images[rows.numpy()]).float() / 255
    with torch.no_grad():
        known = Labelled(subject.model.posterior(pixels)[0], subject.train.labels[rows.numpy()])
    wanted = probe(known, Labelled(subject.scores.means, subject.scored.labels), 5, 1000)
    found = assessed(subject, is_density=False).metrics
    assert wanted.knn is not None
    assert wanted.linear is not None
    assert found["knn_accuracy"] == round(wanted.knn.value, 4) > 0.8
    assert found["probe_accuracy"] == round(wanted.linear.value, 4) > 0.8
    assert found["knn_accuracy_se"] == round(wanted.knn.standard_error, 4)
    assert found["probe_accuracy_se"] == round(wanted.linear.standard_error, 4)


def test_generated_images_are_compared_with_originals_as_grey_values_in_equal_numbers() -> None:
    subject = measured(some_model())  # 50 of them
    z, asked = torch.randn(50, 3, generator=torch.Generator().manual_seed(3)), []

    def codes(count: int) -> Tensor:
        asked.append(count)
        return z

    found = assess(subject, codes, None, is_density=True)
    with torch.no_grad():
        fake = subject.model.decode(z) * 0.25 + 0.5  # out of what the model sees, as SCALED says
    real = torch.from_numpy(subject.scored.images[np.arange(50) * 90 // 50]).float() / 255
    project = fit_projection(torch.from_numpy(subject.train.images).float() / 255, 5)
    wanted = pca_quality(project(real), project(fake), 5)
    assert {name: found.metrics[name] for name in wanted} == pytest.approx(wanted, abs=1e-4)
    assert asked == [50]
    assert found.details["generated"] == {"images": 50, "components": 5}


def test_no_more_images_are_generated_than_there_are_originals() -> None:
    assert assessed(measured(some_model(), generated={"images": 1000})).details["generated"]["images"] == 90


def test_outliers_are_told_from_the_scored_images_by_their_nll() -> None:
    subject = measured(some_model(scale=1.5), card=data_card("none"), nll_samples=200)
    found, outliers = assessed(subject), some_outliers()[np.arange(90) * 200 // 90]
    assert found.outlier_nll is not None
    torch.manual_seed(1)
    pixels = torch.from_numpy(outliers).float() / 255
    other = importance(subject.model, pixels, 200).nll  # with noise of its own
    difference = found.outlier_nll - other
    assert standard_error(difference) < 0.1
    assert abs(difference.mean().item()) < 4 * standard_error(difference)
    assert found.details["outliers"] == {"images": 90, "nll": round(found.outlier_nll.mean().item(), 4)}
    area, error = auroc(subject.scores.nll, found.outlier_nll)
    assert (found.metrics["auroc"], found.metrics["auroc_se"]) == (round(area, 4), round(error, 4))


# Streams


def test_each_part_draws_from_a_stream_of_its_own_and_leaves_the_others_as_they_are() -> None:
    model = some_model()
    torch.manual_seed(7)
    before = torch.random.get_rng_state()
    whole = assessed(measured(model)).metrics
    assert torch.equal(torch.random.get_rng_state(), before)
    for part, changes in (
        (GENERATED, {"generated": {"images": 0}}),
        (ANNEALED, {"annealing": {"images": 0}}),
        (OUTLIERS, {}),
    ):
        torch.rand(5)  # nor does it matter what was drawn before
        found = assessed(measured(model, **changes), outliers=part is not OUTLIERS).metrics
        assert found == {name: value for name, value in whole.items() if name not in with_errors(part)}
    subject = measured(model)
    subject.train.labels[:] = 0
    rest = {name: value for name, value in whole.items() if name not in with_errors(LABELS)}
    assert assessed(subject).metrics == rest


def test_another_seed_draws_other_numbers() -> None:
    model = some_model()
    first, second = (assessed(measured(model, seed=seed)).metrics for seed in (0, 1))
    for name in (*LATENTS, *ANNEALED, "pca_frechet", "auroc"):
        assert first[name] != second[name], name


# Warnings


def test_a_mutual_information_near_the_logarithm_of_the_images_is_doubted() -> None:
    model = some_model(likelihood="gaussian")
    with torch.no_grad():
        model.encoder[-1].weight[:3].mul_(30)  # posteriors far from each other
        model.encoder[-1].bias[3:].sub_(4)
    few, many = (assessed(measured(model, some_split(count, 0))) for count in (10, 400))
    warning = few.warnings[-1]
    assert few.metrics["mutual_information"] == pytest.approx(math.log(10), abs=0.01)
    assert warning.startswith("mutual_information is 2.30 nats where log N = 2.30 is the most")
    assert "marginal_kl and total_correlation are too high" in warning
    assert few.details["mutual_information"]["bound"] == pytest.approx(math.log(10), abs=1e-4)
    assert many.metrics["mutual_information"] > few.metrics["mutual_information"] + 1


def test_a_log_likelihood_that_rests_on_few_samples_is_doubted() -> None:
    subject = measured(some_model(likelihood="gaussian"))
    scores = replace(subject.scores, effective=torch.tensor([1.0, 9.9, 200.0]))
    found = assessed(replace(subject, scores=scores), outliers=False).warnings
    wanted = f"nll rests on 9.9 of {subject.settings.nll_samples} samples in the median image"
    assert [warning for warning in found if warning.startswith(wanted)]
    enough = replace(subject, scores=replace(scores, effective=torch.tensor([1.0, 10.0, 200.0])))
    assert not [warning for warning in assessed(enough, outliers=False).warnings if "rests on" in warning]
    assert not [warning for warning in assessed(subject, is_density=False).warnings if "rests on" in warning]


@pytest.mark.parametrize("kind", ["vae", "hierarchical"])
def test_a_collapsed_posterior_is_warned_of(kind: str) -> None:
    model = some_model(scale=0.0, kind=kind)  # all weights 0: every posterior is the prior
    [warning] = assessed(measured(model)).warnings
    latent = "0-2" if kind == "vae" else "0-4"
    assert warning.startswith(f"posterior collapse: no latent dimension ({latent}) tells anything of an image")


# Annealed importance sampling

WIDE = data_card("none", shift=0.5, scale=0.1)  # pixels from -5 to 5


def images_of(evidence: MultivariateNormal, count: int) -> Split:
    """Images of a linear Gaussian model, in grey values that WIDE turns back into its pixels."""
    torch.manual_seed(2)
    pixels = evidence.sample((count,)).unflatten(1, (1, 2, 2))
    grey = ((pixels * 0.1 + 0.5) * 255).round().clamp(0, 255).byte().numpy()
    return Split(grey, np.zeros(count, np.int32))


def exact_nll(evidence: MultivariateNormal, split: Split) -> Tensor:
    """-log p(x), of the very pixels that the model sees. Shapes: -> (N,)."""
    pixels = (torch.from_numpy(split.images).double() / 255 - 0.5) / 0.1
    return -evidence.log_prob(pixels.flatten(1))


LINEAR = {
    "vae": (linear_vae, vae_evidence),
    "top_down": (lambda error=0.0: linear_hierarchy("top_down", error), hierarchy_evidence),
    "bottom_up": (lambda error=0.0: linear_hierarchy("bottom_up", error), hierarchy_evidence),
}
# Both directions of inference have one prior and one decoder, and chains see no more.
every_prior = pytest.mark.parametrize("kind", ["vae", "top_down"])


def linear_subject(kind: str, count: int, error: float = 0.0, **changes: Any) -> tuple[Assessed, Tensor]:
    """Return the subject, and its exact -log p(x)."""
    model, evidence = LINEAR[kind][0](error).float().eval(), LINEAR[kind][1]()
    split = images_of(evidence, count)
    subject = measured(model, split, WIDE, generated={"images": 0}, **changes)
    return subject, exact_nll(evidence, split)


@pytest.mark.parametrize("kind", LINEAR)
def test_importance_sampling_finds_the_known_likelihood(kind: str) -> None:
    subject, exact = linear_subject(kind, 300, error=0.3, nll_samples=1000, annealing={"images": 0})
    difference = subject.scores.nll - exact
    assert 0 < standard_error(difference) < 0.01  # far below that of the images, 0.1
    assert abs(difference.mean().item()) < 3 * standard_error(difference)


@every_prior
def test_annealed_importance_sampling_finds_the_known_likelihood(kind: str) -> None:
    count = 40
    changes = {"annealing": {"images": count, "chains": 16, "steps": 60}, "nll_samples": 2}
    subject, exact = linear_subject(kind, 80, **changes)
    # The encoder gives the posterior itself, so that importance sampling is exact with any number of samples ...
    torch.testing.assert_close(subject.scores.nll, exact, atol=1e-4, rtol=0)
    found = assess(subject, codes_of(subject), None, is_density=True)
    # ... and the error of the difference is that of the chains alone.
    error = found.metrics["ais_minus_nll_se"]
    assert 0 < error < 0.06  # a third of that of the images at most
    assert abs(found.metrics["ais_minus_nll"]) < 3 * error + 0.005  # the gap of a bound of 16 chains
    wanted = exact[torch.arange(count) * 80 // count]
    assert abs(found.metrics["ais_nll"] - wanted.mean().item()) < 3 * error + 0.005
    assert found.metrics["ais_nll_se"] == pytest.approx(standard_error(wanted), rel=0.1)
    told = found.details["annealed"]
    assert (told["images"], told["chains"], told["steps"]) == (count, 16, 60)
    assert 0.4 < told["acceptance"] < 1
    assert 6 < told["effective_chains"] <= 16


@every_prior
@pytest.mark.parametrize("at_once", [150, 60])
def test_both_directions_bracket_the_known_likelihood_of_simulated_images(
    kind: str, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Images of 3 chains and 4 pixels. Started from latents of others, the upper bound is 3 to 8 nats below the exact.
    monkeypatch.setattr(annealing, "NUMBERS_AT_ONCE", at_once * 3 * 4)
    simulated, found = spied(monkeypatch, Gaussian, "sample"), spied(monkeypatch, assessment, "concatenate")
    count = 150
    subject, _ = linear_subject(kind, count, annealing={"images": count, "chains": 3, "steps": 5})
    metrics = assess(subject, codes_of(subject), None, is_density=True).metrics
    [x], [_, lower, upper] = simulated, found
    exact = LINEAR[kind][1]().log_prob(x.double().flatten(1))
    below, above = lower.log_px - exact, upper.log_px - exact
    assert below.mean().item() < 2 * standard_error(below)
    assert above.mean().item() > -2 * standard_error(above)
    assert max(below.abs().mean().item(), above.abs().mean().item()) < 4
    gap = upper.log_px - lower.log_px
    assert metrics["ais_gap"] == round(gap.mean().item(), 4) > 3 * metrics["ais_gap_se"]
    assert metrics["ais_gap_se"] == round(standard_error(gap), 4)


def spied(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str) -> list[Any]:
    """Collect what a function of a module or class returns."""
    original, returned = getattr(owner, name), []

    def spy(*args: Any) -> Annealed | Tensor:
        returned.append(original(*args))
        return returned[-1]

    monkeypatch.setattr(owner, name, spy)
    return returned


def test_a_better_path_narrows_the_gap() -> None:
    gaps = []
    for steps in (3, 9, 27):
        subject, _ = linear_subject("vae", 100, annealing={"images": 100, "chains": 4, "steps": steps})
        gaps.append(assess(subject, codes_of(subject), None, is_density=True).metrics["ais_gap"])
    assert gaps[0] > 2 * gaps[1] > 4 * gaps[2] > 0


def test_a_path_without_moves_has_no_acceptance() -> None:
    # JSON knows no NaN, with which evaluate would end after all the work.
    told = assessed(measured(some_model(), annealing={"images": 6, "steps": 1})).details["annealed"]
    assert told["acceptance"] is None


def test_annealing_leaves_weights_and_gradients_alone() -> None:
    model = some_model()
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    assessed(measured(model))
    assert all(weight.grad is None for weight in model.parameters())
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())
