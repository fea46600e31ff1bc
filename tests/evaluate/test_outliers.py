import pytest
import torch
from sklearn.metrics import roc_auc_score

from reparam.evaluate.outliers import auroc


def scores(*values: float) -> torch.Tensor:
    return torch.tensor(values)


def test_every_score_above_every_other_is_1_without_error() -> None:
    assert auroc(scores(1, 2, 3), scores(4, 5)) == (1.0, 0.0)
    assert auroc(scores(4, 5), scores(1, 2, 3)) == (0.0, 0.0)


def test_ties_count_half() -> None:
    # Of 3 x 2 pairs, 2 is above 1 and as high as 2, 3 is above all.
    assert auroc(scores(1, 2, 2), scores(2, 3))[0] == pytest.approx((1 + 2 * 0.5 + 3) / 6)
    assert auroc(scores(7, 7), scores(7, 7, 7))[0] == 0.5


def test_an_infinite_score_is_the_most_unusual() -> None:
    assert auroc(scores(1, 2), scores(float("inf"), 0))[0] == 0.5


@pytest.mark.parametrize("levels", [5, 10_000])
def test_it_is_the_area_that_scikit_learn_computes(levels: int) -> None:
    draws = torch.Generator().manual_seed(0)
    inside = torch.randint(levels, (300,), generator=draws).double()
    outside = torch.randint(levels, (200,), generator=draws).double() + levels // 5
    labels = [0] * len(inside) + [1] * len(outside)
    expected = roc_auc_score(labels, torch.cat([inside, outside]).numpy())
    assert auroc(inside, outside)[0] == pytest.approx(expected, abs=1e-12)


def test_the_standard_error_is_that_of_hanley_and_mcneil() -> None:
    # A = 5 / 6, Q1 = A / (2 - A) = 5 / 7, Q2 = 2 A^2 / (1 + A) = 25 / 33; 2 outside, 3 inside.
    expected = (5 / 36 + (5 / 7 - 25 / 36) + 2 * (25 / 33 - 25 / 36)) / 6
    value, error = auroc(scores(1, 2, 3), scores(2.5, 4))
    assert value == pytest.approx(5 / 6)
    assert error == pytest.approx(expected**0.5)


def test_the_standard_error_is_about_how_much_the_area_varies() -> None:
    draws = torch.Generator().manual_seed(0)
    found = torch.tensor(
        [auroc(torch.randn(80, generator=draws), 1 + torch.randn(50, generator=draws)) for _ in range(400)]
    )
    spread, mean_error = found[:, 0].std().item(), found[:, 1].mean().item()
    assert spread == pytest.approx(mean_error, rel=0.15)  # four standard errors of a spread of 400
