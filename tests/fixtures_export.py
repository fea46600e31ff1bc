"""Exported files, made once per session; test modules name this one in `pytest_plugins`, because it needs torch."""

from collections.abc import Iterator

import pytest
from exported_model import MIXED, Exported, prepare, run_stage


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Exported]:
    """Files that the stage `export` wrote with `grey_pixels: keep`; not to be changed."""
    yield from _export(prepare(tmp_path_factory.mktemp("exported")))


@pytest.fixture(scope="session")
def code(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Exported]:
    """The same of an autoencoder; not to be changed."""
    yield from _export(prepare(tmp_path_factory.mktemp("code"), kind="autoencoder"))


@pytest.fixture(scope="session", params=["fsq", "vq"])
def quantized(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Exported]:
    """The same of a model whose codes are entries of a codebook; not to be changed."""
    changes = {"kind": request.param, "latent": 6, "levels": [4, 5, 3], "codes": 9, "dimensions": 3}
    yield from _export(prepare(tmp_path_factory.mktemp(request.param), "none", likelihood="gaussian", **changes))


@pytest.fixture(scope="session")
def codes_of_pixels(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Exported]:
    """The same of a model whose latents are an image, 3 x 2 x 3, with a code at each pixel; not to be changed."""
    network = {"network": "resnet", "channels": [4, 6], "latent_channels": 3, "latent": None}
    changes = {"kind": "vq", "codes": 9, "dimensions": 3, "likelihood": "gaussian"}
    yield from _export(prepare(tmp_path_factory.mktemp("pixels"), "none", **changes, **network))


@pytest.fixture(scope="session")
def conditional(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Exported]:
    """The same of a model that is told labels; not to be changed."""
    yield from _export(prepare(tmp_path_factory.mktemp("conditional"), condition="label", size=2))


@pytest.fixture(scope="session", params=["mixture", "vamp"])
def mixed(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Exported]:
    """The same of a model with a learned prior; not to be changed."""
    changes = {"prior": request.param, "likelihood": "laplace", "activation": "gated"}
    yield from _export(prepare(tmp_path_factory.mktemp(request.param), "none", components=MIXED, **changes))


@pytest.fixture(scope="session")
def image_of_latents(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Exported]:
    """The same of a model whose latents are an image, 3 x 2 x 3; not to be changed."""
    network = {"network": "resnet", "channels": [4, 6], "latent_channels": 3, "latent": None}
    yield from _export(prepare(tmp_path_factory.mktemp("image"), "none", likelihood="laplace", **network))


def _export(result: Exported) -> Iterator[Exported]:
    run_stage(result.paths)
    before = {path: path.read_bytes() for path in result.directory.rglob("*") if path.is_file()}
    yield result
    assert {path: path.read_bytes() for path in result.directory.rglob("*") if path.is_file()} == before, (
        "a test changed these files"
    )
