"""Training on a GPU that is not there: no step waits for it, no tensor of the CPU meets one of the GPU."""

from collections.abc import Callable
from typing import Any

import pytest
from fake_gpu import GPU, fake_gpu, needs_cuda_build
from training import GREY, SIZES, black_and_white, small_loss, train_config

from reparam.train.graph import WARM_UP
from reparam.train.optimizers import OPTIMIZERS
from reparam.train.sums import Sums
from reparam.train.trainer import Trainer

pytestmark = needs_cuda_build
IMAGES = black_and_white(4, 1, 4, 4)
EVERYTHING = {"schedule": "cosine", "warmup_epochs": 0.5, "clip_norm": 1.0, "average": 0.9, "batch_size": 4}


def prepared(model: dict[str, Any] | None = None, **changes: Any) -> Callable[[], Trainer]:
    """Make a loss on the CPU, and return what makes its trainer on the GPU."""
    objective = {"name": "elbo", "warmup": "linear", "warmup_epochs": 5}
    loss = small_loss(SIZES | (model or {}), objective, binarization="dynamic")
    return lambda: Trainer(loss.to(GPU), train_config(**EVERYTHING | changes), epoch_images=len(GREY))


@pytest.mark.parametrize("cuda_graph", [False, True])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_no_step_waits(optimizer: str, cuda_graph: bool) -> None:
    start = prepared(optimizer=optimizer, cuda_graph=cuda_graph)
    with fake_gpu() as gpu:
        trainer, sums, images = start(), Sums(GPU), IMAGES.to(GPU)
        with gpu.never_waits():
            for size in [4, 4, 2] * (WARM_UP + 2):
                sums.add(trainer.step(images[:size]))
    assert sums.totals.device.type == "cuda"
