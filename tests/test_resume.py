"""`reparam train` as a process that is killed: what it leaves, and that the rerun ends as if nothing had been."""

import contextlib
import copy
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import CHANGES, SMALL, change
from dvc_project import Project, project_in
from ruamel.yaml import YAML

from reparam.paths import Paths

SOURCE = Path(__file__).parents[1] / "src"
ENDLESS = {"train": {"epochs": 10**6, "patience": 10**6, "batch_size": 64}}
SHORT = {"train": {"epochs": 30, "patience": 30, "batch_size": 128}}
LONG = {"train": {"epochs": 120, "patience": 120, "batch_size": 32}}
RICH: dict[str, dict[str, Any]] = {
    "train": {**LONG["train"], "average": 0.9, "schedule": "cosine", "optimizer": "rmsprop", "learning_rate": 0.0005},
    "objective": {"warmup": "linear", "warmup_epochs": 20},
}


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working copy in which the digits are ready to be trained on."""
    from reparam.config import load_config
    from reparam.download import stage as download
    from reparam.preprocess import stage as preprocess

    root = tmp_path_factory.mktemp("digits")
    paths = Paths(root, root)
    _write_params(root, {})
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", "off")
        for stage in (download, preprocess):
            stage.run(load_config(paths.params), paths)
    return root


class Training:
    """A working copy, and `reparam train` in it as a process of its own."""

    def __init__(self, root: Path, changes: dict[str, dict[str, Any]], **environment: str) -> None:
        self.root = root
        _write_params(root, changes)
        kept = {
            name: value for name, value in os.environ.items() if not name.startswith(("DVC_", "MLFLOW_", "REPARAM_"))
        }
        self.environment = kept | {
            "PYTHONPATH": str(SOURCE),
            "OMP_NUM_THREADS": "1",
            "REPARAM_DEVICE": "cpu",
            "REPARAM_CHECKPOINT_SECONDS": "0.05",
            **environment,
        }

    def start(self) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "reparam", "train", "--quiet"],
            cwd=self.root,
            env=self.environment,
            stderr=subprocess.PIPE,
            text=True,
        )

    def finish(self) -> str:
        """Train to the end; return what was said."""
        process = self.start()
        _, said = process.communicate(timeout=300)
        assert process.returncode == 0, said
        return said

    def end(self, number: int, more: int = 1, wait: float = 0.0) -> tuple[int, float, str]:
        """Train until `more` checkpoints are added and `wait` seconds went by, and send a signal.

        Return the exit code, how long that took, and what was said.
        """
        before, process = self.newest(), self.start()
        deadline = time.monotonic() + 120
        while self.newest() < before + more:
            assert process.poll() is None, process.communicate()[1]
            assert time.monotonic() < deadline, "no checkpoint came"
            time.sleep(0.005)
        time.sleep(wait)
        start = time.monotonic()
        process.send_signal(number)
        _, said = process.communicate(timeout=60)
        return process.returncode, time.monotonic() - start, said

    def newest(self) -> int:
        return max((int(path.name.split("-")[0]) for path in self.checkpoints()), default=0)

    def checkpoints(self) -> list[Path]:
        return list(self.root.glob(".resume/*/[0-9]*.safetensors"))

    def outputs(self) -> dict[str, bytes]:
        names = ("models/vae/weights.safetensors", "models/vae/card.json", "reports/training/history.csv")
        return {name: (self.root / name).read_bytes() for name in names}

    def remove_outputs(self) -> None:
        shutil.rmtree(self.root / "models")
        shutil.rmtree(self.root / "reports/training")


def _write_params(root: Path, changes: dict[str, dict[str, Any]]) -> None:
    values = copy.deepcopy(SMALL)
    for section, given in changes.items():
        change(values[section], given)
    with (root / "params.yaml").open("w", encoding="utf-8") as file:
        YAML().dump(values, file)


Start = Callable[..., Training]


@pytest.fixture
def training(digits: Path, tmp_path: Path) -> Start:
    def start(changes: dict[str, dict[str, Any]], **environment: str) -> Training:
        root = tmp_path / "copy"
        shutil.copytree(digits, root)
        return Training(root, changes, **{"MLFLOW_TRACKING_URI": "off"} | environment)

    return start


# Asked to end


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_training_that_is_asked_to_end_leaves_a_checkpoint_and_nothing_half_written(
    number: int, code: int, training: Start
) -> None:
    one = training(ENDLESS)
    before = {path for path in one.root.rglob("*") if path.is_file()}
    found, seconds, said = one.end(number)
    assert found == code, said
    assert seconds < 10  # of which a quiet machine needs one
    assert "Traceback" not in said
    left = {path for path in one.root.rglob("*") if path.is_file()} - before
    assert 1 <= len(one.checkpoints()) <= 2
    assert {path.relative_to(one.root).parts[0] for path in left} == {".resume", ".locks"}
    assert [path for path in left if path.name.startswith(".partial")] == []
    assert not (one.root / "models/vae").exists()


# Killed


def train_undisturbed_and_killed(one: Training, kills: int, seed: int) -> tuple[dict[str, bytes], dict[str, bytes]]:
    """Return the outputs of a training that is not killed, and of one that is at random moments and goes on."""
    one.finish()
    wanted = one.outputs()
    assert one.checkpoints() == []
    one.remove_outputs()
    source = random.Random(seed)
    moments = [(source.randint(1, 4), source.random() * 0.05) for _ in range(kills)]
    for more, wait in moments:
        code, _, said = one.end(signal.SIGKILL, more, wait)
        assert code == -signal.SIGKILL, f"moments {moments}: {said}"
    said = one.finish()
    assert "going on after epoch" in said, f"moments {moments}: {said}"
    assert not (one.root / ".resume").exists()
    assert list(one.root.rglob(".partial*")) == []
    return wanted, one.outputs()


def test_a_killed_training_goes_on_to_the_same_bytes(training: Start) -> None:
    one = training(RICH | {"train": RICH["train"] | SHORT["train"]})
    undisturbed, killed = train_undisturbed_and_killed(one, kills=1, seed=0)
    assert killed == undisturbed


@pytest.mark.slow
@pytest.mark.parametrize("changes", [LONG, RICH], ids=["default", "rich"])
@pytest.mark.parametrize("seed", [1, 2])
def test_a_training_that_is_killed_three_times_goes_on_to_the_same_bytes(
    changes: dict[str, dict[str, Any]], seed: int, training: Start
) -> None:
    undisturbed, killed = train_undisturbed_and_killed(training(changes), kills=3, seed=seed)
    assert killed == undisturbed


# Tracking


@pytest.mark.parametrize(
    "signals",
    [
        [signal.SIGTERM],
        pytest.param([signal.SIGKILL], marks=pytest.mark.slow),
        pytest.param([signal.SIGKILL, signal.SIGTERM, signal.SIGKILL], marks=pytest.mark.slow),
    ],
)
def test_an_interrupted_training_goes_on_in_its_run(signals: list[int], training: Start) -> None:
    from mlflow import MlflowClient

    # Long enough for a signal to arrive before the end also where the machine is busy.
    one = training(
        {**SHORT, "train": {**SHORT["train"], "epochs": 400, "patience": 400, "batch_size": 1257}},
        MLFLOW_TRACKING_URI="",
    )
    ids = set()

    def only_run() -> Any:
        client = MlflowClient(f"sqlite:///{one.root}/mlflow.db")
        experiment = client.get_experiment_by_name("reparam")
        assert experiment is not None
        (run,) = client.search_runs([experiment.experiment_id])
        ids.add(run.info.run_id)
        return run

    for number in signals:
        code, seconds, said = one.end(number)
        is_asked = number == signal.SIGTERM
        assert code == (143 if is_asked else -number), said
        assert seconds < 10  # of which a quiet machine needs one
        assert only_run().info.status == ("KILLED" if is_asked else "RUNNING")
    one.finish()
    last = only_run()
    assert (last.info.status, len(ids)) == ("FINISHED", 1)
    assert last.data.metrics["epochs"] == 400
    assert len(last.inputs.dataset_inputs) == 1
    history = MlflowClient(f"sqlite:///{one.root}/mlflow.db").get_metric_history(last.info.run_id, "train/loss")
    assert sorted(metric.step for metric in history) == list(range(1, 401))  # none twice, none lost
    assert list(one.root.glob(".resume/*/run")) == []


# Under DVC


class Killable:
    """A repository with data that are ready, in which trainings are killed, and one in which they are not."""

    def __init__(self, root: Path) -> None:
        environment = {"MLFLOW_TRACKING_URI": "off", "REPARAM_CHECKPOINT_SECONDS": "0.05", "REPARAM_DEVICE": "cpu"}
        changes = CHANGES | {"train": CHANGES["train"] | LONG["train"]}
        self.project = project_in(root / "project", changes, **environment)
        self.project("dvc repro --quiet preprocess")
        self.project.commit("data")
        self.undisturbed = Project(root / "undisturbed", **environment)
        shutil.copytree(self.project.root, self.undisturbed.root, symlinks=True)

    def checkpoints(self) -> list[Path]:
        directory = self.project.root / self.project.environment.get("REPARAM_RESUME_DIR", ".resume")
        return list(directory.glob("*/[0-9]*.safetensors"))

    def start(self, command: str) -> subprocess.Popen[bytes]:
        """Start a command in a session of its own; return when there are some checkpoints."""
        process = subprocess.Popen(
            command.split(),
            cwd=self.project.root,
            env=self.project.environment,
            start_new_session=True,
            stdout=subprocess.DEVNULL,
        )
        wait(lambda: process.poll() or any(int(path.name.split("-")[0]) >= 4 for path in self.checkpoints()))
        assert not process.poll(), f"{command}: exit {process.returncode}"
        return process

    def kill(self, command: str) -> None:
        """Start a command and kill it with all its children."""
        process = self.start(command)
        assert process.poll() is None
        os.killpg(process.pid, signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL

    def trained(self, experiment: str) -> dict[str, str]:
        """Map what an experiment's training put out to its hashes."""
        references = self.project("git for-each-ref --format=%(refname) refs/exps").split()
        (reference,) = [name for name in references if name.endswith(f"/{experiment}")]
        lock = YAML(typ="safe").load(self.project(f"git show {reference}:dvc.lock"))
        found = {out["path"]: out["md5"] for out in lock["stages"]["train"]["outs"]}
        assert set(found) >= {"models/vae", "reports/training/history.csv"}
        return found

    def undisturbed_training(self) -> dict[str, str]:
        """Train the same experiment without a kill."""
        self.undisturbed("dvc exp run --quiet -S train.seed=1 train")
        return self.undisturbed.hashes()


