"""The card of an evaluation."""

import hashlib
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from reparam.cards.card import CARD, Card, Files, Hash, Number, Side, UnitFloat
from reparam.cards.data import ImageFacts, SplitName
from reparam.cards.model import CardOfResult, Metrics, ModelLineage
from reparam.config import EvaluateConfig, flatten
from reparam.errors import DamagedInputError
from reparam.files import require, rerun


class EvaluationLineage(ModelLineage):
    """Where an evaluation comes from."""

    evaluate_code_sha256: Hash


class Bound(Card):
    """The mean bound on log p(x) of so many importance samples per image, and its standard error. Units: nats."""

    samples: PositiveInt
    bound: float
    bound_se: NonNegativeFloat


class MutualInformationFacts(Card):
    bound: NonNegativeFloat  # log N
    images: PositiveInt


class GeneratedFacts(Card):
    images: PositiveInt
    components: PositiveInt
    training_images: dict[str, float]  # the same metrics of as many training images: what no model need surpass


class AnnealingFacts(Card):
    images: PositiveInt
    chains: PositiveInt
    steps: PositiveInt
    leapfrog: PositiveInt
    acceptance: UnitFloat | None
    effective_chains: PositiveFloat


class OutlierFacts(Card):
    images: PositiveInt
    nll: float


class Details(Card):
    """What a reader must know of some numbers, and why others are not there."""

    mutual_information: MutualInformationFacts | None = None
    generated: GeneratedFacts | None = None
    outliers: OutlierFacts | None = None
    annealed: AnnealingFacts | None = None
    bounds: tuple[Bound, ...] = ()
    not_measured: dict[str, str] = Field(default_factory=dict)


class GridTiles(Card):
    steps: PositiveInt
    names: tuple[str, str]
    unit: str


class TileDimension(Card):
    number: NonNegativeInt
    use: float


class TraversalTiles(Card):
    steps: PositiveInt
    unit: str
    use: str
    dimensions: tuple[TileDimension, ...]


class Tiles(Card):
    """What the tiles of latent grid and traversals show, so that a page can cut them up."""

    image: tuple[Side, Side]  # (H, W)
    range: PositiveFloat
    grid: GridTiles
    traversals: TraversalTiles


class EvaluationCard(CardOfResult):
    """What the metrics of a model were measured on, and how."""

    data: ImageFacts
    images: PositiveInt
    images_sha256: Annotated[dict[SplitName, Hash], Field(min_length=3)]  # of the files of all splits
    settings: EvaluateConfig
    details: Details
    warnings: tuple[str, ...]
    tiles: Tiles
    files: Files  # by name: metrics, scores of images, figures
    lineage: EvaluationLineage

    def check(self, name: str, content: bytes) -> bytes:
        """Return the content of a file of this evaluation.

        Raises: ValueError where it is not that of the evaluation.
        """
        wanted = self.files[name].sha256 if name in self.files else "none"
        found = hashlib.sha256(content).hexdigest()
        if found != wanted:
            raise ValueError(f"wanted SHA-256 {wanted} (as in {CARD}), found {found}")
        return content

    def read_file(self, path: Path) -> bytes:
        """Read a file of this evaluation.

        Raises: MissingInputError, DamagedInputError where it is not that of the evaluation.
        """
        require(path, "evaluate")
        try:
            return self.check(path.name, path.read_bytes())
        except ValueError as error:
            raise DamagedInputError(f"{path}: {error}; {rerun('evaluate')}") from None

    @property
    def conditions(self) -> dict[str, Any]:
        """What metrics depend on, by the names in `Metric.depends`: the images, and the parameters of `evaluate`.

        The images of a split are known by `<split>_sha256`, those that were scored by `images_sha256`.
        """
        scaling = tuple(zip(self.data.scaling.shift, self.data.scaling.scale, strict=True))
        images = {f"{split}_sha256": digest for split, digest in self.images_sha256.items()}
        images["images_sha256"] = images[f"{self.settings.split}_sha256"]
        pixels = {"binarization": self.data.binarization, "scaling": scaling}
        return {"data": self.lineage.data, **images, **pixels, **flatten(self.settings)}


class EvaluationMetrics(Metrics):
    active_units: Number
    images: Number
