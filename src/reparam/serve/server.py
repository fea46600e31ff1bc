"""Start the service."""

import os
from ipaddress import ip_address
from pathlib import Path

import uvicorn

from reparam.client import Client
from reparam.errors import UserError
from reparam.serve.app import create
from reparam.serve.routes import Limits


def run(model: Path, host: str, port: int, device: str) -> None:
    """Serve a model until the process is told to end; requests that are open are answered first.

    Raises: UserError where it would be open to others without a token.
    """
    token = os.environ.get("REPARAM_SERVE_TOKEN", "")
    if not token and not _is_local(host):
        raise UserError(
            "serve: wanted a token in REPARAM_SERVE_TOKEN where others reach the service, found none; set one, or "
            "leave --host at 127.0.0.1"
        )
    uvicorn.run(create(Client(model, device=device), Limits(), token), host=host, port=port, log_level="warning")


def _is_local(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
