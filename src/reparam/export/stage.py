"""data/processed, models/vae, params `export` -> models/onnx: two verified graphs; reports/export: parity, skew."""

import json

import numpy as np
import torch
from torch import Tensor

from reparam import track
from reparam.cards.card import CARD, MANIFEST, FileFacts
from reparam.cards.export import ExportCard, ExportedImage, ExportedModel, ExportLineage, ExportMetrics, GreyPixels
from reparam.cards.model import ModelCard, TrainedParams
from reparam.config import Config, flatten
from reparam.data import store
from reparam.data.pixels import Pixels
from reparam.export import onnx, verify
from reparam.files import whole_directory
from reparam.lineage import source_hash
from reparam.models.build import AnyModel
from reparam.models.draw import standard_error
from reparam.models.storage import load_model
from reparam.paths import Paths
from reparam.runtime import NUMBERS_AT_ONCE, make_deterministic, random_stream

GOLDEN_IMAGES = 8
SKEW_BATCH = 128  # images at once, at most
SKEW_SAMPLES = 16  # posterior samples per image; enough to see differences of a hundredth of a nat


def run(config: Config, paths: Paths, tracker: track.Tracker | None = None) -> None:
    """Export encoder and decoder, and fail unless they agree with torch.

    Runs on the CPU, where apps are tested first.
    """
    settings = config.export
    tracker = tracker or track.connect(paths)
    make_deterministic(0)
    model, card = load_model(paths.model, torch.device("cpu")), ModelCard.read(paths.model / CARD, "train")
    store.read_card_of(paths.processed, card.data, card.lineage.data_card_sha256)  # which refuses other data
    pixels = Pixels(card.data)
    encoder, decoder = onnx.EncoderGraph(model, pixels, settings.grey_pixels), onnx.DecoderGraph(model, pixels)
    split = store.read_split(paths.processed, "test")
    images = np.ascontiguousarray(split.images.transpose(0, 2, 3, 1))  # (N, H, W, C)

    tracker.ready()
    with tracker.child_run("export", dict(card.lineage)) as run:
        run.log_params(flatten(settings, "export."))
        facts = _describe(card, settings.grey_pixels)
        metadata = {"reparam": json.dumps(facts.model_dump(mode="json"), sort_keys=True)}
        with whole_directory(paths.onnx) as directory:
            onnx.export_graphs(encoder, decoder, settings.opset, metadata, directory)
            for name, graph in ((onnx.ENCODER, encoder), (onnx.DECODER, decoder)):
                verify.check_graph(directory / name, graph.outputs, settings.opset)
            metrics = verify.measure_parity(encoder, decoder, directory, images, seed=0)
            verify.write_golden(encoder, decoder, directory, images[:GOLDEN_IMAGES])
            files = FileFacts.below(directory)  # last of all, so that a directory with a manifest is whole
            ExportCard(**dict(facts), opset=settings.opset, files=files).write(directory / MANIFEST)
        # Under `threshold` and `static` the grey values, which an app would send, are not stored.
        has_elbo = model.stochastic_layers and card.is_density
        if not card.data.is_black_and_white and has_elbo:
            metrics |= serving_skew(model, split.images, pixels, settings.grey_pixels)
        ExportMetrics.of(card.lineage, metrics).write(paths.export_metrics)
        run.log_headline(metrics)
        run.log_files([paths.export_metrics, *sorted(paths.onnx.iterdir())], "export")
        for name in (onnx.ENCODER, onnx.DECODER):
            run.log_onnx(paths.onnx / name)


@torch.no_grad()
def serving_skew(model: AnyModel, images: store.Images, pixels: Pixels, grey_pixels: GreyPixels) -> dict[str, float]:
    """Measure what it costs that apps encode grey images where training encoded random binarizations of them.

    `served_elbo` scores binarized images under a posterior that saw them as the exported encoder does;
    `served_elbo_loss` is what it lost against a posterior that saw the binarized images themselves, on the same
    draws. The standard errors, under `<name>_se`, are those of means over images: of the loss, image by image.
    Shapes: images (N, C, H, W). Units: nats per image.
    """
    grey = torch.from_numpy(images.astype(np.float32) / 255)
    batch = max(1, min(SKEW_BATCH, NUMBERS_AT_ONCE // (SKEW_SAMPLES * grey[0].numel() * model.likelihood.outputs)))
    elbos = list[Tensor]()
    with random_stream(0, "serving skew"):
        target = torch.bernoulli(grey) if pixels.is_drawn else grey
    for x in (target, onnx.serve(grey, grey_pixels)):
        with random_stream(0, "serving skew, posterior"):
            parts = list[Tensor]()
            for some, its in zip(torch.split(x, batch), torch.split(target, batch), strict=True):
                draw = model.draw(pixels.scaled(some), pixels.scaled(its), SKEW_SAMPLES)
                parts.append((draw.log_px - draw.kl).double().mean(0))
        elbos.append(torch.cat(parts))
    return {
        key: round(value, 4)
        for name, of_images in (("served_elbo", elbos[1]), ("served_elbo_loss", elbos[0] - elbos[1]))
        for key, value in ((name, of_images.mean().item()), (f"{name}_se", standard_error(of_images).item()))
    }


def _describe(card: ModelCard, grey_pixels: GreyPixels) -> ExportedModel:
    """Collect what an app must know, and the way back to the parameters."""
    channels, height, width = card.data.shape
    return ExportedModel(
        format=2,
        image=ExportedImage(shape=(height, width, channels), layout="NHWC", dtype="uint8", range=(0, 255)),
        kind=card.model.kind,
        latent_size=card.latent_size,
        has_prior=card.has_prior,
        likelihood=card.model.likelihood,
        grey_pixels=grey_pixels,
        source=card.data.source,
        params=TrainedParams.of(card),
        lineage=ExportLineage.of(card, export_code_sha256=source_hash("export")),
    )
