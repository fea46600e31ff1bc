import math
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from conftest import small_section
from linear_gaussian import LinearGaussian
from torch import Tensor
from torch.distributions import Normal

from reparam.models.build import build_model
from reparam.models.draw import Draw, Estimator, Layer
from reparam.models.latent import LatentModel
from reparam.models.priors import StandardNormal
from reparam.objectives import OBJECTIVES, Setting, Terms, aggregate_posterior

OBJECTIVE = small_section("objective")
MODEL = small_section("model")
IMAGE = (1, 1, 2)  # (C, H, W)
NAN = math.nan  # what must not be looked at


@dataclass
class Scripted:
    """A model that always says the same, and remembers what it was asked."""

    answer: Draw
    stochastic_layers: int = 1
    prior: StandardNormal = field(default_factory=lambda: StandardNormal(2))
    asked: list[tuple[Tensor, Tensor, int]] = field(default_factory=list)

    def draw(self, x: Tensor, target: Tensor, samples: int, estimator: Estimator = "pathwise") -> Draw:
        self.asked.append((x, target, samples))
        return self.answer

    def posterior(self, x: Tensor) -> tuple[Tensor, Tensor]:
        raise NotImplementedError

    def decode(self, z: Tensor) -> Tensor:
        raise NotImplementedError


def layer_of(kl: Tensor, **fields: Tensor) -> Layer:
    """A layer with a KL for each sample, image and dimension."""
    unknown = torch.full_like(kl, NAN)
    names = ("z", "mean", "log_variance", "log_qz", "log_pz")
    z, mean, log_variance, log_qz, log_pz = (fields.get(name, unknown) for name in names)
    return Layer.of(z, (mean, log_variance), log_qz, log_pz, kl)


def scripted(kl: list[list[float]], log_px: float = -1.0) -> Scripted:
    """One sample of each image. Shapes: kl (B, D)."""
    layer = layer_of(torch.tensor(kl)[None])
    return Scripted(Draw.of(torch.full((1, len(kl)), log_px), layer))


def minimise(name: str, model: Any, x: Tensor | None = None, epoch: float = math.inf, **changes: Any) -> Terms:
    """Return the terms of an objective, with 10 training images and pixels in [0, 1]."""
    config = small_section("objective", **{"name": name, **changes})
    setting = Setting(torch.tensor(epoch), torch.zeros(1, 1, 1), torch.ones(1, 1, 1))
    return OBJECTIVES[name].terms(model, torch.zeros(2, *IMAGE) if x is None else x, config, setting)


def small_model(**changes: Any) -> LatentModel:
    small = {"hidden": (3,), "activation": "tanh", "latent": 2, "upper": (3,), "upper_hidden": (4,)}
    return build_model(small_section("model", **small | changes), IMAGE)


@pytest.mark.parametrize(
    ("beta", "loss"), [(0.0, [2.0, 3.0]), (1.0, [3.0, 5.0]), (4.0, [6.0, 11.0])], ids="beta {}".format
)
def test_elbo_adds_beta_times_kl_to_the_reconstruction(beta: float, loss: list[float]) -> None:
    layer = layer_of(torch.tensor([[[0.5, 0.0], [0.75, 0.25]], [[1.0, 0.5], [2.0, 1.0]]]))
    model = Scripted(Draw.of(torch.tensor([[-1.0, -2.0], [-3.0, -4.0]]), layer))
    terms = minimise("elbo", model, beta=beta, samples=2)
    assert {name: values.tolist() for name, values in terms.items()} == {
        "loss": loss,
        "reconstruction": [2.0, 3.0],  # means over the two samples
        "kl": [1.0, 2.0],
        "elbo": [-3.0, -5.0],  # whatever beta is
    }


@pytest.mark.parametrize(
    "name", [name for name in OBJECTIVES if name != "denoising" and not OBJECTIVES[name].has_jacobian]
)
def test_the_same_images_are_encoded_and_scored_with_the_samples_asked_for(name: str) -> None:
    noise = torch.randn(7, 1, 2)
    layer = layer_of(noise, z=noise, mean=noise[0], log_variance=noise[1], log_pz=noise, log_qz=noise)
    model, x = Scripted(Draw.of(torch.zeros(7, 1), layer)), torch.rand(1, *IMAGE)
    minimise(name, model, x, samples=7)
    [(encoded, target, samples)] = model.asked
    assert (encoded is x, target is x, samples) == (True, True, 7)


