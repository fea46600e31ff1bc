"""Several processes that share work."""

import socket
import time
from datetime import timedelta
from typing import Any

import pytest
import torch

from reparam.distributed import ALONE, World, joined
from reparam.errors import UserError


@pytest.mark.parametrize(
    ("variables", "problem"),
    [({"WORLD_SIZE": "2"}, "variable RANK expected"), ({"WORLD_SIZE": "x", "RANK": "0"}, "invalid literal for int")],
)
def test_variables_that_torchrun_did_not_set_are_refused(
    variables: dict[str, str], problem: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with (
        pytest.raises(UserError, match=rf"^WORLD_SIZE: wanted it set by torchrun, .* found: .*{problem}.*; start the"),
        joined(torch.device("cpu")),
    ):
        pass


@pytest.mark.parametrize("is_of_torchrun", [False, True])
def test_a_process_that_does_not_come_is_not_waited_for_long(
    is_of_torchrun: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("reparam.distributed.MEETING", timedelta(seconds=0.6))
    store = torch.distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    port = store.port
    if not is_of_torchrun:
        del store  # the process opens it itself
    variables = {"WORLD_SIZE": "2", "RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    variables |= {"TORCHELASTIC_USE_AGENT_STORE": str(is_of_torchrun), "TORCHELASTIC_RESTART_COUNT": "0"}
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    start = time.monotonic()
    with pytest.raises(UserError) as caught, joined(torch.device("cpu")):
        pass
    assert time.monotonic() - start < 30
    assert str(caught.value) == (
        "process 0 of 2: wanted all of them within 0.01 minutes, found that one did not come; see what the command "
        "says on the other machines; start it again on all of them"
    )


@pytest.mark.parametrize(("asked", "found"), [(timedelta(days=7), timedelta(days=7)), (None, timedelta(minutes=30))])
def test_processes_that_have_met_wait_as_long_as_they_are_asked_to(
    asked: timedelta | None, found: timedelta, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    variables = {"WORLD_SIZE": "1", "RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with joined(torch.device("cpu"), asked) as world:
        assert (world.rank, world.size) == (0, 1)
        assert torch.distributed.distributed_c10d._get_default_store().timeout == found


@pytest.mark.parametrize("size", [1, 2, 3])
@pytest.mark.parametrize("images", [1, 2, 3, 7, 12])
def test_the_average_over_processes_is_the_mean_over_images(images: int, size: int) -> None:
    rows, values = torch.arange(images), torch.randn(images, dtype=torch.float64)
    worlds = [World(rank, size) for rank in range(size)]
    parts = [world.share(rows) for world in worlds]
    weighted = [values[part].mean() * w.weight(len(part), images) for w, part in zip(worlds, parts, strict=True)]
    torch.testing.assert_close(torch.stack(weighted).mean(), values.mean())
    if images >= size:
        assert sorted(torch.cat(parts).tolist()) == rows.tolist()  # every image once


def test_alone_everything_is_what_it_was() -> None:
    rows = torch.arange(5)
    assert ALONE.share(rows) is rows or ALONE.share(rows).tolist() == rows.tolist()
    assert ALONE.weight(5, 5) == 1.0
    assert ALONE.total(rows) is rows
    assert ALONE.agree(rows) is rows
    assert ALONE.put_together(rows, [rows])[0] is rows


class First(World):
    """The first process, which has received what the others sent."""

    def collect(self, value: Any) -> list[Any]:
        others = [World(rank, self.size).deal(IMAGES, BATCH)[1] for rank in range(1, self.size)]
        return [value, *((rows, [rows, torch.stack([rows, -rows], 1)]) for rows in others)]


class Other(World):
    def collect(self, value: Any) -> list[Any]:
        return []


IMAGES, BATCH = 7, 3  # 3 + 3 + 1


@pytest.mark.parametrize("size", [2, 3, 5])
def test_what_whole_batches_gave_is_put_together_in_order(size: int) -> None:
    numbers, rows = First(0, size).deal(IMAGES, BATCH)
    assert numbers == list(range(3))[::size]
    one, two = First(0, size).put_together(rows, [rows, torch.stack([rows, -rows], 1)])
    assert one.tolist() == list(range(7))
    assert two.tolist() == [[row, -row] for row in range(7)]


def test_the_other_processes_keep_what_they_have() -> None:
    rows = World(1, 2).deal(IMAGES, BATCH)[1]
    (own,) = Other(1, 2).put_together(rows, [10 * rows])
    assert own.tolist() == [30, 40, 50]
    # One without a batch receives the first.
    assert World(3, 4).deal(IMAGES, BATCH)[1].tolist() == [0, 1, 2]
