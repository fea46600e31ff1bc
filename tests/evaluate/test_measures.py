import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import subjects
import torch
from some_cards import image_facts
from subjects import (
    COUNTS,
    DENSITY,
    GREY,
    LATENTS,
    POSTERIOR,
    settings,
    some_data,
    some_images,
    some_model,
    some_split,
    with_errors,
)
from torch import Tensor

from reparam.cards.data import ImageFacts
from reparam.cards.evaluation import GeneratedFacts, MutualInformationFacts, OutlierFacts
from reparam.data.batches import Seen
from reparam.data.store import Images, Split
from reparam.errors import NonFiniteError
from reparam.evaluate import gallery, measures
from reparam.evaluate.aggregate import aggregate
from reparam.evaluate.findings import Findings
from reparam.evaluate.importance import importance
from reparam.evaluate.measures import measure
from reparam.evaluate.outliers import auroc
from reparam.evaluate.representation import Guesses, Labelled, probe
from reparam.evaluate.sample_quality import fit_projection, pca_quality
from reparam.evaluate.scoring import score
from reparam.evaluate.subject import Subject
from reparam.metrics import describe
from reparam.models.build import start_at_mean
from reparam.models.draw import standard_error
from reparam.models.latent import LatentModel
from reparam.runtime import random_stream

SHAPE = (1, 4, 4)
SCALED = image_facts("dynamic", shift=0.5, scale=0.25)

LIKELIHOOD = with_errors(DENSITY) | COUNTS | {"nll_effective_samples"}
LABELS = with_errors(subjects.LABELS)
GENERATED = with_errors(subjects.GENERATED)
OUTLIERS = with_errors({"auroc"})
ANNEALED = with_errors({"ais_nll", "ais_minus_nll", "ais_gap"})
REASON = "not measured: this model has no likelihood of these pixels"


def model_of(scale: float = 3.0, **changes: Any) -> LatentModel:
    """An untrained model, whose latents nevertheless depend on the image."""
    model = some_model(SHAPE, **{"hidden": [6], "upper_hidden": [5]} | changes)
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(scale)
    return model


def two_kinds(count: int, seed: int) -> Split:
    """Images that are bright above or bright below."""
    random = np.random.default_rng(seed)
    images = random.integers(0, 120, (count, *SHAPE), dtype=np.uint8)
    labels = random.integers(0, 2, count, dtype=np.int32)
    images[labels == 0, :, :2] += 130
    images[labels == 1, :, 2:] += 130
    return Split(images, labels)


def subject_of(
    model: LatentModel,
    images: Split | None = None,
    card: ImageFacts = SCALED,
    *,
    is_density: bool = True,
    validation: Split | None = None,
    **changes: Any,
) -> Subject:
    """Score a model on two kinds of images, or on those that it was trained on; all that there is shall be measured."""
    small = {"batch_size": 32, "nll_samples": 20, "generated": {"images": 50, "components": 5}}
    slow = {"annealing": {"images": 6, "chains": 3, "steps": 5}}
    train = images or two_kinds(80, seed=1)
    data = some_data(images or two_kinds(90, seed=0), card, is_density=is_density, train=train, validation=validation)
    return Subject.scored(model, data, settings(**small | slow | changes))


def measured(subject: Subject) -> Findings:
    return measure(subject, some_outliers())


def some_outliers() -> Split:
    images = np.random.default_rng(5).integers(0, 256, (200, *SHAPE), dtype=np.uint8)
    return Split(images, np.zeros(200, np.int32))


def assert_the_reason_is_given(found: Findings) -> None:
    assert found.details.not_measured == {"outliers": REASON, "annealed": REASON}
    assert found.warnings[-2:] == [f"outliers: {REASON}", f"annealed: {REASON}"]


# What there is to measure


def test_a_vae_is_measured_in_every_way() -> None:
    found = measured(subject_of(model_of()))
    assert set(found.metrics) == LIKELIHOOD | with_errors(LATENTS) | LABELS | GENERATED | OUTLIERS | ANNEALED
    assert set(found.facts) == {"bounds", "mutual_information", "generated", "outliers", "annealed"}
    assert all(math.isfinite(value) for value in found.metrics.values())
    assert found.outlier_nll is not None
    assert found.outlier_nll.shape == (90,)  # as many as were scored, of 200


def test_an_autoencoder_has_neither_posterior_nor_likelihood_to_measure() -> None:
    found = measured(subject_of(model_of(kind="autoencoder")))
    assert set(found.metrics) == with_errors({"reconstruction"}) | COUNTS | LABELS | GENERATED
    assert found.outlier_nll is None
    assert_the_reason_is_given(found)


