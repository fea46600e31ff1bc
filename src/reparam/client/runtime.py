"""Open graphs with onnxruntime, on the device that was asked for or not at all."""

import contextlib
import ctypes
import io
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from reparam.errors import DamagedInputError, UserError

CPU, CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"
DEVICES = ("auto", "cpu", "cuda")
PACKAGES = ("onnxruntime", "onnxruntime-gpu")  # which put their files into one folder
MOST_THREADS = 1024  # the system ends a process that asks for more than it may have
LIBRARIES = ("nvcuda.dll", "{}.dll") if sys.platform == "win32" else ("libcuda.so.1", "lib{}.so")


@dataclass(frozen=True)
class Runtime:
    """The device and the number of threads that compute graphs."""

    device: str
    threads: int | None

    def __post_init__(self) -> None:
        """Refuse values that onnxruntime would misread."""
        if self.device not in DEVICES:
            raise UserError(f"device: wanted one of {', '.join(DEVICES)}, found {self.device!r}")
        if self.threads is not None and not (type(self.threads) is int and 0 < self.threads <= MOST_THREADS):
            raise UserError(
                f"threads: wanted a whole number from 1 to {MOST_THREADS}, or None for all cores, found "
                f"{self.threads!r}"
            )

    def open(self, content: bytes, path: Path) -> Any:
        """Make an `InferenceSession` of the content of a file.

        Raises: UserError if the device cannot be used, DamagedInputError if the content is no graph.
        """
        onnxruntime = _load()
        wanted = self._provider(onnxruntime)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = self.threads or 0
        # Threads that spin between calls take 20 times the CPU time of small models, and are no faster.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        try:
            session = onnxruntime.InferenceSession(content, options, providers=list(dict.fromkeys((wanted, CPU))))
        except Exception as error:  # onnxruntime's own exceptions share no public base class
            raise DamagedInputError(
                f"{path}: onnxruntime {onnxruntime.__version__} cannot open it: {error}; run `dvc repro export`"
            ) from error
        session.disable_fallback()  # or it would go on with another provider in silence
        found = session.get_providers()[0]
        if found != wanted:
            raise UserError(f"device: wanted {wanted}, but onnxruntime runs {path} on {found}; use device='cpu'")
        return session

    def _provider(self, onnxruntime: Any) -> str:
        if self.device == "cpu":
            return CPU
        problem = _problem_of_cuda(onnxruntime)
        if problem and self.device == "cuda":
            raise UserError(f"device: wanted cuda, found {problem}; or use device='cpu'")
        return CPU if problem else CUDA


def installed_twice() -> bool:
    """Return whether both packages of onnxruntime are installed: the second overwrote files of the first."""
    return len(_packages()) > 1


def _packages() -> list[str]:
    from importlib import metadata  # here, because it takes 15 ms, and only messages need it

    found = []
    for name in PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found.append(f"{name} {metadata.version(name)}")
    return found


def repair(*packages: str) -> str:
    """Say how to get one whole package of onnxruntime: one of these."""
    installs = " or ".join(f"`pip install {package}`" for package in packages)
    return f"run `pip uninstall --yes {' '.join(PACKAGES)}`, then {installs}"


def _load() -> Any:
    """Import onnxruntime: here, because it takes as long as all the rest. If it is broken, say what to do."""
    try:
        import onnxruntime

        _ = onnxruntime.InferenceSession  # which a folder that lost its files does not have
    except (ImportError, AttributeError) as error:
        raise UserError(
            f"onnxruntime: wanted a whole package, found {' and '.join(_packages()) or 'none'}, and {error}; "
            f"{repair(*PACKAGES)}"
        ) from error
    return onnxruntime


def _problem_of_cuda(onnxruntime: Any) -> str:
    """Say why CUDA cannot be used. Asked for in vain, onnxruntime would print red lines and use the CPU."""
    if CUDA not in onnxruntime.get_available_providers():
        both = " (both packages are installed, and the last one overwrote the other)" if installed_twice() else ""
        return f"an onnxruntime without it{both}; {repair('onnxruntime-gpu')}"
    driver, library = LIBRARIES
    if not _has_gpu(driver):
        return "no GPU of NVIDIA with its driver"
    with contextlib.redirect_stdout(io.StringIO()):  # it prints what it does not find
        onnxruntime.preload_dlls(directory="")
    folder = Path(onnxruntime.__file__).parent / "capi"
    try:
        for name in ("onnxruntime_providers_shared", "onnxruntime_providers_cuda"):
            ctypes.CDLL(os.fspath(folder / library.format(name)), mode=ctypes.RTLD_GLOBAL)
    except OSError as error:
        return f"libraries of CUDA that do not load ({error}); install those that onnxruntime-gpu names"
    return ""


def _has_gpu(driver: str) -> bool:
    try:
        cuda = ctypes.CDLL(driver)
    except OSError:
        return False
    count = ctypes.c_int(0)
    return cuda.cuInit(0) == 0 and cuda.cuDeviceGetCount(ctypes.byref(count)) == 0 and count.value > 0
