import os
import subprocess
import tracemalloc
import venv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from exported_model import LATENT, Exported, torch_images

import reparam
from reparam.client.client import Client
from reparam.errors import UserError

pytest_plugins = ["fixtures_export"]


@pytest.fixture
def client(exported: Exported) -> Client:
    return Client(exported.directory)


def some_latents(count: int) -> np.ndarray:
    return np.random.default_rng(2).standard_normal((count, LATENT), dtype=np.float32)


# Against torch


@pytest.mark.parametrize("size", [0, 1, 2, 5, 40])
def test_encode_gives_torchs_posterior(size: int, exported: Exported, client: Client) -> None:
    images = exported.images[:size]
    with torch.no_grad():
        wanted = exported.model.posterior(torch_images(images))
    for found, reference in zip(client.encode(images), wanted, strict=True):
        assert found.shape == (size, LATENT)
        np.testing.assert_allclose(found, reference.numpy(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("size", [0, 1, 2, 5, 40])
def test_decode_gives_torchs_mean_images(size: int, exported: Exported, client: Client) -> None:
    latents = some_latents(size)
    with torch.no_grad():
        wanted = exported.model.decode(torch.from_numpy(latents)).permute(0, 2, 3, 1).numpy()
    mean, images = client.decode_mean(latents), client.decode(latents)
    assert (mean.dtype, images.dtype) == (np.float32, np.uint8)
    np.testing.assert_allclose(mean, wanted, rtol=0, atol=1e-5)
    np.testing.assert_array_equal(images, np.rint(mean * 255).astype(np.uint8))


def test_reconstruct_decodes_the_posterior_mean(exported: Exported, client: Client) -> None:
    with torch.no_grad():
        mean = exported.model.decode(exported.model.posterior(torch_images(exported.images))[0])
    found = client.reconstruct(exported.images)
    assert found.shape == exported.images.shape
    np.testing.assert_allclose(found, mean.permute(0, 2, 3, 1).numpy() * 255, rtol=0, atol=0.51)


def test_latents_may_be_lists_and_images_any_view(exported: Exported, client: Client) -> None:
    np.testing.assert_array_equal(
        client.decode([[1, 2], [0, -1]]), client.decode(np.array([[1, 2], [0, -1]], np.float32))
    )
    backwards = exported.images[:4][::-1]
    np.testing.assert_array_equal(client.encode(backwards)[0], client.encode(np.ascontiguousarray(backwards))[0])


def test_the_largest_latents_that_are_taken_give_images(files: Exported) -> None:
    client = Client(files.directory)
    latents = np.random.default_rng(0).choice([-1e6, 1e6], (8, client.latent_size))
    labels = 0 if client.classes else None
    mean, images = client.decode_mean(latents, labels), client.decode(latents, labels)
    assert ((mean >= 0) & (mean <= 1)).all()
    assert np.abs(images - mean * 255).max() <= 0.51  # not black where the mean is no number
    [facts] = [facts for facts in client.metadata["graphs"]["decoder"]["inputs"] if facts["name"] == "latents"]
    assert facts["range"] == [-1e6, 1e6]


def test_the_client_knows_its_model(client: Client) -> None:
    assert (client.image_shape, client.latent_size) == ((4, 6, 3), LATENT)
    assert client.metadata["source"] == "noise"


def test_the_code_of_an_autoencoder_has_no_variance(code: Exported) -> None:
    client = Client(code.directory)
    with torch.no_grad():
        wanted = code.model.posterior(torch_images(code.images))
    mean, log_variance = client.encode(code.images)
    np.testing.assert_allclose(mean, wanted[0].numpy(), rtol=1e-5, atol=1e-5)
    assert (log_variance.shape, log_variance.dtype) == ((40, LATENT), np.float32)
    assert (log_variance == -np.inf).all()
    np.testing.assert_array_equal(np.exp(log_variance), np.zeros((40, LATENT)))  # which can be computed with
    assert client.encode(code.images[:0])[1].shape == (0, LATENT)


def test_an_autoencoder_reconstructs_and_interpolates(code: Exported) -> None:
    client = Client(code.directory)
    with torch.no_grad():
        mean = code.model.decode(code.model.posterior(torch_images(code.images))[0]).permute(0, 2, 3, 1)
    found = client.reconstruct(code.images)
    np.testing.assert_allclose(found, mean.numpy() * 255, rtol=0, atol=0.51)
    between = client.interpolate(*code.images[:2], steps=3)
    np.testing.assert_array_equal(between[[0, -1]], found[:2])


def test_an_autoencoder_has_no_prior_to_sample_from(code: Exported) -> None:
    with pytest.raises(UserError) as error:
        Client(code.directory).sample(3, seed=0)
    assert str(error.value) == (
        "sample: wanted a model with a prior, found one without; decode codes of your own instead"
    )


@pytest.mark.parametrize("fixture", ["exported", "code"])
def test_the_golden_file_is_what_the_client_computes(fixture: str, request: pytest.FixtureRequest) -> None:
    files: Exported = request.getfixturevalue(fixture)
    client = Client(files.directory)
    with np.load(files.directory / "golden.npz", allow_pickle=False) as file:
        golden = dict(file)
    mean, log_variance = client.encode(golden["images"])
    np.testing.assert_allclose(mean, golden["mean"], rtol=1e-5, atol=1e-5)
    if fixture == "exported":
        np.testing.assert_allclose(log_variance, golden["log_variance"], rtol=1e-5, atol=1e-5)
    else:
        assert "log_variance" not in golden
    np.testing.assert_allclose(client.decode_mean(golden["latents"]), golden["decoded_mean"], rtol=0, atol=1e-5)
    levels = np.abs(client.decode(golden["latents"]).astype(int) - golden["decoded_images"])
    assert levels.max() <= 1


# Samples and interpolations


def test_samples_are_decoded_draws_of_a_seeded_standard_normal(client: Client) -> None:
    wanted = client.decode(np.random.default_rng(5).standard_normal((6, LATENT)))
    np.testing.assert_array_equal(client.sample(6, seed=5), wanted)
    assert not np.array_equal(client.sample(6, seed=6), wanted)
    assert wanted.shape == (6, 4, 6, 3)


def test_an_interpolation_runs_from_one_reconstruction_to_the_other(exported: Exported, client: Client) -> None:
    first, second = exported.images[:2]
    found = client.interpolate(first, second, steps=5)
    wanted = client.reconstruct(exported.images[:2])
    assert found.shape == (5, 4, 6, 3)
    np.testing.assert_array_equal(found[[0, -1]], wanted)
    assert not np.array_equal(wanted[0], wanted[1])
    start, end = client.encode(exported.images[:2])[0]
    np.testing.assert_array_equal(found[1], client.decode([0.75 * start + 0.25 * end])[0])


@pytest.mark.parametrize("temperature", [0, 0.5])
def test_a_temperature_scales_the_draws(temperature: float, client: Client) -> None:
    draws = np.random.default_rng(5).standard_normal((6, LATENT))
    np.testing.assert_array_equal(client.sample(6, seed=5, temperature=temperature), client.decode(draws * temperature))


# Many images


@pytest.mark.parametrize("batch", [1, 7, 39, 40])
def test_many_images_are_computed_some_at_a_time(batch: int, exported: Exported, client: Client) -> None:
    some = Client(exported.directory, batch=batch)
    for found, wanted in zip(some.encode(exported.images), client.encode(exported.images), strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-6, atol=1e-6)
    latents = some_latents(40)
    np.testing.assert_allclose(some.decode_mean(latents), client.decode_mean(latents), rtol=1e-6, atol=1e-6)
    assert some.batch == batch


def test_as_many_images_are_computed_at_once_as_stay_in_the_caches(client: Client) -> None:
    assert client.batch == 2**18 // (4 * 6 * 3)


def test_embed_yields_the_codes_of_any_number_of_images(exported: Exported) -> None:
    client = Client(exported.directory, batch=16)
    read = 0

    def images() -> Iterator[np.ndarray]:
        nonlocal read
        for image in exported.images:
            read += 1
            yield image

    found = client.embed(images())
    first = next(found)
    assert (first.shape, read) == ((16, LATENT), 16)  # no more are read than are needed
    rest = list(found)
    assert [len(codes) for codes in rest] == [16, 8]
    np.testing.assert_allclose(np.concatenate([first, *rest]), client.encode(exported.images)[0], rtol=1e-6, atol=1e-6)
    assert list(client.embed([])) == []


class Watched:
    """A session that notes its inputs."""

    def __init__(self, session: Any) -> None:
        self.session = session
        self.inputs: list[np.ndarray] = []

    def run(self, outputs: list[str], inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
        self.inputs += inputs.values()
        found: list[np.ndarray] = self.session.run(outputs, inputs)
        return found


@pytest.mark.parametrize(("graph", "call"), [("encoder", "encode"), ("decoder", "decode"), ("score", "score")])
def test_a_session_never_gets_more_than_a_batch_of_an_array(graph: str, call: str, exported: Exported) -> None:
    client = Client(exported.directory, batch=16)
    client.encode(exported.images[:1])  # which asks the session for names, once
    client.score(exported.images[:1])
    watched = client._graphs[graph] = Watched(client._graphs[graph])
    values = some_latents(1000) if call == "decode" else exported.images[np.arange(1000) % 40]
    getattr(client, call)(values)
    parts = [part for part in watched.inputs if part.shape[1:] == values.shape[1:] and part.dtype == values.dtype]
    sizes = [len(part) for part in parts if np.shares_memory(part, values)]  # so none is a copy
    assert sizes == [16] * 62 + [8]


def test_embed_holds_one_batch_however_many_images_there_are(exported: Exported) -> None:
    client = Client(exported.directory, batch=16)
    list(client.embed(exported.images[:1]))
    watched = client._graphs["encoder"] = Watched(client._graphs["encoder"])
    peaks = []
    for count in (1_000, 10_000):
        watched.inputs.clear()
        read = 0

        def images(count: int = count) -> Iterator[np.ndarray]:
            nonlocal read
            for number in range(count):
                read += 1
                yield exported.images[number % 40].copy()

        tracemalloc.start()
        for number, codes in enumerate(client.embed(images()), 1):
            assert (len(codes), read) == (min(16, count - 16 * (number - 1)), min(16 * number, count))
            assert len(watched.inputs.pop()) == len(codes)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < peaks[0] + 16 * exported.images[0].nbytes < 2 * peaks[0]


@pytest.mark.parametrize(
    ("image", "found"),
    [
        (np.zeros((4, 5, 3), np.uint8), "uint8 (1, 4, 5, 3)"),
        (np.zeros((4, 6, 3), np.float64), "float64 (1, 4, 6, 3)"),
        (np.zeros((1, 4, 6, 3), np.uint8), "uint8 (1, 1, 4, 6, 3)"),
        ([[0], [0, 1]], "no array"),
    ],
    ids=["size", "floats", "a batch", "lines of two lengths"],
)
def test_embed_refuses_one_bad_image_among_good_ones(image: np.ndarray, found: str, client: Client) -> None:
    with pytest.raises(UserError) as error:
        list(client.embed([np.zeros((4, 6, 3), np.uint8), image]))
    assert str(error.value) == f"embed: wanted uint8 images of shape (B, 4, 6, 3), found {found}"


# What the user can correct


BETWEEN = "wanted latents from -1,000,000 to 1,000,000"
COMPARE = "compare them with those that encode returns"


@pytest.mark.parametrize(
    ("latents", "message"),
    [
        ([[0, 1], [np.nan, 1]], f"{BETWEEN}, found nan in row 1, column 0; {COMPARE}"),
        ([[0, -np.inf]], f"{BETWEEN}, found -inf in row 0, column 1; {COMPARE}"),
        ([[0, 1e39]], f"{BETWEEN}, found inf in row 0, column 1; {COMPARE}"),
        ([[0, 1], [1e38, -1e38]], f"{BETWEEN}, found 1e+38 in row 1, column 0; {COMPARE}"),
        ([[0, -1000001]], f"{BETWEEN}, found -1.000001e+06 in row 0, column 1; {COMPARE}"),
        ([["0", "1"]], "wanted latents that are numbers, found <U1"),
        ([[True, False]], "wanted latents that are numbers, found bool"),
        ([[0, 1j]], "wanted latents that are numbers, found complex128"),
        ([[0, None]], "wanted latents that are numbers, found object"),
        ([[0, 1], [0]], "wanted latents of shape (B, 2), found no array"),
    ],
    ids=str,
)
def test_latents_that_are_no_sensible_numbers_are_refused(latents: list, message: str, client: Client) -> None:
    with pytest.raises(UserError) as error:
        client.decode(latents)
    assert str(error.value) == f"decode: {message}"


@pytest.mark.parametrize("rows", [1, 16, 17, 5000])
@pytest.mark.parametrize("number", [np.nan, np.inf, -np.inf, 3e38, -1000001.0])
def test_one_number_without_sense_is_found_among_few_and_many(number: float, rows: int, client: Client) -> None:
    latents = np.full((rows, 2), -1e6, np.float32)  # whose norm is larger
    assert client.decode(latents).shape == (rows, 4, 6, 3)
    latents[-1, 1] = number
    with pytest.raises(UserError) as error:
        client.decode(latents)
    found = f"{BETWEEN}, found {np.float32(number)!s} in row {rows - 1}, column 1; {COMPARE}"
    assert str(error.value) == f"decode: {found}"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n": -1}, "wanted 0 to 2,147,483,647 images, found -1"),
        ({"n": 1.5}, "wanted 0 to 2,147,483,647 images, found 1.5"),
        ({"n": 10**30}, f"wanted 0 to 2,147,483,647 images, found 1{'0' * 30}"),
        ({"seed": -1}, "wanted a seed of 0 or more, found -1"),
        ({"seed": None}, "wanted a seed of 0 or more, found None"),
        ({"temperature": -1}, "wanted a temperature of 0 or more, found -1"),
        ({"temperature": np.nan}, "wanted a temperature of 0 or more, found nan"),
        ({"temperature": np.inf}, "wanted a temperature of 0 or more, found inf"),
        ({"temperature": "0.5"}, "wanted a temperature of 0 or more, found '0.5'"),
        ({"temperature": 10**400}, f"wanted a temperature of 0 or more, found 1{'0' * 400}"),
        ({"label": 3}, "wanted no label, because the model was trained without, found 3"),
    ],
    ids=str,
)
def test_samples_that_make_no_sense_are_refused(options: dict, message: str, client: Client) -> None:
    with pytest.raises(UserError) as error:
        client.sample(**{"n": 1, "seed": 0, **options})
    assert str(error.value) == f"sample: {message}"


def test_an_interpolation_without_steps_is_refused(exported: Exported, client: Client) -> None:
    with pytest.raises(UserError) as error:
        client.interpolate(*exported.images[:2], steps=0)
    assert str(error.value) == "interpolate: wanted 1 to 2,147,483,647 steps, found 0"


@pytest.mark.parametrize(
    ("images", "found"),
    [
        (np.zeros((2, 4, 6, 3), np.float32), "float32 (2, 4, 6, 3)"),
        (np.zeros((2, 3, 4, 6), np.uint8), "uint8 (2, 3, 4, 6)"),
        (np.zeros((4, 6, 3), np.uint8), "uint8 (4, 6, 3)"),
        ([[1, 2]], "int64 (1, 2)"),
        ([[1], [1, 2]], "no array"),
        (None, "object ()"),
    ],
    ids=["floats", "channels first", "no batch", "a list", "lines of two lengths", "nothing"],
)
def test_images_of_another_kind_are_refused(images: np.ndarray, found: str, client: Client) -> None:
    with pytest.raises(UserError) as error:
        client.encode(images)
    assert str(error.value) == f"encode: wanted uint8 images of shape (B, 4, 6, 3), found {found}"


@pytest.mark.parametrize("method", ["decode", "decode_mean"])
@pytest.mark.parametrize("shape", [(2, 3), (2,), (2, 1, 2)], ids=str)
def test_latents_of_another_size_are_refused(shape: tuple[int, ...], method: str, client: Client) -> None:
    with pytest.raises(UserError) as error:
        getattr(client, method)(np.zeros(shape))
    assert str(error.value) == f"decode: wanted latents of shape (B, 2), found {shape}"


def test_an_interpolation_between_images_of_two_sizes_is_refused(exported: Exported, client: Client) -> None:
    with pytest.raises(UserError) as error:
        client.interpolate(exported.images[0], exported.images[0, :2], steps=3)
    assert str(error.value) == "interpolate: wanted uint8 images of shape (B, 4, 6, 3), found uint8 (1, 2, 6, 3)"


# Without torch


ALONE = """
import os
import sys
from pathlib import Path
import numpy as np
import onnxruntime

directory = Path(sys.argv[1])
with np.load(directory / "golden.npz", allow_pickle=False) as file:
    golden = dict(file)

def check(found, wanted):
    assert found.dtype == wanted.dtype and found.shape == wanted.shape, (found.dtype, found.shape)
    if found.dtype == np.uint8:
        assert abs(found.astype(int) - wanted).max() <= 1
    else:
        np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)

# Plain onnxruntime, as an app uses it.
encoder, decoder = (onnxruntime.InferenceSession(directory / f"{name}.onnx") for name in ("encoder", "decoder"))
for found, name in zip(encoder.run(None, {"images": golden["images"]}), ("mean", "log_variance"), strict=True):
    check(found, golden[name])
decoded = decoder.run(None, {"latents": golden["latents"]})
for found, name in zip(decoded, ("decoded_images", "decoded_mean"), strict=True):
    check(found, golden[name])

# Our client.
from reparam.client import Client

client = Client(directory)
mean, log_variance = client.encode(golden["images"])
check(mean, golden["mean"])
check(log_variance, golden["log_variance"])
check(client.decode(golden["latents"]), golden["decoded_images"])
check(client.decode_mean(golden["latents"]), golden["decoded_mean"])
check(client.reconstruct(golden["images"]), golden["decoded_images"])
assert client.sample(3, seed=0).shape == (3, *client.image_shape)
assert client.interpolate(*golden["images"][:2], steps=4).shape == (4, *client.image_shape)

# The programs of its README, and those of the page for app developers.
os.chdir(directory)
exec(Path("README.md").read_text().split("```python")[1].split("```")[0], {})
os.chdir(directory.parents[1])
for program in Path(sys.argv[2]).read_text().split("```python")[1:]:
    exec(program.split("```")[0], {})

unwanted = {"torch", "torchvision", "mlflow", "onnx", "dvc", "pydantic", "matplotlib"} & set(sys.modules)
assert not unwanted, unwanted
print("agrees")
"""


@pytest.mark.slow
def test_numpy_and_onnxruntime_alone_run_the_exported_files(exported: Exported, tmp_path: Path) -> None:
    venv.create(tmp_path / "venv", with_pip=True)
    python = tmp_path / "venv/bin/python"
    subprocess.run([python, "-m", "pip", "install", "--quiet", "numpy", "onnxruntime"], check=True)
    installed = subprocess.run([python, "-m", "pip", "list"], check=True, capture_output=True, text=True).stdout.split()
    assert not {"torch", "onnx", "pydantic", "reparam"} & set(installed)

    source = Path(reparam.__file__).parents[1]
    page = source.parent / "docs/how-to/app.md"
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(source), "PYTHONDONTWRITEBYTECODE": "1"}
    result = subprocess.run(
        [python, "-c", ALONE, exported.directory, page], env=environment, capture_output=True, text=True, check=False
    )
    assert (result.returncode, result.stdout.strip()) == (0, "agrees"), result.stderr
