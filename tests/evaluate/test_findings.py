import math

import pytest
import torch

from reparam.cards.evaluation import OutlierFacts
from reparam.errors import NonFiniteError
from reparam.evaluate.findings import Findings


@pytest.mark.parametrize(
    ("value", "error", "wanted"),
    [
        (math.nan, None, "nll: wanted a finite number, found nan"),
        (-math.inf, 1.0, "nll: wanted a finite number, found -inf"),
        (1.0, math.nan, "nll_se: wanted a finite number, found nan"),
    ],
)
def test_a_number_or_an_error_that_is_not_finite_is_refused(value: float, error: float | None, wanted: str) -> None:
    findings = Findings()
    with pytest.raises(NonFiniteError) as refused:
        findings.add("nll", value, error)
    assert str(refused.value).startswith(f"{wanted}: the model puts out")
    assert findings == Findings()


def test_a_mean_brings_its_error_and_the_values_and_a_count_stays_whole() -> None:
    findings = Findings()
    findings.add_mean("nll", torch.tensor([1.0, 2.0, 6.0]).double())
    findings.add("images", 3)
    assert findings.metrics == {"nll": 3.0, "nll_se": 1.5275, "images": 3}
    assert isinstance(findings.metrics["images"], int)
    assert findings.of_images["nll"].tolist() == [1.0, 2.0, 6.0]


def test_a_metric_that_no_page_knows_is_refused() -> None:
    with pytest.raises(AssertionError, match=r"^shine: no metric of this name in metrics.py"):
        Findings().add("shine", 1.0)


def test_what_is_left_out_has_a_reason_and_a_warning_if_it_was_asked_for() -> None:
    findings = Findings()
    findings.leave_out("accuracy", "one class")
    findings.leave_out("annealed", "no density", is_warned_of=True)
    findings.note(outliers=OutlierFacts(images=2, nll=1.5))
    assert findings.details.not_measured == {"accuracy": "one class", "annealed": "no density"}
    assert findings.details.outliers == OutlierFacts(images=2, nll=1.5)
    assert findings.warnings == ["annealed: no density"]
