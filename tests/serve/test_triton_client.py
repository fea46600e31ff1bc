"""The service, asked by the client of Triton, as a process of its own."""

import importlib
import sys
from typing import Any

import numpy as np
import pytest
from exported_model import Exported
from installs import pip_install

from reparam.client import Client

pytest_plugins = ["fixtures_export"]
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def http(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The client, installed into a folder of its own, behind all others, so that numpy stays ours."""
    folder = pip_install(tmp_path_factory.mktemp("triton"), "tritonclient[http]")
    sys.path.append(str(folder))
    return importlib.import_module("tritonclient.http")


def test_the_client_of_triton_gets_what_ours_does(address: str, exported: Exported, http: Any) -> None:
    images, client = exported.images[:3], Client(exported.directory, device="cpu")
    triton = http.InferenceServerClient(address)
    assert triton.is_server_ready()
    assert triton.get_model_metadata("encoder")["inputs"] == [
        {"name": "images", "datatype": "UINT8", "shape": [-1, *client.image_shape]}
    ]
    for is_binary in (True, False):
        given = http.InferInput("images", list(images.shape), "UINT8")
        given.set_data_from_numpy(images, binary_data=is_binary)
        wanted = http.InferRequestedOutput("mean", binary_data=is_binary)
        found = triton.infer("encoder", [given], outputs=[wanted])
        np.testing.assert_allclose(found.as_numpy("mean"), client.encode(images)[0], atol=1e-6)
        found = triton.infer("encoder", [given], model_version="1")
        np.testing.assert_allclose(found.as_numpy("mean"), client.encode(images)[0], atol=1e-6)
    given = http.InferInput("images", [1, 1], "UINT8")
    given.set_data_from_numpy(np.zeros((1, 1), np.uint8))
    with pytest.raises(http.InferenceServerException, match=r"wanted shape \['rows', 4, 6, 3\], found \[1, 1\]"):
        triton.infer("encoder", [given])
    triton.close()
