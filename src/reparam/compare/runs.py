"""Runs of MLflow -> Experiment."""

import ast
import os
import re
import tempfile
from collections.abc import Callable, Mapping, Set
from pathlib import Path
from typing import Any, TypeVar

from reparam import track
from reparam.cards.card import SHORT
from reparam.cards.evaluation import EvaluationCard
from reparam.compare.experiment import SAMPLES, Experiment, checked, read_scores
from reparam.errors import TrackingError, UserError
from reparam.metrics import ERROR, describe
from reparam.paths import Paths
from reparam.redact import without_secrets

RUN_ID = re.compile(r"[0-9a-f]{6,32}")
T = TypeVar("T")


def read_run(name: str, paths: Paths) -> Experiment | None:
    """Read a run by its id, the beginning of its id, or its name; None if there is no store, or no such run in it.

    Raises: TrackingError if the store cannot be used; UserError if several runs match.
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
    run_id, notes = run.info.run_id, list[str]()
    below = _newest_below(run_id, store)
    params = dict(run.data.params)
    for child in below.values():
        params |= child.data.params
    if run.info.status != "FINISHED":
        notes.append(f"the run is {run.info.status}")
    if "evaluate" not in below:
        notes.append("no evaluation was logged below this run: run `dvc repro` with its parameters")
    split, losses = _losses(run_id, store)
    card = _artifact("evaluation/card.json", run_id, store, EvaluationCard.parse, notes)
    scores = _artifact("evaluation/scores.npz", run_id, store, checked(card, "scores.npz", read_scores), notes)
    samples = _artifact(f"evaluation/{SAMPLES}", run_id, store, checked(card, SAMPLES, bytes), notes)
    withheld = _withhold(run, below, card, notes)
    if card and "evaluate" in withheld:
        card = scores = samples = None
    return Experiment(
        name=run_id[:8] if run_id.startswith(name) else name,
        origin=f"MLflow run {run_id[:8]} ({run.info.run_name})",
        params={name: _typed(value) for name, value in params.items()},
        metrics=_results(run.data.metrics, {name for names in withheld.values() for name in names}),
        conditions=card.conditions if card else {},
        losses=losses,
        loss_split=split,
        samples=samples,
        scores=scores or {},
        notes=tuple(notes),
    )


def _results(metrics: Mapping[str, float], withheld: Set[str]) -> dict[str, float]:
    """Select results, under their own names; the last value of a curve is no result."""
    is_curve = ("train/", "validation/")
    named = {
        name.rpartition("/")[2]: value
        for name, value in metrics.items()
        if name not in withheld and not name.startswith(is_curve)
    }
    return {name: value for name, value in named.items() if describe(name.removesuffix(ERROR))}


def _withhold(
    run: Any, below: Mapping[str, Any], card: EvaluationCard | None, notes: list[str]
) -> dict[str, Mapping[str, float]]:
    """Return the metrics of stages that were not run with the weights of this training, and note which stages."""
    wanted = run.data.tags.get(track.WEIGHTS_TAG)
    made_of = {stage: child.data.tags.get(track.WEIGHTS_TAG) for stage, child in below.items()}
    if card and made_of.get("evaluate") in (None, wanted):
        made_of["evaluate"] = card.lineage.weights_sha256
    stale = {stage: found for stage, found in made_of.items() if wanted and found and found != wanted}
    notes += [
        f"{stage}: withheld: wanted results of the trained model (weights {wanted[:SHORT]}), found those of another "
        f"one (weights {found[:SHORT]}); run `dvc repro` with its parameters"
        for stage, found in stale.items()
    ]
    return {stage: below.get(stage, run).data.metrics for stage in stale}


def _artifact(path: str, run_id: str, store: track.Store, parse: Callable[[bytes], T], notes: list[str]) -> T | None:
    """Read a file that the newest evaluation of a run logged, or note that it is missing or damaged."""
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    with tempfile.TemporaryDirectory() as directory:
        try:
            found = store.read(lambda client: client.download_artifacts(run_id, path, directory))
            return parse(Path(found).read_bytes())
        except TrackingError:  # the run has none, or its artifacts are out of reach
            notes.append(f"not found: {path} among its artifacts")
        except ValueError as error:
            notes.append(f"{path} among its artifacts: damaged: {error}")
    return None


def _typed(value: str) -> Any:
    """Turn text, as MLflow keeps all parameters, back into what params.yaml holds."""
    try:
        return ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return value


def _newest_below(run_id: str, store: track.Store) -> dict[str, Any]:
    """Find the newest finished run of each stage below a training, by stage."""
    found = _search(f"tags.`mlflow.parentRunId` = '{run_id}' and attributes.status = 'FINISHED'", store)
    return {run.data.tags.get(track.STAGE_TAG, ""): run for run in reversed(found)}


def _losses(run_id: str, store: track.Store) -> tuple[str, dict[int, float]]:
    def ask(client: Any) -> dict[str, Any]:
        return {split: client.get_metric_history(run_id, f"{split}/loss") for split in ("validation", "train")}

    for split, history in store.read(ask).items():
        if history:
            return split, {metric.step: metric.value for metric in sorted(history, key=lambda metric: metric.step)}
    return "", {}
