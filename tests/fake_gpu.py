"""A GPU that is not there: tensors without numbers, and a watch on who mixes devices and who waits.

Two devices replace it. `cuda`, within `fake_gpu`, takes every branch that a GPU takes; autograd asks the driver
there, so that gradients are made up. On `meta`, within `Watch`, gradients are those of the loss. Neither has numbers,
kernels, streams or memory.
"""

import importlib
import sys
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager, nullcontext
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor
from torch._subclasses import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from reparam.data import batches

GPU = torch.device("cuda")
META = torch.device("meta")
NUMBER = torch.ops.aten._local_scalar_dense.default  # what item(), bool(), int() and float() ask for
DEVICE = torch.ops.prim.device.default
TO, COPY = torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default

needs_cuda_build = pytest.mark.skipif(
    not torch.backends.cuda.is_built(), reason="this torch was built without CUDA, and has not even fake tensors of it"
)


class Watch(TorchDispatchMode):
    """Refuse what a GPU refuses, and note where the CPU waits for it, and what for.

    A number that is asked for is True, 0 or 1.0.
    """

    def __init__(self) -> None:
        super().__init__()
        self.waits: list[str] = []
        self.is_capturing = False

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        if func is DEVICE:
            return args[0].fake_device  # at once, because half of all calls ask for it
        kwargs = kwargs or {}
        if func is NUMBER:
            self.arrive(args[0], "number")
            return args[0].dtype == torch.bool or float(args[0].is_floating_point())
        if func not in (TO, COPY):
            _refuse_two_devices(func, args)
        if func.name().startswith("aten::_fused_"):
            return None  # an optimizer's step, in place, of which there are no fakes
        result = func(*args, **kwargs)
        if func is TO:
            self.copied(args[0], result, is_async=kwargs.get("non_blocking", False))
        elif func is COPY:
            self.copied(args[1], args[0], is_async=args[2:] == (True,))
        elif (generator := kwargs.get("generator")) is not None and generator.device.type != result.device.type:
            raise RuntimeError(f"{func}: a generator on {generator.device}, a tensor on {result.device}")
        return result

    def arrive(self, value: Tensor, what: str) -> None:
        """Note that the CPU waits for a value, unless it has it."""
        if value.device.type != "cpu":
            self._wait(what)

    def copied(self, source: Tensor, target: Tensor, *, is_async: bool) -> None:
        """Note that the CPU waits for a copy, unless it is one from pinned memory that nobody waits for."""
        if source.device.type != target.device.type and not (is_async and hasattr(source, "is_fake_pinned")):
            self._wait(f"{source.device.type} to {target.device.type}")

    def _wait(self, what: str) -> None:
        if self.is_capturing:
            raise RuntimeError(f"a graph is captured, and the CPU waits: {what}")
        self.waits.append(f"{_place()}: {what}")

    @contextmanager
    def never_waits(self) -> Iterator[None]:
        """Hold a block to waiting for nothing."""
        before = len(self.waits)
        yield
        assert self.waits[before:] == []

    @contextmanager
    def capturing(self, _graph: Any, **_: Any) -> Iterator[None]:
        """Capture nothing; to wait is an error meanwhile."""
        self.is_capturing = True
        yield
        self.is_capturing = False


def _refuse_two_devices(func: Any, args: tuple[Any, ...]) -> None:
    """Refuse tensors of two devices; a single number on the CPU is none: kernels have it as an argument.

    torch's own check of fake and meta tensors leaves out some: rows on the CPU, say, for which a GPU waits.
    """
    found = set()
    for value in args:
        for part in value if isinstance(value, list | tuple) else (value,):
            if isinstance(part, Tensor) and (part.device.type != "cpu" or part.dim()):
                found.add(part.device.type)
    if len(found) > 1:
        raise RuntimeError(f"{func}: tensors on {' and '.join(sorted(found))}")


def _place() -> str:
    """Name the function that asks, which is neither torch's nor of this module."""
    frame = sys._getframe(1)
    while frame.f_globals["__name__"].split(".")[0] in ("torch", "fake_gpu"):
        assert frame.f_back is not None
        frame = frame.f_back
    return frame.f_code.co_qualname.split(".<locals>")[0]  # of comprehensions, too, which some Pythons inline


