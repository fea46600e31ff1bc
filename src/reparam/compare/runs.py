"""Runs of MLflow -> Experiment."""

import os
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from reparam import track
from reparam.compare.experiment import COUNTS, SETTINGS, Experiment
from reparam.errors import TrackingError, UserError
from reparam.paths import Paths
from reparam.redact import without_secrets

RUN_ID = re.compile(r"[0-9a-f]{6,32}")
# What training logs once an epoch: the curves, of which the last value is no result.
PER_EPOCH = re.compile(r"(train|validation)_.*|latent_kl\..*|epoch|images_per_second")
SAMPLES = "evaluation/samples.png"


def read_run(name: str, paths: Paths) -> Experiment | None:
    """Read a run by its id, the beginning of its id, or its name; None where there is no store, or no such run in it.

    Raises: TrackingError where the store cannot be used; UserError where several runs match.
    """
    store = track.connect_to_read(paths)
    if store is None:
        return None
    try:
        found = _find(name, store)
        return _read(name, found, store) if found else None
    except TrackingError as error:
        raise TrackingError(f"{name}: MLflow at {without_secrets(store.uri)} cannot be read: {error}") from None


def _find(name: str, store: track.Store) -> Any:
    """Find the run of a training: also for a run below it, as `evaluate` logs."""
    wanted = [f"attributes.run_id LIKE '{name}%'"] if RUN_ID.fullmatch(name) else []
    if not {"'", '"'} & set(name):  # which a filter cannot quote
        wanted.append(f"attributes.run_name = '{name}'")
    for condition in wanted:
        found = _search(condition, store)
        if len(found) > 1:
            ids = ", ".join(run.info.run_id for run in found[:5])
            raise UserError(
                f"{name}: wanted one run of MLflow, found {len(found)}: {ids}{', ...' if len(found) > 5 else ''}; "
                "give more of the id"
            )
        if found:
            return _training_of(found[0], store)
    return None


def _training_of(run: Any, store: track.Store) -> Any:
    parent = run.data.tags.get("mlflow.parentRunId")
    return store.read(lambda client: client.get_run(parent)) if parent else run


def _search(condition: str, store: track.Store) -> list[Any]:
    def ask(client: Any) -> list[Any]:
        experiments = [experiment.experiment_id for experiment in client.search_experiments()]
        return list(client.search_runs(experiments, condition, order_by=["attributes.start_time DESC"]))

    found: list[Any] = store.read(ask)
    return found


def _read(name: str, run: Any, store: track.Store) -> Experiment:
    run_id = run.info.run_id
    below = _newest_below(run_id, store)
    params = {**run.data.params}
    for child in below.values():
        params |= child.data.params
    ours = set(run.data.metrics) - set(below["export"].data.metrics if "export" in below else ())
    split, losses = _losses(run_id, store)
    samples = _samples(run_id, store)
    notes = []
    if run.info.status != "FINISHED":
        notes.append(f"the run is {run.info.status}")
    if "evaluate" not in below:
        notes.append("no evaluation was logged below this run: run `dvc repro` with its parameters")
    if samples is None:
        notes.append(f"not found: {SAMPLES} among its artifacts")
    return Experiment(
        name=run_id[:8] if run_id.startswith(name) else name,
        origin=f"MLflow run {run_id[:8]} ({run.info.run_name})",
        params=params,
        metrics={
            name: run.data.metrics[name] for name in run.data.metrics if name in ours and not PER_EPOCH.fullmatch(name)
        },
        conditions=_conditions(run, params),
        losses=losses,
        loss_split=split,
        samples=samples,
        notes=tuple(notes),
    )


def _newest_below(run_id: str, store: track.Store) -> dict[str, Any]:
    """Find the newest finished run of each stage below a training, by stage."""
    found = _search(f"tags.`mlflow.parentRunId` = '{run_id}' and attributes.status = 'FINISHED'", store)
    return {run.data.tags.get(track.STAGE_TAG, ""): run for run in reversed(found)}


def _conditions(run: Any, params: Mapping[str, str]) -> dict[str, Any]:
    found = {
        "data": run.data.tags.get(track.DATA_TAG),
        "images": run.data.metrics.get("images"),
        "binarization": params.get("preprocess.binarization"),
        **{name: params.get(f"evaluate.{name}") for name in SETTINGS},
    }
    known = {name: value for name, value in found.items() if value not in (None, "None")}  # as MLflow spells null
    return known | {name: int(known[name]) for name in ("images", *COUNTS) if name in known}


def _losses(run_id: str, store: track.Store) -> tuple[str, dict[int, float]]:
    def ask(client: Any) -> dict[str, Any]:
        return {split: client.get_metric_history(run_id, f"{split}_loss") for split in ("validation", "train")}

    for split, history in store.read(ask).items():
        if history:
            return split, {metric.step: metric.value for metric in sorted(history, key=lambda metric: metric.step)}
    return "", {}


def _samples(run_id: str, store: track.Store) -> bytes | None:
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    with tempfile.TemporaryDirectory() as directory:
        try:
            path = store.read(lambda client: client.download_artifacts(run_id, SAMPLES, directory))
        except TrackingError:  # the run has none, or its artifacts are out of reach
            return None
        return Path(path).read_bytes()
