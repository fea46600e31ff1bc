from typing import Any

import pytest
import torch
from torch import Tensor

from reparam.train.graph import WARM_UP, Replayed


class Recorder(Replayed):
    """Says which way each batch went, without a GPU."""

    def __init__(self, batch_size: int) -> None:
        super().__init__(self.run, batch_size)
        self.ways: list[str] = []

    def run(self, x: Tensor) -> dict[str, Tensor]:
        self.ways.append(f"run {len(x)}")
        return {"loss": x}

    def _on_a_side_stream(self, batch: tuple[Tensor, ...]) -> dict[str, Tensor]:
        self.ways.append(f"warm {len(batch[0])}")
        return {"loss": batch[0]}

    def _capture(self, batch: tuple[Tensor, ...]) -> Any:
        self.ways.append(f"capture {len(batch[0])}")
        self._inputs, recorder = tuple(values.clone() for values in batch), self

        class Graph:
            def replay(self) -> None:
                recorder.ways.append("replay")
                recorder._output = {"loss": recorder._inputs[0].clone()}

        return Graph()


def test_batches_of_the_usual_size_are_replayed_after_a_warm_up_and_others_run_as_usual() -> None:
    recorder = Recorder(batch_size=4)
    sizes = [3, *[4] * WARM_UP, 2, 4, 4, 1, 4]  # a resumed epoch may begin with the ragged batch
    for number, size in enumerate(sizes):
        x = torch.full((size, 1), float(number))
        assert torch.equal(recorder(x)["loss"], x)
    warm = ["warm 4"] * WARM_UP
    assert recorder.ways == ["run 3", *warm, "run 2", "capture 4", "replay", "replay", "run 1", "replay"]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no CUDA GPU")
def test_a_captured_function_computes_what_it_did() -> None:
    weight = torch.ones(2, device="cuda")

    def step(x: Tensor, _labels: Tensor | None) -> dict[str, Tensor]:
        weight.add_(x.mean(0))
        return {"weight": weight.clone()}

    replayed = Replayed(step, batch_size=3)
    wanted = torch.ones(2)
    for number in range(2 * WARM_UP):
        x = torch.full((3, 2), float(number))
        wanted += number
        assert torch.equal(replayed(x.cuda())["weight"].cpu(), wanted)
