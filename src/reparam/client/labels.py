"""Labels of images, the further input of a conditional model."""

import re
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from reparam.client.checks import as_array
from reparam.errors import UserError

Labels = int | Sequence[int] | npt.NDArray[np.integer]  # one for all images, or one for each: (B,)
NAMED = 10  # classes in a message


def as_input(what: str, labels: Labels | None, classes: Sequence[str], count: int) -> dict[str, npt.NDArray[np.int64]]:
    """Return the labels of `count` images as the graphs take them; nothing for an unconditional model.

    Raises: UserError if there are none, or others than the model knows.
    """
    if not classes:
        if labels is not None:
            raise UserError(f"{what}: wanted no label, because the model was trained without, found {labels!r}")
        return {}
    if labels is None:
        raise UserError(f"{what}: wanted a label for each image, because the model was trained with {_known(classes)}")
    wanted = f"{what}: wanted one label, a whole number, or {count} of them"
    found = as_array(labels, wanted)
    if found.dtype.kind not in "iu" or found.shape not in ((), (count,)):
        raise UserError(f"{wanted}, found {found.dtype} {found.shape}")
    if wrong := [int(label) for label in found.ravel() if not 0 <= label < len(classes)]:
        raise UserError(f"{what}: wanted {_known(classes)}, found label {wrong[0]}")
    return {"label": np.ascontiguousarray(np.broadcast_to(found, (count,)), np.int64)}


def number_of(text: str, classes: Sequence[str]) -> int:
    """Return the number of a class by its name, or by the number itself.

    Raises: UserError if there is no such class.
    """
    if text in classes:
        return list(classes).index(text)
    if re.fullmatch("[0-9]{1,9}", text) and int(text) < len(classes):
        return int(text)
    wanted = f"{_known(classes)}, by number or name" if classes else "no label, because the model was trained without"
    raise UserError(f"label: wanted {wanted}, found {repr(text) if text else 'none'}")


def _known(classes: Sequence[str]) -> str:
    names = ", ".join(f"{number} ({name})" for number, name in enumerate(classes[:NAMED]))
    return f"labels 0 to {len(classes) - 1}: {names}{', ...' if len(classes) > NAMED else ''}"
