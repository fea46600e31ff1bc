import math
from collections.abc import Callable, Iterator

import pytest
import torch
from linear_gaussian import LOADINGS, OFFSET, SHAPE, SIGMA, linear_vae, vae_evidence
from torch import Tensor, nn
from torch.distributions import Categorical, MixtureSameFamily, MultivariateNormal, Normal

from reparam.data.batches import Seen
from reparam.errors import NonFiniteError
from reparam.evaluate import annealing
from reparam.evaluate.annealing import Annealed, Joint, Schedule, concatenate, image_chunks, sigmoid_schedule
from reparam.evaluate.importance import importance
from reparam.models.draw import Components
from reparam.models.latent import each_sample
from reparam.models.priors import Settled, StandardNormal
from reparam.models.vae import VAE
from reparam.runtime import random_stream

LogLikelihood = Callable[[Tensor], Tensor]
SHORT = Schedule(temperatures=20, leapfrog=3)
LONG = Schedule(temperatures=300, leapfrog=3)


@pytest.fixture(autouse=True)
def _stream() -> Iterator[None]:
    with random_stream(0, "annealing"):
        yield


def prior(chains: int, images: int, latent: int) -> Tensor:
    return torch.randn(chains, images, latent, dtype=torch.float64)


def annealed_log_likelihood(log_likelihood: LogLikelihood, start: Tensor, schedule: Schedule) -> Annealed:
    """Anneal from N(0, I)."""
    return annealing.annealed_log_likelihood(Joint(StandardNormal(start.shape[-1]), log_likelihood), start, schedule)


def reverse_log_likelihood(log_likelihood: LogLikelihood, exact: Tensor, chains: int, schedule: Schedule) -> Annealed:
    """Anneal back to N(0, I)."""
    joint = Joint(StandardNormal(exact.shape[-1]), log_likelihood)
    return annealing.reverse_log_likelihood(joint, exact, chains, schedule)


def linear_likelihood(x: Tensor) -> LogLikelihood:
    model = linear_vae()
    return lambda z: model.likelihood.log_prob(each_sample(model.decoder, z), x)


def linear_images(count: int) -> tuple[Tensor, Tensor]:
    """Latents (B, 3) of the linear Gaussian model, and an image (B, 1, 2, 2) of each."""
    z = torch.randn(count, 3, dtype=torch.float64)
    mean = z @ LOADINGS.T + OFFSET
    return z, (mean + SIGMA * torch.randn_like(mean)).unflatten(1, SHAPE)


def linear_evidence(x: Tensor) -> Tensor:
    return vae_evidence().log_prob(x.flatten(1))


def standard_error(values: Tensor) -> float:
    return (values.std() / math.sqrt(len(values))).item()


class Binary(nn.Module):
    """z ~ N(0, I) in 10 dimensions; each of 24 pixels is white with a probability that a random network gives."""

    def __init__(self) -> None:
        super().__init__()
        self.decoder = nn.Sequential(nn.Linear(10, 16), nn.Tanh(), nn.Linear(16, 24)).double()
        with torch.no_grad():
            for weight in self.parameters():
                weight.copy_(torch.randn_like(weight))

    def images(self, count: int) -> tuple[Tensor, Tensor]:
        """Return latents and an image of each."""
        z = torch.randn(count, 10, dtype=torch.float64)
        with torch.no_grad():
            return z, torch.bernoulli(self.decoder(z).sigmoid())

    def likelihood(self, x: Tensor) -> LogLikelihood:
        def log_likelihood(z: Tensor) -> Tensor:
            logits = self.decoder(z)
            return (x * logits - nn.functional.softplus(logits)).sum(-1)

        return log_likelihood


# Exactness


def test_the_estimate_is_the_exact_log_likelihood_of_a_linear_gaussian_model() -> None:
    _, x = linear_images(30)
    found = annealed_log_likelihood(linear_likelihood(x), prior(32, 30, 3), LONG)
    error = found.log_px - linear_evidence(x)
    assert found.log_px.dtype == torch.float64
    assert error.abs().max().item() < 0.4  # of values from -9 to -4
    assert abs(error.mean().item()) < 3 * standard_error(error) + 0.005  # the gap of a bound of 32 chains
    assert found.effective_chains.min().item() > 20


