import math

import numpy as np
import pytest
import torch
from data_card import data_card
from linear_gaussian import LinearGaussian
from torch import Tensor

from reparam.config import EvaluateConfig, ModelConfig
from reparam.data.batches import Batches
from reparam.evaluation import metrics
from reparam.evaluation.metrics import Scores, headline, negative_log_likelihood, score
from reparam.models.build import build_model
from reparam.models.draw import Draw
from reparam.models.vae import kl_to_standard_normal

CPU = torch.device("cpu")


def settings(elbo_samples: int = 2, nll_samples: int = 3, batch_size: int = 2) -> EvaluateConfig:
    return EvaluateConfig(
        seed=0,
        batch_size=batch_size,
        elbo_samples=elbo_samples,
        nll_samples=nll_samples,
        active_variance=0.01,
        grid_steps=2,
        grid_range=1.0,
    )


class Prescribed:
    """A model whose importance weights are read off one long table, (all samples, B), in order."""

    def __init__(self, log_w: Tensor) -> None:
        self.log_w = log_w
        self.asked: list[int] = []

    def draw(self, x: Tensor, target: Tensor, samples: int) -> Draw:
        start = sum(self.asked)
        self.asked.append(samples)
        log_w = self.log_w[start : start + samples]
        return Draw(log_w - 3, torch.full_like(log_w, 1.0), torch.full_like(log_w, -2.0), torch.zeros_like(log_w))

    def posterior(self, x: Tensor) -> tuple[Tensor, Tensor]:
        raise NotImplementedError

    def decode(self, z: Tensor) -> Tensor:
        raise NotImplementedError


# Log-likelihood


@pytest.mark.parametrize("samples", [1, 10])
def test_nll_is_exact_when_q_is_the_posterior(samples: int) -> None:
    torch.manual_seed(0)
    model, x = LinearGaussian(), torch.linspace(-3, 3, 8).reshape(4, 1, 1, 2)
    found = negative_log_likelihood(model, x, samples)
    torch.testing.assert_close(found, -model.log_evidence(x).double(), rtol=0, atol=1e-5)


def test_nll_converges_to_the_exact_one_when_q_is_not_the_posterior() -> None:
    torch.manual_seed(0)
    model, x = LinearGaussian(slope=0.4, variance=0.7), torch.linspace(-2, 2, 8).reshape(4, 1, 1, 2)
    exact = -model.log_evidence(x).double()
    assert (-model.expected_elbo(x) - exact).min().item() > 0.05  # q is visibly not the posterior
    coarse, fine = ((negative_log_likelihood(model, x, samples) - exact).abs().max().item() for samples in (1, 50_000))
    assert coarse > 0.1
    assert fine < 0.01


def test_nll_is_minus_the_log_of_the_mean_weight() -> None:
    log_w = torch.tensor([[1.0, 2.0], [3.0, 6.0], [5.0, 1.0]]).log()
    found = negative_log_likelihood(Prescribed(log_w), torch.zeros(2, 1, 1, 1), 3)
    torch.testing.assert_close(found, -torch.tensor([3.0, 3.0]).double().log(), rtol=1e-6, atol=0)