def test_reconstruction_leaves_out_the_kl() -> None:
    model = Scripted(Draw.of(torch.tensor([[-1.0, -2.0], [-3.0, -4.0]]), layer_of(torch.full((2, 2, 1), 9.0))))
    terms = minimise("reconstruction", model, beta=3.0, samples=2)
    assert (terms["loss"].tolist(), terms["elbo"].tolist()) == ([2.0, 3.0], [-11.0, -12.0])


@pytest.mark.parametrize("kl", ["analytic", "monte_carlo"])
def test_elbo_is_the_closed_form_of_a_linear_gaussian_model(kl: str) -> None:
    torch.manual_seed(0)
    model, x = LinearGaussian(slope=0.8, variance=0.3), torch.tensor([[-2.0, 0.5], [1.0, 3.0]])
    loss = minimise("elbo", model, x, samples=40_000, kl=kl)["loss"]
    # The standard deviation of log p(x|z), and of log p(x, z) - log q(z), is below 3 nats here: 0.015 of the mean.
    torch.testing.assert_close(-loss, model.expected_elbo(x), rtol=0, atol=0.075)


def test_a_sampled_kl_is_that_of_the_samples() -> None:
    log_pz, log_qz = torch.tensor([[[-1.0, -2.0]], [[-3.0, -5.0]]]), torch.tensor([[[0.5, 1.0]], [[-1.0, 0.25]]])
    layer = layer_of(torch.full((2, 1, 2), NAN), log_pz=log_pz, log_qz=log_qz)
    terms = minimise("elbo", Scripted(Draw.of(torch.zeros(2, 1), layer)), kl="monte_carlo", samples=2)
    assert terms["loss"].tolist() == [(1.5 + 3.0 + 2.0 + 5.25) / 2]


def test_gradients_of_the_elbo_agree_with_finite_differences() -> None:
    torch.manual_seed(0)
    model = small_model(latent=1).double()
    x = torch.tensor([[[[0.0, 1.0]]], [[[1.0, 1.0]]]]).double()

    def loss() -> Tensor:
        torch.manual_seed(1)  # the same noise each time
        return minimise("elbo", model, x, beta=2.0, samples=3)["loss"].mean()

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


@pytest.mark.parametrize("name", [name for name in OBJECTIVES if not OBJECTIVES[name].has_jacobian])
def test_every_objective_adds_what_a_model_charges_for_beside_its_densities(name: str) -> None:
    torch.manual_seed(0)
    noise = torch.randn(3, 2, 2)
    layer = layer_of(noise, z=noise, mean=noise[0], log_variance=noise[1], log_pz=noise, log_qz=noise)
    draw = Draw.of(torch.zeros(3, 2), layer)
    charged = Draw.of(torch.zeros(3, 2), layer, auxiliary=torch.tensor([0.5, 2.0]))
    found = []
    for answer in (draw, charged):
        torch.manual_seed(1)
        found.append(minimise(name, Scripted(answer), samples=3))
    without, terms = found
    torch.testing.assert_close(terms.pop("loss") - without.pop("loss"), torch.tensor([0.5, 2.0]))
    assert terms.pop("auxiliary").tolist() == [0.5, 2.0]
    assert {name: values.tolist() for name, values in terms.items()} == {
        name: values.tolist() for name, values in without.items()
    }


WARMUPS = {
    # epochs done -> share of beta; a warm-up, or a cycle, takes 4 epochs
    "none": {0.0: 1.0, 1.0: 1.0, math.inf: 1.0},
    "linear": {0.0: 0.0, 0.5: 0.125, 1.0: 0.25, 3.0: 0.75, 4.0: 1.0, 5.0: 1.0, math.inf: 1.0},
    "cyclic": {0.0: 0.0, 0.5: 0.25, 1.0: 0.5, 2.0: 1.0, 3.5: 1.0, 4.0: 0.0, 5.0: 0.5, 7.0: 1.0, math.inf: 1.0},
}


@pytest.mark.parametrize(
    ("warmup", "epoch", "share"),
    [(warmup, epoch, share) for warmup, shares in WARMUPS.items() for epoch, share in shares.items()],
)
def test_beta_rises_with_the_epochs(warmup: str, epoch: float, share: float) -> None:
    model = scripted([[2.0, 1.0], [5.0, 0.0]])
    terms = minimise("elbo", model, epoch=epoch, beta=8.0, warmup=warmup, warmup_epochs=4)
    assert terms["loss"].tolist() == [1 + 8 * share * 3, 1 + 8 * share * 5]
    assert terms["elbo"].tolist() == [-4.0, -6.0]  # warm or not


