"""SIGTERM and SIGINT end training after the running step."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class StopRequest:
    """Whether somebody asked training to end."""

    def __init__(self) -> None:
        self.signal = 0  # the number of the signal; 0: none

    def __bool__(self) -> bool:
        return self.signal != 0

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Note the first signal; end the process at once on a second one."""

        def note(number: int, _frame: FrameType | None) -> None:
            # torchrun passes on a signal that its processes may have received already.
            if self.signal and "LOCAL_RANK" not in os.environ:
                raise SystemExit(128 + number)
            self.signal = number

        before = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
