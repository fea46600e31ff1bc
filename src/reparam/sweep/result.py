"""The result of a study: a table, plots, and the command that applies the best trial."""

import statistics
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
import optuna.visualization.matplotlib as plots
from optuna.exceptions import ExperimentalWarning
from optuna.trial import FrozenTrial, TrialState
from rich.console import Console
from rich.table import Table
from rich.text import Text

from reparam import track
from reparam.files import whole_file
from reparam.metrics import describe
from reparam.paths import Paths
from reparam.sweep.plan import spell_value
from reparam.sweep.study import Study, run_key
from reparam.track import OFF, address

DPI = 150
TALL = 20  # times the distance of best and median: trials that are worse are not plotted
MARGIN = 0.05
STATES = {TrialState.COMPLETE: "done", TrialState.PRUNED: "pruned", TrialState.FAIL: "failed"}


def show(study: Study, paths: Paths) -> None:
    """Print the table and the best trial, and write the plots."""
    console = Console(highlight=False)
    trials = sorted(study.trials, key=lambda trial: _rank(study, trial))
    done = [trial for trial in trials if trial.state == TrialState.COMPLETE]
    console.print(_table(study, trials))
    for trial in trials:
        if trial.state == TrialState.FAIL:
            console.print(
                Text(f"{study.plan.name_of(trial.number)}: {trial.user_attrs.get('failure')}"), soft_wrap=True
            )
    files, notes = _plots(study, done, paths.sweep_reports / study.plan.study) if done else ([], ["no trial is done"])
    for line in [*notes, *(f"{paths.relative(file)}: written" for file in files)]:
        console.print(Text(line), soft_wrap=True)
    if done:
        console.print(Text(_best(study, done[0])), soft_wrap=True)
    _close_parent_run(study, paths, files, done)


def _rank(study: Study, trial: FrozenTrial) -> tuple[bool, float, int]:
    """Put the best first, then those that were pruned or failed in their order."""
    if trial.state != TrialState.COMPLETE or trial.value is None:
        return True, 0.0, trial.number
    return False, -trial.value if study.plan.direction == "maximize" else trial.value, trial.number


def _table(study: Study, trials: list[FrozenTrial]) -> Table:
    metric = describe(study.plan.metric)
    assert metric is not None
    table = Table(box=None, pad_edge=False)
    table.add_column("trial", no_wrap=True)
    table.add_column("", no_wrap=True)
    table.add_column(study.plan.metric, justify="right", no_wrap=True)
    for name in study.plan.spell({}):
        table.add_column(name, justify="right", overflow="fold")
    for trial in trials:
        value = spell_value(trial.value, metric.form) if trial.state == TrialState.COMPLETE else ""
        cells = study.plan.spell(trial.params).values()
        table.add_row(study.plan.name_of(trial.number), STATES.get(trial.state, "runs"), value, *cells)
    return table


def _best(study: Study, trial: FrozenTrial) -> str:
    """Name the command that applies the best trial."""
    name = study.plan.name_of(trial.number)
    host = trial.user_attrs.get("host", "")
    return (
        f"best: {name} (on {host}); `dvc exp apply {name}` brings it back, then `dvc repro` runs the stages after "
        f"{study.plan.stage}"
    )


def _plots(study: Study, done: list[FrozenTrial], folder: Path) -> tuple[list[Path], list[str]]:
    """Plot how the best value was found, and which parameters matter; note what Optuna cannot plot."""
    ways: dict[str, Callable[..., Any]] = {
        "history": plots.plot_optimization_history,
        "importance": plots.plot_param_importances,
    }
    written, notes = [], []
    for name, plot in ways.items():
        try:
            with warnings.catch_warnings(record=True) as said, mpl.rc_context({"backend": "agg"}):
                warnings.simplefilter("always")
                warnings.simplefilter("ignore", ExperimentalWarning)
                axes = plot(study.optuna, target_name=study.plan.metric)
        except (ValueError, RuntimeError) as error:
            notes.append(f"no plot of {name}: {error}")
            continue
        if name == "history" and _cut(
            axes, [trial.value for trial in done if trial.value is not None], study.plan.direction
        ):
            notes.append("history: trials that are much worse than the others are not shown")
        notes += [f"{name}: {one.message}" for one in said]
        with whole_file(folder / f"{name}.png") as partial:
            axes.figure.savefig(partial, format="png", dpi=DPI, bbox_inches="tight")
        plt.close(axes.figure)
        written.append(folder / f"{name}.png")
    return written, notes


def _cut(axes: Any, values: list[float], direction: str) -> bool:
    """End the axis of values before those that would squeeze the others; return whether there are such."""
    best = max(values) if direction == "maximize" else min(values)
    reach = TALL * (statistics.median(abs(value - best) for value in values) or abs(best) or 1.0)
    shown = [value for value in values if abs(value - best) <= reach]
    if len(shown) == len(values):
        return False
    margin = MARGIN * ((max(shown) - min(shown)) or abs(best) or 1.0)
    axes.set_ylim(min(shown) - margin, max(shown) + margin)
    return True


def _close_parent_run(study: Study, paths: Paths, files: list[Path], done: list[FrozenTrial]) -> None:
    """Log the best value and the plots on the MLflow run of the study, and close it."""
    known = study.optuna.user_attrs.get(run_key(address(paths)), "")
    if not known or address(paths) == OFF:
        return
    run = track.connect(paths).sweep_run(study.plan.study, known)
    if done:
        run.set_tags({"reparam.best_trial": study.plan.name_of(done[0].number)})
        run.log_metrics({f"best/{study.plan.metric}": float(done[0].value or 0.0)})
    run.log_files(files)
    run.close("FINISHED")
