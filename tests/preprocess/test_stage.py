import contextlib
import copy
import errno
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from conftest import SMALL, change
from pictures import HEIGHT, MODES, WIDTH, Pixels, draw, draw_modes, luma, noise, pack, write_mnist
from PIL import Image
from sklearn.datasets import load_digits
from some_cards import resealed

from reparam import cli
from reparam.cards.data import DataCard, Scaling
from reparam.config import Config, load_config
from reparam.data import store
from reparam.download import stage as download
from reparam.errors import DamagedInputError, MissingInputError, UserError
from reparam.files import dvc_hash, sha256, to_json
from reparam.paths import Paths
from reparam.preprocess import convert
from reparam.preprocess import stage as preprocess
from reparam.preprocess.splits import SPLITS, SplitName

SOURCE = Path(preprocess.__file__).parents[2]
FOLDER_REMEDY = "fix or remove them, or set preprocess.on_error to skip in params.yaml"
NO_IMAGE = "not a whole image of any of the formats BMP, GIF, JPEG, PNG, PPM, TIFF, WEBP"

WORKERS = convert._workers
Prepare = Callable[..., Any]


@pytest.fixture(autouse=True)
def in_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Decode images in this process: workers take half a second to start, and do the same."""
    here = SimpleNamespace(map=map)
    monkeypatch.setattr(convert, "_workers", lambda _: contextlib.nullcontext(here))


@pytest.fixture
def prepare(project: Paths, params: dict[str, Any], write_params: Callable[[dict[str, Any]], None]) -> Prepare:
    """Run `download` of a folder, or of the digits, and `preprocess` with changed parameters; return the card."""

    def run(folder: Path | None = None, label: str | None = None, **changes: Any) -> Any:
        if folder is not None:
            table = "attributes.csv" if (folder / "attributes.csv").exists() else None
            values = {"source": "folder", "path": str(folder), "attributes": table, "label": label}
            change(params["download"], values)
        params["preprocess"] |= changes
        write_params(params)
        config = load_config(project.params)
        download.run(config, project)
        preprocess.run(config, project)
        return store.read_card(project.processed)

    return run


def prepare_at(root: Path, source: dict[str, Any], mirror: str = "", **changes: Any) -> Path:
    """Run both stages in a working copy of its own, with worker processes where images are decoded."""
    params = copy.deepcopy(SMALL)
    change(params["download"], source)
    change(params["preprocess"], changes)
    config = Config.model_validate(params)
    paths = Paths(root, root)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", "off")
        patch.setenv("REPARAM_MIRRORS", mirror)
        patch.delenv("REPARAM_WORKERS", raising=False)
        download.run(config, paths)
        preprocess.run(config, paths)
    return paths.processed


def contents(directory: Path) -> dict[str, bytes]:
    """Every file below a directory, and what it holds."""
    return {
        path.relative_to(directory).as_posix(): path.read_bytes() for path in directory.rglob("*") if path.is_file()
    }


def images(directory: Path, split: SplitName = "train") -> list[Any]:
    return np.asarray(store.read_split(directory, split).images).tolist()  # type: ignore[no-any-return]


def labels(directory: Path, split: SplitName = "train") -> list[int]:
    return np.asarray(store.read_split(directory, split).labels).tolist()  # type: ignore[no-any-return]


def counts(card: DataCard) -> list[int]:
    return [card.splits[name].count for name in SPLITS]


def flat(path: Path, value: int, size: tuple[int, int] = (2, 2)) -> Path:
    """A grey image of one value, by which it is known afterwards."""
    return draw(path, np.full(size, value, np.uint8))


def draw_flat(folder: Path, names: dict[str, int]) -> Path:
    for name, value in names.items():
        flat(folder / name, value)
    return folder


def pairs(directory: Path) -> list[tuple[int, int]]:
    """The value and the label of each flat image, of all splits, by value."""
    found = []
    for name in SPLITS:
        split = store.read_split(directory, name)
        found += [(int(image.min()), int(label)) for image, label in zip(split.images, split.labels, strict=True)]
        assert all((image == image[0, 0, 0]).all() for image in split.images)
    return sorted(found)


def nothing_is_left(project: Paths) -> bool:
    """Whether a failed run left neither outputs nor what was unfinished."""
    unfinished = list(project.root.rglob(".partial-*"))
    return not project.processed.exists() and not project.data_metrics.exists() and not unfinished


# ---- modes, through worker processes


@pytest.fixture(scope="module")
def modes(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Pixels]:
    """A published training set of one image of each mode, and what is to be seen on them: (N, H, W, 3)."""
    folder = tmp_path_factory.mktemp("modes")
    for split in ("val", "test"):
        draw(folder / split / "rgb.png", noise(3, HEIGHT, WIDTH, 3))
    (folder / "train").mkdir()
    return folder, draw_modes(folder / "train")


@pytest.fixture(scope="module")
def colour(modes: tuple[Path, Pixels], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The store of all modes, in colour."""
    source = {"source": "folder", "path": str(modes[0])}
    return prepare_at(tmp_path_factory.mktemp("colour"), source, channels=3, binarization="none")


