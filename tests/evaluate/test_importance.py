import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from conftest import small_section
from linear_gaussian import LinearGaussian
from torch import Tensor

from reparam.data.batches import Seen
from reparam.evaluate.importance import BYTES_PER_NUMBER, MEMORY, bytes_per_draw, importance, levels, read_curve
from reparam.models.build import build_model
from reparam.models.draw import Draw, Encoded, Estimator
from reparam.models.latent import LatentModel
from reparam.models.priors import StandardNormal


class Prescribed(LatentModel):
    """A model whose importance weights are read off one long table, (all samples, B), in order."""

    stochastic_layers = 1
    likelihood, prior = SimpleNamespace(outputs=1), StandardNormal(1)

    def __init__(self, log_w: Tensor) -> None:
        super().__init__()
        self.log_w = log_w
        self.asked: list[int] = []

    def encode(self, x: Tensor, labels: Tensor | None = None) -> Encoded:
        return []

    def draw_from(
        self,
        encoded: Encoded,
        target: Tensor,
        samples: int,
        estimator: Estimator = "pathwise",
        labels: Tensor | None = None,
    ) -> Draw:
        start = sum(self.asked)
        self.asked.append(samples)
        log_w = self.log_w[start : start + samples]
        return Draw(log_w - 3, torch.full_like(log_w, 1.0), torch.full_like(log_w, -2.0), torch.zeros_like(log_w))

    def draw(self, *_: object, **_labels: object) -> Draw:
        return Draw(*torch.zeros(4, 1, 1))


@pytest.mark.parametrize("samples", [1, 10])
def test_nll_is_exact_when_q_is_the_posterior(samples: int) -> None:
    torch.manual_seed(0)
    model, x = LinearGaussian(), torch.linspace(-3, 3, 8).reshape(4, 1, 1, 2)
    found = importance(model, [Seen(x)], samples)
    exact = model.log_evidence(x).double()
    torch.testing.assert_close(found.nll, -exact, rtol=0, atol=1e-5)
    torch.testing.assert_close(found.bounds, exact.expand(len(levels(samples)), 4), rtol=0, atol=1e-5)
    torch.testing.assert_close(found.effective, torch.full((4,), float(samples)).double(), rtol=1e-4, atol=0)


def test_nll_converges_to_the_exact_one_when_q_is_not_the_posterior() -> None:
    torch.manual_seed(0)
    model, x = LinearGaussian(slope=0.4, variance=0.7), torch.linspace(-2, 2, 8).reshape(4, 1, 1, 2)
    exact = -model.log_evidence(x).double()
    assert (-model.expected_elbo(x) - exact).min().item() > 0.05  # q is visibly not the posterior
    coarse, fine = ((importance(model, [Seen(x)], samples).nll - exact).abs().max().item() for samples in (1, 50_000))
    assert coarse > 0.1
    assert fine < 0.01


def test_bounds_rise_to_the_log_likelihood_on_average() -> None:
    torch.manual_seed(0)
    model, x = LinearGaussian(slope=0.4, variance=0.7), torch.linspace(-2, 2, 8).reshape(4, 1, 1, 2)
    bounds = torch.stack([importance(model, [Seen(x)], 100).bounds for _ in range(200)]).mean((0, 2))
    assert bounds[:4].diff().min().item() > 0
    assert bounds[0].item() == pytest.approx(model.expected_elbo(x).mean().item(), abs=0.1)
    assert bounds[-1].item() == pytest.approx(model.log_evidence(x).mean().item(), abs=0.02)


