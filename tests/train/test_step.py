import copy
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import small_section
from data_card import data_card
from torch import Tensor, nn

from reparam.config import ObjectiveConfig, TrainConfig
from reparam.data.batches import Batches
from reparam.data.scaling import Scaling
from reparam.errors import NonFiniteError
from reparam.models.build import build_model
from reparam.models.draw import Model
from reparam.objectives import OBJECTIVES, Setting, Terms
from reparam.train.checkpoint import Checkpoints
from reparam.train.loop import Sums, Totals
from reparam.train.optimizers import OPTIMIZERS
from reparam.train.step import LossModule, Step

RATE = 0.01
MODEL: dict[str, Any] = {"hidden": (5,), "activation": "tanh", "latent": 2}
OBJECTIVE: dict[str, Any] = {"beta": 3.0, "samples": 2}


def settings(**changes: Any) -> TrainConfig:
    return small_section("train", **{"learning_rate": RATE, **changes})


def module_with(
    objective: dict[str, Any] | None = None,
    model: dict[str, Any] | None = None,
    images: int = 4,
    shape: tuple[int, int, int] = (1, 2, 3),
) -> LossModule:
    """A small model of black and white images, and its objective."""
    torch.manual_seed(0)
    config = small_section("model", **MODEL | (model or {}))
    wanted = small_section("objective", **OBJECTIVE | (objective or {}))
    return LossModule(build_model(config, shape), wanted, Scaling(data_card("none")), images)


@pytest.fixture
def module() -> LossModule:
    return module_with()


@pytest.fixture
def batch() -> Tensor:
    return torch.bernoulli(torch.full((4, 1, 2, 3), 0.5), generator=torch.Generator().manual_seed(0))


class Settings:
    """An objective that notes what it is told."""

    def __init__(self) -> None:
        self.seen: list[Setting] = []

    def __call__(self, model: Model, x: Tensor, config: ObjectiveConfig, setting: Setting) -> Terms:
        self.seen.append(setting)
        return OBJECTIVES["elbo"].terms(model, x, config, setting)


# The loss


@pytest.mark.parametrize("name", OBJECTIVES)
def test_the_loss_module_gives_the_terms_of_the_objective(name: str, batch: Tensor) -> None:
    kind = "autoencoder" if OBJECTIVES[name].layers[0] == 0 else "vae"
    module = module_with({"name": name}, {"kind": kind})
    setting = Setting(torch.tensor(0.0), torch.zeros(1, 1, 1), torch.ones(1, 1, 1))
    torch.manual_seed(1)
    wanted = OBJECTIVES[name].terms(module.model, batch, module.config, setting)
    torch.manual_seed(1)
    found = module(batch)
    assert found.keys() == wanted.keys()
    for term, values in found.items():
        assert values.shape == (4,), term
        assert torch.equal(values, wanted[term]), term


def test_an_objective_is_told_how_the_model_sees_black_and_white() -> None:
    card = {"scaling": {"shift": [0.5, 0.0], "scale": [0.5, 2.0]}}
    module = LossModule(module_with().model, module_with().config, Scaling(card), 4)
    assert module.black.tolist() == [[[-1.0]], [[0.0]]]
    assert module.white.tolist() == [[[1.0]], [[0.5]]]


def test_a_scaling_on_another_device_than_the_cpu_will_do() -> None:
    # As `train` builds it: the scaling of the batches is where they are. No GPU is needed to see it.
    scaling = Scaling(data_card("none")).to("meta")
    module = LossModule(module_with().model, module_with().config, scaling, 4)
    assert (module.black.device.type, module.white.device.type) == ("meta", "meta")


def test_nothing_but_the_model_is_trained_or_kept(module: LossModule) -> None:
    assert {f"model.{name}" for name in module.model.state_dict()} == set(module.state_dict())
    assert len(list(module.parameters())) == len(list(module.model.parameters()))


# Held-out images


def test_a_warm_up_starts_at_beta_0_and_scores_held_out_images_with_the_whole_beta(batch: Tensor) -> None:
    module = module_with({"beta": 4.0, "warmup": "linear", "warmup_epochs": 10})
    first = module(batch)
    assert torch.equal(first["loss"], first["reconstruction"])
    held_out = module.score(batch)
    torch.testing.assert_close(held_out["loss"], held_out["reconstruction"] + 4.0 * held_out["kl"])
    module.seen += 5 * 4  # half of the ten epochs, of four images each
    half = module(batch)
    torch.testing.assert_close(half["loss"], half["reconstruction"] + 2.0 * half["kl"])


