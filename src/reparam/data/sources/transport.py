"""Downloads that can be trusted: tried again, resumed, and given their name once their checksum is right."""

import hashlib
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

import requests
import urllib3
from rich.console import Console
from rich.filesize import decimal
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from reparam.errors import UserError
from reparam.files import whole_file
from reparam.redact import without_secrets

CONNECT_SECONDS = 10.0  # time for four SYN packets, sent after 0, 1, 3 and 7 s (RFC 6298)
READ_SECONDS = 30.0  # of silence; pip gives its index 15 s, the servers of universities are slower
LEAST_RATE = 1024  # bytes/s over READ_SECONDS; a server that trickles would never time out
TRIES = 5  # of one source; with the waits between them, 15 s of trouble are survived
FIRST_WAIT_SECONDS = 1.0  # doubled after every try; both as `curl --retry` does
LONGEST_WAIT_SECONDS = 60.0  # beyond it, waiting as a server asks would pass for hanging
BLOCK = 1 << 16  # bytes; a stalled connection loses less than one block


@dataclass(frozen=True)
class RemoteFile:
    """A published file: its path below a data set's directory, and what identifies it."""

    name: str
    checksum: str  # "md5:<hex>" or "sha256:<hex>"
    urls: tuple[str, ...]  # published addresses of this very file

    def checksum_of(self, path: Path) -> str:
        """Take the checksum of a file, spelled like the one that is wanted."""
        algorithm = self.checksum.partition(":")[0]
        with path.open("rb") as file:
            return f"{algorithm}:{hashlib.file_digest(file, algorithm).hexdigest()}"


def fetch(file: RemoteFile, directory: Path, mirrors: Sequence[str]) -> None:
    """Place the verified file at `directory / file.name`, from the first mirror or published address that gives it.

    What was received of an unfinished file stays beside it as `.partial-<name>`; the next call goes on from there.
    Raises: UserError that tells what went wrong at each source; OSError where the disk is full.
    """
    target = directory / file.name
    if target.is_file() and file.checksum_of(target) == file.checksum:
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".partial-{target.name}")
    meter = _Meter(file.name)
    failures = []
    with meter.bar:
        for source in _sources(file, mirrors):
            try:
                _obtain(file, source, partial, meter)
            except _SourceError as error:
                failures.append(f"  {without_secrets(source)}: {error}")
            else:
                with whole_file(target) as whole:
                    partial.replace(whole)
                meter.finish(target.stat().st_size)
                return
    raise UserError(
        f"{file.name} ({file.checksum}): no source gives this file\n"
        + "\n".join(failures or ["  no mirror is set, and no address is published"])
        + "\nset download.mirrors in params.yaml to a directory or server that holds it"
    )


class _SourceError(Exception):
    """A source does not give the file."""


class _TransientError(_SourceError):
    """A source may give the file yet, after as many seconds as it asks for."""

    def __init__(self, message: str, seconds: float = 0) -> None:
        super().__init__(message)
        self.seconds = seconds


