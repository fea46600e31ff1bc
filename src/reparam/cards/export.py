"""The card of an exported model."""

from typing import Annotated, Literal

from pydantic import PlainValidator, PositiveFloat, PositiveInt

from reparam.cards.card import Card, Files, Hash, Number, Shape
from reparam.cards.data import Binarization, Scaling
from reparam.cards.model import CardOfResult, Metrics, ModelCard, ModelLineage, TrainedParams
from reparam.config.export import ExportConfig
from reparam.config.section import Count, KeyOf

GreyPixels = Literal["keep", "threshold"]


def _check_size(size: object) -> Literal["batch"] | int:
    if size == "batch":
        return "batch"
    if type(size) is not int or size < 1:
        raise ValueError("'batch' or a whole number above 0")
    return size


Size = Annotated[Literal["batch"] | int, PlainValidator(_check_size)]  # a union would put its types into messages


class ExportLineage(ModelLineage):
    """The origin of an exported model."""

    export_code_sha256: Hash


class ExportedImage(Card):
    """Images as the graphs take and give them: (batch, H, W, C)."""

    shape: Shape  # (H, W, C)
    layout: Literal["NHWC"]
    dtype: Literal["uint8"]
    range: tuple[Literal[0], Literal[255]]


class TensorFacts(Card):
    """An input or output of a graph."""

    name: str
    dtype: Literal["uint8", "int64", "float32"]
    shape: tuple[Size, ...]
    range: tuple[float | None, float | None]  # the lowest and highest value; null: no bound
    unit: str
    meaning: str

    @property
    def row(self) -> tuple[int, ...]:
        """The shape without the batch."""
        return tuple(size for size in self.shape if size != "batch")


class GraphFacts(Card):
    """The inputs and outputs of a graph, in order."""

    inputs: tuple[TensorFacts, ...]
    outputs: tuple[TensorFacts, ...]


class CodebookFacts(Card):
    """A codebook, whose entries are codes of an image."""

    codes: Count  # C entries
    positions: Count  # P codes of an image
    dimensions: Count  # d numbers of an entry: latents are P d numbers, position by position, or an image (d, h, w)


class ExportedModel(CardOfResult):
    """The facts that an app needs, and the way back to the parameters: the metadata of all graphs."""

    format: Literal[4]
    image: ExportedImage
    kind: Annotated[str, KeyOf("KINDS", "models/build.py")]
    kind_title: str  # what pages call it
    latent_size: Count
    latent_shape: tuple[Count, ...]  # of `latents` in the graphs: (latent_size,), or (C, H, W)
    classes: tuple[str, ...]  # those that `label` numbers from 0; none: no graph has such an input
    has_prior: bool
    # Of `latents`: N(0, 1) in each dimension, or what `prior.npz` says. Null: nothing that an app could draw from.
    prior: Literal["standard normal", "gaussian mixture"] | None
    codebook: CodebookFacts | None  # of `codebook.npz`; null: latents are any numbers
    likelihood: Annotated[str, KeyOf("LIKELIHOODS", "models/likelihoods.py")]
    is_density: bool  # whether the likelihood is one of these pixels
    sigma: PositiveFloat | None  # standard deviation of all pixels, in scaled units; null: there is none for all
    binarization: Binarization
    scaling: Scaling  # of the pixels whose density is scored
    grey_pixels: GreyPixels
    source: str
    title: str  # of the data
    licence: str  # of the data
    params: TrainedParams
    lineage: ExportLineage


class ScoreFacts(Card):
    """Scores of the test split: negative_log_likelihood + kl of each image, with an epsilon of zeros. Units: nats."""

    images: PositiveInt
    epsilon: Literal["zeros"]
    mean: float
    quantiles: dict[str, float]  # by percentage


class CodeFacts(Card):
    """Codes of the test split, that is posterior means. Shapes: (D,) each; D = C * H * W in the order of memory."""

    images: PositiveInt
    mean: tuple[float, ...]
    deviation: tuple[Number, ...]  # over images; near 0: the dimension says nothing of them
    # 1 / standard deviation of all numbers in posterior samples of all images; null: they never vary. Diffusion models
    # multiply latents by it (Rombach et al. 2022, app. G).
    scale_factor: PositiveFloat | None


class VariantFacts(Card):
    """A smaller copy of encoder and decoder that was tried. Units: bytes, nats per image."""

    bytes: PositiveInt  # of both files
    size_ratio: PositiveFloat  # bytes of the float32 files, divided by these
    max_error: Number | None  # largest difference from float32, times the scale where that exceeds 1; null: not finite
    tolerance: PositiveFloat  # of max_error
    elbo_change: Number | None  # of the test split, at one posterior sample each; null: no score, or not finite
    lost: str | None  # why its files were not kept; null: they were


class ExportCard(ExportedModel):
    """An exported model and its files."""

    opset: Count
    ir_version: PositiveInt
    oldest_onnxruntime: str  # oldest release that ran the files, of those tried with this opset
    graphs: dict[str, GraphFacts]
    parity: dict[str, Number]  # largest differences between onnxruntime and torch
    variants: dict[str, VariantFacts]
    triton: bool  # whether the folder `triton` is there
    scores: ScoreFacts | None  # null: the likelihood is no density of these pixels, or there is no posterior
    codes: CodeFacts
    files: Files

    def is_of(self, model: ModelCard) -> bool:
        """Return whether it was made of this model, and agrees with the model's card."""
        channels, height, width = model.data.shape
        wanted = {
            "kind": model.model.kind,
            "kind_title": model.kind_title,
            "latent_size": model.latent_size,
            "latent_shape": model.latent_shape,
            "classes": model.classes,
            "has_prior": model.has_prior,
            "likelihood": model.model.likelihood,
            "is_density": model.is_density,
            "binarization": model.data.binarization,
            "scaling": model.data.scaling,
            "source": model.data.source,
            "params": TrainedParams.of(model),
        }
        is_as_modelled = wanted.items() <= dict(self).items() and self.image.shape == (height, width, channels)
        return is_as_modelled and super().is_of(model)

    def is_with(self, config: ExportConfig) -> bool:
        """Return whether it was made with these parameters."""
        wanted = (config.opset, config.grey_pixels, config.triton, set(config.variants))
        return wanted == (self.opset, self.grey_pixels, self.triton, set(self.variants))


class ExportMetrics(Metrics):
    encoder_max_error: Number
    decoder_max_error: Number
    decoder_max_grey_levels: Number