@pytest.mark.parametrize("schedule", [Schedule(1, 1), Schedule(5, 3), Schedule(60, 2)])
def test_the_mean_weight_is_the_likelihood_for_any_schedule(schedule: Schedule) -> None:
    # And for a single chain, which would show if step sizes depended on it; 4000 images, all the same.
    images = 4_000
    x = torch.tensor([2.0, -1.0, 1.0, 0.5], dtype=torch.float64).expand(images, 4).unflatten(1, SHAPE)
    found = annealed_log_likelihood(linear_likelihood(x), prior(1, images, 3), schedule)
    ratio = (found.log_px - linear_evidence(x)).exp()
    assert abs(ratio.mean().item() - 1) < 4 * standard_error(ratio)
    assert standard_error(ratio) < 0.05


def test_the_mean_inverse_weight_is_the_inverse_likelihood() -> None:
    images, schedule = 4_000, Schedule(60, 2)
    image = torch.tensor([2.0, -1.0, 1.0, 0.5], dtype=torch.float64)
    covariance = (torch.eye(3, dtype=torch.float64) + LOADINGS.T @ LOADINGS / SIGMA**2).inverse()
    posterior = MultivariateNormal(covariance @ LOADINGS.T @ (image - OFFSET) / SIGMA**2, covariance)
    x = image.expand(images, 4).unflatten(1, SHAPE)
    found = reverse_log_likelihood(linear_likelihood(x), posterior.sample((images,)), 1, schedule)
    ratio = (linear_evidence(x) - found.log_px).exp()
    assert abs(ratio.mean().item() - 1) < 4 * standard_error(ratio)
    assert standard_error(ratio) < 0.05


def test_without_a_path_the_estimate_is_importance_sampling_from_the_prior() -> None:
    _, x = linear_images(4)
    log_likelihood, start = linear_likelihood(x), prior(50, 4, 3)
    found = annealed_log_likelihood(log_likelihood, start, Schedule(1, 3))
    log_px = log_likelihood(start).detach()
    torch.testing.assert_close(found.log_px, log_px.logsumexp(0) - math.log(50))
    weights = log_px.softmax(0)
    torch.testing.assert_close(found.effective_chains, 1 / weights.square().sum(0))
    assert found.acceptance.isnan().all()


def test_without_a_path_the_way_back_is_the_likelihood_of_the_exact_latent() -> None:
    z, x = linear_images(4)
    found = reverse_log_likelihood(linear_likelihood(x), z, 5, Schedule(1, 3))
    torch.testing.assert_close(found.log_px, linear_likelihood(x)(z[None])[0].detach())
    assert found.effective_chains.tolist() == pytest.approx([5.0] * 4)


# Bounds


def test_both_directions_bracket_the_likelihood_and_more_temperatures_bring_them_together() -> None:
    z, x = linear_images(300)
    exact, gaps = linear_evidence(x), []
    for schedule in (Schedule(5, 3), Schedule(25, 3), Schedule(125, 3)):
        lower = annealed_log_likelihood(linear_likelihood(x), prior(4, 300, 3), schedule).log_px - exact
        upper = reverse_log_likelihood(linear_likelihood(x), z, 4, schedule).log_px - exact
        assert lower.mean().item() < 2 * standard_error(lower)
        assert upper.mean().item() > -2 * standard_error(upper)
        gaps.append((upper - lower).mean().item())
    assert gaps[0] > 0.5
    assert gaps[1] < gaps[0] / 2
    assert gaps[2] < gaps[1] / 2
    assert gaps[2] < 0.15


def test_a_model_without_closed_form_is_bracketed_within_a_tenth_of_a_nat() -> None:
    model = Binary()
    z, x = model.images(50)
    schedule = Schedule(temperatures=400, leapfrog=4)
    lower = annealed_log_likelihood(model.likelihood(x), prior(8, 50, 10), schedule)
    upper = reverse_log_likelihood(model.likelihood(x), z, 8, schedule)
    gap = upper.log_px - lower.log_px
    assert -3 * standard_error(gap) < gap.mean().item() < 0.1
    coarse = annealed_log_likelihood(model.likelihood(x), prior(8, 50, 10), Schedule(10, 4)).log_px
    assert coarse.mean().item() < lower.log_px.mean().item() - 0.5  # short of it, there is something to bracket
    for found in (lower, upper):
        assert 0.5 < found.acceptance.min().item() <= found.acceptance.max().item() < 0.9


