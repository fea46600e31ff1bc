"""Several processes that train one model together."""

import copy
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import SMALL, change
from ruamel.yaml import YAML
from safetensors.torch import load_file
from torch import Tensor

from reparam.config import load_config
from reparam.download import stage as download
from reparam.paths import Paths
from reparam.preprocess import stage as preprocess
from reparam.train import stage as train

# No noise anywhere, so that two processes that share a batch must do what one does.
NOISELESS: dict[str, dict[str, Any]] = {
    "preprocess": {"binarization": "none", "limit": 101},
    "model": {"kind": "autoencoder", "likelihood": "gaussian"},
    "objective": {"name": "reconstruction"},
    "train": {"batch_size": 25, "epochs": 3, "schedule": "cosine"},  # 101 = 4 * 25 + 1: fewer images than processes
}


@pytest.fixture
def noiseless(project: Paths) -> Paths:
    """A working copy with data, and the parameters of a training without noise."""
    params = copy.deepcopy(SMALL)
    for section, values in NOISELESS.items():
        change(params[section], values)
    with project.params.open("w") as file:
        YAML().dump(params, file)
    config = load_config(project.params)
    download.run(config, project)
    preprocess.run(config, project)
    return project


def run(root: Path, *command: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(Path(train.__file__).parents[2])}
    return subprocess.run(
        [sys.executable, *command], cwd=root, env=environment, capture_output=True, text=True, check=False
    )


def torchrun(root: Path, *command: str, processes: int = 2) -> subprocess.CompletedProcess[str]:
    return run(root, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes), *command)


def history(paths: Paths) -> list[float]:
    return [float(cell) for line in paths.history.read_text().splitlines()[1:] for cell in line.split(",")]


def assert_trained(paths: Paths, wanted: dict[str, Tensor]) -> None:
    found = load_file(paths.model / "weights.safetensors")
    assert found.keys() == wanted.keys()
    for name, weight in wanted.items():
        # Adam divides by the gradient's size, so a rounding of a tiny gradient is a visible step.
        torch.testing.assert_close(found[name], weight, rtol=1e-3, atol=1e-4)


KILLED = """
import sys
import torch
from reparam.config import load_config
from reparam.paths import Paths
from reparam.train import stage
from reparam.train.trainer import Trainer

steps, step = 0, Trainer.step

def die(trainer, *batch):
    global steps
    steps += 1
    if steps == 1:
        sys.stdout.write(f"{torch.initial_seed()}\\n")  # `print` would write the end of the line apart
    if steps == 8:  # two steps into the second of three epochs
        raise SystemExit(7)
    return step(trainer, *batch)

Trainer.step = die
paths = Paths.here()
stage.run(load_config(paths.params), paths, "cpu", quiet=True)
"""


def test_two_processes_that_were_killed_go_on_to_the_model_that_one_trains(
    noiseless: Paths, monkeypatch: pytest.MonkeyPatch
) -> None:
    train.run(load_config(noiseless.params), noiseless, "cpu", quiet=True)
    wanted, alone = load_file(noiseless.model / "weights.safetensors"), history(noiseless)
    (noiseless.model / "weights.safetensors").unlink()
    noiseless.history.unlink()
    monkeypatch.setenv("REPARAM_CHECKPOINT_SECONDS", "0")
    (noiseless.root / "killed.py").write_text(KILLED)
    killed = torchrun(noiseless.root, "killed.py")
    assert killed.returncode != 0
    seed = SMALL["train"]["seed"]
    assert sorted(map(int, killed.stdout.split())) == [seed, seed + 1]  # no two draw the same noise
    assert not (noiseless.model / "weights.safetensors").exists()
    done = torchrun(noiseless.root, "-m", "reparam", "train", "--device", "cpu")
    assert done.returncode == 0, done.stderr
    assert_trained(noiseless, wanted)
    assert history(noiseless) == pytest.approx(alone, rel=1e-3)
    assert done.stderr.count("going on after epoch 1,") == done.stderr.count("epoch 3/3") == 1  # one of them speaks


@pytest.mark.slow
@pytest.mark.parametrize("processes", [2, 3])
def test_processes_that_were_killed_go_on_to_the_same_bytes(
    processes: int, noiseless: Paths, monkeypatch: pytest.MonkeyPatch
) -> None:
    params = YAML().load(noiseless.params)
    params["model"]["kind"], params["objective"]["name"] = "vae", "mmd"  # with noise, and exchanges within a step
    params["train"]["on_nonfinite"] = "rollback"
    with noiseless.params.open("w") as file:
        YAML().dump(params, file)
    monkeypatch.setenv("REPARAM_CHECKPOINT_SECONDS", "0")

    def outputs() -> list[bytes]:
        return [path.read_bytes() for path in (*sorted(noiseless.model.iterdir()), noiseless.history)]

    (noiseless.root / "killed.py").write_text(KILLED)
    train_it = ("-m", "reparam", "train", "--device", "cpu")
    undisturbed = torchrun(noiseless.root, *train_it, processes=processes)
    assert undisturbed.returncode == 0, undisturbed.stderr
    wanted = outputs()
    noiseless.history.unlink()
    assert torchrun(noiseless.root, "killed.py", processes=processes).returncode != 0
    done = torchrun(noiseless.root, *train_it, processes=processes)
    assert "going on after epoch 1," in done.stderr, done.stderr
    assert outputs() == wanted


@pytest.mark.parametrize(
    "arguments",
    [("2",), pytest.param(("3",), marks=pytest.mark.slow), pytest.param(("2", "compile"), marks=pytest.mark.slow)],
)
def test_a_step_of_several_processes_is_that_of_one(arguments: tuple[str, ...], tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, Path(__file__).with_name("shared_step.py"), *arguments]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, "equal 9"), done.stderr


WORKER = """
import os, socket, torch
import torch.distributed as dist
from reparam.config import load_config
from reparam.data import store
from reparam.data.batches import Batches
from reparam.paths import Paths
from reparam.runtime import make_deterministic
from reparam.train.build import build_trainer
from reparam.distributed import joined

def train(rank):
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": port}
    device = torch.device("cpu")
    with joined(device) as world:
        paths = Paths.here()
        config, card = load_config(paths.params), store.read_card(paths.processed)
        make_deterministic(config.train.seed + world.rank)  # other weights and noise in each process
        images = store.read_split(paths.processed, "train").images
        data = Batches(images, config.train.batch_size, device)
        trainer = build_trainer(config, card, data, world)
        for batch in data.visit(world.agree(torch.randperm(len(images))), world.share):
            trainer.step(*batch)
            for what in ("data", "grad"):
                mine = torch.cat([getattr(weight, what).flatten() for weight in trainer.loss.parameters()])
                everyone = [torch.empty_like(mine) for _ in range(world.size)]
                dist.all_gather(everyone, mine)
                assert all(torch.equal(one, mine) for one in everyone), what
        assert trainer.images == len(images)
        if world.is_first:
            print("equal", len(images))

with socket.create_server(("localhost", 0)) as free:
    port = str(free.getsockname()[1])
torch.multiprocessing.start_processes(train, nprocs=2, start_method="fork")  # which loads torch once
"""


def test_all_processes_have_equal_gradients_and_weights_after_every_step(noiseless: Paths) -> None:
    params = YAML().load(noiseless.params)
    params["model"]["kind"], params["objective"]["name"] = "vae", "elbo"  # each process draws its own noise
    with noiseless.params.open("w") as file:
        YAML().dump(params, file)
    done = run(noiseless.root, "-c", WORKER)
    assert (done.returncode, done.stdout.strip()) == (0, "equal 101"), done.stderr
