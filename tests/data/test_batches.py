from collections.abc import Iterator

import numpy as np
import pytest
import torch
from data_card import data_card

from reparam.data.batches import Batches
from reparam.errors import UserError

CPU = torch.device("cpu")
# Ten images of 1x2x2 pixels; image i has the grey value 10 * i everywhere.
NUMBERED = np.broadcast_to(10 * np.arange(10, dtype=np.uint8).reshape(-1, 1, 1, 1), (10, 1, 2, 2)).copy()


def numbers(batches: list[torch.Tensor]) -> list[int]:
    """Which images of NUMBERED these are."""
    return [round(value * 25.5) for batch in batches for value in batch[:, 0, 0, 0].tolist()]


def shuffled(data: Batches) -> Iterator[torch.Tensor]:
    """One epoch of training."""
    return data.visit(data.draw_order())


def test_grey_values_become_floats_between_0_and_1() -> None:
    images = np.array([0, 1, 128, 255], np.uint8).reshape(1, 1, 2, 2)
    (batch,) = Batches(images, data_card("none"), 8, CPU).ordered(0)
    torch.testing.assert_close(batch, torch.tensor([[[[0.0, 1 / 255], [128 / 255, 1.0]]]]))
    assert batch.dtype == torch.float32


def test_ordered_keeps_the_order_and_ends_with_what_is_left() -> None:
    batches = list(Batches(NUMBERED, data_card("none"), 4, CPU).ordered(0))
    assert [tuple(batch.shape) for batch in batches] == [(4, 1, 2, 2), (4, 1, 2, 2), (2, 1, 2, 2)]
    assert numbers(batches) == list(range(10))


def test_an_order_is_all_rows_of_the_split_as_torch_permutes_them() -> None:
    data = Batches(NUMBERED, data_card("none"), 4, CPU)
    torch.manual_seed(3)
    order = data.draw_order()
    torch.manual_seed(3)
    assert torch.equal(order, torch.randperm(10))
    assert sorted(order.tolist()) == list(range(10))


def test_a_visit_follows_the_order_it_is_given_and_draws_none() -> None:
    data = Batches(NUMBERED, data_card("none"), 4, CPU)
    before = torch.get_rng_state()
    batches = list(data.visit(torch.tensor([7, 1, 9, 0, 4])))
    assert [len(batch) for batch in batches] == [4, 1]
    assert numbers(batches) == [7, 1, 9, 0, 4]
    assert torch.equal(torch.get_rng_state(), before)
    assert list(data.visit(torch.tensor([], dtype=torch.int64))) == []


def test_the_rest_of_an_order_is_cut_into_the_batches_that_the_whole_is_cut_into() -> None:
    data = Batches(NUMBERED, data_card("none"), 4, CPU)
    order = torch.tensor([3, 8, 1, 0, 9, 2, 6, 7, 5, 4])
    whole = [numbers([batch]) for batch in data.visit(order)]
    assert whole == [[3, 8, 1, 0], [9, 2, 6, 7], [5, 4]]
    for done in range(4):
        assert [numbers([batch]) for batch in data.visit(order[4 * done :])] == whole[done:]


def test_pixels_are_drawn_when_a_batch_is_asked_for_and_not_before() -> None:
    # Otherwise a checkpoint between two batches would hold a generator that is ahead of training.
    data = Batches(np.full((8, 1, 4, 4), 128, np.uint8), data_card("dynamic"), 4, CPU)
    torch.manual_seed(0)
    first, second = data.visit(torch.arange(8))
    torch.manual_seed(0)
    visit = data.visit(torch.arange(8))
    assert torch.equal(next(visit), first)
    between = torch.get_rng_state()
    torch.rand(5)
    torch.set_rng_state(between)
    assert torch.equal(next(data.visit(torch.arange(4, 8))), second)


def test_shuffled_visits_each_image_once_and_each_time_in_another_order() -> None:
    torch.manual_seed(0)
    data = Batches(NUMBERED, data_card("none"), 4, CPU)
    epochs = [list(shuffled(data)) for _ in range(2)]
    for batches in epochs:
        assert [len(batch) for batch in batches] == [4, 4, 2]
        assert sorted(numbers(batches)) == list(range(10))
    assert numbers(epochs[0]) != numbers(epochs[1])
    torch.manual_seed(0)
    assert numbers(list(shuffled(data))) == numbers(epochs[0])


@pytest.mark.parametrize(("batch_size", "sizes"), [(1, [1] * 10), (5, [5, 5]), (10, [10]), (99, [10])])
def test_every_batch_size_covers_the_split(batch_size: int, sizes: list[int]) -> None:
    data = Batches(NUMBERED, data_card("none"), batch_size, CPU)
    assert len(data) == 10
    assert [len(batch) for batch in shuffled(data)] == sizes
    assert [len(batch) for batch in data.ordered(0)] == sizes


@pytest.mark.parametrize("binarization", ["none", "dynamic"])
def test_a_split_without_images_has_no_batches(binarization: str) -> None:
    data = Batches(NUMBERED[:0], data_card(binarization), 4, CPU)
    assert len(data) == 0
    assert list(shuffled(data)) == []
    assert list(data.ordered(0)) == []


def test_dynamic_pixels_are_black_or_white_with_the_grey_value_as_mean() -> None:
    torch.manual_seed(0)
    visits = 4000
    grey = np.array([0, 51, 128, 255], np.uint8).reshape(1, 1, 2, 2)
    data = Batches(np.repeat(grey, visits, axis=0), data_card("dynamic"), visits, CPU)
    (batch,) = shuffled(data)
    assert set(batch.unique().tolist()) == {0.0, 1.0}
    mean = batch.mean(0).flatten()
    # Black and white are certain; five standard errors of `visits` draws for the rest.
    assert (mean[0].item(), mean[3].item()) == (0.0, 1.0)
    assert mean[1].item() == pytest.approx(0.2, abs=5 * 0.4 / visits**0.5)
    assert mean[2].item() == pytest.approx(128 / 255, abs=5 * 0.5 / visits**0.5)


