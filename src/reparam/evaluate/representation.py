"""Guess labels that a trained model never saw from its codes: nearest neighbours and a linear probe."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from reparam import runtime
from reparam.data.store import Labels

Vector = npt.NDArray[np.float64]

# Where the fit of the probe ends: as in scikit-learn, with more iterations (10,000 codes of 64 numbers took 59).
LIMITS = {"maxiter": 200, "gtol": 1e-4, "ftol": 64 * np.finfo(float).eps, "maxls": 50}


@dataclass(frozen=True)
class Labelled:
    """Codes of images (their posterior means) and the labels of the images."""

    codes: Tensor  # (N, D)
    labels: Labels  # (N,)


@dataclass(frozen=True)
class Guesses:
    """Whether each image was guessed right by the two classifiers. Shapes: (N,) bool."""

    knn: Tensor
    linear: Tensor


def probe(train: Labelled, test: Labelled, neighbours: int) -> Guesses | str:
    """Learn labels from codes of training images, and guess those of the scored split, or return why not.

    An image whose class is absent from training counts as guessed wrong.
    """
    known, found = (codes.detach().double().cpu() for codes in (train.codes, test.codes))
    reason = _why_not(known, found, train.labels)
    if reason:
        return reason
    nearest = _guess_nearest(known, train.labels, found, neighbours)
    linear = _guess_linearly(known, train.labels, found)
    return Guesses(torch.from_numpy(nearest == test.labels), torch.from_numpy(linear == test.labels))


def _why_not(known: Tensor, found: Tensor, labels: Labels) -> str | None:
    if not len(known) or not len(found):
        return f"wanted images to learn from and to guess, found {len(known)} and {len(found)}"
    if len(np.unique(labels)) < 2:
        return f"wanted training images of two classes at least, found {len(labels)} of class {labels[0]} alone"
    if not (known.isfinite().all() and found.isfinite().all()):
        return "wanted finite codes, found NaN or infinite ones"
    return None


def _guess_nearest(known: Tensor, labels: Labels, found: Tensor, neighbours: int) -> Labels:
    """Take the vote of the nearest training images, of all if there are fewer; the lower label wins a tie."""
    parts = torch.split(found, max(1, runtime.NUMBERS_AT_ONCE // len(known)))
    count = min(neighbours, len(known))
    nearest = torch.cat([torch.cdist(part, known).topk(count, largest=False).indices for part in parts])
    guessed: Labels = torch.from_numpy(labels)[nearest].mode(1).values.numpy()
    return guessed


def _guess_linearly(known: Tensor, labels: Labels, found: Tensor) -> Labels:
    """Fit a multinomial logistic regression to codes of mean 0 and variance 1, with scikit-learn's penalty (C = 1).

    Not by scikit-learn itself: to import it takes longer than the whole stage on small data.
    """
    from scipy.optimize import minimize  # a third of a second, for this function alone

    mean, deviation = known.mean(0), known.std(0, correction=0)
    deviation[deviation <= len(known) * torch.finfo(known.dtype).eps * mean.abs()] = 1  # a constant stays one
    x, unseen = (F.pad((codes - mean) / deviation, (0, 1), value=1.0).numpy() for codes in (known, found))  # 1: bias
    classes, numbers = np.unique(labels, return_inverse=True)
    target = np.eye(len(classes))[numbers]
    # Between two classes scikit-learn fits one vector, whose square is twice the sum of squares of these two.
    penalty = (1.0 if len(classes) == 2 else 0.5) / len(x)

    # By numpy, because threads of torch that wait for the next task slow the linear algebra of scipy three times.
    def loss(flat: Vector) -> tuple[float, Vector]:
        weights = flat.reshape(-1, len(classes))
        logits = x @ weights
        logits -= logits.max(1, keepdims=True)
        chances = np.exp(logits)
        total = chances.sum(1, keepdims=True)
        value = (np.log(total[:, 0]) - (logits * target).sum(1)).mean() + penalty * np.square(weights[:-1]).sum()
        slope = x.T @ ((chances / total - target) / len(x))
        slope[:-1] += 2 * penalty * weights[:-1]
        return float(value), slope.ravel()

    start = np.zeros(x.shape[1] * len(classes))
    weights = minimize(loss, start, jac=True, method="L-BFGS-B", options=LIMITS).x.reshape(-1, len(classes))
    guessed: Labels = classes[(unseen @ weights).argmax(1)]
    return guessed
