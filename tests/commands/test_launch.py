"""REPARAM_LAUNCH: several processes as one command, and one message where they fail."""

import copy
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from conftest import CHANGES
from dvc_project import Project, project_in
from ruamel.yaml import YAML

from reparam.commands import launch
from reparam.errors import UserError
from reparam.paths import Paths

TRAIN = "python -m reparam train --quiet"
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
        ("torchrun '", """wanted torchrun and its options, found "torchrun '"; fix it, or unset it"""),
        (" ", "wanted torchrun and its options, found ' '; fix it, or unset it"),
        ("torchrun --bogus", "'torchrun --bogus' cannot be started: unrecognized arguments: --bogus; fix it, or unset"),
        (
            "torchrun --nproc-per-node 0",
            "'torchrun --nproc-per-node 0' cannot be started: --nproc-per-node: wanted 1 or more, found 0;",
        ),
        *(
            (
                f"torchrun --nnodes {wrong}",
                f"'torchrun --nnodes {wrong}' cannot be started: --nnodes: wanted a number of machines, or the least "
                f"and the most as 1:4, found {wrong}; fix it",
            )
            for wrong in ("0", "2:1", "0:2", "1:2:3", "x")
        ),
        (
            "torchrun --node-rank 5",
            "'torchrun --node-rank 5' cannot be started: --node-rank: wanted 0, because of --nnodes 1:1, found 5; fix",
        ),
        (
            "torchrun --nnodes 2 --node-rank 2",
            "'torchrun --nnodes 2 --node-rank 2' cannot be started: --node-rank: wanted 0 to 1, because of --nnodes 2,",
        ),
        (
            "torchrun --max-restarts -1",
            "'torchrun --max-restarts -1' cannot be started: --max-restarts: wanted 0 or more, found -1; fix it, or",
        ),
    ],
)
def test_what_is_no_torchrun_is_refused(value: str, said: str, project: Paths, monkeypatch: pytest.MonkeyPatch) -> None:
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


