"""A trained model, measured a second time: by numpy alone, in double precision, from the files that stages leave."""

import copy
import json
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from conftest import SMALL, change
from ruamel.yaml import YAML
from safetensors.numpy import load_file

from reparam.config import load_config
from reparam.download import stage as download
from reparam.evaluate import stage as evaluate
from reparam.paths import Paths
from reparam.preprocess import stage as preprocess
from reparam.runtime import random_stream
from reparam.train import stage as train

Array = npt.NDArray[np.float64]
CHANGES = {
    # Black and white once and for all, so that what was scored is in a file.
    "preprocess": {"limit": 1_200, "binarization": "static"},
    "model": {"hidden": [64], "latent": 8, "activation": "tanh"},
    "train": {"batch_size": 8, "epochs": 5},
    "evaluate": {"elbo_samples": 8, "nll_samples": 20, "generated": {"images": 0}},
}
ELBO_SAMPLES, NLL_SAMPLES, ROUNDS = 8, 20, 3
ONCE = 1e-4  # the last digit of what is rounded to four


@dataclass(frozen=True)
class Stage:
    """What the stage measured, and what it measured it on."""

    metrics: dict[str, float]
    weights: dict[str, Array]
    x: Array  # (N, 784), zeros and ones
    labels: npt.NDArray[np.int32]  # (N,)
    train_x: Array
    train_labels: npt.NDArray[np.int32]

    def encode(self, x: Array | None = None) -> tuple[Array, Array]:
        """Return mean and log variance of the posterior. Shapes: -> (N, 8) twice."""
        hidden = np.tanh(
            (self.x if x is None else x) @ self.weights["encoder.1.weight"].T + self.weights["encoder.1.bias"]
        )
        both = hidden @ self.weights["encoder.3.weight"].T + self.weights["encoder.3.bias"]
        return both[:, :8], both[:, 8:]

    def log_likelihood(self, z: Array) -> Array:
        """Log p(x|z). Shapes: (N, 8) -> (N,)."""
        hidden = np.tanh(z @ self.weights["decoder.0.weight"].T + self.weights["decoder.0.bias"])
        logits = hidden @ self.weights["decoder.2.weight"].T + self.weights["decoder.2.bias"]
        # x log(sigmoid) + (1 - x) log(1 - sigmoid) = x logit - log(1 + exp(logit))
        return (self.x * logits - np.maximum(logits, 0) - np.log1p(np.exp(-abs(logits)))).sum(1)

    def agrees(self, name: str, values: Array, error: float) -> bool:
        """Whether a metric is the mean of values within four standard errors of their difference."""
        assert 0 < error < 0.1 * self.metrics[f"{name}_se"]  # far more exact than images vary
        return abs(self.metrics[name] - values.mean()) < 4 * error + ONCE


@pytest.fixture(scope="module")
def stage(mnist_files: Path, tmp_path_factory: pytest.TempPathFactory) -> Stage:
    """A model of MNIST, trained for a few seconds."""
    root = tmp_path_factory.mktemp("independent")
    paths, params = Paths(root, root), copy.deepcopy(SMALL)
    params["download"]["source"] = "mnist"
    for section, values in CHANGES.items():
        change(params[section], values)
    with paths.params.open("w", encoding="utf-8") as file:
        YAML().dump(params, file)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", "off")
        patch.setenv("REPARAM_MIRRORS", mnist_files.as_uri())
        for run in (download.run, preprocess.run, train.run, evaluate.run):
            run(load_config(paths.params), paths)
    weights = load_file(paths.model / "weights.safetensors")
    images, labels, train_images, train_labels = (
        np.load(paths.processed / f"{split}-{kind}.npy") for split in ("test", "train") for kind in ("images", "labels")
    )
    return Stage(
        json.loads(paths.evaluation_metrics.read_text()),
        {name: values.astype(np.float64) for name, values in weights.items()},
        images.reshape(-1, 784) / 255.0,
        labels,
        train_images.reshape(-1, 784) / 255.0,
        train_labels,
    )


def test_the_images_are_black_and_white_and_the_model_has_learned_of_them(stage: Stage) -> None:
    assert np.unique(stage.x).tolist() == [0, 1]
    assert stage.metrics["images"] == len(stage.x) == 1_200
    assert {name: values.shape for name, values in stage.weights.items()} == {
        "encoder.1.weight": (64, 784),
        "encoder.1.bias": (64,),
        "encoder.3.weight": (16, 64),
        "encoder.3.bias": (16,),
        "decoder.0.weight": (64, 8),
        "decoder.0.bias": (64,),
        "decoder.2.weight": (784, 64),
        "decoder.2.bias": (784,),
    }
    # Of the mean training image alone: 206.
    assert 100 < stage.metrics["nll"] < 190


