"""Send the calls of a stage to the recorder, the process that logs them to MLflow (recorder.py).

A call is a line of JSON, and one line of JSON answers it: `{"answer": value}` or `{"error": message}`. The next call is
not sent before the answer is there, so that no buffer can fill up.
"""

import json
import os
import socket
import threading
import time
import weakref
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, TextIO

from reparam.errors import TrackingError
from reparam.paths import Paths
from reparam.track.meeting import ASKED_FOR, Meeting
from reparam.track.spool import Call

ANSWER_SECONDS = 60.0  # for one answer; MLflow itself gives up on a server after 10 s
INTERRUPTED = "the stage was interrupted while it waited for an answer"
SLOWEST_UPLOAD = 1e5  # bytes/s; a file gets as much time more


class Channel:
    """Makes calls one after the other in a thread, so that a stage waits only for the answers that it asks for."""

    def __init__(self, exchange: Callable[[Call], Any], cut: Callable[[], None]) -> None:
        self.exchange = exchange
        self._cut = cut
        self._thread = ThreadPoolExecutor(max_workers=1)
        self._sent: list[Future[None]] = []

    def ask(self, call: Call) -> Any:
        """Wait for the answer to a call. Raises: TrackingError."""
        return self._result(self._thread.submit(self.exchange, call))

    def send(self, deliver: Callable[[Call], None], call: Call) -> None:
        """Let the thread deliver a call when its turn comes."""
        self._sent.append(self._thread.submit(deliver, call))

    def wait(self) -> None:
        """Wait until all that was sent is delivered."""
        while self._sent:
            self._result(self._sent.pop(0))

    def _result(self, future: Future[Any]) -> Any:
        try:
            return future.result()
        except (KeyboardInterrupt, SystemExit):
            self._cut()  # else Python waits at its end for the thread, and the thread for an answer
            raise


class Recorder:
    """A stage's connection to the recorder."""

    def __init__(self, paths: Paths) -> None:
        self._meeting = Meeting.of(paths)
        self._connection = self._meeting.find(paths)
        self._lines = self._connection.makefile("rw", encoding="utf-8")
        own = {name: os.environ[name] for name in ASKED_FOR if name in os.environ}
        self._lines.write(json.dumps(own) + "\n")
        self._is_cut = False
        weakref.finalize(self, _close, self._connection, self._lines)

    def exchange(self, call: Call) -> Any:
        """Hand over a call and return the answer. Raises: TrackingError if the store or the recorder fails."""
        patience = ANSWER_SECONDS + _size(call) / SLOWEST_UPLOAD
        watchdog = threading.Timer(patience, self._meeting.kill)
        started = time.monotonic()
        watchdog.start()
        line = self._write_and_read(json.dumps(call))
        watchdog.cancel()
        if not line.endswith("\n"):
            is_late = time.monotonic() - started >= patience
            how = f"did not answer within {patience:.0f} s" if is_late else f"ended; see {self._meeting.log}"
            raise TrackingError(INTERRUPTED if self._is_cut else f"the process that speaks to MLflow {how}")
        answer = json.loads(line)
        if "error" in answer:
            raise TrackingError(answer["error"])
        return answer["answer"]

    def _write_and_read(self, line: str) -> str:
        """Return the line that answers a line, nothing if the recorder ended."""
        try:
            self._lines.write(line + "\n")
            self._lines.flush()
            return self._lines.readline()
        except OSError:
            return ""

    def cut(self) -> None:
        """Hang up: whoever waits for an answer learns that there is none."""
        self._is_cut = True
        with suppress(OSError):
            self._connection.shutdown(socket.SHUT_RDWR)


def _size(call: Call) -> int:
    if "path" not in call:
        return 0
    path = Path(call["path"])
    return sum(file.stat().st_size for file in (path, *path.rglob("*")) if file.is_file())


def _close(connection: socket.socket, lines: TextIO) -> None:
    # Every call was answered, or nobody waits for its answer; the pipe breaks if a call was never sent.
    with suppress(OSError), connection:
        lines.close()
