import copy

import pytest
import torch
from torch import Tensor

from reparam.config import ModelConfig, ObjectiveConfig
from reparam.models.build import build_model
from reparam.objectives import elbo
from reparam.training.step import LossModule, Step

OBJECTIVE = ObjectiveConfig(name="elbo", beta=3.0, samples=2)
RATE = 0.01


@pytest.fixture
def module() -> LossModule:
    torch.manual_seed(0)
    config = ModelConfig(hidden=(5,), activation="tanh", latent=2, likelihood="bernoulli")
    return LossModule(build_model(config, (1, 2, 3)), OBJECTIVE)


@pytest.fixture
def batch() -> Tensor:
    return torch.bernoulli(torch.full((4, 1, 2, 3), 0.5), generator=torch.Generator().manual_seed(0))


def test_the_loss_module_gives_the_terms_of_the_objective(module: LossModule, batch: Tensor) -> None:
    torch.manual_seed(1)
    wanted = elbo(module.model, batch, OBJECTIVE)
    torch.manual_seed(1)
    found = module(batch)
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


def test_the_first_step_is_the_first_step_of_adam(module: LossModule, batch: Tensor) -> None:
    twin = copy.deepcopy(module)
    torch.manual_seed(1)
    (twin(batch)["loss"].sum() / 4).backward()
    torch.manual_seed(1)
    Step(module, RATE)(batch)
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
    step = Step(module, RATE)
    for _ in range(3):
        step(batch)
    for found, wanted in zip(module.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(found, wanted)


def test_a_step_returns_the_terms_before_the_step_without_their_graph(module: LossModule, batch: Tensor) -> None:
    torch.manual_seed(1)
    wanted = {name: values.detach() for name, values in module(batch).items()}
    torch.manual_seed(1)
    found = Step(module, RATE)(batch)
    assert found.keys() == wanted.keys()
    for name, values in found.items():
        assert torch.equal(values, wanted[name])
        assert not values.requires_grad
