"""Where and how graphs are computed, and what is said where they cannot be."""

import ctypes
import importlib.metadata
import pickle
import sys
import time
import types
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import get_context
from typing import Any

import numpy as np
import onnxruntime
import pytest
from exported_model import Exported

from reparam.client import Client, runtime
from reparam.errors import UserError

pytest_plugins = ["fixtures_export"]

REPAIR = "run `pip uninstall --yes onnxruntime onnxruntime-gpu`, then `pip install "


@pytest.fixture
def packages(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """The packages of onnxruntime that seem to be installed."""
    found = {"onnxruntime-gpu": "1.31.1"}

    def version(name: str) -> str:
        if name not in found:
            raise importlib.metadata.PackageNotFoundError
        return found[name]

    monkeypatch.setattr(importlib.metadata, "version", version)
    return found


def refusal(exported: Exported, **options: Any) -> str:
    with pytest.raises(UserError) as error:
        Client(exported.directory, **options)
    return str(error.value)


# Devices


@pytest.mark.parametrize("device", ["auto", "cpu"])
def test_without_a_gpu_the_cpu_computes_and_nothing_is_printed(
    device: str, exported: Exported, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(runtime, "_has_gpu", lambda _: False)
    client = Client(exported.directory, device=device)
    assert client.provider == "CPUExecutionProvider"
    assert client.encode(exported.images)[0].shape == (40, 2)
    assert capfd.readouterr() == ("", "")


def test_cuda_without_a_gpu_is_refused(exported: Exported, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [runtime.CUDA, runtime.CPU])
    monkeypatch.setattr(runtime, "_has_gpu", lambda _: False)
    assert refusal(exported, device="cuda") == (
        "device: wanted cuda, found no GPU of NVIDIA with its driver; or use device='cpu'"
    )


def test_cuda_without_its_libraries_is_refused(
    exported: Exported, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def fail(name: str, mode: int = 0) -> None:
        raise OSError("libcublasLt.so.13: cannot open shared object file")

    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [runtime.CUDA, runtime.CPU])
    monkeypatch.setattr(onnxruntime, "preload_dlls", lambda directory: sys.stdout.write("Failed to load"))
    monkeypatch.setattr(runtime, "_has_gpu", lambda _: True)
    monkeypatch.setattr(ctypes, "CDLL", fail)
    assert refusal(exported, device="cuda") == (
        "device: wanted cuda, found libraries of CUDA that do not load (libcublasLt.so.13: cannot open shared object "
        "file); install those that onnxruntime-gpu names; or use device='cpu'"
    )
    assert Client(exported.directory).provider == "CPUExecutionProvider"
    assert capfd.readouterr() == ("", "")


def test_cuda_with_the_package_for_cpus_says_what_to_install(
    exported: Exported, monkeypatch: pytest.MonkeyPatch, packages: dict[str, str]
) -> None:
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [runtime.CPU])
    assert refusal(exported, device="cuda") == (
        f"device: wanted cuda, found an onnxruntime without it; {REPAIR}onnxruntime-gpu`; or use device='cpu'"
    )
    packages["onnxruntime"] = "1.31.1"
    assert refusal(exported, device="cuda") == (
        "device: wanted cuda, found an onnxruntime without it (both packages are installed, and the last one overwrote "
        f"the other); {REPAIR}onnxruntime-gpu`; or use device='cpu'"
    )


def test_a_provider_that_gives_up_is_not_replaced_in_silence(
    exported: Exported, monkeypatch: pytest.MonkeyPatch
) -> None:
    opens = onnxruntime.InferenceSession
    # As onnxruntime does: CUDA was asked for, a session on the CPU came.
    monkeypatch.setattr(
        onnxruntime, "InferenceSession", lambda content, options, providers: opens(content, options, providers[1:])
    )
    monkeypatch.setattr(runtime, "_problem_of_cuda", lambda _: "")
    assert refusal(exported, device="cuda") == (
        f"device: wanted CUDAExecutionProvider, but onnxruntime runs {exported.directory / 'encoder.onnx'} on "
        "CPUExecutionProvider; use device='cpu'"
    )


def test_a_provider_that_fails_later_is_not_replaced_in_silence(
    exported: Exported, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[Any] = []
    monkeypatch.setattr(onnxruntime.InferenceSession, "disable_fallback", lambda session: told.append(session))
    client = Client(exported.directory, device="cpu")
    assert told == list(client._graphs.values())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"device": "gpu"}, "device: wanted one of auto, cpu, cuda, found 'gpu'"),
        ({"threads": 0}, "threads: wanted a whole number from 1 to 1024, or None for all cores, found 0"),
        ({"threads": 1025}, "threads: wanted a whole number from 1 to 1024, or None for all cores, found 1025"),
        ({"threads": True}, "threads: wanted a whole number from 1 to 1024, or None for all cores, found True"),
        ({"batch": 0}, "batch: wanted a whole number above 0, found 0"),
    ],
    ids=str,
)
def test_options_that_make_no_sense_are_refused(options: dict[str, Any], message: str, exported: Exported) -> None:
    assert refusal(exported, **options) == message