@pytest.mark.parametrize(
    ("rows_at_once", "asked"),
    [(1, [1] * 11), (4, [1] * 11), (8, [2] * 5 + [1]), (20, [5, 5, 1]), (44, [11]), (1_000, [11])],
)
def test_drawing_in_chunks_changes_nothing(
    rows_at_once: int, asked: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    log_w = 5 * torch.randn(11, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64) - 90
    wanted = math.log(11) - log_w.logsumexp(0)
    monkeypatch.setattr(metrics, "ROWS_AT_ONCE", rows_at_once)
    model = Prescribed(log_w)
    torch.testing.assert_close(negative_log_likelihood(model, torch.zeros(4, 1, 1, 1), 11), wanted)
    assert model.asked == asked


@pytest.mark.parametrize("log_weight", [-1e4, 1e4])
def test_nll_is_finite_where_the_weights_are_not(log_weight: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "ROWS_AT_ONCE", 2)
    model = Prescribed(torch.full((6, 1), log_weight))
    found = negative_log_likelihood(model, torch.zeros(1, 1, 1, 1), 6)
    assert found.tolist() == [pytest.approx(-log_weight, rel=1e-12)]


# Scores of a split


def test_scores_are_per_image_in_the_order_of_the_split() -> None:
    grey = np.arange(0, 250, 25, dtype=np.uint8).reshape(5, 1, 1, 2)  # 5 images in batches of 2
    torch.manual_seed(0)
    model = LinearGaussian(slope=1.0, variance=0.7)
    scores = score(model, Batches(grey, data_card("none"), 2, CPU), settings(elbo_samples=20_000, nll_samples=20_000))

    x = torch.from_numpy(grey).float() / 255
    mean, log_variance = model.posterior(x)
    kl = kl_to_standard_normal(mean, log_variance).double()
    torch.testing.assert_close(scores.means, mean.double())
    torch.testing.assert_close(scores.kl, kl.sum(1), rtol=1e-5, atol=0)
    torch.testing.assert_close(scores.latent_kl, kl.mean(0), rtol=1e-5, atol=0)
    # The greys of a pixel are 0, 50, ..., 200 or 25, 75, ..., 225: a population variance of 5000.
    assert scores.latent_variance.tolist() == pytest.approx([5_000 / 255**2] * 2, rel=1e-5)
    torch.testing.assert_close(scores.nll, -model.log_evidence(x).double(), rtol=0, atol=0.05)
    torch.testing.assert_close(scores.reconstruction + scores.kl, -model.expected_elbo(x).double(), rtol=0, atol=0.05)
    for values in vars(scores).values():
        assert (values.dtype, values.device.type) == (torch.float64, "cpu")


def test_scoring_asks_for_the_samples_of_the_params_and_keeps_no_graph() -> None:
    torch.manual_seed(0)
    model = build_model(ModelConfig(hidden=(4,), activation="relu", latent=3, likelihood="bernoulli"), (1, 2, 2))
    asked: list[int] = []
    model.decoder.register_forward_hook(lambda _module, inputs, _output: asked.append(len(inputs[0])))
    scores = score(model, Batches(np.full((3, 1, 2, 2), 255, np.uint8), data_card("none"), 2, CPU), settings())
    assert asked == [2, 3, 2, 3]  # ELBO and NLL samples, for each of two batches
    assert {name: tuple(values.shape) for name, values in vars(scores).items()} == {
        "reconstruction": (3,),
        "kl": (3,),
        "nll": (3,),
        "latent_kl": (3,),
        "latent_variance": (3,),
        "means": (3, 3),
    }
    assert not any(values.requires_grad for values in vars(scores).values())


# Headline numbers


def scores_of(reconstruction: list[float], kl: list[float], nll: list[float], variance: list[float]) -> Scores:
    def tensor(values: list[float]) -> Tensor:
        return torch.tensor(values, dtype=torch.float64)

    return Scores(
        reconstruction=tensor(reconstruction),
        kl=tensor(kl),
        nll=tensor(nll),
        latent_kl=torch.zeros(len(variance)),
        latent_variance=tensor(variance),
        means=torch.zeros(len(kl), len(variance)),
    )


def test_headline_gives_means_and_standard_errors() -> None:
    scores = scores_of([10.0, 14.0, 18.0], [1.0, 2.0, 6.0], [9.0, 9.0, 15.0], variance=[0.0, 0.01, 0.0101, 2.0])
    assert headline(scores, active_variance=0.01, is_density=True) == {
        # The values are 11, 16, 24: deviations -6, -1, 7 of their mean, a sample variance of 43; sqrt(43 / 3) = 3.7859.
        "elbo": -17.0,
        "elbo_se": 3.7859,
        "reconstruction": 14.0,
        "reconstruction_se": 2.3094,  # 4 / sqrt(3)
        "kl": 3.0,
        "kl_se": 1.5275,  # sqrt(7 / 3)
        "nll": 11.0,
        "nll_se": 2.0,  # sqrt(12 / 3)
        "active_units": 2,  # strictly above the threshold
        "images": 3,
    }


def test_without_a_density_there_is_a_cross_entropy_and_neither_elbo_nor_nll() -> None:
    scores = scores_of([10.0, 14.0, 18.0], [1.0, 2.0, 6.0], [9.0, 9.0, 15.0], variance=[2.0])
    assert headline(scores, active_variance=0.01, is_density=False) == {
        "bce": 14.0,
        "bce_se": 2.3094,
        "kl": 3.0,
        "kl_se": 1.5275,
        "active_units": 1,
        "images": 3,
    }


def test_a_single_image_has_no_standard_error_and_no_active_unit() -> None:
    scores = score(
        LinearGaussian(), Batches(np.full((1, 1, 1, 2), 200, np.uint8), data_card("none"), 2, CPU), settings()
    )
    found = headline(scores, active_variance=0.01, is_density=True)
    assert [found[f"{name}_se"] for name in ("elbo", "reconstruction", "kl", "nll")] == [0.0] * 4
    assert (found["active_units"], found["images"]) == (0, 1)
