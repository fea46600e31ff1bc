"""The card of an exported model."""

from typing import Annotated, Literal

from reparam.cards.card import Card, Files, Hash, Number, Shape
from reparam.cards.model import CardOfResult, Metrics, ModelCard, ModelLineage, TrainedParams
from reparam.config.export import ExportConfig
from reparam.config.section import Count, KeyOf

GreyPixels = Literal["keep", "threshold"]


class ExportLineage(ModelLineage):
    """Where an exported model comes from."""

    export_code_sha256: Hash


class ExportedImage(Card):
    """Images as the graphs take and give them: (batch, H, W, C)."""

    shape: Shape  # (H, W, C)
    layout: Literal["NHWC"]
    dtype: Literal["uint8"]
    range: tuple[Literal[0], Literal[255]]


class ExportedModel(CardOfResult):
    """What an app must know of a model, and the way back to its parameters: the metadata of both graphs."""

    format: Literal[2]
    image: ExportedImage
    kind: Annotated[str, KeyOf("KINDS", "models/build.py")]
    latent_size: Count
    has_prior: bool
    likelihood: Annotated[str, KeyOf("LIKELIHOODS", "models/likelihoods.py")]
    grey_pixels: GreyPixels
    source: str
    params: TrainedParams
    lineage: ExportLineage


class ExportCard(ExportedModel):
    """An exported model and its files."""

    opset: Count
    files: Files

    def is_of(self, model: ModelCard) -> bool:
        channels, height, width = model.data.shape
        wanted = {
            "kind": model.model.kind,
            "latent_size": model.latent_size,
            "has_prior": model.has_prior,
            "likelihood": model.model.likelihood,
            "source": model.data.source,
            "params": TrainedParams.of(model),
        }
        is_as_modelled = wanted.items() <= dict(self).items() and self.image.shape == (height, width, channels)
        return is_as_modelled and super().is_of(model)

    def is_with(self, config: ExportConfig) -> bool:
        """Whether it was made with these parameters."""
        return (config.opset, config.grey_pixels) == (self.opset, self.grey_pixels)


class ExportMetrics(Metrics):
    encoder_max_error: Number
    decoder_max_error: Number
    decoder_max_grey_levels: Number
