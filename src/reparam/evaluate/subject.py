"""A trained model on one split of images: what evaluation measures, and what its figures show."""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from reparam.cards.data import FactorFacts
from reparam.config import EvaluateConfig
from reparam.data.batches import Batches, View
from reparam.data.pixels import Pixels
from reparam.data.store import Labels, Split
from reparam.distributed import ALONE, World
from reparam.evaluate import walks
from reparam.evaluate.disentanglement import Coded
from reparam.evaluate.samplers import SAMPLERS, Sampler, draw_codes
from reparam.evaluate.scoring import Scores, score
from reparam.figures.style import indexed, literal
from reparam.models.latent import LatentModel
from reparam.models.model import Model
from reparam.runtime import random_stream

Names = npt.NDArray[Any]  # (N,) names of classes
Rows = npt.NDArray[np.integer]
Pictures = npt.NDArray[np.float32]  # (n, C, H, W), in [0, 1]
AT_ONCE = 256  # images that are decoded together


@dataclass(frozen=True)
class Data:
    """The images that a model is measured on, and how it sees them."""

    scored: Split
    train: Split
    validation: Split  # perhaps of no images
    classes: Sequence[str]  # the name of each label
    pixels: Pixels  # on the model's device
    is_density: bool  # whether the model's likelihood is a density of these pixels
    is_black_and_white: bool  # whether no grey value is stored
    batch_size: int
    factors: Sequence[FactorFacts] | None = None  # the factors of variation, if they are known
    is_conditional: bool = False  # whether the model receives labels

    @cached_property
    def images(self) -> View:
        """The scored images."""
        return self.view(self.scored)

    def view(self, split: Split) -> View:
        """Show images as the model sees them, with their labels if the model is conditional."""
        labels = split.labels if self.is_conditional else None
        return View(Batches(split.images, self.batch_size, self.pixels.shift.device, labels), self.pixels)


