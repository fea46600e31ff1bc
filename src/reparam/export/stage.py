"""data/processed, models/vae, params `export` -> models/onnx: verified graphs; reports/export: parity, skew."""

import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from reparam import logged, track
from reparam.cards.card import MANIFEST, FileFacts
from reparam.cards.export import ExportCard, ExportedModel, ExportMetrics, GreyPixels
from reparam.config import Config, ExportConfig, flatten
from reparam.data import store
from reparam.data.pixels import Pixels
from reparam.export import golden, manifest, onnx, program, readme, samples, triton, variants, verify
from reparam.export.runtime import Runtime
from reparam.files import whole_directory
from reparam.models.draw import standard_error
from reparam.models.latent import LatentModel
from reparam.models.storage import load_model
from reparam.paths import Paths
from reparam.runtime import NUMBERS_AT_ONCE, make_deterministic, random_stream

PRIOR = "prior.npz"
CODEBOOK = "codebook.npz"
GOLDEN_IMAGES = 8
CALIBRATION_IMAGES = 256  # of the training split, evenly spaced
SKEW_BATCH = 128  # images at once, at most
SKEW_SAMPLES = 16  # posterior samples per image; enough to see differences of a hundredth of a nat

Array = npt.NDArray[Any]


def run(config: Config, paths: Paths, tracker: track.Tracker | None = None) -> None:
    """Export encoder, decoder and score, and fail unless they agree with torch.

    Runs on the CPU, where apps are tested first.
    """
    settings = config.export
    tracker = tracker or track.connect(paths)
    make_deterministic(0)
    model, card = load_model(paths.model, torch.device("cpu"))
    data = store.read_card_of(paths.processed, card.data, card.lineage.data_card_sha256)  # which refuses other data
    pixels = Pixels(card.data)
    graphs = onnx.graphs_of(model, pixels, settings.grey_pixels, has_elbo=card.has_elbo)
    split = store.read_split(paths.processed, "test")

    tracker.ready()
    with tracker.child_run("export", dict(card.lineage)) as run:
        run.log_params(flatten(settings, "export."))
        facts = manifest.describe(model, card, data, settings.grey_pixels)
        with whole_directory(paths.onnx) as directory:
            splits = {"test": _inputs(split, card.classes)}
            if variants.STATIC in settings.variants:
                train = store.read_split(paths.processed, "train").thinned(CALIBRATION_IMAGES)
                splits["train"] = _inputs(train, card.classes)
            metrics = _write_bundle(graphs, facts, settings, splits, directory)
        # Under `threshold` and `static` the grey values, which an app would send, are not stored.
        if not card.data.is_black_and_white and card.has_elbo:
            metrics |= serving_skew(model, split.images, pixels, settings.grey_pixels, splits["test"].get("label"))
        ExportMetrics.of(card.lineage, metrics).write(paths.export_metrics)
        logged.export(run, card, paths)


def _inputs(split: store.Split, classes: Sequence[str]) -> dict[str, Array]:
    """Return what an app gives the graphs. Shapes: images (N, H, W, C), and label (N,) if there are classes."""
    images = np.ascontiguousarray(split.images.transpose(0, 2, 3, 1))
    return {"images": images} | ({"label": split.labels.astype(np.int64)} if classes else {})


