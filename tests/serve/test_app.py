"""The service, asked over HTTP."""

import io
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import requests
import uvicorn
from exported_model import Exported
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from reparam.client import Client
from reparam.errors import UserError
from reparam.serve import server
from reparam.serve.app import create
from reparam.serve.routes import Limits

pytest_plugins = ["fixtures_export"]

TOKEN = "secret"


class Service:
    """A server in a thread, and what a test asks it."""

    def __init__(self, client: Client, limits: Limits, token: str = "") -> None:
        self.client = client
        self.app = create(client, limits, token)
        self._server = uvicorn.Server(uvicorn.Config(self.app, port=0, log_level="error"))
        self._thread = threading.Thread(target=self._server.run)

    def __enter__(self) -> "Service":
        self._thread.start()
        while not self._server.started:
            self._thread.join(0.01)
        self.address = f"http://127.0.0.1:{self._server.servers[0].sockets[0].getsockname()[1]}"
        return self

    def __exit__(self, *_: object) -> None:
        self._server.should_exit = True
        self._thread.join()

    def get(self, path: str, **more: Any) -> requests.Response:
        return requests.get(self.address + path, timeout=60, **more)

    def post(self, path: str, body: Any = None, **more: Any) -> requests.Response:
        return requests.post(self.address + path, json=body, timeout=60, **more)

    def infer(self, name: str, **inputs: Any) -> dict[str, np.ndarray]:
        """Ask as a client of the protocol does."""
        tensors = [tensor(name, values) for name, values in inputs.items()]
        answer = self.post(f"/v2/models/{name}/infer", {"inputs": tensors}).json()
        return {output["name"]: np.reshape(output["data"], output["shape"]) for output in answer["outputs"]}


def tensor(name: str, values: Any) -> dict[str, Any]:
    kind = {"uint8": "UINT8", "float32": "FP32"}[values.dtype.name]
    return {"name": name, "shape": list(values.shape), "datatype": kind, "data": values.ravel().tolist()}


@pytest.fixture(scope="module")
def service(exported: Exported) -> Iterator[Service]:
    with Service(Client(exported.directory, device="cpu"), Limits(rows=8, bytes=200_000)) as service:
        yield service


@pytest.fixture
def images(exported: Exported) -> np.ndarray:
    return exported.images[:3]


def error(answer: requests.Response) -> tuple[int, str]:
    return answer.status_code, answer.json()["error"]


# ---- the protocol


def test_the_server_and_its_models_describe_themselves(service: Service) -> None:
    assert service.get("/v2").json()["name"] == "reparam"
    assert service.get("/v2/health/live").json() == {"live": True}
    assert service.get("/v2/health/ready").json() == {"ready": True}
    assert service.get("/v2/models/encoder/ready").json() == {"name": "encoder", "ready": True}
    height, width, channels = service.client.image_shape
    assert service.get("/v2/models/encoder").json() == {
        "name": "encoder",
        "versions": ["1"],
        "platform": "onnxruntime_onnx",
        "inputs": [{"name": "images", "datatype": "UINT8", "shape": [-1, height, width, channels]}],
        "outputs": [
            {"name": name, "datatype": "FP32", "shape": [-1, service.client.latent_size]}
            for name in ("mean", "log_variance")
        ],
    }
    assert error(service.get("/v2/models/other")) == (
        404,
        "wanted one of the models encoder, decoder, score, found 'other'",
    )


def test_infer_answers_as_the_client_does(service: Service, images: np.ndarray) -> None:
    mean, log_variance = service.client.encode(images)
    found = service.infer("encoder", images=images)
    np.testing.assert_allclose(found["mean"], mean, atol=1e-6)
    np.testing.assert_allclose(found["log_variance"], log_variance, atol=1e-6)
    np.testing.assert_array_equal(service.infer("decoder", latents=mean)["images"], service.client.decode(mean))


def test_infer_gives_the_outputs_that_are_asked_for_and_the_id(service: Service, images: np.ndarray) -> None:
    request = {"id": "7", "inputs": [tensor("images", images)], "outputs": [{"name": "mean"}]}
    answer = service.post("/v2/models/encoder/infer", request).json()
    assert (answer["id"], answer["model_name"]) == ("7", "encoder")
    assert [output["name"] for output in answer["outputs"]] == ["mean"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "pictures"}, "inputs: wanted images, found pictures"),
        ({"datatype": "FP32"}, "inputs.images: wanted datatype UINT8, found FP32"),
        ({"shape": [3, 4]}, "inputs.images: wanted shape ['rows', 4, 6, 3], found [3, 4]"),
        ({"shape": [9, 4, 6, 3]}, "inputs.images: wanted 1 to 8 rows, found 9"),
        ({"shape": [0, 4, 6, 3]}, "inputs.images: wanted 1 to 8 rows, found 0"),
        ({"data": [1, 2]}, "inputs.images: wanted 216 numbers, found 2"),
        ({"data": [[1], [2, 3]]}, "inputs.images: wanted numbers in lists of one length, found something else"),
        ({"data": [256] * 216}, "inputs.images: wanted whole numbers from 0 to 255, found others"),
    ],
)
def test_what_the_graph_cannot_take_is_refused(
    changes: dict[str, Any], message: str, service: Service, images: np.ndarray
) -> None:
    body = {"inputs": [tensor("images", images) | changes]}
    assert error(service.post("/v2/models/encoder/infer", body)) == (400, message)


