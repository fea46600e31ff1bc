"""Start the service."""

import errno
import os
import socket
from ipaddress import ip_address
from pathlib import Path

import uvicorn

from reparam.client import Client
from reparam.errors import UserError
from reparam.serve.app import create
from reparam.serve.routes import Limits

PATIENCE = 30  # seconds for requests that are open at the end


def run(model: Path, host: str, port: int, device: str) -> None:
    """Serve a model until the process receives a signal to end; open requests are answered first.

    Raises: UserError if it would be open to others without a token, with one that no header can hold, or cannot listen.
    """
    token = os.environ.get("REPARAM_SERVE_TOKEN", "").strip()
    if not token and not _is_local(host):
        raise UserError(
            "serve: wanted a token in REPARAM_SERVE_TOKEN where others reach the service, found none; set one, or "
            "leave --host at 127.0.0.1"
        )
    if not token.isascii():
        raise UserError("REPARAM_SERVE_TOKEN: wanted ASCII, found other characters; set another token")
    app = create(Client(model, device=device), Limits(), token)
    with listen(host, port) as listener:
        where = f"[{host}]" if ":" in host else host
        address = f"http://{where}:{listener.getsockname()[1]}/"
        print(f"{address}  explore the model\n{address}docs  all routes; the page needs a network", flush=True)  # noqa: T201
        config = uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=PATIENCE)
        uvicorn.Server(config).run([listener])


def listen(host: str, port: int) -> socket.socket:
    """Listen before the address is printed, so that whoever reads it can connect at once.

    Raises: UserError if that is not possible.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # The protocol is named, because asyncio otherwise does not send small packets at once: 40 ms a request.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(2048)
    except (OSError, TypeError) as error:  # the latter of a name that no machine can have
        listener.close()
        option = "port" if getattr(error, "errno", 0) in (errno.EADDRINUSE, errno.EACCES) else "host"
        found = getattr(error, "strerror", None) or error
        raise UserError(
            f"serve: wanted to listen at {host}, port {port}, found: {found}; choose another --{option}"
        ) from None
    return listener


def _is_local(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
