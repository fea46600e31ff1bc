"""Requests of chance: none of them is an error of the server."""

import json
from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from serving import Service, png

from reparam.serve import protocol

pytest_plugins = ["fixtures_export"]


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.floats(allow_subnormal=False) | st.integers() | st.text(st.characters(), max_size=5),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(["inputs", "name", "shape", "datatype", "data", "images", "latents", "count", "seed"]),
            inner,
        )
    ),
    max_leaves=8,
)


@settings(max_examples=60, deadline=None)
@given(path=st.sampled_from(["/encode", "/decode", "/sample", "/score", "/v2/models/encoder/infer"]), body=ANYTHING)
def test_no_body_is_an_error_of_the_server(service: Service, path: str, body: Any) -> None:
    assert service.send(path, json.dumps(body).encode()).status_code in {200, 400}


@settings(max_examples=60, deadline=None)
@given(
    path=st.sampled_from(["/encode", "/v2/models/encoder/infer"]),
    body=st.binary(max_size=64)
    | st.binary(max_size=64).map(lambda rest: png(np.zeros((4, 6, 3), np.uint8))[:40] + rest),
    kind=st.sampled_from(["image/png", "application/json", "application/octet-stream", ""]),
    length=st.sampled_from(["0", "2", "64", "x", "-1", "9" * 30]),
)
def test_no_bytes_are_an_error_of_the_server(service: Service, path: str, body: bytes, kind: str, length: str) -> None:
    assert service.send(path, body, kind, **{protocol.HEADER: length}).status_code == 400