@pytest.mark.parametrize("inference", ["bottom_up", "top_down"])
def test_the_mutual_information_of_a_hierarchy_is_not_measured_but_all_else_is(inference: str) -> None:
    found = measured(subject_of(model_of(kind="hierarchical", inference=inference)))
    layers = with_errors({"kl_layer_1", "kl_layer_2"})
    assert set(found.metrics) == LIKELIHOOD | layers | LABELS | GENERATED | OUTLIERS | ANNEALED


@pytest.mark.parametrize("kind", ["vae", "hierarchical"])
def test_without_a_density_nothing_that_needs_a_likelihood_is_measured(kind: str) -> None:
    found = measured(subject_of(model_of(kind=kind), card=GREY, is_density=False))
    latents = LATENTS if kind == "vae" else {"kl_layer_1", "kl_layer_2"}
    assert set(found.metrics) == with_errors({"bce", "psnr"} | POSTERIOR | latents) | COUNTS | LABELS | GENERATED
    assert found.outlier_nll is None
    assert_the_reason_is_given(found)


def test_a_score_that_is_not_finite_ends_the_evaluation_in_a_message() -> None:
    model = model_of()
    with torch.no_grad():
        next(model.encoder.parameters()).fill_(1e38)
    with pytest.raises(NonFiniteError, match=r"^elbo: wanted a finite number, found -?(nan|inf): the model puts out"):
        measured(subject_of(model))


def test_what_the_settings_leave_out_is_not_measured() -> None:
    found = measure(subject_of(model_of(), generated={"images": 0}, annealing={"images": 0}), None)
    assert set(found.metrics) == LIKELIHOOD | with_errors(LATENTS) | LABELS
    assert set(found.facts) == {"bounds", "mutual_information"}


def test_labels_of_a_single_class_are_not_guessed() -> None:
    subject = subject_of(model_of())
    subject.data.train.labels[:] = 1
    assert set(measured(subject).metrics) == LIKELIHOOD | with_errors(LATENTS) | GENERATED | OUTLIERS | ANNEALED


def test_labels_of_the_very_images_that_were_learned_from_are_not_guessed() -> None:
    assert LABELS & set(measured(subject_of(model_of(), split="train")).metrics) == set()


def test_the_reason_why_there_is_no_accuracy_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measures, "LEARNED_FROM", 1)
    found = measured(subject_of(model_of()))
    assert set(found.metrics) & LABELS == set()
    assert (
        found.details.not_measured["accuracy"]
        == "wanted training images of two classes at least, found 1 of class 0 alone"
    )


def test_a_single_image_is_measured_as_far_as_it_goes() -> None:
    found = measured(subject_of(model_of(), two_kinds(1, seed=0), annealing={"images": 1, "chains": 3, "steps": 5}))
    assert set(found.metrics) == LIKELIHOOD | OUTLIERS | ANNEALED


# Each image by itself


@pytest.mark.parametrize(
    ("kind", "is_density", "names"),
    [
        ("vae", True, DENSITY),
        ("hierarchical", True, DENSITY | {"kl_layer_1", "kl_layer_2"}),
        ("vae", False, {"bce"} | POSTERIOR),
        ("autoencoder", True, {"reconstruction"}),
        ("autoencoder", False, {"bce"}),
    ],
)
def test_the_scores_of_images_average_to_the_metrics_and_nothing_else_is_among_them(
    kind: str, is_density: bool, names: set[str]
) -> None:
    subject = subject_of(model_of(kind=kind), is_density=is_density, annealing={"images": 0})
    found = measure(subject, None)
    assert set(found.of_images) == names | {"knn_accuracy", "probe_accuracy"}
    for name in names:
        values = found.of_images[name]
        assert values.shape == (90,)
        assert found.metrics[name] == round(values.mean().item(), 4)
        assert found.metrics[f"{name}_se"] == round(values.std().item() / 90**0.5, 4) > 0
    for name in ("knn", "probe"):
        is_right = found.of_images[f"{name}_accuracy"]
        assert is_right.dtype == torch.bool
        assert found.metrics[f"{name}_accuracy"] == round(int(is_right.sum()) / 90, 4)


@pytest.mark.parametrize("is_density", [True, False])
@pytest.mark.parametrize("kind", ["vae", "hierarchical", "autoencoder"])
def test_everything_that_is_measured_is_described(kind: str, is_density: bool) -> None:
    found = measured(subject_of(model_of(kind=kind), is_density=is_density))
    assert [name for name in found.metrics if describe(name.removesuffix("_se")) is None] == []
    assert [name for name in found.of_images if name not in found.metrics] == []


# Values


