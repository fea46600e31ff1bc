"""data/processed, params `model`, `objective`, `train` -> models/vae, reports/training."""

import csv
import logging
import math
import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from filelock import Timeout
from rich.console import Console

from reparam import tracking
from reparam.config import Config, flatten, params_hash
from reparam.data import store
from reparam.data.batches import Batches
from reparam.errors import ParamsError, UserError
from reparam.files import dvc_hash, require_writable, whole_directory, whole_file, write_json
from reparam.lineage import source_hash
from reparam.models.build import AnyModel, build_model, start_at_mean
from reparam.models.storage import save_card, save_weights
from reparam.paths import Paths
from reparam.runtime import make_deterministic, pick_device, set_precision
from reparam.training.checkpoint import Checkpoints, Guard
from reparam.training.loop import Fit, Metrics, fit
from reparam.training.progress import progress
from reparam.training.step import LossModule, Step, check_fit

log = logging.getLogger(__name__)


def run(config: Config, paths: Paths, device: str = "auto", *, quiet: bool = False) -> None:
    """Train a model and keep the weights of its best epoch; go on where an interrupted training was."""
    require_writable(paths.model, paths.history)
    place = pick_device(device)
    card = store.read_card(paths.processed)
    make_deterministic(config.train.seed)
    training, validation = (
        Batches(store.read_split(paths.processed, split).images, card, config.train.batch_size, place)
        for split in ("train", "validation")
    )
    step = build(config, card, training, place)
    tracker = tracking.connect(paths)
    data_hash = dvc_hash(paths.processed)
    checkpoints = Checkpoints(paths.resume / _identity(config, data_hash, place))
    result = Fit()
    with (
        _computing_in(config.train.precision),
        _holding(checkpoints) as is_alone,
        tracker.training_run(data_hash, checkpoints.run_id if is_alone else "") as run,
    ):
        guard = Guard(step, result, config.train, checkpoints, _seconds_between_checkpoints(is_alone=is_alone))
        if is_alone:
            checkpoints.run_id = run.run_id
            if guard.resume():
                log.warning("train: going on after epoch %d, from %s", len(result.history), checkpoints.directory)
        logged = tracker.logged_epochs(run) if result.history else set()
        for row in result.history:
            if row["epoch"] not in logged:
                run.log_metrics(row, int(row["epoch"]))
        for section in ("download", "preprocess", "model", "objective", "train"):
            run.log_params(flatten(getattr(config, section), f"{section}."))
        run.log_dataset(card, data_hash, "train")
        with guard.listening(), progress(config.train.epochs, Console(stderr=True, quiet=quiet)) as show:

            def note(metrics: Metrics, epoch: int) -> None:
                show(metrics, epoch)
                if epoch not in logged:
                    run.log_metrics(metrics, epoch)

            fit(step, (training, validation), config.train, note, result, guard)

        lineage = _write_model(config, paths, card, data_hash, result)
        summary = _write_reports(paths, result)
        run.set_tags({tracking.WEIGHTS_TAG: lineage["weights_sha256"], tracking.PARAMS_TAG: lineage["params_sha256"]})
        run.log_metrics(summary)
        run.log_files([paths.model / "card.json", paths.history])
        if is_alone:
            checkpoints.clear()


def build(config: Config, card: Mapping[str, Any], training: Batches, place: torch.device) -> Step:
    """Put model, objective and optimizer together, on a device.

    Raises: ParamsError where they do not go together.
    """
    model = build_model(config.model, tuple(card["shape"]))
    _check(model, config, card)
    if config.model.start_at_mean:
        start_at_mean(model, training.mean_image().cpu())
    if config.train.channels_last:
        model = model.to(memory_format=torch.channels_last)
    return Step(LossModule(model, config.objective, training.scaling, len(training)).to(place), config.train)


def _identity(config: Config, data_hash: str, place: torch.device) -> str:
    """Hash all that determines the result, so that no training goes on from the checkpoint of another."""
    params = {name: getattr(config, name).model_dump(mode="json") for name in ("model", "objective", "train")}
    code = {"code": source_hash("train"), "torch": torch.__version__, "device": place.type}
    return params_hash({**params, **code, "data": data_hash})


@contextmanager
def _computing_in(precision: str) -> Iterator[None]:
    """Train in a precision, and leave full precision to what comes after in the same process."""
    set_precision(precision)
    try:
        yield
    finally:
        set_precision("fp32")


@contextmanager
def _holding(checkpoints: Checkpoints) -> Iterator[bool]:
    """Hold the checkpoints; yield whether they are ours, and not those of another process that trains the same."""
    with ExitStack() as stack:
        try:
            stack.enter_context(checkpoints.held())
        except Timeout:
            log.warning("train: another process trains the very same model; this one keeps no checkpoints")
            yield False
        else:
            yield True


def _seconds_between_checkpoints(*, is_alone: bool) -> float:
    text = os.environ.get("REPARAM_CHECKPOINT_SECONDS", "60")
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not seconds >= 0:
        raise UserError(f"REPARAM_CHECKPOINT_SECONDS: wanted a number of seconds, found {text!r}; mend or unset it")
    return seconds if is_alone else math.inf


def _check(model: AnyModel, config: Config, card: Mapping[str, Any]) -> None:
    """Refuse parts that do not go together.

    Raises: ParamsError.
    """
    check_fit(model, config.model, config.objective)
    kind = card["scaling"]["kind"]
    if kind != "unit" and (model.likelihood.needs_unit or config.model.output == "sigmoid"):
        name = "likelihood" if model.likelihood.needs_unit else "output"
        raise ParamsError(
            f"params.yaml: preprocess.scaling: wanted 'unit' with model.{name} {getattr(config.model, name)!r}, "
            f"which is of pixels in [0, 1], found {kind!r}"
        )
    images, size = card["splits"]["train"]["count"], config.train.batch_size
    if config.model.norm == "batch" and (images % size == 1 or min(images, size) == 1):
        raise ParamsError(
            f"params.yaml: train.batch_size: wanted more than one image in every batch with model.norm 'batch', "
            f"found {size}, which leaves one of the {images} training images alone; take another number"
        )
    if config.train.monitor == "elbo" and not model.stochastic_layers:
        raise ParamsError(
            "params.yaml: train.monitor: wanted 'loss' with an autoencoder, which has no ELBO, found 'elbo'"
        )
    if config.train.schedule == "step" and len(config.train.milestones) != 1:
        raise ParamsError(
            "params.yaml: train.milestones: wanted one number, the period, with train.schedule 'step', "
            f"found {list(config.train.milestones)}"
        )


def _write_model(
    config: Config, paths: Paths, data_card: Mapping[str, Any], data_hash: str, result: Fit
) -> dict[str, str]:
    """Write weights and card, and return the card's lineage."""
    params = {name: getattr(config, name).model_dump(mode="json") for name in ("model", "objective", "train")}
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
