import os
import random
import unicodedata
from collections.abc import Iterable
from pathlib import Path

import pytest

from reparam.data.sources import folder
from reparam.data.sources.folder import EXTENSIONS, ImageFiles, list_splits
from reparam.errors import UserError

LISTING = ".png, .jpg, .jpeg, .bmp, .gif, .tif, .tiff, .webp, .ppm, .pgm"


def plant(root: Path, *names: str) -> Path:
    """Put empty files into a tree: only their names matter here."""
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return root


def list_images(root: Path) -> ImageFiles:
    """All images of a folder without a published split."""
    [(split, found)] = list_splits(root).items()
    assert split == "all"
    return found


def message(root: Path, list_what: object = list_images) -> str:
    """What the user reads."""
    assert callable(list_what)
    with pytest.raises(UserError) as caught:
        list_what(root)
    return str(caught.value)


def test_folders_of_the_first_level_are_the_classes(tmp_path: Path) -> None:
    plant(tmp_path, "dog/b.png", "dog/a.png", "cat/x/deep/1.jpg", "cat/0.jpg", "empty/notes.txt")
    assert list_images(tmp_path) == ImageFiles(
        root=tmp_path,
        names=("cat/0.jpg", "cat/x/deep/1.jpg", "dog/a.png", "dog/b.png"),
        labels=(0, 0, 1, 1),
        classes=("cat", "dog"),
    )


def test_images_without_folders_are_one_class(tmp_path: Path) -> None:
    plant(tmp_path, "2.png", "1.png", "empty/notes.txt")
    assert list_images(tmp_path) == ImageFiles(tmp_path, ("1.png", "2.png"), (0, 0), ("all",))


@pytest.mark.parametrize(("name", "kind"), [("one.png", "all"), ("dog/one.png", "dog"), ("a/b/c/one.png", "a")])
def test_one_class_of_one_image_is_enough(tmp_path: Path, name: str, kind: str) -> None:
    assert list_images(plant(tmp_path, name)) == ImageFiles(tmp_path, (name,), (0,), (kind,))


def test_a_mixture_of_both_is_refused_with_an_example_of_each(tmp_path: Path) -> None:
    plant(tmp_path, "dog/b.png", "dog/a.png", "z.png", "stray.png")
    assert message(tmp_path) == (
        f"{tmp_path}/stray.png: lies in no class folder, but {tmp_path}/dog/a.png does; wanted all images in class "
        "folders or none: move those without one into a folder"
    )


@pytest.mark.parametrize("extension", EXTENSIONS)
def test_extensions_count_in_small_and_capital_letters(tmp_path: Path, extension: str) -> None:
    names = (f"1{extension.upper()}", f"2{extension}", f"3{extension.title()}")
    assert list_images(plant(tmp_path, *names)).names == names


def test_what_is_hidden_or_no_image_is_ignored(tmp_path: Path) -> None:
    plant(
        tmp_path,
        "dog/a.png",
        *(".hidden.png", "dog/._a.png", ".cache/b.png", "dog/.git/c.png", ".png"),
        *("__MACOSX/dog/a.png", "dog/__MACOSX/a.png", "Thumbs.db", "dog/Thumbs.db", "dog/.DS_Store"),
        *("labels.csv", "dog/a.png.txt", "png", "dog/a.npy"),
    )
    (tmp_path / "dog/folder.png").mkdir()
    os.mkfifo(tmp_path / "dog/pipe.png")
    assert list_images(tmp_path) == ImageFiles(tmp_path, ("dog/a.png",), (0,), ("dog",))


def test_only_links_to_files_in_the_tree_are_followed(tmp_path: Path) -> None:
    outside, root = plant(tmp_path / "outside", "far.png"), plant(tmp_path / "root", "dog/a.png", "cat/b.png")
    links = {
        "dog/inside.png": root / "cat/b.png",
        "dog/relative.png": Path("a.png"),
        "dog/outside.png": outside / "far.png",
        "dog/away.png": Path("../../outside/far.png"),
        "dog/broken.png": root / "nothing.png",
        "dog/loop.png": Path("loop.png"),
        "dog/folder": root / "cat",
        "dog/itself": root,
        "far": outside,
    }
    for name, target in links.items():
        (root / name).symlink_to(target)
    (tmp_path / "link").symlink_to(root)  # the root itself may be one
    for top in (root, tmp_path / "link"):
        assert list_images(top).names == ("cat/b.png", "dog/a.png", "dog/inside.png", "dog/relative.png")


