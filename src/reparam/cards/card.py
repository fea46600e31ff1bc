"""The base of all cards: how they are read, checked, written and identified."""

import hashlib
import math
import sys
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, PlainValidator, ValidationError

from reparam.config.section import describe_problem
from reparam.errors import DamagedInputError
from reparam.files import require, rerun, sha256, to_json, write_json

CARD = "card.json"  # in a directory that a stage writes
MANIFEST = "manifest.json"
SHORT = 12  # digits of a hash that distinguish files and models where people read them
LARGEST_IMAGE = 10**8  # numbers: a batch of a single one takes gigabytes in a network


def _check_number(value: Any) -> float | int:
    # Compared, not converted: a whole number can be too large for a float.
    if isinstance(value, bool) or not isinstance(value, float | int) or not abs(value) <= sys.float_info.max:
        raise ValueError("a number")
    return value


def _check_shape(shape: tuple[int, int, int]) -> tuple[int, int, int]:
    if math.prod(shape) > LARGEST_IMAGE:
        raise ValueError(f"at most {LARGEST_IMAGE:,} numbers in an image")
    return shape


Number = Annotated[float | int, PlainValidator(_check_number)]  # a whole number stays whole
Hash = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
DirectoryHash = Annotated[str, Field(pattern=r"^[0-9a-f]{32}\.dir$")]  # as `dvc.lock` has it
UnitFloat = Annotated[float, Field(ge=0, le=1)]
Side = Annotated[int, Field(ge=1, le=65_536)]  # of an image, in pixels
Shape = Annotated[tuple[Side, Side, Side], AfterValidator(_check_shape)]


class Card(BaseModel):
    """Frozen facts, read and written as JSON."""

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid", allow_inf_nan=False)

    @classmethod
    def read(cls, path: Path, made_by: str) -> Self:
        """Read a card that the stage `made_by` wrote.

        Raises: MissingInputError, DamagedInputError.
        """
        require(path, made_by)
        try:
            return cls.parse(path.read_bytes())
        except ValueError as error:
            raise DamagedInputError(f"{path}: {error}; {rerun(made_by)}") from None

    @classmethod
    def parse(cls, content: bytes) -> Self:
        """Read the content of a card.

        Raises: ValueError that names the field.
        """
        try:
            return cls.model_validate_json(content)
        except ValidationError as error:
            raise ValueError(describe_problem(error.errors(include_url=False)[0])) from None

    def write(self, path: Path) -> None:
        """Write the card with one spelling per value, so that equal cards are equal bytes."""
        write_json(path, self._content())

    @property
    def digest(self) -> str:
        """Return the SHA-256 of its values; it is that of the file, unless the card is sealed."""
        return hashlib.sha256(to_json(self._content()).encode()).hexdigest()

    def _content(self) -> dict[str, Any]:
        return self.model_dump(mode="json", exclude={"checksum"})


class SealedCard(Card):
    """A card whose file holds its digest, so that an edit is noticed; the next card also holds the digest."""

    checksum: Hash | None = None  # of the other values; in the file alone

    @classmethod
    def parse(cls, content: bytes) -> Self:
        """Read the content of a file, and check that its checksum is that of its values.

        Raises: ValueError that says what differs.
        """
        sealed = super().parse(content)
        card = sealed.model_copy(update={"checksum": None})
        if sealed.checksum != card.digest:
            raise ValueError(
                f"checksum: wanted {card.digest}, as of the other values, found {sealed.checksum or 'none'}"
            )
        return card

    def write(self, path: Path) -> None:
        """Write the card and its checksum."""
        write_json(path, self._content() | {"checksum": self.digest})


class FileFacts(Card):
    """The facts that identify a file."""

    sha256: Hash
    bytes: Annotated[int, Field(ge=0, lt=2**53)]  # the largest whole number that every reader of JSON keeps exact

    def __str__(self) -> str:
        return f"{self.bytes:,} bytes of SHA-256 {self.sha256[:SHORT]}"

    @classmethod
    def of(cls, path: Path) -> Self:
        return cls(sha256=sha256(path), bytes=path.stat().st_size)

    @classmethod
    def below(cls, directory: Path) -> dict[str, Self]:
        """Describe all files of a directory, by their paths in it."""
        files = sorted(path for path in directory.rglob("*") if path.is_file())
        return {path.relative_to(directory).as_posix(): cls.of(path) for path in files}


Files = Annotated[dict[str, FileFacts], Field(min_length=1)]


def facts_of(content: bytes) -> FileFacts:
    """Describe a file with this content."""
    return FileFacts(sha256=hashlib.sha256(content).hexdigest(), bytes=len(content))


def check_file(name: str, files: Files, found: FileFacts, made_by: str) -> None:
    """Check a file against its facts on the card of the stage `made_by`.

    Raises: ValueError.
    """
    if found != (wanted := files.get(name, "no such file")):
        raise ValueError(f"wanted {wanted} (as {made_by} wrote it), found {found}")


def require_file(directory: Path, name: str, files: Files, made_by: str) -> None:
    """See that a file is there, and check it as `check_file` does.

    Raises: MissingInputError, DamagedInputError.
    """
    path = directory / name
    require(path, made_by)
    try:
        check_file(name, files, FileFacts.of(path), made_by)
    except ValueError as error:
        raise DamagedInputError(f"{path}: {error}; {rerun(made_by)}") from None