@pytest.mark.parametrize("warmup", ["none", "linear", "cyclic"])
@pytest.mark.parametrize("seen", [0, 20, 40, 400])
def test_the_beta_of_training_is_not_forgotten_in_model_selection(warmup: str, seen: int, batch: Tensor) -> None:
    module = module_with({"beta": 4.0, "warmup": warmup, "warmup_epochs": 10})
    module.seen += seen  # whichever epoch it is, a score is comparable to that of any other
    held_out = module.score(batch)
    torch.testing.assert_close(held_out["loss"], held_out["reconstruction"] + 4.0 * held_out["kl"])
    torch.testing.assert_close(held_out["elbo"], -held_out["reconstruction"] - held_out["kl"])


def test_a_capacity_is_whole_where_held_out_images_are_scored(batch: Tensor) -> None:
    module = module_with({"name": "capacity", "capacity": {"nats": 7.0, "epochs": 100}})
    assert module(batch)["capacity"].tolist() == [0.0] * 4
    assert module.score(batch)["capacity"].tolist() == [7.0] * 4


def test_held_out_images_leave_the_statistics_of_a_batch_norm_alone(batch: Tensor) -> None:
    module = module_with(model={"norm": "batch"})
    module(batch)  # so that they are not those of a fresh layer
    before = copy.deepcopy(module.state_dict())
    held_out = module.score(batch)
    after = module.state_dict()
    assert [name for name in before if not torch.equal(before[name], after[name])] == []
    assert any("running_mean" in name for name in before)
    assert all(part.training for part in module.modules())
    # An image's score depends on no other image of its batch.
    torch.manual_seed(0)
    [alone] = module.score(batch[:1])["kl"].tolist()
    assert alone == pytest.approx(held_out["kl"][0].item(), rel=1e-5)


def test_a_training_batch_does_change_the_statistics_of_a_batch_norm(batch: Tensor) -> None:
    module = module_with(model={"norm": "batch"})
    norms = [part for part in module.modules() if isinstance(part, nn.BatchNorm1d)]
    module(batch)
    assert norms
    assert [norm.num_batches_tracked.item() for norm in norms if norm.num_batches_tracked is not None] == [1] * len(
        norms
    )


def test_training_goes_on_after_a_score_that_failed(module: LossModule, batch: Tensor) -> None:
    with pytest.raises(RuntimeError):
        module.score(batch[..., :1])
    assert all(part.training for part in module.modules())


def test_a_score_does_not_count_as_images_seen(module: LossModule, batch: Tensor) -> None:
    module.score(batch)
    assert module.seen.item() == 0


# Steps


def test_the_first_step_is_the_first_step_of_adam(module: LossModule, batch: Tensor) -> None:
    twin = copy.deepcopy(module)
    torch.manual_seed(1)
    (twin(batch)["loss"].sum() / 4).backward()
    torch.manual_seed(1)
    Step(module, settings()).step(batch)
    for found, before in zip(module.parameters(), twin.parameters(), strict=True):
        assert found.grad is not None
        assert before.grad is not None
        torch.testing.assert_close(found.grad, before.grad)  # of the mean over images
        # Both moments are corrected for their start at zero, so the first step is g / (|g| + eps).
        wanted = before - RATE * before.grad / (before.grad.abs() + 1e-8)
        torch.testing.assert_close(found, wanted)
        assert not torch.equal(found, before)


