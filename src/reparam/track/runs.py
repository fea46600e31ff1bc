"""The runs in a store: open them, find them, and go on with them.

One run per trained model is the row that people compare. `train` opens it and tags it with the hash of the weights it
wrote; `evaluate`, `export` and `report` find it by that tag, so lineage survives DVC's caches, queues, clones and
another machine.
"""

import getpass
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from reparam.errors import TrackingError
from reparam.machine import git
from reparam.machine.versions import versions
from reparam.redact import without_secrets
from reparam.track.delivery import Delivery
from reparam.track.spool import Spool
from reparam.track.store import Store, StoreError, store_errors, unusable

WEIGHTS_TAG = "reparam.weights_sha256"
PARAMS_TAG = "reparam.params_sha256"
DATA_TAG = "reparam.data_hash"
STAGE_TAG = "reparam.stage"
EXPERIMENT_TAG = "dvc.experiment"
PARENT_TAG = "mlflow.parentRunId"

Opened = tuple[str, str | None]  # the ids of a run and of its parent


@dataclass(frozen=True)
class Runs:
    """Opens runs in a store. Raises: TrackingError, everywhere."""

    store: Store
    environment: Mapping[str, str]  # of the stage

    def training(self, data_hash: str, resume: str, name: str = "train") -> Opened:
        """Open the run of one trained model, or go on with the one that was interrupted."""
        try:
            if self._reopen(resume):
                return resume, None
            tags = {STAGE_TAG: "train", DATA_TAG: data_hash}
            if study := self.environment.get("REPARAM_PARENT_RUN"):  # a row of the table still, below that of its study
                tags[PARENT_TAG] = study
            return self._open(self.store.experiment, tags, None, name)
        except StoreError as error:
            raise unusable(self.store.uri, error) from None

    def sweep(self, name: str, run_id: str) -> Opened:
        """Open the run of a study, or go on with it."""
        try:
            if self._reopen(run_id, is_over_too=True):
                return run_id, None
            return self._open(self.store.experiment, {STAGE_TAG: "sweep"}, None, name)
        except StoreError as error:
            raise unusable(self.store.uri, error) from None

    def has_training(self, tags: Mapping[str, str]) -> bool:
        """Return whether a finished training has these tags."""
        return bool(self._find(self.store.experiment, {STAGE_TAG: "train", **tags}))

    def child(self, stage: str, lineage: Mapping[str, str]) -> Opened:
        """Open a run below the training run of a model, if that is found."""
        weights = {WEIGHTS_TAG: lineage["weights_sha256"]}
        found = self._find(self.store.experiment, {STAGE_TAG: "train", **weights})
        # Equal weights can come from several parameters and experiments: these parameters and this experiment go first,
        # then the newest.
        wanted = {PARAMS_TAG: lineage.get("params_sha256"), EXPERIMENT_TAG: self.environment.get("DVC_EXP_NAME")}
        found.sort(key=lambda run: [run.data.tags.get(tag) != value for tag, value in wanted.items()])
        parent = str(found[0].info.run_id) if found else None
        return self._open(self.store.experiment, {STAGE_TAG: stage, **weights}, parent)

    def data(self, stage: str, data_hash: str) -> Opened | None:
        """Open a run in the experiment for data; return None if the same data was logged before."""
        experiment, tags = f"{self.store.experiment}-data", {STAGE_TAG: stage, DATA_TAG: data_hash}
        return None if self._find(experiment, tags) else self._open(experiment, tags, None)

    def epochs(self, run_id: str) -> list[int]:
        """Return the epochs of a run whose metrics the store has."""
        with store_errors():
            return [metric.step for metric in self.store.client.get_metric_history(run_id, "epoch")]

    def _find(self, experiment: str, tags: Mapping[str, str]) -> list[Any]:
        """Find finished runs, the newest first."""
        wanted = " and ".join(f"tags.`{name}` = '{value}'" for name, value in tags.items())
        wanted += " and attributes.status = 'FINISHED'"
        newest_first = ["attributes.start_time DESC"]
        with store_errors():
            return list(self.store.client.search_runs([self._experiment_id(experiment)], wanted, order_by=newest_first))

    def _reopen(self, run_id: str, *, is_over_too: bool = False) -> bool:
        """Go on with a run that never finished; return whether there is such a run in the experiment."""
        if not run_id:
            return False
        from mlflow.exceptions import MlflowException

        client = self.store.client
        with store_errors():
            try:
                info = client.get_run(run_id).info
            except MlflowException:
                return False  # of another store, or deleted
            is_open = (is_over_too or info.status != "FINISHED") and info.lifecycle_stage == "active"
            if not is_open or info.experiment_id != self._experiment_id(self.store.experiment):
                return False
            spool = Spool(self.store.paths.tracking_spool, run_id)
            if spool.calls.exists():  # or its old end would be delivered after the new one
                try:
                    spool.replay(Delivery(client))
                except TrackingError:
                    return False  # and the calls are kept for `reparam replay`
            client.update_run(run_id, status="RUNNING")
        return True

    def _open(self, experiment: str, tags: dict[str, str], parent: str | None, name: str = "") -> Opened:
        """Open a run. A training has the name of its DVC experiment, otherwise `name`; other stages have their own."""
        stage = tags[STAGE_TAG]
        tags = tags | self._provenance(stage) | ({PARENT_TAG: parent} if parent else {})
        name = tags.get(EXPERIMENT_TAG, name) if stage == "train" else name or stage
        with store_errors():
            run = self.store.client.create_run(self._experiment_id(experiment), tags=tags, run_name=name)
        return run.info.run_id, parent

    def _experiment_id(self, name: str) -> str:
        experiment = self.store.client.get_experiment_by_name(name) or self._create_experiment(name)
        if experiment.lifecycle_stage != "active":
            raise TrackingError(
                f"MLflow experiment {name!r} at {without_secrets(self.store.uri)} is deleted; restore it with `mlflow "
                "experiments restore`, or choose another name with MLFLOW_EXPERIMENT_NAME"
            )
        here = self.store.paths.tracking_artifacts.as_uri()
        if self.store.is_local and experiment.artifact_location != here:
            raise TrackingError(
                f"{self.store.paths.tracking_database}: wanted artifacts at {here}, found "
                f"{experiment.artifact_location}: the repository was moved or copied; move mlflow.db away to start a "
                "new one, or set MLFLOW_TRACKING_URI"
            )
        return str(experiment.experiment_id)

    def _create_experiment(self, name: str) -> Any:
        from mlflow.exceptions import MlflowException

        artifacts = self.store.paths.tracking_artifacts.as_uri() if self.store.uri.startswith("sqlite:") else None
        try:
            self.store.client.create_experiment(name, artifact_location=artifacts)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":  # another process was quicker
                raise
        return self.store.client.get_experiment_by_name(name)

    def _provenance(self, stage: str) -> dict[str, str]:
        """Say who runs what, of which DVC experiment, commit and versions, and whether the code was changed since."""
        tags = {
            "mlflow.user": _user(),
            "mlflow.source.name": f"reparam {stage}",
            "mlflow.source.type": "LOCAL",
            EXPERIMENT_TAG: self.environment.get("DVC_EXP_NAME", ""),
            "dvc.baseline": self.environment.get("DVC_EXP_BASELINE_REV", ""),
        }

        root = self.store.paths.root
        if commit := git.ask(root, "rev-parse", "HEAD"):
            changed = git.ask(root, "status", "--porcelain", "--", "src", "dvc.yaml")
            tags["mlflow.source.git.commit"] = commit
            tags["mlflow.source.git.dirty"] = str(bool(changed)).lower()
        tags |= {f"version.{name}": version for name, version in versions().items()}
        return {name: value for name, value in tags.items() if value}


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # in a container, a user without a name
        return ""
