from pathlib import Path
from typing import Any

import numpy as np
import pytest

from reparam.config import PreprocessConfig
from reparam.data.sources.folder import ImageFiles
from reparam.data.sources.raw import ImageArrays, Raw
from reparam.errors import UserError
from reparam.preprocess.splits import SPLITS, Rows, assign, class_numbers

CLASSES = ("cat", "dog", "naïve emu")
SETTINGS: dict[str, Any] = {
    "seed": 0,
    "image_size": None,
    "channels": 1,
    "classes": None,
    "validation": 0.1,
    "test": 0.2,
    "limit": None,
    "binarization": "none",
    "scaling": "unit",
    "on_error": "fail",
}


def settings(**values: Any) -> PreprocessConfig:
    return PreprocessConfig.model_validate(SETTINGS | values)


def raw(**counts: int) -> Raw:
    """Published splits with so many images; their classes take turns."""
    splits = {
        name: ImageArrays(np.zeros((count, 1, 1, 1), np.uint8), np.arange(count) % len(CLASSES))
        for name, count in counts.items()
    }
    return Raw(dict(splits), CLASSES)


def sizes(parts: dict[Any, tuple[str, Rows]]) -> dict[str, tuple[str, int]]:
    return {name: (published, len(rows)) for name, (published, rows) in parts.items()}


def rows_of(parts: dict[Any, tuple[str, Rows]]) -> dict[str, list[int]]:
    return {name: rows.tolist() for name, (_, rows) in parts.items()}


# Without published splits


def test_splits_are_a_partition_of_the_wanted_sizes() -> None:
    parts = assign(raw(all=1797), settings(validation=0.125, test=0.2))
    # The validation share is one of the 1,438 images that the test split leaves.
    assert sizes(parts) == {"train": ("all", 1258), "validation": ("all", 180), "test": ("all", 359)}
    assert list(parts) == list(SPLITS)
    assert sorted(row for rows in rows_of(parts).values() for row in rows) == list(range(1797))


def test_splits_are_shuffled_by_the_seed_alone() -> None:
    first, again, other = (rows_of(assign(raw(all=1000), settings(seed=seed))) for seed in (0, 0, 1))
    assert first == again
    for name in SPLITS:
        assert set(first[name]) != set(other[name])
        assert first[name] == sorted(first[name])  # in the order of the source
    # Drawn from everywhere: a test split off one end would have its median there.
    assert 400 < np.median(first["test"]) < 600


def test_a_whole_number_is_a_count_of_images() -> None:
    parts = assign(raw(all=100), settings(validation=7, test=1))
    assert sizes(parts) == {"train": ("all", 92), "validation": ("all", 7), "test": ("all", 1)}


def test_another_validation_share_leaves_the_test_split_alone() -> None:
    few, many = (rows_of(assign(raw(all=100), settings(validation=count))) for count in (5, 50))
    assert few["test"] == many["test"]
    assert set(few["validation"]) < set(many["validation"])


@pytest.mark.parametrize("validation", [0, 0.0])
def test_no_validation_share_leaves_all_other_images_to_training(validation: float) -> None:
    parts = assign(raw(all=100), settings(validation=validation))
    assert sizes(parts) == {"train": ("all", 80), "validation": ("all", 0), "test": ("all", 20)}
    assert list(parts) == list(SPLITS)
    assert rows_of(parts)["test"] == rows_of(assign(raw(all=100), settings(validation=0.5)))["test"]


# With published splits


def test_no_validation_share_trains_on_the_whole_published_training_split() -> None:
    parts = assign(raw(train=60, test=7), settings(validation=0))
    assert sizes(parts) == {"train": ("train", 60), "validation": ("train", 0), "test": ("test", 7)}
    assert rows_of(parts)["train"] == list(range(60))


def test_a_published_test_split_is_kept_whole_and_in_its_order() -> None:
    parts = assign(raw(train=60, test=7), settings(validation=0.1, test=0.5))
    assert sizes(parts) == {"train": ("train", 54), "validation": ("train", 6), "test": ("test", 7)}
    found = rows_of(parts)
    assert found["test"] == list(range(7))
    assert sorted(found["train"] + found["validation"]) == list(range(60))


@pytest.mark.parametrize("validation", [0, 0.9])
def test_all_published_splits_are_kept_whatever_the_shares(validation: float) -> None:
    parts = assign(raw(train=5, validation=3, test=2), settings(validation=validation, test=0.9))
    assert sizes(parts) == {"train": ("train", 5), "validation": ("validation", 3), "test": ("test", 2)}
    assert rows_of(parts) == {"train": list(range(5)), "validation": list(range(3)), "test": list(range(2))}


def test_a_published_validation_split_without_a_test_split_is_kept() -> None:
    parts = assign(raw(train=10, validation=3), settings(test=4))
    assert sizes(parts) == {"train": ("train", 6), "validation": ("validation", 3), "test": ("train", 4)}


# Files


def test_image_files_are_split_by_their_labels_too() -> None:
    names = tuple(f"{number}.png" for number in range(6))
    files = ImageFiles(Path("/nowhere"), names, (0, 1, 2, 0, 1, 2), CLASSES)
    parts = assign(Raw({"all": files}, CLASSES), settings(validation=1, test=1, classes=["cat", "naïve emu"]))
    assert sizes(parts) == {"train": ("all", 2), "validation": ("all", 1), "test": ("all", 1)}
    assert sorted(row for rows in rows_of(parts).values() for row in rows) == [0, 2, 3, 5]


# Classes