def test_the_kl_is_its_closed_form(stage: Stage) -> None:
    mean, log_variance = stage.encode()
    kl = 0.5 * (mean**2 + np.exp(log_variance) - 1 - log_variance).sum(1)
    assert stage.metrics["kl"] == pytest.approx(kl.mean(), abs=ONCE)
    assert stage.metrics["kl_se"] == pytest.approx(kl.std(ddof=1) / len(kl) ** 0.5, abs=ONCE)


def test_active_units_are_those_whose_mean_varies(stage: Stage) -> None:
    variance = stage.encode()[0].var(0)
    assert stage.metrics["active_units"] == (variance > 0.01).sum() > 1


def test_reconstruction_and_elbo_are_means_over_the_posterior(stage: Stage) -> None:
    mean, log_variance = stage.encode()
    noise, deviation = np.random.default_rng(0), np.exp(log_variance / 2)
    samples = np.stack(
        [-stage.log_likelihood(mean + deviation * noise.standard_normal(mean.shape)) for _ in range(4 * ELBO_SAMPLES)]
    )
    # The stage has as noisy samples, but fewer.
    per_image = samples.var(0, ddof=1) * (1 / len(samples) + 1 / ELBO_SAMPLES)
    error = math.sqrt(per_image.sum()) / len(mean)
    assert stage.agrees("reconstruction", samples.mean(0), error)
    kl = 0.5 * (mean**2 + deviation**2 - 1 - log_variance).sum(1)
    assert stage.agrees("elbo", -samples.mean(0) - kl, error)


def test_the_nll_is_importance_sampled(stage: Stage) -> None:
    mean, log_variance = stage.encode()
    noise, deviation = np.random.default_rng(1), np.exp(log_variance / 2)

    def log_weight() -> Array:
        e = noise.standard_normal(mean.shape)
        z = mean + deviation * e
        log_ratio = (-(z**2) / 2 + e**2 / 2 + log_variance / 2).sum(1)  # the constants are the same
        return stage.log_likelihood(z) + log_ratio

    # As many samples as the stage took, for the same bias; several times, to see how much it varies.
    rounds = [-np.logaddexp.reduce([log_weight() for _ in range(NLL_SAMPLES)], axis=0) for _ in range(ROUNDS)]
    nll = np.stack(rounds) + math.log(NLL_SAMPLES)
    per_image = nll.var(0, ddof=1) * (1 / ROUNDS + 1)
    assert stage.agrees("nll", nll.mean(0), math.sqrt(per_image.sum()) / len(mean))
    assert stage.metrics["nll"] < -stage.metrics["elbo"]


def test_the_kl_is_split_as_its_definition_says(stage: Stage) -> None:
    mean, log_variance = stage.encode()
    # The very samples of the stage: what follows is then exact.
    with random_stream(0, "latents"):
        noise = torch.randn(4, *mean.shape, dtype=torch.float64).numpy()
    known, shared = np.zeros(len(mean)), np.zeros(len(mean))
    for z in mean + np.exp(log_variance / 2) * noise:
        log_joint = np.zeros((len(z), len(z)))  # log q(z_n | x_m), row n, column m
        log_dimensions = np.zeros(len(z))  # sum over j of log q(z_nj)
        for j in range(z.shape[1]):
            distance = (z[:, j, None] - mean[:, j]) ** 2 / np.exp(log_variance[:, j])
            given = -0.5 * (distance + log_variance[:, j] + math.log(2 * math.pi))
            log_joint += given
            log_dimensions += np.log(np.exp(given).mean(1))
        top = log_joint.max(1)
        log_aggregate = np.log(np.exp(log_joint - top[:, None]).mean(1)) + top
        known += (np.diagonal(log_joint) - log_aggregate) / 4
        shared += (log_aggregate - log_dimensions) / 4
    kl = 0.5 * (mean**2 + np.exp(log_variance) - 1 - log_variance).sum(1)
    parts = {"mutual_information": known, "marginal_kl": kl - known, "total_correlation": shared}
    for name, values in parts.items():
        assert stage.metrics[name] == pytest.approx(values.mean(), abs=ONCE), name
        assert stage.metrics[f"{name}_se"] == pytest.approx(values.std(ddof=1) / len(values) ** 0.5, abs=ONCE), name


def test_digits_are_guessed_by_the_vote_of_the_nearest_codes(stage: Stage) -> None:
    known, found = stage.encode(stage.train_x)[0], stage.encode()[0]
    distance = (found**2).sum(1)[:, None] + (known**2).sum(1) - 2 * found @ known.T
    votes = np.eye(10)[stage.train_labels[np.argsort(distance, axis=1)[:, :5]]].sum(1)  # (N, 10)
    accuracy = (votes.argmax(1) == stage.labels).mean()
    assert stage.metrics["knn_accuracy"] == pytest.approx(accuracy, abs=1 / len(found))  # one tie of distances
    assert stage.metrics["knn_accuracy_se"] == pytest.approx((accuracy * (1 - accuracy) / len(found)) ** 0.5, rel=0.01)
    assert accuracy > 0.5