def test_a_mode_that_the_encoder_does_not_know_is_found() -> None:
    # x = z^2 + noise has a posterior of two modes, at 1.5 and at -1.5.
    sigma, x = 0.3, 1.5**2

    def likelihood(z: Tensor) -> Tensor:
        return Normal(z.square(), sigma).log_prob(torch.tensor(x)).sum(-1)

    grid = torch.linspace(-8, 8, 100_001, dtype=torch.float64)[:, None, None]
    density = likelihood(grid)[:, 0] + Normal(0.0, 1.0).log_prob(grid)[:, 0, 0]
    exact = (density.exp().sum() * 16 / 100_000).log().item()

    blind = Normal(torch.tensor(1.5, dtype=torch.float64), 0.15)
    z = blind.sample((10_000, 1, 1))
    log_w = likelihood(z) + Normal(0.0, 1.0).log_prob(z).sum(-1) - blind.log_prob(z).sum(-1)
    missed = log_w.logsumexp(0).item() - math.log(10_000)
    assert missed == pytest.approx(exact - math.log(2), abs=0.05)

    found = annealed_log_likelihood(likelihood, prior(500, 1, 1), Schedule(100, 3))
    assert found.log_px.item() == pytest.approx(exact, abs=0.1)


# The schedule


def test_the_schedule_is_a_sigmoid_from_prior_to_posterior() -> None:
    found = sigmoid_schedule(8)
    low, high = 1 / (1 + math.exp(4)), 1 / (1 + math.exp(-4))
    wanted = [(1 / (1 + math.exp(4 - t)) - low) / (high - low) for t in range(9)]
    assert found == pytest.approx(wanted, abs=1e-12)
    assert (found[0], found[4], found[8]) == (0.0, 0.5, 1.0)


def test_a_path_of_one_temperature_jumps() -> None:
    assert sigmoid_schedule(1) == [0.0, 1.0]


@pytest.mark.parametrize("sigma", [0.003, 0.03, 0.3])
def test_step_sizes_are_those_that_each_image_needs(sigma: float) -> None:
    # Of two images, the second wants finer steps by half; alone, each is given the same.
    scale = sigma * torch.tensor([[1.0], [0.5]], dtype=torch.float64)
    x = torch.zeros(2, 3, dtype=torch.float64)
    joint = Joint(StandardNormal(3), lambda z: Normal(z, scale).log_prob(x).sum(-1))
    steps = annealing._scout(joint, x, sigmoid_schedule(200), Schedule(200, 3))
    assert len(steps) == 199
    assert (steps[-1][0] / steps[-1][1]).item() == pytest.approx(2, rel=0.4)
    assert 0.5 < (steps[-1][0] / sigma).item() < 2.5  # a Gaussian's leapfrog is unstable beyond 2 sigma
    found = annealed_log_likelihood(lambda z: Normal(z, scale).log_prob(x).sum(-1), prior(16, 2, 3), Schedule(200, 3))
    assert 0.5 < found.acceptance.min().item() <= found.acceptance.max().item() < 0.9


@pytest.mark.parametrize("temperatures", [2, 3, 199, 200, 201, 202, 450])
def test_every_move_has_its_step_size(temperatures: int) -> None:
    moves: list[int] = []

    def log_likelihood(z: Tensor) -> Tensor:
        moves.append(len(z))
        return -z.square().sum(-1)

    schedule = Schedule(temperatures, 2)
    annealed_log_likelihood(log_likelihood, prior(7, 1, 1), schedule)
    assert moves.count(7) == 1 + 2 * (temperatures - 1)
    stops = math.ceil((temperatures - 1) / math.ceil(temperatures / annealing.VISITS))
    assert moves.count(annealing.SCOUTS) == 1 + 2 * stops
    assert len(moves) == annealing.evaluations(schedule)


def test_moves_keep_the_distribution() -> None:
    def log_likelihood(z: Tensor) -> Tensor:
        return Normal(z, 0.5).log_prob(torch.ones(1)).sum(-1)

    joint = Joint(StandardNormal(1), log_likelihood)
    here = annealing._look(joint, 0.8 + 0.2**0.5 * prior(20_000, 1, 1))
    step = torch.full((1, 1), 0.85, dtype=torch.float64)  # coarse enough for the Metropolis correction to matter
    for _ in range(20):
        here, acceptance = annealing._move(joint, here, 1.0, step, 2)
    # N(0, 1) times N(1; z, 1/4): a mean of 4/5, a variance of 1/5.
    assert here.z.mean().item() == pytest.approx(0.8, abs=0.015)
    assert here.z.var().item() == pytest.approx(0.2, abs=0.01)
    assert acceptance.item() < 0.9


