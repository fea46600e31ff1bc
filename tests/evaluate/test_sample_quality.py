import numpy as np
import pytest
import torch
from numpy.linalg import norm
from scipy.linalg import sqrtm
from torch import Tensor

from reparam import runtime
from reparam.data.store import Images
from reparam.evaluate import sample_quality
from reparam.evaluate.sample_quality import fit_projection, frechet, grey, neighbourhoods, pca_quality, standard_errors


def points(count: int, size: int = 3, seed: int = 0) -> Tensor:
    return torch.randn(count, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def gaussian(mean: Tensor, covariance: Tensor, count: int = 50) -> Tensor:
    """Points whose mean and covariance are these to the last digit."""
    noise = points(count, len(mean))
    white = torch.linalg.solve_triangular(torch.linalg.cholesky(noise.T.cov()), (noise - noise.mean(0)).T, upper=False)
    return white.T @ torch.linalg.cholesky(covariance).T + mean


def brute_force(real: np.ndarray, fake: np.ndarray, k: int) -> dict[str, float]:
    """The definitions, pair by pair."""
    real_radius = [sorted(norm(x - y) for y in real)[k] for x in real]
    fake_radius = [sorted(norm(x - y) for y in fake)[k] for x in fake]
    in_real = np.array([[norm(x - y) <= r for x, r in zip(real, real_radius, strict=True)] for y in fake])
    in_fake = np.array([[norm(x - y) <= r for y, r in zip(fake, fake_radius, strict=True)] for x in real])
    return {
        "precision": in_real.any(1).mean(),
        "recall": in_fake.any(1).mean(),
        "density": in_real.sum() / (k * len(fake)),
        "coverage": in_real.any(0).mean(),
    }


# Neighbourhoods


@pytest.mark.parametrize(("shift", "fakes"), [(0.0, 60), (1.0, 60), (2.0, 25)])
def test_neighbourhoods_are_those_of_their_definition(shift: float, fakes: int) -> None:
    real, fake = points(60), 0.7 * points(fakes, seed=1) + shift
    expected = brute_force(real.numpy(), fake.numpy(), 5)
    assert 0 < expected["coverage"] < 1
    assert neighbourhoods(real, fake, 5) == pytest.approx(expected, abs=1e-15)


def test_neighbourhoods_on_a_line_can_be_counted() -> None:
    real = torch.tensor([[0.0], [1.0], [3.0], [10.0]])  # balls of radius 1, 1, 2, 7
    fake = torch.tensor([[1.5], [4.0], [-5.0]])  # of radius 2.5, 2.5, 6.5
    # 1.5 is in the balls of 1 and 3, 4 in those of 3 and 10, -5 in none; 0, 1 and 3 are in a ball of a fake one.
    found = neighbourhoods(real, fake, 1)
    assert found == {
        "precision": pytest.approx(2 / 3),
        "recall": 0.75,
        "density": pytest.approx(4 / 3),
        "coverage": 0.75,
    }


def test_equal_sets_cover_each_other() -> None:
    real = points(80)
    found = neighbourhoods(real, real[torch.randperm(80, generator=torch.Generator().manual_seed(0))], 5)
    assert (found["precision"], found["recall"], found["coverage"]) == (1, 1, 1)


def test_distant_sets_share_nothing() -> None:
    assert set(neighbourhoods(points(30), points(40) + 100, 5).values()) == {0}


def test_a_single_good_image_over_and_over_is_precise_and_covers_little() -> None:
    real = points(100)
    found = neighbourhoods(real, real[:1].repeat(100, 1), 5)
    assert found["precision"] == 1
    assert found["recall"] == 0.01
    assert 0.01 < found["coverage"] < 0.2


def test_fewer_images_than_neighbours_are_all_neighbours() -> None:
    real, fake = points(4), points(3, seed=1)
    assert neighbourhoods(real, fake, 5) == pytest.approx(brute_force(real.numpy(), fake.numpy(), 2))


@pytest.mark.parametrize("numbers", [1, 60 * 7])
def test_memory_does_not_change_neighbourhoods(numbers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    real, fake = points(60), points(45, seed=1) + 0.5
    whole = neighbourhoods(real, fake, 5)
    monkeypatch.setattr(runtime, "NUMBERS_AT_ONCE", numbers)
    assert neighbourhoods(real, fake, 5) == whole


# Frechet distance


def test_the_frechet_distance_of_independent_features_adds_up() -> None:
    mean, variances = torch.tensor([1.0, -2.0, 0.5]).double(), torch.tensor([4.0, 1.0, 0.25]).double()
    other, others = torch.tensor([0.0, 1.0, 0.5]).double(), torch.tensor([1.0, 9.0, 0.25]).double()
    found = frechet(gaussian(mean, variances.diag()), gaussian(other, others.diag(), count=70))
    assert found == pytest.approx((1 + 9 + 0) + (1 + 4 + 0), rel=1e-12)


def test_the_frechet_distance_needs_the_root_of_a_product() -> None:
    a, b = (points(10, 4, seed).T.cov() for seed in (1, 2))
    mean = torch.zeros(4, dtype=torch.float64)
    expected = (a + b).trace().item() - 2 * np.trace(sqrtm((a @ b).numpy())).real
    assert expected > 0.5
    assert frechet(gaussian(mean, a), gaussian(mean, b)) == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("count", [3, 20, 200])
def test_the_frechet_distance_of_equal_sets_is_nothing(count: int) -> None:
    features = 100 * points(count, 20) @ points(20, 20).T + 1000  # with fewer points than features, too
    assert 0 <= frechet(features, features.flip(0)) < 1e-12 * features.square().sum().item()


def test_the_frechet_distance_is_symmetric() -> None:
    real, fake = points(30, 5), 2 * points(40, 5, seed=1)
    assert frechet(real, fake) == pytest.approx(frechet(fake, real))
    assert frechet(real, fake) > 1


# Features of pixels


def stored(pixels: Tensor, shape: tuple[int, ...]) -> Images:
    """Store numbers around 0 as pixels around medium grey. Shapes: (N, C*H*W) -> (N, C, H, W)."""
    levels = (127.5 + 100 * pixels / pixels.abs().max()).round()
    images: Images = levels.to(torch.uint8).reshape(-1, *shape).numpy()
    return images


def noise(count: int, shape: tuple[int, ...]) -> Images:
    return np.random.default_rng(0).integers(0, 256, (count, *shape), dtype=np.uint8)


def test_stored_pixels_are_shares_of_white() -> None:
    torch.testing.assert_close(grey(np.array([[0, 51, 255]], np.uint8)), torch.tensor([[0.0, 0.2, 1.0]]))


def test_the_projection_finds_where_images_vary() -> None:
    draws = torch.Generator().manual_seed(0)
    # Two directions at right angles, of whole numbers, so that images show nothing else when they are stored.
    directions = torch.tensor([[1.0, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1], [1.0, -1, 1, -1, 1, -1, 1, -1, 1, -1, 1, -1]])
    steps = (torch.randn(200, 2, generator=draws) * torch.tensor([12.0, 4.0])).round().clamp(-60, 60)
    images = (127 + steps @ directions).to(torch.uint8).reshape(200, 3, 2, 2).numpy()
    features = fit_projection(images, 2)(grey(images))
    assert features.shape == (200, 2)
    assert features.dtype == torch.float64
    torch.testing.assert_close(features.mean(0), torch.zeros(2).double(), rtol=0, atol=1e-6)
    # Nothing is left out and nothing whitened: distances are those of the images.
    torch.testing.assert_close(torch.cdist(features, features), torch.cdist(*[grey(images).flatten(1).double()] * 2))
    assert features.var(0).tolist() == sorted(features.var(0).tolist(), reverse=True)


@pytest.mark.parametrize(
    ("images", "shape", "expected"), [(100, (1, 8, 8), 50), (100, (1, 2, 3), 6), (5, (1, 8, 8), 4)]
)
def test_there_are_fewer_components_where_there_is_less_to_see(
    images: int, shape: tuple[int, ...], expected: int
) -> None:
    pictures = noise(images, shape)
    assert fit_projection(pictures, 50)(grey(pictures)).shape == (images, expected)


def test_the_projection_is_the_same_every_time_and_draws_nothing_from_torch() -> None:
    pictures = noise(60, (1, 40, 40))
    state = torch.get_rng_state()
    first, again = (fit_projection(pictures, 10)(grey(pictures)) for _ in range(2))
    assert torch.equal(first, again)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("side", [12, 40])  # below and above the size up to which all components are found
def test_the_projection_is_that_of_the_singular_vectors(side: int) -> None:
    draws = torch.Generator().manual_seed(0)
    strength = torch.arange(1, side * side + 1) ** -0.8  # about as in natural images
    mixing = torch.linalg.qr(torch.randn(side * side, side * side, generator=draws)).Q
    images = stored((torch.randn(300, side * side, generator=draws) * strength) @ mixing, (1, side, side))
    pixels = grey(images).flatten(1).double()
    exact = (pixels - pixels.mean(0)) @ torch.linalg.svd(pixels - pixels.mean(0)).Vh[:20].T
    features = fit_projection(images, 20)(grey(images))
    torch.testing.assert_close(torch.cdist(features, features), torch.cdist(exact, exact), rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("bound", ["memory", "time"])
def test_evenly_spaced_images_are_fitted_where_there_are_very_many(bound: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pictures = noise(90, (1, 4, 4))
    if bound == "memory":
        monkeypatch.setattr(runtime, "NUMBERS_AT_ONCE", 30 * 16)
    else:
        monkeypatch.setattr(sample_quality, "PROJECTED", 30)
    bounded = fit_projection(pictures, 3)
    monkeypatch.undo()
    third = fit_projection(pictures[::3], 3)
    torch.testing.assert_close(bounded.mean, third.mean)
    torch.testing.assert_close(bounded(grey(pictures)), third(grey(pictures)))


def test_images_that_are_all_the_same_have_features_without_a_warning() -> None:
    same = np.full((5, 1, 2, 2), 128, np.uint8)
    features = fit_projection(same, 50)(grey(same))
    assert features.abs().max().item() < 1e-6


# All of them


def test_names_say_in_which_features_images_were_compared() -> None:
    real = points(60)
    found = pca_quality(real, real, 5)
    assert list(found) == ["pca_precision", "pca_recall", "pca_density", "pca_coverage", "pca_frechet"]
    assert found["pca_density"] == pytest.approx(6 / 5)  # five neighbours each, and oneself
    assert found["pca_frechet"] == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize(("real", "fake"), [(1, 50), (50, 1), (0, 0)])
def test_fewer_than_two_images_cannot_be_compared(real: int, fake: int) -> None:
    assert pca_quality(points(real), points(fake), 5) == {}


# Standard errors


def repeats(shift: float, images: int, count: int) -> list[tuple[Tensor, Tensor]]:
    """Independent sets of points, and of shifted and shrunken ones."""
    return [(points(images, 4, 2 * i), 0.8 * points(images, 4, 2 * i + 1) + shift) for i in range(count)]


@pytest.mark.parametrize("resampled", [400, 20])  # half of the images, or a tenth
def test_standard_errors_are_the_deviation_between_independent_sets(
    resampled: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sample_quality, "RESAMPLED", resampled)
    sets = repeats(0.4, 200, 60)
    found = [pca_quality(*one, 5) for one in sets]
    with runtime.random_stream(0, "test"):
        errors = [standard_errors(*one, 5) for one in sets[:10]]
    for name in found[0]:
        deviation = np.std([one[name] for one in found], ddof=1)
        error = np.mean([one[name] for one in errors])
        assert 0.7 < error / deviation < 1.8, name


def test_standard_errors_shrink_with_the_root_of_the_number_of_images() -> None:
    with runtime.random_stream(0, "test"):
        few, many = (
            np.mean([standard_errors(*one, 5)["pca_frechet"] for one in repeats(1.0, images, 8)])
            for images in (200, 800)
        )
    assert few / many == pytest.approx(2, rel=0.2)


@pytest.mark.parametrize(("real", "fake"), [(3, 50), (50, 3)])
def test_fewer_than_four_images_have_no_standard_errors(real: int, fake: int) -> None:
    assert standard_errors(points(real), points(fake), 5) == {}
