"""Files of arrays, which may be damaged."""

import io
import zipfile
import zlib
from typing import Any

import numpy as np
import numpy.typing as npt

# What zipfile and numpy raise beside their own errors: the last two where the file is a single array.
DAMAGED = (EOFError, MemoryError, OSError, RuntimeError, ValueError, AttributeError, TypeError)


def parse_arrays(content: bytes) -> dict[str, npt.NDArray[Any]]:
    """Read arrays by their names, as `numpy.savez` writes them.

    Raises: ValueError.
    """
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except (*DAMAGED, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"no arrays as numpy.savez writes them: {error}") from None