def test_every_mode_is_stored_in_colour_to_the_last_bit(colour: Path, modes: tuple[Path, Pixels]) -> None:
    split = store.read_split(colour, "train")
    assert (split.images.dtype, split.images.shape) == (np.uint8, (len(MODES), 3, HEIGHT, WIDTH))
    for name, stored, seen in zip(MODES, split.images, modes[1], strict=True):
        np.testing.assert_array_equal(stored.transpose(1, 2, 0), seen, err_msg=name)
    for other in ("validation", "test"):
        np.testing.assert_array_equal(images(colour, other), noise(3, HEIGHT, WIDTH, 3).transpose(2, 0, 1)[None])


def test_every_mode_is_stored_in_grey_to_the_last_bit(modes: tuple[Path, Pixels], tmp_path: Path) -> None:
    directory = prepare_at(tmp_path, {"source": "folder", "path": str(modes[0])}, binarization="none")
    split = store.read_split(directory, "train")
    assert split.images.shape == (len(MODES), 1, HEIGHT, WIDTH)
    for name, stored, seen in zip(MODES, split.images, modes[1], strict=True):
        np.testing.assert_array_equal(stored[0], luma(seen), err_msg=name)


def test_the_card_of_a_folder_is_complete(colour: Path, modes: tuple[Path, Pixels]) -> None:
    pixels = modes[1] / 255
    mean, deviation = (getattr(pixels, name)((0, 1, 2)).round(6).tolist() for name in ("mean", "std"))
    counted = {"train": len(MODES), "validation": 1, "test": 1}
    card = {
        "source": "folder",
        "binarization": "none",
        "scaling": {"kind": "unit", "shift": [0.0] * 3, "scale": [1.0] * 3},
        "shape": [3, HEIGHT, WIDTH],
        "options": {},
        "title": "A folder of images",
        "licence": "not stated",
        "classes": ["all"],
        "skipped": {},
        "train_mean": mean,
        "train_standard_deviation": deviation,
        "splits": {
            name: {
                "count": count,
                "classes": {"all": count},
                "images_sha256": sha256(colour / f"{name}-images.npy"),
                "labels_sha256": sha256(colour / f"{name}-labels.npy"),
            }
            for name, count in counted.items()
        },
    }
    assert (colour / "card.json").read_text() == to_json(resealed(card | {"checksum": ""}))
    metrics = json.loads((colour.parents[1] / "reports/data/metrics.json").read_text())
    assert metrics == {
        "train_images": len(MODES),
        "validation_images": 1,
        "test_images": 1,
        "skipped_images": 0,
        "train_mean": pytest.approx(pixels.mean(), abs=1e-6),
        "train_standard_deviation": pytest.approx(np.mean(deviation), abs=1e-6),
    }


