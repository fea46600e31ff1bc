"""Nothing that a process started outlives it."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from reparam.sweep import leash
from reparam.sweep.leash import Leashed

SOURCE = str(Path(leash.__file__).parents[2])
# A shell as DVC is: with a child, which writes its number, and does what it is asked to on signals.
CHILD = """
import os, pathlib, signal, time
{setting}
pathlib.Path("pid").write_text(str(os.getpid()))
while True: time.sleep(60)
"""
OWNER = """
import os, sys, time
from reparam.sweep.leash import Leashed
Leashed(["sh", "-c", f"{sys.executable} child.py; true"], os.environ)
time.sleep(600)
"""


def eventually(found: Callable[[], bool], seconds: float = 10) -> bool:
    deadline = time.monotonic() + seconds
    while not found() and time.monotonic() < deadline:
        time.sleep(0.01)
    return found()


def is_there(number: int) -> bool:
    try:
        return Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def child(folder: Path, setting: str = "") -> Path:
    (folder / "child.py").write_text(CHILD.format(setting=setting))
    return folder / "pid"


@pytest.mark.parametrize("code", [0, 3])
def test_the_exit_code_and_the_output_are_those_of_the_command(code: int, tmp_path: Path) -> None:
    with (tmp_path / "log").open("wb") as log:
        process = Leashed(["sh", "-c", f"echo out; echo err >&2; exit {code}"], os.environ, log)
        assert process.wait() == code
    assert (tmp_path / "log").read_text() == "out\nerr\n"


def test_a_command_that_a_signal_ended_has_the_code_that_shells_give(tmp_path: Path) -> None:
    assert Leashed(["sh", "-c", "kill -TERM $$"], os.environ).wait() == 143


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_what_a_killed_owner_started_ends(tmp_path: Path, number: int) -> None:
    pid = child(tmp_path)
    owner = subprocess.Popen([sys.executable, "-c", OWNER], cwd=tmp_path, env=os.environ | {"PYTHONPATH": SOURCE})
    assert eventually(lambda: pid.exists() and pid.read_text() != "")
    inner = int(pid.read_text())
    assert is_there(inner)
    owner.send_signal(number)
    owner.wait()
    assert eventually(lambda: not is_there(inner))


@pytest.mark.parametrize(
    "setting", ["signal.signal(signal.SIGINT, signal.SIG_IGN)", "for n in (2, 15): signal.signal(n, signal.SIG_IGN)"]
)
def test_a_command_that_does_not_listen_is_made_to_end(tmp_path: Path, setting: str) -> None:
    pid = child(tmp_path, setting)
    code = "from reparam.sweep import leash; leash.PATIENCE = 0.2; leash.main()"
    process = subprocess.Popen(
        [sys.executable, "-c", code, "sh", "-c", f"{sys.executable} child.py; true"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": SOURCE},
        stdin=subprocess.PIPE,
    )
    assert eventually(lambda: pid.exists() and pid.read_text() != "")
    assert process.stdin is not None
    process.stdin.close()
    process.wait(timeout=10)
    assert not is_there(int(pid.read_text()))
