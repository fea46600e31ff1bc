"""The service of a model whose codes are entries of a codebook."""

import numpy as np
from exported_model import Exported
from serving import Service

from reparam.client import Client
from reparam.serve.routes import Limits

pytest_plugins = ["fixtures_export"]


def test_codes_are_served_as_whole_numbers(quantized: Exported) -> None:
    images = quantized.images[:3]
    with Service(Client(quantized.directory, device="cpu"), Limits(rows=8, bytes=200_000)) as service:
        codes = service.client.encode_codes(images)
        answer = service.post("/encode", {"images": images.tolist()}).json()
        found = service.infer("encoder", images=images)
        described = service.get("/v2/models/encoder").json()["outputs"]
    assert answer["codes"] == codes.tolist()
    assert found["codes"].dtype == np.int64
    np.testing.assert_array_equal(found["codes"], codes)
    assert described[1] == {"name": "codes", "datatype": "INT64", "shape": [-1, 2]}
