import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from reparam.errors import BusyError
from reparam.machine.locks import held

SOURCE = str(Path(__file__).parents[2] / "src")
HOLD = "import sys, time; from pathlib import Path; from reparam.machine.locks import held\n"
HOLD += "with held(Path(sys.argv[1]), 'train'): print('held', flush=True); time.sleep(60)"


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RANK", raising=False)


def test_a_stage_is_held_by_one_process_until_it_dies(tmp_path: Path) -> None:
    other = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, env=os.environ | {"PYTHONPATH": SOURCE}
    )
    assert other.stdout is not None
    assert other.stdout.readline() == b"held\n"
    with pytest.raises(BusyError) as raised, held(tmp_path, "train"):
        pass
    assert str(raised.value) == (
        "train: wanted to be the only one that runs this stage in this working copy, found process "
        f"{other.pid}; wait for it, or end it with `kill`, and run again"
    )
    with held(tmp_path, "evaluate"):  # another stage is free
        pass
    other.send_signal(signal.SIGKILL)
    other.communicate()
    with held(tmp_path, "train"):
        assert (tmp_path / "train.pid").read_text() == f"{os.getpid()}\n"
    assert not (tmp_path / "train.pid").exists()


def test_an_error_frees_the_stage(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), held(tmp_path, "train"):
        _ = 1 / 0
    with held(tmp_path, "train"):
        pass


@pytest.mark.parametrize("content", [None, b"", b"\xff", b"not a number"])
def test_a_holder_that_is_not_known_is_another_process(content: bytes | None, tmp_path: Path) -> None:
    with held(tmp_path, "train"):
        owner = tmp_path / "train.pid"
        owner.unlink()
        if content is not None:
            owner.write_bytes(content)
        with pytest.raises(BusyError, match="found another process; wait for it"), held(tmp_path, "train"):
            pass


def test_the_processes_of_one_training_do_not_keep_each_other_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with held(tmp_path, "train"):
        monkeypatch.setenv("RANK", "1")
        with held(tmp_path, "train"):
            pass
        monkeypatch.setenv("RANK", "0")
        with pytest.raises(BusyError), held(tmp_path, "train"):
            pass
