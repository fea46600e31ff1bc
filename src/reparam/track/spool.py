"""Calls that a tracking store could not take, kept on disk until it can."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from filelock import FileLock

from reparam.errors import TrackingError

Call = dict[str, Any]


class Spool:
    """The undelivered calls of one run: a file of JSON lines, and copies of the files that they name."""

    def __init__(self, directory: Path, run_id: str) -> None:
        self.calls = directory / f"{run_id}.jsonl"
        self.attachments = directory / run_id
        # A run may go on spooling while `reparam replay` empties the spool.
        self.lock = FileLock(directory / f"{run_id}.lock")

    def add(self, call: Call) -> None:
        """Append a call; the file that it names under `path` is copied, because the next run will overwrite it."""
        self.calls.parent.mkdir(parents=True, exist_ok=True)
        with self.lock:
            if "path" in call:
                copy = self.attachments / call["folder"] / Path(call["path"]).name
                copy.parent.mkdir(parents=True, exist_ok=True)
                if Path(call["path"]).is_dir():
                    shutil.copytree(call["path"], copy, dirs_exist_ok=True)
                else:
                    shutil.copyfile(call["path"], copy)
                call = {**call, "path": str(copy)}
            with self.calls.open("a", encoding="utf-8") as file:
                file.write(json.dumps(call) + "\n")

    def replay(self, deliver: Callable[[Call], None]) -> int:
        """Deliver every call in order, then forget them; return their number. Where one fails, it and the rest stay.

        Raises: TrackingError if the file is damaged, and what `deliver` raises.
        """
        with self.lock:
            calls = self._read()
            for done, call in enumerate(calls):
                try:
                    deliver(call)
                except BaseException:
                    rest = "".join(json.dumps(call) + "\n" for call in calls[done:])
                    self.calls.write_text(rest, encoding="utf-8")
                    raise
            self.calls.unlink()
            shutil.rmtree(self.attachments, ignore_errors=True)
        return len(calls)

    def _read(self) -> list[Call]:
        calls = []
        for number, line in enumerate(self.calls.read_bytes().splitlines(), start=1):
            try:
                call = json.loads(line)
            except ValueError:  # of a disk that was full
                call = None
            if not isinstance(call, dict) or not {"call", "run"} <= call.keys():
                raise TrackingError(
                    f"line {number}: damaged: no call to MLflow; remove this line, the others are whole"
                )
            calls.append(call)
        return calls
