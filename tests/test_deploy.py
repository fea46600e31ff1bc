"""The files in deploy/: each is what its own tool takes, and what they set exists."""

import os
import re
import shutil
import socket
import subprocess
from pathlib import Path
from typing import Any

import pytest
import typer
from conftest import CHANGES
from dvc_project import STAGES, Project, project_in
from ruamel.yaml import YAML

from reparam.cli import app

ROOT = Path(__file__).parents[1]
DEPLOY = ROOT / "deploy"
SLURM = DEPLOY / "slurm.sh"


def documents(name: str) -> list[Any]:
    return list(YAML(typ="safe").load_all(DEPLOY / name))


@pytest.mark.parametrize("file", sorted(DEPLOY.iterdir()), ids=lambda path: path.name)
def test_what_a_file_sets_and_calls_exists(file: Path) -> None:
    text = file.read_text(encoding="utf-8")
    documented = (ROOT / "docs/reference/environment.md").read_text() + (ROOT / "docs/how-to/remote.md").read_text()
    named = set(re.findall(r"\b(?:REPARAM|MLFLOW)_[A-Z_]+\b", text))
    assert {name for name in named if name not in documented} == set()
    commands = set(typer.main.get_command(app).commands)  # type: ignore[attr-defined]
    assert set(re.findall(r"exec reparam (\w+)", text)) <= commands
    assert "dvc push --run-cache" in text