@dataclass(frozen=True)
class Subject:
    """A model, the images that it was scored on, and its scores: every measure and figure is a function of it."""

    model: LatentModel
    data: Data
    settings: EvaluateConfig
    scores: Scores

    @classmethod
    def scored(cls, model: LatentModel, data: Data, settings: EvaluateConfig, world: World = ALONE) -> Self:
        """Score a model on the images of a split, which several processes share; the first has all scores."""
        with_nll = model.has_elbo(is_density=data.is_density)
        return cls(model, data, settings, score(model, data.images, settings, world=world, with_nll=with_nll))

    def on_validation(self) -> Self:
        """Score the model on the validation split in the same way, without the NLL."""
        if self.settings.split == "validation":
            return self
        data = replace(self.data, scored=self.data.validation)
        scores = score(self.model, data.images, self.settings, "validation", with_nll=False)
        return replace(self, data=data, scores=scores)

    @property
    def is_code(self) -> bool:
        """Whether images have codes without a distribution, as an autoencoder's."""
        return not self.model.stochastic_layers

    @property
    def has_elbo(self) -> bool:
        """Whether there is a bound on log p(x), and so an NLL."""
        return self.model.has_elbo(is_density=self.data.is_density)

    @property
    def images(self) -> View:
        return self.data.images

    @cached_property
    def class_names(self) -> Names:
        return np.asarray(self.data.classes)[self.data.scored.labels]

    @cached_property
    def is_labelled(self) -> bool:
        return len(np.unique(self.class_names)) > 1

    @cached_property
    def means(self) -> Tensor:
        """Return posterior means. Shapes: (N, D) float64."""
        return self.scores.means.double()

    @cached_property
    def coded(self) -> Coded | None:
        """Return codes and varying factors of random images, if these are asked for and the factors are known."""
        settings, factors = self.settings.disentanglement, self.data.scored.factors
        if not settings.images or factors is None or self.data.factors is None:
            return None
        with random_stream(self.settings.seed, "disentanglement"):
            # Not evenly spaced: images may be stored in the order of their factors.
            rows = torch.randperm(len(factors))[: settings.images]
            codes = self.means[rows]
            if settings.codes == "sample":
                codes = codes + (0.5 * self.scores.log_variances[rows].double()).exp() * torch.randn_like(codes)
        return Coded(codes.numpy(), factors[rows.numpy()], self.data.factors).varying()

    @property
    def has_latent_kl(self) -> bool:
        """Whether each latent dimension has a KL of its own."""
        return not self.is_code and self.model.prior.is_independent

    @property
    def use(self) -> Tensor:
        """Return the use of each latent dimension: its KL, or the variance of its mean over images. Shapes: (D,)."""
        return self.scores.latent_kl if self.has_latent_kl else self.scores.latent_variance

    @property
    def active(self) -> Tensor:
        """Return which latent dimensions are in use. Shapes: (D,) bool."""
        return self.scores.latent_variance > self.settings.active_variance

    @cached_property
    def frame(self) -> walks.Frame:
        """The middle and the width of the latents: those of the prior, or of the codes if they have no posterior."""
        if self.is_code:
            middle, scale = self.means.mean(0), self.means.std(0, correction=0)
            return walks.Frame(middle, scale, "standard deviations of the code", "at their mean")
        middle, scale = self.model.prior.moments()
        where = "0" if self.model.prior.is_standard else "at their mean"
        return walks.Frame(middle, scale, "prior standard deviations", where)

    @cached_property
    def plane(self) -> walks.Plane:
        """The plane through latent space that figures show."""
        is_principal = self.settings.grid.plane == "principal"
        return self.components.plane if is_principal else walks.plane_of_dimensions(self.use, self.frame)

    @cached_property
    def on_plane(self) -> Pictures:
        """Decoder means at the points of the latent grid, row by row. Shapes: (steps * steps, C, H, W)."""
        return self.decode_usual(self.plane.latents(self.settings.grid.steps, self.settings.grid.range))

    @cached_property
    def components(self) -> walks.Components:
        """The principal components of posterior means."""
        return walks.principal_components(self.means)

    @torch.no_grad()
    def encode(self, split: Split) -> Tensor:
        """Return posterior means of the images of a split. Shapes: -> (N, D)."""
        seen = self.data.view(split).seen(self.settings.seed)
        return torch.cat([self.model.posterior(*batch)[0].cpu() for batch in seen])

    @property
    def sampler(self) -> Sampler:
        """What generated images start from."""
        return SAMPLERS[self.settings.sampler]

    def codes(self, count: int) -> Tensor:
        """Draw latents to generate images from. Shapes: -> (count, D)."""
        block = self.settings.arguments(self.settings.sampler)
        codebook = self.model.codebook if self.sampler.needs_entries else None

        def codes() -> Tensor:
            # A view copies the images to the device, so it is made only if the sampler asks for codes.
            found = draw_codes(self.model, self.data.view(self.data.train))
            return codebook.split(found) if codebook else found

        drawn = self.sampler.draw(count, self.model.prior, codes, *block)
        return codebook.joined(drawn) if codebook else drawn

    def generate(self, count: int) -> Tensor:
        """Make images like those that are stored: decoder means, or black and white drawn from them.

        Shapes: -> (count, C, H, W), in [0, 1].
        """
        means = torch.from_numpy(self.decode(self.codes(count), self.proportional(count)))
        return torch.bernoulli(means) if self.data.is_black_and_white else means

    def decode_usual(self, z: Tensor) -> Pictures:
        """Decode latents that belong to no image, all with the usual label. Shapes: (n, D) -> (n, C, H, W)."""
        return self.decode(z, np.full(len(z), self.usual))

    def decode(self, z: Tensor, labels: Labels) -> Pictures:
        """Decode latents, or the nearest that a codebook has, each with its label.

        A model that is not conditional ignores the labels. Shapes: (n, D), (n,) -> (n, C, H, W).
        """
        rows = [slice(start, start + AT_ONCE) for start in range(0, max(1, len(z)), AT_ONCE)]
        latents = z.float().to(self.images.device)
        latents = self.model.codebook.nearest(latents) if self.model.codebook else latents
        return np.concatenate([self.shown(self.given(labels[some]).decode(latents[some])) for some in rows])

    def given(self, labels: Labels) -> Model:
        """Return the model of images with these labels. Shapes: (n,)."""
        return Model(self.model, self.as_labels(labels))

    def as_labels(self, labels: Labels) -> Tensor | None:
        """Return labels as a conditional model takes them; None for any other model. Shapes: (n,)."""
        if not self.data.is_conditional:
            return None
        return torch.from_numpy(labels.astype(np.int64)).to(self.images.device)

    def of(self, rows: Rows) -> Model:
        """Return the model of images of the split. Shapes: (n,)."""
        return self.given(self.data.scored.labels[rows])

    @cached_property
    def usual(self) -> int:
        """Return the most frequent label, with which figures of a single label are drawn."""
        return int(np.bincount(self.data.scored.labels).argmax())

    @property
    def with_usual(self) -> str:
        """Name this label for a title, if the model is conditional."""
        return f", with label {literal(self.data.classes[self.usual])}" if self.data.is_conditional else ""

    def proportional(self, count: int) -> Labels:
        """Return labels with the frequencies of the split, in order. Shapes: -> (count,)."""
        labels = np.sort(self.data.scored.labels)
        return labels[np.arange(count) * len(labels) // max(1, count)]

    def shown(self, pixels: Tensor) -> Pictures:
        """Undo the scaling that the model sees. Shapes: (n, C, H, W), unchanged."""
        return as_array(self.data.pixels.unscaled(pixels))

    def stored(self, rows: Rows) -> Pictures:
        """Return images as they are stored. Shapes: (n,) -> (n, C, H, W)."""
        return as_array(self._taken(rows).float() / 255)

    def drawn(self, rows: Rows) -> Tensor:
        """Return pixels as the model sees them, drawn for the figure under `dynamic`. Shapes: (n,) -> (n, C, H, W)."""
        with self.draws():
            pixels: Tensor = self.data.pixels(self._taken(rows))
            return pixels

    def seen(self, rows: Rows) -> Tensor:
        """Return pixels as the model saw them when it was scored. Shapes: (n,) -> (n, C, H, W)."""
        if not self.data.pixels.is_drawn:
            return self.drawn(rows)
        found, position = dict[int, Tensor](), 0
        for x, _ in self.images.seen(self.settings.seed):
            found |= {row: x[row - position] for row in rows.tolist() if position <= row < position + len(x)}
            position += len(x)
        return torch.stack([found[row] for row in rows.tolist()])

    def reconstruct(self, rows: Rows, pixels: Tensor) -> dict[str, Pictures]:
        """Return images by name: as they are stored, as the model sees them if that differs, and reconstructed."""
        reconstructed = self.decode(self.of(rows).posterior(pixels)[0], self.data.scored.labels[rows])
        seen = {"as seen": self.shown(pixels)} if self.data.pixels.is_drawn else {}
        return {"original": self.stored(rows), **seen, "reconstruction": reconstructed}

    def some_of_each_class(self, count: int) -> Rows:
        """Pick rows to show, the first of each class, as many of each as there are. Shapes: -> (<= count,)."""
        order = np.argsort(self.class_names, kind="stable")
        _, starts, sizes = np.unique(self.class_names[order], return_index=True, return_counts=True)
        turns = np.empty_like(order)
        turns[order] = np.arange(len(order)) - np.repeat(starts, sizes)
        chosen = np.lexsort((self.class_names, turns))[:count]
        return chosen[np.argsort(self.class_names[chosen], kind="stable")]

    def pairs(self, count: int) -> tuple[Rows, Rows]:
        """Draw pairs of images, of different classes if possible; no image twice. Shapes: (<= count,) twice.

        For a conditional model, both are of the same class, if possible. There must be at least two images.
        """
        with self.draws():
            rest = torch.randperm(len(self.class_names)).tolist()
        found = list[tuple[int, int]]()
        while len(rest) > 1 and len(found) < count:
            first = rest.pop(0)
            others = (row for row in rest if self._is_pair(self.class_names[row] == self.class_names[first]))
            if (second := next(others, rest[0] if self.data.is_conditional else None)) is None:
                break  # all that is left is of one class
            rest.remove(second)
            found.append((first, second))
        firsts, seconds = np.array(found).T
        return firsts, seconds

    def _is_pair(self, are_alike: bool) -> bool:
        return not self.is_labelled or are_alike == self.data.is_conditional

    def names(self, rows: Rows) -> list[str]:
        """Name the classes of images, if there are several, as matplotlib takes them literally."""
        return [literal(str(label)) if self.is_labelled else "" for label in self.class_names[rows].tolist()]

    def name_and_use(self, dimension: int) -> str:
        """Name a latent dimension, and its use."""
        unit = "nats" if self.has_latent_kl else "variance"
        return f"{indexed(f'z{dimension}')}: {float(self.use[dimension]):.2f} {unit}"

    def draws(self) -> AbstractContextManager[None]:
        """Start the random stream of figures, from its beginning for each figure, so that no figure changes another."""
        return random_stream(self.settings.seed, "figures")

    def _taken(self, rows: Rows) -> Tensor:
        return self.images.batches.take(torch.from_numpy(rows.copy()))


def as_array(images: Tensor) -> Pictures:
    """Take images off the device."""
    array: Pictures = images.cpu().numpy()
    return array
