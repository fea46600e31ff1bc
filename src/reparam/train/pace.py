"""Let several processes agree whether to save or to end: after the same step, about once a second."""

import time

from reparam.distributed import World

SECONDS = 1.0  # between two questions; each costs the exchange of a few numbers


class Pace:
    """Counts the steps until processes ask each other again; a single process may ask after each."""

    def __init__(self, world: World, seconds: float) -> None:
        self.world = world
        self.seconds = min(seconds, SECONDS)
        self._steps = self._left = 1
        self._asked = time.monotonic()

    def is_due(self) -> bool:
        """Count a step, and say whether it is time to ask."""
        self._left -= 1
        return self.world.size == 1 or self._left <= 0

    def ask(self, *, wants_to_save: bool, signal: int) -> tuple[bool, int]:
        """Return whether the first process wants to save, and a signal that any process received."""
        if self.world.size == 1:
            return wants_to_save, signal
        now, is_first = time.monotonic(), self.world.is_first
        done = self._steps - self._left or self._steps  # fewer than planned, if an epoch ended before
        steps = int(done * self.seconds / max(now - self._asked, 1e-3))
        steps = max(1, min(steps, 2 * done))  # the first ones are slow, for example while torch compiles
        save, signal, self._steps = self.world.most(is_first * wants_to_save, signal, is_first * steps)
        self._left, self._asked = self._steps, now
        return bool(save), signal