def wait(is_done: Callable[[], Any]) -> None:
    deadline = time.monotonic() + 120
    while not is_done():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.fixture
def killable(tmp_path: Path) -> Killable:
    return Killable(tmp_path)


@pytest.mark.slow
def test_a_killed_pipeline_and_a_killed_experiment_go_on_under_dvc(killable: Killable) -> None:
    def outputs(of: Project) -> dict[str, bytes]:
        names = ("models/vae/weights.safetensors", "models/vae/card.json", "reports/training/history.csv")
        return {name: (of.root / name).read_bytes() for name in names}

    project, undisturbed = killable.project, killable.undisturbed
    undisturbed("dvc repro --quiet train")
    killable.kill("dvc repro --quiet train")
    assert not (project.root / "models/vae").exists()
    project("dvc repro --quiet train")
    assert outputs(project) == outputs(undisturbed)
    assert killable.checkpoints() == []

    project.commit("trained")
    undisturbed.commit("trained")
    experiment = "dvc exp run --temp --quiet --name killed -S train.seed=1 train"
    killable.kill(experiment)
    project(experiment)
    found, wanted = killable.trained("killed"), killable.undisturbed_training()
    assert found == {path: wanted[path] for path in found}
    assert killable.checkpoints() == []


@pytest.mark.slow
def test_a_training_that_was_killed_goes_on_in_another_clone(killable: Killable, tmp_path: Path) -> None:
    project, kept = killable.project, tmp_path / "kept"
    killable.undisturbed("dvc repro --quiet train")
    project.environment["REPARAM_RESUME_DIR"] = str(kept)
    killable.kill("dvc repro --quiet train")
    assert killable.checkpoints()
    project(f"git clone --quiet . {tmp_path}/elsewhere/clone")
    clone = Project(tmp_path / "elsewhere/clone", **project.environment)
    clone(f"dvc cache dir --local {project.root}/.dvc/cache")
    clone("dvc checkout --quiet data/raw data/processed")
    done = subprocess.run(
        ["dvc", "repro", "train"], cwd=clone.root, env=clone.environment, capture_output=True, text=True
    )
    assert re.search(rf"going on after epoch [0-9]+, from {kept}/", done.stderr), done.stdout + done.stderr
    assert clone.hashes() == killable.undisturbed.hashes()
    assert not kept.exists()


