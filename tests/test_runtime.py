import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from reparam import runtime
from reparam.errors import UserError
from reparam.machine import gpus
from reparam.runtime import make_deterministic, pick_device, random_stream, set_precision

SOURCE = str(Path(runtime.__file__).parents[1])  # what a fresh interpreter should import, too
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no CUDA GPU")


@pytest.fixture
def settings_restored(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Leave torch's global settings, and the environment, as they were."""
    # Set before it is deleted, so that what the test sets is taken back as well.
    for name in ("CUBLAS_WORKSPACE_CONFIG", "TORCHINDUCTOR_DETERMINISTIC"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    before, precision = torch.get_deterministic_debug_mode(), torch.get_float32_matmul_precision()
    torch.set_deterministic_debug_mode("default")
    yield
    torch.set_deterministic_debug_mode(before)
    torch.set_flush_denormal(False)
    torch.utils.deterministic.fill_uninitialized_memory = True
    torch.set_float32_matmul_precision(precision)


def draws(seed: int, purpose: str) -> list[float]:
    with random_stream(seed, purpose):
        return torch.rand(4).tolist()


def test_a_random_stream_leaves_the_surrounding_one_as_it_was() -> None:
    torch.manual_seed(0)
    wanted = torch.rand(4).tolist()
    torch.manual_seed(0)
    first = torch.rand(2).tolist()
    with random_stream(7, "validation"):
        torch.rand(100)
    assert first + torch.rand(2).tolist() == wanted


def test_a_random_stream_leaves_the_surrounding_one_as_it_was_after_an_error() -> None:
    before = torch.get_rng_state()
    with pytest.raises(IndexError), random_stream(7, "validation"):
        torch.rand(100)[100]
    assert torch.equal(torch.get_rng_state(), before)


def test_a_random_stream_depends_on_seed_and_purpose_alone() -> None:
    torch.manual_seed(0)
    here = draws(1, "validation")
    torch.manual_seed(99)
    assert draws(1, "validation") == here
    assert draws(2, "validation") != here
    assert draws(1, "figures") != here
    assert draws(1, "1") != draws(11, "")  # seed and purpose do not run into each other


@needs_gpu
def test_a_random_stream_leaves_that_of_the_gpu_as_it_was() -> None:
    torch.manual_seed(0)
    wanted = torch.rand(4, device="cuda").tolist()
    torch.manual_seed(0)
    first = torch.rand(4, device="cuda")
    torch.manual_seed(0)
    with random_stream(7, "validation"):
        inside = torch.rand(4, device="cuda").tolist()
    assert first.tolist() == wanted
    assert torch.rand(4, device="cuda").tolist() == wanted
    assert inside != wanted


@pytest.mark.parametrize(
    ("name", "gpu", "wanted"),
    [
        ("auto", True, "cuda"),
        ("auto", False, "cpu"),
        ("cpu", True, "cpu"),
        ("cpu", False, "cpu"),
        ("cuda", True, "cuda"),
    ],
)
def test_auto_takes_the_gpu_when_there_is_one(
    name: str, gpu: bool, wanted: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    assert pick_device(name) == torch.device(wanted)


def test_of_several_gpus_a_process_sees_one(monkeypatch: pytest.MonkeyPatch) -> None:
    counts: list[int] = []
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: bool(counts))  # only after the choice
    monkeypatch.setattr(gpus, "take_one", counts.append)
    assert pick_device("auto") == torch.device("cuda")
    assert pick_device("cpu") == torch.device("cpu")
    assert counts == [4]


CHOICE = """
import os, torch
torch.cuda.device_count()
os.environ["CUDA_VISIBLE_DEVICES"] = ""
print(torch.cuda.is_available())
"""


@needs_gpu
def test_the_choice_of_a_gpu_takes_effect_after_they_were_counted() -> None:
    answer = subprocess.run([sys.executable, "-c", CHOICE], capture_output=True, text=True, check=True)
    assert answer.stdout == "False\n"


def test_cuda_without_a_gpu_names_the_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError) as error:
        pick_device("cuda")
    assert str(error.value) == (
        "--device cuda: torch finds no CUDA GPU; use --device auto or cpu, or install a CUDA build of torch"
    )


@pytest.mark.usefixtures("settings_restored")
def test_determinism_is_seeded_and_strict() -> None:
    make_deterministic(3)
    first = torch.rand(4).tolist()
    make_deterministic(3)
    assert torch.rand(4).tolist() == first
    make_deterministic(4)
    assert torch.rand(4).tolist() != first
    assert torch.are_deterministic_algorithms_enabled()
    assert not torch.is_deterministic_algorithms_warn_only_enabled()
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"


@pytest.mark.usefixtures("settings_restored")
@pytest.mark.parametrize("kernels", [True, False])
def test_a_kernel_whose_result_depends_on_scheduling_is_refused_where_that_is_asked_for(kernels: bool) -> None:
    make_deterministic(0, kernels=kernels)
    twice = torch.tensor([0, 0])
    with pytest.raises(RuntimeError, match="put_") if kernels else contextlib.nullcontext():
        torch.zeros(1).put_(twice, torch.ones(2))


COMPILER = """
import os, sys
import torch
from reparam.runtime import make_deterministic
for kernels in (True, False):
    if os.fork() == 0:  # so that torch is loaded once
        make_deterministic(0, kernels=kernels)
        print("torch._dynamo" in sys.modules)
        import torch._inductor.config
        print(torch._inductor.config.deterministic, flush=True)
        os._exit(0)
    os.wait()
"""


def test_the_compiler_is_as_strict_once_it_is_imported_and_not_imported_to_make_it_so() -> None:
    answer = subprocess.run(
        [sys.executable, "-c", COMPILER],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"PYTHONPATH": SOURCE},
    )
    assert answer.stdout.split() == ["False", "True", "False", "False"]


FLUSHING = """
import torch
from reparam.runtime import make_deterministic
make_deterministic(0)
tiny = torch.full((1 << 20,), 71362, dtype=torch.int32).view(torch.float32)  # 1e-40, enough for all threads
print((tiny * 1).view(torch.int32).count_nonzero().item(), (torch.full((8,), 1e-37) * 1).count_nonzero().item())
"""


def test_numbers_that_slow_a_processor_down_are_zero_in_every_thread() -> None:
    answer = subprocess.run(
        [sys.executable, "-c", FLUSHING],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"PYTHONPATH": SOURCE, "OMP_NUM_THREADS": "2"},
    )
    assert answer.stdout.split() == ["0", "8"]


@pytest.mark.usefixtures("settings_restored")
def test_fresh_memory_is_left_as_it_is() -> None:
    make_deterministic(0)
    assert not torch.utils.deterministic.fill_uninitialized_memory


@pytest.mark.usefixtures("settings_restored")
def test_a_workspace_that_the_user_chose_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":16:8")
    make_deterministic(0)
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":16:8"


@pytest.mark.usefixtures("settings_restored")
@pytest.mark.parametrize(
    ("name", "wanted"), [("fp32", "highest"), ("tf32", "high"), ("bf16_matmul", "medium"), ("bf16", "highest")]
)
@pytest.mark.parametrize("before", ["highest", "medium"])
def test_a_precision_is_that_of_float32_matrix_products(name: str, wanted: str, before: str) -> None:
    torch.set_float32_matmul_precision(before)
    set_precision(name)
    assert torch.get_float32_matmul_precision() == wanted
