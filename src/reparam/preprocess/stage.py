"""data/raw, params `preprocess` -> data/processed: uint8 images (N, C, H, W), labels, factors, a split, a card."""

import logging
import os
from pathlib import Path

import numpy as np

from reparam import logged, track
from reparam.cards.data import DataCard, DataMetrics
from reparam.config import Config, PreprocessConfig
from reparam.data import store
from reparam.data.sources import registry as sources
from reparam.data.sources.folder import ImageFiles
from reparam.data.sources.raw import Raw
from reparam.files import dvc_hash, scratch_directory, whole_directory
from reparam.paths import Paths
from reparam.preprocess import convert, splits

log = logging.getLogger(__name__)


def run(config: Config, paths: Paths, tracker: track.Tracker | None = None) -> None:
    """Decode, split and write the raw images in the one format that later stages read."""
    settings = config.preprocess
    tracker = tracker or track.connect(paths)
    tracker.ready()
    with scratch_directory(paths.processed) as scratch, whole_directory(paths.processed) as directory:
        delivered, raw = sources.read(paths.raw, scratch)
        skipped = _write_arrays(raw, settings, directory)
        classes = tuple(raw.classes[label] for label in splits.class_numbers(raw.classes, settings.classes))
        origin = store.Origin(
            delivered.source,
            delivered.options,
            settings.binarization,
            classes,
            skipped,
            delivered.title,
            delivered.licence,
            raw.factors,
        )
        card = store.write_card(directory, origin, settings.scaling)
    _summarize(card).write(paths.data_metrics)
    data_hash = dvc_hash(paths.processed)
    with tracker.data_run("preprocess", data_hash) as run:
        logged.preprocess(run, config, card, data_hash, paths)


def _write_arrays(raw: Raw, settings: PreprocessConfig, directory: Path) -> dict[str, str]:
    """Write images, labels and factors of each split; return the names of unreadable images with the reason."""
    parts = splits.assign(raw, settings)
    numbers = splits.class_numbers(raw.classes, settings.classes)
    published, rows = parts["train"]
    shape = convert.common_shape(raw.splits[published], rows, settings)
    files = [split for split in raw.splits.values() if isinstance(split, ImageFiles)]
    top = Path(os.path.commonpath([split.root for split in files])) if files else Path()
    skipped: dict[str, str] = {}
    for name, (published, rows) in parts.items():
        collection = raw.splits[published]
        images = directory / f"{name}-images.npy"
        unreadable = convert.convert(collection, rows, shape, images)
        if isinstance(collection, ImageFiles):
            # Below what all splits have in common: a published train and test may hold files of the same name.
            prefix = collection.root.relative_to(top)
            named = {(prefix / collection.names[row]).as_posix(): why for row, why in sorted(unreadable.items())}
            if 0 < len(named) == len(rows) and settings.on_error == "skip":
                raise convert.none_readable(name, named)
            skipped |= named
        store.binarize(images, settings.binarization, (settings.seed, store.SPLITS.index(name)))
        readable = rows[~np.isin(rows, list(unreadable))]
        labels = [numbers[int(collection.labels[row])] for row in readable]
        np.save(directory / f"{name}-labels.npy", np.asarray(labels, np.int32))
        if collection.factors is not None:
            np.save(directory / f"{name}-factors.npy", collection.factors[readable].astype(np.int32))
    if settings.on_error == "fail":
        convert.refuse_unreadable(skipped)
    elif skipped:
        log.warning("preprocess: %d unreadable images are left out; data/processed/card.json names them", len(skipped))
    return skipped


def _summarize(card: DataCard) -> DataMetrics:
    return DataMetrics(
        train_images=card.splits["train"].count,
        validation_images=card.splits["validation"].count,
        test_images=card.splits["test"].count,
        skipped_images=len(card.skipped),
        train_mean=round(float(np.mean(card.train_mean)), 6),
        train_standard_deviation=round(float(np.mean(card.train_standard_deviation)), 6),
    )
