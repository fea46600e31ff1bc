"""What all cards have in common: how they are read, checked, written and identified."""

import hashlib
import math
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, PlainValidator, ValidationError

from reparam.config.section import describe_problem
from reparam.errors import DamagedInputError
from reparam.files import require, rerun, sha256, to_json, write_json

CARD = "card.json"  # in a directory that a stage writes
MANIFEST = "manifest.json"


def _check_number(value: Any) -> float | int:
    if isinstance(value, bool) or not isinstance(value, float | int) or not math.isfinite(value):
        raise ValueError("a number")
    return value


Number = Annotated[float | int, PlainValidator(_check_number)]  # which stays whole where it is
Hash = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
DirectoryHash = Annotated[str, Field(pattern=r"^[0-9a-f]{32}\.dir$")]  # as `dvc.lock` has it
UnitFloat = Annotated[float, Field(ge=0, le=1)]
Side = Annotated[int, Field(ge=1, lt=2**31)]  # of an image, in pixels
Shape = tuple[Side, Side, Side]


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
        write_json(path, self.model_dump(mode="json"))

    @property
    def digest(self) -> str:
        """Return the SHA-256 of its file."""
        return hashlib.sha256(to_json(self.model_dump(mode="json")).encode()).hexdigest()


class FileFacts(Card):
    """What identifies a file."""

    sha256: Hash
    bytes: NonNegativeInt

    @classmethod
    def of(cls, path: Path) -> Self:
        return cls(sha256=sha256(path), bytes=path.stat().st_size)

    @classmethod
    def below(cls, directory: Path) -> dict[str, Self]:
        """Describe all files of a directory, by their paths in it."""
        files = sorted(path for path in directory.rglob("*") if path.is_file())
        return {path.relative_to(directory).as_posix(): cls.of(path) for path in files}


Files = Annotated[dict[str, FileFacts], Field(min_length=1)]
