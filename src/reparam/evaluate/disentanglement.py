"""Compare codes of images with the factors that they were drawn from: MIG, DCI, SAP and the FactorVAE score.

All are of the same codes. Locatello et al. 2019, appendix C, compare the scores, and choose much of what is left open.
scikit-learn is imported where it is used, because the import takes longer than everything else with small data.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from reparam.cards.data import FactorFacts

Array = npt.NDArray[np.float64]
LEARNED = 2 / 3  # share of images that classifiers learn from (Locatello et al. 2019: 10,000 of 15,000)
TREES = 100  # of a boosted classifier, for each value of a factor, as by default in scikit-learn
FIXED = 64  # images that share a factor (Locatello et al. 2019)
VOTES = (10_000, 5_000)  # such groups, to learn from and to guess (Locatello et al. 2019)
AT_ONCE = 1_000  # groups
STILL = 0.05  # of the largest standard deviation; dimensions that vary less have collapsed, and take no part in votes


@dataclass(frozen=True)
class Coded:
    """Codes of images, and the factors that the images were drawn from."""

    codes: Array  # (N, D)
    factors: npt.NDArray[np.integer]  # (N, F), from 0 on
    facts: Sequence[FactorFacts]  # (F,)

    def varying(self) -> "Coded":
        """Leave out factors that are the same for all images: no latent can describe them."""
        varies = (self.factors != self.factors[:1]).any(0)
        facts = [facts for facts, some in zip(self.facts, varies, strict=True) if some]
        return Coded(self.codes, self.factors[:, varies], facts)

    def split(self) -> tuple["Coded", "Coded"]:
        """Return images to learn from, and images to guess; those that are here must be in a random order."""
        middle = round(LEARNED * len(self.codes))
        first, rest = slice(middle), slice(middle, None)
        return (
            Coded(self.codes[first], self.factors[first], self.facts),
            Coded(self.codes[rest], self.factors[rest], self.facts),
        )


def disentanglement(coded: Coded, bins: int, rng: np.random.Generator) -> dict[str, float]:
    """Return all scores, by the names of metrics."""
    found = dci(coded)
    return {
        "mig": gap(mutual_information(coded, bins)),
        "sap": gap(sap(coded)),
        "dci_disentanglement": found.disentanglement,
        "dci_completeness": found.completeness,
        "dci_informativeness": found.informativeness,
        "factor_vae_score": factor_vae_score(coded, rng),
    }


def mutual_information(coded: Coded, bins: int) -> Array:
    """Return the mutual information of each latent and factor, over the entropy of the factor.

    It is 0 if the factor is constant. A latent is put into `bins` of equal width from its least to its largest value.
    Shapes: -> (D, F).
    """
    found = np.zeros((coded.codes.shape[1], len(coded.facts)))
    for d, values in enumerate(coded.codes.T):
        edges = np.histogram_bin_edges(values, bins)
        binned = np.digitize(values, edges[1:-1])
        for f, facts in enumerate(coded.facts):
            joint = np.zeros((bins, facts.size))
            np.add.at(joint, (binned, coded.factors[:, f]), 1 / len(values))
            entropy = _entropy(joint.sum(0))
            information = _entropy(joint.sum(0)) + _entropy(joint.sum(1)) - _entropy(joint)
            found[d, f] = max(information, 0) / entropy if entropy > 0 else 0
    return found


def _entropy(probabilities: Array) -> float:
    """Return the entropy of a distribution. Units: nats."""
    some = probabilities[probabilities > 0]
    return float(-(some * np.log(some)).sum())


def gap(scores: Array) -> float:
    """Average, over factors, how far the best latent is ahead of the second best. Shapes: (D, F)."""
    ranked = np.sort(np.vstack([scores, np.zeros_like(scores[:1])]), 0)  # of a single latent, the second best has 0
    return float((ranked[-1] - ranked[-2]).mean())


def sap(coded: Coded) -> Array:
    """Return how well each latent alone predicts each factor.

    For an ordered factor, the squared correlation. For any other, the balanced accuracy of thresholds: those of a
    decision tree with as many leaves as the factor has values, learned from some images and measured on the others.
    Shapes: -> (D, F).
    Source: Kumar et al. 2018, sec. 3, who fit the thresholds to the images that they guess.
    """
    from sklearn.metrics import recall_score
    from sklearn.tree import DecisionTreeClassifier

    known, asked = coded.split()
    found = np.zeros((coded.codes.shape[1], len(coded.facts)))
    for f, facts in enumerate(coded.facts):
        for d, values in enumerate(coded.codes.T):
            if facts.is_ordered:
                found[d, f] = _squared_correlation(values, coded.factors[:, f].astype(np.float64))
            elif values.std() > 0:
                tree = DecisionTreeClassifier(
                    max_leaf_nodes=max(2, facts.size), class_weight="balanced", random_state=0
                )
                tree.fit(known.codes[:, [d]], known.factors[:, f])
                guessed = tree.predict(asked.codes[:, [d]])
                found[d, f] = recall_score(asked.factors[:, f], guessed, average="macro", zero_division=0.0)
    return found


def _squared_correlation(a: Array, b: Array) -> float:
    a, b = a - a.mean(), b - b.mean()
    scale = float((a**2).sum() * (b**2).sum())
    return float((a * b).sum() ** 2) / scale if scale > 0 else 0.0


@dataclass(frozen=True)
class Dci:
    """The parts of DCI: disentanglement, completeness and informativeness."""

    disentanglement: float
    completeness: float
    informativeness: float


def dci(coded: Coded) -> Dci:
    """Learn factors from codes by gradient boosting, and see which latents it uses.

    Informativeness is the accuracy on images that it did not learn from.
    Source: Eastwood & Williams 2018, with the classifier of Locatello et al. 2019.
    """
    known, asked = coded.split()
    importance, right = np.zeros((coded.codes.shape[1], len(coded.facts))), []
    for f in range(len(coded.facts)):
        classifier = _boosted(known.codes, known.factors[:, f])
        if classifier is None:
            continue  # the images to learn from have a single value of the factor
        importance[:, f] = classifier.feature_importances_
        right.append(float((classifier.predict(asked.codes) == asked.factors[:, f]).mean()))
    return Dci(*weigh(importance), informativeness=float(np.mean(right)) if right else 0.0)


def _boosted(codes: Array, values: npt.NDArray[np.integer]) -> Any:
    from sklearn.ensemble import GradientBoostingClassifier

    if len(np.unique(values)) < 2:
        return None
    return GradientBoostingClassifier(n_estimators=TREES, random_state=0).fit(codes, values)


def weigh(importance: Array) -> tuple[float, float]:
    """Return disentanglement and completeness, weighted by the importance of latents and factors. Shapes: (D, F)."""
    total = importance.sum()
    if not total:
        return 0.0, 0.0
    return _concentration(importance) @ (importance.sum(1) / total), _concentration(importance.T) @ (
        importance.sum(0) / total
    )


def _concentration(importance: Array) -> Array:
    """Return 1 for a row with one number that is not 0, 0 for a row of equal ones. Shapes: (n, m) -> (n,)."""
    sums = importance.sum(1, keepdims=True)
    shares = np.divide(importance, sums, out=np.full_like(importance, 1 / importance.shape[1]), where=sums > 0)
    most = np.log(importance.shape[1])
    return np.array([1 - _entropy(row) / most if most else 1.0 for row in shares])


def factor_vae_score(coded: Coded, rng: np.random.Generator) -> float:
    """Guess the factor that a group of images shares, from the latent with the smallest variance in the group.

    Variances are relative to those over all images. The guess for a latent is the factor with most votes; the score is
    the share of other votes that are guessed right. Groups are drawn with replacement.
    Source: Kim & Mnih 2018, sec. 4; votes as many as in Locatello et al. 2019.
    """
    variances = coded.codes.var(0)
    active = np.flatnonzero(variances > STILL**2 * variances.max())
    if not len(active):
        return 0.0
    scaled = coded.codes[:, active] / np.sqrt(variances[active])
    known, asked = (_votes(scaled, coded, count, rng) for count in VOTES)
    guess = known.argmax(0)
    return float(asked[guess, np.arange(len(guess))].sum() / asked.sum())


def _votes(scaled: Array, coded: Coded, count: int, rng: np.random.Generator) -> npt.NDArray[np.int64]:
    """Count how often each latent varied least while a factor was fixed. Shapes: -> (F, D)."""
    votes = np.zeros((len(coded.facts), scaled.shape[1]), np.int64)
    orders = [np.argsort(values, kind="stable") for values in coded.factors.T]
    places = [np.searchsorted(v[o], v) for v, o in zip(coded.factors.T, orders, strict=True)]
    sizes = [np.bincount(v, minlength=facts.size) for v, facts in zip(coded.factors.T, coded.facts, strict=True)]
    for start in range(0, count, AT_ONCE):
        groups = min(AT_ONCE, count - start)
        fixed = rng.integers(len(coded.facts), size=groups)
        like = rng.integers(len(scaled), size=groups)  # an image whose value of the factor all share
        for f in range(len(coded.facts)):
            rows = like[fixed == f]
            some = sizes[f][coded.factors[rows, f]][:, None]
            drawn = places[f][rows][:, None] + (rng.random((len(rows), FIXED)) * some).astype(np.int64)
            still = scaled[orders[f][drawn]].var(1).argmin(1)  # (n, FIXED, D) -> (n,)
            np.add.at(votes[f], still, 1)
    return votes
