"""The service, asked over HTTP."""

import io
import json
import socket
import threading
from collections.abc import Iterator
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
from reparam.serve import protocol, server
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

    def end(self) -> None:
        """Tell it to end, and wait until it takes no more requests."""
        self._server.should_exit = True
        while self._server.servers[0].is_serving():
            self._thread.join(0.01)

    def get(self, path: str, **more: Any) -> requests.Response:
        return requests.get(self.address + path, timeout=60, **more)

    def post(self, path: str, body: Any = None, **more: Any) -> requests.Response:
        return requests.post(self.address + path, json=body, timeout=60, **more)

    def send(self, path: str, body: bytes, kind: str = "application/json", **headers: str) -> requests.Response:
        """Post bytes as they are."""
        headers = {"Content-Type": kind, **headers}
        return requests.post(self.address + path, data=body, timeout=60, headers=headers)

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


def png(picture: np.ndarray, mode: str = "RGB") -> bytes:
    file = io.BytesIO()
    Image.fromarray(picture).convert(mode).save(file, "PNG")
    return file.getvalue()


def shown(answer: requests.Response) -> np.ndarray:
    assert answer.headers["content-type"] == "image/png"
    return np.asarray(Image.open(io.BytesIO(answer.content)))


def column(images: np.ndarray) -> np.ndarray:
    return images.reshape(-1, *images.shape[2:])


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


def test_outputs_that_json_cannot_say_are_refused(service: Service, images: np.ndarray) -> None:
    far = [tensor("images", images), tensor("epsilon", np.full((3, 2), 3e38, np.float32))]
    message = "reconstruction: wanted inputs that the model has finite outputs for, found NaN or infinity"
    assert error(service.post("/v2/models/score/infer", {"inputs": far})) == (400, message)
    answer = service.post("/v2/models/score/infer", {"inputs": far, "outputs": [{"name": "kl"}]}).json()
    assert answer["outputs"][0]["shape"] == [3]


def binary(values: np.ndarray, **changes: Any) -> tuple[bytes, dict[str, str]]:
    """A request whose tensor and answer are bytes."""
    described = tensor("images", values) | {"parameters": {"binary_data_size": values.nbytes}}
    del described["data"]
    head = json.dumps({"inputs": [described | changes], "parameters": {"binary_data_output": True}}).encode()
    return head + values.tobytes(), {protocol.HEADER: str(len(head))}


def test_tensors_may_be_binary(service: Service, images: np.ndarray) -> None:
    body, headers = binary(images)
    answer = service.send("/v2/models/encoder/infer", body, "application/octet-stream", **headers)
    size = int(answer.headers[protocol.HEADER])
    values = np.frombuffer(answer.content[size:], "<f4").reshape(2, len(images), -1)
    np.testing.assert_allclose(values, service.client.encode(images), atol=1e-6)
    assert json.loads(answer.content[:size])["outputs"][0] == {
        "name": "mean",
        "datatype": "FP32",
        "shape": [3, 2],
        "parameters": {"binary_data_size": 24},
    }


@pytest.mark.parametrize(
    ("changes", "extra", "length", "message"),
    [
        ({}, b"", "-1", "Inference-Header-Content-Length: wanted 0 to"),
        ({}, b"", "9999", "Inference-Header-Content-Length: wanted 0 to"),
        ({}, b"12", None, "inputs: wanted a body of"),
        ({"shape": [2, 4, 6, 3]}, b"", None, "inputs.images: wanted 144 bytes, found 216"),
        ({"parameters": {}}, b"", None, "inputs: wanted a body of"),
        ({"parameters": {"binary_data_size": -1}}, b"", None, "inputs.0.parameters.binary_data_size: Input should be"),
    ],
)
def test_binary_tensors_of_wrong_lengths_are_refused(
    changes: dict[str, Any], extra: bytes, length: str | None, message: str, service: Service, images: np.ndarray
) -> None:
    body, headers = binary(images, **changes)
    headers |= {protocol.HEADER: length} if length else {}
    answer = service.send("/v2/models/encoder/infer", body + extra, **headers)
    status, found = error(answer)
    assert (status, found[: len(message)]) == (400, message)


# ---- routes for people


def test_images_are_encoded_decoded_and_reconstructed(service: Service, images: np.ndarray) -> None:
    codes = service.post("/encode", {"images": images.tolist()}).json()["mean"]
    np.testing.assert_allclose(codes, service.client.encode(images)[0], atol=1e-6)
    decoded = service.post("/decode", {"latents": codes}).json()["images"]
    np.testing.assert_array_equal(decoded, service.client.reconstruct(images))
    np.testing.assert_array_equal(service.post("/reconstruct", {"images": images.tolist()}).json()["images"], decoded)


