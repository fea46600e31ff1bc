"""data/processed, params `model`, `objective`, `train` -> models/vae, reports/training."""

import csv
import logging
import socket
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console

from reparam import logged, track
from reparam.cards.card import CARD, SHORT
from reparam.cards.data import DataCard, SplitName
from reparam.cards.model import ModelCard, TrainedParams, TrainingLineage, TrainingMetrics
from reparam.config import Config, TrainConfig, params_hash
from reparam.data import store
from reparam.data.batches import Batches
from reparam.distributed import World, joined
from reparam.errors import StaleInputError
from reparam.files import dvc_hash, require_writable, sha256, whole_directory, whole_file
from reparam.lineage import source_hash
from reparam.logged.epochs import EpochLog
from reparam.logged.filmstrip import Filmstrip, epochs_between_pictures
from reparam.models.build import KINDS
from reparam.models.storage import save_weights
from reparam.paths import Paths, anchored
from reparam.progress import progress
from reparam.runtime import computing_in, make_deterministic, pick_device
from reparam.train.build import build_trainer
from reparam.train.checkpoint import Checkpoints, holding
from reparam.train.checks import condition_classes
from reparam.train.keeper import Keeper, seconds_between_checkpoints
from reparam.train.loop import Data, train
from reparam.train.record import Record
from reparam.train.rollback import Rollback
from reparam.train.signals import StopRequest
from reparam.train.state import State

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
        card = _read_card(paths, world)
        make_deterministic(config.train.seed, kernels=config.train.deterministic)
        classes = condition_classes(config.model.condition, card)
        training, validation = _read_batches(paths, config, place, is_verified=not world.is_first_here)
        state = State(build_trainer(_found(config, paths), card, training, world, len(classes)))
        data_hash = world.agree_on(dvc_hash(paths.processed) if world.is_first else "")
        checkpoints = Checkpoints(paths.resume / _identity(config, data_hash, place, world))
        with (
            holding(checkpoints, world) as is_ours,
            tracker.training_run(
                data_hash, checkpoints.run_id if is_ours else "", name=logged.title(config, card)
            ) as run,
        ):
            if is_ours and run.run_id:
                checkpoints.run_id = run.run_id
            logged.training_begins(run, config, card, data_hash)
            display = Display(tracker, run, quiet)
            _train(state, Data(training, validation), config.train, checkpoints if is_ours else None, display)
            if world.is_first:
                model_card = _write_model(paths.model, config, card, data_hash, state)
                _write_reports(paths, state.record, model_card.lineage)
                logged.training(run, model_card, paths)
                if is_ours:
                    checkpoints.clear()


@dataclass(frozen=True)
class Display:
    """The places that show a training: the tracking run, and the terminal unless it is quiet."""

    tracker: track.Tracker
    run: track.Run
    is_quiet: bool


def _train(state: State, data: Data, config: TrainConfig, checkpoints: Checkpoints | None, display: Display) -> None:
    """Train from the start, or from the newest checkpoint."""
    trainer, record = state.trainer, state.record
    rollback = Rollback(state, is_on=config.on_nonfinite == "rollback")
    keeper = Keeper(state, rollback, StopRequest(), checkpoints, seconds_between_checkpoints())
    if not keeper.resume():
        state.separate_processes()
        rollback.remember()
    elif checkpoints is not None and trainer.world.is_first:
        log.warning("train: going on after epoch %d, from %s", len(record.history), checkpoints.directory)
    logged = display.tracker.logged_epochs(display.run) if record.history else set()
    console = Console(stderr=True, quiet=display.is_quiet or not trainer.world.is_first)
    held_out = data.validation if len(data.validation) else data.training
    filmstrip = Filmstrip(
        held_out,
        trainer.loss.pixels,
        display.run,
        config.seed,
        every=epochs_between_pictures(),
        has_prior=trainer.loss.has_prior,
    )
    with keeper.stop.listening(), progress(config.epochs, console) as show:
        epoch_log = EpochLog(
            display.run,
            show,
            lambda epoch: filmstrip.show(trainer.model, epoch),
            logged,
            is_first=trainer.world.is_first,
        )
        for row in record.history:
            epoch_log.log(row, int(row["epoch"]))
        train(state, data, config, epoch_log, rollback, keeper)


