"""Recipes, systems from the literature: each is what differs from `recipes/base.yaml` and the shipped parameters."""

import difflib
import itertools
from collections.abc import Mapping, MutableMapping
from functools import reduce
from operator import getitem
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from reparam.config import Config
from reparam.config.document import ALL, HEAD, with_comments
from reparam.config.load import SHIPPED, check_config, hint, paths_of
from reparam.config.section import shorten
from reparam.config.yaml import read_yaml
from reparam.errors import ParamsError
from reparam.files import refuse_special, whole_file

OTHERS = ("base", "dvc", "published")  # files of the folder that are no recipes


def names(folder: Path) -> list[str]:
    """List the recipes of a folder.

    Raises: ParamsError if the folder is not there.
    """
    if not folder.is_dir():
        raise ParamsError(f"{folder}: not found; run from the root of the project, where recipes/ is")
    return sorted(path.stem for path in folder.glob("*.yaml") if path.stem not in OTHERS)


def header(folder: Path, name: str) -> str:
    """Return the comments on top of a recipe: its source, the published number, the measured number."""
    lines = _text(folder, name).splitlines(keepends=True)
    return "".join(itertools.takewhile(lambda line: line.startswith("#"), lines))


def source(folder: Path, name: str) -> str:
    """Return the source of a recipe."""
    words = header(folder, name).partition("# Source:")[2].partition("# Published")[0]
    return " ".join(words.replace("#", " ").split())


def complete(folder: Path, name: str) -> dict[str, Any]:
    """Return all parameters of a recipe, unchecked.

    Raises: ParamsError if there is no such recipe.
    """
    _text(folder, name)
    values: dict[str, Any] = YAML().load(SHIPPED)
    for path in (folder / "base.yaml", folder / f"{name}.yaml"):
        merge(values, _changes(path))
    return values


def read(folder: Path, name: str, changes: Mapping[str, Any] | None = None) -> Config:
    """Read a recipe, with the new values in `changes`, by the paths of parameters.

    Raises: ParamsError if there is no such recipe or parameter, or a value is wrong.
    """
    values = complete(folder, name)
    for path, value in (changes or {}).items():
        if path not in paths_of():
            raise ParamsError(f"{name}.yaml: {path}: no such parameter; {hint(path, ALL)}")
        *blocks, parameter = path.split(".")
        reduce(getitem, blocks, values)[parameter] = value
    return check_config(values, f"{folder.name}/{name}.yaml")


def params_file(folder: Path, name: str) -> str:
    """Write a recipe as a complete params file.

    Raises: ParamsError as `read`.
    """
    read(folder, name)
    return with_comments(complete(folder, name), f"{header(folder, name)}#\n{HEAD}")


def renewed(path: Path) -> str:
    """Rewrite a params file: keep its values, renew all comments, and add missing parameters with their defaults.

    Raises: ParamsError if a value is wrong.
    """
    changes = _changes(path)
    text = path.read_text(encoding="utf-8")
    own, separator, _ = text.partition("\n\n")[0].partition("\n#\n")  # the comments on top of a recipe
    values: dict[str, Any] = YAML().load(SHIPPED)
    merge(values, changes)
    check_config(values, str(path))
    return with_comments(values, f"{own}{separator}{HEAD}" if separator else HEAD)


def place(text: str, path: Path) -> Path | None:
    """Write a params file. If another one is there, keep it beside the new one, and return its path."""
    refuse_special(path)
    kept = None
    if path.exists() and path.read_bytes() != text.encode():
        backups = (path.with_name(f"{path.name}.bak{number or ''}") for number in itertools.count())
        kept = path.rename(next(backup for backup in backups if not backup.exists()))
    with whole_file(path) as partial:
        partial.write_text(text, encoding="utf-8")
    return kept


def _changes(path: Path) -> Mapping[str, Any]:
    """Read a file of parameters, with their spelling.

    Raises: ParamsError.
    """
    found = read_yaml(path)
    if found is not None and not isinstance(found, dict):
        raise ParamsError(f"{path}: wanted sections of parameters, found {shorten(repr(found))}")
    return YAML().load(path) or {}


def _text(folder: Path, name: str) -> str:
    known = names(folder)
    if name not in known:
        close = difflib.get_close_matches(name, known, n=3)
        help_ = f"did you mean {' or '.join(map(repr, close))}?" if close else "`reparam recipe` lists all"
        raise ParamsError(f"{name}: no recipe in {folder}; {help_}")
    path = folder / f"{name}.yaml"
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ParamsError(f"{path}: not a recipe: {error}; fix or remove it") from None


def merge(values: MutableMapping[str, Any], changes: Mapping[str, Any]) -> None:
    """Change parameters in place, block by block."""
    for name, change in changes.items():
        if isinstance(change, Mapping) and isinstance(values.get(name), MutableMapping):
            merge(values[name], change)
        else:
            values[name] = change
