"""data/processed, params `model`, `objective`, `train` -> models/vae, reports/training."""

import csv
import logging
from collections.abc import Mapping
from typing import Any

import torch
from rich.console import Console

from reparam import track
from reparam.config import Config, flatten, params_hash
from reparam.data import store
from reparam.data.batches import Batches
from reparam.errors import ParamsError
from reparam.files import dvc_hash, require_writable, whole_directory, whole_file, write_json
from reparam.lineage import source_hash
from reparam.models.build import build_model, start_at_mean
from reparam.models.likelihoods import is_density
from reparam.models.storage import save_card, save_weights
from reparam.paths import Paths
from reparam.progress import progress
from reparam.runtime import computing_in, make_deterministic, pick_device
from reparam.train.checkpoint import Checkpoints, holding
from reparam.train.checks import check_parts
from reparam.train.distributed import ALONE, World, joined
from reparam.train.filmstrip import Filmstrip
from reparam.train.guard import Guard, seconds_between_checkpoints
from reparam.train.loop import Fit, Metrics, fit
from reparam.train.step import LossModule, Step

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
        training, validation = (
            Batches(store.read_split(paths.processed, split).images, card, config.train.batch_size, place, world.share)
            for split in ("train", "validation")
        )
        step = build(config, card, training, place, world)
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
            quiet = quiet or not world.is_first
            result = _fit(step, (training, validation), config, checkpoints if is_ours else None, (tracker, run), quiet)

            if world.is_first:
                lineage = _write_model(config, paths, card, data_hash, result)
                summary = _write_reports(paths, result)
                run.set_tags({track.WEIGHTS_TAG: lineage["weights_sha256"], track.PARAMS_TAG: lineage["params_sha256"]})
                run.log_metrics(summary)
                run.log_files([paths.model / "card.json", paths.history])
                if is_ours:
                    checkpoints.clear()


def build(
    config: Config, card: Mapping[str, Any], training: Batches, place: torch.device, world: World = ALONE
) -> Step:
    """Put model, objective and optimizer together, on a device.

    Raises: ParamsError where they do not go together.
    """
    model = build_model(config.model, tuple(card["shape"]))
    check_parts(model, config, card)
    if world.size > 1 and config.model.norm == "batch":
        raise ParamsError(
            "params.yaml: model.norm: wanted 'none' or 'layer' where several processes train, each of which sees a "
            "part of the batch, found 'batch'"
        )
    if config.model.start_at_mean:
        start_at_mean(model, training.mean_image().cpu())
    if config.train.channels_last:
        model = model.to(memory_format=torch.channels_last)
    has_density = is_density(model.likelihood, card["binarization"])
    module = LossModule(model, config.objective, training.scaling, len(training), is_density=has_density).to(place)
    step = Step(module, config.train, world)
    if (step.is_replayed or step.is_traced) and training.is_resident:  # gathering and drawing are a part of the step
        training.yields_rows, step.prepare = True, training.pixels_of
    return step


def _fit(
    step: Step,
    data: tuple[Batches, Batches],
    config: Config,
    checkpoints: Checkpoints | None,
    tracks: tuple[track.Tracker, track.Run],
    quiet: bool,
) -> Fit:
    """Train from the start, or from the newest checkpoint, and log each epoch once."""
    result = Fit()
    training, validation = data
    guard = Guard(step, result, config.train, checkpoints, seconds_between_checkpoints())
    if guard.resume() and step.world.is_first:
        assert checkpoints is not None
        log.warning("train: going on after epoch %d, from %s", len(result.history), checkpoints.directory)
    guard.draw_apart()
    tracker, run = tracks
    logged = tracker.logged_epochs(run) if result.history else set()
    for section in ("download", "preprocess", "model", "objective", "train"):
        run.log_params(flatten(getattr(config, section), f"{section}."))
    with guard.listening(), progress(config.train.epochs, Console(stderr=True, quiet=quiet)) as show:

        def note(metrics: Metrics, epoch: int) -> None:
            if epoch not in logged:
                run.log_metrics(metrics, epoch)

        for row in result.history:
            note(row, int(row["epoch"]))

        held_out = validation if len(validation) else training
        filmstrip = Filmstrip(held_out, run, config.train.pictures_every, config.train.seed)

        def show_and_note(metrics: Metrics, epoch: int) -> None:
            show(metrics, epoch)
            note(metrics, epoch)
            if step.world.is_first:
                filmstrip.show(step.model, epoch)

        fit(step, (training, validation), config.train, show_and_note, result, guard)
    return result


def _params(config: Config) -> dict[str, Any]:
    return {name: getattr(config, name).model_dump(mode="json") for name in ("model", "objective", "train")}


def _identity(config: Config, data_hash: str, place: torch.device, world: World) -> str:
    """Hash all that determines the result, so that no training goes on from the checkpoint of another."""
    code = {"code": source_hash("train"), "torch": torch.__version__, "device": place.type, "processes": world.size}
    return params_hash({**_params(config), **code, "data": data_hash})


def _write_model(
    config: Config, paths: Paths, data_card: Mapping[str, Any], data_hash: str, result: Fit
) -> dict[str, str]:
    """Write weights and card, and return the card's lineage."""
    params = _params(config)
    with whole_directory(paths.model) as directory:
        lineage = {
            "data": data_hash,
            "code_sha256": source_hash("train"),
            "params_sha256": params_hash(params),
            "weights_sha256": save_weights(directory, result.best_weights),
        }
        card = {
            **params,
            "data": {
                name: data_card[name] for name in ("source", "binarization", "scaling", "shape", "layout", "range")
            },
            "best_epoch": result.best_epoch,
            "epochs": len(result.history),
            "lineage": lineage,
        }
        save_card(directory, card)
    return lineage


def _write_reports(paths: Paths, result: Fit) -> Metrics:
    with whole_file(paths.history) as partial, partial.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, result.history[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows({name: f"{value:.6g}" for name, value in row.items()} for row in result.history)
    best = result.history[result.best_epoch - 1]
    summary: Metrics = {
        **({"best_validation_loss": round(best["validation_loss"], 4)} if "validation_loss" in best else {}),
        "best_epoch": result.best_epoch,
        "epochs": len(result.history),
    }
    write_json(paths.training_metrics, summary)
    return summary
