"""The card of an evaluation."""

from typing import Annotated, Any, Literal

from pydantic import Field, NonNegativeFloat, PositiveFloat

from reparam.cards.card import Card, Files, Hash, Number, SealedCard, Side, UnitFloat, check_file, facts_of
from reparam.cards.data import ImageFacts, SplitName
from reparam.cards.model import CardOfResult, Metrics, ModelCard, ModelLineage
from reparam.config import EvaluateConfig, flatten
from reparam.config.section import Count, MaybeCount


class EvaluationLineage(ModelLineage):
    """The origin of an evaluation."""

    evaluate_code_sha256: Hash


class Bound(Card):
    """The mean bound on log p(x) with this number of samples per image, and its standard error. Units: nats."""

    samples: Count
    bound: float
    bound_se: NonNegativeFloat


class MutualInformationFacts(Card):
    bound: NonNegativeFloat  # log N
    images: Count


class GeneratedFacts(Card):
    images: Count
    components: Count
    training_images: dict[str, float]  # the same metrics of as many training images: no model need be better


class AnnealingFacts(Card):
    images: Count
    chains: Count
    steps: Count
    leapfrog: Count
    acceptance: UnitFloat | None
    effective_chains: PositiveFloat


class DisentanglementFacts(Card):
    """The data and settings of the disentanglement scores."""

    images: Count
    codes: Literal["mean", "sample"]
    bins: Count


class OutlierFacts(Card):
    images: Count
    nll: float


class Details(Card):
    """Facts that a reader needs with some numbers, and the reasons why others are missing."""

    mutual_information: MutualInformationFacts | None = None
    generated: GeneratedFacts | None = None
    outliers: OutlierFacts | None = None
    annealed: AnnealingFacts | None = None
    disentanglement: DisentanglementFacts | None = None
    bounds: tuple[Bound, ...] = ()
    not_measured: dict[str, str] = Field(default_factory=dict)


class GridTiles(Card):
    steps: Count
    names: tuple[str, str]
    unit: str


class TileDimension(Card):
    number: MaybeCount
    use: float


class TraversalTiles(Card):
    steps: Count
    unit: str
    use: str
    dimensions: tuple[TileDimension, ...]


class Tiles(Card):
    """The layout of the tiles of latent grid and traversals: a page cuts up the two figures by it."""

    image: tuple[Side, Side]  # (H, W)
    range: PositiveFloat
    grid: GridTiles
    traversals: TraversalTiles


class EvaluationCard(CardOfResult, SealedCard):
    """The data and settings that the metrics of a model were measured with."""

    data: ImageFacts
    is_discrete: bool  # whether the likelihood is a probability of the 256 grey values
    images: Count
    images_sha256: Annotated[dict[SplitName, Hash], Field(min_length=3)]  # of the files of all splits
    settings: EvaluateConfig
    sampled_from: str  # what generated images start from: `settings.sampler` in words
    details: Details
    warnings: tuple[str, ...]
    tiles: Tiles
    files: Files  # by name: metrics, scores of images, figures
    lineage: EvaluationLineage

    def check(self, name: str, content: bytes) -> bytes:
        """Return the content of a file of this evaluation.

        Raises: ValueError if it is not that of the evaluation.
        """
        check_file(name, self.files, facts_of(content), "evaluate")
        return content

    def is_of(self, model: ModelCard) -> bool:
        """Whether it was made of this model, on images of the same kind."""
        is_alike = (self.data, self.is_discrete) == (model.data, model.is_discrete)
        return super().is_of(model) and is_alike

    @property
    def conditions(self) -> dict[str, Any]:
        """Return the conditions of metrics by the names in `Metric.depends`: images, and parameters of `evaluate`.

        The images of a split have the name `<split>_sha256`, those that were scored `images_sha256`.
        """
        scaling = tuple(zip(self.data.scaling.shift, self.data.scaling.scale, strict=True))
        images = {f"{split}_sha256": digest for split, digest in self.images_sha256.items()}
        images["images_sha256"] = images[f"{self.settings.split}_sha256"]
        pixels = {"binarization": self.data.binarization, "scaling": scaling, "is_discrete": self.is_discrete}
        return {"data": self.lineage.data, **images, **pixels, **flatten(self.settings)}


class EvaluationMetrics(Metrics):
    active_units: Number
    images: Number
