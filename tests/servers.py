"""Real servers that tests and benchmarks start: MLflow and PostgreSQL."""

import importlib.util
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

PASSWORD = "correct-horse-battery"
SECONDS = 120  # for a server to start


class MissingError(LookupError):
    """A program or a package that a server needs is not there."""


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


@contextmanager
def running(command: Sequence[str | Path], address: str, log: Path, **variables: str) -> Iterator[str]:
    """Run a server until the block ends; yield its address once it answers."""
    with log.open("w") as output:
        environment = {**os.environ, **variables}
        process = subprocess.Popen(
            command, env=environment, stdout=output, stderr=subprocess.STDOUT, cwd=log.parent, start_new_session=True
        )
    try:
        deadline = time.monotonic() + SECONDS
        while not _answers(address):
            assert process.poll() is None, log.read_text()[-3000:]
            assert time.monotonic() < deadline, log.read_text()[-3000:]
            time.sleep(0.2)
        yield address
    finally:
        _end(process)


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a server and all that it started, also one that waits for its clients on a busy machine."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with suppress(subprocess.TimeoutExpired):
            process.wait(30)
    assert process.returncode is not None


def _answers(address: str) -> bool:
    try:
        with urlopen(address, timeout=5):
            return True
    except URLError as error:
        return getattr(error, "code", 0) == 401
    except OSError:
        return False


@contextmanager
def postgres() -> Iterator[str]:
    """A PostgreSQL of its own; yield the address of an empty database. Raises: MissingError."""
    if not importlib.util.find_spec("psycopg"):
        raise MissingError("the driver of PostgreSQL is not there: pip install 'psycopg[binary]'")
    programs = sorted(map(str, Path("/usr/lib/postgresql").glob("*/bin/initdb")))
    found = shutil.which("initdb") or (programs[-1] if programs else None)
    if not found:
        raise MissingError("PostgreSQL is not there: apt-get install postgresql")
    # Not below the folder of a test, which other users cannot enter: PostgreSQL refuses to run as root.
    with tempfile.TemporaryDirectory() as folder:
        account = pwd.getpwnam("postgres") if os.getuid() == 0 else pwd.getpwuid(os.getuid())
        os.chown(folder, account.pw_uid, account.pw_gid)

        def run(program: str, *arguments: str) -> None:
            command = [Path(found).with_name(program), "--pgdata", f"{folder}/data", *arguments]
            user = {"user": account.pw_uid, "group": account.pw_gid} if os.getuid() == 0 else {}
            done = subprocess.run(command, cwd=folder, capture_output=True, text=True, **user)
            assert done.returncode == 0, done.stdout + done.stderr

        password, port = Path(folder, "password"), free_port()
        password.write_text(PASSWORD)
        password.chmod(0o644)
        run("initdb", "--username", "mlflow", "--auth", "scram-sha-256", "--pwfile", str(password))
        options = f"-p {port} -c listen_addresses=127.0.0.1 -c unix_socket_directories={folder}"
        run("pg_ctl", "--log", f"{folder}/log", "--wait", "--options", options, "start")
        try:
            yield f"postgresql+psycopg://mlflow:{PASSWORD}@127.0.0.1:{port}/postgres"
        finally:
            run("pg_ctl", "--mode", "immediate", "stop")


@contextmanager
def mlflow_server(root: Path, database: str, *options: str, **variables: str) -> Iterator[str]:
    """`mlflow server`, which stores artifacts itself, below a folder that is there; yield its address."""
    port = free_port()
    command = [sys.executable, "-m", "mlflow", "server", *options, "--port", str(port)]
    command += ["--backend-store-uri", database, "--artifacts-destination", str(root / "artifacts"), "--workers", "1"]
    address = f"http://127.0.0.1:{port}"
    with running(command, f"{address}/health", root / "log", **variables):
        yield address
