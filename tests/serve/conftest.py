"""A service of the small exported model."""

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
