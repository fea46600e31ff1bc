"""What `pip install reparam` brings: the client and the commands of an exported model, without the pipeline."""

import os
import shutil
import subprocess
import venv
from pathlib import Path

import pytest
from exported_model import Exported

pytest_plugins = ["fixtures_export"]

ROOT = Path(__file__).parents[1]
MEGABYTES = 160  # at most, without the byte code that pip makes of what it installs
REPORT = "import importlib.metadata as m; print(*sorted({d.name.lower() for d in m.distributions()}))"


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment with the wheel of this working copy and what it requires, and nothing else."""
    root = tmp_path_factory.mktemp("light")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, root)
    shutil.copytree(ROOT / "src", root / "src", ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    venv.create(root / "venv", with_pip=True)
    pip = [root / "venv/bin/python", "-m", "pip", "--quiet"]
    subprocess.run([*pip, "wheel", "--no-deps", "--wheel-dir", root, root], check=True)
    (wheel,) = root.glob("*.whl")
    constraints = ["--no-compile", "--constraint", ROOT / "constraints.txt"]
    subprocess.run([*pip, "install", *constraints, wheel], check=True)
    return root / "venv"


def reparam(environment: Path, *arguments: str | Path, cwd: Path) -> tuple[int, str]:
    variables = {"PATH": f"{environment}/bin:{os.environ['PATH']}", "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        [environment / "bin/reparam", *arguments], cwd=cwd, env=variables, capture_output=True, text=True, check=False
    )
    return done.returncode, done.stdout + done.stderr


@pytest.mark.slow
def test_the_light_installation_is_small_and_has_nothing_of_the_pipeline(environment: Path) -> None:
    found = subprocess.run([environment / "bin/python", "-c", REPORT], check=True, capture_output=True, text=True)
    names = set(found.stdout.split())
    assert {"numpy", "onnxruntime", "pillow", "reparam", "typer"} <= names
    assert {"torch", "mlflow", "dvc", "onnx", "onnxruntime-gpu", "scipy", "ruamel.yaml", "filelock"} & names == set()
    assert len(names) < 30
    (packages,) = environment.glob("lib/python*/site-packages")
    theirs = ("pip", "setuptools", "pkg_resources", "_distutils_hack")  # which come with every environment
    files = [
        file
        for file in packages.rglob("*")
        if file.is_file() and not file.relative_to(packages).parts[0].startswith(theirs)
    ]
    assert sum(file.stat().st_size for file in files) / 1e6 <= MEGABYTES


@pytest.mark.slow
def test_the_light_installation_uses_a_model(environment: Path, exported: Exported, tmp_path: Path) -> None:
    code, printed = reparam(environment, "--help", cwd=tmp_path)
    assert (code, "model" in printed) == (0, True)
    code, printed = reparam(environment, "model", "info", "--model", exported.directory, cwd=tmp_path)
    assert code == 0
    assert printed.splitlines()[1] == "images      4 x 6 x 3 (height, width, channels), uint8"
    code, printed = reparam(environment, "model", "verify", "--model", exported.directory, cwd=tmp_path)
    assert (code, printed.splitlines()[-1]) == (0, f"{exported.directory}: verified")
    assert reparam(
        environment, "model", "sample", "--model", exported.directory, "--output", "x.png", cwd=tmp_path
    ) == (0, "")
    assert reparam(environment, "explorer", "--model", exported.directory, cwd=tmp_path) == (
        0,
        "explorer.html: written\n",
    )
    code, printed = reparam(environment, "model", "encode", "x.png", "--model", exported.directory, cwd=tmp_path)
    assert (code, printed.splitlines()[-1]) == (
        1,
        "error: x.png: wanted 6 x 4 pixels, found 62 x 46; --resize fits images as `reparam preprocess` does",
    )


@pytest.mark.slow
@pytest.mark.parametrize("command", ["download", "train", "evaluate", "summary", "check", "recipe"])
def test_commands_of_the_pipeline_say_what_to_install(command: str, environment: Path, tmp_path: Path) -> None:
    code, printed = reparam(environment, command, cwd=tmp_path)
    assert code == 1
    assert printed.startswith(f"error: {command}: needs ")
    assert printed.endswith("; run `pip install 'reparam[pipeline]'`\n")
    assert list(tmp_path.iterdir()) == []
