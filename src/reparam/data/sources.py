"""The data sets we know: what they are, how to get them, and how to read what was delivered."""

import gzip
import importlib.util
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from reparam.config import choose
from reparam.errors import DamagedInputError, UserError
from reparam.files import read_json, rerun, sha256, write_json

Images = npt.NDArray[np.uint8]  # (N, C, H, W)
Labels = npt.NDArray[np.int64]  # (N,)
MANIFEST = "manifest.json"


@dataclass(frozen=True)
class Source:
    """A data set: `fetch` fills a directory with the files as delivered, `read` turns them into images and labels.

    `checksums` maps each file's name to the SHA-256 that it must have.
    """

    title: str
    licence: str
    checksums: dict[str, str]
    fetch: Callable[[Path], None]
    read: Callable[[Path], tuple[Images, Labels]]


def download(name: str, directory: Path) -> None:
    """Fetch a source into an empty directory, verify every file, and write the manifest last.

    Raises: UserError where a file is not the one that was published.
    """
    source = choose(SOURCES, name, "download.source")
    source.fetch(directory)
    for file, wanted in source.checksums.items():
        found = sha256(directory / file)
        if found != wanted:
            raise UserError(
                f"{name}: {file} has SHA-256 {found}, wanted {wanted}: the file differs from the published one; "
                "reinstall or fetch it again"
            )
    files = {
        file: {"sha256": digest, "bytes": (directory / file).stat().st_size}
        for file, digest in source.checksums.items()
    }
    write_json(directory / MANIFEST, {"source": name, "title": source.title, "licence": source.licence, "files": files})


def read(directory: Path) -> tuple[str, Images, Labels]:
    """Read downloaded files, after checking them against the manifest: the source's name, images and labels.

    Raises: MissingInputError, DamagedInputError.
    """
    manifest = read_json(directory / MANIFEST, made_by="download")
    for file, facts in manifest["files"].items():
        path = directory / file
        size = path.stat().st_size if path.exists() else None
        if size != facts["bytes"] or sha256(path) != facts["sha256"]:
            found = "no file" if size is None else f"{size} bytes with another checksum"
            raise DamagedInputError(
                f"{path}: wanted the {facts['bytes']} bytes that were downloaded, found {found}; {rerun('download')}"
            )
    name = manifest["source"]
    return name, *SOURCES[name].read(directory)


def _fetch_digits(directory: Path) -> None:
    # Located without importing scikit-learn, which takes a second.
    package = importlib.util.find_spec("sklearn")
    if package is None or package.origin is None:
        raise UserError("digits: the images ship inside scikit-learn, which is not installed; run `make install`")
    shutil.copyfile(Path(package.origin).parent / "datasets/data/digits.csv.gz", directory / "digits.csv.gz")


def _read_digits(directory: Path) -> tuple[Images, Labels]:
    with gzip.open(directory / "digits.csv.gz", "rt") as file:
        table = np.loadtxt(file, delimiter=",", dtype=np.int64)  # (N, 65): 64 grey values in 0..16, then the class
    grey = np.rint(table[:, :-1] * (255 / 16)).astype(np.uint8)
    return grey.reshape(-1, 1, 8, 8), table[:, -1]


SOURCES = {
    "digits": Source(
        title="Optical recognition of handwritten digits, test part (Alpaydin & Kaynak 1998)",
        licence="CC BY 4.0",
        checksums={"digits.csv.gz": "09f66e6debdee2cd2b5ae59e0d6abbb73fc2b0e0185d2e1957e9ebb51e23aa22"},
        fetch=_fetch_digits,
        read=_read_digits,
    )
}
