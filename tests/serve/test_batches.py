"""Requests that are computed together."""

import asyncio
import threading
from typing import Any

import numpy as np
import pytest

from reparam.serve.batches import Batches


class SlowClient:
    """Doubles numbers, and starts only when it is asked to."""

    def __init__(self) -> None:
        self.runs: list[list[float]] = []
        self.started, self.go = threading.Event(), threading.Event()

    def outputs(self, graph: str) -> tuple[str, ...]:
        return ("doubled",)

    def run(self, graph: str, outputs: None, x: Any) -> list[Any]:
        self.runs.append(x.tolist())
        self.started.set()
        assert self.go.wait(10)
        if 13 in x:
            raise ValueError("13")
        return [2 * x]


@pytest.fixture
def client() -> SlowClient:
    return SlowClient()


async def ask_while_busy(client: SlowClient, *requests: list[float], gone: int | None = None) -> list[Any]:
    """Send requests while another one is computed; the client of one may be `gone`."""
    batches = Batches(client, "graph", rows=3)  # type: ignore[arg-type]
    first = asyncio.create_task(batches.run({"x": np.array([0.0])}))
    await asyncio.to_thread(client.started.wait, 10)
    tasks = [asyncio.create_task(batches.run({"x": np.array(request)})) for request in requests]
    await asyncio.sleep(0)  # so that all of them wait
    if gone is not None:
        tasks[gone].cancel()
        await asyncio.sleep(0)
    client.go.set()
    answers = await asyncio.gather(*tasks, return_exceptions=True)
    assert (await first)["doubled"].tolist() == [0.0]
    return [answer["doubled"].tolist() if isinstance(answer, dict) else answer for answer in answers]


def test_requests_that_come_during_a_run_are_computed_together(client: SlowClient) -> None:
    assert asyncio.run(ask_while_busy(client, [1.0], [2.0, 3.0])) == [[2.0], [4.0, 6.0]]
    assert client.runs == [[0.0], [1.0, 2.0, 3.0]]


def test_a_run_has_no_more_rows_than_allowed_except_for_one_larger_request(client: SlowClient) -> None:
    asyncio.run(ask_while_busy(client, [1.0, 2.0], [3.0, 4.0], [5.0, 6.0, 7.0, 8.0]))
    assert client.runs == [[0.0], [1.0, 2.0], [3.0, 4.0], [5.0, 6.0, 7.0, 8.0]]


def test_a_request_whose_client_is_gone_is_not_computed(client: SlowClient) -> None:
    answers = asyncio.run(ask_while_busy(client, [1.0], [2.0], gone=0))
    assert isinstance(answers[0], asyncio.CancelledError)
    assert answers[1] == [4.0]
    assert client.runs == [[0.0], [2.0]]


def test_a_failure_reaches_whoever_waits_and_the_next_request_is_computed(client: SlowClient) -> None:
    first, second, third = asyncio.run(ask_while_busy(client, [13.0, 1.0], [2.0], [3.0]))
    assert (str(first), str(second), third) == ("13", "13", [6.0])