@pytest.mark.parametrize(
    ("epoch", "wanted"), [(0.0, 0.0), (5.0, 0.5), (40.0, 4.0), (100.0, 10.0), (300.0, 10.0), (math.inf, 10.0)]
)
def test_the_mean_kl_is_held_at_a_capacity_that_rises(epoch: float, wanted: float) -> None:
    model = scripted([[2.0, 1.0], [5.0, 0.0]])  # 4 nats on average: too many at first, too few in the end
    terms = minimise("capacity", model, epoch=epoch, weight=3.0, capacity={"nats": 10.0, "epochs": 100})
    assert terms["capacity"].tolist() == [wanted, wanted]
    assert terms["loss"].tolist() == [1 + 3 * abs(4 - wanted)] * 2


@pytest.mark.parametrize("kl", ["analytic", "monte_carlo"])
@pytest.mark.parametrize("layers", [1, 2])
def test_free_bits_are_free_in_each_dimension_on_the_batch_mean(kl: str, layers: int) -> None:
    # Shapes: (K, B, D), with means 0.4 and 2.
    charged = torch.tensor([[[0.2, 1.0], [0.6, 3.0]], [[0.0, 3.5], [0.8, 0.5]]], requires_grad=True)
    ignored, nothing = torch.full_like(charged, NAN), torch.zeros_like(charged)
    values = {"kl": ignored, "log_qz": charged, "log_pz": nothing} if kl == "monte_carlo" else {"kl": charged}
    each = [layer_of(**{name: value[..., part] for name, value in values.items()}) for part in PARTS[layers]]
    terms = minimise("elbo", Scripted(Draw.of(torch.full((2, 2), -1.0), *each)), beta=2.0, free_bits=0.5, kl=kl)
    assert terms["loss"].tolist() == [1 + 2 * (0.5 + 2)] * 2
    terms["loss"].mean().backward()
    assert charged.grad is not None
    assert charged.grad.tolist() == [[[0.0, 0.5]] * 2] * 2  # none below the floor; beta / (K * B) above it


PARTS = {1: [slice(0, 2)], 2: [slice(0, 1), slice(1, 2)]}  # dimensions of each layer


def test_no_bits_are_free_where_there_is_no_posterior() -> None:
    torch.manual_seed(0)
    terms = minimise("denoising", small_model(kind="autoencoder"), free_bits=0.5, level=0.0)
    assert terms["loss"].tolist() == terms["reconstruction"].tolist()


def test_the_aggregate_posterior_is_the_mixture_over_the_batch() -> None:
    torch.manual_seed(0)
    z, mean, log_variance = torch.randn(3, 4, 2), torch.randn(4, 2), torch.randn(4, 2)
    layer = layer_of(torch.zeros(3, 4, 2), z=z, mean=mean, log_variance=log_variance)
    log_q, log_q_dimensions = aggregate_posterior(layer)
    for k in range(3):
        for b in range(4):
            total, totals = 0.0, [0.0, 0.0]
            for j in range(4):
                densities = [
                    Normal(mean[j, d], (log_variance[j, d] / 2).exp()).log_prob(z[k, b, d]).exp().item()
                    for d in range(2)
                ]
                total += densities[0] * densities[1]
                totals = [old + new for old, new in zip(totals, densities, strict=True)]
            assert log_q[k, b].item() == pytest.approx(math.log(total / 4), rel=1e-5)
            assert log_q_dimensions[k, b].tolist() == pytest.approx([math.log(value / 4) for value in totals], rel=1e-5)


def standard_normal(z: float) -> float:
    return math.exp(-z * z / 2) / math.sqrt(2 * math.pi)


def of_two_images(mean: list[list[float]], z: list[list[float]]) -> Scripted:
    """Posteriors of variance 1. Shapes: (B, D), (B, D)."""
    means, drawn = torch.tensor(mean), torch.tensor(z)[None]
    log_pz, log_qz = Normal(0.0, 1.0).log_prob(drawn), Normal(means, 1.0).log_prob(drawn)
    layer = layer_of(
        torch.zeros_like(drawn), z=drawn, mean=means, log_variance=torch.zeros_like(means), log_pz=log_pz, log_qz=log_qz
    )
    return Scripted(Draw.of(torch.full((1, 2), -1.0), layer))


