"""The Open Inference Protocol."""

import json
from typing import Any

import numpy as np
import pytest
from serving import Service, error, tensor

from reparam.client import Client
from reparam.serve import protocol

pytest_plugins = ["fixtures_export"]


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
            {"name": name, "datatype": "FP32", "shape": [-1, *service.client.latent_shape]}
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


def test_a_client_may_name_the_only_version(service: Service, images: np.ndarray) -> None:
    request = {"inputs": [tensor("images", images)]}
    answers = [service.post(f"/v2/models/encoder{version}/infer", request).json() for version in ("", "/versions/1")]
    assert answers[0] == answers[1]
    described = [service.get(f"/v2/models/encoder{version}").json() for version in ("", "/versions/1")]
    assert described[0] == described[1]
    assert service.get("/v2/models/encoder/versions/2").status_code == 404


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
        ({"data": np.zeros((3, 3, 4, 6)).tolist()}, "inputs.images: wanted shape [3, 4, 6, 3], found [3, 3, 4, 6]"),
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


def test_outputs_that_are_no_numbers_are_refused(
    service: Service, images: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    far = [tensor("images", images), tensor("epsilon", np.full((3, 2), 1e3, np.float32))]
    run = Client.run

    def compute_nan(client: Client, graph: str, outputs: list[str] | None, **inputs: Any) -> list[Any]:
        first, *others = run(client, graph, outputs, **inputs)
        return [np.full_like(first, np.nan), *others]

    monkeypatch.setattr(Client, "run", compute_nan)
    message = "reconstruction: wanted inputs that the model has finite outputs for, found NaN or infinity"
    for is_binary in (False, True):
        body = {"inputs": far, "parameters": {"binary_data_output": is_binary}}
        assert error(service.post("/v2/models/score/infer", body)) == (400, message)
    answer = service.post("/v2/models/score/infer", {"inputs": far, "outputs": [{"name": "kl"}]}).json()
    assert answer["outputs"][0]["shape"] == [3]


@pytest.mark.parametrize("value", [1001.0, -3e38])
def test_noise_that_nobody_draws_is_refused(value: float, service: Service, images: np.ndarray) -> None:
    epsilon = np.zeros((3, 2), np.float32)
    epsilon[1, 1] = value
    body = {"inputs": [tensor("images", images), tensor("epsilon", epsilon)]}
    message = "score: wanted epsilon from -1,000 to 1,000, found others; draw from N(0, 1)"
    assert error(service.post("/v2/models/score/infer", body)) == (400, message)


def test_json_that_would_keep_others_waiting_is_refused(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "JSON_BYTES", 100)
    status, message = error(service.post("/v2/models/encoder/infer", {"inputs": [], "id": "x" * 100}))
    assert (status, message.startswith("wanted at most 100 bytes of JSON, found 1")) == (413, True), message


def test_latents_far_beyond_those_of_the_prior_are_refused(service: Service) -> None:
    body = {"inputs": [tensor("latents", np.array([[0, 1e38]], np.float32))], "outputs": [{"name": "images"}]}
    status, message = error(service.post("/v2/models/decoder/infer", body))
    wanted = "decode: wanted latents from -1,000,000 to 1,000,000, found 1e+38 in row 0, column 1; "
    assert (status, message[: len(wanted)]) == (400, wanted)


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


@pytest.mark.parametrize("number", [np.nan, np.inf, -np.inf])
def test_binary_tensors_of_no_finite_numbers_are_refused(number: float, service: Service, images: np.ndarray) -> None:
    epsilon = np.full((3, 2), number, np.float32)
    described = tensor("epsilon", epsilon) | {"data": None, "parameters": {"binary_data_size": epsilon.nbytes}}
    asked = {"inputs": [tensor("images", images), described], "parameters": {"binary_data_output": True}}
    head = json.dumps(asked | {"outputs": [{"name": "kl"}]}, allow_nan=False).encode()
    headers = {protocol.HEADER: str(len(head))}
    assert error(service.send("/v2/models/score/infer", head + epsilon.tobytes(), **headers)) == (
        400,
        "inputs.epsilon: wanted finite numbers, found NaN, infinity or one beyond float32",
    )


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
