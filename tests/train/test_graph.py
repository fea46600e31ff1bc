from typing import Any

import pytest
import torch
from torch import Tensor

from reparam.data.batches import Batch
from reparam.train.graph import WARM_UP, Replayed


class Recorder(Replayed):
    """Says which way each batch went, without a GPU."""

    def __init__(self, batch_size: int) -> None:
        super().__init__(self.run, batch_size)
        self.ways: list[str] = []

    def run(self, x: Tensor, labels: Tensor | None) -> dict[str, Tensor]:
        self.ways.append(f"run {len(x)}")
        return {"loss": x if labels is None else x + labels[:, None]}

    def _on_a_side_stream(self, batch: Batch) -> dict[str, Tensor]:
        self.ways.append(f"warm {len(batch.images)}")
        return {"loss": batch.images if batch.labels is None else batch.images + batch.labels[:, None]}

    def _capture(self) -> Any:
        self.ways.append(f"capture {len(self._inputs.images)}")
        recorder = self

        class Graph:
            def replay(self) -> None:
                recorder.ways.append("replay")
                x, labels = recorder._inputs
                recorder._output = {"loss": x.clone() if labels is None else x + labels[:, None]}

        return Graph()


@pytest.mark.parametrize("is_labelled", [False, True])
def test_batches_of_the_usual_size_are_replayed_after_a_warm_up_and_others_run_as_usual(is_labelled: bool) -> None:
    recorder = Recorder(batch_size=4)
    sizes = [3, *[4] * WARM_UP, 2, 4, 4, 1, 4]  # a resumed epoch may begin with the ragged batch
    for number, size in enumerate(sizes):
        x = torch.full((size, 1), float(number))
        labels = torch.full((size,), number) if is_labelled else None
        assert torch.equal(recorder(x, labels)["loss"], 2 * x if is_labelled else x)
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