def test_two_runs_give_the_same_bytes_in_this_process_as_in_workers(
    colour: Path, modes: tuple[Path, Pixels], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(convert, "CHUNK", 3)  # several chunks
    source = {"source": "folder", "path": str(modes[0])}
    again = prepare_at(tmp_path, source, channels=3, binarization="none")
    assert contents(again) == contents(colour)
    assert dvc_hash(again) == dvc_hash(colour)


def test_several_workers_write_the_chunks_of_one_file(
    project: Paths, prepare: Prepare, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(convert, "_workers", WORKERS)
    monkeypatch.setattr(convert, "CHUNK", 2)
    monkeypatch.setenv("REPARAM_WORKERS", "2")
    folder = draw_flat(project.root / "photos", {f"{value:02}.png": value for value in range(12)})
    (folder / "05.png").write_bytes(b"")
    card = prepare(folder, test=2, validation=2, on_error="skip")
    assert card.skipped == {"05.png": NO_IMAGE}
    assert [value for value, _ in pairs(project.processed)] == [0, 1, 2, 3, 4, *range(6, 12)]


@pytest.mark.parametrize("wanted", ["0", "two", "-1"])
def test_a_number_of_workers_that_is_none_is_refused(
    wanted: str, prepare: Prepare, project: Paths, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(convert, "_workers", WORKERS)
    monkeypatch.setenv("REPARAM_WORKERS", wanted)
    with pytest.raises(UserError) as caught:
        prepare(draw_flat(project.root / "photos", {"a.png": 1, "b.png": 2, "c.png": 3}), test=1, validation=1)
    assert str(caught.value) == f"REPARAM_WORKERS: wanted a number of processes, found {wanted!r}; fix or unset it"
    assert nothing_is_left(project)


# ---- folders and archives


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes of flat images, which differ in their values, with names that need care, and what is no image."""
    folder = tmp_path_factory.mktemp("photos") / "my photos"
    draw_flat(folder / "Größe 大", {f"été {value}.png": value for value in (10, 20, 30, 40)})
    draw_flat(folder / "cats", {"a b.png": 110, "50% #1?.PNG": 120, "deep/er/c.bmp": 130})
    draw_flat(folder, {"cats/.hidden.png": 200, ".git/x.png": 201, "__MACOSX/cats/a b.png": 202})
    (folder / "cats/notes.txt").write_text("not an image")
    flat(folder.parent / "elsewhere/secret.png", 203)
    (folder / "cats/link.png").symlink_to(folder.parent / "elsewhere/secret.png")
    (folder / "birds").symlink_to(folder.parent / "elsewhere")
    return folder


PHOTOS = [(value, 0) for value in (10, 20, 30, 40)] + [(value, 1) for value in (110, 120, 130)]


@pytest.fixture
def tree(photos: Path, project: Paths, prepare: Prepare) -> dict[str, bytes]:
    """The store of the directory tree itself."""
    prepare(photos, test=2, validation=1)
    return contents(project.processed)


def test_every_image_of_a_tree_keeps_its_class(tree: dict[str, bytes], project: Paths) -> None:
    card = store.read_card(project.processed)
    assert card.classes == ("Größe 大", "cats")
    assert pairs(project.processed) == PHOTOS
    assert counts(card) == [4, 1, 2]


@pytest.mark.parametrize(
    ("name", "top"),
    [
        ("photos.zip", ""),
        ("photos.tar.gz", ""),
        ("my photos.tar", ""),
        ("photos.zip", "photos 2024/"),
        ("photos.tar.gz", "Größe/"),
    ],
)
def test_an_archive_gives_the_same_bytes_as_the_tree(
    name: str, top: str, tree: dict[str, bytes], photos: Path, project: Paths, prepare: Prepare
) -> None:
    shutil.rmtree(project.processed)
    prepare(pack(photos, project.root / name, top))
    assert contents(project.processed) == tree
    assert not list(project.root.rglob(".partial-*"))


def test_a_damaged_archive_is_refused(tree: dict[str, bytes], photos: Path, project: Paths, prepare: Prepare) -> None:
    archive = pack(photos, project.root / "photos.zip")
    archive.write_bytes(archive.read_bytes()[:-30])
    with pytest.raises(UserError) as caught:
        prepare(archive)
    assert str(caught.value) == (
        f"{project.raw}/photos.zip: damaged or truncated (File is not a zip file); nothing was unpacked; "
        "fetch or copy the archive again"
    )
    assert contents(project.processed) == tree
    assert not list(project.root.rglob(".partial-*"))


def test_an_archive_without_images_is_refused(project: Paths, prepare: Prepare) -> None:
    (project.root / "texts").mkdir()
    (project.root / "texts/a.txt").write_text("a")
    with pytest.raises(UserError, match=r"images: found no images, wanted files that end in \.png, "):
        prepare(pack(project.root / "texts", project.root / "texts.zip"))
    assert nothing_is_left(project)


def test_raw_data_that_is_not_there_is_missed(project: Paths) -> None:
    with pytest.raises(MissingInputError) as caught:
        preprocess.run(load_config(project.params), project)
    assert str(caught.value) == f"{project.raw}/manifest.json: not found; run `dvc repro download` first"
    assert nothing_is_left(project)


# ---- a table of attributes


KINDS = ("images", "labels", "factors")
FACTS = [{"name": "tens", "size": 3, "is_ordered": True}, {"name": "parity", "size": 2, "is_ordered": False}]


def draw_numbers(folder: Path, paths: dict[int, str]) -> Path:
    """Flat images of some values, and a table that says of each the tens and whether it is even or odd."""
    draw_flat(folder, {path: value for value, path in paths.items()})
    rows = [f"{path},{value // 10},{'odd' if value % 2 else 'even'}\n" for value, path in paths.items()]
    (folder / "attributes.csv").write_text("image,tens,parity\n" + "".join(rows))
    return folder


def facts_of_numbers(directory: Path, split: SplitName) -> list[tuple[int, int, list[int]]]:
    """The value, the label and the factors of each image of a split."""
    found = store.read_split(directory, split)
    assert found.factors is not None
    assert found.factors.dtype == np.int32
    values = found.images.min((1, 2, 3)).tolist()
    return list(zip(values, found.labels.tolist(), found.factors.tolist(), strict=True))


def test_the_card_of_a_table_is_complete_and_the_arrays_hold_its_values(project: Paths, prepare: Prepare) -> None:
    places = {3: "train/c.png", 12: "train/a.png", 21: "train/b.png", 20: "val/a.png", 10: "test/a.png"}
    card = prepare(draw_numbers(project.root / "photos", places), label="parity", binarization="none")
    stored = json.loads((project.processed / "card.json").read_text())
    assert stored["options"] == {"attributes": "attributes.csv", "label": "parity"}
    assert stored["classes"] == ["even", "odd"]
    assert stored["factors"] == FACTS
    assert stored["splits"] == {
        name: {
            "count": sum(classes.values()),
            "classes": classes,
            **{f"{kind}_sha256": sha256(project.processed / f"{name}-{kind}.npy") for kind in KINDS},
        }
        for name, classes in {"train": {"even": 1, "odd": 2}, "validation": {"even": 1}, "test": {"even": 1}}.items()
    }
    assert card == DataCard.read(project.processed / "card.json", "preprocess")
    found = {name: facts_of_numbers(project.processed, name) for name in SPLITS}
    assert found == {
        "train": [(12, 0, [1, 0]), (21, 1, [2, 1]), (3, 1, [0, 1])],
        "validation": [(20, 0, [2, 0])],
        "test": [(10, 0, [1, 0])],
    }


@pytest.mark.parametrize("label", ["parity", "tens"])
def test_a_split_that_is_drawn_keeps_labels_and_factors_with_their_images(
    label: str, project: Paths, prepare: Prepare
) -> None:
    folder = draw_numbers(project.root / "photos", {value: f"{value:02}.png" for value in range(30)})
    card = prepare(folder, label, test=7, validation=5, binarization="none")
    assert (card.classes, counts(card)) == (("even", "odd") if label == "parity" else ("0", "1", "2"), [18, 5, 7])
    found = [facts for name in SPLITS for facts in facts_of_numbers(project.processed, name)]
    chosen = ["tens", "parity"].index(label)
    assert sorted(found) == [(value, (value // 10, value % 2)[chosen], [value // 10, value % 2]) for value in range(30)]
    first = contents(project.processed)
    prepare(folder, label)
    assert contents(project.processed) == first


def test_images_that_are_left_out_take_their_factors_along(project: Paths, prepare: Prepare) -> None:
    folder = draw_numbers(project.root / "photos", {value: f"{value:02}.png" for value in range(30)})
    for name in ("04.png", "05.png"):
        (folder / name).write_bytes(b"")
    settings = {"test": 3, "validation": 3, "on_error": "skip", "classes": ["odd"], "binarization": "none"}
    card = prepare(folder, "parity", **settings)
    assert (card.classes, card.skipped) == (("odd",), {"05.png": NO_IMAGE})
    assert [fact.model_dump() for fact in card.factors] == FACTS  # numbers mean the same as without a choice of classes
    found = [facts for name in SPLITS for facts in facts_of_numbers(project.processed, name)]
    assert sorted(found) == [(value, 0, [value // 10, 1]) for value in range(1, 30, 2) if value != 5]


# ---- published splits, and splits that are drawn


def test_published_folders_are_kept_as_splits(project: Paths, prepare: Prepare) -> None:
    folder = project.root / "photos"
    draw_flat(folder / "train", {"cats/a.png": 1, "dogs/a.png": 2, "dogs/b.png": 3})
    draw_flat(folder / "test", {"dogs/a.png": 4, "eels/a.png": 5})
    card = prepare(folder, validation=1)
    assert card.classes == ("cats", "dogs", "eels")
    assert counts(card) == [2, 1, 2]
    assert images(project.processed, "test") == [[[[4, 4], [4, 4]]], [[[5, 5], [5, 5]]]]
    assert labels(project.processed, "test") == [1, 2]
    assert pairs(project.processed) == [(1, 0), (2, 1), (3, 1), (4, 1), (5, 2)]


@pytest.mark.parametrize(
    ("validation", "test", "expected"),
    [(0.125, 0.2, [1258, 180, 359]), (100, 297, [1400, 100, 297]), (0.5, 797, [500, 500, 797]), (1, 1, [1795, 1, 1])],
)
def test_shares_are_fractions_or_numbers_of_images(
    validation: float, test: float, expected: list[int], prepare: Prepare
) -> None:
    assert counts(prepare(validation=validation, test=test)) == expected


def test_without_a_validation_share_all_other_images_are_trained_on(project: Paths, prepare: Prepare) -> None:
    card = prepare(validation=0)
    assert counts(card) == [1438, 0, 359]
    assert card.splits["validation"].classes == {}
    assert images(project.processed, "validation") == labels(project.processed, "validation") == []
    assert np.load(project.processed / "validation-images.npy").shape == (0, 1, 8, 8)
    metrics = json.loads(project.data_metrics.read_text())
    assert [metrics[f"{name}_images"] for name in SPLITS] == [1438, 0, 359]


@pytest.mark.parametrize("on_error", ["fail", "skip"])
@pytest.mark.parametrize("workers", [None, "2"])
def test_a_folder_without_a_validation_share_is_trained_on_too(
    workers: str | None, on_error: str, project: Paths, prepare: Prepare, monkeypatch: pytest.MonkeyPatch
) -> None:
    if workers:
        monkeypatch.setattr(convert, "_workers", WORKERS)
        monkeypatch.setenv("REPARAM_WORKERS", workers)
    folder = draw_flat(project.root / "photos", {f"{value}.png": value for value in range(5)})
    card = prepare(folder, test=2, validation=0, on_error=on_error)
    assert counts(card) == [3, 0, 2]
    assert pairs(project.processed) == [(value, 0) for value in range(5)]


def test_a_published_validation_folder_is_kept_without_a_share(project: Paths, prepare: Prepare) -> None:
    folder = draw_flat(project.root / "photos", {"train/1.png": 1, "val/2.png": 2, "test/3.png": 3})
    assert counts(prepare(folder, validation=0)) == [1, 1, 1]


def test_every_digit_is_in_one_split_with_its_label(project: Paths, prepare: Prepare) -> None:
    prepare(validation=0.3, test=0.3)
    published = load_digits()
    grey = np.rint(published.images * 255 / 16).astype(np.uint8)
    wanted = sorted((image.tobytes(), int(label)) for image, label in zip(grey, published.target, strict=True))
    splits = [store.read_split(project.processed, name) for name in SPLITS]
    found = [
        (image.tobytes(), int(label))
        for split in splits
        for image, label in zip(split.images, split.labels, strict=True)
    ]
    assert sorted(found) == wanted


def test_another_seed_draws_another_split(project: Paths, prepare: Prepare) -> None:
    prepare()
    first = contents(project.processed)
    prepare(seed=1)
    second = contents(project.processed)
    assert all(second[name] != content for name, content in first.items())
    prepare(seed=0)
    assert contents(project.processed) == first


def test_one_class_of_a_folder_is_a_class(project: Paths, prepare: Prepare) -> None:
    folder = draw_flat(project.root / "photos", {f"cats/{value}.png": value for value in range(4)})
    card = prepare(folder, test=1, validation=1)
    assert card.classes == ("cats",)
    assert pairs(project.processed) == [(value, 0) for value in range(4)]


@pytest.mark.parametrize(
    ("count", "shares", "message"),
    [
        (
            1,
            {"test": 0.2, "validation": 0.125},
            "preprocess.test: wanted one image at least, found 0.2 of 1 images; raise it",
        ),
        (
            2,
            {"test": 1, "validation": 0.125},
            "preprocess.validation: wanted one image at least, found 0.125 of 1 images; raise it",
        ),
        *(
            (
                count,
                {"test": test, "validation": 1},
                f"preprocess.test {test} and preprocess.validation 1: wanted images for {split}, found none left of "
                f"{count}; lower what is too large",
            )
            for count, test, split in ((1, 1, "validation"), (2, 1, "train"), (3, 100, "validation"))
        ),
    ],
)
def test_a_split_that_leaves_nothing_is_refused(
    count: int, shares: dict[str, float], message: str, project: Paths, prepare: Prepare
) -> None:
    folder = draw_flat(project.root / "photos", {f"{value}.png": value for value in range(count)})
    with pytest.raises(UserError) as caught:
        prepare(folder, **shares)
    assert str(caught.value) == f"{message} in params.yaml"
    assert nothing_is_left(project)


def test_classes_are_kept_in_the_order_of_the_source_and_numbered_again(project: Paths, prepare: Prepare) -> None:
    card = prepare(classes=["7", "3"])
    assert card.classes == ("3", "7")
    published = load_digits()
    assert sum(counts(card)) == np.isin(published.target, [3, 7]).sum()
    grey = np.rint(published.images * 255 / 16).astype(np.uint8)
    numbers = {3: 0, 7: 1}
    known = {
        image.tobytes(): numbers[int(label)]
        for image, label in zip(grey, published.target, strict=True)
        if label in numbers
    }
    for name in SPLITS:
        split = store.read_split(project.processed, name)
        assert [known[image.tobytes()] for image in split.images] == split.labels.tolist()
        assert set(card.splits[name].classes) == {"3", "7"}


def test_a_class_that_is_not_there_is_refused_with_those_that_are(project: Paths, prepare: Prepare) -> None:
    with pytest.raises(UserError) as caught:
        prepare(classes=["3", "three"])
    known = ", ".join(repr(str(digit)) for digit in range(10))
    message = f"preprocess.classes: wanted names among {known}; found 'three'; fix it in params.yaml"
    assert str(caught.value) == message
    assert nothing_is_left(project)


def test_a_limit_takes_a_part_of_each_split_at_random_and_in_order(project: Paths, prepare: Prepare) -> None:
    prepare()
    whole = {name: images(project.processed, name) for name in SPLITS}
    card = prepare(limit=200)
    assert counts(card) == [200, 180, 200]
    for name in SPLITS:
        rest = iter(whole[name])
        assert all(image in rest for image in images(project.processed, name))  # in the same order
    assert len(np.unique(labels(project.processed))) == 10


# ---- sizes


@pytest.fixture
def mixed(project: Paths) -> Path:
    """Colour JPEGs of three sizes."""
    for seed, (height, width) in enumerate([(40, 60), (60, 40), (33, 90)]):
        draw(project.root / f"photos/{seed}.jpg", noise(seed, height, width, 3), quality=90)
    return project.root / "photos"


@pytest.mark.parametrize("on_error", ["fail", "skip"])
def test_mixed_sizes_need_an_image_size(on_error: str, mixed: Path, project: Paths, prepare: Prepare) -> None:
    with pytest.raises(UserError) as caught:
        prepare(mixed, test=1, validation=1, channels=3, on_error=on_error)
    found = re.fullmatch(
        r"preprocess: .*/(\d)\.jpg: wanted (\d+x\d+) pixels like the first image, found (\d+x\d+); set "
        r"preprocess\.image_size in params\.yaml to give all one size",
        str(caught.value),
    )
    assert found is not None
    sizes = ["60x40", "40x60", "90x33"]
    assert found[3] == sizes[int(found[1])]
    assert found[2] in sizes
    assert found[2] != found[3]
    assert nothing_is_left(project)


def test_mixed_sizes_are_resized_and_cropped_as_torchvision_does(mixed: Path, project: Paths, prepare: Prepare) -> None:
    from torchvision.transforms import functional

    card = prepare(mixed, test=1, validation=1, channels=3, image_size=16, binarization="none")
    assert card.shape == (3, 16, 16)
    wanted = []
    for path in mixed.iterdir():
        with Image.open(path) as image:
            fitted = functional.center_crop(functional.resize(image, 16), [16, 16])
        wanted.append(np.asarray(fitted).transpose(2, 0, 1).tolist())
    found = [image for name in SPLITS for image in images(project.processed, name)]
    assert sorted(found) == sorted(wanted)


def test_an_image_size_fits_published_arrays_too(project: Paths, prepare: Prepare) -> None:
    card = prepare(image_size=32, channels=3)
    assert card.shape == (3, 32, 32)
    assert store.read_split(project.processed, "train").images.shape == (card.splits["train"].count, 3, 32, 32)


# ---- images that cannot be read


@pytest.fixture
def damaged(project: Paths) -> Path:
    """Ten images of two classes, of which four are damaged."""
    folder = project.root / "photos"
    draw_flat(folder, {f"cats/{value}.png": value for value in range(5)})
    draw_flat(folder, {f"dogs/{value}.png": value for value in range(5, 8)})
    os.truncate(draw(folder / "cats/2.png", noise(2, 16, 16)), 150)
    (folder / "cats/empty.png").write_bytes(b"")
    (folder / "dogs/page é.jpg").write_text("<html>404</html>")
    draw(folder / "dogs/cut.jpg", noise(1, 64, 64, 3))
    os.truncate(folder / "dogs/cut.jpg", 1000)
    return folder


REASONS = {
    "cats/2.png": "image file is truncated",
    "cats/empty.png": NO_IMAGE,
    "dogs/cut.jpg": "image file is truncated",
    "dogs/page é.jpg": NO_IMAGE,
}


def test_unreadable_images_are_counted_and_listed_and_nothing_is_written(
    damaged: Path, project: Paths, prepare: Prepare
) -> None:
    with pytest.raises(UserError) as caught:
        prepare(damaged, test=2, validation=2)
    first, *lines, last = str(caught.value).splitlines()
    assert first == "preprocess: 4 unreadable images:"
    listed = dict(line.strip().split(": ", 1) for line in lines)
    assert set(listed) == set(REASONS)
    assert all(listed[name].startswith(reason) for name, reason in REASONS.items())
    assert last == FOLDER_REMEDY
    assert nothing_is_left(project)


def test_a_failure_leaves_the_store_of_an_earlier_run_alone(damaged: Path, project: Paths, prepare: Prepare) -> None:
    prepare()
    before = contents(project.processed) | contents(project.data_metrics.parent)
    with pytest.raises(UserError, match="4 unreadable images"):
        prepare(damaged, test=2, validation=2)
    assert contents(project.processed) | contents(project.data_metrics.parent) == before


def test_a_message_names_twenty_unreadable_images_and_counts_the_others(project: Paths, prepare: Prepare) -> None:
    folder = draw_flat(project.root / "photos", {f"{value}.png": value for value in range(3)})
    for number in range(10, 33):
        (folder / f"{number}.png").write_bytes(b"")
    with pytest.raises(UserError) as caught:
        prepare(folder, test=1, validation=1)
    lines = str(caught.value).splitlines()
    assert lines[0] == "preprocess: 23 unreadable images:"
    assert len([line for line in lines if line.endswith(f".png: {NO_IMAGE}")]) == 20
    assert lines[-2:] == ["  and 3 more", FOLDER_REMEDY]


def test_skipped_images_are_named_in_the_card_and_the_others_keep_their_labels(
    damaged: Path, project: Paths, prepare: Prepare
) -> None:
    card = prepare(damaged, test=3, validation=3, on_error="skip")
    assert set(card.skipped) == set(REASONS)
    assert all(card.skipped[name].startswith(reason) for name, reason in REASONS.items())
    kept = [(0, 0), (1, 0), (3, 0), (4, 0), (5, 1), (6, 1), (7, 1)]
    # The grey of what is damaged stays unseen, and the value of the flat ones is that of their class.
    assert pairs(project.processed) == kept
    assert sum(counts(card)) == len(kept)
    assert json.loads(project.data_metrics.read_text())["skipped_images"] == 4
    for name in SPLITS:
        assert sum(card.splits[name].classes.values()) == card.splits[name].count
        assert sha256(project.processed / f"{name}-images.npy") == card.splits[name].images_sha256
    assert not list(project.root.rglob(".partial-*"))


def test_images_of_one_name_in_two_published_splits_are_both_listed(project: Paths, prepare: Prepare) -> None:
    folder = draw_flat(
        project.root / "photos", {f"{part}/{n}.png": n for part in ("train", "val", "test") for n in (1, 2)}
    )
    for part in ("train", "val"):
        (folder / part / "1.png").write_bytes(b"")
    with pytest.raises(UserError) as caught:
        prepare(folder)
    assert str(caught.value) == (
        f"preprocess: 2 unreadable images:\n  train/1.png: {NO_IMAGE}\n  val/1.png: {NO_IMAGE}\n{FOLDER_REMEDY}"
    )
    card = prepare(folder, on_error="skip")
    assert card.skipped == {"train/1.png": NO_IMAGE, "val/1.png": NO_IMAGE}
    assert counts(card) == [1, 1, 2]


@pytest.mark.parametrize("on_error", ["fail", "skip"])
def test_a_size_that_no_readable_image_gives_is_missed(on_error: str, project: Paths, prepare: Prepare) -> None:
    folder = draw_flat(project.root / "photos", {"test/1.png": 1, "train/1.png": 1, "train/2.png": 2})
    for name in ("1.png", "2.png"):
        (folder / "train" / name).write_bytes(b"")
    with pytest.raises(UserError) as caught:
        prepare(folder, validation=1, on_error=on_error)
    (name,) = [name for name in ("1.png", "2.png") if f"  {name}: " in str(caught.value)]
    assert str(caught.value) == (
        f"preprocess: no image of the train split is readable, of 1:\n  {name}: {NO_IMAGE}\n"
        "fix them, or give other images"
    )
    assert nothing_is_left(project)


@pytest.mark.parametrize(("split", "image_size"), [("train", 2), ("validation", 2), ("test", None)])
def test_a_split_of_which_nothing_is_readable_is_refused(
    split: str, image_size: int | None, project: Paths, prepare: Prepare
) -> None:
    folder = draw_flat(
        project.root / "photos", {f"{part}/{n}.png": n for part in ("train", "validation", "test") for n in (1, 2)}
    )
    for name in ("1.png", "2.png"):
        (folder / split / name).write_bytes(b"")
    with pytest.raises(UserError) as caught:
        prepare(folder, on_error="skip", image_size=image_size)
    assert str(caught.value) == (
        f"preprocess: no image of the {split} split is readable, of 2:\n"
        f"  {split}/1.png: {NO_IMAGE}\n  {split}/2.png: {NO_IMAGE}\nfix them, or give other images"
    )
    assert nothing_is_left(project)


# ---- a full disk


def run_command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> str:
    """Run a `preprocess` that fails, and return what it says."""
    monkeypatch.setattr(sys, "argv", ["reparam", "preprocess"])
    with pytest.raises(SystemExit) as caught:
        cli.main()
    assert caught.value.code == 1
    return capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize("place", ["the memory map", "its pages", "the labels"])
def test_a_full_disk_is_named_and_nothing_half_written_is_left(
    place: str, project: Paths, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    download.run(load_config(project.params), project)
    target, name = {
        "the memory map": (np.lib.format, "open_memmap"),
        "its pages": (os, "posix_fallocate"),
        "the labels": (np, "save"),
    }[place]

    def fail(*arguments: object, **options: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(target, name, fail)
    message = f"error: {project.processed}: No space left on device"
    assert run_command(monkeypatch, capsys) == message
    assert nothing_is_left(project)


@pytest.fixture
def small_disk(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """A command before a command, which runs it in a directory of its own of 600 kB, named by the first argument."""
    place = tmp_path_factory.mktemp("disk")
    mount = 'mount -t tmpfs -o size=600k tmpfs "$0" && cd "$0" && "$@"'
    command = ["unshare", "-rm", "sh", "-c", mount, str(place)]
    if shutil.which("unshare") is None or subprocess.run([*command, "true"], capture_output=True).returncode:
        pytest.skip("a small file system needs Linux and the right to mount one")
    return command


def test_a_disk_that_is_really_full_kills_no_worker(
    small_disk: list[str], project: Paths, params: dict[str, Any], write_params: Callable[[dict[str, Any]], None]
) -> None:
    draw_flat(project.root / "photos", {f"{value:02}.png": value for value in range(40)})
    change(params["download"], {"source": "folder", "path": str(project.root / "photos")})
    params["preprocess"] |= {"image_size": 128}  # 32 * 16 kB in the largest split
    write_params(params)
    commands = (
        f"cp {project.params} . && {sys.executable} -m reparam download && "
        f"{sys.executable} -m reparam preprocess; echo $?; find . -name '.partial*' -o -name processed"
    )
    environment = {**os.environ, "PYTHONPATH": str(SOURCE), "MLFLOW_TRACKING_URI": "off"}
    done = subprocess.run([*small_disk, "sh", "-c", commands], env=environment, capture_output=True, text=True)
    assert done.stderr == (f"error: {small_disk[-1]}/data/processed: No space left on device\n")
    assert done.stdout == "1\n"


# ---- what the pixels become


def grey_digits(project: Paths, prepare: Prepare) -> Pixels:
    prepare(binarization="none")
    return np.asarray(store.read_split(project.processed, "train").images)


@pytest.mark.parametrize("binarization", ["none", "dynamic"])
def test_grey_values_are_stored_where_they_are_needed(binarization: str, project: Paths, prepare: Prepare) -> None:
    grey = grey_digits(project, prepare)
    card = prepare(binarization=binarization)
    assert card.binarization == binarization
    assert images(project.processed) == grey.tolist()
    assert len(np.unique(grey)) == 17


def test_a_threshold_makes_pixels_black_or_white_at_one_half(project: Paths, prepare: Prepare) -> None:
    grey = grey_digits(project, prepare)
    card = prepare(binarization="threshold")
    assert card.binarization == "threshold"
    np.testing.assert_array_equal(images(project.processed), np.where(grey >= 128, 255, 0))


def test_static_draws_each_pixel_once_with_its_grey_value_as_the_probability(project: Paths, prepare: Prepare) -> None:
    grey = grey_digits(project, prepare)
    card = prepare(binarization="static")
    drawn = np.asarray(images(project.processed))
    assert card.binarization == "static"
    assert set(np.unique(drawn)) == {0, 255}
    for value in np.unique(grey):
        share, count = (drawn[grey == value] / 255).mean(), (grey == value).sum()
        chance = value / 255
        # Within four standard deviations of a share of so many draws, and exact for black and white.
        assert abs(share - chance) <= 4 * np.sqrt(chance * (1 - chance) / count), value


def test_static_is_drawn_by_the_seed_and_not_by_the_size_of_the_chunks(
    project: Paths, prepare: Prepare, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare(binarization="static")
    first = contents(project.processed)
    monkeypatch.setattr(store, "CHUNK", 7)
    prepare(binarization="static")
    assert contents(project.processed) == first


@pytest.mark.parametrize("scaling", ["unit", "symmetric", "standard"])
def test_scaling_is_recorded_and_leaves_the_stored_pixels_alone(scaling: str, project: Paths, prepare: Prepare) -> None:
    grey = grey_digits(project, prepare)
    card = prepare(scaling=scaling, binarization="none")
    mean, deviation = round(float((grey / 255).mean()), 6), round(float((grey / 255).std()), 6)
    shift = {"unit": 0.0, "symmetric": 0.5, "standard": mean}[scaling]
    scale = {"unit": 1.0, "symmetric": 0.5, "standard": deviation}[scaling]
    assert card.scaling == Scaling(kind=scaling, shift=(shift,), scale=(scale,))
    assert (card.train_mean, card.train_standard_deviation) == ((mean,), (deviation,))
    assert images(project.processed) == grey.tolist()


# ---- runs one after another


def test_files_of_an_earlier_run_do_not_survive(photos: Path, project: Paths, prepare: Prepare) -> None:
    prepare()
    (project.processed / "stale.npy").write_bytes(b"of an older version")
    card = prepare(photos, test=2, validation=1)
    arrays = {f"{name}-{kind}.npy" for name in SPLITS for kind in ("images", "labels")}
    assert set(contents(project.processed)) == {"card.json", *arrays}
    assert (card.source, card.shape) == ("folder", (1, 2, 2))


# ---- MNIST


def test_a_small_mnist_keeps_its_published_test_set(project: Paths, monkeypatch: pytest.MonkeyPatch) -> None:
    from torchvision import datasets

    mirror = project.root / "mirror"
    monkeypatch.setattr(datasets.MNIST, "resources", write_mnist(mirror))
    directory = prepare_at(project.root, {"source": "mnist"}, "mirror", validation=10)
    card = store.read_card(directory)
    assert card.classes == tuple(datasets.MNIST.classes)
    assert counts(card) == [30, 10, 10]
    assert images(directory, "test") == noise(1, 10, 28, 28)[:, None].tolist()
    assert labels(directory, "test") == list(range(10))
    known = {image.tobytes(): number % 10 for number, image in enumerate(noise(0, 40, 28, 28))}
    for name in ("train", "validation"):
        split = store.read_split(directory, name)  # type: ignore[arg-type]
        assert [known[image.tobytes()] for image in split.images] == split.labels.tolist()
    assert not list(project.root.rglob(".partial-*"))


@pytest.fixture(scope="module")
def mnist(mnist_files: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The store of the real MNIST."""
    return prepare_at(tmp_path_factory.mktemp("mnist"), {"source": "mnist"}, mnist_files.as_uri())


def test_the_real_mnist_takes_no_more_than_its_pixels_and_one_percent(mnist: Path) -> None:
    assert sum(path.stat().st_size for path in mnist.iterdir()) <= 1.01 * 70_000 * 28 * 28


def test_the_real_mnist_is_whole(mnist: Path, mnist_files: Path) -> None:
    card = store.read_card(mnist)
    assert counts(card) == [52_500, 7_500, 10_000]
    # As LeCun's files have them: the first test images, and how often each digit is in the training set.
    assert labels(mnist, "test")[:5] == [7, 2, 1, 0, 4]
    frequencies = np.bincount(labels(mnist, "train")) + np.bincount(labels(mnist, "validation"))
    assert frequencies.tolist() == [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    assert card.train_mean[0] == pytest.approx(0.1307, abs=5e-4)
    assert card.train_standard_deviation[0] == pytest.approx(0.3081, abs=5e-4)


# Factors of variation


def test_factors_travel_with_their_images(prepare: Prepare, project: Paths, params: dict[str, Any]) -> None:
    params["download"]["source"] = "sprites"
    card = prepare(classes=["square", "heart"], limit=50, binarization="threshold")
    assert [(factor.name, factor.size) for factor in card.factors] == [
        *(("shape", 3), ("scale", 4), ("rotation", 6), ("x", 8), ("y", 8))
    ]
    for name in SPLITS:
        split = store.read_split(project.processed, name)
        assert split.factors is not None
        assert (split.factors.dtype, split.factors.shape) == (np.int32, (50, 5))
        np.testing.assert_array_equal(split.factors[:, 0], 2 * split.labels)  # of squares, 0; of hearts, 2
        rows, columns = np.indices((32, 32)) + 0.5
        squares = split.labels == 0  # whose middles are where x and y say
        weights = split.images[squares, 0] / split.images[squares, 0].sum((1, 2), keepdims=True)
        places = [(weights * grid).sum((1, 2)) for grid in (columns, rows)]
        for place, number in zip(places, split.factors[squares, 3:].T, strict=True):
            np.testing.assert_allclose(place, 8.2 + 15.6 / 7 * number, atol=0.5)


def test_damaged_factors_are_refused(prepare: Prepare, project: Paths, params: dict[str, Any]) -> None:
    params["download"]["source"] = "sprites"
    prepare(limit=20)
    np.save(project.processed / "test-factors.npy", np.zeros((20, 5), np.int32))
    with pytest.raises(DamagedInputError, match=r"test-factors.npy: wanted int32 \(20, 5\), found other values"):
        store.read_split(project.processed, "test")


def test_without_factors_no_file_and_no_card_says_anything_of_them(prepare: Prepare, project: Paths) -> None:
    assert prepare(limit=20).factors is None
    assert not list(project.processed.glob("*factors*"))
    assert "factors" not in (project.processed / "card.json").read_text()
