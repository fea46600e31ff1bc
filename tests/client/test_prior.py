"""An exported model whose prior is a mixture: what apps draw from it is what the trained model says."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from exported_model import LATENT, MIXED, Exported, torch_images

from reparam.client.client import Client
from reparam.errors import DamagedInputError, MissingInputError, UserError

pytest_plugins = ["fixtures_export"]


@pytest.fixture
def copy(mixed: Exported, tmp_path: Path) -> Path:
    return Path(shutil.copytree(mixed.directory, tmp_path / "copy"))


@torch.no_grad()
def test_the_file_of_the_prior_has_its_components_and_the_manifest_its_name(mixed: Exported) -> None:
    manifest, wanted = json.loads((mixed.directory / "manifest.json").read_text()), mixed.model.prior.components()
    assert wanted is not None
    assert (manifest["prior"], manifest["has_prior"], "prior.npz" in manifest["files"]) == (
        "gaussian mixture",
        True,
        True,
    )
    assert manifest["graphs"]["decoder"]["inputs"][0]["unit"] == "as drawn from the prior"
    with np.load(mixed.directory / "prior.npz") as found:
        assert {name: (array.shape, str(array.dtype)) for name, array in found.items()} == {
            "means": ((MIXED, LATENT), "float32"),
            "log_variances": ((MIXED, LATENT), "float32"),
            "weights": ((MIXED,), "float64"),
        }
        np.testing.assert_allclose(found["means"], wanted.means, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(found["log_variances"], wanted.log_variances, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(found["weights"], wanted.log_weights.exp(), rtol=1e-6)
        assert found["weights"].sum() == pytest.approx(1, abs=1e-12)


def test_latents_that_the_client_draws_have_the_moments_of_the_prior(mixed: Exported) -> None:
    mean, deviation = (values.numpy() for values in mixed.model.prior.moments())
    drawn = Client(mixed.directory).sample_latents(40_000, seed=0)
    assert drawn.shape == (40_000, LATENT)
    assert np.abs((drawn.mean(0) - mean) / deviation).max() < 5 / 200
    assert np.abs(drawn.std(0) / deviation - 1).max() < 0.05


def test_a_temperature_of_0_draws_the_means(mixed: Exported) -> None:
    client = Client(mixed.directory)
    with np.load(mixed.directory / "prior.npz") as prior:
        cold = client.sample_latents(300, seed=0, temperature=0)
        assert {tuple(row) for row in cold.astype(np.float32)} == {tuple(row) for row in prior["means"]}
    assert np.abs(client.sample_latents(300, seed=0) - cold).max() > 0.1


def test_samples_are_decoded_from_these_latents(mixed: Exported) -> None:
    client = Client(mixed.directory)
    np.testing.assert_array_equal(client.sample(6, seed=5), client.decode(client.sample_latents(6, seed=5)))
    assert not np.array_equal(client.sample(6, seed=6), client.sample(6, seed=5))


@torch.no_grad()
def test_scores_are_of_this_prior(mixed: Exported) -> None:
    x, model = mixed.pixels.scaled(torch_images(mixed.images)), mixed.model
    epsilon = np.random.default_rng(0).standard_normal((len(x), LATENT), dtype=np.float32)
    [layer] = model.layers(model.encode(x), torch.from_numpy(epsilon))  # type: ignore[union-attr]
    _, nll, kl = Client(mixed.directory).run("score", None, images=mixed.images, epsilon=epsilon)
    np.testing.assert_allclose(kl, layer.log_qz - layer.log_pz, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(nll, -model.likelihood.log_prob(model.output(layer.z), x), rtol=1e-4)


def test_the_program_of_the_model_card_runs(mixed: Exported, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (mixed.directory / "README.md").read_text(encoding="utf-8")
    program = text.split("```python\n")[1].split("```")[0]
    monkeypatch.chdir(mixed.directory)
    names: dict[str, np.ndarray] = {}
    exec(program, names)
    assert (names["generated"].shape, names["latents"].dtype) == ((16, 4, 6, 3), np.float32)


def test_a_prior_that_is_damaged_or_missing_is_refused_when_it_is_needed(copy: Path) -> None:
    whole = (copy / "prior.npz").read_bytes()
    (copy / "prior.npz").write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    client = Client(copy)
    with pytest.raises(DamagedInputError, match=r"prior\.npz: its SHA-256 is not that in manifest\.json"):
        client.sample(1, seed=0)
    (copy / "prior.npz").unlink()
    with pytest.raises(MissingInputError, match=r"prior\.npz: not found, but manifest\.json lists it"):
        client.sample(1, seed=0)
    assert client.decode(np.zeros((1, LATENT))).shape == (1, 4, 6, 3)


def test_a_prior_that_is_missing_beside_graphs_without_a_manifest_is_named(copy: Path) -> None:
    (copy / "manifest.json").unlink()
    (copy / "prior.npz").unlink()
    with pytest.raises(MissingInputError) as error:
        Client(copy).sample(1, seed=0)
    assert str(error.value).startswith(f"{copy / 'prior.npz'}: not found; run ")


def test_a_prior_of_other_latents_beside_graphs_without_a_manifest_is_refused(copy: Path) -> None:
    (copy / "manifest.json").unlink()
    with np.load(copy / "prior.npz") as found:
        arrays = dict(found)
    count, weights = len(arrays["weights"]), arrays["weights"]
    for wrong, shapes in (
        ({"means": arrays["means"][:, :-1]}, f"({count}, {LATENT - 1}), ({count}, {LATENT}), ({count},)"),
        ({"weights": weights[:, None]}, f"({count}, {LATENT}), ({count}, {LATENT}), ({count}, 1)"),
        ({"weights": weights[0]}, f"({count}, {LATENT}), ({count}, {LATENT}), ()"),
    ):
        np.savez(copy / "prior.npz", **arrays | wrong)
        with pytest.raises(DamagedInputError) as error:
            Client(copy).sample(1, seed=0)
        assert str(error.value).startswith(
            f"{copy / 'prior.npz'}: wanted means, log variances and weights of C Gaussians of {LATENT} latents, found "
            f"shapes {shapes}; run "
        )


def test_a_prior_that_apps_cannot_draw_from_is_refused(copy: Path) -> None:
    client = Client(copy)
    client.metadata["prior"] = None
    with pytest.raises(UserError, match="wanted a prior that is normal or a mixture, found another; decode"):
        client.sample_latents(1, seed=0)