class _Meter:
    """What a person sees of one file: a bar with rate on a terminal, one line at the end elsewhere."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.received = 0
        self.started = time.perf_counter()
        self.console = Console(stderr=True, markup=False, emoji=False, highlight=False)
        self.bar = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            DownloadColumn(),
            TransferSpeedColumn(),
            TimeRemainingColumn(),
            console=self.console,
            disable=not self.console.is_terminal,
        )
        self.task = self.bar.add_task(name, total=None)

    def begin(self, present: int, missing: int | None) -> None:
        total = None if missing is None else present + missing
        self.bar.reset(self.task, completed=present, total=total)

    def advance(self, count: int) -> None:
        self.received += count
        self.bar.advance(self.task, count)

    def say(self, text: str) -> None:
        self.console.print(f"{self.name}: {text}", soft_wrap=True)

    def finish(self, size: int) -> None:
        if not self.console.is_terminal:
            rate = self.received / (time.perf_counter() - self.started)
            self.say(f"{decimal(size)}, {decimal(int(rate))}/s")


def _sources(file: RemoteFile, mirrors: Sequence[str]) -> Iterator[str]:
    # A mirror may keep the folders of the name, or be one flat folder.
    names = dict.fromkeys((file.name, Path(file.name).name))
    for mirror in mirrors:
        for name in names:
            if "://" in mirror:
                base, mark, query = mirror.partition("?")  # which may hold the signature that opens the mirror
                yield f"{base.removesuffix('/')}/{quote(name)}{mark}{query}"
            else:
                yield str(Path(mirror).expanduser() / name)
    yield from file.urls


def _obtain(file: RemoteFile, source: str, partial: Path, meter: _Meter) -> None:
    """Fill `partial` with the verified file."""
    for _ in range(2):  # the second time from zero, where the first may have failed for what came before or was missing
        is_unsure = _transfer(source, partial, meter)
        found = file.checksum_of(partial)
        if found == file.checksum:
            return
        partial.unlink()
        if not is_unsure:
            break
    raise _SourceError(f"wrong checksum: wanted {file.checksum}, found {found}")


def _transfer(source: str, partial: Path, meter: _Meter) -> bool:
    """Fill `partial` from one source; return whether a part from before was kept, or the end was not to be told."""
    scheme, separator, rest = source.partition("://")
    if not separator:
        return _copy(Path(source), partial, meter)
    match scheme.lower():
        case "http" | "https":
            return _download(source, partial, meter)
        case "file" if rest.startswith(("/", "localhost/")):
            return _copy(Path(unquote(rest.removeprefix("localhost"))), partial, meter)
        case "file":
            raise _SourceError("a file:// address names no host; write file:///path")
    raise _SourceError(f"unsupported scheme {scheme!r}; wanted https, http, file or a directory")


def _copy(path: Path, partial: Path, meter: _Meter) -> bool:
    try:
        meter.begin(0, path.stat().st_size)
    except OSError as error:
        raise _SourceError(error.strerror) from None
    _write(_read(path), partial, "wb", meter)
    return False


def _read(path: Path) -> Iterator[bytes]:
    try:
        with path.open("rb") as file:
            while block := file.read(BLOCK):
                yield block
    except OSError as error:  # of the source: what goes wrong with the copy is not raised in here
        raise _SourceError(error.strerror) from None


def _write(blocks: Iterable[bytes], partial: Path, mode: str, meter: _Meter) -> None:
    try:
        with partial.open(mode) as file:
            for block in blocks:
                file.write(block)
                meter.advance(len(block))
    except OSError as error:
        partial.unlink(missing_ok=True)  # the room is needed more than the part
        error.filename = str(partial)  # which the system does not tell of a full disk
        raise


def _download(url: str, partial: Path, meter: _Meter) -> bool:
    tries = 1
    while True:
        before = _size(partial)
        try:
            return _request(url, partial, meter)
        except _TransientError as error:
            if _size(partial) - before >= LEAST_RATE * READ_SECONDS:
                tries = 1  # a connection that is cut again and again still gets there, a trickle does not
            if tries == TRIES:
                raise _SourceError(f"{error} after {TRIES} tries") from None
            if error.seconds > LONGEST_WAIT_SECONDS:
                raise _SourceError(f"{error}, and asks to wait {error.seconds:.0f} s") from None
            # Retry-After is the least time to wait (RFC 9110, sec. 10.2.3).
            wait = max(error.seconds, FIRST_WAIT_SECONDS * 2 ** (tries - 1))
            meter.say(f"{error}; trying again in {wait:.0f} s")
            time.sleep(wait)
            tries += 1


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _request(url: str, partial: Path, meter: _Meter) -> bool:
    """Receive what is missing in `partial`; return whether a part was kept, or no length was announced."""
    present = _size(partial)
    # Neither compressed on the way nor decompressed here: some servers mark a .gz itself as an encoding.
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={present}-"} if present else {})
    try:
        with requests.get(url, headers=headers, stream=True, timeout=(CONNECT_SECONDS, READ_SECONDS)) as response:
            if present and response.status_code == 416:
                return True  # nothing is missing, or the part is none of this file: the checksum will tell
            _check_status(response, present)
            kept = response.status_code == 206
            if kept and not response.headers.get("Content-Range", "").startswith(f"bytes {present}-"):
                partial.unlink()
                raise _TransientError("sent another range than asked for")
            length = response.raw.length_remaining
            meter.begin(present if kept else 0, length)
            # urllib3 raises when fewer bytes come than Content-Length promised.
            _write(_receive(response.raw), partial, "ab" if kept else "wb", meter)
            return kept or length is None
    except (requests.RequestException, urllib3.exceptions.HTTPError) as error:
        raise _in_words(error) from None


def _receive(raw: Any) -> Iterator[bytes]:
    start, count = time.monotonic(), 0
    while block := raw.read1(BLOCK, decode_content=False):  # what is there, without waiting for a whole block
        count += len(block)
        yield block
        if time.monotonic() - start > READ_SECONDS:
            if count < LEAST_RATE * READ_SECONDS:
                raise _TransientError(f"slower than {LEAST_RATE} bytes/s")
            start, count = time.monotonic(), 0


def _check_status(response: requests.Response, present: int) -> None:
    status = response.status_code
    if status == 200 or (status == 206 and present):
        return
    message = f"HTTP {status} {response.reason}".rstrip()
    if status not in (408, 425, 429) and status < 500:
        raise _SourceError(message)
    try:
        seconds = urllib3.Retry().parse_retry_after(response.headers.get("Retry-After", "0"))
    except urllib3.exceptions.InvalidHeader:
        seconds = 0
    raise _TransientError(message, seconds)


def _in_words(error: Exception) -> _SourceError:
    """Tell what went wrong, without the address and the credentials that libraries put into their messages."""
    cause: BaseException | None = error
    while cause and not (isinstance(cause, OSError) and cause.strerror):
        cause = cause.__cause__ or cause.__context__
    reason = cause.strerror if isinstance(cause, OSError) else None
    if isinstance(error, requests.exceptions.SSLError | urllib3.exceptions.SSLError):
        return _SourceError(reason or "no secure connection")
    if isinstance(error, requests.Timeout | urllib3.exceptions.TimeoutError):
        return _TransientError("timed out")
    if isinstance(error, requests.ConnectionError | urllib3.exceptions.ProtocolError):
        return _TransientError(reason or "connection cut")
    return _SourceError(type(error).__name__)  # such as InvalidURL, TooManyRedirects
