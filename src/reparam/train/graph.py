"""CUDA graphs: a step launched as one, because small models wait for launches and not for arithmetic."""

from collections.abc import Callable

import torch
from torch import Tensor

from reparam.data.batches import Batch

WARM_UP = 3  # calls before the capture: libraries choose kernels, and optimizers make their state

Tensors = dict[str, Tensor]


class Replayed:
    """A function of one batch that is captured once, at a batch of the usual size, and replayed from then on.

    Batches of another size (the ragged last one) run as usual. A result is valid until the next call. Tensors that the
    function reads or writes on the device must stay where they are; values that it reads on the host are fixed.
    Source: the documentation of torch, "CUDA semantics", section on CUDA graphs.
    """

    def __init__(self, function: Callable[[Tensor, Tensor | None], Tensors], batch_size: int) -> None:
        self.function = function
        self.batch_size = batch_size
        self._calls = 0
        self._graph: torch.cuda.CUDAGraph | None = None
        self._inputs: Batch
        self._output: Tensors = {}

    def __call__(self, images: Tensor, labels: Tensor | None = None) -> Tensors:
        """Shapes: (B, ...), (B,)."""
        batch = Batch(images, labels)
        if len(images) != self.batch_size:
            return self.function(*batch)
        self._calls += 1
        if self._calls <= WARM_UP:
            return self._on_a_side_stream(batch)
        if self._graph is None:
            self._inputs = Batch(images.clone(), None if labels is None else labels.clone())
            self._graph = self._capture()
        for kept, values in zip(self._inputs, batch, strict=True):
            if kept is not None and values is not None:
                kept.copy_(values)
        self._graph.replay()
        return self._output

    def _capture(self) -> torch.cuda.CUDAGraph:
        """Record the function's kernels, without computing anything yet."""
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):  # others may read images ahead
            self._output = self.function(*self._inputs)
        return graph

    def _on_a_side_stream(self, batch: Batch) -> Tensors:
        """Run as usual, but on a stream of its own: captures need that before they record."""
        current = torch.cuda.current_stream()
        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        stream.wait_stream(current)
        with torch.cuda.stream(stream):
            output = self.function(*batch)
        current.wait_stream(stream)
        return output
