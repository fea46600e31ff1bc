"""The time that a file may take, whatever its servers do."""

import math
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, wait

from reparam.data.sources.faults import LateError
from reparam.machine.environment import real

SECONDS = 3600.0  # at 0.4 MB/s enough for the largest file, 1.4 GB of CelebA; what has arrived by then is kept
WANTED = "a number of seconds from 0.001 to 1e9"  # beyond it, the waits of Python overflow


class Deadline:
    """The time for one file, with all of its sources and tries; it begins now.

    The time-out of `requests` limits the pause between two reads. It limits neither slow headers nor the total time.
    """

    def __init__(self) -> None:
        self.seconds = real("REPARAM_DOWNLOAD_SECONDS", SECONDS, WANTED, 1e-3, 1e9)
        self._end = time.monotonic() + self.seconds

    @property
    def is_over(self) -> bool:
        return time.monotonic() >= self._end

    def check(self) -> None:
        """Raise LateError when the time is up."""
        if self.is_over:
            raise LateError("not finished when the time was up")

    def run(self, work: Callable[[], None]) -> None:
        """Do some work in a thread, and abandon it when the time is up, because reads cannot be interrupted.

        Raises: LateError, and what the work raises.
        """
        if self.is_over:
            raise LateError("not tried, because the time was up")
        done: Future[None] = Future()
        threading.Thread(target=_do, args=(work, done), daemon=True).start()
        try:
            wait([done], timeout=self._end - time.monotonic())
        finally:
            if not done.done():
                self._end = -math.inf  # Ctrl-C abandons the work, too: it stops at its next check
        if not done.done():
            self.check()
        done.result()


def _do(work: Callable[[], None], done: "Future[None]") -> None:
    try:
        work()
    except Exception as error:  # noqa: BLE001  raised again where the result is waited for
        done.set_exception(error)
    else:
        done.set_result(None)
