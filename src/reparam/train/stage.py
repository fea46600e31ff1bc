"""data/processed, params `model`, `objective`, `train` -> models/vae, reports/training."""

import csv
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from rich.console import Console

from reparam import track
from reparam.config import Config, TrainConfig, flatten, params_hash
from reparam.data import store
from reparam.data.batches import Batches
from reparam.files import dvc_hash, require_writable, whole_directory, whole_file, write_json
from reparam.lineage import source_hash
from reparam.models.card import save_card
from reparam.models.storage import save_weights
from reparam.paths import Paths
from reparam.progress import progress
from reparam.runtime import computing_in, make_deterministic, pick_device
from reparam.train.build import build_trainer
from reparam.train.checkpoint import Checkpoints, holding
from reparam.train.distributed import World, joined
from reparam.train.filmstrip import Filmstrip, epochs_between_pictures
from reparam.train.keeper import Keeper, seconds_between_checkpoints
from reparam.train.loop import Data, fit
from reparam.train.record import Record
from reparam.train.reporting import EpochLog
from reparam.train.rollback import Rollback
from reparam.train.signals import StopRequest
from reparam.train.state import State
from reparam.train.sums import Metrics

log = logging.getLogger(__name__)


def run(
    config: Config, paths: Paths, device: str = "auto", *, quiet: bool = False, tracker: track.Tracker | None = None
) -> None:
    """Train a model and keep the weights of its best epoch; go on where an interrupted training was.

    Under torchrun, the processes share every batch; the first one keeps and writes what there is to keep.
    """
    require_writable(paths.model, paths.history)
    tracker = tracker or track.connect(paths)
    place = pick_device(device)
    with joined(place) as world, computing_in(config.train.precision):
        card = store.read_card(paths.processed)
        make_deterministic(config.train.seed, kernels=config.train.deterministic)
        data = Data(
            *(
                Batches(store.read_split(paths.processed, split).images, config.train.batch_size, place)
                for split in ("train", "validation")
            )
        )
        training = State(build_trainer(config, card, data.training, world))
        data_hash = dvc_hash(paths.processed)
        checkpoints = Checkpoints(paths.resume / _identity(config, data_hash, place, world))
        with (
            holding(checkpoints, world) as is_ours,
            tracker.training_run(data_hash, checkpoints.run_id if is_ours else "") as run,
        ):
            if is_ours and run.run_id:
                checkpoints.run_id = run.run_id
            counts = {name: split["count"] for name, split in card["splits"].items()}
            run.log_dataset(name=card["source"], digest=data_hash, context="train", shape=card["shape"], counts=counts)
            for section in ("download", "preprocess", "model", "objective", "train"):
                run.log_params(flatten(getattr(config, section), f"{section}."))
            _train(training, data, config.train, checkpoints if is_ours else None, Display(tracker, run, quiet))
            if world.is_first:
                lineage = _write_model(config, paths, card, data_hash, training.record)
                summary = _write_reports(paths, training.record)
                run.set_tags({track.WEIGHTS_TAG: lineage["weights_sha256"], track.PARAMS_TAG: lineage["params_sha256"]})
                run.log_metrics(summary)
                run.log_files([paths.model / "card.json", paths.history])
                if is_ours:
                    checkpoints.clear()


@dataclass(frozen=True)
class Display:
    """Where a training is shown: the tracking run, and the terminal unless it is quiet."""

    tracker: track.Tracker
    run: track.Run
    is_quiet: bool


def _train(training: State, data: Data, config: TrainConfig, checkpoints: Checkpoints | None, display: Display) -> None:
    """Train from the start, or from the newest checkpoint."""
    trainer, record = training.trainer, training.record
    rollback = Rollback(training, is_on=config.on_nonfinite == "rollback")
    keeper = Keeper(training, rollback, StopRequest(), checkpoints, seconds_between_checkpoints())
    if not keeper.resume():
        training.separate_processes()
        rollback.remember()
    elif checkpoints is not None and trainer.world.is_first:
        log.warning("train: going on after epoch %d, from %s", len(record.history), checkpoints.directory)
    logged = display.tracker.logged_epochs(display.run) if record.history else set()
    console = Console(stderr=True, quiet=display.is_quiet or not trainer.world.is_first)
    held_out = data.validation if len(data.validation) else data.training
    filmstrip = Filmstrip(held_out, trainer.loss.pixels, display.run, epochs_between_pictures(), config.seed)
    with keeper.stop.listening(), progress(config.epochs, console) as show:
        epoch_log = EpochLog(trainer, display.run, show, filmstrip, logged)
        for row in record.history:
            epoch_log.log(row, int(row["epoch"]))
        fit(training, data, config, epoch_log, rollback, keeper)


def _params(config: Config) -> dict[str, Any]:
    return {name: getattr(config, name).model_dump(mode="json") for name in ("model", "objective", "train")}


def _identity(config: Config, data_hash: str, place: torch.device, world: World) -> str:
    """Hash all that determines the result, so that no training goes on from the checkpoint of another."""
    code = {"code": source_hash("train"), "torch": torch.__version__, "device": place.type, "processes": world.size}
    return params_hash({**_params(config), **code, "data": data_hash})


def _write_model(
    config: Config, paths: Paths, data_card: Mapping[str, Any], data_hash: str, record: Record
) -> dict[str, str]:
    """Write weights and card, and return the card's lineage."""
    params = _params(config)
    with whole_directory(paths.model) as directory:
        lineage = {
            "data": data_hash,
            "code_sha256": source_hash("train"),
            "params_sha256": params_hash(params),
            "weights_sha256": save_weights(directory, record.best_weights),
        }
        card = {
            **params,
            "data": {
                name: data_card[name] for name in ("source", "binarization", "scaling", "shape", "layout", "range")
            },
            "best_epoch": record.best_epoch,
            "epochs": len(record.history),
            "lineage": lineage,
        }
        save_card(directory, card)
    return lineage


def _write_reports(paths: Paths, record: Record) -> Metrics:
    with whole_file(paths.history) as partial, partial.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, record.history[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows({name: f"{value:.6g}" for name, value in row.items()} for row in record.history)
    best = record.history[record.best_epoch - 1]
    summary: Metrics = {
        **({"best_validation_loss": round(best["validation_loss"], 4)} if "validation_loss" in best else {}),
        "best_epoch": record.best_epoch,
        "epochs": len(record.history),
    }
    write_json(paths.training_metrics, summary)
    return summary