@pytest.mark.parametrize("prior", ["mixture", "vamp"])
def test_a_model_with_a_learned_prior_has_all_measures_and_figures_but_the_kl_of_dimensions(prior: str) -> None:
    subject = subject_of(model_of(scale=1.0, prior=prior))
    found, wanted = measured(subject).metrics, measured(subject_of(model_of(scale=1.0))).metrics
    assert found.keys() == wanted.keys()
    assert found["kl"] == pytest.approx(found["mutual_information"] + found["marginal_kl"], abs=5 * found["kl_se"])
    assert subject.scores.latent_kl.isnan().all()
    torch.testing.assert_close(subject.scores.layer_kl[:, 0], subject.scores.kl)
    assert torch.equal(subject.use, subject.scores.latent_variance)
    middle, deviation = subject.model.prior.moments()
    assert (subject.frame.origin.tolist(), subject.frame.scale.tolist()) == (middle.tolist(), deviation.tolist())
    figures = gallery.plot_all(subject)
    assert [axes.get_ylabel() for axes in figures["latent_use"].axes] == ["variance over images"]
    assert figures["aggregate"].axes[0].get_legend().get_texts()[1].get_text() == "p(z)"
    assert figures["traversals"].axes[0].get_title(loc="left").endswith("the others are at their mean")


def test_a_collapsed_model_with_a_learned_prior_is_warned_of() -> None:
    found = measured(subject_of(model_of(scale=0.0, prior="mixture")))
    assert found.warnings[0].startswith("posterior collapse: no latent dimension (0-2) says anything of an image")


def test_latents_are_measured_at_samples_of_each_posterior() -> None:
    subject = subject_of(model_of())
    found, scores = measured(subject), subject.scores
    with random_stream(subject.settings.seed, "latents"):
        z = torch.normal(scores.means.expand(4, -1, -1), (scores.log_variances / 2).exp())
    wanted = aggregate(scores.means, scores.log_variances, z, subject.model.prior, limit=1000)
    # Other noise than the one that was drawn: the same numbers but for that.
    for name in LATENTS:
        assert found.metrics[name] == pytest.approx(getattr(wanted, name), abs=4 * getattr(wanted, f"{name}_se"))
        assert found.metrics[f"{name}_se"] == pytest.approx(getattr(wanted, f"{name}_se"), rel=0.5)
    assert found.details.mutual_information == MutualInformationFacts(bound=round(math.log(90), 4), images=90)
    parts = found.metrics["mutual_information"] + found.metrics["marginal_kl"]
    assert parts == pytest.approx(scores.kl.mean().item(), abs=2e-4)  # both in closed form


@pytest.mark.parametrize("limit", [10_000, 30])
def test_labels_are_guessed_from_posterior_means(limit: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measures, "LEARNED_FROM", limit)
    subject = subject_of(model_of(), card=GREY, is_density=False)
    train, scored = subject.data.train, subject.data.scored
    rows = np.arange(80) if limit > 80 else np.arange(30) * 80 // 30
    with torch.no_grad():
        known = Labelled(subject.model.posterior(torch.from_numpy(train.images[rows]) / 255)[0], train.labels[rows])
    wanted = probe(known, Labelled(subject.scores.means, scored.labels), 5)
    found = measured(subject)
    assert isinstance(wanted, Guesses)
    for name, is_right in (("knn", wanted.knn), ("probe", wanted.linear)):
        assert torch.equal(found.of_images[f"{name}_accuracy"], is_right)
        share = is_right.double().mean().item()
        assert found.metrics[f"{name}_accuracy"] == round(share, 4) > 0.8
        assert found.metrics[f"{name}_accuracy_se"] == round(math.sqrt(share * (1 - share) / 90), 4)


LEFT_OUT = {"generated": {"images": 0}, "annealing": {"images": 0}}


@pytest.mark.parametrize(
    ("kind", "is_density", "names"),
    [
        ("vae", True, {"elbo", "reconstruction", "kl"}),
        ("hierarchical", True, {"elbo", "reconstruction", "kl"}),
        ("vae", False, {"bce", "kl"}),
        ("autoencoder", True, {"reconstruction"}),
    ],
)
def test_the_validation_split_is_scored_like_the_other_one_without_an_nll(
    kind: str, is_density: bool, names: set[str]
) -> None:
    held_out, model, given = two_kinds(30, seed=2), model_of(kind=kind), {"is_density": is_density, **LEFT_OUT}
    alone = measure(subject_of(model, **given), None)
    subject = subject_of(model, validation=held_out, **given)
    found = measure(subject, None)
    validated = {f"{name}_validation" for name in names}
    assert set(found.metrics) == set(alone.metrics) | with_errors(validated)
    assert alone.metrics.items() <= found.metrics.items()  # nothing else is drawn otherwise
    scores = score(model, subject.data.view(held_out), subject.settings, "validation", with_nll=False)
    assert scores.nll.isnan().all()
    wanted = {"elbo": -(scores.reconstruction + scores.kl), "kl": scores.kl}
    for name in names:
        values = wanted.get(name, scores.reconstruction)
        assert torch.equal(found.of_images[f"{name}_validation"], values)
        assert found.metrics[f"{name}_validation"] == round(values.mean().item(), 4)
        assert found.metrics[f"{name}_validation_se"] == round(values.std().item() / 30**0.5, 4)