def test_everything_is_read_off_the_weights() -> None:
    log_w = torch.tensor([[1.0, 2.0], [3.0, 6.0], [5.0, 1.0]]).log()
    found = importance(Prescribed(log_w), [Seen(torch.zeros(2, 1, 1, 1))], 3)
    torch.testing.assert_close(found.nll, -torch.tensor([3.0, 3.0]).double().log(), rtol=1e-6, atol=0)
    # Of the first sample, the first two, and all.
    wanted = torch.tensor([[1.0, 2.0], [2.0, 4.0], [3.0, 3.0]]).double().log()
    torch.testing.assert_close(found.bounds, wanted, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(found.effective, torch.tensor([81 / 35, 81 / 41]).double(), rtol=1e-6, atol=0)


def test_one_sample_that_outweighs_the_rest_is_one_effective_sample() -> None:
    log_w = torch.tensor([[0.0, 5.0], [-90.0, 5.0], [-80.0, 5.0], [-99.0, 5.0]])
    found = importance(Prescribed(log_w), [Seen(torch.zeros(2, 1, 1, 1))], 4)
    torch.testing.assert_close(found.effective, torch.tensor([1.0, 4.0]).double(), rtol=1e-12, atol=0)


@pytest.mark.parametrize(
    ("numbers_at_once", "asked"),
    [(4, [1] * 11), (8, [1, 1, 2, 1, 2, 2, 1, 1]), (20, [1, 1, 3, 5, 1]), (1_000, [1, 1, 3, 5, 1])],
)
def test_drawing_in_chunks_changes_nothing(
    numbers_at_once: int, asked: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    log_w = 5 * torch.randn(11, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64) - 90
    model = Prescribed(log_w)
    monkeypatch.setitem(MEMORY, "cpu", numbers_at_once * BYTES_PER_NUMBER)
    found = importance(model, [Seen(torch.zeros(4, 1, 1, 1))], 11)
    assert model.asked == asked
    torch.testing.assert_close(found.nll, math.log(11) - log_w.logsumexp(0))
    torch.testing.assert_close(found.bounds[3], log_w[:10].logsumexp(0) - math.log(10))
    torch.testing.assert_close(found.effective, log_w.softmax(0).square().sum(0).reciprocal())


def some_model(hidden: int, **changes: Any) -> LatentModel:
    torch.manual_seed(0)
    changes = {"hidden": [hidden], "latent": 2, "likelihood": "bernoulli"} | changes
    return build_model(small_section("model", **changes), (1, 2, 3)).eval()


def test_memory_is_that_of_the_widest_layer_or_of_the_likelihood() -> None:
    x = torch.zeros(4, 1, 2, 3)
    small, wide = some_model(hidden=2), some_model(hidden=500)
    state = torch.get_rng_state()
    assert bytes_per_draw(small, x) == BYTES_PER_NUMBER * 6
    assert bytes_per_draw(wide, x) == 4 * (500 + 500)  # what an activation reads and writes
    assert torch.equal(torch.get_rng_state(), state)


def test_images_take_turns_where_one_sample_of_each_is_too_much(monkeypatch: pytest.MonkeyPatch) -> None:
    model, rows = some_model(hidden=500), list[int]()
    model.decoder.register_forward_hook(lambda _module, inputs, _output: rows.append(len(inputs[0])))
    x = torch.rand(5, 1, 2, 3).round()
    whole = importance(model, [Seen(x)], 1000)
    rows.clear()
    monkeypatch.setitem(MEMORY, "cpu", 2 * 4 * 1000)
    found = importance(model, [Seen(x)], 1000)
    assert max(rows) == 2
    assert found.bounds.shape == (len(levels(1000)), 5)
    torch.testing.assert_close(found.nll, whole.nll, rtol=0, atol=0.05)


@pytest.mark.parametrize("changes", [{}, {"inference": "bottom_up"}, {"inference": "top_down"}])
def test_images_are_encoded_once_whatever_the_number_of_samples(
    changes: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, encoded = some_model(hidden=8, kind="hierarchical" if changes else "vae", **changes), list[int]()
    first = next(layer for layer in model.modules() if isinstance(layer, torch.nn.Flatten))
    x = torch.rand(5, 1, 2, 3).round()
    monkeypatch.setitem(MEMORY, "cpu", 10 * bytes_per_draw(model, x))
    first.register_forward_hook(lambda _module, inputs, _output: encoded.append(len(inputs[0])))
    importance(model, [Seen(x), Seen(x[:3]), Seen(x)], 100)
    assert encoded == [1, 5, 3, 5]  # one image to measure what a draw takes, then all


@pytest.mark.parametrize("kind", ["autoencoder", "vae", "bottom_up", "top_down"])
def test_to_draw_is_to_encode_and_to_draw_from_that(kind: str) -> None:
    hierarchy = {"kind": "hierarchical", "inference": kind, "upper": [2, 1]}
    model = some_model(hidden=8, **(hierarchy if "_" in kind else {"kind": kind}))
    x, target = torch.rand(2, 4, 1, 2, 3).round()
    torch.manual_seed(1)
    whole = model.draw(x, target, 3)
    torch.manual_seed(1)
    encoded = model.encode(x)
    parts = [model.draw_from(encoded, target, 3), model.draw_from(encoded, target, 2)]
    for name in ("log_px", "log_pz", "log_qz", "kl"):
        assert torch.equal(getattr(parts[0], name), getattr(whole, name))
        assert getattr(parts[1], name).shape == (2, 4)


@pytest.mark.parametrize("log_weight", [-1e4, 1e4])
def test_nll_is_finite_where_the_weights_are_not(log_weight: float) -> None:
    found = importance(Prescribed(torch.full((6, 1), log_weight)), [Seen(torch.zeros(1, 1, 1, 1))], 6)
    assert found.nll.tolist() == [pytest.approx(-log_weight, rel=1e-12)]
    assert found.effective.tolist() == [pytest.approx(6.0)]


@pytest.mark.parametrize(
    ("samples", "wanted"),
    [(1, [1]), (3, [1, 2, 3]), (10, [1, 2, 5, 10]), (2_000, [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000])],
)
def test_levels_are_evenly_spread_over_the_magnitudes(samples: int, wanted: list[int]) -> None:
    assert levels(samples) == wanted


def test_a_curve_is_the_mean_over_images_with_its_error() -> None:
    bounds = torch.tensor([[-3.0, -1.0], [-5.0, -1.0]]).double()
    assert read_curve(bounds, 2) == ([1, 2], [-4.0, -1.0], [pytest.approx(1.0), 0.0])
    assert read_curve(bounds[:1], 2) == ([1, 2], [-3.0, -1.0], [0.0, 0.0])
