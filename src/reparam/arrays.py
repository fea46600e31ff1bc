"""Arrays in files, which may be damaged."""

import io
import zipfile
import zlib
from pathlib import Path
from tokenize import TokenError
from typing import Any

import numpy as np
import numpy.typing as npt

# What numpy and zipfile raise where a file is damaged; numpy reads the head of an array as Python.
DAMAGED = (
    *(EOFError, MemoryError, RuntimeError, ValueError, AttributeError, TypeError, OverflowError),
    *(SyntaxError, TokenError, zipfile.BadZipFile, zlib.error),
)


def map_array(path: Path) -> npt.NDArray[Any]:
    """Map a file of one array, as `numpy.save` writes it, into memory.

    Raises: ValueError if it holds no array, OSError if it cannot be opened.
    """
    try:
        found = np.load(path, mmap_mode="r", allow_pickle=False)
    except DAMAGED as error:
        raise ValueError(f"none ({error})") from None
    if not isinstance(found, np.ndarray):
        found.close()
        raise ValueError("several arrays")  # noqa: TRY004  # it is the file that is wrong
    return found


def parse_arrays(content: bytes) -> dict[str, npt.NDArray[Any]]:
    """Read arrays by their names, as `numpy.savez` writes them.

    Raises: ValueError.
    """
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except (*DAMAGED, OSError) as error:
        raise ValueError(f"no arrays as numpy.savez writes them: {error}") from None
