import copy
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from some_cards import image_facts
from torch import Tensor
from training import black_and_white, model_config, objective_config, small_loss, spoil, train_config

from reparam.config import ObjectiveConfig, TrainConfig
from reparam.data.batches import Batches
from reparam.data.pixels import Pixels
from reparam.errors import NonFiniteError
from reparam.models.build import build_model
from reparam.models.model import Model
from reparam.objectives import OBJECTIVES, Setting, Terms
from reparam.train.checkpoint import Checkpoints
from reparam.train.loss import Loss
from reparam.train.optimizers import OPTIMIZERS
from reparam.train.sums import Sums, Totals
from reparam.train.trainer import Trainer

RATE = 0.01
MODEL: dict[str, Any] = {"hidden": (5,), "activation": "tanh", "latent": 2}
OBJECTIVE: dict[str, Any] = {"beta": 3.0, "samples": 2}
SHAPE = (1, 2, 3)
IMAGES = black_and_white(4, *SHAPE)


def settings(**changes: Any) -> TrainConfig:
    return train_config(**{"learning_rate": RATE} | changes)


def loss_with(objective: dict[str, Any] | None = None, model: dict[str, Any] | None = None, **others: Any) -> Loss:
    return small_loss(MODEL | (model or {}), OBJECTIVE | (objective or {}), **{"shape": SHAPE} | others)


@pytest.fixture
def loss() -> Loss:
    return loss_with()


def scored(trainer: Trainer, images: Tensor = IMAGES) -> Tensor:
    """The loss of held-out images, summed."""
    return trainer.validate(images).terms["loss"]


def weights(trainer: Trainer) -> dict[str, Tensor]:
    """The weights that are scored and kept."""
    return trainer.model.state_dict()


class Settings:
    """An objective that notes what it is given."""

    def __init__(self) -> None:
        self.seen: list[tuple[float, float, float]] = []

    def __call__(self, model: Model, x: Tensor, config: ObjectiveConfig, setting: Setting) -> Terms:
        # Numbers, because the tensor of the epoch is written again at each step.
        self.seen.append((setting.epoch.item(), setting.black.item(), setting.white.item()))
        return OBJECTIVES["elbo"].terms(model, x, config, setting)


# Steps


def test_the_first_step_is_the_first_step_of_adam(loss: Loss) -> None:
    twin = copy.deepcopy(loss)
    torch.manual_seed(1)
    (twin(IMAGES)["loss"].sum() / 4).backward()
    torch.manual_seed(1)
    Trainer(loss, settings(), 4).step(IMAGES)
    for found, before in zip(loss.parameters(), twin.parameters(), strict=True):
        assert found.grad is not None
        assert before.grad is not None
        torch.testing.assert_close(found.grad, before.grad)  # of the mean over images
        # Both moments are corrected for their start at zero, so the first step is g / (|g| + eps).
        wanted = before - RATE * before.grad / (before.grad.abs() + 1e-8)
        torch.testing.assert_close(found, wanted)
        assert not torch.equal(found, before)


