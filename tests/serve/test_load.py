"""The service under tools that others wrote to break services; each is installed into an environment of its own."""

import csv
import subprocess
import venv
from pathlib import Path

import pytest

pytest_plugins = ["fixtures_export"]
pytestmark = pytest.mark.slow

USERS = 300
# What people and programs ask, mixed; a user asks again as soon as it has its answer.
USER = """
from locust import FastHttpUser, task

image = [[[level] * 3 for level in range(6)] for _ in range(4)]
tensor = {"name": "latents", "shape": [1, 2], "datatype": "FP32", "data": [0.5, -1.5]}

class User(FastHttpUser):
    @task
    def encode(self):
        self.client.post("/encode", json={"images": [image]})

    @task
    def sample(self):
        self.client.post("/sample?format=png", json={"count": 2, "seed": 1})

    @task
    def infer(self):
        self.client.post("/v2/models/decoder/infer", json={"inputs": [tensor]})
"""


def tool(name: str, directory: Path) -> Path:
    """Install a tool, and return the folder of its commands."""
    venv.create(directory, with_pip=True)
    pip = [directory / "bin/python", "-m", "pip", "--quiet", "install", name]
    installed = subprocess.run(pip, capture_output=True, text=True)
    if installed.returncode:
        pytest.skip(f"pip cannot install {name}: {installed.stderr.strip()[-200:]}")
    return directory / "bin"


def test_hundreds_of_users_at_once_meet_no_error(address: str, tmp_path: Path) -> None:
    (tmp_path / "users.py").write_text(USER, encoding="utf-8")
    locust = [tool("locust", tmp_path / "tool") / "locust", "--locustfile", tmp_path / "users.py", "--headless"]
    load = ["--users", str(USERS), "--spawn-rate", "100", "--run-time", "15s", "--csv", tmp_path / "load"]
    done = subprocess.run([*locust, *load, "--host", f"http://{address}"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    with (tmp_path / "load_stats.csv").open(encoding="utf-8") as file:
        total = list(csv.DictReader(file))[-1]
    assert (total["Name"], total["Failure Count"]) == ("Aggregated", "0")
    assert int(total["Request Count"]) > 10 * USERS


def test_schemathesis_finds_no_error_of_the_server_and_no_answer_that_is_not_described(
    address: str, tmp_path: Path
) -> None:
    command = [tool("schemathesis", tmp_path / "tool") / "schemathesis", "run", f"http://{address}/openapi.json"]
    # Not whether it takes all that its schema allows, and nothing else: no schema says how large a PNG may be.
    options = ["--exclude-checks", "positive_data_acceptance,negative_data_rejection", "--max-examples", "50"]
    done = subprocess.run([*command, *options, "--seed", "1"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    assert "Tested: 12" in done.stdout
