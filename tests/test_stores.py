"""Stores of others, real ones: an MLflow server with passwords, and remotes of DVC that hold all that a clone needs."""

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from dvc_project import Project, copy_of, finished
from stores import PASSWORD, SECRETS, USER, mlflow_server, postgres, s3, with_secrets

pytestmark = pytest.mark.slow
REPOSITORY = Path(__file__).parents[1]


def type_in(project: Project, command: str, **variables: str) -> tuple[int, str]:
    """Run a command; return its exit code and all that it printed."""
    environment = {**project.environment, **variables}
    done = subprocess.run(command.split(), cwd=project.root, env=environment, capture_output=True, text=True)
    return done.returncode, done.stdout + done.stderr


@pytest.fixture(params=["SQLite", "PostgreSQL"])
def server(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    if request.param == "SQLite":
        with mlflow_server(tmp_path / "server", f"sqlite:///{tmp_path}/server/runs.db") as address:
            yield address
        return
    with postgres() as database, mlflow_server(tmp_path / "server", database) as address:
        yield address


def test_a_server_with_passwords_gets_everything_but_the_password(
    server: str, finished: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow import MlflowClient

    login = {"MLFLOW_TRACKING_USERNAME": USER, "MLFLOW_TRACKING_PASSWORD": PASSWORD}
    patient = {"MLFLOW_HTTP_REQUEST_TIMEOUT": "60"}  # of a server that has just begun, on a busy machine
    project = copy_of(finished, tmp_path / "project", MLFLOW_TRACKING_URI=server, **login, **patient, PYTHONPATH="src")
    printed = []
    for command in ("track", "track", "doctor", "compare workspace HEAD"):
        code, said = type_in(project, f"python -m reparam {command}")
        assert (command, code) == (command, 0), said
        printed.append(said)
    assert printed[0].startswith("tracked\n")  # and MLflow's links to the runs
    assert printed[1] == "MLflow has a run of this model already\n"
    for wrong in ({"MLFLOW_TRACKING_PASSWORD": f"{PASSWORD}-not"}, {"MLFLOW_TRACKING_URI": "http://127.0.0.1:9"}):
        code, said = type_in(project, "python -m reparam track", **wrong)
        assert code == 1
        assert "error: MLflow at http://127.0.0.1:" in said, said
        printed.append(said)

    for name, value in login.items():
        monkeypatch.setenv(name, value)
    client = MlflowClient(server)
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    runs = client.search_runs(experiments)
    assert {run.data.tags["reparam.stage"] for run in runs} >= {"train", "evaluate", "export"}
    (training,) = [run for run in runs if run.data.tags["reparam.stage"] == "train"]
    assert training.info.artifact_uri.startswith("mlflow-artifacts:/")  # through the server, which alone has the files
    assert "evaluation" in [artifact.path for artifact in client.list_artifacts(training.info.run_id)]
    shown = "\n".join([*printed, *(str(run.to_dictionary()) for run in runs)])
    assert [secret for secret in SECRETS if secret in shown] == []
    assert with_secrets(project.root) == []
    assert with_secrets(tmp_path / "server/artifacts") == []


@pytest.fixture(params=["directory", "S3"])
def remote(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[list[str]]:
    """Commands that name a remote."""
    if request.param == "directory":
        yield [f"dvc remote add --default storage {tmp_path}/storage"]
        return
    with s3(tmp_path / "s3") as address:
        yield [
            "dvc remote add --default storage s3://models/digits",
            f"dvc remote modify storage endpointurl {address}",
        ]


def test_a_fresh_clone_gets_everything_from_a_remote_and_computes_nothing(
    remote: list[str], finished: Project, tmp_path: Path
) -> None:
    login = {"AWS_ACCESS_KEY_ID": USER, "AWS_SECRET_ACCESS_KEY": PASSWORD, "AWS_DEFAULT_REGION": "us-east-1"}
    project = copy_of(finished, tmp_path / "project", MLFLOW_TRACKING_URI="off", **login)
    for command in remote:
        project(command)
    project.commit("remote")
    project("dvc push --quiet --run-cache")
    (tmp_path / "there").mkdir()
    project(f"git clone --quiet {project.root} {tmp_path}/there/clone")
    clone = Project(tmp_path / "there/clone", MLFLOW_TRACKING_URI="off", **login)
    printed = clone("dvc repro --pull --allow-missing")
    assert printed.count("didn't change, skipping") == 6, printed
    assert "Running stage" not in printed
    clone("dvc pull --quiet")
    for name in ("models/vae/weights.safetensors", "models/onnx/manifest.json", "reports/index.html"):
        assert (clone.root / name).read_bytes() == (project.root / name).read_bytes()
    assert clone("dvc status") == "Data and pipelines are up to date.\n"
    # A job that does not commit sends dvc.lock and the metrics in another way, as in deploy/.
    pack = re.search(r"tar -czf \S+/(results\.tar\.gz dvc\.lock \S+)", (REPOSITORY / "deploy/sky.yaml").read_text())
    assert pack
    subprocess.run(["bash", "-c", f"tar -czf {pack[1]}"], cwd=project.root, check=True)
    for name in ("dvc.lock", "models", "reports"):
        clone(f"rm -r {name}")
    clone(f"tar -xzf {project.root}/results.tar.gz")
    clone("dvc pull --quiet")
    assert clone("dvc status") == "Data and pipelines are up to date.\n"
    # Where it was run, a result is also known without dvc.lock, as of an experiment that is not in git.
    hashes = project.hashes()
    for name in ("dvc.lock", "models", "reports/data", "reports/training", "reports/evaluation", "reports/export"):
        project(f"rm -r {name}")
    again = project("dvc repro")
    assert again.count("is cached - skipping run") == 6, again
    assert project.hashes() == hashes == clone.hashes()
    assert with_secrets(clone.root) == with_secrets(project.root) == []
