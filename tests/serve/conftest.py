"""A service of the small exported model."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
import pytest
from serving import Service

from reparam.client import Client
from reparam.serve.routes import Limits

if TYPE_CHECKING:
    from exported_model import Exported  # which needs torch


@pytest.fixture(scope="module")
def service(exported: "Exported") -> Iterator[Service]:
    with Service(Client(exported.directory, device="cpu"), Limits(rows=8, bytes=200_000)) as service:
        yield service


@pytest.fixture
def images(exported: "Exported") -> np.ndarray:
    return exported.images[:3]


@pytest.fixture
def address(exported: "Exported") -> Iterator[str]:
    """Start the service as a process of its own, and end it as a system does; its `host:port`."""
    command = [sys.executable, "-m", "reparam", "serve", "--model", str(exported.directory), "--port", "0"]
    environment = os.environ | {"REPARAM_DEVICE": "cpu"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as server:
        try:
            lines = [server.stdout.readline(), server.stdout.readline()]
            [address] = re.findall("^http://(.*)/  explore the model$", lines[0])
            assert lines[1] == f"http://{address}/docs  all routes; the page needs a network\n"
            yield address
            server.send_signal(signal.SIGTERM)
            assert server.wait(10) == -signal.SIGTERM  # raised again after the shutdown
        finally:
            server.kill()
