"""Render colour images of balls and boxes on a floor, for want of photographs: no two scenes are alike.

    python recipes/scenes.py data/scenes --count 4000

Shapes, colours, patterns, places, camera, sky and light are drawn again for each; one ray of light a pixel part, with
shadows and highlights.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
import typer
from PIL import Image

Array = npt.NDArray[np.float64]
PARTS = 2  # of each side of a pixel, whose mean is its colour
FAR = 1e9
SHADE = 0.35  # of the light that reaches what lies in shadow


@dataclass(frozen=True)
class Solid:
    """A ball, or a box that is turned about its vertical axis; standing on the floor at height 0."""

    is_box: bool
    middle: Array  # (3,)
    sides: Array  # (3,) half of each; of a ball, its radius
    turn: float
    colours: Array  # (2, 3)
    stripes: float  # to the unit; 0: of one colour
    gloss: float

    def hit(self, start: Array, way: Array) -> tuple[Array, Array]:
        """Return how far along each ray it is met, FAR if never, and which way its surface looks there.

        Shapes: (N, 3) twice -> (N,), (N, 3).
        """
        start, way = self._own(start - self.middle), self._own(way)
        if not self.is_box:
            along = (start * way).sum(1)
            inside = along**2 - (start**2).sum(1) + self.sides[0] ** 2
            distance = -along - np.sqrt(np.maximum(inside, 0))
            is_met = (inside > 0) & (distance > 1e-4)
            return np.where(is_met, distance, FAR), self._back((start + distance[:, None] * way) / self.sides[0])
        way = np.where(np.abs(way) < 1e-9, 1e-9, way)
        near, far = (np.sort([(-self.sides - start) / way, (self.sides - start) / way], axis=0)).astype(float)
        axis, distance = near.argmax(1), near.max(1)
        is_met = (distance < far.min(1)) & (distance > 1e-4)
        normal = np.zeros_like(way)
        rows = np.arange(len(way))
        normal[rows, axis] = -np.sign(way[rows, axis])
        return np.where(is_met, distance, FAR), self._back(normal)

    def colour(self, points: Array) -> Array:
        """Return the colour of its surface. Shapes: (N, 3) -> (N, 3)."""
        own = self._own(points - self.middle)
        is_second = np.sin(2 * np.pi * self.stripes * (own[:, 1] + 0.5 * own[:, 0])) > 0
        return self.colours[is_second.astype(int)]

    def _own(self, vectors: Array) -> Array:
        return vectors @ self._rotation()

    def _back(self, vectors: Array) -> Array:
        return vectors @ self._rotation().T

    def _rotation(self) -> Array:
        cos, sin = np.cos(self.turn), np.sin(self.turn)
        return np.array([[cos, 0, sin], [0, 1, 0], [-sin, 0, cos]])


@dataclass(frozen=True)
class Scene:
    """What is seen, by which light, from where."""

    solids: tuple[Solid, ...]
    floor: Array  # (2, 3) colours of its tiles
    sky: Array  # (2, 3) at the horizon and above
    light: Array  # (3,) towards it
    warmth: Array  # (3,) its colour
    eye: Array  # (3,)

    @classmethod
    def drawn(cls, random: np.random.Generator) -> "Scene":
        """Draw a scene."""
        solids = tuple(_solid(random) for _ in range(random.integers(1, 5)))
        light = np.array([random.uniform(-1, 1), random.uniform(0.5, 1.5), random.uniform(-1, 0.3)])
        sky = random.uniform(0.3, 1, (2, 3)) * [[1, 1, 1], [0.6, 0.8, 1]]
        base = random.uniform(0.15, 0.9, 3)
        floor = np.clip(np.stack([base, base + random.uniform(-0.3, 0.3)]), 0.05, 1)
        eye = np.array([random.uniform(-0.8, 0.8), random.uniform(0.8, 2.0), random.uniform(-4.6, -3.6)])
        return cls(solids, floor, sky, light / np.linalg.norm(light), random.uniform(0.8, 1.1, 3), eye)

    def render(self, side: int) -> npt.NDArray[np.uint8]:
        """Trace a ray through each part of each pixel. Shapes: -> (side, side, 3)."""
        parts = side * PARTS
        across = (np.arange(parts) + 0.5) / parts - 0.5
        x, y = np.meshgrid(across, -across)
        ahead = np.array([0, 0.45, 0]) - self.eye
        ahead /= np.linalg.norm(ahead)
        right = np.cross([0, 1, 0], ahead)
        right /= np.linalg.norm(right)
        way = ahead + x.reshape(-1, 1) * right + y.reshape(-1, 1) * np.cross(ahead, right)
        way /= np.linalg.norm(way, axis=1, keepdims=True)
        colours = self._seen(np.broadcast_to(self.eye, way.shape), way)
        means = colours.reshape(side, PARTS, side, PARTS, 3).mean((1, 3))
        levels: npt.NDArray[np.uint8] = (255 * np.clip(means, 0, 1) ** (1 / 1.6)).round().astype(np.uint8)
        return levels

    def _seen(self, start: Array, way: Array) -> Array:
        distance, normal, colour, gloss = self._nearest(start, way)
        points = start + distance[:, None] * way
        is_lit = np.ones(len(way), bool)
        for solid in self.solids:
            is_lit &= solid.hit(points + 1e-3 * normal, np.broadcast_to(self.light, way.shape))[0] >= FAR
        light = np.maximum(normal @ self.light, 0) * np.where(is_lit, 1, SHADE)
        middle = self.light - way
        middle /= np.linalg.norm(middle, axis=1, keepdims=True)
        highlight = gloss * is_lit * np.maximum((normal * middle).sum(1), 0) ** 40
        shaded = colour * self.warmth * (0.25 + 0.75 * light)[:, None] + highlight[:, None]
        share = np.clip(way[:, 1:2] * 2, 0, 1)
        return np.where((distance >= FAR)[:, None], self.sky[0] * (1 - share) + self.sky[1] * share, shaded)

    def _nearest(self, start: Array, way: Array) -> tuple[Array, Array, Array, Array]:
        with np.errstate(divide="ignore"):
            distance = np.where(way[:, 1] < 0, -start[:, 1] / way[:, 1], FAR)
        distance = np.where(distance < 40, distance, FAR)
        places = np.where((distance < FAR)[:, None], start + distance[:, None] * way, 0)
        tile = np.floor(places[:, 0] * 1.2) + np.floor(places[:, 2] * 1.2)
        colour, gloss = self.floor[(tile % 2).astype(int)], np.zeros(len(way))
        normal = np.broadcast_to(np.array([0.0, 1.0, 0.0]), way.shape)
        for solid in self.solids:
            found, its = solid.hit(start, way)
            is_nearer = found < distance
            distance = np.where(is_nearer, found, distance)
            normal = np.where(is_nearer[:, None], its, normal)
            colour = np.where(is_nearer[:, None], solid.colour(start + np.minimum(found, 50)[:, None] * way), colour)
            gloss = np.where(is_nearer, solid.gloss, gloss)
        return distance, normal, colour, gloss


def _solid(random: np.random.Generator) -> Solid:
    is_box, sides = bool(random.integers(2)), random.uniform(0.2, 0.65, 3)
    sides = sides if is_box else np.full(3, sides[0])
    middle = np.array([random.uniform(-1.3, 1.3), sides[1], random.uniform(-1.2, 1.6)])
    stripes = random.choice([0.0, random.uniform(1, 3)])
    gloss = random.choice([0.0, random.uniform(0.2, 0.8)])
    return Solid(is_box, middle, sides, random.uniform(0, np.pi), random.uniform(0.05, 1, (2, 3)), stripes, gloss)


def write(directory: Path, count: int, side: int = 64) -> Path:
    """Write a number of images, the same each time."""
    directory.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        image: Any = Scene.drawn(np.random.default_rng(number)).render(side)
        Image.fromarray(image).save(directory / f"scene-{number:05}.png")
    return directory


def main(
    directory: Path,
    count: Annotated[int, typer.Option(help="Images.")] = 4000,
    side: Annotated[int, typer.Option(help="Pixels of each side.")] = 64,
) -> None:
    """Write images to a folder."""
    write(directory, count, side)


if __name__ == "__main__":
    typer.run(main)
