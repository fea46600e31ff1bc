"""A folder of this user on this machine, for what the next process finds and the next boot may lose."""

import os
import stat
import tempfile
from contextlib import suppress
from pathlib import Path


def directory() -> Path:
    """Return the folder, which no other user can enter. It is a new one if somebody else has taken its name."""
    folder = Path(tempfile.gettempdir()) / f"reparam-{os.getuid()}"
    with suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    found = folder.lstat()
    if found.st_uid == os.getuid() and stat.S_ISDIR(found.st_mode) and not found.st_mode & 0o077:
        return folder
    return Path(tempfile.mkdtemp(prefix="reparam-"))
