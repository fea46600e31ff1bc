"""What looks after a training from step to step: checkpoints now and then, and an orderly end on a signal."""

import logging
import os
import time

import torch

from reparam.errors import UserError
from reparam.threads import OthersCompute, others_came
from reparam.train.checkpoint import Checkpoints
from reparam.train.rollback import Rollback
from reparam.train.signals import StopRequest
from reparam.train.state import State, Stateful

CHECKPOINT_SECONDS = 60.0  # what a kill may cost; a checkpoint itself takes milliseconds

log = logging.getLogger(__name__)


class Keeper:
    """Keeps checkpoints of a training, at most one in `seconds`; without `checkpoints`, none."""

    def __init__(
        self, state: State, rollback: Rollback, stop: StopRequest, checkpoints: Checkpoints | None, seconds: float
    ) -> None:
        self.state = state
        self.stop = stop
        self.checkpoints = checkpoints
        self.seconds = seconds
        self.owners: dict[str, Stateful] = {"state": state, "rollback": rollback}
        self._saved = time.monotonic()

    def resume(self) -> bool:
        """Go on from the newest checkpoint; say whether there was one."""
        world = self.state.trainer.world
        # The first process alone writes them, so it alone may have them: the others can be on machines of their own.
        saved = world.agree_on(self.checkpoints.read() if self.checkpoints and world.is_first else None)
        if saved is not None:
            for name, owner in self.owners.items():
                owner.load_state_dict(saved[name])
        return saved is not None

    def after_step(self) -> None:
        """Save a checkpoint when it is time, or when somebody asked training to end; then end it.

        Where others have begun to compute, end as well, to go on from the checkpoint beside them.
        """
        if not self.stop and time.monotonic() - self._saved < self.seconds:
            return
        world, is_saved = self.state.trainer.world, False
        if self.checkpoints and world.is_first and not self.state.epoch.sums.is_spoilt():
            is_saved = self._save(self.checkpoints)
        self._saved = time.monotonic()
        if self.stop:
            raise SystemExit(self.stop.exit_code)
        if is_saved and world.size == 1 and others_came(torch.get_num_threads()):
            raise OthersCompute

    def _save(self, checkpoints: Checkpoints) -> bool:
        try:
            checkpoints.write({name: owner.state_dict() for name, owner in self.owners.items()})
        except OSError as error:
            log.warning("%s: no checkpoint could be written, going on without: %s", checkpoints.directory, error)
            return False
        return True


def seconds_between_checkpoints() -> float:
    """Read REPARAM_CHECKPOINT_SECONDS.

    Raises: UserError.
    """
    text = os.environ.get("REPARAM_CHECKPOINT_SECONDS", str(CHECKPOINT_SECONDS))
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not seconds >= 0:
        raise UserError(f"REPARAM_CHECKPOINT_SECONDS: wanted a number of seconds, found {text!r}; mend or unset it")
    return seconds
