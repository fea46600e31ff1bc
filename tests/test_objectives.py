import math
from dataclasses import dataclass, field

import pytest
import torch
from linear_gaussian import LinearGaussian
from torch import Tensor
from torch.distributions import Normal

from reparam.config import ModelConfig, ObjectiveConfig
from reparam.models.build import build_model
from reparam.models.draw import Draw
from reparam.objectives import OBJECTIVES, elbo, iwae, log_weights


@dataclass
class Scripted:
    """A model that always says the same, and remembers what it was asked."""

    answer: Draw
    asked: list[tuple[Tensor, Tensor, int]] = field(default_factory=list)

    def draw(self, x: Tensor, target: Tensor, samples: int) -> Draw:
        self.asked.append((x, target, samples))
        return self.answer

    def posterior(self, x: Tensor) -> tuple[Tensor, Tensor]:
        raise NotImplementedError

    def decode(self, z: Tensor) -> Tensor:
        raise NotImplementedError


def draw_of(log_px: list[list[float]], kl: list[list[float]]) -> Draw:
    nothing = torch.full((len(log_px), len(log_px[0])), torch.nan)  # what must not be looked at
    return Draw(torch.tensor(log_px), nothing, nothing, torch.tensor(kl))


def weights_of(log_w: Tensor) -> Draw:
    """A draw with the given log weights, none of whose terms is zero."""
    return Draw(log_w - 3, torch.full_like(log_w, 1.0), torch.full_like(log_w, -2.0), torch.zeros_like(log_w))


@pytest.mark.parametrize(
    ("beta", "loss"), [(0.0, [2.0, 3.0]), (1.0, [3.0, 5.0]), (4.0, [6.0, 11.0])], ids="beta {}".format
)
def test_elbo_adds_beta_times_kl_to_the_reconstruction(beta: float, loss: list[float]) -> None:
    model = Scripted(draw_of(log_px=[[-1.0, -2.0], [-3.0, -4.0]], kl=[[0.5, 1.0], [1.5, 3.0]]))
    terms = elbo(model, torch.zeros(2, 1, 1, 1), ObjectiveConfig(name="elbo", beta=beta, samples=2))
    assert {name: values.tolist() for name, values in terms.items()} == {
        "loss": loss,
        "reconstruction": [2.0, 3.0],  # means over the two samples
        "kl": [1.0, 2.0],
    }


def test_elbo_encodes_and_scores_the_same_images_with_the_samples_asked_for() -> None:
    model, x = Scripted(draw_of([[0.0]], [[0.0]])), torch.rand(1, 1, 2, 2)
    elbo(model, x, ObjectiveConfig(name="elbo", beta=1.0, samples=7))
    [(encoded, target, samples)] = model.asked
    assert (encoded is x, target is x, samples) == (True, True, 7)


def test_elbo_is_the_closed_form_of_a_linear_gaussian_model() -> None:
    torch.manual_seed(0)
    model, x = LinearGaussian(slope=0.8, variance=0.3), torch.tensor([[-2.0, 0.5], [1.0, 3.0]])
    terms = elbo(model, x, ObjectiveConfig(name="elbo", beta=1.0, samples=40_000))
    # The standard deviation of log p(x|z) is below 3 nats here, so that of the mean is below 0.015.
    torch.testing.assert_close(-terms["loss"], model.expected_elbo(x), rtol=0, atol=0.075)


def test_gradients_of_the_elbo_agree_with_finite_differences() -> None:
    torch.manual_seed(0)
    model = build_model(ModelConfig(hidden=(3,), activation="tanh", latent=1, likelihood="bernoulli"), (1, 1, 2))
    model.double()
    x, config = torch.tensor([[[[0.0, 1.0]]], [[[1.0, 1.0]]]]).double(), ObjectiveConfig(name="elbo", beta=2, samples=3)

    def loss() -> Tensor:
        torch.manual_seed(1)  # the same noise each time
        return elbo(model, x, config)["loss"].mean()

    def slope(entries: Tensor, index: int) -> float:
        kept, step, losses = entries[index].item(), 1e-5, []
        for entries[index] in (kept + step, kept - step):
            losses.append(loss().item())
        entries[index] = kept
        return (losses[0] - losses[1]) / (2 * step)

    loss().backward()
    with torch.no_grad():
        for parameter in model.parameters():
            wanted = [slope(parameter.view(-1), index) for index in range(parameter.numel())]
            assert parameter.grad is not None
            assert parameter.grad.flatten().tolist() == pytest.approx(wanted, rel=1e-6, abs=1e-9)


