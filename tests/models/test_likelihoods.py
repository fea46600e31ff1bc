import itertools
import math
from collections.abc import Callable, Sequence
from statistics import NormalDist
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import small_section
from torch import Tensor, nn

from reparam.config import ModelConfig
from reparam.config.model import PixelGaussianConfig
from reparam.errors import ParamsError
from reparam.models.build import build_model
from reparam.models.draw import Likelihood
from reparam.models.likelihoods import LIKELIHOODS, is_density
from reparam.models.logistic import LOG_SCALE
from reparam.models.ranges import LOG_SIGMA

SHAPE = (2, 1, 2)  # (C, H, W), small enough to visit every image
# Every black and white image of that shape.
IMAGES = torch.tensor(list(itertools.product([0.0, 1.0], repeat=math.prod(SHAPE)))).unflatten(1, SHAPE)
GREYS = torch.tensor([0, 1, 77, 200, 254, 255, 128, 3]).reshape(2, *SHAPE) / 255  # two images with both ends


def model_config(name: str, **changes: Any) -> ModelConfig:
    """A mixture of three, so that tests need not go through five; nothing else differs from what we ship."""
    return small_section("model", **{"likelihood": name, "components": 3} | changes)


def make(name: str, **changes: Any) -> Likelihood:
    return LIKELIHOODS[name](*model_config(name, **changes).arguments(name))


# log p(pixel | block of parameters, outputs) from the definition; a new likelihood needs its line here.
Reference = Callable[[Any, Sequence[float], float], float]


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def softplus(x: float) -> float:
    return math.log1p(math.exp(x))


def bounded(x: float, bounds: tuple[float, float] = LOG_SIGMA) -> float:
    low, high = bounds
    return low + softplus(high - softplus(high - x) - low)


def link(config: PixelGaussianConfig, x: float) -> float:
    return {"linear": x, "sigmoid": sigmoid(x)}[config.mean]


def bernoulli(white: float, pixel: float) -> float:
    return pixel * math.log(white) + (1 - pixel) * math.log(1 - white)


def continuous_bernoulli_constant(white: float) -> float:
    return 2 * math.atanh(1 - 2 * white) / (1 - 2 * white)  # Loaiza-Ganem & Cunningham 2019, eq. 8


def laplace(mean: float, scale: float, pixel: float) -> float:
    return math.log(math.exp(-abs(pixel - mean) / scale) / (2 * scale))


def logistics(numbers: Sequence[float], pixel: float) -> float:
    count = len(numbers) // 3
    weights = [math.exp(logit) for logit in numbers[:count]]
    total = 0.0
    for weight, centre, log_scale in zip(weights, numbers[count : 2 * count], numbers[2 * count :], strict=True):
        scale = math.exp(bounded(log_scale, LOG_SCALE))
        above = 1.0 if pixel == 1 else sigmoid((pixel + 1 / 510 - centre) / scale)
        below = 0.0 if pixel == 0 else sigmoid((pixel - 1 / 510 - centre) / scale)
        total += weight / sum(weights) * (above - below)
    return math.log(total)


REFERENCES: dict[str, Reference] = {
    "bernoulli": lambda _, o, x: bernoulli(sigmoid(o[0]), x),
    "continuous_bernoulli": lambda _, o, x: (
        bernoulli(sigmoid(o[0]), x) + math.log(continuous_bernoulli_constant(sigmoid(o[0])))
    ),
    "gaussian": lambda c, o, x: math.log(NormalDist(link(c, o[0]), c.sigma).pdf(x)),
    "gaussian_learned": lambda c, o, x: math.log(NormalDist(link(c, o[0]), c.sigma).pdf(x)),  # as it starts
    "gaussian_per_pixel": lambda c, o, x: math.log(NormalDist(link(c, o[0]), math.exp(bounded(o[1]))).pdf(x)),
    "laplace": lambda c, o, x: laplace(link(c, o[0]), c.sigma / math.sqrt(2), x),
    "discretised_logistic": lambda _, o, x: logistics(o, x),
    "logistic_mixture": lambda _, o, x: logistics(o, x),
}
every_likelihood = pytest.mark.parametrize("name", LIKELIHOODS)
every_link = pytest.mark.parametrize("link", ["linear", "sigmoid"])


def some_output(likelihood: Likelihood, *batch: int, seed: int = 0) -> Tensor:
    channels, height, width = SHAPE
    generator = torch.Generator().manual_seed(seed)
    return 2 * torch.randn(*batch, likelihood.outputs * channels, height, width, generator=generator)


