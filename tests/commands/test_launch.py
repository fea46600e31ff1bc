"""REPARAM_LAUNCH: several processes as one command, and one message where they fail."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from conftest import CHANGES
from dvc_project import Project, project_in
from ruamel.yaml import YAML

from reparam.commands import launch
from reparam.errors import UserError

TWO = "torchrun --nproc-per-node 2"


def failure(exitcode: int, timestamp: int, **content: Any) -> Any:
    """What torchrun knows of a process that failed."""
    return SimpleNamespace(exitcode=exitcode, timestamp=timestamp, error_file_data=content or {"message": "<NONE>"})


BUG = failure(1, 3, message="Traceback: connection closed by peer", is_mistake=False)
MISTAKE = failure(1, 4, message="params.yaml: wanted more", is_mistake=True)
KILLED = failure(-9, 5)
ASKED = failure(-15, 2)


@pytest.mark.parametrize(
    ("failures", "said"),
    [
        ({0: BUG, 1: MISTAKE, 2: KILLED}, "params.yaml: wanted more"),
        ({0: ASKED, 1: BUG, 2: KILLED}, "process 2 was killed by SIGKILL, and the others were stopped; if nobody "),
        ({0: failure(-11, 7), 1: KILLED}, "process 1 was killed by SIGKILL, "),
        ({0: ASKED}, "process 0 was killed by SIGTERM, "),
    ],
)
def test_what_the_other_failures_follow_from_is_said(failures: dict[int, Any], said: str) -> None:
    with pytest.raises(UserError) as error:
        launch._explain(failures)
    assert str(error.value).startswith(said)


def test_a_bug_keeps_its_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        launch._explain({0: failure(143, 0), 1: BUG})
    assert ended.value.code == 1
    assert capsys.readouterr().err == "process 1:\nTraceback: connection closed by peer"


def test_a_connection_to_another_machine_that_is_lost_sends_the_reader_there() -> None:
    with pytest.raises(UserError) as error:
        launch._explain({0: BUG}, is_alone=False)
    assert str(error.value) == (
        "process 0 lost its connection to a process of another machine: see what the command says there; start it "
        "again on all machines: training goes on from its checkpoint"
    )


def test_processes_that_were_asked_to_end_say_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        launch._explain({0: failure(143, 0)})
    assert (ended.value.code, capsys.readouterr().err) == (143, "")


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("mpirun -n 2", "wanted torchrun and its options, found 'mpirun -n 2'; fix it, or unset it"),
        (
            "torchrun train.py",
            "wanted options of torchrun alone, found 'train.py' among them; take it out: the command",
        ),
        ("torchrun --nproc-per-node x", "'torchrun --nproc-per-node x' cannot be started: Unsupported nproc_per_node"),
    ],
)
def test_what_is_no_torchrun_is_refused(value: str, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REPARAM_LAUNCH", value)
    monkeypatch.setattr(sys, "argv", ["reparam", "train"])
    monkeypatch.setattr("logging.disable", lambda _level: None)
    with pytest.raises(UserError) as error:
        launch.run()
    assert str(error.value).startswith(f"REPARAM_LAUNCH: {said}")


@pytest.mark.parametrize(("restarts", "is_shown"), [(0, True), (2, False)])
def test_a_process_leaves_its_message_to_the_one_that_started_it(
    restarts: int, is_shown: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not launch.record("said here", is_mistake=True)  # nobody started this one
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(tmp_path / "error.json"))
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "0")
    monkeypatch.setenv("TORCHELASTIC_MAX_RESTARTS", str(restarts))
    monkeypatch.setenv("REPARAM_LAUNCH", TWO)
    monkeypatch.setattr("signal.signal", lambda _number, _handler: None)
    assert launch.record("no file at https://me:secret@example.org/x", is_mistake=True) == is_shown
    content = json.loads((tmp_path / "error.json").read_text())
    assert (content["message"], content["is_mistake"]) == ("no file at https://***@example.org/x", True)
    monkeypatch.delenv("REPARAM_LAUNCH")
    assert not launch.record("torchrun was typed, and its report is hard to read", is_mistake=True)


# With real processes


class Trainings:
    """A repository with data that are ready, and trainings in it."""

    def __init__(self, root: Path, **train: Any) -> None:
        settings = {"MLFLOW_TRACKING_URI": "off", "REPARAM_CHECKPOINT_SECONDS": "0", "REPARAM_DEVICE": "cpu"}
        changes = CHANGES | {"train": CHANGES["train"] | {"epochs": 3, "patience": 3, "batch_size": 64} | train}
        self.project = project_in(root / "project", changes, **settings, REPARAM_LAUNCH=TWO)
        self.project("dvc repro --quiet preprocess")

    def checkpoints(self) -> set[Path]:
        return set(self.project.root.glob(".resume/*/0*.safetensors"))

    def start(self, command: str = "dvc repro train", **settings: str) -> subprocess.Popen[str]:
        self.before = self.checkpoints()
        return subprocess.Popen(
            command.split(),
            cwd=self.project.root,
            env={**self.project.environment, "PYTHONPATH": "src", **settings},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def finish(self, process: subprocess.Popen[str]) -> tuple[int, str]:
        out, err = process.communicate(timeout=300)
        return process.returncode, out + err

    def rank(self, number: int) -> int:
        """Wait until there are new checkpoints, and return the process of this rank."""
        deadline = time.monotonic() + 120
        while not self.checkpoints() - self.before:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        (found,) = [process for process, variables in self.processes() if f"RANK={number}" in variables]
        return found

    def processes(self) -> Iterator[tuple[int, list[str]]]:
        """Yield the processes of torchrun in this repository, with their variables."""
        for path in Path("/proc").glob("[0-9]*"):
            try:
                variables = (path / "environ").read_text().split("\0")
                words = (path / "cmdline").read_text().split("\0")
                is_ours = (path / "cwd").resolve() == self.project.root and "reparam" in words and "train" in words
            except OSError:  # it ended
                continue
            if is_ours and "TORCHELASTIC_RUN_ID" in "".join(variables):
                yield int(path.name), variables


@pytest.fixture
def trainings(tmp_path: Path) -> Callable[..., Trainings]:
    return lambda **train: Trainings(tmp_path, **train)


@pytest.mark.slow
def test_dvc_repro_trains_in_two_processes_and_a_mistake_is_one_message(trainings: Callable[..., Trainings]) -> None:
    one = trainings()
    code, said = one.finish(one.start())
    assert (code, said.count("epoch 3/3")) == (0, 1), said
    assert "Warning" not in said
    assert (one.project.root / "models/vae/weights.safetensors").exists()
    (one.project.root / "data/processed/train-images.npy").write_bytes(b"damaged")
    code, said = one.finish(one.start("python -m reparam train"))
    assert code == 1
    assert re.fullmatch(r"error: \S+train-images\.npy: wanted uint8 .*; run `dvc repro .*`\n", said)


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_a_process_that_is_killed_ends_all_within_seconds_and_the_rerun_goes_on(
    victim: int, trainings: Callable[..., Trainings]
) -> None:
    one = trainings(epochs=300, patience=300)
    process = one.start("python -m reparam train --quiet")
    os.kill(one.rank(victim), signal.SIGKILL)
    start = time.monotonic()
    code, said = one.finish(process)
    assert time.monotonic() - start < 30  # of which a quiet machine needs five
    assert code == 1
    assert said.startswith(f"error: process {victim} was killed by SIGKILL, and the others were stopped; ")
    assert said.count("\n") == 1
    assert list(one.processes()) == []
    process = one.start("python -m reparam train --quiet")
    one.rank(0)
    process.send_signal(signal.SIGTERM)
    code, said = one.finish(process)
    assert code == 143
    assert re.fullmatch(r"WARNING: train: going on after epoch [0-9]+, from \S+\n", said)


@pytest.mark.slow
def test_an_elastic_restart_goes_on_from_the_checkpoint_to_the_same_bytes(trainings: Callable[..., Trainings]) -> None:
    one, weights = trainings(epochs=40, patience=40), "models/vae/weights.safetensors"
    code, said = one.finish(one.start("python -m reparam train --quiet"))
    assert (code, said) == (0, "")
    wanted = (one.project.root / weights).read_bytes()
    (one.project.root / weights).unlink()
    process = one.start("python -m reparam train --quiet", REPARAM_LAUNCH=f"{TWO} --max-restarts 1")
    os.kill(one.rank(1), signal.SIGKILL)
    code, said = one.finish(process)
    assert code == 0, said
    assert said.count("going on after epoch") == 1
    assert (one.project.root / weights).read_bytes() == wanted


@pytest.mark.slow
def test_two_machines_train_and_evaluate_together_where_both_have_the_same_data(
    trainings: Callable[..., Trainings], tmp_path: Path
) -> None:
    one = trainings()
    one.project("git clone --quiet . ../other")
    other = Project(tmp_path / "other", **one.project.environment)
    other(f"dvc cache dir --local {one.project.root}/.dvc/cache")
    other(f"cp {one.project.root}/dvc.lock .")
    other("dvc checkout --quiet data/raw data/processed")

    def run_on_both(stage: str, command: str) -> list[tuple[int, str]]:
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        launch = f"torchrun --nnodes 2 --nproc-per-node 1 --master-addr 127.0.0.1 --master-port {port} --node-rank"
        first = one.start(command, REPARAM_LAUNCH=f"{launch} 0")
        second = subprocess.Popen(
            ["python", "-m", "reparam", stage],
            cwd=other.root,
            env={**other.environment, "PYTHONPATH": "src", "REPARAM_LAUNCH": f"{launch} 1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        return [one.finish(first), (second.wait(60), second.communicate()[0])]

    (code, said), (other_code, other_said) = run_on_both("train", "dvc repro train")
    assert (code, other_code) == (0, 0), said + other_said
    assert said.count("epoch 3/3") == 1
    assert (one.project.root / "models/vae/weights.safetensors").exists()
    assert not (other.root / "models/vae").exists()

    (code, said), (other_code, other_said) = run_on_both("evaluate", "dvc repro evaluate")
    assert (code, other_code) == (0, 0), said + other_said
    assert not (other.root / "reports/evaluation/card.json").exists()
    wanted = one.project.hashes()
    one.project.environment.pop("REPARAM_LAUNCH")
    one.project("dvc repro --quiet --single-item --force evaluate")
    assert one.project.hashes() == wanted  # of both machines, and of one process

    params = YAML().load(other.root / "params.yaml")
    params["preprocess"]["limit"] = 1000
    YAML().dump(params, other.root / "params.yaml")
    other("python -m reparam preprocess")
    found = run_on_both("train", "python -m reparam train")
    assert [code for code, _ in found] == [1, 1]
    assert "wanted the same data on all machines (card " in found[0][1], found[0][1]
    assert "wanted the data of the first process (card " in found[1][1], found[1][1]
    assert "Traceback" not in found[0][1] + found[1][1]
