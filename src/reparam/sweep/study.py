"""The study in a database: who has which trial, and what is left to do. Optuna is the engine."""

import hashlib
import platform
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
from optuna.exceptions import ExperimentalWarning
from optuna.storages import RDBStorage, RetryHeartbeatStaleTrialCallback
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.exc import SQLAlchemyError

from reparam.cards.card import SHORT
from reparam.config import params_hash
from reparam.config.yaml import read_yaml
from reparam.errors import StaleInputError, UserError
from reparam.lineage import source_hash
from reparam.paths import Paths
from reparam.redact import redact, without_secrets
from reparam.sweep.leash import LONGEST
from reparam.sweep.plan import Plan, changed

HEARTBEAT = 10  # seconds
DEAD = int(LONGEST) + 2 * HEARTBEAT  # seconds without a heartbeat: by then the processes of a dead worker have ended
LOCKED = 60  # seconds to wait for another process that writes to an SQLite file
RETRIES = 3  # of a trial whose worker died
MADE_OF = "reparam.made_of"
STAGES = ("download", "preprocess", "train", "evaluate", "export")  # in their order; a trial ends with one of them


@dataclass(frozen=True)
class Study:
    """An open study."""

    plan: Plan
    optuna: optuna.Study

    @property
    def trials(self) -> list[FrozenTrial]:
        """Return the trials, without those that another one repeats."""
        found = self.optuna.get_trials(deepcopy=False)
        repeated = {number for trial in found for number in first_tries(trial)}
        return [trial for trial in found if trial.number not in repeated]

    @property
    def is_over(self) -> bool:
        """Whether all trials have ended; trials of dead workers are handed on."""
        with _quiet():
            optuna.storages.fail_stale_trials(self.optuna)
        return self.left == 0 and not any(trial.state == TrialState.RUNNING for trial in self.trials)

    @property
    def left(self) -> int:
        """Count the trials that nobody has begun."""
        begun = sum(trial.state != TrialState.WAITING for trial in self.trials)
        return max(0, self.plan.trials - begun)

    def renew_sampler(self) -> None:
        """Let the next trial have random numbers of its own, whichever process asks."""
        self.optuna.sampler = _sampler(self.plan, len(self.optuna.get_trials(deepcopy=False)))

    def require_unchanged(self, paths: Paths) -> None:
        """Raise StaleInputError if parameters or code changed since the first trial."""
        _compare(self.plan.study, made_of(self.plan, paths), self.optuna.user_attrs[MADE_OF])

    def hand_on(self, number: int) -> None:
        """Let another worker repeat a trial that was interrupted."""
        with _quiet():
            RetryHeartbeatStaleTrialCallback()(self.optuna, self.optuna.get_trials(deepcopy=True)[number])


def run_key(store: str) -> str:
    """Name the attribute of a study that holds its MLflow run in a store; a file is one of this machine."""
    place = f"{platform.node()} {store}" if store.startswith("sqlite:") else without_secrets(store)
    return f"reparam.mlflow_run.{hashlib.sha256(place.encode()).hexdigest()[:SHORT]}"


def first_tries(trial: FrozenTrial) -> list[int]:
    """Return the numbers of the trials that this one repeats, the first one first."""
    with _quiet():
        return RetryHeartbeatStaleTrialCallback.retry_history(trial)


def default_storage(folder: Path) -> str:
    """Return the database that a repository has by default."""
    return f"sqlite:///{folder / 'studies.db'}"


def open_study(plan: Plan, url: str, paths: Paths) -> Study:
    """Join the study of a plan, or begin it.

    Raises: UserError if the database cannot be used; StaleInputError if the study was begun with other parameters
    or other code.
    """
    optuna.logging.set_verbosity(optuna.logging.ERROR)  # it reports each trial, as we do
    with _storage_errors(url), _quiet():
        file = url.removeprefix("sqlite:///")
        if file != url:
            Path(file).parent.mkdir(parents=True, exist_ok=True)
        storage = RDBStorage(
            url,
            engine_kwargs={"connect_args": {"timeout": LOCKED}} if file != url else None,
            heartbeat_interval=HEARTBEAT,
            grace_period=DEAD,
            heartbeat_stale_trial_callback=RetryHeartbeatStaleTrialCallback(max_retry=RETRIES),
        )
        study = optuna.create_study(
            storage=storage, study_name=plan.study, direction=plan.direction, pruner=_pruner(plan), load_if_exists=True
        )
        if MADE_OF not in study.user_attrs:
            study.set_user_attr(MADE_OF, made_of(plan, paths))
    found = Study(plan, study)
    found.require_unchanged(paths)
    return found


def made_of(plan: Plan, paths: Paths) -> dict[str, str]:
    """Hash the facts that all trials of a study share."""
    file = plan.file
    return {
        "metric": f"{plan.metric}, {plan.direction}",
        "params.yaml": params_hash(changed(read_yaml(paths.params), file.fixed)),
        "set of parameters": params_hash({"parameters": file.parameters}),
        "code": params_hash({stage: source_hash(stage) for stage in STAGES[: STAGES.index(plan.stage) + 1]}),
    }


def _compare(study: str, found: Mapping[str, str], wanted: Mapping[str, str]) -> None:
    different = [name for name in wanted if found[name] != wanted[name]]
    if different:
        raise StaleInputError(
            f"study {study}: {' and '.join(different)} changed since its first trial; restore what was there, or give "
            "the study another name in sweep.yaml"
        )


def _sampler(plan: Plan, number: int) -> optuna.samplers.BaseSampler:
    seed = (plan.file.seed + 1_000_003 * number) % 2**32
    match plan.file.sampler:
        case "grid":
            return optuna.samplers.GridSampler({path: one.grid for path, one in plan.space.items()}, plan.file.seed)
        case "random":
            return optuna.samplers.RandomSampler(seed)
    with _quiet():
        # With it, trials that run side by side try different values.
        return optuna.samplers.TPESampler(seed=seed, constant_liar=True)


def _pruner(plan: Plan) -> optuna.pruners.BasePruner:
    match plan.file.pruner:
        case "median":
            return optuna.pruners.MedianPruner()
        case "hyperband":
            return optuna.pruners.HyperbandPruner(max_resource=plan.epochs or "auto")
    return optuna.pruners.NopPruner()


@contextmanager
def _quiet() -> Iterator[None]:
    """Ignore that Optuna calls heartbeats and some samplers experimental."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        yield


@contextmanager
def _storage_errors(url: str) -> Iterator[None]:
    try:
        yield
    except (SQLAlchemyError, ImportError, ValueError, RuntimeError, OSError) as error:
        reason = redact(str(error).strip().splitlines()[0])
        raise UserError(
            f"--storage {without_secrets(url)}: wanted a database that SQLAlchemy can open, found: {reason}; start it, "
            "install its driver, or leave --storage out to use a local file"
        ) from None


def values_of(plan: Plan, trial: Any) -> Mapping[str, Any]:
    """Let Optuna choose the parameters of a trial."""
    return {path: one.suggest(trial, path) for path, one in plan.space.items()}