def test_a_folder_without_images_is_refused_with_what_was_looked_for(tmp_path: Path) -> None:
    wanted = (
        f"{tmp_path}: found no images, wanted files that end in {LISTING}; hidden files, and links to folders or out "
        "of this one, do not count"
    )
    assert message(tmp_path) == message(tmp_path, list_splits) == wanted
    assert message(plant(tmp_path, "dog/notes.txt", ".hidden.png")) == wanted


def test_a_name_that_is_not_utf_8_is_refused(tmp_path: Path) -> None:
    latin = os.fsdecode("café".encode("latin-1"))
    try:
        plant(tmp_path / "file", "dog/a.png", f"dog/{latin}.png")
    except OSError:
        pytest.skip("this file system takes UTF-8 only")
    plant(tmp_path / "folder", "dog/a.png", f"{latin}/b.png", f"{latin}/c.png")
    plant(tmp_path / "others", "dog/a.png", f"{latin}/notes.txt")
    rest = "; rename the files or their folders"
    wanted = "wanted names in UTF-8, found"
    assert message(tmp_path / "file") == rf"{tmp_path}/file: {wanted} b'dog/caf\xe9.png'{rest}"
    assert (
        message(tmp_path / "folder", list_splits) == rf"{tmp_path}/folder: {wanted} b'caf\xe9/b.png' and 1 more{rest}"
    )
    assert list_images(tmp_path / "others").names == ("dog/a.png",)


def test_a_folder_that_is_none_is_refused(tmp_path: Path) -> None:
    plant(tmp_path, "a.png")
    for name, found in {"nothing": "No such file or directory", "a.png": "Not a directory"}.items():
        assert message(tmp_path / name) == (
            f"{tmp_path / name}: wanted a folder of images, found: {found}; fix the path or its permissions"
        )


def test_a_folder_that_cannot_be_read_is_not_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plant(tmp_path, "dog/a.png", "cat/b.png")
    scandir = os.scandir

    def refuse(path: Path) -> object:
        if path.name == "cat":
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(folder.os, "scandir", refuse)  # because root may read everything
    assert message(tmp_path) == (
        f"{tmp_path}/cat: wanted a folder of images, found: Permission denied; fix the path or its permissions"
    )


