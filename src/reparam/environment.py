"""Settings of a machine, which change no result."""

import math
import os

from reparam.errors import UserError


def seconds(variable: str, default: float) -> float:
    """Read a time from the environment. Raises: UserError."""
    text = os.environ.get(variable, str(default))
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not value >= 0:
        raise UserError(f"{variable}: wanted a number of seconds, found {text!r}; mend or unset it")
    return value
