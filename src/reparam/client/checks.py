"""Checks of the arguments of a client."""

import math
from collections.abc import Callable, Sequence
from contextlib import suppress
from numbers import Real
from typing import Any

import numpy as np
import numpy.typing as npt

from reparam.errors import UserError

Images = npt.NDArray[np.uint8]  # (B, H, W, C)
Floats = npt.NDArray[np.float32]
# numpy has one object for each, almost always: comparing objects is fast, and an unusual array takes the slow way.
BYTES, SINGLES = np.dtype(np.uint8), np.dtype(np.float32)
MOST = 2**31 - 1  # things in a call; numpy has errors of its own for far more
LARGEST = 1e6  # of latents, which a prior draws around 0; the manifest has it as their range
LOUDEST = 1e3  # of noise, whose draws are below 10; the manifest has it as its range
FEW = 32  # numbers whose norm Python computes faster than numpy, measured between runs of a graph


def as_array(values: npt.ArrayLike, wanted: str) -> npt.NDArray[Any]:
    """Return values as an array. Raises: UserError with what was wanted, if rows have different lengths."""
    try:
        return np.asarray(values)
    except ValueError:
        raise UserError(f"{wanted}, found no array") from None


def checked_images(what: str, images: npt.ArrayLike, shape: tuple[int, ...]) -> Images:
    """Return images of a shape (H, W, C). Raises: UserError."""
    if type(images) is np.ndarray and images.dtype is BYTES and images.shape[1:] == shape:
        return images
    wanted = f"{what}: wanted uint8 images of shape {_spelled(shape)}"
    found = as_array(images, wanted)
    if found.dtype != np.uint8 or found.shape[1:] != shape:
        raise UserError(f"{wanted}, found {found.dtype} {found.shape}")
    return found


def checked_latents(latents: npt.ArrayLike, shape: tuple[int, ...]) -> Floats:
    """Return latents of a sensible size, given as rows of numbers or in their own shape. Shapes: (B, D) -> (B, *shape).

    Raises: UserError.
    """
    # For one image, checks take most of the time that the client adds to the graph, so a usual array skips them.
    if type(latents) is np.ndarray and latents.dtype is SINGLES and latents.shape[1:] == shape:
        found = latents
    else:
        found = _narrowed(_reshaped(latents, shape))
    # A norm is as large as each number at least, and NaN if one is. That of many usual latents may be large, too.
    norm = math.hypot(*found.ravel().tolist()) if found.size <= FEW else math.sqrt(np.vdot(found, found))
    if not norm <= LARGEST:
        _check_each(found.reshape(len(found), -1))
    return found


def check_noise(epsilon: Floats) -> None:
    """Raises: UserError if numbers are no noise: of far larger ones, a score may be no number."""
    if not np.abs(epsilon).max(initial=0) <= LOUDEST:
        raise UserError(
            f"score: wanted epsilon from {-LOUDEST:,.0f} to {LOUDEST:,.0f}, found others; draw from N(0, 1)"
        )


def _check_each(latents: Floats) -> None:
    """Shapes: (B, D)."""
    wrong = np.argwhere(~(np.abs(latents) <= LARGEST))  # also NaN
    if len(wrong):
        row, column = wrong[0]
        raise UserError(
            f"decode: wanted latents from {-LARGEST:,.0f} to {LARGEST:,.0f}, found {latents[row, column]!s} in row "
            f"{row}, column {column}; compare them with those that encode returns"
        )


def _reshaped(latents: npt.ArrayLike, shape: tuple[int, ...]) -> npt.NDArray[Any]:
    shapes = (shape, (math.prod(shape),))
    given = as_array(latents, f"decode: wanted latents of shape {_either(shapes)}")
    if given.dtype.kind not in "iuf":
        raise UserError(f"decode: wanted latents that are numbers, found {given.dtype}")
    if given.shape[1:] not in shapes:
        raise UserError(f"decode: wanted latents of shape {_either(shapes)}, found {given.shape}")
    return given.reshape(len(given), *shape)


def checked_count(what: str, of: str, count: int, least: int) -> int:
    """Return a whole number. Raises: UserError."""
    if isinstance(count, bool) or not isinstance(count, int | np.integer) or not least <= count <= MOST:
        raise UserError(f"{what}: wanted {least} to {MOST:,} {of}, found {count!r}")
    return int(count)


def checked_temperature(temperature: float) -> float:
    """Return a finite number of 0 or more. Raises: UserError."""
    try:
        found = float(temperature) if isinstance(temperature, Real) else math.nan
    except OverflowError:  # of a whole number
        found = math.inf
    if not 0 <= found < math.inf:
        raise UserError(f"sample: wanted a temperature of 0 or more, found {temperature!r}")
    return found


def generator(what: str, seed: int | Sequence[int]) -> np.random.Generator:
    """Return a source of random numbers. Raises: UserError."""
    with suppress(TypeError, ValueError):
        if seed is not None:  # of which numpy would make draws that nobody can repeat
            return np.random.default_rng(seed)
    raise UserError(f"{what}: wanted a seed of 0 or more, found {seed!r}")


def noise_of(what: str, seed: int | Sequence[int], samples: int) -> Callable[..., Floats]:
    """Return what makes noise of a shape and type; 0 samples take zeros. Raises: UserError, also with 0."""
    is_plain = type(seed) is int and seed >= 0  # this is seen sooner than a generator is made
    if samples or not is_plain:
        rng = generator(what, seed)
    return rng.standard_normal if samples else np.zeros


def _narrowed(numbers: npt.NDArray[Any]) -> Floats:
    with np.errstate(over="ignore"):  # infinity is refused, with a message of our own
        return numbers.astype(np.float32)


def _spelled(shape: tuple[int, ...]) -> str:
    return f"(B, {', '.join(map(str, shape))})"


def _either(shapes: Sequence[tuple[int, ...]]) -> str:
    return " or ".join(dict.fromkeys(map(_spelled, shapes)))
