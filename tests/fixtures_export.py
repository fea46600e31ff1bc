"""Exported files, made once for all workers; test modules name this one in `pytest_plugins`, because it needs torch."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from conftest import once
from exported_model import MIXED, Exported, prepare, run_stage

from reparam.paths import Paths


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Exported]:
    """Files that the stage `export` wrote with `grey_pixels: keep`; not to be changed."""
    yield from _export(tmp_path_factory, "exported")


@pytest.fixture(scope="session")
def code(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Exported]:
    """The same of an autoencoder; not to be changed."""
    yield from _export(tmp_path_factory, "code", kind="autoencoder")


@pytest.fixture(scope="session")
def hierarchical(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Exported]:
    """The same of a model with two layers of latents; not to be changed."""
    yield from _export(tmp_path_factory, "hierarchical", "none", kind="hierarchical", likelihood="laplace")


CODEBOOK = {"latent": 6, "levels": [4, 5, 3], "codes": 9, "dimensions": 3, "likelihood": "gaussian"}


@pytest.fixture(scope="session")
def fsq(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Exported]:
    """The same of a model whose codes are entries of a fixed codebook; not to be changed."""
    yield from _export(tmp_path_factory, "fsq", "none", kind="fsq", **CODEBOOK)


@pytest.fixture(scope="session")
def vq(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Exported]:
    """The same of one with a learned codebook; not to be changed."""
    yield from _export(tmp_path_factory, "vq", "none", kind="vq", **CODEBOOK)


@pytest.fixture(scope="session", params=["fsq", "vq"])
def quantized(request: pytest.FixtureRequest) -> Exported:
    """Both of them, one after the other; not to be changed."""
    found: Exported = request.getfixturevalue(request.param)
    return found


@pytest.fixture(scope="session")
def codes_of_pixels(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Exported]:
    """The same of a model whose latents are an image, 3 x 2 x 3, with a code at each pixel; not to be changed."""
    network = {"network": "resnet", "channels": [4, 6], "latent_channels": 3, "latent": None}
    changes = {"kind": "vq", "codes": 9, "dimensions": 3, "likelihood": "gaussian"}
    yield from _export(tmp_path_factory, "pixels", "none", **changes, **network)


@pytest.fixture(scope="session")
def conditional(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Exported]:
    """The same of a conditional model; not to be changed."""
    yield from _export(tmp_path_factory, "conditional", condition="label", size=2)


@pytest.fixture(scope="session")
def fsq_conditional(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Exported]:
    """The same of a conditional model with a codebook; not to be changed."""
    yield from _export(tmp_path_factory, "fsq-conditional", "none", kind="fsq", condition="label", size=2, **CODEBOOK)


@pytest.fixture(scope="session")
def vq_conditional(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Exported]:
    """The same of one with a learned codebook; not to be changed."""
    yield from _export(tmp_path_factory, "vq-conditional", "none", kind="vq", condition="label", size=2, **CODEBOOK)


@pytest.fixture(scope="session", params=["fsq_conditional", "vq_conditional"])
def quantized_conditional(request: pytest.FixtureRequest) -> Exported:
    """Both of them, one after the other; not to be changed."""
    found: Exported = request.getfixturevalue(request.param)
    return found


@pytest.fixture(scope="session", params=["mixture", "vamp"])
def mixed(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Exported]:
    """The same of a model with a learned prior; not to be changed."""
    changes = {"prior": request.param, "likelihood": "laplace", "activation": "gated"}
    yield from _export(tmp_path_factory, request.param, "none", components=MIXED, **changes)


@pytest.fixture(scope="session")
def image_of_latents(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Exported]:
    """The same of a model whose latents are an image, 3 x 2 x 3; not to be changed."""
    network = {"network": "resnet", "channels": [4, 6], "latent_channels": 3, "latent": None}
    yield from _export(tmp_path_factory, "image", "none", likelihood="laplace", **network)


@pytest.fixture(
    params=[
        *("exported", "code", "hierarchical", "image_of_latents", "conditional"),
        *("fsq", "vq", "codes_of_pixels", "fsq_conditional", "vq_conditional"),
    ]
)
def files(request: pytest.FixtureRequest) -> Exported:
    """Those of each kind of model that a README has words of its own for; not to be changed."""
    found: Exported = request.getfixturevalue(request.param)
    return found


def _export(
    factory: pytest.TempPathFactory, name: str, binarization: str = "dynamic", **changes: Any
) -> Iterator[Exported]:
    root = once(factory, f"exported-{name}", lambda root: run_stage(prepare(root, binarization, **changes).paths))
    result = replace(prepare(factory.mktemp(name), binarization, **changes), paths=Paths(root, root))
    before = {path: path.read_bytes() for path in result.directory.rglob("*") if path.is_file()}
    yield result
    assert {path: path.read_bytes() for path in result.directory.rglob("*") if path.is_file()} == before, (
        "a test changed these files"
    )
