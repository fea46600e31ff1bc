"""A directory tree of images: their names in a fixed order, their classes, and the split that they may come in."""

import os
import unicodedata
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from reparam.errors import UserError

EXTENSIONS = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm")
SPLIT_FOLDERS = {"train": "train", "validation": "validation", "val": "validation", "test": "test"}
ALL = "all"  # the class of images without class folders, and the split of images without a published one


@dataclass(frozen=True)
class ImageFiles:
    """Image files below `root`, in an order that depends neither on the locale nor on the file system.

    A name is spelled as on disk. A class is spelled in the Unicode form NFC, so that it is the same one in every split
    and on every system.
    """

    root: Path
    names: tuple[str, ...]  # posix paths relative to `root`
    labels: tuple[int, ...]  # for each name, its index in `classes`
    classes: tuple[str, ...]
    factors: npt.NDArray[np.int64] | None = None  # (N, F): of variation, where known


def list_splits(root: Path, *, has_class_folders: bool = True) -> dict[str, ImageFiles]:
    """Find the images of each published split, with the same classes in all; without one, all images as "all".

    A published split is a folder `train` with any of `val`, `validation` and `test`, in small or capital letters. A
    folder `train` on its own holds all images; beside folders of other names, it is a class like them. Without class
    folders, all images are of one class, wherever they lie.
    Raises: UserError if there are no images, or if the class or split of an image is unclear.
    """
    return _label(_find_splits(root), has_class_folders=has_class_folders)


def _find_splits(root: Path) -> dict[str, tuple[Path, list[str]]]:
    """Return the folder of each split, and the names of images in it."""
    names = find_images(root)
    folders = {
        folder: SPLIT_FOLDERS[folder.lower()]
        for folder in sorted(entry.name for entry in _entries(root) if entry.is_dir(follow_symlinks=False))
        if folder.lower() in SPLIT_FOLDERS
    }
    beside = [name for name in names if _first(name) not in folders]
    if "train" not in folders.values() or (len(folders) == 1 and beside):
        return {ALL: (root, names)}
    listing = ", ".join(folders)
    if beside:
        raise UserError(
            f"{root}: the folders {listing} are a published split, but {beside[0]} lies in none of them; move it into "
            "one of them or away"
        )
    if len(set(folders.values())) < len(folders):
        raise UserError(f"{root}: wanted each split once, found the folders {listing}; merge or rename two of them")
    parts = {
        split: (root / folder, [name.removeprefix(f"{folder}/") for name in names if _first(name) == folder])
        for folder, split in folders.items()
    }
    if len(parts) == 1:
        return {ALL: parts["train"]}
    return {split: parts[split] for split in ("train", "validation", "test") if split in parts}


def _label(parts: Mapping[str, tuple[Path, list[str]]], *, has_class_folders: bool) -> dict[str, ImageFiles]:
    """Number the classes of all parts together, so that a number means the same in each."""
    for root, names in parts.values():
        if not names:
            raise UserError(
                f"{root}: found no images, wanted files that end in {', '.join(EXTENSIONS)}; hidden files, and links "
                "to folders or out of this one, do not count"
            )
    if not has_class_folders:
        return {
            part: ImageFiles(root, tuple(names), (0,) * len(names), (ALL,)) for part, (root, names) in parts.items()
        }
    places = [(root / name, "/" in name) for root, names in parts.values() for name in names]
    with_folder, without = ([path for path, found in places if found is wanted] for wanted in (True, False))
    if with_folder and without:
        raise UserError(
            f"{without[0]}: lies in no class folder, but {with_folder[0]} does; wanted all images in class folders or "
            "none: move those without one into a folder"
        )
    classes = sorted({_class(name) for _, names in parts.values() for name in names})
    numbers = {name: number for number, name in enumerate(classes)}
    return {
        part: ImageFiles(root, tuple(names), tuple(numbers[_class(name)] for name in names), tuple(classes))
        for part, (root, names) in parts.items()
    }


def _class(name: str) -> str:
    return unicodedata.normalize("NFC", _first(name)) if "/" in name else ALL


def _first(name: str) -> str:
    return name.split("/", 1)[0]


def find_images(root: Path) -> list[str]:
    """List the images below `root`: paths relative to it, in the order of `ImageFiles`.

    Raises: UserError if a name is not UTF-8, which cards, figures and DVC cannot spell.
    """
    names = sorted(_walk(root, "", root.resolve()), key=_place)
    odd = [os.fsencode(name) for name in names if not _is_text(name)]
    if odd:
        more = f" and {len(odd) - 1} more" if len(odd) > 1 else ""
        raise UserError(f"{root}: wanted names in UTF-8, found {odd[0]!r}{more}; rename the files or their folders")
    return names


def _is_text(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:  # of the surrogates that Python gives for bytes which are not UTF-8
        return False
    return True


def _place(name: str) -> tuple[list[str], str]:
    # Folder by folder, and as NFC, because one system hands out é as one character, another as two.
    return unicodedata.normalize("NFC", name).split("/"), name


def _walk(folder: Path, prefix: str, top: Path) -> Iterator[str]:
    for entry in _entries(folder):
        name = prefix + entry.name
        if entry.is_dir(follow_symlinks=False):
            yield from _walk(folder / entry.name, f"{name}/", top)
        elif entry.name.lower().endswith(EXTENSIONS) and _is_file_of(top, entry):
            yield name


def _is_file_of(top: Path, entry: os.DirEntry[str]) -> bool:
    if not entry.is_symlink():
        return entry.is_file()  # neither a pipe nor a device
    target = Path(entry.path)
    return target.is_file() and target.resolve().is_relative_to(top)


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return [entry for entry in entries if not entry.name.startswith(".") and entry.name != "__MACOSX"]
    except OSError as error:
        raise UserError(
            f"{folder}: wanted a folder of images, found: {error.strerror}; fix the path or its permissions"
        ) from error
