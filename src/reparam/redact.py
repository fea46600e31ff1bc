"""Texts without the credentials of the addresses in them: of tracking servers, databases and mirrors."""

import os
import re
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from types import TracebackType
from typing import Any, TextIO
from urllib.parse import unquote

LOCAL = ("file:", "sqlite:///")  # a path follows; in it, @ and ? are plain characters
SHORTEST = 4  # characters of a value in a query that is hidden wherever it appears: `retries=1` is no secret


def without_secrets(address: str) -> str:
    """Hide user, password and query of an address; a path stays as it is."""
    if "://" not in address:
        return re.sub(r"^[^/]*:.*@", "***@", address)  # user:password@host without a scheme
    if address.lower().startswith(LOCAL):
        return address
    # Up to the last @, because a password with an unquoted / or ? is printed neither.
    return re.sub(r"\?.*", "?***", re.sub(r"://.*@", "://***@", address))


def redact(text: str) -> str:
    """Hide the credentials of all addresses in a text, and those of the addresses in the environment in any form."""
    text = re.sub(r"[\w+.-]+://[^\s'\"<>]+", lambda found: without_secrets(found[0]), text)
    for secret in sorted(_secrets(), key=len, reverse=True):
        text = re.sub(rf"(?<!\w){re.escape(secret)}(?!\w)", "***", text)
    return text


def _secrets() -> set[str]:
    """Collect the passwords and tokens that the environment names."""
    found = set()
    stores = os.environ.get("MLFLOW_TRACKING_URI", ""), os.environ.get("REPARAM_SWEEP_STORAGE", "")
    for address in (*stores, *os.environ.get("REPARAM_MIRRORS", "").split()):
        if without_secrets(address) == address:
            continue
        account, at, _ = address[address.find("://") + 3 if "://" in address else 0 :].rpartition("@")
        if at:
            found.add(account.partition(":")[2] or account)  # a user without a password is a token
        query = address.partition("?")[2]
        found |= {value for part in query.split("&") if len(value := part.partition("=")[2] or part) >= SHORTEST}
    return found | {unquote(secret) for secret in found}


class _Redacted:
    """A stream that hides credentials in the text that is written to it."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        return self._stream.write(redact(text))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextmanager
def redacted_output() -> Iterator[None]:
    """Hide credentials in messages, warnings and tracebacks, whoever prints them."""
    try:
        with redirect_stdout(_Redacted(sys.stdout)), redirect_stderr(_Redacted(sys.stderr)):
            yield
    except Exception:
        sys.excepthook = _print_redacted  # Python prints an exception that nobody catches after this block
        raise


def _print_redacted(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    sys.stderr.write(redact("".join(traceback.format_exception(kind, error, trace))))
