"""Choose latents to decode for figures: planes, traversals and straight lines."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

MANY = 1_000  # dimensions whose covariance is still quick to decompose: the time grows with their cube


@dataclass(frozen=True)
class Frame:
    """The middle of the latents, and one unit of each dimension. Shapes: (D,) float64."""

    origin: Tensor
    scale: Tensor
    unit: str
    middle: str  # in words


@dataclass(frozen=True)
class Plane:
    """A plane of latents: an origin, plus multiples of two directions at right angles, one unit long each."""

    origin: Tensor  # (D,)
    directions: Tensor  # (2, D); the second is 0 if there is one direction only
    names: tuple[str, str]  # of the coordinates; "" if there is one direction only
    unit: str

    def latents(self, steps: int, limit: float) -> Tensor:
        """Span a square from -limit to limit, top row first. Shapes: -> (S*S, D)."""
        along = spread(steps, limit)
        x, y = along[None, :, None], along.flip(0)[:, None, None]
        return (self.origin + x * self.directions[0] + y * self.directions[1]).flatten(0, 1)

    def coordinates(self, z: Tensor) -> Tensor:
        """Project latents on the plane; 0 along a direction of no length. Shapes: (N, D) -> (N, 2)."""
        squares = self.directions.square().sum(1)
        return (z - self.origin) @ self.directions.T / torch.where(squares > 0, squares, torch.inf)


def plane_of_dimensions(use: Tensor, frame: Frame) -> Plane:
    """Take the two dimensions in most use. Shapes: use (D,)."""
    numbers = by_use(use)[:2]
    directions = torch.zeros(2, len(use), dtype=torch.float64)
    for direction, number in zip(directions, numbers, strict=False):
        direction[number] = frame.scale[number]
    first, second = [*(f"z{number}" for number in numbers), ""][:2]
    return Plane(frame.origin, directions, (first, second), frame.unit)


@dataclass(frozen=True)
class Components:
    """Principal components, largest variance first, in float64."""

    mean: Tensor  # (D,)
    variances: Tensor  # (D,), or (N,) of N points of very many dimensions
    directions: Tensor  # (D, D), or (N, D): a row of length 1 each, or 0 if it has no variance

    @property
    def plane(self) -> Plane:
        """The plane of the first two, through the mean."""
        directions = torch.zeros(2, len(self.mean), dtype=torch.float64)
        directions[: len(self.directions)] = self.directions[:2] * self.variances[:2, None].sqrt()
        names = ("component 1", "component 2" if len(self.directions) > 1 else "")
        return Plane(self.mean, directions, names, "standard deviations of posterior means")


def principal_components(points: Tensor) -> Components:
    """Find the principal components; with more than MANY dimensions, at most one for each point. Shapes: (N, D)."""
    mean = points.double().mean(0)
    centred = points.double() - mean
    is_wide = centred.shape[1] > max(MANY, len(centred))
    variances, columns = torch.linalg.eigh((centred @ centred.T if is_wide else centred.T @ centred) / len(points))
    rows = F.normalize(columns.T @ centred) if is_wide else columns.T
    return Components(mean, variances.flip(0).clamp_min(0), _pointing_up(rows.flip(0)))


def _pointing_up(directions: Tensor) -> Tensor:
    # The sign of a direction is arbitrary: let its longest part point up.
    longest = directions.gather(1, directions.abs().argmax(1, keepdim=True))
    return directions * longest.sign()


def traverse(frame: Frame, dimensions: list[int], steps: int, limit: float) -> Tensor:
    """Move along one dimension after the other, from -limit to limit units, all others in the middle.

    Shapes: -> (len(dimensions) * steps, D).
    """
    z = frame.origin.repeat(len(dimensions), steps, 1)
    along = spread(steps, limit)
    for row, number in zip(z, dimensions, strict=True):
        row[:, number] += along * frame.scale[number]
    return z.flatten(0, 1)


def spread(steps: int, limit: float) -> Tensor:
    """Place steps between -limit and limit; a middle one is 0 to the last digit. Shapes: -> (steps,)."""
    return limit * (2 * torch.arange(steps, dtype=torch.float64) - (steps - 1)) / (steps - 1)


def interpolate(start: Tensor, end: Tensor, steps: int) -> Tensor:
    """Walk straight from each start to its end. Shapes: (P, D) twice -> (P * steps, D)."""
    share = torch.linspace(0, 1, steps, dtype=start.dtype)[None, :, None]
    return torch.lerp(start[:, None], end[:, None], share).flatten(0, 1)


def choose_dimensions(use: Tensor, active: Tensor, count: int) -> list[int]:
    """Choose active dimensions, the most used first; if none is active, the most used one. Shapes: (D,) twice."""
    ranked = by_use(use)
    return [number for number in ranked if active[number]][:count] or ranked[:1]


def by_use(use: Tensor) -> list[int]:
    """Rank dimensions, largest first, equal ones by their number."""
    ranked: list[int] = torch.argsort(use, descending=True, stable=True).tolist()
    return ranked
