"""Training on a GPU that is not there: no step waits for it, no tensor of the CPU meets one of the GPU."""

import copy
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from conftest import SMALL, change
from fake_gpu import GPU, fake_gpu, needs_cuda_build
from some_cards import image_facts
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only
from training import GREY, KINDS, SIZES, Training, black_and_white, small_loss, train_config

from reparam.config import Config
from reparam.data.batches import Batches
from reparam.distributed import World
from reparam.logged.filmstrip import Filmstrip
from reparam.models.build import build_model
from reparam.objectives import Terms, has_prior
from reparam.track.run import NoRun
from reparam.train import build, trainer
from reparam.train.graph import WARM_UP
from reparam.train.loop import Data
from reparam.train.optimizers import OPTIMIZERS
from reparam.train.sums import Sums, Totals
from reparam.train.trainer import Trainer

pytestmark = needs_cuda_build
IMAGES = black_and_white(4, 1, 4, 4)
EVERYTHING = {"schedule": "cosine", "warmup_epochs": 0.5, "clip_norm": 1.0, "average": 0.9, "batch_size": 4}
# Images of each step: with a CUDA graph, up to one that is replayed after the capture. One batch is ragged.
STEPS = {False: [4, 2], True: [2, *[4] * (WARM_UP + 2)]}


