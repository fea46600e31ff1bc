"""A small model, and the stage `export` run on it."""

import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import small_section
from some_cards import model_card, trained_params
from torch import Tensor, nn
from torch.onnx._internal.exporter._registration import ONNXRegistry

from reparam.config import Config
from reparam.data import store
from reparam.data.pixels import Pixels
from reparam.data.store import SPLITS
from reparam.export import stage as export
from reparam.export.onnx import Graph, graphs_of
from reparam.models.build import build_model
from reparam.models.latent import LatentModel
from reparam.models.likelihoods import is_density
from reparam.models.storage import save_weights
from reparam.objectives import has_prior
from reparam.paths import Paths

SHAPE = (3, 4, 6)  # (C, H, W), all different, so that no two can be mixed up
LATENT = 2
CLASSES = ("cat", "dog", "owl")  # of a conditional model
MIXED = 3  # components of a learned prior
OPSET = 20

# The table of operators, which is the same for all models, takes a third of the time of an export.
ONNXRegistry.from_torchlib = staticmethod(cache(ONNXRegistry.from_torchlib))  # type: ignore[method-assign]


@dataclass(frozen=True)
class Exported:
    """What went into the stage `export`; what came out is in `paths`."""

    paths: Paths
    model: LatentModel
    pixels: Pixels
    images: store.Images  # the test split, (N, H, W, C)

    @property
    def directory(self) -> Path:
        return self.paths.onnx

    has_elbo: bool

    def readme(self) -> str:
        return (self.directory / "README.md").read_text(encoding="utf-8")

    def snippet(self, language: str) -> str:
        [found] = re.findall(rf"^```{language}\n(.*?)^```$", self.readme(), re.S | re.M)
        return str(found)

    def graphs(self, grey_pixels: str = "keep") -> dict[str, Graph]:
        """What each file should compute."""
        return graphs_of(self.model, self.pixels, grey_pixels, has_elbo=self.has_elbo)


def torch_images(images: store.Images) -> Tensor:
    """Shapes: (N, H, W, C) uint8 -> (N, C, H, W) in [0, 1]."""
    return torch.from_numpy(images.astype(np.float32) / 255).permute(0, 3, 1, 2)


def prepare(root: Path, binarization: str = "dynamic", scaling: str = "unit", **changes: Any) -> Exported:
    """Write what the stage `export` reads: images of noise, and a model that is not trained; `changes` are of it."""
    classes = CLASSES if changes.get("condition") == "label" else ("noise",)
    paths = Paths(root, root)
    grey = np.random.default_rng(0).integers(0, 256, (40, *SHAPE), dtype=np.uint8)
    paths.processed.mkdir(parents=True)
    for name in SPLITS:
        np.save(paths.processed / f"{name}-images.npy", grey)
        np.save(paths.processed / f"{name}-labels.npy", np.arange(len(grey), dtype=np.int32) % len(classes))
    data = store.write_card(
        paths.processed, store.Origin("noise", {}, binarization, classes, {}, "Noise", "CC0"), scaling
    )

    torch.manual_seed(0)
    small = {"hidden": [16], "channels": [4], "latent": LATENT, "groups": 2, "upper": [3], "upper_hidden": [5]}
    config = small_section("model", **small | changes)
    known = classes if config.condition == "label" else ()
    model = build_model(config, SHAPE, len(known)).eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)  # so that images reach from dark to bright
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d):  # as if it had been trained
            nn.init.normal_(layer.running_mean, std=0.3)  # type: ignore[arg-type]
            nn.init.uniform_(layer.running_var, 0.5, 2.0)  # type: ignore[arg-type]
    paths.model.mkdir(parents=True)
    has_elbo = model.has_elbo(is_density=is_density(model.likelihood, binarization))
    model_card(
        trained_params(model=config),
        save_weights(paths.model, model.state_dict()),
        data=data,
        classes=known,
        latent_size=model.latent_size,
        latent_shape=model.latent_shape,
        has_prior=has_prior(model, "elbo"),
        is_density=is_density(model.likelihood, binarization),
        has_elbo=has_elbo,
    ).write(paths.model / "card.json")
    return Exported(paths, model, Pixels(data), np.ascontiguousarray(grey.transpose(0, 2, 3, 1)), has_elbo)


def run_stage(paths: Paths, **changes: Any) -> None:
    """Run the stage `export` without tracking, and leave torch's global settings as they were."""
    # The stage reads its own section only.
    config = Config.model_construct(export=small_section("export", **changes))
    before = torch.are_deterministic_algorithms_enabled()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", "off")
        try:
            export.run(config, paths)
        finally:
            torch.use_deterministic_algorithms(before)