def test_later_steps_start_from_fresh_gradients(loss: Loss) -> None:
    twin = copy.deepcopy(loss)
    reference = torch.optim.Adam(twin.parameters(), lr=RATE)
    torch.manual_seed(1)
    for _ in range(3):
        gradients = torch.autograd.grad(twin(IMAGES)["loss"].mean(), list(twin.parameters()))
        for parameter, gradient in zip(twin.parameters(), gradients, strict=True):
            parameter.grad = gradient
        reference.step()
    torch.manual_seed(1)
    trainer = Trainer(loss, settings(), 4)
    for _ in range(3):
        trainer.step(IMAGES)
    for found, wanted in zip(loss.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(found, wanted)


def test_the_weights_of_a_likelihood_are_trained_too() -> None:
    loss = loss_with(model={"likelihood": "gaussian_learned"})
    before = dict(copy.deepcopy(loss.state_dict()))
    Trainer(loss, settings(), 4).step(IMAGES)
    changed = {name for name, tensor in loss.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed == set(before)
    assert "model.likelihood.log_sigma" in changed


def test_a_step_returns_the_sums_of_the_terms_before_the_step_without_their_graph(loss: Loss) -> None:
    torch.manual_seed(1)
    wanted = Totals.of(loss(IMAGES)).terms
    torch.manual_seed(1)
    found, images = Trainer(loss, settings(), 4).step(IMAGES)
    assert images == len(IMAGES)
    assert found.keys() == wanted.keys()
    for name, total in found.items():
        assert torch.equal(total, wanted[name])
        assert not total.requires_grad


def test_a_ragged_last_batch_counts_its_images_and_not_as_a_whole_batch(loss: Loss) -> None:
    objective = loss.objective = Settings()
    trainer = Trainer(loss, settings(warmup_epochs=2.0), epoch_images=10)
    rates, images = [], []
    for size in (4, 4, 2, 4, 4, 2, 4):
        trainer.step(IMAGES[:size])
        rates.append(trainer.optimizer.param_groups[0]["lr"])
        images.append(trainer.images)
    assert images == [4, 8, 10, 14, 18, 20, 24]
    epochs = [0.0, 0.4, 0.8, 1.0, 1.4, 1.8, 2.0]
    found = [epoch for epoch, _, _ in objective.seen]
    assert found == pytest.approx(epochs, rel=1e-6)
    assert found[::3] == [0.0, 1.0, 2.0]  # to the last bit
    assert {(black, white) for _, black, white in objective.seen} == {(0.0, 1.0)}
    # The warm-up counts the images of the step as well.
    assert rates == pytest.approx([RATE * epoch / 2 for epoch in (0.4, 0.8, 1.0, 1.4, 1.8, 2.0, 2.0)], rel=1e-12)
    assert (rates[2], rates[5], rates[6]) == (RATE / 2, RATE, RATE)


def test_the_first_step_of_a_warm_up_moves_the_weights(loss: Loss) -> None:
    before = copy.deepcopy(loss.state_dict())
    Trainer(loss, settings(warmup_epochs=100.0), epoch_images=4).step(IMAGES)
    assert not any(torch.equal(tensor, before[name]) for name, tensor in loss.state_dict().items())


def test_a_score_does_not_count_as_images_trained(loss: Loss) -> None:
    trainer = Trainer(loss, settings(), 4)
    scored(trainer)
    assert (trainer.images, loss.epoch.item()) == (0, 0.0)


# Clipping


def gradients_of(loss: Loss) -> Tensor:
    return torch.cat([parameter.grad.flatten() for parameter in loss.parameters() if parameter.grad is not None])


def after_one_step(**changes: Any) -> Loss:
    loss = loss_with()
    torch.manual_seed(1)
    Trainer(loss, settings(optimizer="sgd", momentum=0.0, **changes), 4).step(IMAGES)
    return loss


def test_a_gradient_that_is_too_long_is_shortened_and_keeps_its_direction() -> None:
    free = gradients_of(after_one_step())
    limit = free.norm().item() / 3
    clipped = after_one_step(clip_norm=limit)
    assert gradients_of(clipped).norm().item() == pytest.approx(limit, rel=1e-5)
    torch.testing.assert_close(gradients_of(clipped), free / 3, rtol=1e-5, atol=1e-7)
    # And that is what the optimizer is given.
    for found, before in zip(clipped.parameters(), loss_with().parameters(), strict=True):
        assert found.grad is not None
        torch.testing.assert_close(found, before - RATE * found.grad)


@pytest.mark.parametrize("factor", [1.001, 1000.0])
def test_a_gradient_that_is_short_enough_stays_as_it_is(factor: float) -> None:
    free = after_one_step()
    clipped = after_one_step(clip_norm=gradients_of(free).norm().item() * factor)
    assert torch.equal(gradients_of(clipped), gradients_of(free))


# The moving average


def test_the_average_is_the_exponential_moving_average_of_the_weights_after_each_step(loss: Loss) -> None:
    trainer = Trainer(loss, settings(average=0.75), 4)
    wanted: dict[str, Tensor] = {}
    for _ in range(4):
        trainer.step(IMAGES)
        now = {name: tensor.clone() for name, tensor in loss.model.state_dict().items()}
        wanted = {name: 0.75 * wanted[name] + 0.25 * now[name] for name in now} if wanted else now
    found = weights(trainer)
    assert found.keys() == wanted.keys() == loss.model.state_dict().keys()
    for name, tensor in found.items():
        torch.testing.assert_close(tensor, wanted[name], rtol=1e-6, atol=1e-8)
        assert not torch.equal(tensor, loss.model.state_dict()[name])


def test_the_average_is_what_is_scored_and_leaves_training_as_it_is() -> None:
    plain, averaged = Trainer(loss_with(), settings(), 4), Trainer(loss_with(), settings(average=0.9), 4)
    for trainer in (plain, averaged):
        torch.manual_seed(1)
        for _ in range(3):
            trainer.step(IMAGES)
    assert all(torch.equal(*pair) for pair in zip(plain.loss.parameters(), averaged.loss.parameters(), strict=True))
    twin = loss_with()
    twin.model.load_state_dict(weights(averaged))
    torch.manual_seed(2)
    wanted = twin.validate(IMAGES)["loss"].double().sum()
    torch.manual_seed(2)
    assert torch.equal(scored(averaged), wanted)
    torch.manual_seed(2)
    assert not torch.equal(scored(plain), wanted)


def test_without_an_average_the_weights_in_training_are_scored_and_kept(loss: Loss) -> None:
    trainer = Trainer(loss, settings(), 4)
    trainer.step(IMAGES)
    for name, tensor in weights(trainer).items():
        assert torch.equal(tensor, loss.model.state_dict()[name])
    torch.manual_seed(2)
    wanted = loss.validate(IMAGES)["loss"].double().sum()
    torch.manual_seed(2)
    assert torch.equal(scored(trainer), wanted)


def test_an_average_takes_the_statistics_of_a_batch_norm_from_training() -> None:
    loss = loss_with(model={"norm": "batch"})
    trainer = Trainer(loss, settings(average=0.9), 4)
    for _ in range(3):
        trainer.step(IMAGES)
    running = {name for name in weights(trainer) if "running" in name}
    assert running
    for name in running:
        assert torch.equal(weights(trainer)[name], loss.model.state_dict()[name])


# State


@pytest.mark.parametrize("on_disk", [False, True])
@pytest.mark.parametrize("average", [0.0, 0.9])
@pytest.mark.parametrize(
    ("optimizer", "momentum"), [*((name, 0.9) for name in OPTIMIZERS), ("sgd", 0.0), ("rmsprop", 0.0)]
)
def test_a_trainer_that_loads_a_state_goes_on_to_the_last_bit(
    optimizer: str, momentum: float, average: float, on_disk: bool, tmp_path: Path
) -> None:
    config = settings(optimizer=optimizer, momentum=momentum, average=average, warmup_epochs=3.0)
    trainer, other = (
        Trainer(loss_with({"warmup": "linear", "warmup_epochs": 5}, {"norm": "batch"}), config, epoch_images=12)
        for _ in range(2)
    )
    for _ in range(4):
        trainer.step(IMAGES)
    trainer.rate_factor = 0.5
    state = copy.deepcopy(trainer.state_dict())
    if on_disk:
        Checkpoints(tmp_path).write(state)
        state = Checkpoints(tmp_path).read()
    other.load_state_dict(state)
    assert (other.images, other.rate_factor) == (16, 0.5)
    found = []
    for one in (trainer, other):
        torch.manual_seed(7)
        losses = [one.step(IMAGES).terms["loss"] for _ in range(3)]
        found.append([*losses, scored(one), *weights(one).values(), *one.loss.state_dict().values(), one.loss.epoch])
    assert all(torch.equal(*pair) for pair in zip(*found, strict=True))


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_trainer_goes_on_to_the_last_bit_with_weights_in_channels_last(optimizer: str, tmp_path: Path) -> None:
    # On disk all tensors are contiguous, while fused optimizers go through memory as it lies.
    images = black_and_white(4, 1, 8, 8)

    def build() -> Trainer:
        torch.manual_seed(0)
        config = model_config(network="conv", channels=(4, 6), hidden=(5,), latent=2)
        model = build_model(config, (1, 8, 8)).to(memory_format=torch.channels_last)
        return Trainer(Loss(model, Pixels(image_facts("none")), objective_config()), settings(optimizer=optimizer), 4)

    trainer, other = build(), build()
    for _ in range(3):
        trainer.step(images)
    Checkpoints(tmp_path).write(trainer.state_dict())
    other.load_state_dict(Checkpoints(tmp_path).read())
    assert any(not parameter.is_contiguous() for parameter in trainer.loss.parameters())
    for one in (trainer, other):
        torch.manual_seed(7)
        for _ in range(3):
            one.step(images)
    assert all(torch.equal(*pair) for pair in zip(trainer.loss.parameters(), other.loss.parameters(), strict=True))


def test_a_trainer_shares_no_memory_with_the_state_that_it_loaded(loss: Loss) -> None:
    trainer = Trainer(loss, settings(average=0.9), 4)
    trainer.step(IMAGES)
    state = copy.deepcopy(trainer.state_dict())
    twice = []
    for _ in range(2):
        trainer.load_state_dict(state)
        torch.manual_seed(7)
        trainer.step(IMAGES)
        trainer.step(IMAGES)
        twice.append([tensor.clone() for tensor in (*loss.parameters(), *weights(trainer).values())])
    assert all(torch.equal(*pair) for pair in zip(*twice, strict=True))


def test_a_trainer_can_go_back_to_before_its_first_step(loss: Loss) -> None:
    trainer = Trainer(loss, settings(), 4)
    state = copy.deepcopy(trainer.state_dict())
    assert (state["optimizer"], state["images"], state["rate_factor"]) == ({}, 0, 1.0)
    wanted = []
    for _ in range(2):
        torch.manual_seed(7)
        trainer.step(IMAGES)
        wanted.append([parameter.detach().clone() for parameter in loss.parameters()])
        trainer.load_state_dict(state)
    assert all(torch.equal(*pair) for pair in zip(*wanted, strict=True))


def test_the_rate_factor_scales_every_rate(loss: Loss) -> None:
    trainer = Trainer(loss, settings(), 4)
    trainer.rate_factor = 0.25
    trainer.step(IMAGES)
    assert trainer.optimizer.param_groups[0]["lr"] == RATE / 4


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_weights_that_are_not_finite_are_reported_at_the_end_of_the_epoch(value: float, loss: Loss) -> None:
    trainer = Trainer(loss, settings(average=0.9), 4)
    trainer.check(1)
    spoil(trainer, value)
    with pytest.raises(NonFiniteError, match="the weights are no longer finite at the end of epoch 7; lower"):
        trainer.check(7)


# Precision


def test_bf16_computes_the_loss_in_bfloat16_and_keeps_the_weights_in_float32() -> None:
    full, half = Trainer(loss_with(), settings(), 4), Trainer(loss_with(), settings(precision="bf16"), 4)
    found = []
    for trainer in (full, half):
        torch.manual_seed(1)
        found.append(trainer.step(IMAGES).terms["loss"])
    assert not torch.equal(*found)
    torch.testing.assert_close(found[1], found[0], rtol=0.02, atol=0.02)  # 8 bits, of about 4 nats
    for tensor in [*half.loss.parameters(), *weights(half).values()]:
        assert tensor.dtype == torch.float32
    for parameter in half.loss.parameters():
        assert parameter.grad is not None
        assert parameter.grad.dtype == torch.float32


def test_bf16_scores_held_out_images_in_float32(loss: Loss) -> None:
    trainer = Trainer(loss, settings(precision="bf16"), 4)
    torch.manual_seed(1)
    wanted = loss.validate(IMAGES)
    torch.manual_seed(1)
    found = trainer.validate(IMAGES).terms
    assert {values.dtype for values in wanted.values()} == {torch.float32}
    assert all(torch.equal(found[name], wanted[name].double().sum()) for name in wanted)


# Compiling


@pytest.mark.slow
def test_a_compiled_step_does_what_an_eager_one_does() -> None:
    # Without noise: compiled code draws other numbers.
    found = []
    for compiled in (False, True):
        loss = loss_with({"name": "reconstruction"}, {"kind": "autoencoder"})
        trainer = Trainer(loss, settings(compile=compiled, average=0.5), epoch_images=6)
        losses = [trainer.step(part).terms["loss"] for _ in range(3) for part in (IMAGES, IMAGES[:2])]
        last = loss.validate(IMAGES)["loss"]
        found.append(torch.cat([torch.stack([*losses, scored(trainer)]), last]))
        assert {f"model.{name}" for name in weights(trainer)} == set(loss.state_dict())
    torch.testing.assert_close(found[1], found[0], rtol=1e-5, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(("norm", "optimizer"), [("none", "adam"), ("batch", "sgd")])
def test_compiled_convolutions_in_channels_last_learn_what_eager_ones_do(norm: str, optimizer: str) -> None:
    # (Biases before a batch norm have no gradient but rounding, of which Adam would make whole steps.)
    found, kept = [], []
    grey = torch.randint(0, 256, (8, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    for compiled in (False, True):
        changes = {"network": "conv", "channels": [4, 6], "hidden": [8], "kind": "autoencoder", "norm": norm}
        loss = loss_with({"name": "reconstruction"}, changes, shape=(1, 8, 8))
        loss.model = loss.model.to(memory_format=torch.channels_last)
        trainer = Trainer(loss, settings(compile=compiled, clip_norm=1.0, optimizer=optimizer), epoch_images=8)
        found.append(torch.stack([trainer.step(grey).terms["loss"] for _ in range(4)]))
        kept.append(torch.cat([weight.flatten() for weight in weights(trainer).values()]))
    torch.testing.assert_close(found[1], found[0], rtol=1e-4, atol=1e-4)
    # Gradients in another order in memory than the weights would move every weight by a wrong amount.
    torch.testing.assert_close(kept[1], kept[0], rtol=1e-2, atol=2e-4)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`torch._prims_common.check` is deprecated:FutureWarning")  # inductor's own
@pytest.mark.parametrize("objective", [name for name, found in OBJECTIVES.items() if not found.has_jacobian])
def test_a_compiled_step_follows_the_gradient_of_every_objective_that_can_be_compiled(
    objective: str, request: pytest.FixtureRequest
) -> None:
    request.addfinalizer(torch._dynamo.reset)  # no later test meets these graphs
    torch._dynamo.reset()
    found = []
    for compiled in (False, True):
        loss = loss_with({"name": objective, "samples": 3, "denoising": {"noise": "gaussian", "level": 0.5}})
        start = torch.cat([weight.detach().flatten() for weight in loss.parameters()])
        trainer = Trainer(loss, settings(compile=compiled, optimizer="sgd", momentum=0.0, learning_rate=1.0), 4)
        torch.manual_seed(1)
        with torch._inductor.config.patch(fallback_random=True):  # the numbers that an eager step draws
            terms = trainer.step(IMAGES).terms
        moved = torch.cat([weight.detach().flatten() for weight in loss.parameters()]) - start
        assert moved.abs().max() > 1e-2
        found.append(torch.cat([moved, torch.stack([terms["loss"].float(), terms["reconstruction"].float()])]))
    torch.testing.assert_close(found[1], found[0], rtol=1e-4, atol=1e-5)


# CUDA graphs


needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no CUDA GPU")


@needs_gpu
@pytest.mark.parametrize("optimizer", sorted(OPTIMIZERS))
def test_a_replayed_step_does_what_a_launched_one_does(optimizer: str) -> None:
    found, images = [], IMAGES.cuda()
    for cuda_graph in (False, True):
        changes = {"optimizer": optimizer, "batch_size": 4, "schedule": "cosine", "average": 0.5}
        loss = loss_with({"warmup": "linear", "warmup_epochs": 5}).cuda()
        trainer = Trainer(loss, settings(cuda_graph=cuda_graph, **changes), epoch_images=6)
        torch.cuda.manual_seed(1)
        losses = [trainer.step(part).terms["loss"].clone() for _ in range(8) for part in (images, images[:2])]
        last = loss.validate(images)["loss"]
        found.append(torch.cat([torch.stack([*losses, scored(trainer, images)]), last]))
    torch.testing.assert_close(found[1], found[0], rtol=1e-4, atol=1e-4)


@needs_gpu
@pytest.mark.parametrize("cuda_graph", [False, True])
def test_a_step_never_waits_for_a_gpu(cuda_graph: bool) -> None:
    grey = np.random.default_rng(0).integers(0, 256, (42, *SHAPE), dtype=np.uint8)
    data = Batches(grey, 4, torch.device("cuda"))
    config = settings(cuda_graph=cuda_graph, batch_size=4, schedule="cosine", average=0.5, clip_norm=1.0)
    trainer = Trainer(loss_with(binarization="dynamic").cuda(), config, epoch_images=42)
    sums = Sums(data.device)
    for batch in data.in_order():  # warming up, and capturing
        sums.add(trainer.step(*batch))
    epoch = data.visit(torch.randperm(42))
    parts = [next(epoch)]  # the order goes to the device once, at the start
    torch.cuda.set_sync_debug_mode("error")
    try:
        for batch in (*parts, *epoch):
            sums.add(trainer.step(*batch))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert sums.images == 84
    assert sums.means("train", 1)["train_loss"] > 0


@needs_gpu
def test_a_replayed_step_goes_on_from_a_state_that_was_loaded() -> None:
    trainer = Trainer(loss_with().cuda(), settings(cuda_graph=True, batch_size=4, average=0.5), 4)
    images = IMAGES.cuda()
    for _ in range(5):
        trainer.step(images)
    state = copy.deepcopy(trainer.state_dict())
    torch.cuda.manual_seed(2)
    wanted = [trainer.step(images).terms["loss"].clone() for _ in range(6)]
    trainer.load_state_dict(state)
    torch.cuda.manual_seed(2)
    found = [trainer.step(images).terms["loss"].clone() for _ in range(6)]
    torch.testing.assert_close(torch.stack(found), torch.stack(wanted), rtol=1e-4, atol=1e-4)
