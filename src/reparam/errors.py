"""Mistakes that the user can correct.

The command line prints the message alone and exits with code 1. A message says what is wrong and where, what was
wanted, what was found, and what to do next. Bugs of ours are not `UserError`s: they keep their traceback.
"""


class UserError(Exception):
    """Anything that the user can correct; catch this one to catch them all."""


class ParamsError(UserError):
    """`params.yaml` is missing, unreadable, or holds unknown, missing or mistyped parameters."""


class MissingInputError(UserError):
    """A stage was run before the file that it reads exists."""


class DamagedInputError(UserError):
    """A file exists, but is truncated or does not hold what it should."""


class StaleInputError(UserError):
    """A file was made of another model than the one that is there."""


class NonFiniteError(UserError):
    """The loss became NaN or infinite."""


class ParityError(UserError):
    """The exported graphs do not compute what the trained model computes."""


class TrackingError(UserError):
    """The MLflow store cannot be used."""


class BusyError(UserError):
    """Another process runs the same stage in the same working copy."""
