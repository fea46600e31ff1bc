import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import small_section
from pictures import draw, noise, pack

from reparam.cards.data import DownloadCard, FactorFacts
from reparam.data.sources import registry
from reparam.data.sources.attributes import MOST, describe
from reparam.data.sources.folder import ImageFiles, list_splits
from reparam.data.sources.raw import Raw
from reparam.errors import UserError

TABLE = "attributes.csv"
FACES = (
    "image,smiling,hair,year\n"
    "c.png,1,light brown,1998\n"
    "a.png,-1,brown,2003\n"
    "faces/b.png,1,black,998\n"
    "d.png,1,brown,1998\n"
)  # fmt: skip
NAMES = ("a.png", "c.png", "d.png", "faces/b.png")


def plant(root: Path, *names: str) -> Path:
    """Put empty files into a tree: only their names matter here."""
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


def table(root: Path, text: str | bytes, label: str | None = None, *, has_class_folders: bool = False) -> Raw:
    """Write a table beside images, and read it."""
    (root / TABLE).write_bytes(text if isinstance(text, bytes) else text.encode())
    return describe(list_splits(root, has_class_folders=has_class_folders), root, TABLE, label)


def part(raw: Raw, split: str = "all") -> tuple[tuple[str, ...], tuple[int, ...], list[list[int]]]:
    """Names, labels and factors of the images of a split."""
    files = raw.splits[split]
    assert isinstance(files, ImageFiles)
    assert files.classes == raw.classes
    assert files.factors is not None
    assert files.factors.dtype == np.int64
    return files.names, files.labels, files.factors.tolist()


def message(root: Path, text: str | bytes, label: str | None = None) -> str:
    with pytest.raises(UserError) as caught:
        table(root, text, label)
    return str(caught.value)


@pytest.fixture
def two(tmp_path: Path) -> Path:
    """A folder of two images."""
    return plant(tmp_path / "photos", "a.png", "b.png")


# What is in a table


def test_columns_are_factors_and_one_of_them_the_classes(tmp_path: Path) -> None:
    raw = table(plant(tmp_path, *NAMES), FACES, "hair")
    assert raw.classes == ("black", "brown", "light brown")
    assert raw.factors == (
        FactorFacts(name="smiling", size=2, is_ordered=True),
        FactorFacts(name="hair", size=3, is_ordered=False),
        FactorFacts(name="year", size=3, is_ordered=True),
    )
    factors = [[0, 1, 2], [1, 2, 1], [1, 1, 1], [1, 0, 0]]
    assert part(raw) == (NAMES, (1, 2, 1, 0), factors)


def test_whole_numbers_are_classes_in_their_order(tmp_path: Path) -> None:
    raw = table(plant(tmp_path, *NAMES), FACES, "year")
    assert raw.classes == ("998", "1998", "2003")
    assert part(raw)[1] == (2, 1, 1, 0)


@pytest.mark.parametrize(
    ("values", "ordered", "is_ordered"),
    [
        (("10", "9", "-1", "+2"), ("-1", "+2", "9", "10"), True),
        (("10", "9", "x"), ("10", "9", "x"), False),
        (("1.5", "10", "2"), ("1.5", "10", "2"), False),
        (("1", "01", "0"), ("0", "01", "1"), False),  # two ways to write one number
        (("9" * 19, "10"), ("10", "9" * 19), False),
        (("é", "z", "É", "a"), ("a", "z", "É", "é"), False),
    ],
)
def test_the_order_of_values_does_not_depend_on_that_of_rows(
    values: tuple[str, ...], ordered: tuple[str, ...], is_ordered: bool, tmp_path: Path
) -> None:
    names = [f"{number}.png" for number in range(len(values))]
    plant(tmp_path, *names)
    rows = [f"{name},{value}\n" for name, value in zip(names, values, strict=True)]
    for shuffled in (rows, rows[::-1]):
        raw = table(tmp_path, "image,x\n" + "".join(shuffled), "x")
        assert raw.classes == ordered
        assert raw.factors == (FactorFacts(name="x", size=len(values), is_ordered=is_ordered),)
        assert part(raw)[1] == tuple(map(ordered.index, values))


def test_without_a_label_folders_are_the_classes(tmp_path: Path) -> None:
    plant(tmp_path, "cats/a.png", "dogs/b.png")
    raw = table(tmp_path, "image,size\ndogs/b.png,5\ncats/a.png,7\n", has_class_folders=True)
    assert raw.classes == ("cats", "dogs")
    assert part(raw) == (("cats/a.png", "dogs/b.png"), (0, 1), [[1], [0]])


