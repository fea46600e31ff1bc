"""Why a source does not give a file."""


class SourceError(Exception):
    """A source does not give the file."""


class TransientError(SourceError):
    """A source may still give the file, after the seconds that it asks for."""

    def __init__(self, message: str, seconds: float = 0) -> None:
        super().__init__(message)
        self.seconds = seconds


class LateError(SourceError):
    """The time that a file may take is over."""
