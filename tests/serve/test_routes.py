"""Routes for people."""

import json
from typing import Any

import numpy as np
import pytest
from serving import Service, column, error, png, shown

pytest_plugins = ["fixtures_export"]


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


@pytest.mark.parametrize("kind", ["application/json", "application/x-www-form-urlencoded", "text/plain", ""])
def test_json_is_read_whatever_the_header_calls_it(kind: str, service: Service, images: np.ndarray) -> None:
    for path, body in (("/sample", {"seed": 3}), ("/encode", {"images": images.tolist()})):
        assert service.send(path, json.dumps(body).encode(), kind).json() == service.post(path, body).json()


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
        ("/encode", {"images": np.zeros((9, 4, 6, 3), int).tolist()}, "images: wanted 1 to 8, found 9"),
        ("/decode", {"latents": [[0.0, 0.0]] * 9}, "latents: wanted 1 to 8, found 9"),
        (
            "/encode",
            {"images": np.zeros((2, 3, 4, 6), int).tolist()},
            "images: wanted shape [2, 4, 6, 3], found [2, 3, 4, 6]",
        ),
        ("/encode", {"images": [[0] * 72]}, "images: wanted shape [1, 4, 6, 3], found [1, 72]"),
        ("/decode", {"latents": [[0.0, 1e60]]}, "latents: wanted finite numbers, found NaN, infinity or one beyond"),
        (
            "/decode",
            {"latents": [[0.0, 1e38]]},
            "decode: wanted latents from -1,000,000 to 1,000,000, found 1e+38 in row 0",
        ),
        ("/decode", {"latents": [[0.0]]}, "latents: wanted 2 numbers, found 1"),
        (
            "/decode",
            {"latents": [["0.5", "1"]]},
            "latents: wanted numbers in lists of one length, found something else",
        ),
        ("/sample", {"count": 9}, "count: wanted 1 to 8, found 9"),
    ],
)
def test_bad_requests_say_what_is_wrong(path: str, body: Any, message: str, service: Service) -> None:
    status, found = error(service.post(path, body))
    assert (status, found[: len(message)]) == (400, message)


@pytest.mark.parametrize(
    ("path", "body", "message"),
    [
        ("/sample", b'{"count": NaN}', "count: Input should be a finite number"),
        ("/sample", b'{"seed": "\\ud800"}', "body: Invalid JSON"),
        ("/sample", b"", "body: Invalid JSON"),
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
