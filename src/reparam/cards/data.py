"""The cards of data: as it was delivered, and as it was processed."""

from typing import Annotated, Any, Literal

from pydantic import Field, ValidationInfo, field_validator

from reparam.cards.card import Card, Files, Hash, SealedCard, Shape, UnitFloat
from reparam.config.section import Count, KeyOf, MaybeCount

SplitName = Literal["train", "validation", "test"]
Binarization = Literal["none", "threshold", "static", "dynamic"]
ScalingKind = Literal["unit", "symmetric", "standard"]


class DownloadCard(SealedCard):
    """The files of a data set as they were delivered."""

    source: Annotated[str, KeyOf("SOURCES", "data/sources/registry.py")]
    options: dict[str, str]  # of the source's block in section `download`
    title: str
    licence: str
    files: Files


class Scaling(Card):
    """A model sees (pixel - shift) / scale of each channel, with pixels in [0, 1]."""

    kind: ScalingKind
    shift: tuple[UnitFloat, ...]
    scale: tuple[Annotated[float, Field(gt=0, le=1)], ...]


class ImageFacts(Card):
    """The facts that all images of a store share."""

    source: str
    binarization: Binarization
    scaling: Scaling
    shape: Shape  # (C, H, W)

    @property
    def is_black_and_white(self) -> bool:
        """Whether no grey value is stored."""
        return self.binarization in ("threshold", "static")

    @field_validator("shape")
    @classmethod
    def _has_channels_that_are_scaled(cls, shape: tuple[int, int, int], info: ValidationInfo) -> tuple[int, int, int]:
        if scaling := info.data.get("scaling"):  # missing if it is wrong itself
            shifts, scales = len(scaling.shift), len(scaling.scale)
            if not shifts == scales == shape[0]:
                raise ValueError(f"as many channels as scaling.shift and scaling.scale have ({shifts} and {scales})")
        return shape


class FactorFacts(Card):
    """A factor that varies from image to image: a number from 0 to size - 1."""

    name: str
    size: Count
    is_ordered: bool  # whether neighbouring numbers are alike


class SplitFacts(Card):
    """The images of a split by class, and the facts that identify its files."""

    count: MaybeCount
    classes: dict[str, MaybeCount]
    images_sha256: Hash
    labels_sha256: Hash
    factors_sha256: Hash | None = None  # where the data set has factors


class DataCard(ImageFacts, SealedCard):
    """The processed images, uint8 arrays (N, C, H, W); a fact that is None is not in the file."""

    options: dict[str, str]
    title: str
    licence: str
    classes: tuple[str, ...]
    skipped: dict[str, str]  # unreadable files, and why
    factors: tuple[FactorFacts, ...] | None = None
    train_mean: tuple[UnitFloat, ...]  # by channel, with pixels in [0, 1]
    train_standard_deviation: tuple[UnitFloat, ...]
    splits: Annotated[dict[SplitName, SplitFacts], Field(min_length=3)]

    def _content(self) -> dict[str, Any]:
        return self.model_dump(mode="json", exclude={"checksum"}, exclude_none=True)

    @property
    def counts(self) -> dict[str, int]:
        """Images of each split."""
        return {name: split.count for name, split in self.splits.items()}

    @property
    def images(self) -> ImageFacts:
        """The part that a model's card keeps."""
        return ImageFacts(**{name: getattr(self, name) for name in ImageFacts.model_fields})


class DataMetrics(Card):
    """The card as numbers that DVC and MLflow compare."""

    train_images: MaybeCount
    validation_images: MaybeCount
    test_images: MaybeCount
    skipped_images: MaybeCount
    train_mean: UnitFloat
    train_standard_deviation: UnitFloat
