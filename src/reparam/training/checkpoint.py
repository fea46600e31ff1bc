"""Training state on disk and in memory, so that a killed training goes on as if nothing had been."""

import json
import logging
import signal
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from filelock import FileLock
from safetensors.torch import load, save
from torch import Tensor

from reparam.config import TrainConfig
from reparam.errors import NonFiniteError
from reparam.files import whole_file
from reparam.training.loop import Fit, Sums
from reparam.training.step import Step

KEPT = 2  # the newest, and the one before it in case the newest is damaged
ROLLBACKS = 3  # a learning rate that is still too high at an eighth is not the trouble

log = logging.getLogger(__name__)


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
            log.warning("%s: damaged, its checksum differs; using the checkpoint before it, or starting anew", path)
            path.unlink(missing_ok=True)
        return None

    @contextmanager
    def held(self) -> Iterator[None]:
        """Keep other processes that train the same away.

        Raises: Timeout where another one was here first.
        """
        self.directory.mkdir(parents=True, exist_ok=True)
        with FileLock(self.directory / "lock", timeout=0):
            for partial in self.directory.glob(".partial-*"):  # of a process that was killed while it wrote
                partial.unlink()
            yield

    def clear(self) -> None:
        """Remove all of them: training is done."""
        for path in (*self._paths(), self._run):
            path.unlink(missing_ok=True)

    @property
    def run_id(self) -> str:
        """The tracking run that the interrupted training belongs to; empty where there is none."""
        return self._run.read_text(encoding="utf-8") if self._run.exists() else ""

    @run_id.setter
    def run_id(self, value: str) -> None:
        with whole_file(self._run) as partial:
            partial.write_text(value, encoding="utf-8")

    @property
    def _run(self) -> Path:
        return self.directory / "run"

    def _paths(self) -> list[Path]:
        # A file that is half-written has a dot before its number, which `*` alone would match.
        return sorted(self.directory.glob("[0-9]*.safetensors"))


class Guard:
    """Looks after training: writes checkpoints, ends on a signal, and rolls back when the loss is no longer finite."""

    def __init__(self, step: Step, fit: Fit, config: TrainConfig, checkpoints: Checkpoints, seconds: float) -> None:
        self.step = step
        self.fit = fit
        self.config = config
        self.checkpoints = checkpoints
        self.seconds = seconds  # between checkpoints
        self.rollbacks = 0
        self.signal = 0
        self._written = time.monotonic()
        self._good: Any = None

    @property
    def is_stopping(self) -> bool:
        return self.signal != 0

    def resume(self) -> bool:
        """Go on from the newest checkpoint; say whether there was one."""
        state = self.checkpoints.read()
        if state is not None:
            self._restore(state)
            self._good = state["good"] or None
        return state is not None

    def after_step(self) -> None:
        if not self.signal and time.monotonic() - self._written < self.seconds:
            return
        if not self.fit.seen.is_spoilt():
            # With what a roll-back would go back to: an interrupted epoch must not change where that is.
            self.checkpoints.write(self._state() | {"good": self._good or {}})
        self._written = time.monotonic()
        if self.signal:
            raise SystemExit(128 + self.signal)  # as a shell tells it

    def after_epoch(self) -> None:
        self._remember()

    def roll_back(self, error: NonFiniteError) -> None:
        if self.config.on_nonfinite == "stop" or self.rollbacks == ROLLBACKS:
            raise error
        rollbacks, factor = self.rollbacks + 1, self.step.rate_factor / 2
        self._restore(self._good)
        self.rollbacks, self.step.rate_factor = rollbacks, factor
        self._remember()
        log.warning("%s", error)
        log.warning(
            "train: back to the end of epoch %d, learning rate times %g (%d of %d times)",
            len(self.fit.history),
            factor,
            rollbacks,
            ROLLBACKS,
        )

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Let SIGTERM or SIGINT end training after the running step, with a checkpoint; a second one at once."""

        def note(number: int, _frame: FrameType | None) -> None:
            if self.signal:
                raise SystemExit(128 + number)
            self.signal = number

        if self._good is None:
            self._remember()
        before = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _remember(self) -> None:
        if self.config.on_nonfinite == "rollback":
            self._good = _copy(self._state())

    def _state(self) -> dict[str, Any]:
        fit = self.fit
        return {
            "step": self.step.state(),
            "random": {"cpu": torch.get_rng_state(), "cuda": _cuda_random_state()},
            "history": fit.history,
            "best": {"score": fit.best_score, "epoch": fit.best_epoch, "weights": fit.best_weights},
            "order": {} if fit.order is None else {"rows": fit.order},
            "seen": {
                "names": fit.seen.names,
                "totals": fit.seen.totals,
                "images": fit.seen.images,
                "steps": fit.seen.steps,
            },
            "rollbacks": self.rollbacks,
        }

    def _restore(self, state: Mapping[str, Any]) -> None:
        device = self.step.module.seen.device
        self.step.restore(state["step"])
        fit, best, seen = self.fit, state["best"], state["seen"]
        fit.history = list(state["history"])
        fit.best_score, fit.best_epoch = best["score"], best["epoch"]
        fit.best_weights = {name: tensor.to(device) for name, tensor in best["weights"].items()}
        fit.order = state["order"]["rows"] if state["order"] else None
        fit.seen = Sums()
        fit.seen.names, fit.seen.totals = list(seen["names"]), seen["totals"].clone().to(device)
        fit.seen.images, fit.seen.steps = seen["images"], seen["steps"]
        self.rollbacks = state["rollbacks"]
        torch.set_rng_state(state["random"]["cpu"])
        if state["random"]["cuda"]:
            torch.cuda.set_rng_state(state["random"]["cuda"]["state"])


def _cuda_random_state() -> dict[str, Tensor]:
    is_used = torch.cuda.is_available() and torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    return {"state": torch.cuda.get_rng_state()} if is_used else {}


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


def _copy(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach().clone()
    if isinstance(value, Mapping):
        return {name: _copy(part) for name, part in value.items()}
    return list(value) if isinstance(value, list) else value
