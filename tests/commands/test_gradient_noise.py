from typing import Any

import pytest
import torch
from conftest import small_section
from torch import Tensor

from reparam.commands import gradients
from reparam.commands.gradients import ESTIMATORS, _gradients, _moments, noise_to_signal
from reparam.models.build import build_model
from reparam.models.latent import LatentModel

SHAPE = (1, 2, 2)


def some_model(**changes: Any) -> LatentModel:
    torch.manual_seed(0)
    small = {"hidden": [3], "latent": 2, "upper": [1], "upper_hidden": [2], "activation": "tanh"}
    return build_model(small_section("model", **small | changes), SHAPE)


def some_images() -> Tensor:
    return torch.bernoulli(torch.full((4, *SHAPE), 0.5), generator=torch.Generator().manual_seed(1))


def encoder_weights(model: LatentModel) -> list[Tensor]:
    return [weight for name, weight in model.named_parameters() if name.startswith(("encoder", "feature"))]


@pytest.mark.parametrize("count", [2, 3, 100])
def test_moments_are_those_of_torch(count: int) -> None:
    values = 5 + 3 * torch.randn(count, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    mean, variance = _moments(iter(values))
    torch.testing.assert_close(mean, values.mean(0))
    torch.testing.assert_close(variance, values.var(0))


def test_moments_keep_their_digits_far_from_zero() -> None:
    values = 1e8 + torch.tensor([[0.0], [1.0], [2.0]], dtype=torch.float64)
    mean, variance = _moments(iter(values))
    assert (mean.item(), variance.item()) == (1e8 + 1, 1.0)


@pytest.mark.parametrize(
    ("kind", "inference", "samples"),
    [("vae", "top_down", 1), ("hierarchical", "top_down", 3), ("hierarchical", "bottom_up", 1)],
)
def test_all_estimators_mean_the_same_gradient(kind: str, inference: str, samples: int) -> None:
    model, repeats = some_model(kind=kind, inference=inference), 300
    weights = encoder_weights(model)
    assert weights
    means, errors = {}, {}
    torch.manual_seed(2)
    for name, estimator in ESTIMATORS.items():
        mean, variance = _moments(_gradients(estimator, model, weights, some_images(), (samples, repeats)))
        means[name], errors[name] = mean, (variance / repeats).sqrt()
    best = means.pop("reparameterised")
    assert best.abs().max().item() > 10 * errors["reparameterised"].max().item()  # there is something to agree on
    for name, mean in means.items():
        error = (errors[name].square() + errors["reparameterised"].square()).sqrt()
        assert ((mean - best).abs() <= 5 * error + 1e-6).all(), name


@pytest.mark.parametrize("kind", ["vae", "hierarchical"])
def test_the_trick_is_less_noisy_than_a_control_variate_and_that_than_none(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gradients, "SAMPLES", (1, 4))
    model = some_model(kind=kind)
    torch.manual_seed(2)
    found = noise_to_signal(model, encoder_weights(model), some_images(), repeats=200)
    assert list(found) == ["score function", "score function, control variate", "reparameterised"]
    plain, controlled, pathwise = found.values()
    for samples in (1, 4):
        assert plain[samples] > 2 * controlled[samples] > 4 * pathwise[samples] > 0
    for row in (
        plain,
        pathwise,
    ):  # independent samples: the variance falls as their number; 200 repeats know it to 10 %
        assert row[1] / row[4] == pytest.approx(4, rel=0.5)


def test_noise_is_the_variance_in_units_of_the_squared_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = torch.tensor([[3.0, 0.0], [3.0, 2.0], [3.0, 4.0]], dtype=torch.float64)  # mean (3, 2), variance 4

    def prescribed(estimator: object, *_args: object) -> Any:
        return iter(rows * (10 if estimator is not ESTIMATORS["reparameterised"] else 1))

    monkeypatch.setattr(gradients, "_gradients", prescribed)
    model: Any = None
    found = noise_to_signal(model, [], torch.zeros(0), 3)
    assert found["reparameterised"] == dict.fromkeys(gradients.SAMPLES, pytest.approx(4 / 13))
    assert found["score function"] == dict.fromkeys(gradients.SAMPLES, pytest.approx(400 / 13))
