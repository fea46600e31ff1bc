"""Codes of a codebook, as whole numbers, and their latents."""

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from reparam.client.checks import as_array
from reparam.errors import UserError


def nearest(latents: npt.NDArray[Any], table: npt.NDArray[np.float32], shape: tuple[int, ...]) -> npt.NDArray[Any]:
    """Return the vectors of the nearest codes. Shapes: (B, D), and the table (C, d) -> (B, *shape)."""
    size = table.shape[1]
    rows = latents.reshape(len(latents), size, -1).swapaxes(1, 2) if len(shape) > 1 else latents
    rows = rows.reshape(len(latents), -1, size)  # (B, P, d)
    codes = [(np.square(table).sum(1) - 2 * row @ table.T).argmin(1) for row in rows]  # (P,) each
    return vectors_of(np.stack(codes), table, shape)


def vectors_of(codes: npt.ArrayLike, table: npt.NDArray[np.float32], shape: tuple[int, ...]) -> npt.NDArray[np.float32]:
    """Put the vectors of codes one after the other, or into the pixels of an image (d, h, w).

    Shapes: (B, P), and the table (C, d) -> (B, *shape).

    Raises: UserError if codes are not whole numbers that the table has.
    """
    positions = math.prod(shape) // table.shape[1]
    wanted = f"decode: wanted whole codes of shape (B, {positions})"
    found = as_array(codes, wanted)
    if found.dtype.kind not in "iu" or found.ndim != 2 or found.shape[1] != positions:
        raise UserError(f"{wanted}, found {found.dtype} {found.shape}")
    if found.size and not (found.min() >= 0 and found.max() < len(table)):
        raise UserError(f"decode: wanted codes from 0 to {len(table) - 1}, found {found.min()} to {found.max()}")
    vectors: npt.NDArray[np.float32] = table[found]  # (B, P, d)
    return (vectors.swapaxes(1, 2) if len(shape) > 1 else vectors).reshape(len(found), *shape)