# What can go wrong


@pytest.mark.parametrize("bad", [math.nan, -math.inf, math.inf])
def test_latents_of_no_finite_likelihood_are_never_taken(bad: float) -> None:
    # The likelihood is 1 on one side: the integral of a normal density from -1 on, 0.8413.
    def log_likelihood(z: Tensor) -> Tensor:
        return torch.where(z > -1, 0 * z, bad * z.abs()).sum(-1)

    found = annealed_log_likelihood(log_likelihood, prior(4_000, 1, 1), Schedule(10, 3))
    assert found.log_px.item() == pytest.approx(math.log(0.8413), abs=0.05)
    assert 0 < found.acceptance.item() < 1
    back = reverse_log_likelihood(log_likelihood, torch.zeros(1, 1), 100, Schedule(10, 3))
    assert back.log_px.item() == pytest.approx(0, abs=1e-12)


def test_gradients_without_end_do_not_spoil_the_chains() -> None:
    def log_likelihood(z: Tensor) -> Tensor:
        return torch.where(z.abs() < 2, -1e30 * z.square().clamp_max(1e-30), -math.inf).sum(-1)

    found = annealed_log_likelihood(log_likelihood, torch.randn(200, 3, 2), Schedule(10, 5))
    assert found.log_px.isfinite().all()


def test_an_impossible_image_has_no_likelihood_and_no_effective_chain() -> None:
    impossible = torch.tensor([0.0, -math.inf])
    found = annealed_log_likelihood(lambda z: 0 * z.sum(-1) + impossible, torch.randn(8, 2, 3), SHORT)
    assert found.log_px.tolist() == [pytest.approx(0, abs=1e-6), -math.inf]
    assert found.effective_chains.tolist() == [pytest.approx(8), 0]


def test_latents_that_cannot_have_made_their_image_are_refused() -> None:
    impossible = torch.tensor([0.0, -math.inf, math.nan])
    with pytest.raises(NonFiniteError) as error:
        reverse_log_likelihood(lambda z: z.sum(-1) + impossible, torch.zeros(3, 2), 4, SHORT)
    assert str(error.value) == (
        "reverse annealing: wanted latents that their images were drawn with, found 2 of 3 where log p(x|z) is not "
        "finite; draw z from the prior, and x from the likelihood of that z"
    )


@pytest.mark.parametrize("log_px", [-1e4, 1e4])
def test_a_likelihood_that_no_float_holds_is_estimated(log_px: float) -> None:
    found = annealed_log_likelihood(lambda z: 0 * z.sum(-1) + log_px, torch.randn(4, 1, 2), SHORT)
    assert found.log_px.item() == pytest.approx(log_px, rel=1e-9)


@pytest.mark.parametrize("trainable", [True, False])
def test_weights_receive_no_gradient_and_results_carry_none(trainable: bool) -> None:
    model = Binary().requires_grad_(trainable)
    z, x = model.images(3)
    with torch.no_grad():
        lower = annealed_log_likelihood(model.likelihood(x), prior(2, 3, 10), SHORT)
    upper = reverse_log_likelihood(model.likelihood(x), z, 2, SHORT)
    assert [weight.grad for weight in model.parameters()] == [None] * 4
    for found in (lower, upper):
        assert not any(values.requires_grad for values in vars(found).values())
    assert not z.requires_grad


# Streams and chunks


def test_a_seed_gives_the_same_numbers() -> None:
    model = Binary()
    z, x = model.images(3)

    def found(seed: int) -> list[float]:
        with random_stream(seed, "a"):
            lower = annealed_log_likelihood(model.likelihood(x), prior(2, 3, 10), SHORT)
            upper = reverse_log_likelihood(model.likelihood(x), z, 2, SHORT)
        return [*lower.log_px.tolist(), *upper.log_px.tolist()]

    assert found(1) == found(1)
    assert found(1) != found(2)


