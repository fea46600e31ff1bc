"""Images of another data set, and whether scores distinguish them from those of one's own."""

import math
from pathlib import Path

import torch
from torch import Tensor

from reparam.cards.card import CARD
from reparam.cards.data import DataCard
from reparam.data import store
from reparam.errors import ParamsError


def auroc(inside: Tensor, outside: Tensor) -> tuple[float, float]:
    """Return how often an image from outside scores above one from inside, ties counted half, and its standard error.

    0.5 is chance. A score is higher where an image is more unusual, as the NLL should be (but need not: Nalisnick et
    al. 2019). Shapes: (N,), (M,), without NaN.
    Source: Hanley & McNeil 1982.
    """
    assert min(len(inside), len(outside)) > 0, "nothing to compare"
    assert not torch.cat([inside, outside]).isnan().any(), "NaN has no rank"
    ordered = inside.double().sort().values
    below = torch.searchsorted(ordered, outside.double())
    not_above = torch.searchsorted(ordered, outside.double(), right=True)
    pairs = len(inside) * len(outside)
    area = (below.sum() + not_above.sum()).item() / (2 * pairs)
    # The probability that two from outside score above one from inside, and that one scores above two from inside.
    two_outside, two_inside = area / (2 - area), 2 * area**2 / (1 + area)
    variance = area * (1 - area)
    variance += (len(outside) - 1) * (two_outside - area**2) + (len(inside) - 1) * (two_inside - area**2)
    return area, math.sqrt(max(0.0, variance) / pairs)


def read_outliers(directory: Path, data_card: DataCard) -> store.Split:
    """Read the test split of another `data/processed`, whose images must look like those of the model.

    Raises: ParamsError.
    """
    if not (directory / CARD).is_file():
        raise ParamsError(
            f"params.yaml: evaluate.outliers: wanted a directory that `preprocess` wrote, found no {CARD} in "
            f"{directory}; name a data/processed of other images, or null"
        )
    card = store.read_card(directory)
    if card.shape != data_card.shape:
        raise ParamsError(
            f"params.yaml: evaluate.outliers: wanted images of shape {data_card.shape}, as the model's, found "
            f"{card.shape} in {directory}; preprocess them with the same preprocess.image_size and channels"
        )
    # Under `dynamic`, both are binarized at each visit. Otherwise, both must be grey or both black and white.
    is_drawn = data_card.binarization == "dynamic"
    if not is_drawn and data_card.is_black_and_white != card.is_black_and_white:
        kinds = ("grey", "black and white")
        wanted, found = (kinds[side.is_black_and_white] for side in (data_card, card))
        raise ParamsError(
            f"params.yaml: evaluate.outliers: wanted {wanted} images, as the model's, found {found} ones "
            f"(binarization {card.binarization!r}) in {directory}; preprocess them with preprocess.binarization "
            f"{data_card.binarization!r}"
        )
    split = store.read_split(directory, "test")
    if not len(split.images):
        raise ParamsError(f"params.yaml: evaluate.outliers: wanted a test split with images, found none in {directory}")
    return split
