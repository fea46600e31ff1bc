"""Checks of the arguments of a client."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from reparam.errors import UserError

Images = npt.NDArray[np.uint8]  # (B, H, W, C)
Floats = npt.NDArray[np.float32]


def checked_images(what: str, images: Images, shape: tuple[int, ...]) -> Images:
    """Return images of a shape (H, W, C). Raises: UserError."""
    found = np.asarray(images)
    if found.dtype != np.uint8 or found.shape[1:] != shape:
        raise UserError(f"{what}: wanted uint8 images of shape {_spelled(shape)}, found {found.dtype} {found.shape}")
    return found


def checked_latents(latents: npt.ArrayLike, shape: tuple[int, ...]) -> Floats:
    """Return finite latents, given as rows of numbers or in their own shape. Shapes: (B, D) -> (B, *shape).

    Raises: UserError.
    """
    # For one image, checks take most of the time that the client adds to the graph, so a usual array skips them.
    if type(latents) is np.ndarray and latents.dtype == np.float32 and latents.shape[1:] == shape:
        found = latents
    else:
        found = _narrowed(_reshaped(latents, shape))
    # The sum of squares first, which is one quick pass. It may overflow where the numbers do not.
    if not math.isfinite(np.vdot(found, found)) and not np.isfinite(found).all():
        found = found.reshape(len(found), -1)
        row, column = np.argwhere(~np.isfinite(found))[0]
        raise UserError(f"decode: wanted finite latents, found {found[row, column]} in row {row}, column {column}")
    return found


def _reshaped(latents: npt.ArrayLike, shape: tuple[int, ...]) -> npt.NDArray[Any]:
    shapes = (shape, (math.prod(shape),))
    try:
        given = np.asarray(latents)
    except ValueError:  # rows of different lengths
        raise UserError(f"decode: wanted latents of shape {_either(shapes)}, found no array") from None
    if given.dtype.kind not in "iuf":
        raise UserError(f"decode: wanted latents that are numbers, found {given.dtype}")
    if given.shape[1:] not in shapes:
        raise UserError(f"decode: wanted latents of shape {_either(shapes)}, found {given.shape}")
    return given.reshape(len(given), *shape)


def checked_count(what: str, of: str, count: int, least: int) -> int:
    """Return a whole number. Raises: UserError."""
    if isinstance(count, bool) or not isinstance(count, int | np.integer) or count < least:
        raise UserError(f"{what}: wanted {least} or more {of}, found {count!r}")
    return int(count)


def generator(what: str, seed: int | Sequence[int]) -> np.random.Generator:
    """Return a source of random numbers. Raises: UserError."""
    try:
        return np.random.default_rng(seed)
    except (TypeError, ValueError) as error:
        raise UserError(f"{what}: wanted a seed of 0 or more, found {seed!r}") from error


def _narrowed(numbers: npt.NDArray[Any]) -> Floats:
    with np.errstate(over="ignore"):  # infinity is refused, with a message of our own
        return numbers.astype(np.float32)


def _spelled(shape: tuple[int, ...]) -> str:
    return f"(B, {', '.join(map(str, shape))})"


def _either(shapes: Sequence[tuple[int, ...]]) -> str:
    return " or ".join(dict.fromkeys(map(_spelled, shapes)))
