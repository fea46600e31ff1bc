"""Prepare torch: the device, determinism, seeds, precision and memory."""

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from reparam.errors import UserError
from reparam.machine import gpus

# Largest count of numbers held at once, for example of a decoder's outputs for samples that are only scored. It bounds
# memory; at this size (64 MB) the CPU is already busy.
NUMBERS_AT_ONCE = 1 << 24


def pick_device(name: str) -> torch.device:
    """Resolve `auto`, `cpu` or `cuda`; `auto` takes the GPU when there is one."""
    if name != "cpu":
        gpus.take_one(torch.cuda.device_count())  # this does not start CUDA, so that the choice takes effect
    available = torch.cuda.is_available()
    if name == "cuda" and not available:
        raise UserError(
            "--device cuda: torch finds no CUDA GPU; use --device auto or cpu, or install a CUDA build of torch"
        )
    if not available or name == "cpu":
        return torch.device("cpu")
    # Under torchrun, each process of a machine has a GPU of its own.
    number = os.environ.get("LOCAL_RANK")
    return torch.device("cuda" if number is None else f"cuda:{number}")


def make_deterministic(seed: int, *, kernels: bool = True) -> None:
    """Seed torch and, with `kernels`, refuse kernels whose result depends on scheduling.

    Two settings that cost time and change no result are turned off.
    """
    # cuBLAS is deterministic only with a fixed workspace, which it reads from the environment at first use.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    # Not `use_deterministic_algorithms`: it sets the same two flags, but imports torch.compile to set the second.
    torch.set_deterministic_debug_mode("error" if kernels else "default")
    os.environ["TORCHINDUCTOR_DETERMINISTIC"] = str(int(kernels))  # torch.compile reads it when it is imported
    # Numbers below 1e-38 count as zero. The averages that Adam keeps fade into such numbers where gradients vanish (the
    # borders of MNIST, after two epochs), and an epoch then takes a quarter longer, because processors are slow with
    # them. Threads take this over when they start.
    torch.set_flush_denormal(True)
    # Otherwise every fresh tensor is filled with NaN first, a tenth of an epoch. Nothing here reads unwritten memory.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.manual_seed(seed)


def set_precision(name: str) -> None:
    """Choose how float32 matrix products are computed: `fp32` in full, `tf32` and `bf16_matmul` with rounded factors.

    Under `bf16`, autocast rounds more than the products; what is left in float32 is computed in full.
    """
    torch.set_float32_matmul_precision({"tf32": "high", "bf16_matmul": "medium"}.get(name, "highest"))


@contextmanager
def computing_in(precision: str) -> Iterator[None]:
    """Compute in a precision, then return to full precision for later work in the same process."""
    set_precision(precision)
    try:
        yield
    finally:
        set_precision("fp32")


@contextmanager
def random_stream(seed: int, purpose: str) -> Iterator[None]:
    """Run a block on a random stream of its own, and leave the surrounding stream as it was.

    The stream depends on seed and purpose alone: training draws the same numbers, with or without validation or a
    figure.
    """
    digest = hashlib.sha256(f"{seed}/{purpose}".encode()).digest()
    with torch.random.fork_rng(range(torch.cuda.device_count())):
        torch.manual_seed(int.from_bytes(digest[:8]))
        yield
