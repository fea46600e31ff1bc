"""The data on which results of density estimation are published: static MNIST and OMNIGLOT, with their splits."""

from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from reparam.data.sources.folder import ImageFiles
from reparam.data.sources.raw import ImageArrays, Raw
from reparam.data.sources.transport import RemoteFile
from reparam.errors import DamagedInputError
from reparam.files import rerun

SIDE = 28
PIXELS = SIDE * SIDE
# Of Larochelle's files, as TensorFlow Datasets lists them (url_checksums/binarized_mnist.txt).
BINARIZED_MNIST = {
    "train": "ad693b29f94c14277b095f5238ddefbbdaaae0939789dd2f4f0205278cee3e4d",
    "valid": "1de3d397c40fe8eeb33dafd4099a1f665ec01e96d9be234aaeeac8a34930e2e2",
    "test": "e6687bfea3f820c174f33b7865140b2a2dd2930ef786f35d45795fc193b5ab2c",
}
OMNIGLOT = "chardata.mat"
COUNTS = {"train": 24_345, "test": 8_070}  # images of OMNIGLOT in Burda's split
ALPHABETS = 50


def binarized_mnist_files() -> list[RemoteFile]:
    """Name the three files of the MNIST that Larochelle & Murray 2011 drew in black and white once and for all."""
    base = "http://www.cs.toronto.edu/~larocheh/public/datasets/binarized_mnist"
    names = {f"binarized_mnist_{split}.amat": digest for split, digest in BINARIZED_MNIST.items()}
    return [RemoteFile(name, f"sha256:{digest}", (f"{base}/{name}",)) for name, digest in names.items()]


def read_binarized_mnist(directory: Path, _scratch: Path) -> Raw:
    """Read lines of 784 digits 0 or 1; nobody published which digit an image shows."""
    splits: dict[str, ImageArrays | ImageFiles] = {}
    for split, published in {"train": "train", "validation": "valid", "test": "test"}.items():
        path = directory / f"binarized_mnist_{published}.amat"
        content = np.fromfile(path, np.uint8)
        # A digit and a space or line break: np.loadtxt takes minutes.
        digits = content[::2] - np.uint8(ord("0"))
        if len(content) % (2 * PIXELS) or (digits > 1).any():
            raise DamagedInputError(
                f"{path}: wanted lines of {PIXELS} digits 0 or 1, found others; {rerun('download')}"
            )
        images = 255 * digits.reshape(-1, 1, SIDE, SIDE)
        splits[split] = ImageArrays(images, np.zeros(len(images), np.int64))
    return Raw(splits, ("digit",))


def omniglot_files() -> list[RemoteFile]:
    """Name the file of OMNIGLOT in the repository of Burda et al. 2016; nobody published a checksum of it."""
    return [RemoteFile(OMNIGLOT, "", (f"https://github.com/yburda/iwae/raw/master/datasets/OMNIGLOT/{OMNIGLOT}",))]


def read_omniglot(directory: Path, _scratch: Path) -> Raw:
    """Read images and alphabets, and check what is known of them, because there is no checksum.

    Grey values are rounded to 8 bits.
    Raises: DamagedInputError.
    """
    path = directory / OMNIGLOT
    found = _read_matlab(path)
    splits: dict[str, ImageArrays | ImageFiles] = {}
    for split, prefix in {"train": "", "test": "test"}.items():
        grey = _array(path, found, f"{prefix}data", (PIXELS, COUNTS[split]))
        marks = _array(path, found, f"{prefix}target", (ALPHABETS, COUNTS[split]))
        if not (marks.sum(0) == 1).all():
            raise _damaged(path, "one alphabet for each image", f"none or several in {prefix}target")
        # MATLAB counts down the columns of an image first.
        upright = np.rint(255 * grey.T).astype(np.uint8).reshape(-1, 1, SIDE, SIDE).swapaxes(2, 3)
        splits[split] = ImageArrays(upright, marks.argmax(0))
    return Raw(splits, tuple(f"alphabet {number}" for number in range(1, ALPHABETS + 1)))


def _read_matlab(path: Path) -> dict[str, Any]:
    """Read a file of MATLAB in a process of its own, because some damaged ones make scipy's reader crash.

    Raises: DamagedInputError.
    """
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as reader:
        try:
            found: dict[str, Any] = reader.submit(_load_matlab, path).result()
        except BrokenProcessPool:
            raise _damaged(path, "a file of MATLAB 5", "one that cannot be read") from None
        except Exception as error:  # scipy raises errors of many types
            raise _damaged(path, "a file of MATLAB 5", f"none ({error})") from error
    return found


def _load_matlab(path: Path) -> dict[str, Any]:
    from scipy.io import loadmat  # a third of a second, for this data set alone

    found: dict[str, Any] = loadmat(path)
    return found


def _array(path: Path, found: dict[str, Any], name: str, shape: tuple[int, int]) -> npt.NDArray[Any]:
    array = found.get(name)
    if not isinstance(array, np.ndarray) or array.shape != shape:
        raise _damaged(path, f"{name} {shape}", str(getattr(array, "shape", "none")))
    if array.dtype.kind not in "fiub" or not ((array >= 0) & (array <= 1)).all():
        raise _damaged(path, f"{name} from 0 to 1", "other values")
    return array


def _damaged(path: Path, wanted: str, found: str) -> DamagedInputError:
    return DamagedInputError(f"{path}: wanted {wanted}, found {found}; {rerun('download')}")
