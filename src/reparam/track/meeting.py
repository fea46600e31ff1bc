"""Find the recorder of a stage's store, or start it.

Loading MLflow takes seconds, so stages that follow each other share one recorder. It listens on a socket, whose name is
a hash of the store, the working copy, the environment and the version of this package.
"""

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from hashlib import sha256
from pathlib import Path

from filelock import FileLock

from reparam.lineage import package_hash
from reparam.machine import private
from reparam.machine.environment import seconds
from reparam.paths import Paths
from reparam.track.store import address

PER_STAGE = ("DVC_", "REPARAM_", "PYTEST_")  # beginnings of variables that may differ from stage to stage
ASKED_FOR = ("DVC_EXP_NAME", "DVC_EXP_BASELINE_REV", "REPARAM_PARENT_RUN")  # a recorder asks for these
PER_SHELL = ("_", "SHLVL", "PWD", "OLDPWD")


class Meeting:
    """The place where stages and their recorder meet."""

    def __init__(self, socket_: Path) -> None:
        self.socket = socket_
        self.log = socket_.with_suffix(".log")  # what the recorder writes
        self.number = socket_.with_suffix(".pid")

    @classmethod
    def of(cls, paths: Paths) -> "Meeting":
        """Name the place by everything that a recorder must not mix up. Raises: UserError."""
        idle_seconds()
        environment = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(PER_STAGE) and name not in PER_SHELL
        }
        parts = (address(paths), str(paths.root), str(paths.shared), str(Path.cwd()), sys.executable, package_hash())
        name = sha256(json.dumps([*parts, environment], sort_keys=True).encode()).hexdigest()[:24]
        return cls(private.directory() / f"{name}.socket")  # not in the repository: names of sockets must be short

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Keep others from finding, starting and ending the recorder meanwhile."""
        with FileLock(self.socket.with_name("lock")):
            yield

    def find(self, paths: Paths) -> socket.socket:
        """Return a connection to the recorder, which may still be loading MLflow."""
        with self.alone():
            with suppress(FileNotFoundError, ConnectionRefusedError):  # none was started, or it died
                return self._dial()
            self._start(paths)
            return self._dial()

    def kill(self) -> None:
        """End a recorder that does not answer."""
        with suppress(OSError, ValueError):
            os.kill(int(self.number.read_text(encoding="ascii")), signal.SIGKILL)

    def leave(self) -> None:
        """Remove the files that name the recorder, because it ends."""
        for path in (self.socket, self.number, self.log):
            path.unlink(missing_ok=True)

    def _dial(self) -> socket.socket:
        connection = socket.socket(socket.AF_UNIX)
        try:
            connection.connect(str(self.socket))
        except OSError:
            connection.close()
            raise
        return connection

    def _start(self, paths: Paths) -> None:
        self.leave()
        source = str(Path(__file__).parents[2])
        path = os.pathsep.join(filter(None, (source, os.environ.get("PYTHONPATH"))))
        with socket.socket(socket.AF_UNIX) as listening, self.log.open("w", encoding="utf-8") as log:
            listening.bind(str(self.socket))
            listening.listen()
            given = (paths.root, paths.shared, self.socket, listening.fileno())
            process = subprocess.Popen(
                [sys.executable, "-P", "-m", "reparam.track.recorder", *map(str, given)],
                env={**os.environ, "PYTHONPATH": path},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=[listening.fileno()],
                start_new_session=True,  # Ctrl-C reaches the stage alone
            )
        self.number.write_text(f"{process.pid}\n", encoding="ascii")
        process.returncode = 0  # it outlives this process: keep Python from warning of it


def idle_seconds() -> float:
    """Return how long a recorder waits for the next stage before it ends. Raises: UserError."""
    return seconds("REPARAM_RECORDER_SECONDS", 10.0)
