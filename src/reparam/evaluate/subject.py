"""A model before one split of images: what both look like, for the figures to show."""

from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from reparam.config import EvaluateConfig
from reparam.evaluate import latent_walks
from reparam.evaluate.metrics import Scores
from reparam.evaluate.view import View
from reparam.figures.style import indexed, literal
from reparam.models.draw import Model
from reparam.runtime import random_stream

Labels = npt.NDArray[Any]  # (N,), numbers or names of classes
Rows = npt.NDArray[np.integer]
Pictures = npt.NDArray[np.float32]  # (n, C, H, W), in [0, 1]
AT_ONCE = 256  # images that are decoded together


class Subject:
    """A model, the split that it was scored on, and the latents that are worth a look."""

    def __init__(self, model: Model, data: tuple[View, Labels], scores: Scores, settings: EvaluateConfig) -> None:
        self.model, self.scores, self.settings = model, scores, settings
        self.images, labels = data
        self.labels = np.asarray(labels)
        self.is_labelled = len(np.unique(self.labels)) > 1
        self.is_code = not model.stochastic_layers
        self.means = scores.means.double()
        self.use = scores.latent_variance if self.is_code else scores.latent_kl
        self.active = scores.latent_variance > settings.active_variance
        self.plane = latent_walks.plane(settings.grid.plane, self.means, self.use, self.is_code)

    def decode(self, z: Tensor) -> Pictures:
        """Decode latents. Shapes: (n, D) -> (n, C, H, W)."""
        parts = torch.split(z.float().to(self.images.device), AT_ONCE)
        return np.concatenate([self.shown(self.model.decode(part)) for part in parts])

    def shown(self, pixels: Tensor) -> Pictures:
        """Undo the scaling that the model sees. Shapes: (n, C, H, W), unchanged."""
        return as_array(self.images.pixels.unscaled(pixels))

    def stored(self, rows: Rows) -> Pictures:
        """Return images as they are stored. Shapes: (n,) -> (n, C, H, W)."""
        return as_array(self.images.batches.take(torch.from_numpy(rows.copy())).float() / 255)

    def drawn(self, rows: Rows) -> Tensor:
        """Return pixels as the model sees them, drawn for the figure under `dynamic`. Shapes: (n,) -> (n, C, H, W)."""
        with self.draws():
            pixels: Tensor = self.images.pixels(self.images.batches.take(torch.from_numpy(rows.copy())))
            return pixels

    def scored(self, rows: Rows) -> Tensor:
        """Return pixels as the model saw them when it was scored. Shapes: (n,) -> (n, C, H, W)."""
        if not self.images.pixels.is_drawn:
            return self.drawn(rows)
        found, position = dict[int, Tensor](), 0
        for x in self.images.seen(self.settings.seed):
            found |= {row: x[row - position] for row in rows.tolist() if position <= row < position + len(x)}
            position += len(x)
        return torch.stack([found[row] for row in rows.tolist()])

    def reconstruct(self, rows: Rows, pixels: Tensor) -> dict[str, Pictures]:
        """Name images as they are stored, as the model sees them where that differs, and reconstructed."""
        reconstructed = self.decode(self.model.posterior(pixels)[0])
        pictures = {"original": self.stored(rows), "as seen": self.shown(pixels), "reconstruction": reconstructed}
        if not self.images.pixels.is_drawn:
            del pictures["as seen"]
        return pictures

    def one_of_each_class(self, count: int) -> Rows:
        """Pick rows to show: the first of each class, then the first of the rest. Shapes: -> (<= count,)."""
        first = np.unique(self.labels, return_index=True)[1]
        rest = np.setdiff1d(np.arange(len(self.labels)), first)
        chosen = np.concatenate([first, rest])[:count]
        return chosen[np.argsort(self.labels[chosen], kind="stable")]

    def pairs(self, count: int) -> tuple[Rows, Rows]:
        """Draw pairs of images, of different classes where there are some; no image twice. Shapes: (<= count,) twice.

        There must be two images at least.
        """
        with self.draws():
            rest = torch.randperm(len(self.labels)).tolist()
        found = list[tuple[int, int]]()
        while len(rest) > 1 and len(found) < count:
            first = rest.pop(0)
            others = (row for row in rest if not self.is_labelled or self.labels[row] != self.labels[first])
            if (second := next(others, None)) is None:
                break  # all that is left is of one class
            rest.remove(second)
            found.append((first, second))
        firsts, seconds = np.array(found).T
        return firsts, seconds

    def names(self, rows: Rows) -> list[str]:
        """Name the classes of images, where there are several, as matplotlib takes them literally."""
        return [literal(str(label)) if self.is_labelled else "" for label in self.labels[rows].tolist()]

    def name_and_use(self, dimension: int) -> str:
        """Name a latent dimension, and say how much it tells."""
        unit = "variance" if self.is_code else "nats"
        return f"{indexed(f'z{dimension}')}: {float(self.use[dimension]):.2f} {unit}"

    def draws(self) -> AbstractContextManager[None]:
        """Start a stream of random numbers: each figure has it from its beginning, whatever else is drawn."""
        return random_stream(self.settings.seed, "figures")


def as_array(images: Tensor) -> Pictures:
    """Take images off the device."""
    array: Pictures = images.cpu().numpy()
    return array
