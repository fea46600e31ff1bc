"""Requests that come together are computed together: a graph takes little longer for eight images than for one."""

import asyncio
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from reparam.client import Client

Arrays = dict[str, npt.NDArray[Any]]


@dataclass(frozen=True)
class Waiting:
    """A request, and who waits for its answer."""

    inputs: Arrays
    answer: "asyncio.Future[Arrays]"

    @property
    def rows(self) -> int:
        return len(next(iter(self.inputs.values())))


class Batches:
    """Collect the requests to one graph for a moment, and run the graph once for all of them, in a thread."""

    def __init__(self, client: Client, graph: str, seconds: float, rows: int) -> None:
        """Wait at most `seconds` for others, and compute at most `rows` at once, but for a single larger request."""
        self.client = client
        self.graph = graph
        self.seconds = seconds
        self.rows = rows
        self.runs = 0  # how often the graph was run
        self._queue: asyncio.Queue[Waiting] = asyncio.Queue()
        self._worker: asyncio.Task[None] | None = None

    async def run(self, inputs: Arrays) -> Arrays:
        """Return the outputs of the graph by their names."""
        if self._worker is None:
            self._worker = asyncio.create_task(self._work())
        waiting = Waiting(inputs, asyncio.get_running_loop().create_future())
        await self._queue.put(waiting)
        return await waiting.answer

    async def _work(self) -> None:
        while True:
            together = await self._collect()
            try:
                answers = await asyncio.to_thread(self._compute, together)
            except Exception as error:  # noqa: BLE001  whoever waits gets it
                for waiting in together:
                    waiting.answer.set_exception(error)
                continue
            for waiting, answer in zip(together, answers, strict=True):
                if not waiting.answer.done():  # its client may be gone
                    waiting.answer.set_result(answer)

    async def _collect(self) -> list[Waiting]:
        together = [await self._queue.get()]
        until = asyncio.get_running_loop().time() + self.seconds
        while sum(waiting.rows for waiting in together) < self.rows:
            left = until - asyncio.get_running_loop().time()
            try:
                together.append(await asyncio.wait_for(self._queue.get(), max(0, left)))
            except TimeoutError:
                break
        return together

    def _compute(self, together: list[Waiting]) -> list[Arrays]:
        self.runs += 1
        inputs = {name: np.concatenate([one.inputs[name] for one in together]) for name in together[0].inputs}
        outputs = self.client.run(self.graph, None, **inputs)
        ends = np.cumsum([one.rows for one in together])[:-1]
        parts = [np.split(values, ends) for values in outputs]
        names = self.client.outputs(self.graph)
        return [dict(zip(names, values, strict=True)) for values in zip(*parts, strict=True)]
