"""A model whose latents are an image: graphs have its shape, and the client takes rows of numbers as well."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from exported_model import Exported, torch_images
from serving import Service

from reparam.client import Client
from reparam.errors import UserError
from reparam.serve.routes import Limits
from reparam.shell import work
from reparam.shell.inputs import Collection

pytest_plugins = ["fixtures_export"]
SHAPE, SIZE = (3, 2, 3), 18


@pytest.fixture(scope="module")
def client(image_of_latents: Exported) -> Client:
    return Client(image_of_latents.directory, device="cpu")


def test_codes_have_the_shape_that_the_manifest_says(client: Client, image_of_latents: Exported) -> None:
    manifest = json.loads((image_of_latents.directory / "manifest.json").read_text())
    assert (manifest["latent_shape"], manifest["latent_size"]) == ([*SHAPE], SIZE)
    assert (client.latent_shape, client.latent_size) == (SHAPE, SIZE)
    mean, log_variance = client.encode(image_of_latents.images[:5])
    with torch.no_grad():
        x = image_of_latents.pixels.scaled(torch_images(image_of_latents.images[:5]))
        wanted = image_of_latents.model.posterior(x)
    for found, values in zip((mean, log_variance), wanted, strict=True):
        np.testing.assert_allclose(found, values.view(5, *SHAPE), rtol=1e-5, atol=1e-5)
    [embedded] = client.embed(image_of_latents.images[:5])
    np.testing.assert_array_equal(embedded, mean)


def test_an_image_of_latents_and_its_numbers_in_a_row_are_decoded_alike(client: Client) -> None:
    latents = np.random.default_rng(0).standard_normal((4, *SHAPE))
    np.testing.assert_array_equal(client.decode(latents), client.decode(latents.reshape(4, SIZE)))
    np.testing.assert_array_equal(client.decode_mean(latents), client.decode_mean(latents.reshape(4, SIZE)))
    for shape in [(4, 3, 6), (4, 17), (18,), (4, 2, 3, 3)]:
        with pytest.raises(UserError) as caught:
            client.decode(np.zeros(shape))
        assert str(caught.value) == f"decode: wanted latents of shape (B, 3, 2, 3) or (B, 18), found {shape}"
    latents[2, 1, 0, 2] = np.nan
    with pytest.raises(UserError, match="found nan in row 2, column 8"):
        client.decode(latents)


def test_samples_interpolations_and_scores_are_those_of_the_model(client: Client, image_of_latents: Exported) -> None:
    images = image_of_latents.images
    drawn = client.sample_latents(6, seed=1)
    assert drawn.shape == (6, *SHAPE)
    np.testing.assert_array_equal(client.sample(6, seed=1), client.decode(drawn))
    between = client.interpolate(images[0], images[1], steps=3)
    codes = client.encode(images[:2])[0]
    np.testing.assert_array_equal(between, client.decode(np.stack([codes[0], codes.mean(0), codes[1]])))
    epsilon = np.zeros((40, *SHAPE), np.float32)
    wanted = sum(client.run("score", ["negative_log_likelihood", "kl"], images=images, epsilon=epsilon))
    np.testing.assert_allclose(client.score(images, samples=0).negative_elbo, wanted, rtol=1e-6)
    assert client.score(images, samples=2).kl.shape == (40,)


def test_codes_in_a_file_are_rows_that_can_be_decoded_again(
    client: Client, image_of_latents: Exported, tmp_path: Path
) -> None:
    np.save(tmp_path / "images.npy", image_of_latents.images[:5])
    images = Collection.find([str(tmp_path / "images.npy")], client.image_shape, resize=False)
    work.encode(client, images, tmp_path / "codes.npy", work.Place())
    codes = np.load(tmp_path / "codes.npy")
    np.testing.assert_array_equal(codes, client.encode(image_of_latents.images[:5])[0].reshape(5, SIZE))
    work.decode(client, tmp_path / "codes.npy", tmp_path / "decoded.npy", "1/1")
    np.testing.assert_array_equal(np.load(tmp_path / "decoded.npy"), client.decode(codes))
    assert work.info(client)[2] == "latents     3 x 2 x 3, of the prior N(0, 1) each"


def test_a_service_answers_with_images_of_latents(client: Client, image_of_latents: Exported) -> None:
    images = image_of_latents.images[:2]
    with Service(client, Limits()) as service:
        found = service.post("/encode", {"images": images.tolist()}).json()
        assert np.shape(found["mean"]) == (2, *SHAPE)
        decoded = service.post("/decode", {"latents": found["mean"]}).json()["images"]
        assert decoded == service.post("/reconstruct", {"images": images.tolist()}).json()["images"]
        assert np.shape(service.post("/sample", {"count": 3}).json()["images"]) == (3, 4, 6, 3)
        scores = service.post("/score", {"images": images.tolist()}).json()["negative_elbo"]
        np.testing.assert_allclose(scores, client.score(images, samples=0).negative_elbo, rtol=1e-6)
