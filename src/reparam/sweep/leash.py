"""Run a command that ends when its owner does: on a signal, a crash, or because the owner wants it.

The owner holds the other end of our input. When that closes, the whole process group of the command gets SIGINT, then
SIGTERM, then SIGKILL. This file is also the program that sends them; it needs nothing but Python.
"""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import IO

PATIENCE = 15.0  # seconds for each of the signals; a training saves a checkpoint after the running step
# SIGINT first: DVC removes its copy of the project, and a training keeps a checkpoint.
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGKILL)
LONGEST = PATIENCE * len(SIGNALS)  # seconds that a command can outlive its owner


class Leashed:
    """A running command, which does not outlive this process by more than LONGEST seconds."""

    def __init__(self, command: Sequence[str], environment: Mapping[str, str], output: IO[bytes] | None = None) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-I", __file__, *command],
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=None if output is None else subprocess.STDOUT,
            env=dict(environment),
            start_new_session=True,  # Ctrl-C reaches the owner alone, which decides
        )

    def poll(self) -> int | None:
        """Return the exit code of the command; None while it runs."""
        return self._process.poll()

    def wait(self) -> int:
        """Wait for the end of the command, and return its exit code."""
        code = self._process.wait()
        self.end()
        return code

    def end(self) -> None:
        """End the command and all that it started, and wait until it has ended."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


def main() -> None:
    """Run the command in the arguments, and exit with its code."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: None)  # not ignored, which the command would inherit
    command = subprocess.Popen(sys.argv[1:], stdin=subprocess.DEVNULL, process_group=0)
    watch = threading.Thread(target=_watch, args=(command,), daemon=True)
    watch.start()
    code = command.wait()
    if _is_let_go.is_set():
        watch.join()
    os._exit(code if code >= 0 else 128 - code)


def _watch(command: "subprocess.Popen[bytes]") -> None:
    """When nobody holds our input any more, end the group of the command."""
    while os.read(0, 1):
        pass
    _is_let_go.set()
    for number in SIGNALS:
        with suppress(ProcessLookupError):
            os.killpg(command.pid, number)
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            try:
                os.killpg(command.pid, 0)
            except ProcessLookupError:
                return
            time.sleep(0.05)


_is_let_go = threading.Event()

if __name__ == "__main__":
    main()
