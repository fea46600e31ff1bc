"""A table of attributes: a CSV file with a row for each image, whose columns become factors of variation."""

import csv
import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from reparam.cards.data import FactorFacts
from reparam.config.section import shorten
from reparam.data.sources.folder import ImageFiles
from reparam.data.sources.raw import Factors, Raw
from reparam.errors import UserError

MOST = 1_000  # values of a column: one with more is a measurement or a name, and no category
WHOLE = re.compile(r"[+-]?[0-9]{1,18}")


def describe(splits: Mapping[str, ImageFiles], base: Path, table: str, label: str | None) -> Raw:
    """Add the attributes in a CSV file to images. The file is in the folder `base`; the paths in it start there, too.

    Values are numbered from 0, in the order of numbers if all are whole numbers, each written in one way, otherwise of
    text. Those of the column `label`, if it is not None, are the classes. Rows of images that are not there are
    ignored.
    Raises: UserError.
    """
    path = base / table
    if not path.is_file():
        raise UserError(f"download.folder.attributes: wanted a CSV file, found none at {path}; fix it in params.yaml")
    images = [(files.root / name).relative_to(base).as_posix() for files in splits.values() for name in files.names]
    columns, numbers = _read(path, images)
    classes, labels = next(iter(splits.values())).classes, None
    if label is not None:
        if (column := _text(label)) not in columns:
            listing = ", ".join(map(repr, list(columns)[:50]))
            raise UserError(
                f"download.folder.label: wanted a column of {path} ({listing}), found {label!r}; fix it in params.yaml"
            )
        classes, labels = tuple(columns[column]), numbers[:, list(columns).index(column)].tolist()
    parts, start = {}, 0
    for split, files in splits.items():
        rows = slice(start, start := start + len(files.names))
        own = files.labels if labels is None else tuple(labels[rows])
        parts[split] = replace(files, labels=own, classes=classes, factors=numbers[rows])
    facts = (
        FactorFacts(name=name, size=len(values), is_ordered=_are_whole(values)) for name, values in columns.items()
    )
    return Raw(dict(parts), classes, tuple(facts))


def _read(path: Path, images: Sequence[str]) -> tuple[dict[str, list[str]], Factors]:
    """Return the values of each column, in order, and for each image their numbers. Shapes: -> (N, F)."""
    rows = _rows(path)
    columns = _columns(*next(rows, (f"{path}: line 1", [])))
    places = {_text(image): place for place, image in enumerate(images)}
    found: list[dict[str, int]] = [{} for _ in columns]  # the values of each column, numbered as they come
    numbers = np.full((len(images), len(columns)), -1, np.int64)
    for where, row in rows:
        if len(row) != 1 + len(columns):
            raise UserError(
                f"{where}: wanted {1 + len(columns)} fields, as in the header, found {len(row)}; fix the row"
            )
        place = places.get(_text(row[0]).removeprefix("./"))
        if place is None:
            continue
        if numbers[place, 0] >= 0:
            raise UserError(f"{where}: wanted one row for each image, found another for {row[0]!r}; remove one")
        numbers[place] = [_number(where, *cell) for cell in zip(columns, row[1:], found, strict=True)]
    lacking = np.flatnonzero(numbers[:, 0] < 0)
    if len(lacking):
        more = f" and {len(lacking) - 1} more" if len(lacking) > 1 else ""
        raise UserError(
            f"{path}: wanted a row for each image, found none for {images[lacking[0]]!r}{more}; add it, with this "
            "path, or move the image away"
        )
    ordered = [sorted(own, key=int if _are_whole([*own]) else None) for own in found]
    for place, (values, own) in enumerate(zip(ordered, found, strict=True)):
        numbers[:, place] = np.array([values.index(value) for value in own])[numbers[:, place]]
    return dict(zip(columns, ordered, strict=True)), numbers


def _columns(where: str, header: Sequence[str]) -> list[str]:
    columns = [_text(column) for column in header[1:]]
    if not columns or "" in columns or len(set(columns)) < len(columns):
        raise UserError(
            f"{where}: wanted a header: a name for the paths and different ones for the attributes, with commas in "
            f"between, found {shorten(','.join(header))!r}; write it as the first line"
        )
    return columns


def _rows(path: Path) -> Iterator[tuple[str, list[str]]]:
    """Yield the place of each row that is not empty, and the row."""
    with path.open("rb") as file:
        rows = csv.reader((line.decode("utf-8-sig") for line in file), strict=True)  # -sig: spreadsheets write a mark
        try:
            for row in rows:
                if row:
                    yield f"{path}: line {rows.line_num}", row
        except UnicodeDecodeError as error:
            where, odd = f"{path}: line {rows.line_num + 1}", error.object[error.start : error.end]
            raise UserError(f"{where}: wanted text in UTF-8, found {odd!r}; save it as UTF-8") from None
        except csv.Error as error:
            raise UserError(f"{path}: line {rows.line_num}: wanted CSV, found none ({error}); fix the line") from None


def _number(where: str, column: str, field: str, known: dict[str, int]) -> int:
    value = _text(field)
    if not value:
        raise UserError(f"{where}: wanted a value of {column!r}, found none; write one, such as 'unknown'")
    if value not in known and len(known) == MOST:
        raise UserError(
            f"{where}: wanted a category with {MOST:,} values at most in column {column!r}, found one more, {value!r}; "
            "remove the column, or put its values into groups"
        )
    return known.setdefault(value, len(known))


def _are_whole(values: Sequence[str]) -> bool:
    """Return whether all are whole numbers, and no two the same number, such as 1 and 01."""
    return all(map(WHOLE.fullmatch, values)) and len(set(map(int, values))) == len(values)


def _text(field: str) -> str:
    return unicodedata.normalize("NFC", field.strip())