@pytest.mark.parametrize("wanted", [["naïve emu", "cat"], ["cat", "naïve emu"]], ids="in the order {}".format)
def test_classes_that_are_not_wanted_are_left_out_of_every_split(wanted: list[str]) -> None:
    source = raw(train=60, test=9)
    parts = assign(source, settings(classes=wanted))
    for published, rows in parts.values():
        assert set(np.asarray(source.splits[published].labels)[rows].tolist()) == {0, 2}
    assert sizes(parts) == {"train": ("train", 36), "validation": ("train", 4), "test": ("test", 6)}


@pytest.mark.parametrize(
    ("wanted", "numbers"),
    [
        (None, {0: 0, 1: 1, 2: 2}),
        (["dog"], {1: 0}),
        (["naïve emu", "cat"], {0: 0, 2: 1}),  # in the order of the source, however they are named
        (["dog", "dog"], {1: 0}),
    ],
    ids=str,
)
def test_the_classes_that_are_kept_are_numbered_again(wanted: list[str] | None, numbers: dict[int, int]) -> None:
    assert dict(class_numbers(CLASSES, wanted)) == numbers


def test_an_unknown_class_is_refused_with_those_there_are() -> None:
    with pytest.raises(UserError) as caught:
        assign(raw(all=30), settings(classes=["cat", "Dog"]))
    assert str(caught.value) == (
        "preprocess.classes: wanted names among 'cat', 'dog', 'naïve emu'; found 'Dog'; fix it in params.yaml"
    )


def test_of_many_classes_the_first_fifty_are_listed() -> None:
    with pytest.raises(UserError) as caught:
        class_numbers([f"class {number}" for number in range(1000)], ["none"])
    assert "'class 49'; found 'none'" in str(caught.value)


# Limits


def test_a_limit_is_a_random_sample_of_each_split() -> None:
    whole, limited = (rows_of(assign(raw(train=1000, test=500), settings(limit=limit))) for limit in (None, 50))
    for name in SPLITS:
        assert len(limited[name]) == 50
        assert limited[name] == sorted(set(limited[name]) & set(whole[name]))
        # Drawn from everywhere: the first fifty would end before the middle.
        assert 0.3 * max(whole[name]) < np.median(limited[name]) < 0.7 * max(whole[name])


def test_a_limit_draws_by_the_seed_alone() -> None:
    first, again, other = (rows_of(assign(raw(train=100, test=50), settings(limit=9, seed=s))) for s in (0, 0, 1))
    assert first == again
    assert all(first[name] != other[name] for name in SPLITS)


@pytest.mark.parametrize("limit", [10, 11])
def test_a_limit_that_is_not_reached_changes_nothing(limit: int) -> None:
    source = raw(train=10, validation=3, test=2)
    assert rows_of(assign(source, settings(limit=limit))) == rows_of(assign(source, settings()))


def test_a_limit_cuts_only_the_splits_that_exceed_it() -> None:
    parts = assign(raw(train=10, validation=3, test=2), settings(limit=3))
    assert sizes(parts) == {"train": ("train", 3), "validation": ("validation", 3), "test": ("test", 2)}


# What leaves nothing


NONE_LEFT = "found none left of {}; lower what is too large in params.yaml"
NO_CLASS = "found none of these classes; keep other classes in params.yaml, or get other data"


@pytest.mark.parametrize(
    ("counts", "validation", "test", "message"),
    [
        (
            {"all": 10},
            0.01,
            0.2,
            "validation: wanted one image at least, found 0.01 of 8 images; raise it in params.yaml",
        ),
        ({"all": 10}, 0.2, 0.01, "test: wanted one image at least, found 0.01 of 10 images; raise it in params.yaml"),
        (
            {"all": 10},
            10,
            0.5,
            f"test 0.5 and preprocess.validation 10: wanted images for train, {NONE_LEFT.format(10)}",
        ),
        (
            {"all": 10},
            0.9,
            0.99,
            f"test 0.99 and preprocess.validation 0.9: wanted images for validation, {NONE_LEFT.format(10)}",
        ),
        ({"all": 1}, 1, 1, f"test 1 and preprocess.validation 1: wanted images for validation, {NONE_LEFT.format(1)}"),
        ({"all": 0}, 0.1, 0.2, f"classes: wanted images for test, {NO_CLASS}"),
        ({"train": 4, "test": 3}, 4, 0.2, f"validation 4: wanted images for train, {NONE_LEFT.format(4)}"),
        ({"train": 4, "test": 0}, 1, 0.2, f"classes: wanted images for test, {NO_CLASS}"),
        ({"train": 0, "validation": 2, "test": 2}, 1, 0.2, f"classes: wanted images for train, {NO_CLASS}"),
        # It was published to be used.
        ({"train": 4, "validation": 0, "test": 2}, 0, 0.2, f"classes: wanted images for validation, {NO_CLASS}"),
        ({"all": 1}, 0, 1, f"test 1 and preprocess.validation 0: wanted images for train, {NONE_LEFT.format(1)}"),
    ],
    ids=str,
)
def test_an_empty_split_is_refused_with_the_parameter_that_empties_it(
    counts: dict[str, int], validation: float, test: float, message: str
) -> None:
    with pytest.raises(UserError) as caught:
        assign(raw(**counts), settings(validation=validation, test=test))
    assert str(caught.value) == f"preprocess.{message}"


def test_a_class_that_a_split_does_not_hold_leaves_it_empty() -> None:
    labels = np.zeros(4, np.int64)
    splits = {
        "train": ImageArrays(np.zeros((6, 1, 1, 1), np.uint8), np.array([0, 1] * 3)),
        "test": ImageArrays(np.zeros((4, 1, 1, 1), np.uint8), labels),
    }
    with pytest.raises(UserError, match=r"^preprocess.classes: wanted images for test, found none of these classes"):
        assign(Raw(dict(splits), ("a", "b")), settings(classes=["b"], validation=1))
