"""How likely a model finds images, with a graph made by hand."""

from pathlib import Path

import numpy as np
import pytest
from exported_model import Exported
from score_graph import NOISE, reference, with_score

from reparam.client import Client
from reparam.client.checks import LOUDEST
from reparam.errors import MissingInputError, UserError

pytest_plugins = ["fixtures_export"]


@pytest.fixture(scope="module")
def scored(exported: Exported, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An exported model that has `score.onnx`; not to be changed."""
    return with_score(exported.directory, tmp_path_factory.mktemp("scored"))


def test_a_score_is_the_average_over_draws_and_the_sum_of_its_parts(exported: Exported, scored: Path) -> None:
    found = Client(scored).score(exported.images, samples=5, seed=7)
    noise = np.random.default_rng(7).standard_normal((40, 5, NOISE), dtype=np.float32)
    nll = np.mean([reference(exported.images, noise[:, k])[0] for k in range(5)], axis=0)
    kl = reference(exported.images, noise[:, 0])[1]
    assert found.kl.dtype == found.negative_log_likelihood.dtype == np.float64
    np.testing.assert_allclose(found.negative_log_likelihood, nll, rtol=1e-5)
    np.testing.assert_allclose(found.kl, kl, rtol=1e-6)
    np.testing.assert_array_equal(found.negative_elbo, found.negative_log_likelihood + found.kl)


@pytest.mark.parametrize("batch", [1, 7, 39, 40, 1000])
def test_scores_do_not_depend_on_how_many_images_are_computed_at_once(
    batch: int, exported: Exported, scored: Path
) -> None:
    wanted = Client(scored).score(exported.images, samples=3)
    found = Client(scored, batch=batch).score(exported.images, samples=3)
    np.testing.assert_allclose(found.negative_elbo, wanted.negative_elbo, rtol=1e-6)


def test_so_do_scores_of_so_many_samples_that_their_noise_comes_in_parts(
    exported: Exported, scored: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = Client(scored).score(exported.images, samples=9)
    monkeypatch.setattr("reparam.client.client.NOISE", 4 * 9 * NOISE)
    client, sizes = Client(scored), []
    run = client.run
    monkeypatch.setattr(
        client, "run", lambda *names, **inputs: sizes.append(len(inputs["images"])) or run(*names, **inputs)
    )
    found = client.score(exported.images, samples=9)
    assert sizes == [4] * (40 // 4 * 9)
    np.testing.assert_allclose(found.negative_elbo, wanted.negative_elbo, rtol=1e-6)
    monkeypatch.setattr("reparam.client.client.NOISE", 1)  # less than the noise of an image
    np.testing.assert_allclose(client.score(exported.images, samples=9).kl, wanted.kl, rtol=1e-6)


def test_the_score_of_one_image_at_one_draw_is_that_of_the_first_of_many(exported: Exported, scored: Path) -> None:
    client, (alone, many) = Client(scored), (exported.images[:1], exported.images)
    for seed in (0, (3, 4)):
        one, all_of_them = client.score(alone, seed=seed), client.score(many, seed=seed)
        assert one.negative_elbo.dtype == np.float64
        np.testing.assert_allclose(one.negative_elbo, all_of_them.negative_elbo[:1], rtol=1e-6)
        np.testing.assert_allclose(one.kl, all_of_them.kl[:1], rtol=1e-6)


def test_a_seed_gives_the_same_draws_again(exported: Exported, scored: Path) -> None:
    client = Client(scored)
    first, again, other, sequence = (client.score(exported.images, seed=seed) for seed in (1, 1, 2, (1, 2)))
    np.testing.assert_array_equal(first.negative_elbo, again.negative_elbo)
    assert not np.array_equal(first.negative_elbo, other.negative_elbo)
    assert not np.array_equal(first.negative_elbo, sequence.negative_elbo)


def test_the_manifest_has_the_range_of_noise_that_the_service_takes(exported: Exported) -> None:
    inputs = {value["name"]: value for value in Client(exported.directory).metadata["graphs"]["score"]["inputs"]}
    assert inputs["epsilon"]["range"] == [-LOUDEST, LOUDEST] == [-1000, 1000]


def test_no_images_have_no_scores(exported: Exported, scored: Path) -> None:
    for samples in (0, 1, 2):
        assert Client(scored).score(exported.images[:0], samples=samples).negative_elbo.shape == (0,)


def test_no_images_have_no_codes_and_decode_to_none(files: Exported) -> None:
    client = Client(files.directory)
    label = 0 if client.classes else None
    mean, _ = client.encode(files.images[:0], label)
    assert mean.shape == (0, *client.latent_shape)
    assert client.decode(mean, label).shape == client.reconstruct(files.images[:0], label).shape
    assert client.decode(mean, label).shape == (0, *client.image_shape)
    if client.metadata["prior"]:
        assert client.sample(0, seed=0, label=label).shape == (0, *client.image_shape)
    if client.metadata["codebook"]:
        codes = client.encode_codes(files.images[:0], label)
        assert client.decode(codes=codes, labels=label).shape == (0, *client.image_shape)
    if "score" in client.graphs:
        assert client.score(files.images[:0], samples=0, labels=label).kl.shape == (0,)


def test_without_samples_the_score_is_at_the_posterior_mean(exported: Exported, scored: Path) -> None:
    found = Client(scored, batch=7).score(exported.images, samples=0)
    nll, kl = reference(exported.images, np.zeros((40, NOISE)))
    np.testing.assert_allclose(found.negative_elbo, nll + kl, rtol=1e-6)


def test_a_model_that_is_no_density_has_no_score(code: Exported) -> None:
    with pytest.raises(MissingInputError) as error:
        Client(code.directory).score(code.images)
    assert str(error.value) == (
        f"{code.directory}: wanted score.onnx, found encoder, decoder only; score.onnx is only exported if the model "
        "has an ELBO"
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"samples": -1}, "score: wanted 0 to 2,147,483,647 samples, found -1"),
        ({"samples": 1.5}, "score: wanted 0 to 2,147,483,647 samples, found 1.5"),
        ({"samples": True}, "score: wanted 0 to 2,147,483,647 samples, found True"),
        ({"seed": -1}, "score: wanted a seed of 0 or more, found -1"),
        ({"seed": "x"}, "score: wanted a seed of 0 or more, found 'x'"),
        ({"seed": -1, "samples": 0}, "score: wanted a seed of 0 or more, found -1"),
        ({"seed": None}, "score: wanted a seed of 0 or more, found None"),
        ({"seed": None, "samples": 0}, "score: wanted a seed of 0 or more, found None"),
        ({"seed": "x", "samples": 0}, "score: wanted a seed of 0 or more, found 'x'"),
    ],
    ids=str,
)
def test_samples_and_seeds_that_make_no_sense_are_refused(
    options: dict, message: str, exported: Exported, scored: Path
) -> None:
    with pytest.raises(UserError) as error:
        Client(scored).score(exported.images, **options)
    assert str(error.value) == message