def test_samples_are_those_of_the_client(service: Service) -> None:
    wanted = service.client.sample(2, seed=3, temperature=0.5)
    found = service.post("/sample", {"count": 2, "seed": 3, "temperature": 0.5}).json()["images"]
    np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize(
    ("query", "accept", "kind"),
    [
        ("", "*/*", "application/json"),
        ("", "image/png", "image/png"),
        ("", "image/png, application/json", "application/json"),
        ("?format=png", "application/json", "image/png"),
        ("?format=json", "image/png", "application/json"),
    ],
)
def test_the_query_and_else_the_header_say_what_comes_back(
    service: Service, query: str, accept: str, kind: str
) -> None:
    answer = service.post(f"/sample{query}", {}, headers={"Accept": accept})
    assert answer.headers["content-type"] == kind


def test_a_picture_that_is_sent_is_read_as_its_pixels(service: Service, images: np.ndarray) -> None:
    picture = png(column(images))
    listed = {"images": images.tolist()}
    for path in ("/encode", "/score", "/reconstruct"):
        assert service.send(path, picture, "image/png").json() == service.post(path, listed).json()
    found = shown(service.send("/reconstruct?format=png", picture, "image/png"))
    np.testing.assert_array_equal(found, column(service.client.reconstruct(images)))


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "images: wanted a whole PNG file, found a damaged one (UnidentifiedImageError)"),
        (
            png(np.arange(72, dtype=np.uint8).reshape(4, 6, 3))[:-30],
            "images: wanted a whole PNG file, found a damaged one (OSError)",
        ),
        (
            png(np.zeros((6, 4, 3), np.uint8)),
            "images: wanted a PNG of 6 x 4 pixels, or up to 8 of them one below the other, found 4 x 6",
        ),
        (
            png(np.zeros((36, 6, 3), np.uint8)),
            "images: wanted a PNG of 6 x 4 pixels, or up to 8 of them one below the other, found 6 x 36",
        ),
        (
            png(np.zeros((4, 6, 3), np.uint8), "RGBA"),
            "images: wanted a PNG of 8 bits without transparency, found mode RGBA",
        ),
        (
            png(np.zeros((4, 6), np.uint16), "I;16"),
            "images: wanted a PNG of 8 bits without transparency, found mode I;16",
        ),
    ],
)
def test_pictures_that_the_model_cannot_take_are_refused(body: bytes, message: str, service: Service) -> None:
    assert error(service.send("/encode", body, "image/png")) == (400, message)


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


@pytest.mark.parametrize(
    ("path", "body", "message"),
    [
        ("/sample", b'{"count": NaN}', "body.count: Input should be a finite number"),
        ("/sample", b'{"seed": "\\ud800"}', "body.seed: Input should be a valid "),
        ("/sample?format=gif", b"{}", "query.format: Input should be 'json' or 'png'"),
        ("/encode", b"", "body: Invalid JSON"),
        ("/encode", b"{}", "images: Field required"),
        ("/encode", b'{"images": ' + b"[" * 1000, "body: Invalid JSON: recursion limit exceeded"),
        ("/v2/models/encoder/infer", b'{"id": "\\ud800"}', "body: Invalid JSON"),
    ],
)
def test_what_json_alone_cannot_say_is_refused(path: str, body: bytes, message: str, service: Service) -> None:
    status, found = error(service.send(path, body))
    assert (status, found[: len(message)]) == (400, message)


def test_routes_and_methods_that_do_not_exist_are_refused(service: Service) -> None:
    assert error(service.get("/nothing")) == (404, "Not Found")
    assert error(service.get("/encode")) == (405, "Method Not Allowed")


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


# ---- what a service needs


def test_requests_that_are_open_are_answered_before_the_end(
    exported: Exported, monkeypatch: pytest.MonkeyPatch
) -> None:
    client, started, go = Client(exported.directory, device="cpu"), threading.Event(), threading.Event()
    wanted, run = client.sample(1, seed=0), client.run

    def wait_and_run(*arguments: Any, **inputs: Any) -> Any:
        started.set()
        assert go.wait(10)
        return run(*arguments, **inputs)

    monkeypatch.setattr(client, "run", wait_and_run)
    with ThreadPoolExecutor(1) as pool, Service(client, Limits()) as service:
        answer = pool.submit(service.post, "/sample", {})
        assert started.wait(10)
        service.end()
        assert not answer.done()
        go.set()
        np.testing.assert_array_equal(answer.result().json()["images"], wanted)


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


def test_a_port_that_is_taken_is_a_mistake(exported: Exported) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=f"wanted to listen at 127.0.0.1, port {port}, found: Address already in"):
            server.run(exported.directory, "127.0.0.1", port, "cpu")


def test_small_answers_are_sent_at_once() -> None:
    with server.listen("127.0.0.1", 0) as listener:
        assert listener.proto == socket.IPPROTO_TCP  # where asyncio sets TCP_NODELAY


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