def some_targets(likelihood: Likelihood) -> Tensor:
    return IMAGES[[6, 13]] if likelihood.needs_binary else GREYS


def images_and_volumes(likelihood: Likelihood) -> tuple[Tensor, Tensor]:
    """Every image of one pixel, or a fine grid of them where pixels are real, and the volume that each represents."""
    if likelihood.needs_binary:
        pixels, volumes = torch.tensor([0.0, 1.0], dtype=torch.float64), torch.ones(2, dtype=torch.float64)
    elif likelihood.is_discrete:
        pixels, volumes = torch.arange(256, dtype=torch.float64) / 255, torch.ones(256, dtype=torch.float64)
    elif likelihood.needs_unit and not hasattr(likelihood, "link"):  # a link bounds the mean alone
        pixels, volumes = gauss_legendre()
    else:
        # Steps of 0.0008 see the smallest sigma, 0.0025; 64 is 8 of the largest, 7.4.
        pixels = torch.linspace(-64, 64, 160_001, dtype=torch.float64)
        volumes = torch.full_like(pixels, 128 / 160_000)
    return pixels.reshape(-1, 1, 1, 1), volumes


def gauss_legendre() -> tuple[Tensor, Tensor]:
    """Points in [0, 1] and their weights."""
    points, weights = np.polynomial.legendre.leggauss(100)
    return torch.from_numpy((points + 1) / 2), torch.from_numpy(weights / 2)


def one_pixel(likelihood: Likelihood, seed: int) -> Tensor:
    """An output of one pixel; seed 0 gives zeros alone."""
    scale = 0 if seed == 0 else 2
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(likelihood.outputs, 1, 1, generator=generator, dtype=torch.float64)


@every_likelihood
@every_link
@pytest.mark.parametrize("seed", range(4))
def test_probabilities_of_all_images_sum_to_one(name: str, link: str, seed: int) -> None:
    likelihood = make(name, mean=link)
    images, volumes = images_and_volumes(likelihood)
    probabilities = likelihood.log_prob(one_pixel(likelihood, seed), images).exp()
    assert probabilities.shape == (len(images),)
    assert (probabilities * volumes).sum().item() == pytest.approx(1, abs=3e-6)


@every_likelihood
@every_link
@pytest.mark.parametrize("seed", range(4))
def test_mean_is_the_probability_weighted_image(name: str, link: str, seed: int) -> None:
    likelihood = make(name, mean=link)
    images, volumes = images_and_volumes(likelihood)
    single = one_pixel(likelihood, seed)
    weighted = (likelihood.log_prob(single, images).exp() * volumes * images.flatten()).sum().item()
    # The mean of a discrete one is that before it is rounded to grey levels.
    tolerance = 1 / 510 if likelihood.is_discrete else 1e-6
    assert likelihood.mean(single).shape == (1, 1, 1)
    assert likelihood.mean(single).item() == pytest.approx(weighted, abs=tolerance)


@every_likelihood
def test_sigma_is_the_deviation_of_all_pixels_or_they_have_no_common_one(name: str) -> None:
    likelihood = make(name)
    deviations = likelihood.deviation(some_output(likelihood))
    low, high = deviations.min().item(), deviations.max().item()
    assert (low == high) == (likelihood.sigma is not None)
    assert likelihood.sigma in (None, pytest.approx(low))


@every_likelihood
@every_link
@pytest.mark.parametrize("seed", range(3))
def test_log_prob_is_the_definition_summed_over_pixels(name: str, link: str, seed: int) -> None:
    config = model_config(name, mean=link)
    likelihood = LIKELIHOODS[name](*config.arguments(name))
    # Half as far out, where the densities of the references are no underflows yet.
    outputs, targets = some_output(likelihood, 2, seed=seed) / 2, some_targets(likelihood)
    numbers = outputs.unflatten(1, (likelihood.outputs, SHAPE[0])).flatten(2).mT.tolist()  # of each image, of its pixel
    wanted = [
        sum(
            REFERENCES[name](getattr(config, name, None), *pair)
            for pair in zip(of_image, target.flatten().tolist(), strict=True)
        )
        for of_image, target in zip(numbers, targets, strict=True)
    ]
    torch.testing.assert_close(likelihood.log_prob(outputs, targets), torch.tensor(wanted), rtol=2e-5, atol=2e-5)


