"""Real servers for tests: MLflow with passwords, PostgreSQL, and one that speaks S3; each skips where it is missing."""

import base64
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

import pytest

USER, PASSWORD = "admin", "correct-horse-battery"
SECRETS = (PASSWORD, base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode())
SECONDS = 120  # for a server to start


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
    """A PostgreSQL of its own; yield the address of an empty database."""
    pytest.importorskip("psycopg", reason="the driver of PostgreSQL is not there: pip install 'psycopg[binary]'")
    programs = sorted(map(str, Path("/usr/lib/postgresql").glob("*/bin/initdb")))
    found = shutil.which("initdb") or (programs[-1] if programs else None)
    if not found:
        pytest.skip("PostgreSQL is not there: apt-get install postgresql")
    # Not below pytest's folder, which other users cannot enter: PostgreSQL refuses to run as root.
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
def mlflow_server(root: Path, database: str) -> Iterator[str]:
    """`mlflow server` with users and passwords, which stores artifacts itself; yield its address."""
    pytest.importorskip("flask_wtf", reason="users of MLflow are not there: pip install 'mlflow[auth]'")
    root.mkdir(parents=True, exist_ok=True)
    (root / "auth.ini").write_text(
        "[mlflow]\ndefault_permission = READ\n"
        f"database_uri = sqlite:///{root}/users.db\nadmin_username = {USER}\nadmin_password = {PASSWORD}\n"
        "authorization_function = mlflow.server.auth:authenticate_request_basic_auth\n"
    )
    port = free_port()
    command = [sys.executable, "-m", "mlflow", "server", "--app-name", "basic-auth", "--port", str(port)]
    command += ["--backend-store-uri", database, "--artifacts-destination", str(root / "artifacts"), "--workers", "1"]
    variables = {"MLFLOW_AUTH_CONFIG_PATH": str(root / "auth.ini"), "MLFLOW_FLASK_SERVER_SECRET_KEY": "of-a-test"}
    address = f"http://127.0.0.1:{port}"
    with running(command, f"{address}/health", root / "log", **variables):
        yield address


@contextmanager
def s3(root: Path) -> Iterator[str]:
    """A server of S3 with an empty bucket `models`; yield its address."""
    reason = "no server of S3 is there: pip install 'moto[server]' dvc-s3"
    for package in ("moto.server", "dvc_s3", "boto3"):
        pytest.importorskip(package, reason=reason)
    import boto3

    port = free_port()
    root.mkdir(parents=True)
    command = [sys.executable, "-m", "moto.server", "--port", str(port)]
    with running(command, f"http://127.0.0.1:{port}/moto-api/", root / "log") as page:
        address = page.removesuffix("/moto-api/")
        client = boto3.client(
            "s3", endpoint_url=address, region_name="us-east-1", aws_access_key_id=USER, aws_secret_access_key=PASSWORD
        )
        client.create_bucket(Bucket="models")
        client.close()
        yield address


def with_secrets(root: Path) -> list[Path]:
    """The files below a folder that hold a password."""
    files = [path for path in root.rglob("*") if path.is_file()]
    return [path for path in files if any(secret.encode() in path.read_bytes() for secret in SECRETS)]