def test_dynamic_pixels_are_drawn_anew_at_each_visit_of_training() -> None:
    data = Batches(np.full((4, 1, 8, 8), 128, np.uint8), data_card("dynamic"), 4, CPU)
    torch.manual_seed(0)
    first, second = (torch.cat(list(shuffled(data))) for _ in range(2))
    assert not torch.equal(first, second)
    torch.manual_seed(0)
    torch.testing.assert_close(torch.cat(list(shuffled(data))), first)


def test_held_out_pixels_are_one_draw_whatever_the_model_draws_and_however_they_are_batched() -> None:
    images = np.random.default_rng(0).integers(0, 256, (50, 1, 3, 5), dtype=np.uint8)

    def seen(batch_size: int, seed: int, noise: int) -> torch.Tensor:
        batches = []
        for batch in Batches(images, data_card("dynamic"), batch_size, CPU).ordered(seed):
            torch.randn(noise)  # as a model does between batches
            batches.append(batch)
        return torch.cat(batches)

    once = seen(50, seed=0, noise=0)
    for batch_size in (1, 7, 16, 50):
        assert torch.equal(seen(batch_size, seed=0, noise=3), once)
    assert not torch.equal(seen(50, seed=1, noise=0), once)
    assert set(once.unique().tolist()) == {0.0, 1.0}
    assert once.mean().item() == pytest.approx((images / 255).mean(), abs=5 * 0.5 / images.size**0.5)


@pytest.mark.parametrize("binarization", ["none", "threshold", "static"])
def test_other_pixels_are_never_drawn(binarization: str) -> None:
    data = Batches(NUMBERED, data_card(binarization), 10, CPU)
    first, second = (torch.cat(list(data.ordered(0))) for _ in range(2))
    torch.testing.assert_close(first, second, rtol=0, atol=0)
    assert numbers([first]) == list(range(10))


def test_a_split_that_is_mapped_read_only_is_copied_not_shared() -> None:
    images = NUMBERED.copy()
    images.flags.writeable = False
    data = Batches(images, data_card("none"), 10, CPU)
    data.grey(torch.arange(10)).zero_()
    assert images.sum() == NUMBERED.sum()


@pytest.mark.parametrize("binarization", ["none", "dynamic"])
def test_pixels_are_scaled_as_the_card_says_after_they_are_drawn(binarization: str) -> None:
    images = np.array([0, 51, 204, 255], np.uint8).reshape(1, 1, 2, 2)
    torch.manual_seed(0)
    (plain,) = Batches(images, data_card(binarization), 1, CPU).ordered(0)
    torch.manual_seed(0)
    (scaled,) = Batches(images, data_card(binarization, shift=0.5, scale=0.25), 1, CPU).ordered(0)
    torch.testing.assert_close(scaled, (plain - 0.5) / 0.25)
    assert (scaled.min().item(), scaled.max().item()) == (-2.0, 2.0)
    assert scaled.dtype == torch.float32


def test_each_channel_is_scaled_by_its_own_numbers() -> None:
    card = {"binarization": "none", "scaling": {"shift": [0.0, 1.0], "scale": [1.0, 2.0]}}
    (batch,) = shuffled(Batches(np.full((3, 2, 2, 2), 255, np.uint8), card, 3, CPU))
    assert batch[:, 0].unique().tolist() == [1.0]
    assert batch[:, 1].unique().tolist() == [0.0]


# Images that do not fit into memory


@pytest.fixture
def streamed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REPARAM_RESIDENT_FRACTION", "0")


@pytest.mark.parametrize("batch_size", [1, 3, 10, 100])
@pytest.mark.parametrize("binarization", ["none", "dynamic"])
def test_images_that_are_read_ahead_are_those_that_are_resident(
    binarization: str, batch_size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    for fraction in ("1", "0"):
        monkeypatch.setenv("REPARAM_RESIDENT_FRACTION", fraction)
        data = Batches(NUMBERED, data_card(binarization), batch_size, CPU)
        torch.manual_seed(0)
        order = data.draw_order()
        seen.append([*data.visit(order), *data.visit(order[4:]), *data.ordered(3), data.mean_image(), data.grey(order)])
    assert len(seen[0]) == len(seen[1])
    for resident, read in zip(*seen, strict=True):
        assert torch.equal(resident, read)


def test_what_goes_wrong_while_reading_ahead_is_told(streamed: None) -> None:
    data = Batches(NUMBERED, data_card("none"), 2, CPU)
    with pytest.raises(IndexError):
        list(data.visit(torch.tensor([0, 1, 2, 3, 99])))


def test_reading_ahead_may_end_early(streamed: None) -> None:
    data = Batches(NUMBERED, data_card("none"), 1, CPU)
    first = next(data.visit(torch.arange(10)))
    assert numbers([first]) == [0]


@pytest.mark.parametrize("text", ["half", "-0.1", "1.5", "nan", ""])
def test_a_share_of_memory_that_is_none_is_refused(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REPARAM_RESIDENT_FRACTION", text)
    with pytest.raises(UserError) as error:
        Batches(NUMBERED, data_card("none"), 1, CPU)
    assert str(error.value) == (
        f"REPARAM_RESIDENT_FRACTION: wanted a number from 0 to 1, found {text!r}; mend or unset it"
    )
