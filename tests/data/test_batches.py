from collections.abc import Iterator

import numpy as np
import pytest
import torch

from reparam.data.batches import Batch, Batches
from reparam.errors import UserError

CPU = torch.device("cpu")
# Ten images of 1x2x2 pixels; image i has the grey value 10 * i everywhere.
NUMBERED = np.broadcast_to(10 * np.arange(10, dtype=np.uint8).reshape(-1, 1, 1, 1), (10, 1, 2, 2)).copy()


def numbers(batches: list[Batch]) -> list[int]:
    """Which images of NUMBERED these are."""
    return [value // 10 for images, _ in batches for value in images[:, 0, 0, 0].tolist()]


def shuffled(data: Batches) -> Iterator[Batch]:
    """One epoch of training."""
    return data.visit(torch.randperm(len(data)))


def test_batches_are_the_images_as_they_are_stored() -> None:
    images = np.random.default_rng(0).integers(0, 256, (7, 3, 4, 5), dtype=np.uint8)
    found = torch.cat([batch.images for batch in Batches(images, 4, CPU).in_order()])
    assert found.dtype == torch.uint8
    np.testing.assert_array_equal(found.numpy(), images)


def test_in_order_keeps_the_order_and_ends_with_what_is_left() -> None:
    batches = list(Batches(NUMBERED, 4, CPU).in_order())
    assert [tuple(batch.images.shape) for batch in batches] == [(4, 1, 2, 2), (4, 1, 2, 2), (2, 1, 2, 2)]
    assert numbers(batches) == list(range(10))


def test_a_visit_follows_the_order_it_is_given_and_draws_none() -> None:
    data = Batches(NUMBERED, 4, CPU)
    before = torch.get_rng_state()
    batches = list(data.visit(torch.tensor([7, 1, 9, 0, 4])))
    assert [len(batch.images) for batch in batches] == [4, 1]
    assert numbers(batches) == [7, 1, 9, 0, 4]
    assert torch.equal(torch.get_rng_state(), before)
    assert list(data.visit(torch.tensor([], dtype=torch.int64))) == []


def test_the_rest_of_an_order_is_cut_into_the_batches_that_the_whole_is_cut_into() -> None:
    data = Batches(NUMBERED, 4, CPU)
    order = torch.tensor([3, 8, 1, 0, 9, 2, 6, 7, 5, 4])
    whole = [numbers([batch]) for batch in data.visit(order)]
    assert whole == [[3, 8, 1, 0], [9, 2, 6, 7], [5, 4]]
    for done in range(4):
        assert [numbers([batch]) for batch in data.visit(order[4 * done :])] == whole[done:]


def test_some_rows_are_taken_in_the_order_they_are_asked_for() -> None:
    assert numbers([Batch(Batches(NUMBERED, 4, CPU).take(torch.tensor([8, 8, 0, 3, 1])))]) == [8, 8, 0, 3, 1]


def test_shuffled_visits_each_image_once_and_each_time_in_another_order() -> None:
    torch.manual_seed(0)
    data = Batches(NUMBERED, 4, CPU)
    epochs = [list(shuffled(data)) for _ in range(2)]
    for batches in epochs:
        assert [len(batch.images) for batch in batches] == [4, 4, 2]
        assert sorted(numbers(batches)) == list(range(10))
    assert numbers(epochs[0]) != numbers(epochs[1])
    torch.manual_seed(0)
    assert numbers(list(shuffled(data))) == numbers(epochs[0])


@pytest.mark.parametrize(("batch_size", "sizes"), [(1, [1] * 10), (5, [5, 5]), (10, [10]), (99, [10])])
def test_every_batch_size_covers_the_split(batch_size: int, sizes: list[int]) -> None:
    data = Batches(NUMBERED, batch_size, CPU)
    assert len(data) == 10
    assert [len(batch.images) for batch in shuffled(data)] == sizes
    assert [len(batch.images) for batch in data.in_order()] == sizes


def test_a_split_without_images_has_no_batches() -> None:
    data = Batches(NUMBERED[:0], 4, CPU)
    assert len(data) == 0
    assert list(shuffled(data)) == []
    assert list(data.in_order()) == []


def test_a_share_takes_its_part_of_each_batch() -> None:
    data, order = Batches(NUMBERED, 4, CPU), torch.tensor([3, 8, 1, 0, 9, 2, 6, 7, 5, 4])
    parts = [[numbers([batch]) for batch in data.visit(order, lambda rows, n=n: rows[n::3])] for n in range(3)]
    assert parts == [[[3, 0], [9, 7], [5]], [[8], [2], [4]], [[1], [6], []]]


def test_a_split_that_is_mapped_read_only_is_copied_not_shared() -> None:
    images = NUMBERED.copy()
    images.flags.writeable = False
    Batches(images, 10, CPU).take(torch.arange(10)).zero_()
    assert images.sum() == NUMBERED.sum()


def test_the_mean_is_that_of_all_images_with_pixels_between_0_and_1() -> None:
    images = np.random.default_rng(0).integers(0, 256, (10, 3, 2, 2), dtype=np.uint8)
    found = Batches(images, 4, CPU).mean()  # not the mean of the means of batches
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, torch.from_numpy(images.mean(0) / 255).float(), rtol=1e-7, atol=0)