# A broken installation


def test_a_package_that_lost_its_files_says_how_to_repair_it(
    exported: Exported, monkeypatch: pytest.MonkeyPatch, packages: dict[str, str]
) -> None:
    packages["onnxruntime"] = "1.32.0"
    monkeypatch.setitem(sys.modules, "onnxruntime", types.ModuleType("onnxruntime"))
    assert refusal(exported) == (
        "onnxruntime: wanted a whole package, found onnxruntime 1.32.0 and onnxruntime-gpu 1.31.1, and module "
        f"'onnxruntime' has no attribute 'InferenceSession'; {REPAIR}onnxruntime` or `pip install onnxruntime-gpu`"
    )


def test_a_package_that_is_not_there_says_what_to_install(
    exported: Exported, monkeypatch: pytest.MonkeyPatch, packages: dict[str, str]
) -> None:
    packages.clear()
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert refusal(exported).startswith("onnxruntime: wanted a whole package, found none, and import of onnxruntime ")


# Threads and processes


@pytest.mark.parametrize(("threads", "found"), [(3, 3), (1, 1), (None, 0)])  # 0: onnxruntime takes all cores
def test_the_threads_are_those_of_onnxruntime(threads: int | None, found: int, exported: Exported) -> None:
    path = exported.directory / "decoder.onnx"
    session = runtime.Runtime("cpu", threads).open(path.read_bytes(), path)
    assert session.get_session_options().intra_op_num_threads == found
    client = Client(exported.directory, "cpu", threads)
    used = [session.get_session_options().intra_op_num_threads for session in client._graphs.values()]
    assert used == [found] * len(client.graphs)


def test_waiting_threads_do_not_spin(exported: Exported) -> None:
    client = Client(exported.directory, threads=2)
    client.encode(exported.images[:8])
    before = time.process_time()
    for _ in range(20):
        client.encode(exported.images[:8])
        time.sleep(0.01)
    assert time.process_time() - before < 0.1  # spinning takes about 10 ms for each of the 20 calls


def test_several_threads_get_what_one_gets(exported: Exported) -> None:
    client = Client(exported.directory, threads=1)
    batches = [exported.images[start : start + 1 + start % 5] for start in range(36)]
    wanted = [client.reconstruct(batch) for batch in batches]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(client.reconstruct, batches * 10))
    for number, images in enumerate(found):
        np.testing.assert_array_equal(images, wanted[number % len(batches)])


def test_a_pickled_client_opens_its_files_again(exported: Exported, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(exported.directory.parent)
    client = Client("onnx", "cpu", 1, batch=3)
    content = pickle.dumps(client)
    assert len(content) < 1000
    monkeypatch.chdir("/")
    found = pickle.loads(content)
    assert (found.batch, found.metadata) == (3, client.metadata)
    np.testing.assert_array_equal(found.reconstruct(exported.images), client.reconstruct(exported.images))


@pytest.mark.slow
def test_another_process_gets_what_this_one_gets(exported: Exported) -> None:
    client = Client(exported.directory, threads=1)
    with get_context("spawn").Pool(2) as pool:
        found = pool.map(client.reconstruct, [exported.images[:3], exported.images[3:]])
    np.testing.assert_array_equal(np.concatenate(found), client.reconstruct(exported.images))
