import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.preprocessing import StandardScaler

from reparam.data.store import evenly_spaced
from reparam.evaluate import representation
from reparam.evaluate.representation import Labelled, probe


def labelled(codes: list[list[float]], labels: list[int]) -> Labelled:
    return Labelled(torch.tensor(codes), np.array(labels, dtype=np.int32))


def digits(part: slice) -> Labelled:
    images, labels = load_digits(return_X_y=True)
    return Labelled(torch.from_numpy(images[part]).float(), labels[part].astype(np.int32))


def shares(train: Labelled, test: Labelled, neighbours: int) -> tuple[float, float]:
    """Which share of images the nearest neighbours guess right, and which the linear probe."""
    found = probe(train, test, neighbours)
    assert not isinstance(found, str), found
    assert (len(found.knn), len(found.linear)) == (len(test.labels), len(test.labels))
    return found.knn.double().mean().item(), found.linear.double().mean().item()


ON_A_LINE = labelled([[0.0], [1.0], [2.0], [10.0], [11.0], [12.0]], [0, 0, 0, 1, 1, 1])


def test_codes_that_lie_apart_give_their_labels() -> None:
    assert shares(ON_A_LINE, labelled([[0.5], [1.5], [10.5], [30.0]], [0, 0, 1, 1]), 3) == (1.0, 1.0)


def test_each_image_is_guessed_right_or_wrong() -> None:
    found = probe(ON_A_LINE, labelled([[0.5], [1.5], [10.5], [30.0]], [0, 1, 1, 1]), 3)
    assert not isinstance(found, str)
    assert found.knn.tolist() == found.linear.tolist() == [True, False, True, True]


def test_neighbours_vote_and_a_linear_probe_draws_a_line() -> None:
    # The classes alternate: a line gets one side of the middle right, the nearest neighbour gets all.
    train = labelled([[0.0], [1.0], [10.0], [11.0], [20.0], [21.0]], [0, 0, 1, 1, 0, 0])
    assert shares(train, labelled([[0.5], [10.5], [20.5]], [0, 1, 0]), 2) == (1, pytest.approx(2 / 3))


def test_the_linear_probe_does_not_depend_on_the_units_of_a_code() -> None:
    train, test = digits(slice(400)), digits(slice(400, 800))
    scale = 10.0 ** torch.linspace(-3, 3, 64)
    stretched = [Labelled(split.codes * scale + 5, split.labels) for split in (train, test)]
    plain, moved = (shares(*splits, 5)[1] for splits in ((train, test), stretched))
    assert plain == pytest.approx(moved, abs=0.006)  # two images: codes are float32


def test_the_pixels_of_digits_give_the_digit() -> None:
    first, again = (shares(digits(slice(400)), digits(slice(400, 800)), 5) for _ in range(2))
    assert first == again == (pytest.approx(0.85, abs=0.005), pytest.approx(0.8475, abs=0.005))


def test_fewer_training_images_than_neighbours_all_vote() -> None:
    train = labelled([[0.0], [1.0], [9.0]], [0, 0, 1])
    majority, linear = shares(train, labelled([[0.0], [9.0]], [0, 1]), 50)
    assert (majority, linear) == (0.5, 1)


def test_an_image_of_a_class_absent_from_training_is_guessed_wrong() -> None:
    assert shares(ON_A_LINE, labelled([[0.5], [100.0]], [0, 7]), 3) == (0.5, 0.5)


def test_one_class_to_learn_from_means_nothing() -> None:
    found = probe(labelled([[0.0], [1.0]], [4, 4]), labelled([[0.0]], [4]), 1)
    assert found == "wanted training images of two classes at least, found 2 of class 4 alone"


def test_codes_that_are_not_finite_mean_nothing() -> None:
    found = probe(ON_A_LINE, labelled([[0.0], [float("nan")]], [0, 1]), 1)
    assert found == "wanted finite codes, found NaN or infinite ones"


@pytest.mark.parametrize(("train", "test"), [(6, 0), (0, 6), (0, 0)])
def test_a_split_without_images_means_nothing(train: int, test: int) -> None:
    splits = [Labelled(ON_A_LINE.codes[:count], ON_A_LINE.labels[:count]) for count in (train, test)]
    assert probe(*splits, 1) == f"wanted images to learn from and to guess, found {train} and {test}"


@pytest.mark.parametrize(
    ("count", "limit", "rows"),
    [(6, 3, [0, 2, 4]), (5, 2, [0, 2]), (3, 3, [0, 1, 2]), (2, 5, [0, 1]), (0, 5, []), (1, 1, [0])],
)
def test_rows_are_evenly_spaced(count: int, limit: int, rows: list[int]) -> None:
    assert evenly_spaced(count, limit).tolist() == rows


def test_codes_that_are_all_the_same_give_the_majority() -> None:
    train = labelled([[1.0, 2.0]] * 5, [0, 1, 1, 1, 0])
    assert shares(train, labelled([[1.0, 2.0]] * 4, [0, 1, 1, 1]), 5) == (0.75, 0.75)


def test_a_probe_that_has_not_converged_guesses_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(representation.LIMITS, "maxiter", 1)
    _, linear = shares(digits(slice(400)), digits(slice(400, 800)), 5)
    assert 0.1 < linear < 0.95


@pytest.mark.parametrize(("classes", "latent", "images"), [(2, 5, 300), (2, 1, 30), (3, 30, 200), (10, 12, 1500)])
def test_both_classifiers_guess_as_scikit_learns_do(classes: int, latent: int, images: int) -> None:
    draw = np.random.default_rng(classes * latent)
    labels = draw.integers(0, classes, images + 400, dtype=np.int32) * 3  # not 0, 1, 2, ...
    codes = 1e3 + (draw.normal(size=(3 * classes, latent))[labels] + draw.normal(size=(len(labels), latent)))
    codes[:, 0] = codes[:, 0].round() if latent > 1 else codes[:, 0]
    known, unseen = codes[:images], codes[images:]
    nearest = KNeighborsClassifier(5, algorithm="brute").fit(known, labels[:images]).predict(unseen)
    scaler = StandardScaler().fit(known)
    linear = LogisticRegression(max_iter=200).fit(scaler.transform(known), labels[:images])
    arguments = torch.from_numpy(known), labels[:images], torch.from_numpy(unseen)
    assert representation._guess_nearest(*arguments, 5).tolist() == nearest.tolist()
    guessed = representation._guess_linearly(*arguments)
    assert guessed.tolist() == linear.predict(scaler.transform(unseen)).tolist()
    assert 1 < len(set(guessed.tolist())) <= classes


def test_a_number_that_is_the_same_in_all_codes_says_nothing() -> None:
    train, test = digits(slice(400)), digits(slice(400, 800))
    wider = [
        Labelled(torch.nn.functional.pad(split.codes, (0, 1), value=1e4 / 3), split.labels) for split in (train, test)
    ]
    assert shares(*wider, 5) == shares(train, test, 5)


def test_neighbours_are_found_piece_by_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    train, test = digits(slice(400)), digits(slice(400, 800))
    whole = shares(train, test, 5)
    monkeypatch.setattr(representation.runtime, "NUMBERS_AT_ONCE", 400 * 7)
    assert shares(train, test, 5) == whole