@every_likelihood
def test_every_sample_is_scored_against_its_own_image(name: str) -> None:
    likelihood = make(name)
    output, target = some_output(likelihood, 3, 2), some_targets(likelihood)  # (K, B, ...) and (B, ...)
    together = likelihood.log_prob(output, target)
    one_by_one = [[likelihood.log_prob(output[k, b], target[b]).item() for b in range(2)] for k in range(3)]
    torch.testing.assert_close(together.detach(), torch.tensor(one_by_one))


@every_likelihood
def test_each_channel_has_its_own_mean(name: str) -> None:
    likelihood = make(name)
    output = some_output(likelihood, 3, 2)
    split = output.unflatten(2, (likelihood.outputs, SHAPE[0]))
    channels = [likelihood.mean(split[:, :, :, channel]) for channel in range(SHAPE[0])]
    torch.testing.assert_close(likelihood.mean(output), torch.cat(channels, dim=2))
    assert likelihood.mean(output).shape == (3, 2, *SHAPE)


@every_likelihood
@every_link
@pytest.mark.parametrize("components", [1, 2, 5, 10])
def test_output_of_a_mean_has_that_mean(name: str, link: str, components: int) -> None:
    likelihood = make(name, mean=link, components=components)
    mean = torch.linspace(0.01, 0.99, 60).reshape(2, 3, 2, 5)  # (B, C, H, W)
    found = likelihood.output_of(mean)
    assert found.shape == (2, 3 * likelihood.outputs, 2, 5)
    torch.testing.assert_close(likelihood.mean(found), mean, rtol=0, atol=2e-6)


@every_likelihood
@every_link
def test_output_of_a_black_or_white_mean_is_finite_and_close(name: str, link: str) -> None:
    likelihood = make(name, mean=link)
    mean = torch.tensor([0.0, 1.0]).reshape(1, 1, 2)
    found = likelihood.output_of(mean)
    assert found.isfinite().all()
    torch.testing.assert_close(likelihood.mean(found), mean, rtol=0, atol=1.01e-3)  # clipped there


@every_likelihood
@every_link
def test_log_prob_and_gradients_are_finite_at_extreme_outputs(name: str, link: str) -> None:
    likelihood = make(name, mean=link)
    generator = torch.Generator().manual_seed(0)
    signs = torch.randint(0, 2, (64, likelihood.outputs, 1, 1), generator=generator) * 2 - 1
    for pixel in [0.0, 1.0] if likelihood.needs_binary else [0.0, 1.0, 128 / 255]:
        numbers = (200.0 * signs).requires_grad_()
        log_prob = likelihood.log_prob(numbers, torch.full((64, 1, 1, 1), pixel))
        weights = [numbers, *(likelihood.parameters() if isinstance(likelihood, nn.Module) else [])]
        gradients = torch.autograd.grad(log_prob.sum(), weights)
        assert log_prob.isfinite().all()
        assert all(gradient.isfinite().all() for gradient in gradients)
        assert likelihood.mean(numbers).isfinite().all()


@every_likelihood
@every_link
def test_gradients_are_the_finite_differences(name: str, link: str) -> None:
    likelihood = make(name, mean=link)
    targets = some_targets(likelihood).double()
    # Doubles, and moderate outputs: finite differences have few digits of a density that is nearly 0.
    numbers = (0.3 * some_output(likelihood, 2).double()).requires_grad_()
    assert torch.autograd.gradcheck(likelihood.log_prob, (numbers, targets))


def test_a_bernoulli_scores_grey_pixels_by_their_cross_entropy() -> None:
    output, target = torch.tensor([0.3, -1.2]).reshape(1, 1, 2), torch.tensor([0.25, 0.9]).reshape(1, 1, 2)
    wanted = bernoulli(sigmoid(0.3), 0.25) + bernoulli(sigmoid(-1.2), 0.9)
    assert make("bernoulli").log_prob(output, target).item() == pytest.approx(wanted, rel=1e-6)


@pytest.mark.parametrize(
    ("logit", "target", "log_probability", "gradient"),
    [(200.0, 1.0, 0.0, 0.0), (200.0, 0.0, -200.0, -1.0), (-200.0, 1.0, -200.0, 1.0), (-200.0, 0.0, 0.0, 0.0)],
)
def test_a_bernoulli_is_exact_at_extreme_logits(
    logit: float, target: float, log_probability: float, gradient: float
) -> None:
    output = torch.full((1, 1, 1), logit, requires_grad=True)
    found = make("bernoulli").log_prob(output, torch.full((1, 1, 1), target))
    found.backward()
    assert output.grad is not None
    assert (found.item(), output.grad.item()) == (log_probability, gradient)


