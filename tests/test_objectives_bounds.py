import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from conftest import small_section
from linear_gaussian import LinearGaussian, hierarchy_evidence, linear_hierarchy, linear_vae, vae_evidence
from torch import Tensor
from torch.distributions import MultivariateNormal, Normal

from reparam.models.build import build_model
from reparam.models.draw import Draw
from reparam.objectives import OBJECTIVES, Setting, Terms, iwae

OBJECTIVE = small_section("objective")
MODEL = small_section("model")
SETTING = Setting(torch.tensor(torch.inf), torch.zeros(1, 1, 1), torch.ones(1, 1, 1))


def minimise(name: str, model: Any, x: Tensor, **changes: Any) -> Terms:
    config = small_section("objective", **{"name": name, **changes})
    return OBJECTIVES[name].terms(model, x, config, SETTING)


def weights_of(log_w: Tensor) -> Draw:
    """A draw with the given log weights, none of whose terms is zero."""
    return Draw(log_w - 3, torch.full_like(log_w, 1.0), torch.full_like(log_w, -2.0), torch.zeros_like(log_w))


@pytest.mark.parametrize("samples", [1, 5])
def test_iwae_is_exact_when_q_is_the_posterior(samples: int) -> None:
    torch.manual_seed(0)
    x = torch.linspace(-3, 3, 7)  # z ~ N(0, 1), x | z ~ N(z, 1), so Var x = 2
    posterior = Normal(x / 2, 0.5**0.5)
    z = posterior.sample((samples,))
    log_pz, log_qz = Normal(0.0, 1.0).log_prob(z), posterior.log_prob(z)
    draw = Draw(Normal(z, 1.0).log_prob(x), log_pz, log_qz, kl=log_qz - log_pz)
    torch.testing.assert_close(iwae(draw), -Normal(0.0, 2**0.5).log_prob(x))


EXACT: dict[str, tuple[Callable[[], Any], Callable[[], MultivariateNormal]]] = {
    "vae": (linear_vae, vae_evidence),
    "bottom_up": (lambda: linear_hierarchy("bottom_up"), hierarchy_evidence),
    "top_down": (lambda: linear_hierarchy("top_down"), hierarchy_evidence),
}


@pytest.mark.parametrize("samples", [1, 3])
@pytest.mark.parametrize(
    ("name", "kind"), [*[(name, kind) for name in ("iwae", "reinforce", "elbo") for kind in EXACT], ("dreg", "vae")]
)
def test_every_bound_is_the_evidence_where_the_posterior_is_exact(name: str, kind: str, samples: int) -> None:
    torch.manual_seed(0)
    make_model, evidence = EXACT[kind]
    x = torch.randn(4, 1, 2, 2, dtype=torch.float64)
    loss = minimise(name, make_model(), x, samples=samples, kl="monte_carlo")["loss"]
    torch.testing.assert_close(loss, -evidence().log_prob(x.flatten(1)), rtol=1e-12, atol=1e-12)


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
    assert draw.log_weights.tolist() == [[-5.5], [-1.0]]


def test_the_bound_rises_with_the_samples_from_the_elbo_to_the_evidence() -> None:
    torch.manual_seed(0)
    model, x = LinearGaussian(slope=0.2, variance=0.8), torch.tensor([[1.5, -1.0]])
    repeats = 20_000  # of the same image, as one batch
    batch = x.expand(repeats, -1)
    means, errors = [], []
    for samples in (1, 4, 16, 64):
        bound = -minimise("iwae", model, batch, samples=samples)["loss"]
        means.append(bound.mean().item())
        errors.append(bound.std().item() / repeats**0.5)

    assert means[0] == pytest.approx(model.expected_elbo(x).item(), abs=5 * errors[0])
    for lower, upper, error, next_error in zip(means, means[1:], errors, errors[1:], strict=False):
        assert upper - lower > 5 * math.hypot(error, next_error)
    evidence = model.log_evidence(x).item()
    assert means[-1] < evidence - 5 * errors[-1]
    assert evidence - means[-1] < 0.05 * (evidence - means[0])


# The value that objective and metrics show must be the bound, whatever has the gradient.
BOUNDS = {
    "iwae": lambda log_w: math.log(len(log_w)) - log_w.logsumexp(0),
    "dreg": lambda log_w: math.log(len(log_w)) - log_w.logsumexp(0),
    "reinforce": lambda log_w: -log_w.mean(0),
}


@pytest.mark.parametrize("samples", [1, 2, 7])
@pytest.mark.parametrize(
    ("name", "kind"),
    [(name, kind) for name in BOUNDS for kind in ("vae", "hierarchical") if (name, kind) != ("dreg", "hierarchical")],
)
def test_no_iwae_loss_has_a_value_that_is_not_the_bound(name: str, kind: str, samples: int) -> None:
    torch.manual_seed(0)
    changes = {"kind": kind, "hidden": (3,), "latent": 2, "upper": (3,), "upper_hidden": (4,)}
    model = build_model(small_section("model", **changes), (1, 1, 2)).double()
    x = torch.rand(4, 1, 1, 2, dtype=torch.float64)
    torch.manual_seed(1)
    wanted = BOUNDS[name](model.draw(x, x, samples).log_weights)
    for is_training in (True, False):
        torch.manual_seed(1)
        with torch.set_grad_enabled(is_training):
            loss = minimise(name, model, x, samples=samples)["loss"]
        assert loss.requires_grad == is_training
        torch.testing.assert_close(loss, wanted, rtol=1e-12, atol=1e-12)
