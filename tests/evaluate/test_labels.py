"""Evaluation of conditional models."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from conftest import small_section
from subjects import SHAPE, settings, some_data, some_images, some_split
from torch import Tensor

from reparam.data.batches import Seen
from reparam.data.store import Split
from reparam.evaluate import gallery
from reparam.evaluate.fidelity import fidelity
from reparam.evaluate.importance import importance
from reparam.evaluate.measures import measure
from reparam.evaluate.samplers import draw_codes
from reparam.evaluate.subject import Subject
from reparam.models.build import build_model
from reparam.models.latent import LatentModel
from reparam.models.model import Model

LABELS = [2, 0, 1, 2, 2, 1, 0, 2]
PARTS = {"annealing": {"images": 3, "steps": 3, "chains": 2}, "generated": {"images": 8}}


def some_model(shape: tuple[int, ...] = SHAPE, **changes: Any) -> LatentModel:
    torch.manual_seed(0)
    small = {"condition": "label", "size": 2, "hidden": [5], "latent": 3, "upper": [2], "upper_hidden": [4]}
    model = build_model(small_section("model", **small | changes), shape, classes=3).eval()
    torch.nn.init.normal_(model.condition.image)  # type: ignore[union-attr]
    return model.requires_grad_(False)


def subject(model: LatentModel, split: Split | None = None, **changes: Any) -> Subject:
    data = replace(some_data(split or some_split(LABELS)), is_conditional=True)
    return Subject.scored(model, data, settings(**{"nll_samples": 5} | changes))


def test_scores_of_images_follow_their_labels() -> None:
    model, split = some_model(), some_split(LABELS)
    found = subject(model)
    x = torch.from_numpy(split.images).float() / 255
    mean, log_variance = Model(model, torch.tensor(LABELS)).posterior(x)
    torch.testing.assert_close(found.scores.means, mean.detach().double())
    torch.testing.assert_close(found.scores.log_variances, log_variance.detach().double())
    others = subject(model, Split(split.images, np.array([2, 0, 1, 2, 2, 1, 0, 1], np.int32)))
    assert (found.scores.nll == others.scores.nll).tolist() == [True] * 7 + [False]


def test_importance_sampling_cuts_labels_as_it_cuts_images(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x, labels = some_model(), torch.from_numpy(some_images(8)).float() / 255, torch.tensor(LABELS)
    whole = importance(model, [Seen(x, labels)], 1000).nll
    monkeypatch.setattr("reparam.evaluate.importance.MEMORY", {"cpu": 1})  # one image at a time
    torch.testing.assert_close(importance(model, [Seen(x, labels)], 1000).nll, whole, rtol=0, atol=0.1)


def test_labels_are_as_often_as_in_the_split_and_the_usual_one_is_the_most_frequent() -> None:
    found = subject(some_model())
    assert found.proportional(4).tolist() == [0, 1, 2, 2]
    assert found.proportional(16).tolist() == [0] * 4 + [1] * 4 + [2] * 8
    assert found.usual == 2
    assert found.with_usual == ", with label 2"
    z = torch.zeros(2, 3)
    np.testing.assert_array_equal(found.decode_usual(z), found.decode(z, np.array([2, 2])))
    assert (found.decode_usual(z) != found.decode(z, np.array([0, 1]))).any()


def test_reconstructions_are_compared_that_have_the_label_of_their_image(monkeypatch: pytest.MonkeyPatch) -> None:
    shape, labels = (1, 11, 11), np.array([0, 0, 0, 1, 2], np.int32)
    model, brightness = some_model(shape), 0.2 * labels[:, None, None, None]
    images = np.broadcast_to(np.rint(255 * brightness).astype(np.uint8), (5, *shape)).copy()

    def decode(_z: Tensor, its: Tensor) -> Tensor:
        return (0.2 * its + 0.1)[:, None, None, None].expand(-1, *shape)

    monkeypatch.setattr(model, "decode", decode)
    found = fidelity(subject(model, Split(images, labels)))
    assert found["psnr"].tolist() == pytest.approx([20.0] * 5, abs=1e-4)  # all are 0.1 too bright
    similar = [1e-4 / 0.0101, (0.12 + 1e-4) / (0.13 + 1e-4), (0.4 + 1e-4) / (0.41 + 1e-4)]
    assert found["ssim"].tolist() == pytest.approx([similar[label] for label in labels], abs=1e-4)


def test_the_noise_of_an_untrained_conditional_model_has_these_signal_to_noise_ratios() -> None:
    model, split = some_model(), some_split([0, 0, 0, 1, 2])
    x, labels = torch.from_numpy(split.images).float() / 255, torch.tensor([0, 0, 0, 1, 2])
    labelled = Model(model, labels)
    errors = (labelled.decode(labelled.posterior(x)[0]) - x).square().mean((1, 2, 3))
    found = fidelity(subject(model, split))["psnr"]
    torch.testing.assert_close(found, -10 * errors.log10().double())
    assert found.tolist() == pytest.approx([11.0059, 10.8462, 8.8141, 11.8166, 8.1740], abs=1e-3)


@pytest.mark.parametrize("kind", ["autoencoder", "vae", "hierarchical"])
def test_all_is_drawn_and_measured_of_a_conditional_model(kind: str) -> None:
    found = subject(some_model(kind=kind, likelihood="gaussian_per_pixel"), sampler="mixture", **PARTS)
    measured = measure(found, outliers=some_split([0, 0]))
    assert measured.not_measured["accuracy"] == "not measured: the encoder receives the label that would be guessed"
    assert "outliers" in measured.not_measured
    assert "auroc" not in measured.metrics
    assert ("ais_nll" in measured.metrics) == (kind != "autoencoder")
    assert {"classes", "interpolation", "sigma"} < set(gallery.plot_all(found))
    assert gallery.tiles(found)[1].grid.unit.endswith(", with label 2")


def test_annealing_finds_the_likelihood_given_the_label() -> None:
    model = some_model(likelihood="gaussian", sigma=0.7)
    measured = measure(subject(model, annealing={"images": 8, "steps": 100, "chains": 20}, nll_samples=2000), None)
    # Image by image: other labels change the NLL by 0.26 and more, but hardly its mean.
    assert measured.of_images["ais_minus_nll"].abs().mean().item() < 0.08


def test_the_figure_of_classes_has_a_row_of_each_with_the_same_latents(monkeypatch: pytest.MonkeyPatch) -> None:
    found, shown = subject(some_model()), dict[str, Any]()
    monkeypatch.setattr(gallery, "plot_table", lambda images, rows, *rest: shown.update(images=images, rows=rows))
    gallery._classes(found)
    assert shown["rows"] == ["0", "1", "2"]
    images = shown["images"].reshape(3, gallery.STEPS, *SHAPE)
    latents: list[Tensor] = []
    monkeypatch.setattr(Subject, "decode", lambda _, z, numbers: latents.append(z) or np.zeros((len(z), *SHAPE)))
    gallery._classes(found)
    assert torch.equal(latents[0].view(3, gallery.STEPS, -1)[0], latents[0].view(3, gallery.STEPS, -1)[2])
    assert (images[0] != images[1]).any()


def test_images_are_joined_with_one_of_their_class() -> None:
    first, second = subject(some_model()).pairs(4)
    labels = np.array(LABELS)
    assert len(first) == 4
    assert (labels[first] == labels[second]).all()
    split = Split(some_images(2), np.array([0, 1], np.int32))
    assert [rows.tolist() for rows in subject(some_model(), split).pairs(4)] in ([[0], [1]], [[1], [0]])


def test_codes_are_drawn_of_images_with_their_labels() -> None:
    model = some_model(kind="autoencoder")
    data = replace(some_data(some_split(LABELS)), is_conditional=True)
    torch.manual_seed(1)
    codes = draw_codes(model, data.view(data.train))
    torch.manual_seed(1)
    order = torch.randperm(8)
    x = torch.from_numpy(data.train.images).float() / 255
    torch.testing.assert_close(codes, Model(model, torch.tensor(LABELS)).posterior(x)[0].detach()[order])
