import json
import math

import pytest
import torch
from torch import Tensor
from training import CPU, equal, terms

from reparam.distributed import ALONE, World
from reparam.errors import NonFiniteError
from reparam.objectives import Terms
from reparam.train.sums import Sums, Totals


def summed(given: list[Terms]) -> Sums:
    sums = Sums(CPU)
    for batch in given:
        sums.add(Totals.of(batch))
    return sums


def test_a_mean_over_images_is_no_mean_of_batch_means_where_the_last_batch_is_ragged() -> None:
    sums = summed([terms(1.0, 2.0), terms(6.0)])
    assert sums.means("train", epoch=1) == {"train_loss": 3.0, "train_kl": 1.0}
    assert (sums.images, sums.steps) == (3, 2)


def test_sums_do_not_lose_images_to_rounding() -> None:
    # 2^24 + 1 is the first whole number that float32 does not have.
    assert summed([terms(2.0**24), terms(1.0)]).means("train", epoch=1)["train_loss"] == (2**24 + 1) / 2


def test_summing_never_waits_for_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    def wait(*_: object) -> None:
        raise AssertionError("this would wait for the device once per step")

    given = [terms(1.0, 2.0), terms(3.0)]
    with monkeypatch.context() as patched:
        for name in ("item", "tolist", "cpu", "numpy", "__bool__", "__float__", "__int__"):
            patched.setattr(torch.Tensor, name, wait)
        sums = summed(given)
    assert sums.means("train", epoch=1)["train_loss"] == 2.0


@pytest.mark.parametrize(
    ("losses", "step", "found"),
    [
        ([math.nan, 1.0, 1.0], 1, "loss nan"),
        ([1.0, math.inf, 1.0], 2, "loss inf"),
        ([1.0, 1.0, -math.inf], 3, "loss -inf"),
        ([1.0, math.inf, -math.inf], 2, "loss nan"),
    ],
)
def test_the_first_step_whose_loss_is_not_finite_is_named(losses: list[float], step: int, found: str) -> None:
    with pytest.raises(NonFiniteError) as error:
        summed([terms(1.0, loss) for loss in losses]).means("train", epoch=5)
    assert str(error.value) == (
        f"train: the train loss is no longer finite at epoch 5, step {step} of 3 ({found}, kl 1.0); "
        "lower train.learning_rate in params.yaml, or objective.beta if it is large, set train.clip_norm, or "
        "train.on_nonfinite to rollback"
    )


def test_sums_are_spoilt_from_the_first_loss_on_that_is_not_finite() -> None:
    sums = Sums(CPU)
    assert not sums.is_spoilt()  # there was no step yet
    spoilt = []
    for loss in (1.0, math.inf, -math.inf, 1.0):
        sums.add(Totals.of(terms(loss)))
        spoilt.append(sums.is_spoilt())
    assert spoilt == [False, True, True, True]


def test_terms_of_two_precisions_are_summed_in_float64() -> None:
    sums = summed([{"loss": torch.tensor([1.5, 2.0]), "kl": torch.tensor([0.5, 0.25], dtype=torch.bfloat16)}])
    assert sums.totals.dtype == torch.float64
    assert sums.means("train", epoch=1) == {"train_loss": 1.75, "train_kl": 0.375}


def test_cleared_sums_are_as_new() -> None:
    sums = summed([terms(1.0, math.nan), terms(6.0)])
    sums.clear()
    assert equal(sums.state_dict(), Sums(CPU).state_dict())
    sums.add(Totals.of({"loss": torch.tensor([4.0])}))  # also with other terms
    assert sums.means("train", epoch=1) == {"train_loss": 4.0}


@pytest.mark.parametrize("steps", [0, 1, 2, 3])
def test_sums_go_on_from_a_state_and_share_no_memory_with_it(steps: int) -> None:
    given = [terms(1.0, 2.0), terms(math.inf), terms(7.0)]
    state = summed(given[:steps]).state_dict()
    before = json.dumps({**state, "totals": state["totals"].tolist()})
    other = summed([terms(99.0)])
    other.load_state_dict(state)
    for batch in given[steps:]:
        other.add(Totals.of(batch))
    assert equal(other.state_dict(), summed(given).state_dict())
    assert json.dumps({**state, "totals": state["totals"].tolist()}) == before


def world_with(other: Sums) -> World:
    """The first of two processes, of which the second one summed `other`."""

    class Two(World):
        def total(self, values: Tensor) -> Tensor:
            return values + torch.cat([other.totals, torch.tensor([other.images])])

    return Two(0, 2)


def test_sums_over_processes_are_those_of_all_images() -> None:
    mine, other = summed([terms(1.0, 2.0), terms(6.0)]), summed([terms(5.0), terms(1.0, 9.0)])
    found = mine.over(world_with(other))
    assert (found.images, found.steps) == (6, 2)
    assert found.means("train", epoch=1) == {"train_loss": 4.0, "train_kl": 1.0}
    assert mine.means("train", epoch=1) == {"train_loss": 3.0, "train_kl": 1.0}  # as before
    assert mine.over(ALONE) is mine


@pytest.mark.parametrize(("its_step", "named"), [(2, 2), (3, 2), (4, 3)])
def test_processes_name_about_the_step_whose_loss_was_not_finite(its_step: int, named: int) -> None:
    def until(step: int) -> Sums:
        return summed([terms(math.nan if number >= step else 1.0) for number in range(1, 5)])

    with pytest.raises(NonFiniteError, match=f"at epoch 3, step {named} of 4 "):
        until(2).over(world_with(until(its_step))).means("train", epoch=3)
