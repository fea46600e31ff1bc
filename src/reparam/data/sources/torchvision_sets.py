"""The data sets that torchvision knows: their files, addresses and checksums, and what is in them.

torchvision is imported where it is used, because it takes seconds and the bundled data need none of it.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from reparam.data.sources.archives import unpack
from reparam.data.sources.folder import ImageFiles
from reparam.data.sources.raw import ImageArrays, Raw
from reparam.data.sources.transport import RemoteFile


def files(name: str) -> list[RemoteFile]:
    """List what the torchvision class `name` downloads."""
    from torchvision import datasets

    kind: Any = getattr(datasets, name)
    match name:
        case "CIFAR10":
            listed = [(kind.filename, kind.tgz_md5, [kind.url])]
        case "SVHN":
            listed = [(file, md5, [url]) for url, file, md5 in (kind.split_list[split] for split in ("train", "test"))]
        case "EMNIST":
            listed = [("gzip.zip", kind.md5, [kind.url])]
        case "CelebA":  # on Google Drive, which serves no plain addresses
            wanted = {"img_align_celeba.zip", "list_eval_partition.txt"}
            listed = [(file, md5, []) for _, md5, file in kind.file_list if file in wanted]
        case _:  # the family of MNIST
            listed = [(file, md5, [base + file for base in kind.mirrors]) for file, md5 in kind.resources]
    return [RemoteFile(file, f"md5:{md5}", tuple(urls)) for file, md5, urls in listed]


def read(name: str, directory: Path, scratch: Path, variant: str = "") -> Raw:
    """Let the torchvision class `name` check, unpack and decode its files, without touching the originals.

    `variant` is what EMNIST calls a split.
    """
    if name in READERS:
        return READERS[name](directory, scratch)
    return _read_mnist(name, directory, scratch, variant)


def _read_mnist(name: str, directory: Path, scratch: Path, variant: str) -> Raw:
    from torchvision import datasets

    _link(directory, scratch / name / "raw")
    options = {"split": variant} if variant else {}
    splits = {}
    for split, is_train in (("train", True), ("test", False)):
        # `download` finds the files, checks their MD5 and unpacks them; the network is not touched.
        data = getattr(datasets, name)(scratch, train=is_train, download=True, **options)
        images = data.data.numpy()[:, None]  # (N, 1, H, W)
        # EMNIST is published with rows and columns exchanged (Cohen et al. 2017, sec. II).
        upright = images.swapaxes(2, 3) if name == "EMNIST" else images
        first = int(
            data.classes[0] == "N/A"
        )  # the letters of EMNIST are numbered from 1, and torchvision fills the gap
        splits[split] = ImageArrays(upright, data.targets.numpy().astype(np.int64) - first)
    return Raw(dict(splits), tuple(map(str, data.classes[first:])))


def _read_cifar10(directory: Path, scratch: Path) -> Raw:
    from torchvision import datasets

    _link(directory, scratch)
    splits = {}
    for split, is_train in (("train", True), ("test", False)):
        data = datasets.CIFAR10(scratch, train=is_train, download=True)
        splits[split] = ImageArrays(data.data.transpose(0, 3, 1, 2), np.asarray(data.targets, np.int64))
    return Raw(dict(splits), tuple(data.classes))


def _read_svhn(directory: Path, _scratch: Path) -> Raw:
    from torchvision import datasets

    splits = {}
    for split in ("train", "test"):
        data = datasets.SVHN(directory, split=split)
        splits[split] = ImageArrays(data.data, data.labels)
    return Raw(dict(splits), tuple("0123456789"))


def _read_celeba(directory: Path, scratch: Path) -> Raw:
    unpack(directory / "img_align_celeba.zip", scratch / "images")
    partition = np.loadtxt(directory / "list_eval_partition.txt", dtype=str, ndmin=2)  # (N, 2): name, 0 | 1 | 2
    splits = {}
    for number, split in enumerate(("train", "validation", "test")):
        names = tuple(f"img_align_celeba/{file}" for file in partition[partition[:, 1] == str(number), 0])
        splits[split] = ImageFiles(scratch / "images", names, (0,) * len(names), ("face",))
    return Raw(dict(splits), ("face",))


def _link(directory: Path, target: Path) -> None:
    target.mkdir(parents=True, exist_ok=True)
    for path in directory.iterdir():
        (target / path.name).symlink_to(path.resolve())


READERS: dict[str, Callable[[Path, Path], Raw]] = {"CIFAR10": _read_cifar10, "SVHN": _read_svhn, "CelebA": _read_celeba}