# Images that do not fit into memory


@pytest.fixture
def streamed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REPARAM_RESIDENT_FRACTION", "0")


@pytest.mark.parametrize("batch_size", [1, 3, 10, 100])
def test_images_that_are_read_ahead_are_those_that_are_resident(
    batch_size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    order, seen = torch.tensor([3, 8, 1, 0, 9, 2, 6, 7, 5, 4]), []
    for fraction in ("1", "0"):
        monkeypatch.setenv("REPARAM_RESIDENT_FRACTION", fraction)
        data = Batches(NUMBERED, batch_size, CPU)
        assert data.is_resident == (fraction == "1")
        visits = [data.visit(order), data.visit(order[4:]), data.visit(order, lambda rows: rows[1::2]), data.in_order()]
        images = [batch.images for visit in visits for batch in visit]
        seen.append([*images, data.take(order[:3]), data.mean()])
    assert len(seen[0]) == len(seen[1])
    for resident, read in zip(*seen, strict=True):
        assert resident.dtype == read.dtype
        assert torch.equal(resident, read)
    assert {batch.dtype for batch in seen[0][:-1]} == {torch.uint8}


def test_what_goes_wrong_while_reading_ahead_is_reported(streamed: None) -> None:
    data = Batches(NUMBERED, 2, CPU)
    with pytest.raises(IndexError):
        list(data.visit(torch.tensor([0, 1, 2, 3, 99])))


def test_reading_ahead_may_end_early(streamed: None) -> None:
    data = Batches(NUMBERED, 1, CPU)
    first = next(data.visit(torch.arange(10)))
    assert numbers([first]) == [0]


@pytest.mark.parametrize("text", ["half", "-0.1", "1.5", "nan", ""])
def test_a_share_of_memory_that_is_none_is_refused(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REPARAM_RESIDENT_FRACTION", text)
    with pytest.raises(UserError) as error:
        Batches(NUMBERED, 1, CPU)
    assert str(error.value) == (
        f"REPARAM_RESIDENT_FRACTION: wanted a number from 0 to 1, found {text!r}; fix or unset it"
    )


@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no CUDA GPU")
@pytest.mark.parametrize("fraction", ["0", "1"])
def test_batches_lie_on_the_gpu(fraction: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REPARAM_RESIDENT_FRACTION", fraction)
    data, order = Batches(NUMBERED, 4, torch.device("cuda")), torch.tensor([3, 8, 1, 0, 9, 2, 6, 7, 5, 4])
    batches = [*data.visit(order), Batch(data.take(order))]
    assert {(images.device.type, images.dtype) for images, _ in batches} == {("cuda", torch.uint8)}
    assert numbers(batches) == order.tolist() * 2
