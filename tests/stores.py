"""Real servers for tests: MLflow with passwords, PostgreSQL, and one that speaks S3; each skips where it is missing."""

import base64
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import servers
from servers import PASSWORD, free_port, running

USER = "admin"
SECRETS = (PASSWORD, base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode())


@contextmanager
def postgres() -> Iterator[str]:
    """A PostgreSQL of its own; yield the address of an empty database."""
    try:
        with servers.postgres() as address:
            yield address
    except servers.MissingError as error:
        pytest.skip(str(error))


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
    variables = {"MLFLOW_AUTH_CONFIG_PATH": str(root / "auth.ini"), "MLFLOW_FLASK_SERVER_SECRET_KEY": "of-a-test"}
    with servers.mlflow_server(root, database, "--app-name", "basic-auth", **variables) as address:
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