@pytest.mark.parametrize("beta", [0.0, 1.0, 5.0])
def test_a_single_dimension_has_no_total_correlation(beta: float) -> None:
    terms = minimise("beta_tc", of_two_images([[0.0], [2.0]], [[0.5], [2.5]]), beta=beta)
    q = [standard_normal(0.5), standard_normal(0.5)]  # of each code under its own image,
    mixture = [(standard_normal(0.5) + standard_normal(1.5)) / 2, (standard_normal(2.5) + standard_normal(0.5)) / 2]
    prior = [standard_normal(0.5), standard_normal(2.5)]
    assert terms["mutual_information"].tolist() == pytest.approx(
        [math.log(own / both) for own, both in zip(q, mixture, strict=True)], rel=1e-5
    )
    assert terms["total_correlation"].tolist() == [0.0, 0.0]
    assert terms["loss"].tolist() == pytest.approx(
        [1 + math.log(own / wanted) for own, wanted in zip(q, prior, strict=True)], rel=1e-5, abs=1e-6
    )


def test_two_dimensions_that_move_together_have_a_total_correlation() -> None:
    terms = minimise("beta_tc", of_two_images([[0.0, 0.0], [2.0, 2.0]], [[0.0, 0.0], [2.0, 2.0]]), beta=3.0)
    near, far = standard_normal(0.0), standard_normal(2.0)
    both, each = (near**2 + far**2) / 2, (near + far) / 2  # the mixture in the plane, and in each dimension
    correlation = math.log(both / each**2)
    assert terms["total_correlation"].tolist() == pytest.approx([correlation] * 2, rel=1e-5)
    assert terms["mutual_information"].tolist() == pytest.approx([math.log(near**2 / both)] * 2, rel=1e-5)
    wanted = [1 + math.log(near**2 / prior**2) + 2 * correlation for prior in (near, far)]
    assert terms["loss"].tolist() == pytest.approx(wanted, rel=1e-5)


def test_the_parts_of_the_kl_add_up_to_it() -> None:
    torch.manual_seed(0)
    model, x = small_model(latent=3).double(), torch.rand(5, *IMAGE).double()
    losses = {}
    for name, beta in (("beta_tc", 0.0), ("beta_tc", 1.0), ("beta_tc", 4.0), ("elbo", 1.0)):
        torch.manual_seed(1)
        terms = minimise(name, model, x, beta=beta, samples=4, kl="monte_carlo")
        losses[name, beta] = terms["loss"]
        if name == "beta_tc":
            correlation = terms["total_correlation"]
    torch.testing.assert_close(losses["beta_tc", 1.0], losses["elbo", 1.0], rtol=1e-12, atol=1e-12)
    for beta in (0.0, 4.0):
        torch.testing.assert_close(losses["beta_tc", beta] - losses["elbo", 1.0], (beta - 1) * correlation)


ALWAYS = {"loss", "reconstruction", "kl"}
MORE = {
    "sparse": {"penalty"},
    "contractive": {"penalty"},
    "capacity": {"capacity"},
    "beta_tc": {"mutual_information", "total_correlation"},
    "mmd": {"mmd"},
}
KINDS = {"autoencoder": 0, "vae": 1, "hierarchical": 2}


@pytest.mark.parametrize("samples", [1, 3])
@pytest.mark.parametrize(
    ("name", "kind"),
    [
        (name, kind)
        for name, objective in OBJECTIVES.items()
        for kind, layers in KINDS.items()
        if objective.layers[0] <= layers <= objective.layers[1]
    ],
)
def test_every_objective_gives_its_terms_per_image(name: str, kind: str, samples: int) -> None:
    torch.manual_seed(0)
    terms = minimise(name, small_model(kind=kind), torch.ones(5, *IMAGE), samples=samples)
    bound = set() if kind == "autoencoder" else {"elbo"}
    assert set(terms) == ALWAYS | bound | MORE.get(name, set())
    assert {term: values.shape for term, values in terms.items()} == dict.fromkeys(terms, (5,))
    if bound:
        torch.testing.assert_close(terms["elbo"], -terms["reconstruction"] - terms["kl"])
    else:
        assert terms["kl"].tolist() == [0.0] * 5