@pytest.mark.parametrize("samples", [1, 5])
def test_iwae_is_exact_when_q_is_the_posterior(samples: int) -> None:
    torch.manual_seed(0)
    x = torch.linspace(-3, 3, 7)  # z ~ N(0, 1), x | z ~ N(z, 1), so Var x = 2
    posterior = Normal(x / 2, 0.5**0.5)
    z = posterior.sample((samples,))
    log_pz, log_qz = Normal(0.0, 1.0).log_prob(z), posterior.log_prob(z)
    draw = Draw(Normal(z, 1.0).log_prob(x), log_pz, log_qz, kl=log_qz - log_pz)
    torch.testing.assert_close(iwae(draw), -Normal(0.0, 2**0.5).log_prob(x))


def test_iwae_is_minus_the_log_of_the_mean_weight() -> None:
    log_w = torch.tensor([[1.0, 2.0], [3.0, 6.0], [5.0, 1.0]]).log()  # (K, B)
    torch.testing.assert_close(iwae(weights_of(log_w)), -torch.tensor([3.0, 3.0]).log(), rtol=1e-6, atol=0)


def test_iwae_of_one_sample_is_a_negated_elbo_sample() -> None:
    draw = Draw(*torch.tensor([[[-5.0, -6.0]], [[-1.0, -2.0]], [[-0.5, 0.25]], [[0.0, 0.0]]]))
    assert iwae(draw).tolist() == [5.5, 8.25]


@pytest.mark.parametrize("log_weight", [-1e4, 1e4])
def test_iwae_is_finite_where_the_weights_are_not(log_weight: float) -> None:
    log_w = torch.tensor([[log_weight], [log_weight - 1]])
    wanted = -(log_weight + math.log((1 + math.exp(-1)) / 2))
    assert iwae(weights_of(log_w)).tolist() == [pytest.approx(wanted, rel=1e-6)]


def test_log_weights_add_up() -> None:
    draw = Draw(*torch.tensor([[[-5.0], [1.0]], [[-1.0], [2.0]], [[-0.5], [4.0]], [[0.0], [0.0]]]))
    assert log_weights(draw).tolist() == [[-5.5], [-1.0]]


def test_the_bound_rises_with_the_samples_from_the_elbo_to_the_evidence() -> None:
    torch.manual_seed(0)
    model, x = LinearGaussian(slope=0.2, variance=0.8), torch.tensor([[1.5, -1.0]])
    repeats = 20_000  # of the same image, as one batch
    batch = x.expand(repeats, -1)
    means, errors = [], []
    for samples in (1, 4, 16, 64):
        bound = -iwae(model.draw(batch, batch, samples))
        means.append(bound.mean().item())
        errors.append(bound.std().item() / repeats**0.5)

    assert means[0] == pytest.approx(model.expected_elbo(x).item(), abs=5 * errors[0])
    for lower, upper, error, next_error in zip(means, means[1:], errors, errors[1:], strict=False):
        assert upper - lower > 5 * math.hypot(error, next_error)
    evidence = model.log_evidence(x).item()
    assert means[-1] < evidence - 5 * errors[-1]
    assert evidence - means[-1] < 0.05 * (evidence - means[0])


@pytest.mark.parametrize("name", OBJECTIVES)
def test_every_objective_gives_its_terms_per_image(name: str) -> None:
    torch.manual_seed(0)
    model = build_model(ModelConfig(hidden=(3,), activation="relu", latent=2, likelihood="bernoulli"), (1, 2, 2))
    x = torch.ones(5, 1, 2, 2)
    terms = OBJECTIVES[name](model, x, ObjectiveConfig(name=name, beta=1.0, samples=3))
    assert "loss" in terms
    assert {term: values.shape for term, values in terms.items()} == dict.fromkeys(terms, (5,))