def test_later_steps_start_from_fresh_gradients(module: LossModule, batch: Tensor) -> None:
    twin = copy.deepcopy(module)
    reference = torch.optim.Adam(twin.parameters(), lr=RATE)
    torch.manual_seed(1)
    for _ in range(3):
        loss = twin(batch)["loss"].mean()
        gradients = torch.autograd.grad(loss, list(twin.parameters()))
        for parameter, gradient in zip(twin.parameters(), gradients, strict=True):
            parameter.grad = gradient
        reference.step()
    torch.manual_seed(1)
    step = Step(module, settings())
    for _ in range(3):
        step.step(batch)
    for found, wanted in zip(module.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(found, wanted)


def test_the_weights_of_a_likelihood_are_trained_too(batch: Tensor) -> None:
    module = module_with(model={"likelihood": "gaussian_learned"})
    before = dict(copy.deepcopy(module.state_dict()))
    Step(module, settings()).step(batch)
    changed = {name for name, tensor in module.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed == set(before)
    assert "model.likelihood.log_sigma" in changed


def test_a_step_returns_the_sums_of_the_terms_before_the_step_without_their_graph(
    module: LossModule, batch: Tensor
) -> None:
    torch.manual_seed(1)
    wanted = Totals.of(module(batch)).terms
    torch.manual_seed(1)
    found, images = Step(module, settings()).step(batch)
    assert images == len(batch)
    assert found.keys() == wanted.keys()
    for name, total in found.items():
        assert torch.equal(total, wanted[name])
        assert not total.requires_grad


def test_a_ragged_last_batch_counts_its_images_and_not_as_a_whole_batch(batch: Tensor) -> None:
    module = module_with(images=10)
    objective = Settings()
    module.objective = objective
    step = Step(module, settings(warmup_epochs=2.0))
    rates = []
    for size in (4, 4, 2, 4, 4, 2, 4):
        step.step(batch[:size])
        rates.append(step.optimizer.param_groups[0]["lr"])
    epochs = [0.0, 0.4, 0.8, 1.0, 1.4, 1.8, 2.0]
    assert [setting.epoch.item() for setting in objective.seen] == pytest.approx(epochs, rel=1e-6)
    assert [setting.epoch.item() for setting in objective.seen][::3] == [0.0, 1.0, 2.0]  # to the last bit
    assert rates == pytest.approx([RATE * epoch / 2 for epoch in epochs], rel=1e-12)
    assert (rates[3], rates[6]) == (RATE / 2, RATE)


def test_the_rate_of_a_step_is_that_of_the_images_before_it(module: LossModule, batch: Tensor) -> None:
    before = copy.deepcopy(module.state_dict())
    step = Step(module, settings(warmup_epochs=1.0))
    step.step(batch)  # at a rate of 0
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())
    step.step(batch)
    assert not any(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())


# Clipping


def gradients_of(module: LossModule) -> Tensor:
    return torch.cat([parameter.grad.flatten() for parameter in module.parameters() if parameter.grad is not None])


def after_one_step(batch: Tensor, **changes: Any) -> LossModule:
    module = module_with()
    torch.manual_seed(1)
    Step(module, settings(optimizer="sgd", momentum=0.0, **changes)).step(batch)
    return module


def test_a_gradient_that_is_too_long_is_shortened_and_keeps_its_direction(batch: Tensor) -> None:
    free = gradients_of(after_one_step(batch))
    limit = free.norm().item() / 3
    clipped = after_one_step(batch, clip_norm=limit)
    assert gradients_of(clipped).norm().item() == pytest.approx(limit, rel=1e-5)
    torch.testing.assert_close(gradients_of(clipped), free / 3, rtol=1e-5, atol=1e-7)
    # And that is what the optimizer is given.
    for found, before, parameter in zip(
        clipped.parameters(), module_with().parameters(), clipped.parameters(), strict=True
    ):
        assert parameter.grad is not None
        torch.testing.assert_close(found, before - RATE * parameter.grad)


@pytest.mark.parametrize("factor", [1.001, 1000.0])
def test_a_gradient_that_is_short_enough_stays_as_it_is(factor: float, batch: Tensor) -> None:
    free = after_one_step(batch)
    clipped = after_one_step(batch, clip_norm=gradients_of(free).norm().item() * factor)
    assert torch.equal(gradients_of(clipped), gradients_of(free))


# The moving average


def test_the_average_is_the_exponential_moving_average_of_the_weights_after_each_step(batch: Tensor) -> None:
    module = module_with()
    step = Step(module, settings(average=0.75))
    wanted: dict[str, Tensor] = {}
    for _ in range(4):
        step.step(batch)
        now = {name: tensor.clone() for name, tensor in module.model.state_dict().items()}
        wanted = {name: 0.75 * wanted[name] + 0.25 * now[name] for name in now} if wanted else now
    found = step.weights()
    assert found.keys() == wanted.keys() == module.model.state_dict().keys()
    for name, tensor in found.items():
        torch.testing.assert_close(tensor, wanted[name], rtol=1e-6, atol=1e-8)
        assert not torch.equal(tensor, module.model.state_dict()[name])


def test_the_average_is_what_is_scored_and_leaves_training_as_it_is(batch: Tensor) -> None:
    plain, module = module_with(), module_with()
    steps = Step(plain, settings()), Step(module, settings(average=0.9))
    for step in steps:
        torch.manual_seed(1)
        for _ in range(3):
            step.step(batch)
    assert all(torch.equal(*pair) for pair in zip(plain.parameters(), module.parameters(), strict=True))
    twin = module_with()
    twin.model.load_state_dict(steps[1].weights())
    torch.manual_seed(2)
    wanted = twin.score(batch)["loss"].double().sum()
    torch.manual_seed(2)
    assert torch.equal(steps[1].score(batch).terms["loss"], wanted)
    torch.manual_seed(2)
    assert not torch.equal(steps[0].score(batch).terms["loss"], wanted)


def test_without_an_average_the_weights_in_training_are_scored_and_kept(module: LossModule, batch: Tensor) -> None:
    step = Step(module, settings())
    step.step(batch)
    for name, tensor in step.weights().items():
        assert torch.equal(tensor, module.model.state_dict()[name])
    torch.manual_seed(2)
    wanted = module.score(batch)["loss"].double().sum()
    torch.manual_seed(2)
    assert torch.equal(step.score(batch).terms["loss"], wanted)


def test_an_average_takes_the_statistics_of_a_batch_norm_from_training(batch: Tensor) -> None:
    module = module_with(model={"norm": "batch"})
    step = Step(module, settings(average=0.9))
    for _ in range(3):
        step.step(batch)
    running = {name for name in step.weights() if "running" in name}
    assert running
    for name in running:
        assert torch.equal(step.weights()[name], module.model.state_dict()[name])


# State


@pytest.mark.parametrize("on_disk", [False, True])
@pytest.mark.parametrize("average", [0.0, 0.9])
@pytest.mark.parametrize(
    ("optimizer", "momentum"), [*((name, 0.9) for name in OPTIMIZERS), ("sgd", 0.0), ("rmsprop", 0.0)]
)
def test_a_restored_step_goes_on_to_the_last_bit(
    optimizer: str, momentum: float, average: float, on_disk: bool, batch: Tensor, tmp_path: Path
) -> None:
    objective = {"warmup": "linear", "warmup_epochs": 5}
    changes = {"optimizer": optimizer, "momentum": momentum, "average": average, "warmup_epochs": 3.0}
    step = Step(module_with(objective, {"norm": "batch"}, images=12), settings(**changes))
    for _ in range(4):
        step.step(batch)
    step.rate_factor = 0.5
    state = copy.deepcopy(step.state())
    if on_disk:
        Checkpoints(tmp_path).write(state)
        state = Checkpoints(tmp_path).read()
    other = Step(module_with(objective, {"norm": "batch"}, images=12), settings(**changes))
    other.restore(state)
    assert (other.images, other.module.seen.item(), other.rate_factor) == (16, 16, 0.5)
    found = []
    for one in (step, other):
        torch.manual_seed(7)
        losses = [one.step(batch).terms["loss"] for _ in range(3)]
        found.append(
            [*losses, one.score(batch).terms["loss"], *one.weights().values(), *one.module.state_dict().values()]
        )
    assert all(torch.equal(*pair) for pair in zip(*found, strict=True))


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_restored_step_goes_on_to_the_last_bit_with_weights_in_channels_last(optimizer: str, tmp_path: Path) -> None:
    # On disk all tensors are contiguous, while fused optimizers go through memory as it lies.
    images = torch.bernoulli(torch.full((4, 1, 8, 8), 0.5), generator=torch.Generator().manual_seed(0))

    def build() -> Step:
        torch.manual_seed(0)
        changes = {"network": "conv", "channels": (4, 6), "hidden": (5,), "latent": 2}
        config = small_section("model", **changes)
        model = build_model(config, (1, 8, 8)).to(memory_format=torch.channels_last)
        wanted = small_section("objective")
        return Step(LossModule(model, wanted, Scaling(data_card("none")), 4), settings(optimizer=optimizer))

    step, other = build(), build()
    for _ in range(3):
        step.step(images)
    Checkpoints(tmp_path).write(step.state())
    other.restore(Checkpoints(tmp_path).read())
    assert any(not parameter.is_contiguous() for parameter in step.module.parameters())
    for one in (step, other):
        torch.manual_seed(7)
        for _ in range(3):
            one.step(images)
    assert all(torch.equal(*pair) for pair in zip(step.module.parameters(), other.module.parameters(), strict=True))


def test_a_restored_step_shares_no_memory_with_what_it_was_restored_from(batch: Tensor) -> None:
    step = Step(module_with(), settings(average=0.9))
    step.step(batch)
    state = copy.deepcopy(step.state())
    twice = []
    for _ in range(2):
        step.restore(state)
        torch.manual_seed(7)
        step.step(batch)
        step.step(batch)
        twice.append([tensor.clone() for tensor in (*step.module.parameters(), *step.weights().values())])
    assert all(torch.equal(*pair) for pair in zip(*twice, strict=True))


def test_a_step_can_be_restored_to_before_its_first(batch: Tensor) -> None:
    step = Step(module_with(), settings())
    state = copy.deepcopy(step.state())
    assert (state["optimizer"], state["images"], state["rate_factor"]) == ({}, 0, 1.0)
    wanted = []
    for _ in range(2):
        torch.manual_seed(7)
        step.step(batch)
        wanted.append([parameter.detach().clone() for parameter in step.module.parameters()])
        step.restore(state)
    assert all(torch.equal(*pair) for pair in zip(*wanted, strict=True))


def test_the_rate_factor_scales_every_rate(module: LossModule, batch: Tensor) -> None:
    step = Step(module, settings())
    step.rate_factor = 0.25
    step.step(batch)
    assert step.optimizer.param_groups[0]["lr"] == RATE / 4


# Precision


def test_bf16_computes_the_loss_in_bfloat16_and_keeps_the_weights_in_float32(batch: Tensor) -> None:
    full, half = Step(module_with(), settings()), Step(module_with(), settings(precision="bf16"))
    found = []
    for step in (full, half):
        torch.manual_seed(1)
        found.append(step.step(batch).terms["loss"])
    assert not torch.equal(*found)
    torch.testing.assert_close(found[1], found[0], rtol=0.02, atol=0.02)  # 8 bits, of about 4 nats
    for tensor in [*half.module.parameters(), *half.weights().values()]:
        assert tensor.dtype == torch.float32
    for parameter in half.module.parameters():
        assert parameter.grad is not None
        assert parameter.grad.dtype == torch.float32


def test_bf16_scores_held_out_images_in_float32(batch: Tensor) -> None:
    step = Step(module_with(), settings(precision="bf16"))
    torch.manual_seed(1)
    wanted = step.module.score(batch)
    torch.manual_seed(1)
    found = step.score(batch).terms
    assert {values.dtype for values in wanted.values()} == {torch.float32}
    assert all(torch.equal(found[name], wanted[name].double().sum()) for name in wanted)


# Compiling


@pytest.mark.slow
def test_a_compiled_step_does_what_an_eager_one_does(batch: Tensor) -> None:
    # Without noise: compiled code draws other numbers.
    found = []
    for compiled in (False, True):
        module = module_with({"name": "reconstruction"}, {"kind": "autoencoder"}, images=6)
        step = Step(module, settings(compile=compiled, average=0.5))
        losses = [step.step(part).terms["loss"] for _ in range(3) for part in (batch, batch[:2])]
        found.append(torch.cat([torch.stack([*losses, step.score(batch).terms["loss"]]), module.score(batch)["loss"]]))
        assert {f"model.{name}" for name in step.weights()} == set(module.state_dict())
    torch.testing.assert_close(found[1], found[0], rtol=1e-5, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(("norm", "optimizer"), [("none", "adam"), ("batch", "sgd")])
def test_compiled_convolutions_in_channels_last_learn_what_eager_ones_do(norm: str, optimizer: str) -> None:
    # (Biases before a batch norm have no gradient but rounding, of which Adam would make whole steps.)
    found, weights = [], []
    x = torch.rand(8, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    for compiled in (False, True):
        changes = {"network": "conv", "channels": [4, 6], "hidden": [8], "kind": "autoencoder", "norm": norm}
        module = module_with({"name": "reconstruction"}, changes, 8, (1, 8, 8))
        module.model = module.model.to(memory_format=torch.channels_last)
        step = Step(module, settings(compile=compiled, clip_norm=1.0, optimizer=optimizer))
        found.append(torch.stack([step.step(x).terms["loss"] for _ in range(4)]))
        weights.append(torch.cat([weight.flatten() for weight in step.weights().values()]))
    torch.testing.assert_close(found[1], found[0], rtol=1e-4, atol=1e-4)
    # Gradients in another order in memory than the weights would move every weight by a wrong amount.
    torch.testing.assert_close(weights[1], weights[0], rtol=1e-2, atol=2e-4)


# CUDA graphs


def test_a_step_that_gathers_and_draws_its_batch_does_what_one_does_that_is_given_pixels() -> None:
    grey = np.random.default_rng(0).integers(0, 256, (10, 1, 2, 3), dtype=np.uint8)
    found = []
    for rows in (False, True):
        data = Batches(grey, data_card("dynamic"), 4, torch.device("cpu"))
        step = Step(module_with(images=10), settings())
        if rows:
            data.yields_rows, step.prepare = True, data.pixels_of
        torch.manual_seed(3)
        losses = torch.stack([step.step(batch).terms["loss"] for batch in data.visit(data.draw_order())])
        assert losses.shape == (3,)
        found.append(torch.cat([losses, *(weight.flatten() for weight in step.weights().values())]))
    assert torch.equal(found[0], found[1])


needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no CUDA GPU")


@needs_gpu
@pytest.mark.parametrize("optimizer", sorted(OPTIMIZERS))
def test_a_replayed_step_does_what_a_launched_one_does(optimizer: str, batch: Tensor) -> None:
    found = []
    for cuda_graph in (False, True):
        module = module_with(images=6).cuda()
        step = Step(
            module, settings(optimizer=optimizer, cuda_graph=cuda_graph, batch_size=4, schedule="cosine", average=0.5)
        )
        torch.cuda.manual_seed(1)
        losses = [step.step(part.cuda()).terms["loss"].clone() for _ in range(8) for part in (batch, batch[:2])]
        totals = torch.stack([*losses, step.score(batch.cuda()).terms["loss"]])
        found.append(torch.cat([totals, module.score(batch.cuda())["loss"]]))
    torch.testing.assert_close(found[1], found[0], rtol=1e-4, atol=1e-4)


@needs_gpu
@pytest.mark.parametrize("cuda_graph", [False, True])
def test_a_step_never_waits_for_a_gpu(cuda_graph: bool) -> None:
    grey = np.random.default_rng(0).integers(0, 256, (42, 1, 2, 3), dtype=np.uint8)
    data = Batches(grey, data_card("dynamic"), 4, torch.device("cuda"))
    config = settings(cuda_graph=cuda_graph, batch_size=4, schedule="cosine", average=0.5, clip_norm=1.0)
    step, sums = Step(module_with(images=42).cuda(), config), Sums()
    data.yields_rows, step.prepare = True, data.pixels_of
    first, second = list(data.visit(data.draw_order())), list(data.visit(data.draw_order()))
    for batch in first:  # warming up, and capturing
        sums.add(step.step(batch))
    torch.cuda.set_sync_debug_mode("error")
    try:
        for batch in second:
            sums.add(step.step(batch))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert sums.images == 84
    assert sums.means("train", 1)["train_loss"] > 0


@needs_gpu
def test_a_replayed_step_goes_on_from_a_restored_state(batch: Tensor) -> None:
    step = Step(module_with(images=4).cuda(), settings(cuda_graph=True, batch_size=4, average=0.5))
    for _ in range(5):
        step.step(batch.cuda())
    state = copy.deepcopy(step.state())
    torch.cuda.manual_seed(2)
    wanted = [step.step(batch.cuda()).terms["loss"].clone() for _ in range(6)]
    step.restore(state)
    torch.cuda.manual_seed(2)
    found = [step.step(batch.cuda()).terms["loss"].clone() for _ in range(6)]
    torch.testing.assert_close(torch.stack(found), torch.stack(wanted), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_weights_that_are_not_finite_are_told_at_the_end_of_the_epoch(value: float) -> None:
    step = Step(module_with(images=4), settings(average=0.9))
    step.check(1)
    with torch.no_grad():
        next(step.module.parameters()).view(-1)[0] = value
    with pytest.raises(NonFiniteError, match="the weights are no longer finite at the end of epoch 7; lower"):
        step.check(7)
