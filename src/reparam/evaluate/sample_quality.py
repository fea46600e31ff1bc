"""Compare generated images with real ones in a feature space: fidelity, variety and the Frechet distance."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from statistics import stdev

import torch
from torch import Tensor

from reparam import runtime
from reparam.data.store import Images, evenly_spaced
from reparam.evaluate.walks import principal_components

PROJECTED = 10_000  # images that the projection is fitted to, at most
EXACT = 1_000  # numbers of an image, at most, for an exact decomposition, which then takes half a second
# Of larger images, Halko et al. 2011, algorithm 4.4; the first 50 components of CIFAR-10's size take two seconds.
OVERSAMPLED, ITERATIONS = 10, 7
RESAMPLES = 20  # for each standard error, which is then off by a sixth itself
RESAMPLED = 400  # images of a kind in each, at most: more images then take no more time


def grey(images: Images) -> Tensor:
    """Return stored images with pixels in [0, 1]. Shapes: (N, C, H, W), unchanged."""
    return torch.from_numpy(images.copy()).float() / 255


@dataclass(frozen=True)
class Projection:
    """Principal components of pixels, not whitened: distances are those of the projected images."""

    mean: Tensor  # (C*H*W,)
    axes: Tensor  # (C*H*W, F)

    def __call__(self, images: Tensor) -> Tensor:
        """Return features. Shapes: (N, C, H, W), on the CPU -> (N, F), float64."""
        rows = max(1, runtime.NUMBERS_AT_ONCE // len(self.mean))
        return torch.cat([(part.flatten(1).double() - self.mean) @ self.axes for part in torch.split(images, rows)])


def fit_projection(images: Images, components: int) -> Projection:
    """Find the principal components of training images, of evenly spaced ones if there are very many.

    There are at most as many components as numbers in an image, and fewer than images.
    Shapes: (N, C, H, W), N > 1.
    """
    assert len(images) > 1, "one image does not vary"
    numbers = images[0].size
    rows = evenly_spaced(len(images), max(2 * components, min(PROJECTED, runtime.NUMBERS_AT_ONCE // numbers)))
    pixels = grey(images[rows]).flatten(1).double()
    count = min(components, numbers, len(rows) - 1)
    if numbers <= EXACT:
        axes = principal_components(pixels).directions.T
    else:
        with runtime.random_stream(0, "projection"):
            axes = torch.pca_lowrank(pixels, min(count + OVERSAMPLED, len(rows)), niter=ITERATIONS)[2]
    return Projection(pixels.mean(0), axes[:, :count])


def pca_quality(real: Tensor, fake: Tensor, neighbours: int) -> dict[str, float]:
    """Compare features of real and of generated images, as a `Projection` returns them.

    Density and coverage are precision and recall with less weight on outliers. All numbers are comparable only between
    equal numbers of images; `metrics.py` says what they mean and which values are best. There are none with fewer than
    two images of a kind. Shapes: (N, F), (M, F).
    """
    if min(len(real), len(fake)) < 2:
        return {}
    found = {**neighbourhoods(real, fake, neighbours), "frechet": frechet(real, fake)}
    return {f"pca_{name}": value for name, value in found.items()}


def standard_errors(real: Tensor, fake: Tensor, neighbours: int) -> dict[str, float]:
    """Estimate how much `pca_quality` would change with other images, drawing from torch's generator.

    From a bootstrap without replacement: of m of n images, drawn again and again, a metric varies sqrt(n / m - 1) times
    as much as that of n images. With replacement, copies of an image would be each other's nearest neighbours. For
    1,000 digits, errors were 1 to 1.7 times the deviation between 30 independent sets; of shares next to 0 or 1 (a
    recall of 0.002, a precision of 0.9999), half to two times.
    Nothing if there are fewer than four images of a kind. Shapes: (N, F), (M, F).
    Source: Shao & Wu 1989 (the jackknife that leaves out many); Politis & Romano 1994.
    """
    share = min(0.5, RESAMPLED / max(len(real), len(fake)))

    def some(points: Tensor) -> Tensor:
        return points[torch.randperm(len(points))[: int(share * len(points))]]

    found = [pca_quality(some(real), some(fake), neighbours) for _ in range(RESAMPLES)]
    return {name: stdev(part[name] for part in found) * math.sqrt(share / (1 - share)) for name in found[0]}


def neighbourhoods(real: Tensor, fake: Tensor, neighbours: int) -> dict[str, float]:
    """Return precision, recall, density and coverage, by balls from each image to its k-th nearest neighbour.

    k is at most the number of other images of a kind. Shapes: (N, F), (M, F), N and M > 1.
    Source: Kynkaanniemi et al. 2019, eq. 1 and 2; Naeem et al. 2020, sec. 3.2.
    """
    real, fake = real.double(), fake.double()
    k = min(neighbours, len(real) - 1, len(fake) - 1)
    real_radius, fake_radius = _radii(real, k), _radii(fake, k)
    in_real_balls = []  # of each generated image: how many real balls hold it
    recalled = covered = torch.zeros(len(real), dtype=torch.bool, device=real.device)
    for part, distance in _distances(fake, real):  # (b, N)
        is_in_real_ball = distance <= real_radius
        in_real_balls.append(is_in_real_ball.sum(1))
        covered = covered | is_in_real_ball.any(0)
        recalled = recalled | (distance <= fake_radius[part, None]).any(0)
    counts = torch.cat(in_real_balls).double()
    return {
        "precision": (counts > 0).double().mean().item(),
        "recall": recalled.double().mean().item(),
        "density": counts.mean().item() / k,
        "coverage": covered.double().mean().item(),
    }


def _radii(points: Tensor, k: int) -> Tensor:
    """Return the distance of each point to its k-th nearest other. Shapes: (N, F) -> (N,)."""
    # The nearest of all is the point itself.
    return torch.cat([d.topk(k + 1, largest=False).values[:, k] for _, d in _distances(points, points)])


def _distances(rows: Tensor, columns: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Cut the matrix of distances into as many rows as memory allows. Shapes: (M, F), (N, F) -> (b, N) each."""
    at_once = max(1, runtime.NUMBERS_AT_ONCE // len(columns))
    for start in range(0, len(rows), at_once):
        part = slice(start, start + at_once)
        # Not by a matrix product, whose rounding could move the neighbour that sets a radius out of the ball.
        yield part, torch.cdist(rows[part], columns, compute_mode="donot_use_mm_for_euclid_dist")


def frechet(real: Tensor, fake: Tensor) -> float:
    """Return the squared Frechet distance of the Gaussians with the features' means and covariances.

    With few images it is too large; with fewer images than features the covariances are singular.
    Shapes: (N, F), (M, F), N and M > 1. Units: those of the features, squared.
    Source: Heusel et al. 2017, eq. 6 (Dowson & Landau 1982).
    """
    root, mean = _root_of_covariance(real.double())
    other_root, other_mean = _root_of_covariance(fake.double())
    # With A = R'R and B = S'S, AB has the eigenvalues of RS'(RS')', whose roots are the singular values of RS'.
    overlap = torch.linalg.svdvals(root @ other_root.T).sum()
    spread = root.square().sum() + other_root.square().sum() - 2 * overlap
    distance = (mean - other_mean).square().sum() + spread.clamp_min(0)
    return float(distance)


def _root_of_covariance(features: Tensor) -> tuple[Tensor, Tensor]:
    """Return R with R'R the covariance, and the mean. Shapes: (N, F) -> (min(N, F), F), (F,)."""
    mean = features.mean(0)
    # From the features themselves: a product of them would lose half of the digits.
    return torch.linalg.qr(features - mean, mode="r").R / (len(features) - 1) ** 0.5, mean