@pytest.mark.parametrize(
    ("at_once", "sizes"), [(1, [1] * 5), (47, [1] * 5), (48, [2, 2, 1]), (100, [4, 1]), (1_000, [5])]
)
def test_images_are_cut_by_what_the_decoder_puts_out(
    at_once: int, sizes: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(annealing, "NUMBERS_AT_ONCE", at_once)
    x = torch.arange(20.0).reshape(5, 1, 2, 2)
    parts = list(image_chunks(x, chains=3, outputs=2))  # 24 numbers for each image
    assert [len(part) for part in parts] == sizes
    assert torch.equal(torch.cat(parts), x)


def test_no_images_are_cut_into_no_chunks() -> None:
    assert list(image_chunks(torch.zeros(0, 1, 2, 2), chains=3, outputs=1)) == []


def test_cutting_changes_the_estimates_by_their_noise_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    _, x = linear_images(20)
    monkeypatch.setattr(annealing, "NUMBERS_AT_ONCE", 7 * 64 * 4)
    parts = [
        annealed_log_likelihood(linear_likelihood(part), prior(64, len(part), 3), Schedule(150, 3))
        for part in image_chunks(x, chains=64, outputs=1)
    ]
    found = concatenate(parts)
    assert [len(part.log_px) for part in parts] == [7, 7, 6]
    torch.testing.assert_close(found.log_px, linear_evidence(x), rtol=0, atol=0.3)
    assert found.effective_chains.tolist() == torch.cat([part.effective_chains for part in parts]).tolist()
    assert found.acceptance.tolist() == torch.cat([part.acceptance for part in parts]).tolist()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_chains_stay_on_the_device_of_their_start() -> None:
    x = torch.zeros(2, 3, device="cuda")
    found = annealed_log_likelihood(
        lambda z: Normal(z, 0.5).log_prob(x).sum(-1), torch.randn(64, 2, 3, device="cuda"), Schedule(100, 3)
    )
    assert found.log_px.device.type == "cuda"
    wanted = Normal(0.0, 1.25**0.5).log_prob(torch.zeros(3, dtype=torch.float64)).sum().item()
    assert found.log_px.tolist() == pytest.approx([wanted] * 2, abs=0.1)


def mixed_vae() -> tuple[VAE, MixtureSameFamily]:
    """The linear model under a prior of two far components, and its p(x)."""
    model = linear_vae()
    means = torch.tensor([[2.0, -1.0, 0.5], [-2.0, 1.0, 0.0]], dtype=torch.float64)
    log_variances = torch.tensor([[0.3, 0.5, 0.2], [1.5, 0.4, 1.0]], dtype=torch.float64).log()
    weights = torch.tensor([0.3, 0.7], dtype=torch.float64)
    model.prior = Settled(Components(means, log_variances, weights.log()))
    covariances = LOADINGS @ log_variances.exp().diag_embed() @ LOADINGS.T + SIGMA**2 * torch.eye(
        4, dtype=torch.float64
    )
    return model, MixtureSameFamily(Categorical(weights), MultivariateNormal(means @ LOADINGS.T + OFFSET, covariances))


def test_chains_and_importance_samples_know_the_prior_of_the_model() -> None:
    model, evidence = mixed_vae()
    z = model.prior.sample(torch.empty(40, 3, dtype=torch.float64))
    x = (z @ LOADINGS.T + OFFSET + SIGMA * torch.randn(40, 4, dtype=torch.float64)).unflatten(1, SHAPE)
    exact = evidence.log_prob(x.flatten(1))
    joint = Joint(model.prior, lambda z: model.likelihood.log_prob(each_sample(model.decoder, z), x))
    start = model.prior.sample(torch.empty(16, 40, 3, dtype=torch.float64))
    lower = annealing.annealed_log_likelihood(joint, start, LONG).log_px
    upper = annealing.reverse_log_likelihood(joint, z, 16, LONG).log_px
    weight = (lower - exact).exp()  # whose mean is 1, whatever the chains
    assert weight.mean().item() == pytest.approx(1, abs=5 * standard_error(weight))
    assert (lower - exact).abs().mean().item() < 0.2
    assert -0.02 < (upper - lower).mean().item() < 0.2
    # The posterior of the standard prior is another one, but wide enough to weigh.
    nll = importance(model, [Seen(x)], 20_000).nll
    assert (nll + exact).abs().mean().item() < 0.1