def test_an_unknown_output_is_refused(service: Service, images: np.ndarray) -> None:
    body = {"inputs": [tensor("images", images)], "outputs": [{"name": "beauty"}]}
    assert error(service.post("/v2/models/encoder/infer", body)) == (
        400,
        "outputs: wanted some of mean, log_variance, found beauty",
    )


# ---- routes for people


def test_images_are_encoded_decoded_and_reconstructed(service: Service, images: np.ndarray) -> None:
    codes = service.post("/encode", {"images": images.tolist()}).json()["mean"]
    np.testing.assert_allclose(codes, service.client.encode(images)[0], atol=1e-6)
    decoded = service.post("/decode", {"latents": codes}).json()["images"]
    np.testing.assert_array_equal(decoded, service.client.reconstruct(images))
    np.testing.assert_array_equal(service.post("/reconstruct", {"images": images.tolist()}).json()["images"], decoded)


def test_samples_are_those_of_the_client_and_come_as_a_picture_too(service: Service) -> None:
    wanted = service.client.sample(2, seed=3, temperature=0.5)
    body = {"count": 2, "seed": 3, "temperature": 0.5}
    np.testing.assert_array_equal(service.post("/sample", body).json()["images"], wanted)
    answer = service.post("/sample?png=true", body)
    assert answer.headers["content-type"] == "image/png"
    picture = np.asarray(Image.open(io.BytesIO(answer.content)))
    np.testing.assert_array_equal(picture, wanted.reshape(-1, *wanted.shape[2:]))


def test_scores_are_those_at_the_posterior_mean(service: Service, images: np.ndarray) -> None:
    found = service.post("/score", {"images": images.tolist()}).json()
    np.testing.assert_allclose(found["negative_elbo"], service.client.score(images, samples=0).negative_elbo, rtol=1e-6)


@pytest.mark.parametrize(
    ("path", "body", "message"),
    [
        ("/encode", {"images": []}, "images: wanted 1 to 8, found 0"),
        ("/decode", {"latents": [[0.0, 1e60]]}, "latents: wanted finite numbers, found NaN, infinity or one beyond"),
        ("/decode", {"latents": [[0.0]]}, "latents: wanted 2 numbers, found 1"),
        ("/sample", {"count": 9}, "count: wanted 1 to 8, found 9"),
    ],
)
def test_bad_requests_say_what_is_wrong(path: str, body: Any, message: str, service: Service) -> None:
    status, found = error(service.post(path, body))
    assert (status, found[: len(message)]) == (400, message)


ANYTHING = st.recursive(
    st.none()
    | st.booleans()
    | st.floats(allow_nan=False, allow_infinity=False, allow_subnormal=False)
    | st.integers()
    | st.text(max_size=5),
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
    assert service.post(path, body).status_code in {200, 400, 422}


# ---- what a service needs


def test_requests_that_come_together_are_computed_together(exported: Exported, images: np.ndarray) -> None:
    client = Client(exported.directory, device="cpu")
    with Service(client, Limits(wait_seconds=0.5, rows=3)) as service, ThreadPoolExecutor(3) as pool:
        single: Callable[[int], Any] = lambda i: service.infer("encoder", images=images[i : i + 1])["mean"]  # noqa: E731
        found = list(pool.map(single, range(3)))
        assert service.app.state.batches["encoder"].runs == 1
    np.testing.assert_allclose(np.concatenate(found), client.encode(images)[0], atol=1e-6)


def test_a_large_body_is_refused_before_it_is_read(service: Service) -> None:
    assert error(service.post("/encode", {"images": [0] * 100_000})) == (
        413,
        "wanted a body of at most 200000 bytes, found 300012",
    )


def test_with_a_token_only_health_is_open(exported: Exported) -> None:
    with Service(Client(exported.directory, device="cpu"), Limits(), TOKEN) as service:
        assert service.get("/v2/health/live").status_code == 200
        assert error(service.get("/v2")) == (401, "wanted the header `Authorization: Bearer TOKEN`")
        assert service.get("/v2", headers={"Authorization": f"Bearer {TOKEN}"}).status_code == 200


def test_without_a_token_nobody_else_may_reach_it(exported: Exported, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("REPARAM_SERVE_TOKEN", raising=False)
    with pytest.raises(UserError, match="wanted a token in REPARAM_SERVE_TOKEN where others reach the service"):
        server.run(exported.directory, "0.0.0.0", 0, "cpu")


def test_prometheus_reads_requests_and_times(service: Service) -> None:
    service.get("/v2/models/other")
    lines = service.get("/metrics").text.splitlines()
    [line] = [
        line for line in lines if line.startswith('reparam_requests_total{route="/v2/models/{name}",status="404"}')
    ]
    assert float(line.split()[-1]) >= 1
    assert any(line.startswith('reparam_request_seconds_count{route="/v2/models/{name}"}') for line in lines)


def test_the_api_is_described(service: Service) -> None:
    paths = service.get("/openapi.json").json()["paths"]
    assert {"/encode", "/decode", "/sample", "/reconstruct", "/score", "/v2/models/{name}/infer"} <= set(paths)