def test_where_the_validation_split_is_evaluated_its_scores_are_not_drawn_again() -> None:
    held_out = two_kinds(30, seed=2)
    found = measure(subject_of(model_of(), held_out, validation=held_out, split="validation", **LEFT_OUT), None).metrics
    for name in ("elbo", "reconstruction", "kl"):
        for suffix in ("", "_se"):
            assert found[f"{name}_validation{suffix}"] == found[f"{name}{suffix}"]


def test_generated_images_are_compared_with_originals_as_grey_values_in_equal_numbers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    subject = subject_of(model_of())  # 50 of them
    z, asked = torch.randn(50, 3, generator=torch.Generator().manual_seed(3)), []

    def codes(_subject: Subject, count: int) -> Tensor:
        asked.append(count)
        return z

    monkeypatch.setattr(Subject, "codes", codes)
    found = measure(subject, None)
    with torch.no_grad():
        fake = subject.model.decode(z) * 0.25 + 0.5  # out of what the model sees, as SCALED says
    real = torch.from_numpy(subject.data.scored.images[np.arange(50) * 90 // 50]) / 255
    project = fit_projection(subject.data.train.images, 5)
    wanted = pca_quality(project(real), project(fake), 5)
    assert with_errors(set(wanted)) == GENERATED
    assert {name: found.metrics[name] for name in wanted} == pytest.approx(wanted, abs=1e-4)
    assert asked == [50]
    train = subject.data.train.images
    known = torch.from_numpy(train[np.arange(50) * len(train) // 50]) / 255
    floor = {name: round(value, 4) for name, value in pca_quality(project(real), project(known), 5).items()}
    assert found.details.generated == GeneratedFacts(images=50, components=5, training_images=floor)


@torch.no_grad()
@pytest.mark.parametrize("how", ["threshold", "static"])
def test_where_pixels_are_black_and_white_so_are_generated_ones(how: str) -> None:
    generated = subject_of(model_of(), card=image_facts(how)).generate(40)
    assert generated.unique().tolist() == [0.0, 1.0]
    grey = subject_of(model_of(), card=GREY).generate(40)
    assert len(grey.unique()) > 100


def test_no_more_images_are_generated_than_there_are_originals() -> None:
    generated = measured(subject_of(model_of(), generated={"images": 1000})).details.generated
    assert generated is not None
    assert generated.images == 90


def test_outliers_are_recognised_by_their_nll() -> None:
    subject = subject_of(model_of(scale=1.5), card=GREY, nll_samples=200)
    found, outliers = measured(subject), some_outliers().images[np.arange(90) * 200 // 90]
    assert found.outlier_nll is not None
    torch.manual_seed(1)
    other = importance(subject.model, [Seen(torch.from_numpy(outliers) / 255)], 200).nll  # with noise of its own
    difference = found.outlier_nll - other
    assert standard_error(difference) < 0.1
    assert abs(difference.mean().item()) < 4 * standard_error(difference)
    assert found.details.outliers == OutlierFacts(images=90, nll=round(found.outlier_nll.mean().item(), 4))
    area, error = auroc(subject.scores.nll, found.outlier_nll)
    assert (found.metrics["auroc"], found.metrics["auroc_se"]) == (round(area, 4), round(error, 4))


# Streams


def test_each_part_draws_from_a_stream_of_its_own_and_leaves_the_others_as_they_are() -> None:
    model = model_of()
    torch.manual_seed(7)
    before = torch.random.get_rng_state()
    whole = measured(subject_of(model)).metrics
    assert torch.equal(torch.random.get_rng_state(), before)

    def rest(part: set[str]) -> dict[str, float]:
        return {name: value for name, value in whole.items() if name not in part}

    for part, changes in ((GENERATED, {"generated": {"images": 0}}), (ANNEALED, {"annealing": {"images": 0}})):
        torch.rand(5)  # nor does it matter what was drawn before
        assert measured(subject_of(model, **changes)).metrics == rest(part)
    assert measure(subject_of(model), None).metrics == rest(OUTLIERS)
    subject = subject_of(model)
    subject.data.train.labels[:] = 0
    assert measured(subject).metrics == rest(LABELS)


def test_another_seed_draws_other_numbers() -> None:
    model = model_of()
    first, second = (measured(subject_of(model, seed=seed)).metrics for seed in (0, 1))
    for name in ("elbo", "nll", *LATENTS, *ANNEALED, "pca_frechet", "auroc"):
        assert first[name] != second[name], name


# Warnings


def test_a_mutual_information_near_the_logarithm_of_the_images_is_doubted() -> None:
    model = model_of(likelihood="gaussian")
    with torch.no_grad():
        model.encoder[-1].weight[:3].mul_(30)  # posteriors far from each other
        model.encoder[-1].bias[3:].sub_(4)
    few, many = (measured(subject_of(model, two_kinds(count, 0), generated={"images": 0})) for count in (10, 400))
    warning = few.warnings[-1]
    assert few.metrics["mutual_information"] == pytest.approx(math.log(10), abs=0.01)
    assert warning.startswith("mutual_information is 2.30 nats, close to its maximum log N = 2.30: it is too low")
    assert "marginal_kl and total_correlation are too high" in warning
    facts = few.details.mutual_information
    assert facts is not None
    assert facts.bound == pytest.approx(math.log(10), abs=1e-4)
    assert many.metrics["mutual_information"] > few.metrics["mutual_information"] + 1


def test_a_log_likelihood_that_rests_on_few_samples_is_doubted() -> None:
    def doubts(subject: Subject, *effective: float) -> list[str]:
        scores = replace(subject.scores, effective=torch.tensor(effective))
        found = measure(replace(subject, scores=scores), None).warnings
        return [warning for warning in found if "effective samples" in warning]

    model = model_of(likelihood="gaussian")
    [doubt] = doubts(subject_of(model), 1.0, 9.9, 200.0)
    assert doubt.startswith("nll has only 9.9 effective samples of 20 in the median image")
    assert doubts(subject_of(model), 1.0, 10.0, 200.0) == []
    assert doubts(subject_of(model, is_density=False), 1.0, 9.9, 200.0) == []


@pytest.mark.parametrize("kind", ["vae", "hierarchical"])
def test_a_collapsed_posterior_is_warned_of(kind: str) -> None:
    model = model_of(scale=0.0, kind=kind)  # all weights 0: every posterior is the prior
    [warning] = measured(subject_of(model, generated={"images": 0})).warnings
    latent = "0-2" if kind == "vae" else "0-4"
    assert warning.startswith(f"posterior collapse: no latent dimension ({latent}) says anything of an image")


def coverage_warnings(subject: Subject) -> list[str]:
    return [warning for warning in measure(subject, None).warnings if "pca_coverage" in warning]


def test_identical_blobs_look_precise_and_dense_and_are_warned_of() -> None:
    split = some_split([0] * 200, SHAPE)
    model = model_of(scale=0.0)
    start_at_mean(model, torch.from_numpy(split.images.mean(0)).float() / 255)  # and nothing else
    subject = subject_of(model, split, GREY, is_density=False, generated={"images": 200, "components": 12})
    found = measure(subject, None).metrics
    assert found["pca_precision"] == 1.0
    assert found["pca_density"] > 4
    # The same 5 * density real images have all of them as neighbours.
    assert found["pca_coverage"] == pytest.approx(5 * found["pca_density"] / 200)
    assert coverage_warnings(subject) == [
        f"generated images come near only {found['pca_coverage']:.0%} of the real ones (pca_coverage): they vary "
        "too little, or look unlike them; pca_precision and pca_density may be high all the same"
    ]


@pytest.mark.parametrize("neighbours", [1, 5])
@pytest.mark.parametrize(
    ("decoded", "is_warned_of"),
    [(lambda images: images / 255, False), (lambda images: images / 255 + 1, True)],
    ids=["images of the same kind", "images unlike any other"],
)
def test_coverage_is_low_where_real_images_would_cover_twice_as_much(
    neighbours: int, decoded: Callable[[Images], Any], is_warned_of: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, other = np.split(some_images(400, SHAPE), 2)
    generated = {"images": 200, "components": 5}
    split = Split(real, np.zeros(200, np.int32))
    subject = subject_of(model_of(), split, neighbours=neighbours, generated=generated, annealing={"images": 0})
    monkeypatch.setattr(Subject, "decode", lambda *_: decoded(other).astype(np.float32))
    assert bool(coverage_warnings(subject)) == is_warned_of