def _found(config: Config, paths: Paths) -> Config:
    """Return parameters whose file of weights is found from a scratch copy, too."""
    wanted = config.objective.perceptual
    found = wanted.model_copy(update={"weights": wanted.weights and str(anchored(wanted.weights, paths.shared))})
    return config.model_copy(update={"objective": config.objective.model_copy(update={"perceptual": found})})


def _read_batches(paths: Paths, config: Config, place: torch.device, *, is_verified: bool) -> tuple[Batches, Batches]:
    """Read training and validation split, with their labels if the model is conditional."""

    def read(split: SplitName) -> Batches:
        found = store.read_split(paths.processed, split, is_verified=is_verified)
        labels = None if config.model.condition == "none" else found.labels
        return Batches(found.images, config.train.batch_size, place, labels)

    return read("train"), read("validation")


def _read_card(paths: Paths, world: World) -> DataCard:
    """Read the card of the data, which has the checksums of all images.

    Raises: StaleInputError on all machines, if one has other data than that of the first process.
    """
    card = store.read_card(paths.processed)
    wanted = world.agree_on(card.digest)
    [differ] = world.most(int(card.digest != wanted))
    if card.digest != wanted:
        raise StaleInputError(
            f"{paths.processed}: wanted the data of the first process (card {wanted[:SHORT]}), found others (card "
            f"{card.digest[:SHORT]}); `dvc pull` or copy them to {socket.gethostname()}"
        )
    if differ:
        raise StaleInputError(
            f"{paths.processed}: wanted the same data on all machines (card {wanted[:SHORT]}), another one has others; "
            "`dvc pull` or copy them to the machine that says so"
        )
    return card


def _identity(config: Config, data_hash: str, place: torch.device, world: World) -> str:
    """Hash all that determines the result, so that no training goes on from the checkpoint of another."""
    code = {"code": source_hash("train"), "torch": torch.__version__, "device": place.type, "processes": world.size}
    return params_hash({**TrainedParams.of(config).model_dump(mode="json"), **code, "data": data_hash})


def _write_model(directory: Path, config: Config, data: DataCard, data_hash: str, state: State) -> ModelCard:
    """Write weights and card, and return the card."""
    params, loss, record = TrainedParams.of(config), state.trainer.loss, state.record
    with whole_directory(directory) as written:
        card = ModelCard(
            **dict(params),
            data=data.images,
            kind_title=KINDS[config.model.kind].title,
            classes=condition_classes(config.model.condition, data),
            latent_size=loss.model.latent_size,
            latent_shape=loss.model.latent_shape,
            has_prior=loss.has_prior,
            is_density=loss.is_density,
            has_elbo=loss.has_elbo,
            is_discrete=loss.model.likelihood.is_discrete,
            best_epoch=record.best_epoch,
            epochs=len(record.history),
            lineage=TrainingLineage(
                data=data_hash,
                data_card_sha256=data.digest,
                code_sha256=source_hash("train"),
                params_sha256=params.hash,
                weights_sha256=save_weights(written, record.best_weights),
            ),
        )
        card.write(written / CARD)
    return card


def _write_reports(paths: Paths, record: Record, lineage: TrainingLineage) -> None:
    with whole_file(paths.history) as partial, partial.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, record.history[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows({name: f"{value:.6g}" for name, value in row.items()} for row in record.history)
    best = record.history[record.best_epoch - 1]
    summary = {
        **({"best_validation_loss": round(best["validation_loss"], 4)} if "validation_loss" in best else {}),
        "best_epoch": record.best_epoch,
        "epochs": len(record.history),
    }
    TrainingMetrics.of(lineage, summary, history_sha256=sha256(paths.history)).write(paths.training_metrics)