def test_bash_takes_the_script_of_slurm() -> None:
    subprocess.run(["bash", "-n", SLURM], check=True)
    if shutil.which("shellcheck") is None:
        pytest.skip("shellcheck is not there")
    done = subprocess.run(["shellcheck", SLURM], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")


def test_skypilot_takes_its_file() -> None:
    schemas = pytest.importorskip("sky.utils.schemas", reason="SkyPilot is not there: pip install skypilot")
    jsonschema = pytest.importorskip("jsonschema", reason="jsonschema is not there")
    (task,) = documents("sky.yaml")
    jsonschema.validate(task, schemas.get_task_schema())


def test_kubernetes_takes_its_file() -> None:
    validate = pytest.importorskip("kubernetes_validate", reason="pip install kubernetes-validate").validate
    assert [validate(document, "1.31", strict=True) for document in documents("kubernetes.yaml")] == ["1.31"] * 2


STUBS = {
    "srun": 'shift; n=0; while [ $n -lt "$SLURM_NNODES" ]; do SLURM_NODEID=$n "$@" & n=$((n+1)); done; wait',
    "scontrol": "echo node-a; echo scontrol $* >> $LOG",
    "scancel": 'echo scancel $* >> $LOG; kill -TERM "$(cat trained.pid)"',
    "dvc": 'echo dvc $* $REPARAM_LAUNCH >> $LOG; if [ "$2" = train ] && [ "$1" = repro ]; then '
    "echo $$ > trained.pid; [ -z $SLOW ] || exec sleep 60; fi; if [ $1 = status ]; then exit $CHANGED; fi",
    "reparam": "echo reparam $* $REPARAM_LAUNCH >> $LOG",
}


@pytest.fixture
def cluster(tmp_path: Path) -> dict[str, str]:
    """The variables of a job on two machines of a cluster whose programs only note how they are called."""
    folder = tmp_path / "venv/bin"
    folder.mkdir(parents=True)
    (folder / "activate").write_text(f"PATH={folder}:$PATH")
    for name, script in STUBS.items():
        (folder / name).write_text(f"#!/bin/bash\n{script}\n")
        (folder / name).chmod(0o755)
    job = {"SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "node-[a,b]", "SLURM_NNODES": "2", "SLURM_GPUS_ON_NODE": "8"}
    own = {"VENV": str(tmp_path / "venv"), "LOG": str(tmp_path / "log"), "SLURM_SUBMIT_DIR": str(tmp_path)}
    return {**os.environ, **job, **own, "CHANGED": "0", "SLOW": ""}


def calls(cluster: dict[str, str]) -> list[str]:
    return Path(cluster["LOG"]).read_text().splitlines()


def torchrun(rank: int) -> str:
    return f"torchrun --nnodes 2 --nproc-per-node 8 --master-addr node-a --master-port 29500 --node-rank {rank}"


def test_on_slurm_the_first_machine_runs_the_stage_and_the_others_help(cluster: dict[str, str]) -> None:
    subprocess.run(["bash", SLURM], env=cluster, check=True, timeout=60)
    pull, data, *both, status, rest, push = [call for call in calls(cluster) if "scontrol" not in call]
    assert [pull, data] == ["dvc pull --run-cache --allow-missing --force", "dvc repro preprocess"]
    assert sorted(both) == [f"dvc repro train {torchrun(0)}", f"reparam train {torchrun(1)}"]
    assert [status, rest, push] == ["dvc status --quiet train", "dvc repro", "dvc push --run-cache"]


def test_on_slurm_nothing_runs_after_a_training_that_failed(cluster: dict[str, str]) -> None:
    done = subprocess.run(["bash", SLURM], env={**cluster, "CHANGED": "1"}, check=False, timeout=60)
    assert done.returncode == 1
    assert calls(cluster)[-1] == "dvc status --quiet train"


def test_on_slurm_a_job_whose_time_is_over_ends_training_and_goes_back_into_the_queue(cluster: dict[str, str]) -> None:
    trained = Path(cluster["SLURM_SUBMIT_DIR"], "trained.pid")
    process = subprocess.Popen(["bash", SLURM], env={**cluster, "SLOW": "yes"})
    while not (trained.exists() and trained.read_text()):
        assert process.poll() is None
    process.terminate()
    assert process.wait(30) == 0
    first = [
        call for call in calls(cluster) if not call.startswith("reparam train")
    ]  # of the other machine, at any time
    assert first[-2:] == ["scancel --signal TERM 7", "scontrol requeue 7"]


# As srun does with --wait: once one has ended, the others have so much time.
SRUN = """
shift
for n in $(seq 0 $((SLURM_NNODES - 1))); do SLURM_NODEID=$n "$@" & done
wait -n
for i in $(seq 100); do [ -z "$(jobs -pr)" ] && exit; sleep 0.1; done
kill $(jobs -pr)
wait
"""


class Cluster:
    """Machines that share a disk: real DVC and training, and what a job does of Slurm's programs."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "bin").mkdir(parents=True)
        for name, script in {"srun": SRUN, "scontrol": "echo 127.0.0.1"}.items():
            (folder / "bin" / name).write_text(f"#!/bin/bash\n{script}\n")
            (folder / "bin" / name).chmod(0o755)
        (folder / "bin/activate").write_text(f"PATH={folder}/bin:$PATH")

    def submit(self, project: Project, machines: int) -> str:
        """Run the script as `sbatch --nodes` does; return what it printed."""
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        job = {"SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "node", "SLURM_NNODES": str(machines), "PORT": str(port)}
        own = {"VENV": str(self.folder), "SLURM_SUBMIT_DIR": str(project.root), "PYTHONPATH": "src"}
        return project.type_in("bash deploy/slurm.sh 2>&1", **job, **own)


@pytest.mark.slow
def test_a_slurm_job_under_real_dvc_computes_what_the_remote_does_not_have_and_sends_it(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path / "cluster")
    settings = {"MLFLOW_TRACKING_URI": "off", "REPARAM_DEVICE": "cpu", "OMP_NUM_THREADS": "1"}
    first = project_in(tmp_path / "first", CHANGES, **settings)
    first(f"dvc remote add --quiet --default store {tmp_path}/store")
    first.commit("remote")
    said = cluster.submit(first, machines=1)
    assert re.findall("Running stage '(.*)'", said) == list(STAGES)
    first.commit("results")

    first(f"git clone --quiet . {tmp_path}/second")
    second = Project(tmp_path / "second", **settings)
    said = cluster.submit(second, machines=2)
    assert "Running stage" not in said
    assert second.hashes() == first.hashes()
    for name in ("data/processed/card.json", "models/onnx/manifest.json", "reports/index.html"):
        assert (second.root / name).read_bytes() == (first.root / name).read_bytes()

    (second.root / "reports/evaluation/figures/samples.png").write_bytes(b"half")  # by a job that was killed
    yaml = YAML()
    params = yaml.load(second.root / "params.yaml")
    params["train"]["learning_rate"] = 0.0015
    yaml.dump(params, second.root / "params.yaml")
    said = cluster.submit(second, machines=2)
    assert re.findall("Running stage '(.*)'", said) == list(STAGES[2:]), said
    assert said.count("waiting for 2 machines to meet at 127.0.0.1") == 2
    assert second.hashes()["models/vae"] != first.hashes()["models/vae"]
    second("dvc status --quiet")
