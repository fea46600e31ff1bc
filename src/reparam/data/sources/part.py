"""The part of a file that has arrived."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from rich.filesize import decimal

from reparam.data.sources.deadline import Deadline
from reparam.data.sources.faults import SourceError
from reparam.data.sources.meter import Meter

BLOCK = 1 << 16  # bytes at once; a stalled connection loses less than one block
MOST_BYTES = 1 << 32  # of a file: three times CelebA, the largest one; a body without end must not fill the disk


@dataclass(frozen=True)
class Part:
    """A growing file, with its limits and its progress display."""

    path: Path
    deadline: Deadline
    meter: Meter

    @property
    def size(self) -> int:
        return self.path.stat().st_size if self.path.exists() else 0

    def write(self, blocks: Iterable[bytes], kept: int, missing: int | None) -> None:
        """Write blocks after the first `kept` bytes: all bytes that there are, or 0. The source announced `missing`
        more.

        Raises: LateError; SourceError if there are more than MOST_BYTES; OSError if the disk is full.
        """
        self.deadline.check()
        self.meter.begin(kept, missing)
        room = MOST_BYTES - kept
        self._check_room(room - (missing or 0), f"announces {decimal(kept + (missing or 0))}")
        mode: Literal["ab", "wb"] = "ab" if kept else "wb"
        try:
            with self.path.open(mode) as file:
                for block in blocks:
                    self.deadline.check()
                    room -= len(block)
                    self._check_room(room, "sends more and more")
                    file.write(block)
                    self.meter.advance(len(block))
        except OSError as error:
            self.path.unlink(missing_ok=True)  # the room is needed more than the part
            error.filename = str(self.path)  # the system does not name the file when a disk is full
            raise

    def _check_room(self, room: int, found: str) -> None:
        if room < 0:
            self.path.unlink(missing_ok=True)
            raise SourceError(f"wanted at most {decimal(MOST_BYTES)}, found that it {found}")