@pytest.mark.parametrize(("restarts", "said"), [("0", ""), ("2", "WARNING: process 1 lost its connection to another")])
def test_a_connection_that_is_lost_is_one_line_where_all_start_again(
    restarts: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    variables = {"ERROR_FILE": str(tmp_path / "error.json"), "RESTART_COUNT": "0", "MAX_RESTARTS": restarts}
    for name, value in variables.items():
        monkeypatch.setenv(f"TORCHELASTIC_{name}", value)
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("REPARAM_LAUNCH", TWO)
    monkeypatch.setattr("signal.signal", lambda _number, _handler: None)
    assert launch.record("Traceback: Connection reset by peer", is_mistake=False)
    assert capsys.readouterr().err.startswith(said)
    assert launch.record("Traceback: a bug", is_mistake=False) == (restarts == "0")  # else the traceback is shown


def test_a_mistake_in_the_parameters_is_said_before_another_machine_is_waited_for(
    params: dict[str, Any], write_params: Callable[[Any], None], reparam: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    params["train"]["epochs"] = "many"
    write_params(params)
    monkeypatch.setenv("REPARAM_LAUNCH", "torchrun --nnodes 2 --master-addr 127.0.0.1")
    code, said = reparam("train")
    assert (code, said.startswith("error: "), "train.epochs" in said, "waiting" in said) == (1, True, True, False), said


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
        return self.process(number)

    def process(self, rank: int) -> int:
        (found,) = [process for process, variables in self.processes() if f"RANK={rank}" in variables]
        return found

    def clone(self) -> "Trainings":
        """Another machine with the same data."""
        own, other = self.project, copy.copy(self)
        own("git clone --quiet . ../other")
        other.project = Project(own.root.parent / "other", **own.environment)
        other.project(f"dvc cache dir --local {own.root}/.dvc/cache")
        other.project(f"cp {own.root}/dvc.lock .")
        other.project("dvc checkout --quiet data/raw data/processed")
        return other

    def weights(self) -> bytes:
        """The weights that a training left; they are removed."""
        path = self.project.root / "models/vae/weights.safetensors"
        content = path.read_bytes()
        path.unlink()
        return content

    def weights_of_one_machine(self) -> bytes:
        """The weights that two processes of this machine train."""
        code, said = self.finish(self.start(TRAIN))
        assert (code, said) == (0, "")
        return self.weights()

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
    one = trainings(epochs=40, patience=40)
    wanted = one.weights_of_one_machine()
    process = one.start(TRAIN, REPARAM_LAUNCH=f"{TWO} --max-restarts 1")
    os.kill(one.rank(1), signal.SIGKILL)
    code, said = one.finish(process)
    assert code == 0, said
    assert said.count("going on after epoch") == 1
    assert "Traceback" not in said
    assert one.weights() == wanted


# On two machines: two launchers in two clones

FIXED = "--master-addr 127.0.0.1 --master-port {port} --node-rank {number}"
# As on machines with names of their own: the address gives the order, and the first machine is where all meet.
ELASTIC = (
    "--rdzv-backend c10d --local-addr 127.0.0.{address} --rdzv-endpoint 127.0.0.1:{port} --rdzv-conf is_host={is_host}"
)
LOST = "error: process {} lost its connection to a process of another machine: see what the command says there; start "
STOPPED = "error: process {} was killed by SIGKILL, and the others were stopped; "


def launch_of(options: str, number: int, port: int) -> str:
    own = options.format(number=number, address=number + 1, port=port, is_host=1 - number)
    return f"torchrun --nnodes 2 --nproc-per-node 1 {own}"


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return int(free.getsockname()[1])


def start_both(
    machines: Sequence[Trainings], options: str = FIXED, commands: Sequence[str] = (TRAIN, TRAIN), **settings: str
) -> list[subprocess.Popen[str]]:
    port, starts = free_port(), zip(machines, commands, strict=True)
    return [
        machine.start(command, REPARAM_LAUNCH=launch_of(options, number, port), **settings)
        for number, (machine, command) in enumerate(starts)
    ]


def finish_both(machines: Sequence[Trainings], started: Sequence[subprocess.Popen[str]]) -> list[tuple[int, str]]:
    """Return the exit codes, and what was said after the line that says where the machines meet."""
    found = [machine.finish(process) for machine, process in zip(machines, started, strict=True)]
    assert [said.count("waiting for 2 machines to meet at 127.0.0.1:") for _, said in found] == [1, 1], found
    return [(code, re.sub("waiting for 2 machines .*\n", "", said)) for code, said in found]


@pytest.mark.slow
def test_two_machines_train_and_evaluate_together_where_both_have_the_same_data(
    trainings: Callable[..., Trainings],
) -> None:
    one = trainings()
    other = one.clone()

    def run_on_both(first: str, second: str) -> list[tuple[int, str]]:
        return finish_both((one, other), start_both((one, other), commands=(first, second)))

    wanted = one.weights_of_one_machine()
    (code, said), (other_code, other_said) = run_on_both("dvc repro train", "python -m reparam train")
    assert (code, other_code) == (0, 0), said + other_said
    assert said.count("epoch 3/3") == 1
    assert (one.project.root / "models/vae/weights.safetensors").read_bytes() == wanted
    assert not (other.project.root / "models/vae").exists()

    (code, said), (other_code, other_said) = run_on_both("dvc repro evaluate", "python -m reparam evaluate")
    assert (code, other_code) == (0, 0), said + other_said
    assert not (other.project.root / "reports/evaluation/card.json").exists()
    hashes = one.project.hashes()
    one.project.environment.pop("REPARAM_LAUNCH")
    one.project("dvc repro --quiet --single-item --force evaluate")
    assert one.project.hashes() == hashes  # of both machines, and of one process

    params = YAML().load(other.project.root / "params.yaml")
    params["preprocess"]["limit"] = 1000
    YAML().dump(params, other.project.root / "params.yaml")
    other.project("python -m reparam preprocess")
    found = run_on_both(TRAIN, TRAIN)
    assert [code for code, _ in found] == [1, 1]
    assert "wanted the same data on all machines (card " in found[0][1], found[0][1]
    assert "wanted the data of the first process (card " in found[1][1], found[1][1]
    assert "Traceback" not in found[0][1] + found[1][1]


@pytest.mark.slow
@pytest.mark.parametrize(("options", "victim"), [(FIXED, 0), (FIXED, 1), (ELASTIC, 0), (ELASTIC, 1)])
def test_a_process_that_is_killed_on_one_machine_ends_both_with_a_line_each(
    options: str, victim: int, trainings: Callable[..., Trainings]
) -> None:
    one = trainings(epochs=10**4, patience=10**4)
    machines = (one, one.clone())
    started = start_both(machines, options)
    one.rank(0)  # once there is a checkpoint
    os.kill(machines[victim].process(victim), signal.SIGKILL)
    start = time.monotonic()
    found = finish_both(machines, started)
    assert time.monotonic() - start < 60  # of which a quiet machine needs five
    assert [code for code, _ in found] == [1, 1]
    assert found[victim][1].startswith(STOPPED.format(victim)), found
    # The first machine may end, and where all met with it, before the second one looks at its process.
    other = found[1 - victim][1]
    unmet = "error: REPARAM_LAUNCH: wanted 2 machines that reach each other, found: " if options == ELASTIC else "-"
    assert other.startswith((LOST.format(1 - victim), unmet)), found
    assert [said.count("\n") for _, said in found] == [1, 1], found
    assert [list(machine.processes()) for machine in machines] == [[], []]


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_two_machines_start_again_and_go_on_from_the_checkpoint_to_the_same_bytes(
    victim: int, trainings: Callable[..., Trainings]
) -> None:
    one = trainings(epochs=15, patience=15)
    wanted, machines = one.weights_of_one_machine(), (one, one.clone())
    started = start_both(machines, f"{ELASTIC} --max-restarts 2")
    one.rank(0)
    os.kill(machines[victim].process(victim), signal.SIGKILL)
    found = finish_both(machines, started)
    assert [code for code, _ in found] == [0, 0], found
    said = "".join(said for _, said in found)
    assert said.count("going on after epoch") == 1, said
    assert "Traceback" not in said
    assert one.weights() == wanted
    assert not (machines[1].project.root / "models/vae").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "number"),
    [(f"{FIXED} --rdzv-conf timeout=3", 0), (f"{FIXED} --rdzv-conf timeout=3", 1), (f"{ELASTIC},join_timeout=3", 0)],
)
def test_a_machine_that_meets_no_other_says_so(options: str, number: int, trainings: Callable[..., Trainings]) -> None:
    one = trainings()
    code, said = one.finish(one.start(TRAIN, REPARAM_LAUNCH=launch_of(options, number, free_port())))
    assert code == 1
    assert "error: REPARAM_LAUNCH: wanted 2 machines that reach each other, found: " in said, said
    assert said.count("\n") == 2, said


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="the first machine must fail for want of a GPU")
def test_the_second_machine_ends_if_the_first_fails_before_they_meet(trainings: Callable[..., Trainings]) -> None:
    one = trainings()
    machines = (one, one.clone())
    commands = (f"{TRAIN} --device cuda", TRAIN)
    (code, said), (other_code, other_said) = finish_both(machines, start_both(machines, commands=commands))
    assert (code, said.count("\n")) == (1, 1)
    assert said.startswith("error: --device cuda: torch finds no CUDA GPU")
    assert (other_code, other_said.count("\n")) == (1, 1)
    assert other_said.startswith(LOST.format(1))
