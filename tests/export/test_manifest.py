"""What the manifest says of an exported model, and scores."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from exported_model import Exported, prepare, run_stage
from some_cards import small_config

from reparam.cards.export import ExportCard
from reparam.data.batches import Batches, View
from reparam.data.store import read_card
from reparam.evaluate.scoring import Scores, score
from reparam.export.manifest import QUANTILES, summarize

pytest_plugins = ["fixtures_export"]


def manifest(exported: Exported) -> ExportCard:
    return ExportCard.read(exported.directory / "manifest.json", "export")


def run(path: Path, **inputs: np.ndarray) -> dict[str, np.ndarray]:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return {output.name: value for output, value in zip(session.get_outputs(), session.run(None, inputs), strict=True)}


# Scores


@pytest.mark.parametrize(
    "changes",
    [
        {"kind": "vae"},
        {"kind": "hierarchical", "inference": "bottom_up"},
        {"kind": "hierarchical", "inference": "top_down", "likelihood": "gaussian_learned"},
    ],
    ids=["one layer", "up", "down"],
)
def test_the_mean_score_over_noise_is_the_elbo_that_evaluate_measures(changes: dict[str, Any], tmp_path: Path) -> None:
    binarization = "none" if "likelihood" in changes else "static"
    prepared = prepare(
        tmp_path, binarization=binarization, scaling="symmetric" if "likelihood" in changes else "unit", **changes
    )
    images = prepared.images if binarization == "none" else np.where(prepared.images > 127, 255, 0).astype(np.uint8)
    run_stage(prepared.paths)

    draws, size = 200, manifest(prepared).latent_size
    noise = np.random.default_rng(0).standard_normal((draws, len(images), size), dtype=np.float32)
    found = [run(prepared.directory / "score.onnx", images=images, epsilon=its) for its in noise]
    nll, kl = (np.stack([each[name] for each in found]) for name in ("negative_log_likelihood", "kl"))

    torch.manual_seed(0)
    view = View(Batches(np.ascontiguousarray(images.transpose(0, 3, 1, 2)), 40, torch.device("cpu")), prepared.pixels)
    settings = small_config().evaluate.model_copy(update={"elbo_samples": draws, "nll_samples": 1})
    scores: Scores = score(prepared.model, view, settings)
    wanted = -(scores.reconstruction + scores.kl).mean().item()
    # Both are means over the same images of independent draws.
    error = math.sqrt(2 * ((nll + kl).var(0, ddof=1) / draws).sum()) / len(images)
    assert -(nll + kl).mean() == pytest.approx(wanted, abs=4 * error)
    assert 0 < error < abs(wanted) / 100


def test_the_reconstruction_without_noise_is_the_decoded_posterior_mean(exported: Exported) -> None:
    epsilon = np.zeros((40, 2), np.float32)
    found = run(exported.directory / "score.onnx", images=exported.images, epsilon=epsilon)
    latents = run(exported.directory / "encoder.onnx", images=exported.images)["mean"]
    wanted = run(exported.directory / "decoder.onnx", latents=latents)["mean"]
    np.testing.assert_allclose(found["reconstruction"], wanted, rtol=0, atol=1e-6)


def test_the_manifest_says_which_scores_are_usual(exported: Exported) -> None:
    epsilon = np.zeros((40, 2), np.float32)
    found = run(exported.directory / "score.onnx", images=exported.images, epsilon=epsilon)
    scores = (found["negative_log_likelihood"] + found["kl"]).astype(np.float64)
    assert manifest(exported).scores == summarize(scores)
    summary = summarize(np.arange(101.0))
    assert (summary.images, summary.epsilon, summary.mean) == (101, "zeros", 50.0)
    assert summary.quantiles == {str(percent): float(percent) for percent in QUANTILES}


def test_there_is_no_score_without_a_density(code: Exported, tmp_path: Path) -> None:
    bernoulli_of_grey = prepare(tmp_path, binarization="none")
    run_stage(bernoulli_of_grey.paths)
    for exported in (code, bernoulli_of_grey):
        assert not (exported.directory / "score.onnx").exists()
        assert manifest(exported).scores is None
        assert set(manifest(exported).graphs) == {"encoder", "decoder"}


# Facts


def test_the_manifest_says_where_the_codes_of_the_test_split_lie(exported: Exported, code: Exported) -> None:
    for each in (exported, code):
        codes, found = run(each.directory / "encoder.onnx", images=each.images)["mean"], manifest(each).codes
        assert found.images == 40
        np.testing.assert_allclose(found.mean, codes.mean(0), atol=1e-4)
        np.testing.assert_allclose(found.deviation, codes.std(0), atol=1e-4)


def test_latents_times_the_scale_factor_have_a_variance_of_1(
    exported: Exported, code: Exported, image_of_latents: Exported
) -> None:
    random = np.random.default_rng(0)
    for each in (exported, code, image_of_latents):
        found = run(each.directory / "encoder.onnx", images=each.images)
        deviation = np.exp(found["log_variance"] / 2) if "log_variance" in found else 0.0
        z = found["mean"] + deviation * random.standard_normal((2_000, *found["mean"].shape))
        scale = manifest(each).codes.scale_factor
        assert scale is not None
        assert (scale * z).std() == pytest.approx(1, abs=0.01)


def test_the_manifest_says_what_goes_in_and_comes_out(exported: Exported) -> None:
    graphs = json.loads((exported.directory / "manifest.json").read_text())["graphs"]
    assert graphs["score"]["inputs"][0] == {
        "name": "images",
        "dtype": "uint8",
        "shape": ["batch", 4, 6, 3],
        "range": [0.0, 255.0],
        "unit": "grey levels",
        "meaning": "to score",
    }
    names = {name: [[port["name"] for port in graph[side]] for side in graph] for name, graph in graphs.items()}
    assert names == {
        "encoder": [["images"], ["mean", "log_variance"]],
        "decoder": [["latents"], ["images", "mean"]],
        "score": [["images", "epsilon"], ["reconstruction", "negative_log_likelihood", "kl"]],
    }


def test_an_app_can_undo_the_scaling_and_knows_the_learned_sigma(tmp_path: Path) -> None:
    learned = prepare(tmp_path, binarization="none", scaling="standard", likelihood="gaussian_learned", sigma=0.25)
    run_stage(learned.paths)
    facts = manifest(learned)
    assert facts.scaling == read_card(learned.paths.processed).scaling
    assert facts.sigma == pytest.approx(learned.model.likelihood.deviation(torch.zeros(1, 3, 1, 1)).mean().item())
    assert (facts.prior, facts.title, facts.licence) == ("standard normal", "Noise", "CC0")


def test_an_autoencoder_has_no_prior_and_a_bernoulli_no_sigma(code: Exported) -> None:
    facts = manifest(code)
    assert (facts.has_prior, facts.prior, facts.sigma) == (False, None, None)
