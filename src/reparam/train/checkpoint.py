"""Training state on disk, so that a killed training goes on as if nothing had happened."""

import json
import logging
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from safetensors.torch import load, save
from torch import Tensor

from reparam.distributed import World
from reparam.files import NO_LOCKS, whole_file

KEPT = 2  # the newest, and the one before it in case the newest is damaged

log = logging.getLogger(__name__)


@contextmanager
def holding(checkpoints: "Checkpoints", world: World) -> Iterator[bool]:
    """Hold the checkpoints; yield whether we hold them, and not another training of the same model."""
    with ExitStack() as stack:
        is_ours = torch.ones((), dtype=torch.int64)
        if world.is_first:
            try:
                stack.enter_context(checkpoints.held())
            except Timeout:
                log.warning("train: another process trains the very same model; this one keeps no checkpoints")
                is_ours.zero_()
        yield bool(world.agree(is_ours))


class Checkpoints:
    """The checkpoints of one configuration: `<number>-<SHA-256>.safetensors`, tensors, and the rest as JSON in it."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def write(self, state: Mapping[str, Any]) -> None:
        """Add a checkpoint atomically, and remove all but the newest."""
        tensors: dict[str, Tensor] = {}
        rest = _take_tensors(state, tensors, "")
        content = save(tensors, {"state": json.dumps(rest)})
        numbers = [int(path.name.split("-")[0]) for path in self._paths()]
        name = f"{max(numbers, default=0) + 1:08}-{sha256(content).hexdigest()}.safetensors"
        self.directory.mkdir(parents=True, exist_ok=True)
        with whole_file(self.directory / name) as partial:
            partial.write_bytes(content)
        for path in self._paths()[:-KEPT]:
            path.unlink(missing_ok=True)

    def read(self) -> Any:
        """Return the newest whole checkpoint, or None; report and remove damaged ones."""
        for path in reversed(self._paths()):
            content = path.read_bytes()
            if sha256(content).hexdigest() == path.stem.partition("-")[2]:
                header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
                return _put_tensors(json.loads(header["__metadata__"]["state"]), load(content), "")
            log.warning("%s: damaged, its checksum differs; using the checkpoint before it, or starting again", path)
            path.unlink(missing_ok=True)
        return None

    @contextmanager
    def held(self) -> Iterator[None]:
        """Keep out other processes that train the same model, if the file system has locks.

        Raises: Timeout if another one was here first.
        """
        lock = FileLock(self._lock, timeout=0)
        while not lock.is_locked:
            try:
                self.directory.mkdir(parents=True, exist_ok=True)
                lock.acquire()
            except FileNotFoundError:  # another training ended, and removed the directory in between
                continue
            except OSError as error:
                if error.errno not in NO_LOCKS:
                    raise
                log.warning("%s: has no locks; see that one machine alone trains this model there", self.directory)
                break
        try:
            for partial in self.directory.glob(".partial-*"):  # of a process that was killed while it wrote
                partial.unlink()
            yield
        finally:
            lock.release()

    def clear(self) -> None:
        """Remove all checkpoints and their lock: training is done."""
        for path in (*self._paths(), self._run, self._lock):
            path.unlink(missing_ok=True)
        with suppress(OSError):  # not empty: others train, or there are files that are not ours
            self.directory.rmdir()
            self.directory.parent.rmdir()

    @property
    def run_id(self) -> str:
        """The tracking run that the interrupted training belongs to; empty if there is none."""
        try:
            return self._run.read_text(encoding="ascii")
        except FileNotFoundError:
            return ""
        except ValueError:
            log.warning("%s: damaged; tracking starts a new run", self._run)
            return ""

    @run_id.setter
    def run_id(self, value: str) -> None:
        with whole_file(self._run) as partial:
            partial.write_text(value, encoding="utf-8")

    @property
    def _lock(self) -> Path:
        return self.directory / "lock"

    @property
    def _run(self) -> Path:
        return self.directory / "run"

    def _paths(self) -> list[Path]:
        # A file that is half-written has a dot before its number, which `*` alone would match.
        return sorted(self.directory.glob("[0-9]*-*.safetensors"))


def _take_tensors(value: Any, tensors: dict[str, Tensor], path: str) -> Any:
    """Move the tensors of nested dicts into `tensors`, by their paths, and return what is left."""
    if isinstance(value, Tensor):
        # Copied, because safetensors refuses tensors that share memory.
        tensors[path] = value.detach().cpu().clone().contiguous()
        return {"tensor": path}
    if isinstance(value, Mapping):
        return {str(name): _take_tensors(part, tensors, f"{path}/{name}") for name, part in value.items()}
    return value


def _put_tensors(value: Any, tensors: Mapping[str, Tensor], path: str) -> Any:
    """Undo `_take_tensors`."""
    if isinstance(value, dict):
        if value.get("tensor") == path:
            return tensors[path]
        return {name: _put_tensors(part, tensors, f"{path}/{name}") for name, part in value.items()}
    return value
