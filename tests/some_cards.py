"""Cards of a small model that was never trained, in the words that stages leave."""

import hashlib
from typing import Any

from conftest import SMALL, small_section

from reparam.cards.card import FileFacts
from reparam.cards.data import DataCard, DownloadCard, ImageFacts, Scaling, SplitFacts
from reparam.cards.evaluation import (
    Details,
    EvaluationCard,
    EvaluationLineage,
    EvaluationMetrics,
    GridTiles,
    TileDimension,
    Tiles,
    TraversalTiles,
)
from reparam.cards.export import (
    CodeFacts,
    ExportCard,
    ExportedImage,
    ExportLineage,
    ExportMetrics,
    GraphFacts,
    ScoreFacts,
    TensorFacts,
)
from reparam.cards.model import ModelCard, TrainedParams, TrainingLineage, TrainingMetrics
from reparam.config import Config
from reparam.files import to_json
from reparam.models.build import KINDS

# The numbers of a model with a posterior, a prior and a density of its pixels.
EVALUATED = {
    "elbo": -20.126,
    "elbo_se": 0.3,
    "reconstruction": 12.0,
    "reconstruction_se": 0.25,
    "kl": 8.126,
    "kl_se": 0.1,
    "nll": 18.5,
    "nll_se": 0.2,
    "active_units": 9,
    "images": 359,
}
PARITY = {"encoder_max_error": 1e-7, "decoder_max_error": 3.4e-7, "decoder_max_grey_levels": 0.0}
LATENTS = TensorFacts(
    name="latents", dtype="float32", shape=("batch", 3), range=(None, None), unit="deviations", meaning="codes"
)
TILES = Tiles(
    image=(8, 8),
    range=2.5,
    grid=GridTiles(steps=15, names=("z3", "z1"), unit="prior standard deviations"),
    traversals=TraversalTiles(
        steps=21,
        unit="prior standard deviations",
        use="nats",
        dimensions=(TileDimension(number=3, use=1.25), TileDimension(number=1, use=0.5)),
    ),
)


def hash_of(digit: str) -> str:
    """A SHA-256 that a reader recognises."""
    return digit * 64


def resealed(values: Any) -> Any:
    """Correct the checksum on a card that somebody edited, if it has one."""
    if not isinstance(values, dict) or "checksum" not in values:
        return values
    rest = {name: value for name, value in values.items() if name != "checksum"}
    return rest | {"checksum": hashlib.sha256(to_json(rest).encode()).hexdigest()}


def image_facts(binarization: Any = "dynamic", shift: float = 0.0, scale: float = 1.0, channels: int = 1) -> ImageFacts:
    """Facts of images of which a model sees (pixel - shift) / scale; without numbers, pixels in [0, 1]."""
    scaling = Scaling(kind="unit", shift=(shift,) * channels, scale=(scale,) * channels)
    return ImageFacts(source="digits", binarization=binarization, scaling=scaling, shape=(channels, 8, 8))


def data_card(binarization: Any = "dynamic", **changes: Any) -> DataCard:
    """The card of 20 images."""
    splits = {
        name: SplitFacts(count=count, classes={"0": count}, images_sha256=hash_of(digit), labels_sha256=hash_of("0"))
        for (name, count), digit in zip({"train": 12, "validation": 3, "test": 5}.items(), "123", strict=True)
    }
    values = {
        **dict(image_facts(binarization)),
        "options": {},
        "title": "Digits",
        "licence": "CC BY 4.0",
        "classes": ("0",),
        "skipped": {},
        "train_mean": (0.25,),
        "train_standard_deviation": (0.5,),
        "splits": splits,
    }
    return DataCard(**values | changes)


def download_card(**changes: Any) -> DownloadCard:
    """The card of one delivered file."""
    files = {"digits.npz": FileFacts(sha256=hash_of("a"), bytes=10)}
    values = {"source": "digits", "options": {}, "title": "Digits", "licence": "CC BY 4.0", "files": files}
    return DownloadCard(**values | changes)


def trained_params(**sections: Any) -> TrainedParams:
    """The parameters of the small model, or with other sections."""
    return TrainedParams(**{name: small_section(name) for name in ("model", "objective", "train")} | sections)


def training_lineage(weights: str, params: TrainedParams, data: DataCard) -> TrainingLineage:
    """Where these weights come from."""
    return TrainingLineage(
        data="b" * 32 + ".dir",
        data_card_sha256=data.digest,
        code_sha256=hash_of("c"),
        params_sha256=params.hash,
        weights_sha256=weights,
    )


