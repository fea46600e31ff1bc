"""Settings of a machine, which change no result."""

import math
import os

from reparam.errors import UserError


def seconds(variable: str, default: float, most: float | None = None) -> float:
    """Read a time from the environment: at least 0 or, if there is a `most`, above 0 and at most that.

    Raises: UserError.
    """
    text = os.environ.get(variable, str(default))
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not (value >= 0 if most is None else 0 < value <= most):
        limits = "" if most is None else f" above 0 and at most {most:.0e}"
        raise UserError(f"{variable}: wanted a number of seconds{limits}, found {text!r}; fix or unset it")
    return value
