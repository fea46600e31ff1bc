"""From what the user calls an experiment to what is known of it."""

from reparam.compare import revisions, runs
from reparam.compare.experiment import Experiment
from reparam.errors import TrackingError, UserError
from reparam.paths import Paths


def find(name: str, paths: Paths) -> Experiment:
    """Read the working copy, else a revision or an experiment of DVC, else a run of MLflow.

    Raises: UserError where it is none of them.
    """
    if name == revisions.WORKSPACE:
        return revisions.read_workspace(paths)
    wanted = "wanted `workspace`, a revision of git, an experiment of DVC, or a run of MLflow"
    if not name:
        raise UserError(f"compare: {wanted}, found an empty name")
    found = revisions.read_revision(name, paths)
    if found is not None:
        return found
    try:
        found = runs.read_run(name, paths)
    except TrackingError as error:
        raise TrackingError(f"{name}: no revision of git and no experiment of DVC; {error}") from None
    if found is None:
        raise UserError(
            f"{name}: {wanted} (an id, 6 or more digits of it, or a name), found none; `dvc exp show` lists "
            "experiments, `mlflow ui` (with --backend-store-uri as `reparam summary` prints it) lists runs"
        )
    return found
