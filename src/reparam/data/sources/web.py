"""Downloads from servers: tried again, and resumed where they stopped."""

import re
import time
from collections.abc import Iterator
from http.client import responses
from typing import Any

import requests
import urllib3

from reparam.data.sources.faults import SourceError, TransientError
from reparam.data.sources.part import BLOCK, Part

CONNECT_SECONDS = 10.0  # time for four SYN packets, sent after 0, 1, 3 and 7 s (RFC 6298)
READ_SECONDS = 30.0  # of silence; pip gives its index 15 s, the servers of universities are slower
LEAST_RATE = 1024  # bytes/s over READ_SECONDS; a server that trickles would never time out
TRIES = 5  # of one source; with the waits between them, 15 s of trouble are survived
FIRST_WAIT_SECONDS = 1.0  # doubled after every try; both as `curl --retry` does
LONGEST_WAIT_SECONDS = 60.0  # beyond it, waiting as a server asks would pass for hanging


def download(url: str, part: Part) -> bool:
    """Fill `part` from a server; return whether earlier bytes were kept, or its end is unsure.

    Raises: SourceError; OSError if the disk is full.
    """
    tries, furthest = 1, part.size
    while True:
        part.deadline.check()
        try:
            return _request(url, part)
        except TransientError as error:
            if part.size - furthest >= LEAST_RATE * READ_SECONDS:
                tries = 1  # a connection that is cut again and again still gets there, a trickle does not
            furthest = max(furthest, part.size)  # or a file that starts again each time would be asked for for ever
            if tries == TRIES:
                raise SourceError(f"{error} after {TRIES} tries") from None
            if error.seconds > LONGEST_WAIT_SECONDS:
                raise SourceError(f"{error}, and asks to wait {error.seconds:.0f} s") from None
            # Retry-After is the least time to wait (RFC 9110, sec. 10.2.3).
            wait = max(error.seconds, FIRST_WAIT_SECONDS * 2 ** (tries - 1))
            part.meter.say(f"{error}; trying again in {wait:.0f} s")
            time.sleep(wait)
            tries += 1


def _request(url: str, part: Part) -> bool:
    """Receive the missing bytes; return whether earlier ones were kept, or no length was announced."""
    present = part.size
    try:
        with _ask(url, present) as response:
            if present and response.status_code == 416:
                return True  # nothing is missing, or the part belongs to another file: the checksum will show it
            _check_status(response, present)
            kept = present if response.status_code == 206 else 0
            length = response.raw.length_remaining
            if kept:
                announced = re.match(rf"bytes {present}-(\d{{1,18}})/", response.headers.get("Content-Range", ""))
                if announced is None:
                    part.path.unlink()
                    raise TransientError("sent another range than asked for")
                length = int(announced[1]) + 1 - present if length is None else length
            # urllib3 raises when fewer bytes come than Content-Length promised.
            part.write(_receive(response.raw, length), kept, length)
            return bool(kept) or length is None
    except (requests.RequestException, urllib3.exceptions.HTTPError) as error:
        raise _in_words(error) from None


def _ask(url: str, present: int) -> requests.Response:
    # Neither compressed on the way nor decompressed here: some servers mark a .gz itself as an encoding.
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={present}-"} if present else {})
    try:
        return requests.get(url, headers=headers, stream=True, timeout=(CONNECT_SECONDS, READ_SECONDS))
    except requests.exceptions.InvalidHeader:  # a ValueError, but its cause is not the address
        raise
    except ValueError:  # of requests, urllib3, and Python's own modules for addresses and encodings
        raise SourceError("wanted http:// or https://, found another scheme in it, a redirect or a proxy") from None


def _receive(raw: Any, length: int | None) -> Iterator[bytes]:
    start, count, received = time.monotonic(), 0, 0
    # What is there, without waiting for a whole block.
    while received != length and (block := raw.read1(BLOCK, decode_content=False)):
        block = block[: None if length is None else length - received]
        received += len(block)
        count += len(block)
        yield block
        if time.monotonic() - start > READ_SECONDS:
            if count < LEAST_RATE * READ_SECONDS:
                raise TransientError(f"slower than {LEAST_RATE} bytes/s")
            start, count = time.monotonic(), 0


def _check_status(response: requests.Response, present: int) -> None:
    status = response.status_code
    if status == 200 or (status == 206 and present):
        return
    message = f"HTTP {status} {responses.get(status, '')}".rstrip()  # a server's own words may hold anything
    if status not in (408, 425, 429) and status < 500:
        raise SourceError(message)
    try:
        seconds = float(urllib3.Retry().parse_retry_after(response.headers.get("Retry-After", "0")))
    except (urllib3.exceptions.InvalidHeader, ValueError, OverflowError):  # no time, or one that Python cannot count
        seconds = 0.0
    raise TransientError(message, seconds)


def _in_words(error: Exception) -> SourceError:
    """Describe what went wrong, without the address and the credentials that libraries put into their messages."""
    cause: BaseException | None = error
    while cause and not (isinstance(cause, OSError) and cause.strerror):
        cause = cause.__cause__ or cause.__context__
    reason = cause.strerror if isinstance(cause, OSError) else None
    if isinstance(error, requests.exceptions.SSLError | urllib3.exceptions.SSLError):
        return SourceError(reason or "no secure connection")
    if isinstance(error, requests.Timeout | urllib3.exceptions.TimeoutError):
        return TransientError("timed out")
    if isinstance(error, requests.ConnectionError | urllib3.exceptions.ProtocolError):
        return TransientError(reason or "connection cut")
    if isinstance(error, requests.TooManyRedirects):
        return SourceError("redirects without end")
    return SourceError(f"no valid answer ({type(error).__name__})")
