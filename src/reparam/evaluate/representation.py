"""What the codes of a trained model tell of labels that it never saw: nearest neighbours and a linear probe."""

import math
import warnings
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from reparam.data.store import Labels
from reparam.evaluate.subset import evenly_spaced

ITERATIONS = 200  # of the probe at most: 10,000 codes of 64 numbers in ten classes took 59


@dataclass(frozen=True)
class Labelled:
    """Codes of images, their posterior means, and what is on the images."""

    codes: Tensor  # (N, D)
    labels: Labels  # (N,)


@dataclass(frozen=True)
class Accuracy:
    """The fraction of images whose label was guessed."""

    value: float
    standard_error: float  # binomial, over the images that were guessed


@dataclass(frozen=True)
class Probes:
    """Accuracies of both classifiers, or why there are none."""

    knn: Accuracy | None
    linear: Accuracy | None
    reason: str | None  # None where the accuracies are there


def probe(train: Labelled, test: Labelled, neighbours: int, limit: int) -> Probes:
    """Learn labels from codes of the training split, `limit` images at most, and guess those of the scored split.

    An image whose class is absent from training counts as guessed wrong.
    """
    rows = evenly_spaced(len(train.labels), limit).numpy()
    known, found = _plain(train.codes)[rows], _plain(test.codes)
    labels = train.labels[rows]
    reason = _why_not(known, found, labels)
    if reason:
        return Probes(None, None, reason)
    return Probes(
        _accuracy(_guess_nearest(known, labels, found, neighbours), test.labels),
        _accuracy(_guess_linearly(known, labels, found), test.labels),
        None,
    )


Codes = npt.NDArray[np.float64]


def _plain(codes: Tensor) -> Codes:
    return codes.detach().double().cpu().numpy()


def _why_not(known: Codes, found: Codes, labels: Labels) -> str | None:
    if not len(known) or not len(found):
        return f"wanted images to learn from and to guess, found {len(known)} and {len(found)}"
    if len(np.unique(labels)) < 2:
        return f"wanted training images of two classes at least, found {len(labels)} of class {labels[0]} alone"
    if not (np.isfinite(known).all() and np.isfinite(found).all()):
        return "wanted finite codes, found NaN or infinite ones"
    return None


def _guess_nearest(known: Codes, labels: Labels, found: Codes, neighbours: int) -> Labels:
    """Take the vote of the nearest training images, all of them where there are fewer; the lower label wins a tie."""
    classifier = KNeighborsClassifier(min(neighbours, len(known)), algorithm="brute")
    guessed: Labels = classifier.fit(known, labels).predict(found)
    return guessed


def _guess_linearly(known: Codes, labels: Labels, found: Codes) -> Labels:
    """Fit a multinomial logistic regression to codes of mean 0 and variance 1, with scikit-learn's penalty (C = 1)."""
    scaler = StandardScaler().fit(known)
    classifier = LogisticRegression(solver="lbfgs", max_iter=ITERATIONS, random_state=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        classifier.fit(scaler.transform(known), labels)
    guessed: Labels = classifier.predict(scaler.transform(found))
    return guessed


def _accuracy(guessed: Labels, labels: Labels) -> Accuracy:
    share = float((guessed == labels).mean())
    return Accuracy(share, math.sqrt(share * (1 - share) / len(labels)))
