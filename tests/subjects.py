"""What evaluation is about, in small: settings, models, images, scores written by hand, and subjects made of them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from conftest import small_section
from ruamel.yaml import YAML
from some_cards import image_facts
from torch import Tensor

from reparam.cards.data import ImageFacts
from reparam.config import EvaluateConfig
from reparam.data.pixels import Pixels
from reparam.data.store import Images, Split
from reparam.evaluate.scoring import Scores
from reparam.evaluate.subject import Data, Subject
from reparam.models.build import build_model
from reparam.models.latent import LatentModel

SHAPE = (1, 2, 3)
GREY = image_facts("none")
# Figures of every model: those that DVC shows.
PLOTS = YAML(typ="safe").load(Path(__file__).parents[1] / "dvc.yaml")["plots"]
# And the KL of each latent, which `dvc plots` draws itself, in the order of dimensions.
ALWAYS_DRAWN = [*(Path(plot).stem for plot in PLOTS if isinstance(plot, str)), "latent_use"]

# Names of metrics, by what has them; a new one goes to where it belongs.
POSTERIOR = {"kl"}  # every model with a posterior
DENSITY = {"elbo", "reconstruction", "nll"} | POSTERIOR  # and with a density of the pixels
LATENTS = {"mutual_information", "marginal_kl", "total_correlation"}  # one layer of latents with a posterior
LABELS = {"knn_accuracy", "probe_accuracy"}
GENERATED = {f"pca_{name}" for name in ("precision", "recall", "density", "coverage", "frechet")}
COUNTS = {"active_units", "images"}  # every model; numbers without an error


def settings(**changes: Any) -> EvaluateConfig:
    """The section `evaluate` of little work, which measures neither generated images nor annealing."""
    small = {"batch_size": 4, "nll_samples": 3, "generated": {"images": 0}, "grid": {"range": 2.0}}
    return small_section("evaluate", **small | changes)


def some_model(shape: tuple[int, ...] = SHAPE, **changes: Any) -> LatentModel:
    """An untrained model, always with the same weights; of a hierarchy, two layers."""
    small = {"hidden": [5], "latent": 3, "upper": [2], "upper_hidden": [4]}
    torch.manual_seed(0)
    return build_model(small_section("model", **small | changes), shape).eval()


def some_images(count: int, shape: tuple[int, ...] = SHAPE) -> Images:
    """Noise, the same each time."""
    return np.random.default_rng(0).integers(0, 256, (count, *shape), dtype=np.uint8)


def some_split(labels: Sequence[int], shape: tuple[int, ...] = SHAPE) -> Split:
    """An image of noise for each label."""
    return Split(some_images(len(labels), shape), np.array(labels, np.int32))


def some_data(
    scored: Split,
    card: ImageFacts = GREY,
    *,
    is_density: bool = True,
    train: Split | None = None,
    validation: Split | None = None,
) -> Data:
    """The data of a subject, trained on the same images unless others are given; classes are named by their numbers."""
    classes = [str(number) for number in range(scored.labels.max() + 1)]
    none = Split(scored.images[:0], scored.labels[:0])
    splits = (scored, train or scored, validation or none)
    return Data(*splits, classes, Pixels(card), is_density, card.is_black_and_white, batch_size=4)


def some_scores(images: int, latent: int, **changes: Sequence[float] | Tensor) -> Scores:
    """Scores of 1 nat each, of posteriors at 0 with variance 1, but for some that a test writes by hand."""
    ones, dimensions = torch.ones(images), torch.ones(latent)
    values: dict[str, Sequence[float] | Tensor] = {
        "reconstruction": ones,
        "kl": ones,
        "nll": ones,
        "bounds": ones[:, None],
        "effective": ones,
        "latent_kl": dimensions,
        "latent_kl_error": dimensions,
        "layer_kl": ones[:, None],
        "latent_variance": dimensions,
        "means": torch.zeros(images, latent),
        "log_variances": torch.zeros(images, latent),
        **changes,
    }
    tensors = {name: torch.as_tensor(value, dtype=torch.float64) for name, value in values.items()}
    return Scores(**tensors, layer_sizes=(latent,))


def scored(model: LatentModel, data: Data, **changes: Any) -> Subject:
    """A subject with the scores that the model really has."""
    return Subject.scored(model, data, settings(**changes))


def with_errors(names: set[str]) -> set[str]:
    """Names of metrics and of their standard errors."""
    return names | {f"{name}_se" for name in names}