def test_paths_start_above_a_published_split_and_values_mean_the_same_in_each(tmp_path: Path) -> None:
    plant(tmp_path, "train/a.png", "train/x/b.png", "val/a.png", "test/a.png")
    text = "image,x\ntest/a.png,n\ntrain/a.png,m\ntrain/x/b.png,l\nval/a.png,m\n"
    raw = table(tmp_path, text, "x")
    assert raw.classes == ("l", "m", "n")
    assert {split: part(raw, split) for split in raw.splits} == {
        "train": (("a.png", "x/b.png"), (1, 0), [[1], [0]]),
        "validation": (("a.png",), (1,), [[1]]),
        "test": (("a.png",), (2,), [[2]]),
    }


def test_rows_of_images_that_are_not_there_are_ignored_with_their_values(two: Path) -> None:
    text = "image,x\nb.png,q\nfar.png,unused\nfar.png,\na.png,p\n"
    raw = table(two, text, "x")
    assert raw.classes == ("p", "q")
    assert part(raw) == (("a.png", "b.png"), (0, 1), [[0], [1]])


@pytest.mark.parametrize(
    "text",
    [
        "\ufeffimage,x\r\na.png,p\r\nb.png,q\r\n",  # as spreadsheets write it
        "image, x \n./a.png, p\n./b.png ,q \n\n",
        'image,"x"\n"a.png","p"\n\nb.png,q',
    ],
)
def test_spellings_of_the_same_table_are_read_alike(text: str, two: Path) -> None:
    raw = table(two, text, "x")
    assert raw.classes == ("p", "q")
    assert raw.factors == (FactorFacts(name="x", size=2, is_ordered=False),)
    assert part(raw) == (("a.png", "b.png"), (0, 1), [[0], [1]])


@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_either_unicode_form_of_paths_values_and_columns_is_read(form: Any, tmp_path: Path) -> None:
    name, other = (unicodedata.normalize(other, "été.png") for other in ("NFD" if form == "NFC" else "NFC", form))
    plant(tmp_path, name, "b.png")
    spelled = unicodedata.normalize(form, "größe")
    raw = table(
        tmp_path, f"image,{spelled}\n{other},{spelled}\nb.png,{unicodedata.normalize('NFC', spelled)}\n", spelled
    )
    assert raw.classes == (unicodedata.normalize("NFC", "größe"),)
    assert [fact.name for fact in raw.factors or ()] == [unicodedata.normalize("NFC", "größe")]
    assert part(raw) == (("b.png", name), (0, 0), [[0], [0]])


def test_a_quoted_value_may_hold_commas_and_line_breaks(two: Path) -> None:
    assert table(two, 'image,x\na.png,"p, \nq"\nb.png,r\n', "x").classes == ("p, \nq", "r")


def test_as_many_values_as_a_category_may_have_are_read(tmp_path: Path) -> None:
    plant(tmp_path, *(f"{number}.png" for number in range(MOST)))
    raw = table(tmp_path, "image,x\n" + "".join(f"{number}.png,{number}\n" for number in range(MOST)), "x")
    assert raw.classes == tuple(map(str, range(1000)))
    names, labels, _ = part(raw)
    assert [f"{label}.png" for label in labels] == list(names)


# What is refused


HEADER = "a header: a name for the paths and different ones for the attributes, with commas in between"
REFUSED = {
    "": f"line 1: wanted {HEADER}, found ''; write it as the first line",
    "image\na.png\nb.png\n": f"line 1: wanted {HEADER}, found 'image'; write it as the first line",
    "image;x\na.png;p\n": f"line 1: wanted {HEADER}, found 'image;x'; write it as the first line",
    "image,x,\na.png,p,\n": f"line 1: wanted {HEADER}, found 'image,x,'; write it as the first line",
    "image,x, x\na.png,p,q\n": f"line 1: wanted {HEADER}, found 'image,x, x'; write it as the first line",
    "image,x\na.png,p\n": "wanted a row for each image, found none for 'b.png'; add it, with this path, or move the "
    "image away",
    "image,x\n": "wanted a row for each image, found none for 'a.png' and 1 more; add it, with this path, or move the "
    "image away",
    "image,x\na.png,p\nb.png,q\n./a.png,p\n": "line 4: wanted one row for each image, found another for './a.png'; "
    "remove one",
    "image,x\na.png,p\nb.png\n": "line 3: wanted 2 fields, as in the header, found 1; fix the row",
    "image,x\n\na.png,p,q\nb.png,p\n": "line 3: wanted 2 fields, as in the header, found 3; fix the row",
    "image,x,y\na.png,p, \nb.png,p,q\n": "line 2: wanted a value of 'y', found none; write one, such as 'unknown'",
    'image,x\na.png,"p\nb.png,q\n': "line 3: wanted CSV, found none (unexpected end of data); fix the line",
    'image,x\na.png,"p"q\nb.png,q\n': "line 2: wanted CSV, found none (',' expected after '\"'); fix the line",
    b"image,x\na.png,p\nb.png,\xe9t\xe9\n": r"line 3: wanted text in UTF-8, found b'\xe9'; save it as UTF-8",
}