def _write_bundle(
    graphs: Mapping[str, onnx.Graph],
    facts: ExportedModel,
    settings: ExportConfig,
    splits: Mapping[str, dict[str, Array]],
    directory: Path,
) -> dict[str, float]:
    """Write and verify all files of a model; return the parity.

    Splits are as `_inputs` returns them: test, and for a variant that needs calibration, some of train.
    """
    inputs = splits["test"]
    images = inputs["images"]
    metadata = {"reparam": json.dumps(facts.model_dump(mode="json"), sort_keys=True)}
    with tempfile.TemporaryDirectory() as scratch, Runtime(Path(scratch)) as runtime:
        graphs = program.export_what_can_be(graphs, settings.opset, metadata, directory)
        for name, graph in graphs.items():
            verify.check_graph(directory / f"{name}.onnx", graph, settings.opset)
        parity = verify.measure_parity(graphs, runtime, directory, images, seed=0)
        scores = None
        if "score" in graphs:
            zeros = np.zeros((len(images), *facts.latent_shape), np.float32)
            scores = manifest.summarize(manifest.score(runtime, directory / "score.onnx", inputs, zeros))
        codes = manifest.describe_codes(runtime, directory / "encoder.onnx", graphs["encoder"].outputs, inputs)
        original = variants.Original(graphs, directory, runtime, **splits)
        tried = variants.write_variants(settings.variants, original, settings.opset)
    _write_arrays(graphs, facts, inputs, directory)
    if settings.triton:
        triton.write_repository({name: graph.facts for name, graph in graphs.items()}, directory)
    has_static = variants.STATIC in tried and not tried[variants.STATIC].lost
    oldest = manifest.OLDEST_OF_STATIC if has_static else manifest.OLDEST_ONNXRUNTIME
    card = ExportCard(
        **dict(facts),
        opset=settings.opset,
        ir_version=program.lowest_ir_version(settings.opset),
        oldest_onnxruntime=oldest[settings.opset],
        graphs={name: graph.facts for name, graph in graphs.items()},
        parity=parity,
        variants=tried,
        triton=settings.triton,
        scores=scores,
        codes=codes,
        files=FileFacts.below(directory),
    )
    _write_descriptions(card, directory)
    return parity


def _write_arrays(
    graphs: Mapping[str, onnx.Graph], facts: ExportedModel, inputs: dict[str, Array], directory: Path
) -> None:
    """Write what apps need beside the graphs: to draw from the prior, to look up codes, to check and to see answers."""
    if facts.prior == "gaussian mixture":
        manifest.write_prior(graphs["decoder"].model.prior, directory / PRIOR)
    if facts.codebook:
        manifest.write_codebook(graphs["decoder"].model, directory / CODEBOOK)
    some = slice(None, None, max(1, len(inputs["images"]) // GOLDEN_IMAGES))
    golden.write_golden(graphs, directory, {name: values[some][:GOLDEN_IMAGES] for name, values in inputs.items()})
    samples.write_samples(graphs, facts, directory)


def _write_descriptions(card: ExportCard, directory: Path) -> None:
    """Describe the files of a model for people and apps."""
    (directory / readme.README).write_text(readme.render(card), encoding="utf-8")
    files = card.files | {readme.README: FileFacts.of(directory / readme.README)}
    card = card.model_copy(update={"files": dict(sorted(files.items()))})
    card.write(directory / MANIFEST)  # last of all, so that a directory with a manifest is whole


@torch.no_grad()
def serving_skew(
    model: LatentModel, images: store.Images, pixels: Pixels, grey_pixels: GreyPixels, label: Array | None = None
) -> dict[str, float]:
    """Measure the cost of encoding grey images, as apps do, if training encoded random binarizations of them.

    `served_elbo` scores binarized images under the posterior of the exported encoder, which sees grey images.
    `served_elbo_loss` is its loss against the posterior of the binarized images themselves, on the same draws.
    `<name>_se` are standard errors of means over images; that of the loss is of differences image by image.
    Nothing is measured if apps send what training encoded: the ELBO is that of `evaluate` then.
    Shapes: images (N, C, H, W), label (N,). Units: nats per image.
    """
    grey = torch.from_numpy(images.astype(np.float32) / 255)
    batch = max(1, min(SKEW_BATCH, NUMBERS_AT_ONCE // (SKEW_SAMPLES * grey[0].numel() * model.likelihood.outputs)))
    elbos = list[Tensor]()
    with random_stream(0, "serving skew"):
        target = torch.bernoulli(grey) if pixels.is_drawn else grey
    served = onnx.serve(grey, grey_pixels)
    if torch.equal(served, target):
        return {}
    for x in (target, served):
        with random_stream(0, "serving skew, posterior"):
            parts = list[Tensor]()
            for rows in torch.split(torch.arange(len(x)), batch):
                some_labels = None if label is None else torch.from_numpy(label[rows.numpy()])
                draw = model.draw(pixels.scaled(x[rows]), pixels.scaled(target[rows]), SKEW_SAMPLES, labels=some_labels)
                parts.append((draw.log_px - draw.kl).double().mean(0))
        elbos.append(torch.cat(parts))
    return {
        key: round(value, 4)
        for name, of_images in (("served_elbo", elbos[-1]), ("served_elbo_loss", elbos[0] - elbos[-1]))
        for key, value in ((name, of_images.mean().item()), (f"{name}_se", standard_error(of_images).item()))
    }
