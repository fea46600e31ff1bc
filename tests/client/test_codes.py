import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from exported_model import Exported, torch_images

from reparam.client import Client
from reparam.client.codes import nearest
from reparam.errors import DamagedInputError, UserError
from reparam.models.quantized import Quantized

pytest_plugins = ["fixtures_export"]


@pytest.fixture
def client(quantized: Exported) -> Client:
    return Client(quantized.directory, device="cpu")


def test_codes_are_those_of_the_model(client: Client, quantized: Exported) -> None:
    model, images = quantized.model, quantized.images[:7]
    assert isinstance(model, Quantized)
    with torch.no_grad():
        vectors = model.posterior(torch_images(images))[0]
    codes = client.encode_codes(images)
    assert (codes.dtype, codes.shape) == (np.int64, (7, 2))
    assert codes.tolist() == model.codebook.codes(vectors).tolist()
    mean, log_variance = client.encode(images)
    np.testing.assert_array_equal(mean, vectors.numpy())
    assert np.isneginf(log_variance).all()
    assert client.metadata["codebook"] == {"codes": model.quantizer.size, "positions": 2, "dimensions": 3}


def test_codes_and_latents_are_decoded_to_the_same_images(client: Client, quantized: Exported) -> None:
    images = quantized.images[:7]
    codes, (mean, _) = client.encode_codes(images), client.encode(images)
    np.testing.assert_array_equal(client.vectors(codes), mean)
    np.testing.assert_array_equal(client.decode(codes=codes), client.decode(mean))
    np.testing.assert_array_equal(client.decode(codes=codes.tolist()), client.reconstruct(images))


def test_an_interpolation_shows_the_nearest_codes(client: Client, quantized: Exported) -> None:
    model, (first, second) = quantized.model, quantized.images[:2]
    assert isinstance(model, Quantized)
    start, end = client.encode(np.stack([first, second]))[0]
    line = np.stack([start, 0.7 * start + 0.3 * end, 0.4 * start + 0.6 * end, 0.1 * start + 0.9 * end, end])
    found = nearest(line, client._codebook, client.latent_shape)
    np.testing.assert_array_equal(found, model.codebook.nearest(torch.from_numpy(line)).numpy())
    thirds = (2 * start + end)[None] / 3
    snapped = nearest(thirds, client._codebook, client.latent_shape)
    assert not np.array_equal(client.decode(snapped), client.decode(thirds))
    between = client.interpolate(first, second, steps=4)
    np.testing.assert_array_equal(between[[0, 1, 3]], client.decode(np.stack([start, snapped[0], end])))


def test_a_codebook_of_another_model_beside_graphs_without_a_manifest_is_refused(
    client: Client, quantized: Exported, tmp_path: Path
) -> None:
    shutil.copytree(quantized.directory, tmp_path / "copy")
    (tmp_path / "copy/manifest.json").unlink()
    for wrong in (np.zeros((60, 2), np.float32), np.zeros(60, np.float32)):
        np.savez(tmp_path / "copy/codebook.npz", vectors=wrong)
        with pytest.raises(DamagedInputError) as error:
            Client(tmp_path / "copy").interpolate(*quantized.images[:2], steps=3)
        wanted = (client.metadata["codebook"]["codes"], 3)
        assert f"codebook.npz: wanted vectors of shape {wanted}, found {wrong.shape}; run" in str(error.value)


def test_the_nearest_codes_of_an_image_of_latents_are_those_of_each_pixel() -> None:
    table = np.array([[0.0, 0.0], [1.0, 0.0], [0.0, 2.0]], np.float32)
    latents = np.zeros((1, 2, 1, 3), np.float32)  # (B, d, h, w)
    latents[0, :, 0] = [[0.4, 0.7, 0.1], [0.3, 0.2, 1.5]]
    wanted = [[[[0.0, 1.0, 0.0]], [[0.0, 0.0, 2.0]]]]
    assert nearest(latents.reshape(1, -1), table, (2, 1, 3)).tolist() == wanted


def test_a_model_with_a_codebook_has_neither_a_score_nor_samples(client: Client) -> None:
    assert client.graphs == ("encoder", "decoder")
    with pytest.raises(UserError, match=r"score\.onnx is only exported if the model has an ELBO"):
        client.score(np.zeros((1, *client.image_shape), np.uint8))
    with pytest.raises(UserError, match="wanted a model with a prior"):
        client.sample(1, seed=0)


@pytest.mark.parametrize(
    ("codes", "message"),
    [
        ([[0, 1, 2]], r"^decode: wanted whole codes of shape \(B, 2\), found int64 \(1, 3\)$"),
        ([[0.0, 1.0]], r"^decode: wanted whole codes of shape \(B, 2\), found float64 \(1, 2\)$"),
        ([[0], [0, 1]], r"^decode: wanted whole codes of shape \(B, 2\), found no array$"),
        ([[0, -1]], r"^decode: wanted codes from 0 to \d+, found -1 to 0$"),
        ([[0, 60]], r"^decode: wanted codes from 0 to \d+, found 0 to 60$"),
    ],
)
def test_codes_that_the_model_does_not_have_are_refused(codes: list[list[float]], message: str, client: Client) -> None:
    with pytest.raises(UserError, match=message):
        client.decode(codes=codes)


def test_one_of_latents_and_codes_is_decoded(client: Client) -> None:
    for given in ({}, {"latents": np.zeros((1, 6)), "codes": [[0, 0]]}):
        with pytest.raises(UserError, match=r"^decode: wanted either latents or codes, found both or neither$"):
            client.decode(**given)


def test_other_models_have_no_codes(code: Exported) -> None:
    client = Client(code.directory, device="cpu")
    with pytest.raises(UserError, match=r"^encode_codes: wanted a model with a codebook, found one of kind '.*'$"):
        client.encode_codes(code.images[:1])
    with pytest.raises(UserError, match=r"^decode: wanted a model with a codebook, found one of kind '.*'$"):
        client.decode(codes=[[0]])