def test_the_order_is_neither_that_of_the_locale_nor_that_of_the_file_system(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ordered = tuple(f"{name}.png" for name in ("10", "9", "B", "a b", "a-b", "a", "c", "ß", "é", "日本"))
    plant(tmp_path, *ordered)
    entries = folder._entries
    for seed in range(5):

        def shuffled(path: Path, seed: int = seed) -> list[os.DirEntry[str]]:
            return random.Random(seed).sample(found := entries(path), len(found))

        monkeypatch.setattr(folder, "_entries", shuffled)
        assert list_images(tmp_path).names == ordered


def test_names_are_in_the_order_of_their_classes(tmp_path: Path) -> None:
    # As plain strings, "a b/1.png" and "a-b/1.png" would come before "a/1.png".
    names = ("a/1.png", "a/2/0.png", "a b/1.png", "a-b/1.png")
    found = list_images(plant(tmp_path, *names))
    assert found.names == names
    assert found.labels == (0, 0, 1, 2)
    assert found.classes == ("a", "a b", "a-b")


def forms(text: str) -> tuple[str, str]:
    """The two ways to spell letters with accents: one character, or letter and accent."""
    return unicodedata.normalize("NFC", text), unicodedata.normalize("NFD", text)


@pytest.mark.parametrize("spelling", [0, 1], ids=["NFC", "NFD"])
def test_names_are_ordered_alike_and_spelled_as_on_disk_in_either_unicode_form(tmp_path: Path, spelling: int) -> None:
    names = tuple(forms(name)[spelling] for name in ("ez/Zoë ö.png", "fé/1.png", "föhn/2.png", "éa/3.png"))
    found = list_images(plant(tmp_path, *names))
    assert found.names == names
    assert all((tmp_path / name).is_file() for name in found.names)
    assert found.classes == ("ez", "f\u00e9", "f\u00f6hn", "\u00e9a")


def test_a_class_spelled_in_both_unicode_forms_is_one_class(tmp_path: Path) -> None:
    one, two = forms("café")
    plant(tmp_path, f"{one}/b.png", f"{two}/a.png", f"{two}/b.png", "dog/1.png")
    if len(list(tmp_path.iterdir())) < 3:
        pytest.skip("to this file system both spellings are one name")
    found = list_images(tmp_path)
    assert found.names == (f"{two}/a.png", f"{two}/b.png", f"{one}/b.png", "dog/1.png")
    assert found.labels == (0, 0, 0, 1)
    assert found.classes == (one, "dog")


def splits(root: Path) -> dict[str, tuple[Path, tuple[str, ...], tuple[int, ...]]]:
    """What `list_splits` found, without the classes."""
    return {split: (part.root, part.names, part.labels) for split, part in list_splits(root).items()}


def test_without_a_published_split_all_images_are_one(tmp_path: Path) -> None:
    plant(tmp_path, "dog/a.png", "cat/b.png", "train.png/c.png")
    assert list_images(tmp_path).names == ("cat/b.png", "dog/a.png", "train.png/c.png")
    assert list_images(tmp_path).classes == ("cat", "dog", "train.png")


@pytest.mark.parametrize("validation", ["val", "validation", "Val", "VALIDATION"])
def test_a_published_split_is_kept(tmp_path: Path, validation: str) -> None:
    plant(tmp_path, "Train/dog/a.png", "Train/cat/b.png", "test/dog/c.png", f"{validation}/cat/d.png", "README.txt")
    assert splits(tmp_path) == {
        "train": (tmp_path / "Train", ("cat/b.png", "dog/a.png"), (0, 1)),
        "validation": (tmp_path / validation, ("cat/d.png",), (0,)),
        "test": (tmp_path / "test", ("dog/c.png",), (1,)),
    }
    assert list(list_splits(tmp_path)) == ["train", "validation", "test"]


def test_a_label_means_the_same_class_in_every_split(tmp_path: Path) -> None:
    one, two = forms("café")
    plant(tmp_path, f"train/{one}/a.png", "train/dog/b.png", "test/ant/c.png", f"test/{two}/d.png")
    found = list_splits(tmp_path)
    assert {split: part.classes for split, part in found.items()} == dict.fromkeys(
        ("train", "test"), ("ant", one, "dog")
    )
    assert {split: part.labels for split, part in found.items()} == {"train": (1, 2), "test": (0, 1)}


def test_published_splits_need_no_classes(tmp_path: Path) -> None:
    plant(tmp_path, "train/a.png", "val/b.png")
    assert splits(tmp_path) == {
        "train": (tmp_path / "train", ("a.png",), (0,)),
        "validation": (tmp_path / "val", ("b.png",), (0,)),
    }
    assert list_splits(tmp_path)["train"].classes == ("all",)


def test_classes_in_one_split_alone_are_refused(tmp_path: Path) -> None:
    plant(tmp_path, "train/dog/a.png", "test/b.png")
    assert message(tmp_path, list_splits) == (
        f"{tmp_path}/test/b.png: lies in no class folder, but {tmp_path}/train/dog/a.png does; wanted all images in "
        "class folders or none: move those without one into a folder"
    )


def test_a_train_folder_alone_holds_all_that_there_is_to_split(tmp_path: Path) -> None:
    plant(tmp_path, "train/dog/a.png", "train/cat/b.png")
    assert list_splits(tmp_path) == {
        "all": ImageFiles(tmp_path / "train", ("cat/b.png", "dog/a.png"), (0, 1), ("cat", "dog"))
    }


@pytest.mark.parametrize("names", [("train/a.png", "bus/b.png"), ("test/a.png", "val/b.png"), ("test/a.png",)])
def test_without_train_or_with_train_among_other_folders_the_folders_are_classes(
    tmp_path: Path, names: Iterable[str]
) -> None:
    found = list_images(plant(tmp_path, *names))
    assert found.names == tuple(sorted(names))
    assert found.classes == tuple(sorted(name.split("/")[0] for name in names))


@pytest.mark.parametrize("stray", ["extra/c.png", "c.png"])
def test_images_beside_a_published_split_are_refused(tmp_path: Path, stray: str) -> None:
    plant(tmp_path, "train/a.png", "test/b.png", stray)
    assert message(tmp_path, list_splits) == (
        f"{tmp_path}: the folders test, train are a published split, but {stray} lies in none of them; move it into "
        "one of them or away"
    )


def test_two_folders_for_one_split_are_refused(tmp_path: Path) -> None:
    plant(tmp_path, "train/a.png", "val/b.png", "validation/c.png")
    assert message(tmp_path, list_splits) == (
        f"{tmp_path}: wanted each split once, found the folders train, val, validation; merge or rename two of them"
    )


@pytest.mark.parametrize("empty", ["train", "test"])
def test_a_published_split_without_images_is_refused_rather_than_passed_over(tmp_path: Path, empty: str) -> None:
    plant(tmp_path, "train/a.png", "test/b.png")
    next((tmp_path / empty).iterdir()).unlink()
    assert message(tmp_path, list_splits).startswith(f"{tmp_path / empty}: found no images, wanted files that end in")
