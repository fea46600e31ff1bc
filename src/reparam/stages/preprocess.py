"""data/raw, params `preprocess` -> data/processed: uint8 images (N, C, H, W), labels, a seeded split, and a card."""

from reparam import tracking
from reparam.config import Config, flatten
from reparam.data import sources, store
from reparam.files import dvc_hash, whole_directory
from reparam.paths import Paths


def run(config: Config, paths: Paths) -> None:
    """Split the raw images and write them in the one format that later stages read."""
    settings = config.preprocess
    tracker = tracking.connect(paths)
    source, images, labels = sources.read(paths.raw)
    parts = store.split_indices(len(images), settings.validation_fraction, settings.test_fraction, settings.seed)
    images = store.binarize(images, settings.binarization, settings.seed)
    with whole_directory(paths.processed) as directory:
        splits = {name: store.Split(images[rows], labels[rows]) for name, rows in parts.items()}
        card = store.write_store(directory, splits, {"source": source, "binarization": settings.binarization})
    data_hash = dvc_hash(paths.processed)
    with tracker.data_run("preprocess", data_hash) as run:
        run.log_params(flatten(config.preprocess, "preprocess."))
        run.log_metrics({f"{name}_images": len(rows) for name, rows in parts.items()})
        run.log_dataset(card, data_hash, "preprocess")
        run.log_files([paths.processed / store.CARD])