@pytest.mark.slow
@pytest.mark.parametrize("victim", ["training", "worker"])
def test_a_training_that_is_killed_in_the_queue_goes_on_in_the_queue(victim: str, killable: Killable) -> None:
    project = killable.project

    def processes(words: str) -> list[int]:
        """Find the processes of this repository that have these words in their command line."""
        found = []
        for path in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):  # ended meanwhile
                is_ours = (path / "cwd").resolve().is_relative_to(project.root)
                if is_ours and words in (path / "cmdline").read_text().replace("\0", " "):
                    found.append(int(path.name))
        return found

    project("dvc exp run --quiet --queue --name killed -S train.seed=1 train")
    starter = killable.start("dvc queue start --jobs 1")
    victims = processes("reparam train" if victim == "training" else "")
    assert victims
    for process in victims:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)
    project("dvc queue stop --kill")
    starter.wait(60)
    wait(lambda: not processes(""))  # else the old worker is taken for one that will do
    assert killable.checkpoints()

    project("dvc exp run --quiet --queue --name again -S train.seed=1 train")
    project("dvc queue start --jobs 1")
    wait(lambda: re.search(r"again .*Success", project("dvc queue status")))
    assert "going on after epoch" in project("dvc queue logs again")
    found, wanted = killable.trained("again"), killable.undisturbed_training()
    assert found == {path: wanted[path] for path in found}
    assert killable.checkpoints() == []
