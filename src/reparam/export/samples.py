"""A picture for the model card: images that a model generates or, of one that no app can draw from, reconstructs."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from reparam.cards.export import ExportedModel
from reparam.export.golden import GOLDEN
from reparam.export.onnx import Graph
from reparam.export.verify import run_torch

SAMPLES = "samples.png"
COLUMNS, ROWS = 8, 4
SIDE = 64  # pixels that an image has at least in the picture
GAP = 2

Array = npt.NDArray[Any]


def write_samples(graphs: Mapping[str, Graph], facts: ExportedModel, directory: Path) -> None:
    """Draw 32 generated images, or those of `golden.npz` above their reconstructions."""
    if facts.prior:
        images = _generated(graphs["decoder"], facts)
    else:
        with np.load(directory / GOLDEN) as golden:
            images = np.concatenate([golden[name][:COLUMNS] for name in ("images", "decoded_images")])
    columns = min(COLUMNS, len(images) // 2)
    tiled = _tiled(images, columns)
    Image.fromarray(tiled.squeeze(-1) if tiled.shape[-1] == 1 else tiled).save(directory / SAMPLES)


def _generated(decoder: Graph, facts: ExportedModel) -> Array:
    """Decode draws from the prior, of a conditional model one class after the other. Shapes: -> (N, H, W, C)."""
    count = ROWS * COLUMNS
    like = torch.empty(count, facts.latent_size)
    if facts.prior == "standard normal":  # also of each layer of a hierarchy
        latents = torch.randn(like.shape, generator=torch.Generator().manual_seed(0))
    else:
        latents = decoder.model.prior.sample(like, torch.Generator().manual_seed(0))
    inputs: dict[str, Array] = {"latents": latents.reshape(count, *facts.latent_shape).numpy()}
    if facts.classes:
        inputs["label"] = np.arange(count) % len(facts.classes)
    return run_torch(decoder, inputs)[0]


def _tiled(images: Array, columns: int) -> Array:
    """Put images in rows on white, small ones enlarged. Shapes: (N, H, W, C) -> (height, width, C)."""
    times = max(1, -(-SIDE // max(images.shape[1:3])))
    large = images.repeat(times, 1).repeat(times, 2)
    framed = np.pad(large, ((0, 0), (GAP, GAP), (GAP, GAP), (0, 0)), constant_values=255)
    rows = framed.reshape(-1, columns, *framed.shape[1:])
    return np.concatenate([np.concatenate(list(row), axis=1) for row in rows])
