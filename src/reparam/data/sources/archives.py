"""Archives, unpacked as a whole or not at all, and never out of their directory."""

import lzma
import shutil
import stat
import tarfile
import zipfile
import zlib
from pathlib import Path, PureWindowsPath
from typing import Literal

from reparam.errors import DamagedInputError, UserError
from reparam.files import whole_directory

TarMode = Literal["r:", "r:gz", "r:bz2", "r:xz"]
TAR_MODES: dict[str, TarMode] = {
    ".tar": "r:",
    ".tar.gz": "r:gz",
    ".tgz": "r:gz",
    ".tar.bz2": "r:bz2",
    ".tar.xz": "r:xz",
}
LINKS = {tarfile.SYMTYPE: "a symbolic link", tarfile.LNKTYPE: "a hard link"}
# Types of members in a .zip from Unix; others have 0.
MODES = {0: None, stat.S_IFREG: None, stat.S_IFDIR: None, stat.S_IFLNK: "a symbolic link"}


def unpack(archive: Path, directory: Path) -> None:
    """Unpack a .zip or .tar archive into `directory`, whose former content it replaces.

    Links and special files are refused, not skipped: nobody would notice a picture that was left out, and links got
    members past the filter of `tarfile` (CVE-2025-4517).
    Raises: UserError that names the member; DamagedInputError.
    """
    assert directory not in archive.parents
    name = archive.name.lower()
    mode = next((mode for suffix, mode in TAR_MODES.items() if name.endswith(suffix)), None)
    if mode is None and not name.endswith(".zip"):
        raise UserError(f"{archive}: wanted a name that ends in .zip or {', '.join(TAR_MODES)}; pack the files again")
    try:
        with whole_directory(directory, durable=False) as partial:
            _unpack_tar(archive, mode, partial) if mode else _unpack_zip(archive, partial)
    except (tarfile.TarError, zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, UnicodeDecodeError) as error:
        raise _damaged(archive, error) from None
    except RuntimeError as error:  # zipfile, if it does not know a compression or encryption
        raise UserError(f"{archive}: cannot be unpacked ({error}); pack the files again") from None
    except OSError as error:
        if error.errno is None:  # not of the system: gzip and bz2 raise it for damaged data
            raise _damaged(archive, error) from None
        error.filename = error.filename or str(directory)  # the system does not name the file when a disk is full
        raise


def _unpack_tar(archive: Path, mode: TarMode, directory: Path) -> None:
    with tarfile.open(archive, mode) as tar:
        for member in tar:
            plain = member.isfile() or member.isdir()
            _check(archive, member.name, None if plain else LINKS.get(member.type, "a special file"))
            _write(tar, member, directory / member.name)
        # tarfile takes a damaged header for the end, and leaves the checksum at the end of a .gz unread.
        assert tar.fileobj
        tar.fileobj.seek(tar.offset)
        end = tar.fileobj.read(tarfile.BLOCKSIZE)
        while tar.fileobj.read(1 << 20):
            pass
    if end != tarfile.NUL * tarfile.BLOCKSIZE:
        raise tarfile.ReadError("no end of archive after the last readable member")


def _write(tar: tarfile.TarFile, member: tarfile.TarInfo, target: Path) -> None:
    # Not by `extract`: before Python 3.11.4 it lacks the filter that ignores owners and modes.
    if member.isdir():
        target.mkdir(parents=True, exist_ok=True)
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    content = tar.extractfile(member)
    assert content is not None  # of a regular file
    with content, target.open("wb") as file:
        shutil.copyfileobj(content, file)


def _unpack_zip(archive: Path, directory: Path) -> None:
    with zipfile.ZipFile(archive) as file:
        for member in file.infolist():
            odd = MODES.get(stat.S_IFMT(member.external_attr >> 16), "a special file")
            _check(archive, member.filename, "encrypted" if member.flag_bits & 1 else odd)
            file.extract(member, directory)


def _check(archive: Path, name: str, odd: str | None) -> None:
    # The Windows reading takes both / and \ for separators and knows drives: what is safe there is safe everywhere.
    path = PureWindowsPath(name)
    if path.anchor or ".." in path.parts:
        raise UserError(
            f"{archive}: {name!r} would land outside of the directory; nothing was unpacked; "
            "take the archive from a source that you trust"
        )
    if odd:
        raise UserError(
            f"{archive}: {name!r} is {odd}, wanted plain files and folders; nothing was unpacked; "
            "pack the files themselves"
        )


def _damaged(archive: Path, error: Exception) -> DamagedInputError:
    return DamagedInputError(
        f"{archive}: damaged or truncated ({error}); nothing was unpacked; fetch or copy the archive again"
    )
