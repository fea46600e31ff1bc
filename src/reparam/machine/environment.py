"""Settings of a machine, which change no result."""

import math
import os

from reparam.errors import UserError


def whole(variable: str, default: int, wanted: str, least: int) -> int:
    """Read a whole number from the environment.

    Raises: UserError.
    """
    text = os.environ.get(variable, str(default))
    if not (text.isascii() and text.isdecimal() and len(text) < 10 and int(text) >= least):
        raise _refusal(variable, wanted, text)
    return int(text)


def real(variable: str, default: float, wanted: str, least: float = 0.0, most: float = math.inf) -> float:
    """Read a number from `least` to `most` from the environment.

    Raises: UserError.
    """
    text = os.environ.get(variable, str(default))
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not least <= value <= most:
        raise _refusal(variable, wanted, text)
    return value


def seconds(variable: str, default: float) -> float:
    """Read a time from the environment.

    Raises: UserError.
    """
    return real(variable, default, "a number of seconds")


def _refusal(variable: str, wanted: str, found: str) -> UserError:
    return UserError(f"{variable}: wanted {wanted}, found {found!r}; fix or unset it")