def test_a_bernoulli_mean_is_the_sigmoid() -> None:
    output = torch.tensor([-200.0, -math.log(3), 0.0, 200.0]).reshape(1, 2, 2)
    torch.testing.assert_close(make("bernoulli").mean(output).flatten(), torch.tensor([0.0, 0.25, 0.5, 1.0]))


@pytest.mark.parametrize("white", [0.01, 0.3, 0.5, 0.9])
def test_the_continuous_bernoulli_is_normalised_by_its_integral(white: float) -> None:
    points, weights = gauss_legendre()
    integral = (white**points * (1 - white) ** (1 - points) * weights).sum().item()
    pixel, logit = torch.full((1, 1, 1), 0.7), torch.full((1, 1, 1), math.log(white / (1 - white)))
    found = make("continuous_bernoulli").log_prob(logit, pixel).item() - bernoulli(white, 0.7)
    assert found == pytest.approx(-math.log(integral), abs=2e-6)
    if white != 0.5:
        assert math.log(continuous_bernoulli_constant(white)) == pytest.approx(-math.log(integral), abs=1e-12)


NEAR_ZERO = [0.0, 1e-8, -1e-8, 0.049, -0.5, 0.999, -0.999, 0.9999999, 1.0000001, 1.001, -1.001, -3.0]


def log_normaliser(output: float) -> float:
    points, weights = gauss_legendre()
    return math.log(((output * points).exp() * weights).sum().item())


@pytest.mark.parametrize("output", NEAR_ZERO)
@pytest.mark.parametrize("pixel", [0.0, 0.3, 1.0])
def test_the_continuous_bernoulli_is_exact_around_zero(output: float, pixel: float) -> None:
    number = torch.full((1, 1, 1), output, requires_grad=True)
    found = make("continuous_bernoulli").log_prob(number, torch.full((1, 1, 1), pixel))
    found.backward()
    slope = pixel - (log_normaliser(output + 1e-4) - log_normaliser(output - 1e-4)) / 2e-4
    assert found.item() == pytest.approx(output * pixel - log_normaliser(output), abs=1e-6)
    assert number.grad is not None
    assert number.grad.item() == pytest.approx(slope, abs=2e-5)  # just beyond the series, where large terms cancel


@pytest.mark.parametrize("output", NEAR_ZERO)
def test_the_continuous_bernoulli_mean_is_exact_around_zero(output: float) -> None:
    points, weights = gauss_legendre()
    weighted = (points * (output * points - log_normaliser(output)).exp() * weights).sum().item()
    found = make("continuous_bernoulli").mean(torch.full((1, 1, 1), output)).item()
    assert found == pytest.approx(weighted, abs=2e-6)


def sigma_of(likelihood: Likelihood, output: Tensor) -> Tensor:
    """Read sigma off the density at the mean, 1 / (sigma sqrt(2 pi)). Shapes: (..., P, 1, 1) -> (...)."""
    return (-likelihood.log_prob(output, likelihood.mean(output))).exp() / math.sqrt(2 * math.pi)


def test_log_sigma_of_each_pixel_stays_within_its_bounds() -> None:
    (low, high), likelihood = LOG_SIGMA, make("gaussian_per_pixel")
    numbers = torch.linspace(-200, 200, 40_001, dtype=torch.float64)
    log_sigma = sigma_of(likelihood, torch.stack([torch.zeros_like(numbers), numbers], 1)[:, :, None, None]).log()
    slopes = log_sigma.diff() / 0.01
    assert log_sigma[0].item() == pytest.approx(low, abs=1e-9)
    # The lower bound is put on top of the upper one and lifts that by softplus(low - high).
    assert log_sigma[-1].item() == pytest.approx(high + softplus(low - high), abs=1e-9)
    assert log_sigma[20_000 - 200].item() == pytest.approx(-2, abs=1e-3)  # as is, in the middle
    # Rising, and steepest in the middle, where each bound is 4 away.
    assert (slopes.min().item(), slopes.max().item()) == pytest.approx((0, sigmoid(4) ** 2), abs=1e-3)
    assert slopes.diff().abs().max().item() < 0.01 * 0.26  # without a kink: the sigmoid is at most as steep as 1/4