@contextmanager
def fake_gpu() -> Iterator[Watch]:
    """Let there be a GPU. What was made before, on the CPU, can be moved to it."""
    watch = Watch()

    def tolist(tensor: Tensor) -> Any:
        watch.arrive(tensor, "numbers")
        return np.zeros(tensor.shape, float if tensor.is_floating_point() else int).tolist()

    replaced: list[tuple[Any, str, Any]] = [
        (torch.autograd, "backward", _make_gradients_up),
        (torch.autograd, "grad", _make_slopes_up),
        (torch.cuda, "CUDAGraph", _Graph),
        (torch.cuda, "Stream", _Stream),
        (torch.cuda, "current_stream", _Stream),
        (torch.cuda, "device_count", lambda: 0),  # of which random streams save the state
        (torch.cuda, "graph", watch.capturing),
        (torch.cuda, "is_bf16_supported", lambda: True),
        (torch.cuda, "mem_get_info", lambda _device: (1 << 30, 1 << 30)),
        (torch.cuda, "stream", nullcontext),
        (torch.cuda.amp.common, "amp_definitely_not_available", lambda: False),
        (Tensor, "pin_memory", _pin),
        (FakeTensor, "__deepcopy__", _copy),
        (FakeTensor, "numpy", _zeros),
        (FakeTensor, "tolist", tolist),
        (batches, "ThreadPoolExecutor", _SameThread),
    ]
    with pytest.MonkeyPatch.context() as patch, FakeTensorMode(allow_non_fake_inputs=True), watch:
        for owner, name, value in replaced:
            patch.setattr(owner, name, value, raising=False)  # some are not in every torch
        for name in ("torch.optim.optimizer", "torch.utils._foreach_utils"):
            # Let optimizers take all weights at once, as they do with tensors of a GPU that is there.
            module = importlib.import_module(name)
            known = getattr(module, "_foreach_supported_types", [])
            patch.setattr(module, "_foreach_supported_types", [*known, FakeTensor], raising=False)
        yield watch


def _make_gradients_up(loss: Tensor) -> None:
    """Give a gradient to each weight that autograd would reach."""
    nodes, seen = [loss.grad_fn], {None}
    while nodes:
        node = nodes.pop()
        if node not in seen:
            seen.add(node)
            nodes += [source for source, _ in node.next_functions]
            if hasattr(node, "variable"):
                node.variable.grad = torch.zeros_like(node.variable)


def _make_slopes_up(_outputs: Tensor, inputs: Tensor | list[Tensor], **_: bool) -> tuple[Tensor, ...]:
    return tuple(map(torch.zeros_like, [inputs] if isinstance(inputs, Tensor) else inputs))


def _pin(tensor: Tensor) -> Tensor:
    assert tensor.device.type == "cpu", "only the CPU's memory can be pinned"
    tensor.is_fake_pinned = True  # type: ignore[attr-defined]
    return tensor


def _copy(tensor: Tensor, _memo: Any) -> Tensor:
    """Copy without looking at memory: torch's own way spoils that of others."""
    return tensor.detach().clone().requires_grad_(tensor.requires_grad)


def _zeros(tensor: Tensor) -> npt.NDArray[Any]:
    assert tensor.device.type == "cpu", "numpy has no arrays on a GPU"
    return np.zeros(tensor.shape, str(tensor.dtype).removeprefix("torch."))


class _Stream:
    """All that is launched runs in order."""

    def __init__(self, *_: Any) -> None: ...

    def wait_stream(self, stream: "_Stream") -> None: ...


class _Graph:
    """What was captured, and computes nothing."""

    def replay(self) -> None: ...


class _SameThread:
    """Reads when it is asked to: fake tensors are those of one thread."""

    def __init__(self, _threads: int) -> None: ...

    def __enter__(self) -> "_SameThread":
        return self

    def __exit__(self, *_: Any) -> None: ...

    def submit(self, function: Any, *args: Any) -> "Future[Any]":
        done: Future[Any] = Future()
        done.set_result(function(*args))
        return done
