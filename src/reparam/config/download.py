"""Section `download`."""

from typing import Annotated, Literal

from reparam.config.section import KeyOf, Section


class EmnistConfig(Section):
    """Block `emnist`."""

    variant: Literal["byclass", "bymerge", "balanced", "letters", "digits", "mnist"]
    """Published selection of classes and images. Source: Cohen et al. 2017, table 2."""


class FolderConfig(Section):
    """Block `folder`."""

    path: str | None
    """A directory tree of images, or a .zip or .tar of one; a relative path starts at the root of the repository."""

    attributes: str | None
    """A CSV file in it: a header, then the path of an image and its attributes, which become factors of variation."""

    label: str | None
    """Column of that file whose values are the classes; null takes folders for classes."""


class DownloadConfig(Section):
    """The data set to fetch."""

    source: Annotated[str, KeyOf("SOURCES", "data/sources/registry.py")]
    """Data set to fetch."""

    emnist: EmnistConfig
    """For source emnist."""

    folder: FolderConfig
    """For source folder, which needs a path."""