def test_a_gradient_leads_back_from_beyond_the_bounds() -> None:
    likelihood, wide = make("gaussian_per_pixel"), torch.tensor([0.0, 8.0]).reshape(2, 1, 1).requires_grad_()
    narrow = torch.tensor([0.0, -12.0]).reshape(2, 1, 1).requires_grad_()
    likelihood.log_prob(wide, torch.zeros(1, 1, 1)).backward()
    likelihood.log_prob(narrow, torch.ones(1, 1, 1)).backward()
    assert wide.grad is not None
    assert narrow.grad is not None
    assert wide.grad[1].item() == pytest.approx(-sigmoid(2.0 - 8.0), rel=1e-2)  # less
    assert narrow.grad[1].item() > 100  # more


@pytest.mark.parametrize("sigma", [0.003, 0.1, 0.5, 1.0, 5.0, 7.0])
def test_a_learned_sigma_starts_where_it_is_set_to(sigma: float) -> None:
    found = sigma_of(make("gaussian_learned", sigma=sigma), torch.zeros(1, 1, 1)).item()
    assert found == pytest.approx(sigma, rel=1e-5)


@pytest.mark.parametrize("sigma", [0.002, 8.0])
def test_a_learned_sigma_cannot_start_beyond_its_bounds(sigma: float) -> None:
    with pytest.raises(ParamsError) as error:
        make("gaussian_learned", sigma=sigma)
    assert str(error.value) == (
        f"params.yaml: model.gaussian_learned.sigma: wanted a number from 0.0025 to 7.39 to start from, found {sigma}"
    )


@pytest.mark.parametrize(
    ("weight", "bound"), [(-200.0, LOG_SIGMA[0]), (200.0, LOG_SIGMA[1] + softplus(LOG_SIGMA[0] - LOG_SIGMA[1]))]
)
def test_a_learned_sigma_stays_within_its_bounds(weight: float, bound: float) -> None:
    likelihood = make("gaussian_learned")
    assert isinstance(likelihood, nn.Module)
    nn.init.constant_(next(likelihood.parameters()), weight)
    assert sigma_of(likelihood, torch.zeros(1, 1, 1)).log().item() == pytest.approx(bound, abs=1e-5)


def test_a_learned_sigma_is_a_weight_of_the_model() -> None:
    model = build_model(model_config("gaussian_learned"), (1, 2, 2))
    assert [name for name in model.state_dict() if "likelihood" in name] == ["likelihood.log_sigma"]
    assert "likelihood.log_sigma" in dict(model.named_parameters())


@pytest.mark.parametrize("rmse", [0.02, 0.3, 2.0])
def test_a_learned_sigma_moves_to_the_error_of_the_mean(rmse: float) -> None:
    likelihood = make("gaussian_learned")
    assert isinstance(likelihood, nn.Module)
    residuals = torch.randn(200, 1, 1, 1, generator=torch.Generator().manual_seed(0))
    residuals *= rmse / residuals.square().mean().sqrt()
    optimizer = torch.optim.Adam(likelihood.parameters(), lr=0.05)
    for _ in range(250):
        optimizer.zero_grad()
        (-likelihood.log_prob(torch.zeros(200, 1, 1, 1), residuals).mean()).backward()
        optimizer.step()
    assert sigma_of(likelihood, torch.zeros(1, 1, 1)).item() == pytest.approx(rmse, rel=1e-3)


@pytest.mark.parametrize("sigma", [0.1, 2.0])
@pytest.mark.parametrize("name", ["gaussian", "laplace", "gaussian_learned"])
def test_sigma_is_the_standard_deviation(name: str, sigma: float) -> None:
    likelihood, output = make(name, sigma=sigma), torch.zeros(1, 1, 1, dtype=torch.float64)
    images, volumes = images_and_volumes(likelihood)
    variance = (likelihood.log_prob(output, images).exp() * volumes * images.flatten().square()).sum().item()
    assert math.sqrt(variance) == pytest.approx(sigma, rel=1e-5)


def test_black_and_white_take_the_tails_of_a_logistic() -> None:
    output, scale = torch.tensor([0.0, 0.3, -1.0]).reshape(3, 1, 1), math.exp(bounded(-1.0, LOG_SCALE))
    black, white = make("discretised_logistic").log_prob(output, torch.tensor([0.0, 1.0]).reshape(2, 1, 1, 1)).tolist()
    assert black == pytest.approx(math.log(sigmoid((1 / 510 - 0.3) / scale)), rel=1e-5)
    assert white == pytest.approx(math.log(1 - sigmoid((1 - 1 / 510 - 0.3) / scale)), rel=1e-5)