def model_card(
    params: TrainedParams | None = None, weights: str = hash_of("d"), data: DataCard | None = None, **changes: Any
) -> ModelCard:
    """The card of the small model."""
    params, data = params or trained_params(), data or data_card()
    values = {
        **dict(params),
        "data": data.images,
        "kind_title": KINDS[params.model.kind].title,
        "classes": (),
        "latent_size": 3,
        "latent_shape": (3,),
        "has_prior": True,
        "is_density": True,
        "has_elbo": True,
        "is_discrete": False,
        "best_epoch": 80,
        "epochs": 120,
        "lineage": training_lineage(weights, params, data),
    }
    return ModelCard(**values | changes)


def evaluation_card(model: ModelCard | None = None, **changes: Any) -> EvaluationCard:
    """The card of its evaluation on the test split."""
    model = model or model_card()
    values = {
        "data": model.data,
        "is_discrete": model.is_discrete,
        "images": 359,
        "images_sha256": {"train": hash_of("1"), "validation": hash_of("2"), "test": hash_of("3")},
        "settings": small_section("evaluate"),
        "sampled_from": "the prior",
        "details": Details(),
        "warnings": (),
        "tiles": TILES,
        "files": {"metrics.json": FileFacts(sha256=hash_of("a"), bytes=10)},
        "lineage": EvaluationLineage.of(model, evaluate_code_sha256=hash_of("e")),
    }
    return EvaluationCard(**values | changes)


def export_card(model: ModelCard | None = None, **changes: Any) -> ExportCard:
    """The manifest of its export."""
    model = model or model_card()
    channels, height, width = model.data.shape
    values = {
        "format": 4,
        "image": ExportedImage(shape=(height, width, channels), layout="NHWC", dtype="uint8", range=(0, 255)),
        "kind": model.model.kind,
        "kind_title": model.kind_title,
        "latent_size": model.latent_size,
        "latent_shape": model.latent_shape,
        "classes": model.classes,
        "has_prior": model.has_prior,
        "prior": "standard normal" if model.has_prior else None,
        "codebook": None,
        "likelihood": model.model.likelihood,
        "is_density": model.is_density,
        "sigma": None,
        "binarization": "dynamic",
        "scaling": image_facts().scaling,
        "grey_pixels": "keep",
        "source": model.data.source,
        "title": "Digits",
        "licence": "CC BY 4.0",
        "params": TrainedParams.of(model),
        "lineage": ExportLineage.of(model, export_code_sha256=hash_of("f")),
        "opset": 20,
        "ir_version": 9,
        "oldest_onnxruntime": "1.17.0",
        "graphs": {"decoder": GraphFacts(inputs=(LATENTS,), outputs=(LATENTS.model_copy(update={"name": "mean"}),))},
        "parity": PARITY,
        "variants": {},
        "triton": False,
        "scores": ScoreFacts(images=359, epsilon="zeros", mean=20.5, quantiles={"50": 20.25}),
        "codes": CodeFacts(
            images=359, mean=(0.0,) * model.latent_size, deviation=(1.0,) * model.latent_size, scale_factor=1.0
        ),
        "files": {name: FileFacts(sha256=hash_of("a"), bytes=10) for name in ("decoder.onnx", "encoder.onnx")},
    }
    return ExportCard(**values | changes)


def training_metrics(model: ModelCard | None = None, history: bytes = b"", **values: float) -> TrainingMetrics:
    """What training reports of the small model, with this table of epochs."""
    digest = hashlib.sha256(history).hexdigest()
    numbers = {"best_epoch": 80, "epochs": 120, **values}
    return TrainingMetrics.of((model or model_card()).lineage, numbers, history_sha256=digest)


def evaluation_metrics(model: ModelCard | None = None, values: dict[str, float] = EVALUATED) -> EvaluationMetrics:
    """What its evaluation reports."""
    return EvaluationMetrics.of((model or model_card()).lineage, values)


def export_metrics(model: ModelCard | None = None, values: dict[str, float] = PARITY) -> ExportMetrics:
    """What its export reports."""
    return ExportMetrics.of((model or model_card()).lineage, values)


def small_config(**sections: Any) -> Config:
    """The small params.yaml."""
    return Config(**{name: small_section(name) for name in SMALL} | sections)
