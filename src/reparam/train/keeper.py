"""Write checkpoints during training, and end it in order on a signal."""

import logging
import time

import torch

from reparam.machine.environment import seconds
from reparam.machine.threads import OthersCompute, others_came
from reparam.train.checkpoint import Checkpoints
from reparam.train.pace import Pace
from reparam.train.rollback import Rollback
from reparam.train.signals import StopRequest
from reparam.train.state import Shared, State

CHECKPOINT_SECONDS = 60.0  # a kill may cost this much work; a checkpoint takes milliseconds

log = logging.getLogger(__name__)


class Keeper:
    """Keeps checkpoints of a training, at most one every `seconds`; none if `checkpoints` is None."""

    def __init__(
        self, state: State, rollback: Rollback, stop: StopRequest, checkpoints: Checkpoints | None, seconds: float
    ) -> None:
        self.state = state
        self.stop = stop
        self.checkpoints = checkpoints
        self.seconds = seconds
        self.owners: dict[str, Shared] = {"state": state, "rollback": rollback}
        self._saved = time.monotonic()
        self._pace = Pace(state.trainer.world, seconds)

    def resume(self) -> bool:
        """Go on from the newest checkpoint; say whether there was one."""
        world = self.state.trainer.world
        # Only the first process writes checkpoints, and the others may be on machines that do not have them.
        saved = world.agree_on(self.checkpoints.read() if self.checkpoints and world.is_first else None)
        if saved is None:
            return False
        own = saved["others"].get(str(world.rank))
        for name, owner in self.owners.items():
            owner.load_state_dict(owner.with_own_part(saved[name], own[name]) if own else saved[name])
        return True

    def after_step(self) -> None:
        """Save a checkpoint when it is due or after a signal.

        End after a signal, and also when other processes compute: training then restarts from the checkpoint with
        sleeping threads.
        """
        if self._pace.is_due():
            self._save_or_end()

    def ends_validation(self) -> bool:
        """Return whether validation must end at once; several processes end it together, in `after_validation`."""
        return bool(self.stop) and self.state.trainer.world.size == 1

    def after_validation(self) -> None:
        """End training if a signal came meanwhile."""
        if self.stop or self.state.trainer.world.size > 1:
            self._save_or_end()

    def _save_or_end(self) -> None:
        is_time = bool(self.stop) or time.monotonic() - self._saved >= self.seconds
        is_time, signal = self._pace.ask(wants_to_save=is_time, signal=self.stop.signal)
        if not is_time and not signal:
            return
        is_saved = self.checkpoints is not None and self._save(self.checkpoints)
        self._saved = time.monotonic()
        if signal:
            raise SystemExit(128 + signal)  # as shells report it
        if is_saved and self.state.trainer.world.size == 1 and others_came(torch.get_num_threads()):
            raise OthersCompute

    def _save(self, checkpoints: Checkpoints) -> bool:
        """Let the first process write a checkpoint of all, unless the loss is spoilt; return whether it did."""
        world, saved = self.state.trainer.world, {name: owner.state_dict() for name, owner in self.owners.items()}
        own = {name: owner.own_part(saved[name]) for name, owner in self.owners.items()}
        everyone = world.collect((self.state.epoch.sums.is_spoilt(), own))
        if not everyone or any(is_spoilt for is_spoilt, _ in everyone):
            return False
        others = {str(rank): part for rank, (_, part) in enumerate(everyone) if rank}
        try:
            checkpoints.write({**saved, "others": others})
        except OSError as error:
            log.warning("%s: no checkpoint could be written, going on without: %s", checkpoints.directory, error)
            return False
        return True


def seconds_between_checkpoints() -> float:
    """Read REPARAM_CHECKPOINT_SECONDS. Raises: UserError."""
    return seconds("REPARAM_CHECKPOINT_SECONDS", CHECKPOINT_SECONDS)
