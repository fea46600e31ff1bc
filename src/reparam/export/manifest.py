"""The facts that an app must know about an exported model."""

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from reparam.cards.data import DataCard
from reparam.cards.export import (
    CodebookFacts,
    CodeFacts,
    ExportedImage,
    ExportedModel,
    ExportLineage,
    GreyPixels,
    ScoreFacts,
)
from reparam.cards.model import ModelCard, TrainedParams
from reparam.export.onnx import CODES
from reparam.export.runtime import Runtime
from reparam.lineage import source_hash
from reparam.models.draw import Prior
from reparam.models.latent import LatentModel

# The oldest release that ran the files of an opset. Tried were 1.15.0 (the first for Python 3.11), 1.17.0, 1.18.0,
# 1.19.0, 1.20.0, 1.22.0, 1.23.0 and what is installed here; onnxruntime-web of the versions below runs them, too.
OLDEST_ONNXRUNTIME: Mapping[int, str] = {
    18: "1.15.0",
    19: "1.17.0",
    20: "1.17.0",
    21: "1.18.0",
    22: "1.22.0",
    23: "1.23.0",
}
# The same for files with a variant `int8_static`: 1.23.0 lacks QuantizeLinear of opset 23.
OLDEST_OF_STATIC = {**OLDEST_ONNXRUNTIME, 23: "1.24.1"}
QUANTILES = (1, 5, 25, 50, 75, 95, 99)  # percent
NUMBERS = 1 << 24  # pixels that are scored at once, at most

Array = npt.NDArray[Any]
Arrays = dict[str, Array]  # by the names of inputs


def describe(model: LatentModel, card: ModelCard, data: DataCard, grey_pixels: GreyPixels) -> ExportedModel:
    """Collect what does not depend on the files, and the way back to the parameters."""
    channels, height, width = card.data.shape
    return ExportedModel(
        format=4,
        image=ExportedImage(shape=(height, width, channels), layout="NHWC", dtype="uint8", range=(0, 255)),
        kind=card.model.kind,
        kind_title=card.kind_title,
        latent_size=card.latent_size,
        latent_shape=card.latent_shape,
        classes=card.classes,
        has_prior=card.has_prior,
        prior=_name(model.prior) if card.has_prior else None,
        codebook=_codebook(model),
        likelihood=card.model.likelihood,
        is_density=card.is_density,
        sigma=model.likelihood.sigma,
        binarization=card.data.binarization,
        scaling=card.data.scaling,
        grey_pixels=grey_pixels,
        source=card.data.source,
        title=data.title,
        licence=data.licence,
        params=TrainedParams.of(card),
        lineage=ExportLineage.of(card, export_code_sha256=source_hash("export")),
    )


def _name(prior: Prior) -> Literal["standard normal", "gaussian mixture"] | None:
    if prior.is_standard:
        return "standard normal"
    return "gaussian mixture" if prior.components() else None


def _codebook(model: LatentModel) -> CodebookFacts | None:
    if model.codebook is None:
        return None
    quantizer, positions = model.codebook.quantizer, model.codebook.positions
    return CodebookFacts(codes=quantizer.size, positions=positions, dimensions=quantizer.dimensions)


def write_codebook(model: LatentModel, path: Path) -> None:
    """Write the vectors of codes, by their numbers. Shapes: vectors (C, d) float32."""
    assert model.codebook is not None
    with path.open("wb") as file:
        np.savez(file, vectors=model.codebook.quantizer.vectors().numpy())


def write_prior(prior: Prior, path: Path) -> None:
    """Write a mixture of C Gaussians in D dimensions, so that apps can draw from it.

    Shapes: means and log_variances (C, D) float32, weights (C,) float64, which sum up to 1.
    """
    found = prior.components()
    assert found is not None
    weights = found.log_weights.double().softmax(0)
    with path.open("wb") as file:
        np.savez(file, means=found.means.numpy(), log_variances=found.log_variances.numpy(), weights=weights.numpy())


def score(runtime: Runtime, path: Path, given: Arrays, epsilon: Array) -> Array:
    """Score images, each at one posterior sample; an epsilon of zeros is the posterior mean.

    Shapes: given images (N, H, W, C), and labels (N,) if there are any; epsilon (N, *latent_shape) -> (N,).
    Units: nats, lower is better.
    """
    scores = []
    for rows in _parts(given["images"]):
        inputs = {name: values[rows] for name, values in (given | {"epsilon": epsilon}).items()}
        scores.append(sum(runtime.run(path, inputs, ("negative_log_likelihood", "kl"))))
    return np.concatenate(scores).astype(np.float64)


def describe_codes(runtime: Runtime, path: Path, outputs: Sequence[str], given: Arrays) -> CodeFacts:
    """Return mean and spread of the codes of images, to show which dimensions vary most.

    `outputs` are those of the encoder: mean and, of a posterior, log variance. Shapes: as in `score`.
    """
    outputs = [name for name in outputs if name != CODES]  # the numbers of codebook entries have no scale
    parts = [
        runtime.run(path, {name: values[rows] for name, values in given.items()}, outputs)
        for rows in _parts(given["images"])
    ]
    codes, *log_variances = (
        np.concatenate(part).reshape(len(given["images"]), -1).astype(np.float64) for part in zip(*parts, strict=True)
    )  # (N, D)
    mean, deviation = (tuple(np.round(values, 4).tolist()) for values in (codes.mean(0), codes.std(0)))
    # Of samples: the variance of their means, and the mean of their variances.
    spread = math.sqrt(codes.var() + sum(np.exp(values).mean() for values in log_variances))
    scale = float(f"{1 / spread:.6g}") if spread > 0 else None
    return CodeFacts(images=len(codes), mean=mean, deviation=deviation, scale_factor=scale)


def _parts(images: Array) -> Iterator[slice]:
    rows = max(1, NUMBERS // images[0].size)
    return (slice(start, start + rows) for start in range(0, len(images), rows))


def summarize(scores: Array) -> ScoreFacts:
    """Summarize scores, so that an app knows what is usual."""
    values = np.percentile(scores, QUANTILES).tolist()
    return ScoreFacts(
        images=len(scores),
        epsilon="zeros",
        mean=round(float(scores.mean()), 4),
        quantiles={str(percent): round(value, 4) for percent, value in zip(QUANTILES, values, strict=True)},
    )
