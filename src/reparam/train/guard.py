"""What looks after training from step to step: checkpoints, signals, roll-backs."""

import logging
import os
import signal
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import FrameType
from typing import Any

import torch
from torch import Tensor

from reparam.config import TrainConfig
from reparam.errors import NonFiniteError, UserError
from reparam.train.checkpoint import Checkpoints
from reparam.train.loop import Fit, Sums
from reparam.train.step import Step

CHECKPOINT_SECONDS = 60.0  # what a kill may cost; a checkpoint itself takes milliseconds
ROLLBACKS = 3  # a learning rate that is still too high at an eighth is not the trouble

log = logging.getLogger(__name__)


class Guard:
    """Looks after training: writes checkpoints, ends on a signal, and rolls back when the loss is no longer finite."""

    def __init__(
        self, step: Step, fit: Fit, config: TrainConfig, checkpoints: Checkpoints | None, seconds: float
    ) -> None:
        """Without `checkpoints`, none are read or written; `seconds` is the time between two."""
        self.step = step
        self.fit = fit
        self.config = config
        self.checkpoints = checkpoints
        self.seconds = seconds
        self.rollbacks = 0
        self.signal = 0
        self._written = time.monotonic()
        self._good: Any = None

    @property
    def is_stopping(self) -> bool:
        return self.signal != 0

    def resume(self) -> bool:
        """Go on from the newest checkpoint; say whether there was one."""
        world = self.step.world
        # The first process alone writes them, so it alone may have them: the others can be on machines of their own.
        state = world.agree_on(self.checkpoints.read() if self.checkpoints and world.is_first else None)
        if state is not None:
            self._restore(state)
            self._good = state["good"] or None
        return state is not None

    def after_step(self) -> None:
        """Write a checkpoint when it is time, or when somebody wants training to end; then end it."""
        if not self.signal and time.monotonic() - self._written < self.seconds:
            return
        if self.checkpoints and self.step.world.is_first and not self.fit.seen.is_spoilt():
            self._write(self.checkpoints)
        self._written = time.monotonic()
        if self.signal:
            raise SystemExit(128 + self.signal)  # as a shell tells it

    def _write(self, checkpoints: Checkpoints) -> None:
        try:
            # With what a roll-back would go back to: an interrupted epoch must not change where that is.
            checkpoints.write(self._state() | {"good": self._good or {}})
        except OSError as error:
            log.warning("%s: no checkpoint could be written, going on without: %s", checkpoints.directory, error)

    def after_epoch(self) -> None:
        self._remember()

    def draw_apart(self) -> None:
        """Let no two processes draw the same noise, nor add up the same sums after an interruption."""
        step, seen = self.step, self.fit.seen
        if step.world.rank:
            torch.manual_seed(self.config.seed + step.world.rank + step.world.size * step.images)
            seen.totals, seen.images = torch.zeros_like(seen.totals), 0

    def roll_back(self, error: NonFiniteError) -> None:
        """Go back to the last good epoch with half the learning rate, ROLLBACKS times at most; else raise."""
        if self.config.on_nonfinite == "stop" or self.rollbacks == ROLLBACKS:
            raise error
        rollbacks, factor = self.rollbacks + 1, self.step.rate_factor / 2
        self._restore(self._good)
        self.rollbacks, self.step.rate_factor = rollbacks, factor
        self._remember()
        log.warning("%s", error)
        log.warning(
            "train: back to the end of epoch %d, learning rate times %g (%d of %d times)",
            len(self.fit.history),
            factor,
            rollbacks,
            ROLLBACKS,
        )

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Let SIGTERM or SIGINT end training after the running step, with a checkpoint; a second one at once."""

        def note(number: int, _frame: FrameType | None) -> None:
            if self.signal:
                raise SystemExit(128 + number)
            self.signal = number

        if self._good is None:
            self._remember()
        before = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _remember(self) -> None:
        if self.config.on_nonfinite == "rollback":
            self._good = _copy(self._state())

    def _state(self) -> dict[str, Any]:
        fit = self.fit
        return {
            "step": self.step.state(),
            "random": {"cpu": torch.get_rng_state(), "cuda": _cuda_random_state()},
            "history": fit.history,
            "best": {"score": fit.best_score, "epoch": fit.best_epoch, "weights": fit.best_weights},
            "order": {} if fit.order is None else {"rows": fit.order},
            "position": fit.position,
            "seen": {
                "names": fit.seen.names,
                "totals": fit.seen.totals,
                "images": fit.seen.images,
                "steps": fit.seen.steps,
            },
            "rollbacks": self.rollbacks,
        }

    def _restore(self, state: Mapping[str, Any]) -> None:
        device = self.step.module.seen.device
        self.step.restore(state["step"])
        fit, best, seen = self.fit, state["best"], state["seen"]
        fit.history = list(state["history"])
        fit.best_score, fit.best_epoch = best["score"], best["epoch"]
        fit.best_weights = {name: tensor.to(device) for name, tensor in best["weights"].items()}
        fit.position = state["position"]
        fit.order = state["order"]["rows"] if state["order"] else None
        fit.seen = Sums()
        fit.seen.names, fit.seen.totals = list(seen["names"]), seen["totals"].clone().to(device)
        fit.seen.images, fit.seen.steps = seen["images"], seen["steps"]
        self.rollbacks = state["rollbacks"]
        torch.set_rng_state(state["random"]["cpu"])
        if state["random"]["cuda"]:
            torch.cuda.set_rng_state(state["random"]["cuda"]["state"])
        self.draw_apart()


def _cuda_random_state() -> dict[str, Tensor]:
    is_used = torch.cuda.is_available() and torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    return {"state": torch.cuda.get_rng_state()} if is_used else {}


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


def _copy(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach().clone()
    if isinstance(value, Mapping):
        return {name: _copy(part) for name, part in value.items()}
    return list(value) if isinstance(value, list) else value
