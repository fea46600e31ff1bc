"""Verified downloads: a file gets its name after its checksum was verified, and each download has a time limit."""

import hashlib
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from urllib.parse import quote, unquote

from rich.filesize import decimal

from reparam.data.sources import deadline
from reparam.data.sources.faults import SourceError
from reparam.data.sources.meter import Meter
from reparam.data.sources.part import BLOCK, Part
from reparam.errors import UserError
from reparam.files import whole_file
from reparam.redact import without_secrets


@dataclass(frozen=True)
class RemoteFile:
    """A published file: its path below a data set's directory, and what identifies it."""

    name: str
    checksum: str  # "md5:<hex>" or "sha256:<hex>"; "" where none is published, and the reader checks the content
    urls: tuple[str, ...]  # published addresses of this very file

    def checksum_of(self, path: Path) -> str:
        """Take the checksum of a file, spelled like the one that is wanted."""
        algorithm = self.checksum.partition(":")[0]
        if not algorithm:
            return ""
        with path.open("rb") as file:
            return f"{algorithm}:{hashlib.file_digest(file, algorithm).hexdigest()}"


def fetch(file: RemoteFile, directory: Path, mirrors: Sequence[str]) -> None:
    """Place the verified file at `directory / file.name`, from the first mirror or published address that gives it.

    The received part of an unfinished file stays beside it as `.partial-<name>`; the next call goes on from there.
    Raises: UserError that says what went wrong at each source; OSError if the disk is full.
    """
    target = directory / file.name
    if target.is_file() and file.checksum_of(target) == file.checksum:
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    part = Part(target.with_name(f".partial-{target.name}"), deadline.Deadline(), Meter(file.name))
    failures = []
    with part.meter.bar:
        for source in _sources(file, mirrors):
            try:
                part.deadline.run(partial(_obtain, file, source, part))
            except SourceError as error:
                failures.append(f"  {without_secrets(source)}: {error}")
            else:
                with whole_file(target) as whole:
                    part.path.replace(whole)
                part.meter.finish(target.stat().st_size)
                return
    raise _refusal(file, part, failures)


def _refusal(file: RemoteFile, part: Part, failures: Sequence[str]) -> UserError:
    within, again = "", ""
    if part.deadline.is_over:
        within = f" within {part.deadline.seconds:g} s, only {decimal(part.size)} of it"
        again = "run again to go on from there, set REPARAM_DOWNLOAD_SECONDS to more seconds, or "
    return UserError(
        f"{file.name} ({file.checksum or 'no published checksum'}): no source gives this file{within}\n"
        + "\n".join(failures or ["  no mirror is set, and no address is published"])
        + f"\n{again}set REPARAM_MIRRORS to a directory or server that holds it"
    )


def _sources(file: RemoteFile, mirrors: Sequence[str]) -> Iterator[str]:
    # A mirror may keep the folders of the name, or be one flat folder.
    names = dict.fromkeys((file.name, Path(file.name).name))
    for mirror in mirrors:
        for name in names:
            if "://" in mirror:
                base, mark, query = mirror.partition("?")  # which may hold the signature that opens the mirror
                yield f"{base.removesuffix('/')}/{quote(name)}{mark}{query}"
            else:
                yield str(Path(mirror) / name)
    yield from file.urls


def _obtain(file: RemoteFile, source: str, part: Part) -> None:
    """Fill `part` with the verified file."""
    for _ in range(2):  # the second time from zero, if old or missing bytes may explain a wrong checksum
        is_unsure = _transfer(source, part)
        found = file.checksum_of(part.path)
        if found == file.checksum:
            return
        part.path.unlink()
        if not is_unsure:
            break
    raise SourceError(f"wrong checksum: wanted {file.checksum}, found {found}")


def _transfer(source: str, part: Part) -> bool:
    """Fill `part` from one source; return whether earlier bytes were kept, or its end is uncertain."""
    scheme, separator, rest = source.partition("://")
    if not separator:
        return _copy(Path(source), part)
    match scheme.lower():
        case "http" | "https":
            from reparam.data.sources import web  # a tenth of a second, for what is on the web alone

            return web.download(source, part)
        case "file" if rest.startswith(("/", "localhost/")):
            return _copy(Path(unquote(rest.removeprefix("localhost"))), part)
        case "file":
            raise SourceError("a file:// address names no host; write file:///path")
    raise SourceError(f"unsupported scheme {scheme!r}; wanted https, http, file or a directory")


def _copy(path: Path, part: Part) -> bool:
    try:
        facts = path.stat()
    except OSError as error:
        raise SourceError(error.strerror) from None
    except ValueError as error:  # a zero byte in the name
        raise SourceError(str(error)) from None
    if not stat.S_ISREG(facts.st_mode):
        raise SourceError("wanted a regular file, found a directory, device or pipe")
    part.write(_read(path), 0, facts.st_size)
    return False


def _read(path: Path) -> Iterator[bytes]:
    try:
        with path.open("rb") as file:
            while block := file.read(BLOCK):
                yield block
    except OSError as error:  # of the source: what goes wrong with the copy is not raised in here
        raise SourceError(error.strerror) from None
