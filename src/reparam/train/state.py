"""The complete state of a training: everything that decides how it goes on."""

from collections.abc import Mapping
from typing import Any, Protocol

import torch
from torch import Tensor

from reparam.train.record import Record
from reparam.train.sums import Sums
from reparam.train.trainer import Trainer

OWN_PARTS = ("sums", "random")  # each process sums its own images, and draws its own noise


class Stateful(Protocol):
    """A part of a training that survives a kill: its state is nested dicts of tensors, numbers, texts and lists."""

    def state_dict(self) -> dict[str, Any]:
        """Return the state, which may share memory with its owner."""

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state, without sharing memory that changes in place."""


class Shared(Stateful, Protocol):
    """A part whose state differs between processes; the first process writes all of it."""

    def own_part(self, state: Mapping[str, Any]) -> dict[str, Any]:
        """Return the part of a state that differs between processes, on the CPU."""

    def with_own_part(self, state: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
        """Put the part of one process into the state of the first one."""


class Epoch:
    """The running epoch: the order in which its images are visited, and the loss terms that are summed so far."""

    def __init__(self, device: torch.device) -> None:
        self.order: Tensor | None = None  # (N,) rows; None between two epochs
        self.sums = Sums(device)

    def begin(self, order: Tensor) -> None:
        """Begin a new epoch. Shapes: (N,) rows."""
        self.order = order
        self.sums.clear()

    def end(self) -> None:
        """End the epoch, so that the next begins with an order of its own."""
        self.order = None

    def left(self, position: int) -> Tensor:
        """Return the rows that are still to be visited. Shapes: -> (N - position,)."""
        assert self.order is not None, "no epoch has begun"
        return self.order[position:]

    def state_dict(self) -> dict[str, Any]:
        return {} if self.order is None else {"order": self.order}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.order = state.get("order")


class RandomStreams:
    """The states of torch's generators: that of the CPU, and that of the device."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def state_dict(self) -> dict[str, Any]:
        is_used = self.device.type == "cuda" and torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
        return {
            "cpu": torch.get_rng_state(),
            "cuda": {"state": torch.cuda.get_rng_state(self.device)} if is_used else {},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        torch.set_rng_state(state["cpu"])
        if state["cuda"]:
            torch.cuda.set_rng_state(state["cuda"]["state"], self.device)


class State:
    """A training: the trainer, the running epoch, the record, and the random streams."""

    def __init__(self, trainer: Trainer) -> None:
        self.trainer = trainer
        self.epoch = Epoch(trainer.device)
        self.record = Record()
        self.parts: dict[str, Stateful] = {
            "trainer": trainer,
            "epoch": self.epoch,
            "sums": self.epoch.sums,
            "record": self.record,
            "random": RandomStreams(trainer.device),
        }

    @property
    def position(self) -> int:
        """How many images of the running epoch were visited."""
        return self.trainer.images - len(self.record.history) * self.trainer.epoch_images

    def state_dict(self) -> dict[str, Any]:
        return {name: part.state_dict() for name, part in self.parts.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        for name, part in self.parts.items():
            part.load_state_dict(state[name])

    def separate_processes(self) -> None:
        """Let no two processes draw the same noise."""
        trainer = self.trainer
        if not trainer.world.is_first:
            torch.manual_seed(trainer.config.seed + trainer.world.rank)

    def own_part(self, state: Mapping[str, Any]) -> dict[str, Any]:
        return {name: _on_cpu(state[name]) for name in OWN_PARTS}

    def with_own_part(self, state: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
        return {**state, **own}


def _on_cpu(state: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value.cpu() if isinstance(value, Tensor) else value for name, value in state.items()}