def test_a_logistic_far_outside_leaves_the_far_end_what_is_left_of_its_tail() -> None:
    output, scale = torch.tensor([0.0, 20.0, -200.0]).reshape(3, 1, 1), math.exp(LOG_SCALE[0])
    black, white = make("discretised_logistic").log_prob(output, torch.tensor([0.0, 1.0]).reshape(2, 1, 1, 1)).tolist()
    assert black == pytest.approx((1 / 510 - 20) / scale, rel=1e-5)  # log sigmoid(x) is x; a double would be -inf
    assert white == 0


def test_a_pixel_that_is_certain_costs_a_hundredth_of_a_bit() -> None:
    grey = 100 / 255
    output = torch.tensor([0.0, grey, -200.0]).reshape(3, 1, 1)
    found = make("discretised_logistic").log_prob(output, torch.full((1, 1, 1, 1), grey)).item()
    assert 0.008 < -found / math.log(2) < 0.01


def test_a_discretised_logistic_is_a_mixture_of_one() -> None:
    single, mixture = make("discretised_logistic", components=7), make("logistic_mixture", components=1)
    output, mean = some_output(single, 2), GREYS
    assert single.outputs == mixture.outputs == 3
    assert single.log_prob(output, GREYS).tolist() == mixture.log_prob(output, GREYS).tolist()
    assert single.mean(output).tolist() == mixture.mean(output).tolist()
    assert single.output_of(mean).tolist() == mixture.output_of(mean).tolist()


def test_a_mixture_of_equal_components_is_one_of_them() -> None:
    single, mixture = make("discretised_logistic"), make("logistic_mixture", components=4)
    output = some_output(single, 2)
    copies = output.unflatten(1, (3, 1, SHAPE[0])).expand(-1, -1, 4, -1, -1, -1).flatten(1, 3)
    torch.testing.assert_close(mixture.log_prob(copies, GREYS), single.log_prob(output, GREYS))
    torch.testing.assert_close(mixture.mean(copies), single.mean(output))


@pytest.mark.parametrize("name", ["bernoulli", "continuous_bernoulli", "discretised_logistic", "logistic_mixture"])
def test_likelihoods_on_the_unit_interval_ignore_the_link(name: str) -> None:
    likelihood = make(name)
    output, targets = some_output(likelihood, 2), some_targets(likelihood)
    linked = make(name, mean="sigmoid", sigma=3.0)
    assert linked.log_prob(output, targets).tolist() == likelihood.log_prob(output, targets).tolist()
    assert linked.mean(output).tolist() == likelihood.mean(output).tolist()


@every_likelihood
@pytest.mark.parametrize("binarization", ["none", "threshold", "static", "dynamic"])
def test_a_likelihood_is_one_of_binary_pixels_or_of_grey_ones(name: str, binarization: str) -> None:
    likelihood = make(name)
    assert is_density(likelihood, binarization) == (likelihood.needs_binary != (binarization == "none"))


def test_only_a_bernoulli_needs_binary_pixels() -> None:
    assert [name for name in LIKELIHOODS if make(name).needs_binary] == ["bernoulli"]


def test_every_likelihood_has_its_reference() -> None:
    assert list(REFERENCES) == list(LIKELIHOODS)


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 5, 7), (1, 1, 113), (1, 1, 1)])
def test_bernoulli_agrees_with_pixelwise_cross_entropy_and_its_gradients(shape: tuple[int, int, int]) -> None:
    torch.manual_seed(0)
    # Large logits of both signs, zeros, and more pixels than one product may hold.
    output = (torch.randn(2, 3, *shape, dtype=torch.float64) * 20).requires_grad_()
    target = torch.rand(3, *shape, dtype=torch.float64).requires_grad_()
    with torch.no_grad():
        output[0, 0] = 0.0
    wanted = -F.binary_cross_entropy_with_logits(output, target.expand_as(output), reduction="none").sum((-3, -2, -1))
    weights = torch.rand(2, 3, dtype=torch.float64)
    gradients = torch.autograd.grad((wanted * weights).sum(), (output, target))
    found = make("bernoulli").log_prob(output, target)
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)
    for mine, theirs in zip(torch.autograd.grad((found * weights).sum(), (output, target)), gradients, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-12, atol=1e-12)
