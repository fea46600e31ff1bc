"""Sprites that are drawn here, and the format of dSprites in small: the real file cannot be had in a test."""

import hashlib
import io
import random
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from conftest import small_section

from reparam.cards.data import FactorFacts
from reparam.data.sources import sprites
from reparam.data.sources.raw import ImageArrays
from reparam.data.sources.registry import SOURCES, download, read, write_manifest
from reparam.errors import DamagedInputError

Array = npt.NDArray[Any]
FACTS = (
    FactorFacts(name="shape", size=3, is_ordered=False),
    FactorFacts(name="scale", size=4, is_ordered=True),
    FactorFacts(name="rotation", size=6, is_ordered=True),
    FactorFacts(name="x", size=8, is_ordered=True),
    FactorFacts(name="y", size=8, is_ordered=True),
)


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The generated set, as it is delivered."""
    directory = tmp_path_factory.mktemp("sprites")
    config = small_section("download", source="sprites")
    download(config, directory, directory)
    write_manifest(config, directory)
    return directory


def arrays(directory: Path, scratch: Path) -> ImageArrays:
    _, raw = read(directory, scratch)
    assert (raw.classes, raw.factors) == (("square", "ellipse", "heart"), FACTS)
    found = raw.splits["all"]
    assert isinstance(found, ImageArrays)
    return found


def test_there_is_one_sprite_of_each_combination_and_no_two_are_alike(drawn: Path, tmp_path: Path) -> None:
    found = arrays(drawn, tmp_path)
    assert (found.images.shape, found.images.dtype) == ((4608, 1, 32, 32), np.uint8)
    assert set(np.unique(found.images)) == {0, 255}
    assert len(np.unique(found.images.reshape(4608, -1), axis=0)) == 4608
    assert found.factors is not None
    assert found.factors.tolist() == [list(row) for row in np.ndindex(3, 4, 6, 8, 8)]
    np.testing.assert_array_equal(found.labels, found.factors[:, 0])


def test_sprites_are_the_same_on_every_machine(drawn: Path) -> None:
    with np.load(drawn / "sprites.npz") as found:
        digest = hashlib.sha256(np.packbits(found["imgs"]).tobytes()).hexdigest()
    assert digest == "3d0354712968cd13a5219d27e293e94f3eba3c2908f10232d9aa0b1fac0b5e42"


def test_a_sprite_is_where_and_as_large_as_its_factors_say(drawn: Path, tmp_path: Path) -> None:
    found = arrays(drawn, tmp_path)
    white = (found.images[:, 0] > 0).reshape(3, 4, 6, 8, 8, 32, 32)
    squares = white[0].mean((1, 2, 3, 4, 5)) * 32 * 32
    np.testing.assert_allclose(squares, [2 * reach**2 for reach in (4, 5, 6, 7)], rtol=0.02)
    ellipses = white[1].mean((1, 2, 3, 4, 5)) * 32 * 32
    np.testing.assert_allclose(ellipses, [np.pi / 2 * reach**2 for reach in (4, 5, 6, 7)], rtol=0.02)
    rows, columns = (np.arange(32) + 0.5,) * 2
    upright = white[:2, :, 0]  # whose centres of mass are their centres
    weight = upright.sum((-1, -2))
    across = (upright.sum(-2) @ columns / weight).mean((0, 1, 3))
    down = (upright.sum(-1) @ rows / weight).mean((0, 1, 2))
    np.testing.assert_allclose(across, np.linspace(8.2, 23.8, 8), atol=0.1)
    np.testing.assert_allclose(down, np.linspace(8.2, 23.8, 8), atol=0.1)
    assert not white[..., [0, -1], :].any()  # none is cut off
    assert not white[..., [0, -1]].any()


def write_dsprites(path: Path, **changes: Any) -> tuple[Array, Array]:
    """A file as DeepMind's, with metadata that only unpickling would read."""
    factors = np.array(list(np.ndindex(1, 3, 2, 2, 2, 2)))
    images = np.random.default_rng(0).integers(0, 2, (48, 64, 64), dtype=np.uint8)
    values: dict[str, Any] = {
        "metadata": np.array({"title": "dSprites"}, dtype=object),
        "imgs": images,
        "latents_classes": factors,
        "latents_values": factors / 2,
    }
    values = {name: value for name, value in (values | changes).items() if value is not None}
    file = io.BytesIO()
    np.savez_compressed(file, **values)
    path.write_bytes(file.getvalue())
    return images, factors


def test_a_file_in_the_format_of_dsprites_is_read_without_unpickling(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sprites, "CHUNK", 20)
    images, factors = write_dsprites(tmp_path / sprites.DSPRITES)
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    raw = SOURCES["dsprites"].read(tmp_path, scratch)
    found = raw.splits["all"]
    assert isinstance(found, ImageArrays)
    np.testing.assert_array_equal(found.images, 255 * images[:, None])
    np.testing.assert_array_equal(found.factors, factors[:, 1:])
    np.testing.assert_array_equal(found.labels, factors[:, 1])
    assert raw.factors is not None
    assert [(factor.name, factor.size) for factor in raw.factors] == [
        *(("shape", 3), ("scale", 2), ("rotation", 2), ("x", 2), ("y", 2))
    ]
    assert isinstance(found.images.base, np.memmap)  # three gigabytes need not fit into memory


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"imgs": None}, "wanted the array imgs, found none"),
        (
            {"latents_classes": np.zeros((48, 3), np.int64)},
            r"wanted images \(N, H, W\) and 6 factors of each, found \(48, 64, 64\) and 48 rows of 3",
        ),
        (
            {"latents_classes": np.zeros((47, 6), np.int64)},
            r"wanted images \(N, H, W\) and 6 factors of each, found \(48, 64, 64\) and 47 rows of 6",
        ),
    ],
)
def test_another_file_is_refused(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    write_dsprites(tmp_path / sprites.DSPRITES, **changes)
    with pytest.raises(DamagedInputError, match=f"{sprites.DSPRITES}: {message}; run `dvc repro"):
        SOURCES["dsprites"].read(tmp_path, tmp_path)


@pytest.mark.parametrize(
    "changes",
    [{"imgs": np.full((48, 64, 64), 2, np.uint8)}, {"imgs": np.zeros((48, 64, 64))}, {"latents_classes": np.zeros(48)}],
)
def test_other_types_and_values_are_refused(changes: dict[str, Any], tmp_path: Path) -> None:
    write_dsprites(tmp_path / sprites.DSPRITES, **changes)
    with pytest.raises(DamagedInputError, match="wanted a file in the format of dSprites, found none"):
        SOURCES["dsprites"].read(tmp_path, tmp_path)


@pytest.mark.parametrize("seed", range(20))
def test_a_damaged_file_is_refused_whatever_is_damaged(seed: int, tmp_path: Path) -> None:
    write_dsprites(tmp_path / sprites.DSPRITES)
    content, chance = bytearray((tmp_path / sprites.DSPRITES).read_bytes()), random.Random(seed)
    content = content[: chance.randrange(len(content))] if seed % 2 else content
    for _ in range(5):
        content[chance.randrange(len(content))] = chance.randrange(256)
    (tmp_path / sprites.DSPRITES).write_bytes(content)
    with pytest.raises((DamagedInputError, OSError)):
        SOURCES["dsprites"].read(tmp_path, tmp_path)


def test_dsprites_is_known_by_its_checksum() -> None:
    [file] = sprites.dsprites_files()
    assert file.checksum == "md5:7da33b31b13a06f4b04a70402ce90c2e"
