"""Back to the last good epoch, with half the learning rate, where the loss is no longer finite."""

import logging
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from reparam.errors import NonFiniteError
from reparam.train.state import State

ROLLBACKS = 3  # a learning rate that is still too high at an eighth is not the trouble

log = logging.getLogger(__name__)


class Rollback:
    """Remembers the last good epoch, and takes training back to it; switched off, it does neither."""

    def __init__(self, state: State, *, is_on: bool) -> None:
        self.state = state
        self.is_on = is_on
        self.count = 0
        self.good: dict[str, Any] = {}

    def remember(self) -> None:
        """Remember the state of a good epoch."""
        if self.is_on:
            self.good = _copy(self.state.state_dict())

    def go_back(self, error: NonFiniteError) -> None:
        """Go back to the remembered state, at most ROLLBACKS times; then raise the error."""
        if not self.is_on or self.count == ROLLBACKS:
            raise error
        trainer = self.state.trainer
        self.count, factor = self.count + 1, trainer.rate_factor / 2
        self.state.load_state_dict(self.good)
        trainer.slow_down(factor)
        log.warning("%s", error)
        log.warning(
            "train: back to the end of epoch %d, learning rate times %g (%d of %d times)",
            len(self.state.record.history),
            factor,
            self.count,
            ROLLBACKS,
        )

    def state_dict(self) -> dict[str, Any]:
        # With the good epoch: an interruption must not change where a roll-back leads.
        return {"count": self.count, "good": self.good}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.count, self.good = state["count"], dict(state["good"])

    def own_part(self, state: Mapping[str, Any]) -> dict[str, Any]:
        return {"good": self.state.own_part(state["good"]) if state["good"] else {}}

    def with_own_part(self, state: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
        return {**state, "good": self.state.with_own_part(state["good"], own["good"])} if own["good"] else dict(state)


def _copy(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach().clone()
    if isinstance(value, Mapping):
        return {name: _copy(part) for name, part in value.items()}
    return list(value) if isinstance(value, list) else value
