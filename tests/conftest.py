"""Fixtures of the whole suite: a small params.yaml, and working copies before and after the pipeline ran."""

import copy
import importlib
import io
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock
from PIL import Image
from ruamel.yaml import YAML

from reparam import lineage
from reparam.config import Config, load_config
from reparam.config import yaml as params_yaml
from reparam.paths import Paths

# Before a test module imports torch, and for child processes: of tensors so small, threads share nothing but waiting.
os.environ |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

# Of few tests that each start many processes. They go first, so that all workers end together.
LONG = ("test_architecture", "test_experiments", "test_pipeline", "test_readme", "test_resume", "test_distributed")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.path.stem not in LONG)


# What differs from the params.yaml that we ship, so that a new section or parameter needs no second place.
CHANGES: dict[str, dict[str, Any]] = {
    "download": {"source": "digits"},
    "preprocess": {"validation": 0.125, "test": 0.2},
    "model": {
        "latent": 3,
        "network": "mlp",
        "mlp": {"hidden": [16]},
        "conv": {"channels": [16, 32], "hidden": [16], "decoder_hidden": None},
    },
    "train": {
        "batch_size": 128,
        "epochs": 2,
        "patience": 2,
        "learning_rate": 0.002,
        "schedule": "constant",
        "average": 0.0,
        "channels_last": False,
    },
    "evaluate": {"elbo_samples": 2, "nll_samples": 4, "grid": {"steps": 3, "plane": "dimensions"}},
    "report": {"title": "A small model"},
}
ROOT = Path(__file__).parents[1]
SMALL: dict[str, dict[str, Any]] = YAML(typ="safe").load(ROOT / "params.yaml")


def change(values: dict[str, Any], changes: Mapping[str, Any]) -> None:
    """Change parameters of a section: its own, those of a block, or one by its name in every block that has it."""
    for name, value in changes.items():
        if isinstance(value, Mapping):
            change(values[name], value)
            continue
        blocks = [block for block in values.values() if isinstance(block, dict) and name in block]
        for owner in [values] if name in values else blocks:
            owner[name] = copy.deepcopy(value)  # or YAML would spell the second as a reference to the first
        assert name in values or blocks, name


for section, values in CHANGES.items():
    change(SMALL[section], values)


@pytest.fixture(scope="session", autouse=True)
def parsed_once() -> Iterator[None]:
    """Parse the same source file, and the same text of a params.yaml, once and not whenever a stage runs."""
    of_module, of_text = lineage._imports, lru_cache(100)(params_yaml.parse_yaml)
    imports = cache(lambda module, _content: list(of_module(module)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lineage, "_imports", lambda module: imports(module, module.read_bytes()))
        patch.setattr(params_yaml, "parse_yaml", lambda text: copy.deepcopy(of_text(text)))
        yield


@pytest.fixture(autouse=True)
def _own_store() -> Iterator[None]:
    """Take back the variable that MLflow sets when a test names a store to it: the next test has the default one."""
    before = os.environ.get("MLFLOW_TRACKING_URI")
    yield
    if before is None:
        os.environ.pop("MLFLOW_TRACKING_URI", None)
    else:
        os.environ["MLFLOW_TRACKING_URI"] = before


def small_section(section: str, **changes: Any) -> Any:
    """A section of the small params.yaml, changed as `change` does."""
    values = copy.deepcopy(SMALL[section])
    change(values, changes)
    return Config.model_fields[section].annotation.model_validate(values)


@pytest.fixture
def params() -> dict[str, Any]:
    """A valid params.yaml of a model that trains within a second, free to be changed."""
    return copy.deepcopy(SMALL)


@pytest.fixture
def project(tmp_path: Path, params: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> Paths:
    """An empty working copy with `params` in its params.yaml, which is also the current directory; tracking is off."""
    for name in os.environ:
        if name.startswith(("DVC_", "MLFLOW_", "REPARAM_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "off")
    monkeypatch.chdir(tmp_path)
    paths = Paths.here()
    _write(paths.params, params)
    return paths


@pytest.fixture
def write_params(project: Paths) -> Callable[[dict[str, Any]], None]:
    """Write changed `params` to the working copy."""
    return lambda params: _write(project.params, params)


@pytest.fixture
def reparam(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str]]:
    """Run `reparam` as a shell would; return the exit code and all that it printed."""

    from reparam import cli

    def run(*arguments: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["reparam", *arguments])
        capfd.readouterr()
        with pytest.raises(SystemExit) as caught:
            cli.main()
        captured = capfd.readouterr()
        return caught.value.code, captured.out + captured.err

    return run


@pytest.fixture(scope="session")
def finished_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working copy in which every stage has run; `finished` copies it, nobody changes it."""
    return once(tmp_path_factory, "finished-in-process", lambda root: run_all(root, SMALL))


@pytest.fixture
def finished(project: Paths, finished_once: Path) -> Paths:
    """`project`, after every stage has run in it."""
    shutil.copytree(finished_once, project.root, dirs_exist_ok=True)
    return project


@pytest.fixture
def blank_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let `evaluate` and `report` write blank pictures: to render figures takes most of their time."""
    content = io.BytesIO()
    Image.new("L", (2, 2)).save(content, "png")
    for stage in ("evaluate", "report"):
        monkeypatch.setattr(f"reparam.{stage}.stage.png", lambda _figure: content.getvalue())


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Compute with one thread: with tensors so small, most time would go by in waiting for a second one."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def mnist_files() -> Path:
    """The directory of the four published files of MNIST; skips where they are not there."""
    directory = Path(os.environ.get("REPARAM_MNIST", Path(__file__).parents[2] / "shared/data/mnist")).resolve()
    if not (directory / "train-images-idx3-ubyte.gz").is_file():
        pytest.skip("the files of MNIST are not there; name their directory in REPARAM_MNIST")
    return directory


def once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], None]) -> Path:
    """Return a directory that the first worker that wants it makes, for all workers of this run."""
    own = factory.getbasetemp()
    directory = (own.parent if "PYTEST_XDIST_WORKER" in os.environ else own) / name
    made = directory.with_suffix(".made")
    with FileLock(directory.with_suffix(".lock")):
        if not made.exists():
            shutil.rmtree(directory, ignore_errors=True)
            directory.mkdir()
            make(directory)
            made.touch()
    return directory


def run_all(root: Path, params: dict[str, Any]) -> Paths:
    """Run every stage in this process, without tracking."""
    paths = Paths(root, root)
    _write(paths.params, params)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", "off")
        for name in YAML(typ="safe").load(ROOT / "dvc.yaml")["stages"]:
            importlib.import_module(f"reparam.{name}.stage").run(load_config(paths.params), paths)
    return paths


def _write(path: Path, params: dict[str, Any]) -> None:
    path.write_text(json.dumps(params, indent=1), encoding="utf-8")  # YAML as well, and quicker to spell