@pytest.mark.parametrize("text", REFUSED)
def test_a_table_that_does_not_fit_the_images_is_refused_with_its_line(text: str | bytes, two: Path) -> None:
    where = f"{two}/{TABLE}: "
    assert message(two, text) == where + REFUSED[text]


def test_a_column_of_more_values_than_a_category_has_is_refused(tmp_path: Path) -> None:
    plant(tmp_path, *(f"{number}.png" for number in range(MOST + 1)))
    text = "image,y,x\n" + "".join(f"{number}.png,p,{number}\n" for number in range(MOST + 1))
    assert message(tmp_path, text) == (
        f"{tmp_path}/{TABLE}: line 1002: wanted a category with 1,000 values at most in column 'x', found one more, "
        "'1000'; remove the column, or put its values into groups"
    )


def test_a_label_that_is_no_column_is_refused_with_the_columns_that_there_are(tmp_path: Path) -> None:
    for label in ("Hair", "image"):
        assert message(plant(tmp_path, *NAMES), FACES, label) == (
            f"download.folder.label: wanted a column of {tmp_path}/{TABLE} ('smiling', 'hair', 'year'), found "
            f"{label!r}; fix it in params.yaml"
        )


def test_a_table_that_is_not_there_is_refused(two: Path) -> None:
    (two / "folder").mkdir()
    for name in ("none.csv", "folder"):
        with pytest.raises(UserError) as caught:
            describe(list_splits(two), two, name, None)
        assert str(caught.value) == (
            f"download.folder.attributes: wanted a CSV file, found none at {two}/{name}; fix it in params.yaml"
        )


# A folder with a table, and an archive of it


Read = Callable[..., tuple[DownloadCard, Raw]]


@pytest.fixture
def fetch(tmp_path: Path) -> Read:
    """Download a folder and read it."""

    def run(path: Path, **options: str) -> tuple[DownloadCard, Raw]:
        directory, scratch = tmp_path / "raw", tmp_path / "scratch"
        for place in (directory, scratch):
            place.mkdir()
        config = small_section("download", source="folder", path=str(path), **options)
        registry.download(config, tmp_path, directory)
        registry.write_manifest(config, directory)
        return registry.read(directory, scratch)

    return run


@pytest.mark.parametrize("form", ["folder", "zip", "wrapped zip", "wrapped folder"])
@pytest.mark.parametrize("name", [TABLE, "tables/attributes.csv"])
def test_a_folder_and_an_archive_of_it_have_the_same_attributes(
    form: str, name: str, tmp_path: Path, fetch: Read
) -> None:
    top = tmp_path / "people/all" if form == "wrapped folder" else tmp_path / "people"
    for image in ("x/deep/a.png", "y/deep/b.png"):
        draw(top / image, noise(0))
    (top / name).parent.mkdir(exist_ok=True)
    (top / name).write_text("image,mood\nx/deep/a.png,sad\ny/deep/b.png,merry\n")
    path = tmp_path / "people"
    if "zip" in form:
        path = pack(path, tmp_path / "people.zip", "people/" if form == "wrapped zip" else "")
    card, raw = fetch(path, attributes=name, label="mood")
    assert card.options == {"attributes": name, "label": "mood"}
    assert raw.classes == ("merry", "sad")
    assert part(raw) == (("x/deep/a.png", "y/deep/b.png"), (1, 0), [[1], [0]])


def test_a_table_beside_the_one_folder_around_all_images_is_found(tmp_path: Path, fetch: Read) -> None:
    top = tmp_path / "people"
    for image in ("faces/x/a.png", "faces/y/b.png"):
        draw(top / image, noise(0))
    (top / TABLE).write_text("image,mood\nfaces/x/a.png,sad\nfaces/y/b.png,merry\n")
    card, raw = fetch(top, attributes=TABLE)
    assert card.options == {"attributes": TABLE}
    assert list(card.files) == ["images/attributes.csv", "images/faces/x/a.png", "images/faces/y/b.png"]
    assert raw.classes == ("x", "y")
    assert part(raw) == (("x/a.png", "y/b.png"), (0, 1), [[1], [0]])


def test_with_a_label_folders_need_not_be_classes(tmp_path: Path, fetch: Read) -> None:
    for name in ("a.png", "faces/b.png"):
        draw(tmp_path / "people" / name, noise(0))
    (tmp_path / "people" / TABLE).write_text("image,mood\na.png,sad\nfaces/b.png,merry\n")
    _, raw = fetch(tmp_path / "people", attributes=TABLE, label="mood")
    assert part(raw) == (("a.png", "faces/b.png"), (1, 0), [[1], [0]])