@pytest.fixture(autouse=True)
def _uncompiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Run what would be compiled as it is."""
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    monkeypatch.setattr(trainer, "_trace_gradients", lambda: None)


def prepared(**changes: Any) -> Callable[[], Trainer]:
    """Make a loss on the CPU, and return what makes its trainer on the GPU."""
    loss = small_loss(SIZES, {"warmup": "linear", "warmup_epochs": 5}, binarization="dynamic")
    return lambda: Trainer(loss.to(GPU), train_config(**EVERYTHING | changes), epoch_images=len(GREY))


# Steps


@pytest.mark.parametrize("cuda_graph", [False, True])
@pytest.mark.parametrize(
    "changes",
    [*({"optimizer": name} for name in OPTIMIZERS), {"compile": True}, {"precision": "bf16"}, {"average": 0.0}],
    ids=str,
)
def test_no_step_waits(changes: dict[str, Any], cuda_graph: bool) -> None:
    start = prepared(cuda_graph=cuda_graph, **changes)
    with fake_gpu() as gpu:
        training, sums, images = start(), Sums(GPU), IMAGES.to(GPU)
        with gpu.never_waits():
            for size in STEPS[cuda_graph]:
                sums.add(training.step(images[:size]))
    assert sums.totals.device.type == "cuda"
    assert sums.images == sum(STEPS[cuda_graph])


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_no_step_waits_after_a_checkpoint_was_read(optimizer: str) -> None:
    start = prepared(optimizer=optimizer, cuda_graph=True)
    with fake_gpu() as gpu:
        training, images = start(), IMAGES.to(GPU)
        training.step(images)
        training.load_state_dict(tree_map_only(Tensor, Tensor.cpu, training.state_dict()))
        with gpu.never_waits():
            for size in STEPS[True]:
                training.step(images[:size])


def test_a_step_that_waits_cannot_be_captured() -> None:
    def wait(_loss: nn.Module, _images: Any, terms: Terms) -> None:
        terms["loss"].sum().item()

    start = prepared(cuda_graph=True)
    with fake_gpu():
        training, images = start(), IMAGES.to(GPU)
        training.loss.register_forward_hook(wait)
        for _ in range(WARM_UP):
            training.step(images)
        with pytest.raises(RuntimeError, match="a graph is captured, and the CPU waits: number"):
            training.step(images)


# Batches and sums


def look_at(batches: Batches) -> None:
    """Read GREY, batch by batch, in all ways that there are."""
    for found in (batches.visit(torch.randperm(len(GREY))), batches.in_order()):
        shapes = [(images.device.type, tuple(images.shape)) for images, _ in found]
        assert shapes == [("cuda", (size, 1, 4, 4)) for size in (4, 4, 2)]
    assert batches.mean().device.type == "cuda"


def test_resident_batches_wait_for_the_images_once_and_for_the_order_of_an_epoch() -> None:
    with fake_gpu() as gpu:
        batches = Batches(GREY, 4, GPU)
        assert batches.is_resident
        look_at(batches)
    assert gpu.waits == ["Batches.__init__: cpu to cuda", *["Batches.visit: cpu to cuda"] * 3]


def test_streamed_batches_wait_for_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REPARAM_RESIDENT_FRACTION", "0")
    with fake_gpu() as gpu, gpu.never_waits():
        batches = Batches(GREY, 4, GPU)
        assert not batches.is_resident
        look_at(batches)


def test_sums_wait_only_where_they_are_read() -> None:
    with fake_gpu() as gpu:
        sums = Sums(GPU)
        with gpu.never_waits():
            sums.add(Totals.of({name: torch.zeros(4, device=GPU) for name in ("loss", "kl")}))
            state = sums.state_dict()
        assert sums.means("train", 1) == {"train_loss": 0.0, "train_kl": 0.0}
        sums.is_spoilt()
        assert gpu.waits == ["Sums.means: numbers", "Sums.is_spoilt: number"]
        sums.load_state_dict(tree_map_only(Tensor, Tensor.cpu, state))
        assert sums.totals.device.type == "cuda"


def test_sums_of_two_processes_wait_only_for_the_count_of_images(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(World, "total", lambda _world, values: 2 * values)
    with fake_gpu() as gpu:
        sums = Sums(GPU)
        sums.add(Totals.of({"loss": torch.zeros(4, device=GPU)}))
        gpu.waits.clear()
        assert sums.over(World(size=2)).totals.device.type == "cuda"
    assert gpu.waits == ["Sums.over: cpu to cuda", "Sums.over: number"]


# Whole trainings


@pytest.mark.parametrize(("is_resident", "on_nonfinite"), [(True, "stop"), (False, "rollback")])
def test_an_epoch_waits_at_its_ends_only(on_nonfinite: str, is_resident: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REPARAM_RESIDENT_FRACTION", "1" if is_resident else "0")
    start = prepared(epochs=2, cuda_graph=True, on_nonfinite=on_nonfinite)
    with fake_gpu() as gpu:
        data = Data(Batches(GREY, 4, GPU), Batches(GREY[:3], 4, GPU))
        training = Training(start())
        gpu.waits.clear()
        record = training.fit(data)
    assert len(record.history) == 2
    assert {weight.device.type for weight in record.best_weights.values()} == {"cuda"}
    of_an_epoch = {
        "Sums.means: numbers": 2,  # of training and validation
        "Trainer.check: number": 1,
        **({"Batches.visit: cpu to cuda": 2} if is_resident else {}),  # the orders
    }
    assert Counter(gpu.waits) == {place: 2 * count for place, count in of_an_epoch.items()}


@pytest.mark.parametrize("kind", KINDS)
def test_a_filmstrip_waits_for_each_of_its_rows(kind: str) -> None:
    loss = small_loss(KINDS[kind] | SIZES)
    with fake_gpu() as gpu:
        loss, images = loss.to(GPU), Batches(GREY, 4, GPU)
        gpu.waits.clear()
        shows_samples = has_prior(loss.model, loss.config.name)
        Filmstrip(images, loss.pixels, NoRun(), 0, every=1, has_prior=shows_samples).show(loss.model, epoch=1)
    assert sum(wait.endswith("cuda to cpu") for wait in gpu.waits) == (2 if kind in ("autoencoder", "fsq", "vq") else 3)


def test_a_trainer_is_built_on_the_device_of_its_images(monkeypatch: pytest.MonkeyPatch) -> None:
    params = copy.deepcopy(SMALL)
    change(params, {"model": {"start_at_mean": True}})
    config = Config.model_validate(params)
    model = build_model(config.model, GREY.shape[1:])
    monkeypatch.setattr(build, "build_model", lambda *_: model)  # a fake model of the CPU cannot be moved
    card = image_facts().model_copy(update={"shape": GREY.shape[1:]})
    with fake_gpu():
        built = build.build_trainer(config, card, Batches(GREY, 4, GPU))
        built.step(IMAGES.to(GPU))
    assert {tensor.device.type for tensor in built.loss.state_dict().values()} == {"cuda"}
