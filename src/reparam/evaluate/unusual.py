"""Whether scores tell images of another data set from those of one's own."""

import math

import torch
from torch import Tensor


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
    # That two from outside score above one from inside, and one from outside above two from inside.
    two_outside, two_inside = area / (2 - area), 2 * area**2 / (1 + area)
    variance = area * (1 - area)
    variance += (len(outside) - 1) * (two_outside - area**2) + (len(inside) - 1) * (two_inside - area**2)
    return area, math.sqrt(max(0.0, variance) / pairs)
