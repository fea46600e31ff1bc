"""What it costs to add something: the examples of CONTRIBUTING.md, followed to the letter in a copy of the source."""

import ast
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import SMALL, change
from ruamel.yaml import YAML

from reparam.recipes import merge

ROOT = Path(__file__).parents[1]
SOURCE = "src/reparam/"
# The only files that each example touches.
FILES = {
    "A likelihood": ["models/likelihoods.py"],
    "A prior": ["models/priors.py"],
    "An objective with a parameter": ["objectives.py", "config/objective.py", "config/params.yaml"],
    "A network": ["models/networks.py"],
    "A data set": ["data/sources/registry.py"],
    "An optimizer or a schedule": ["train/optimizers.py", "train/optimizers.py"],
    "A sampler": ["evaluate/samplers.py"],
    "To add a metric or a figure": ["evaluate/measures.py", "metrics.py"],
}
STAGE = "To add a stage"
FILES_OF_STAGE = ["config/count.py", "config/load.py", "config/params.yaml", "count/stage.py", "cli.py"]
LONGEST = 15  # lines of an example in one file
BLOCK = re.compile(rf"```(?:python|yaml)\n# ({SOURCE}\S+|dvc\.yaml)\n(.*?)```", re.DOTALL)
ENTRY = re.compile(r'(.*?)^(\w+)(?:\["(\w+)"\])? = \{\.\.\., (.*)\}$', re.DOTALL | re.MULTILINE)
MEMBER = re.compile(r"(.*?)^(?:class|def) (\w+)[^\n]*:\n    \.\.\.\n(.*)", re.DOTALL | re.MULTILINE)
# All in one process, without the time that it takes to render figures.
RUN = """
import sys
from reparam.cli import app
from reparam.evaluate import stage
stage.png = lambda _figure: b""
for name in sys.argv[1:]:
    app([name], standalone_mode=False)
"""


def example(title: str) -> Iterator[tuple[str, str]]:
    """The code below a heading of CONTRIBUTING.md: the file that each block names in its first line, and the rest."""
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    section = re.split(r"^##+ (.*)\n", text, flags=re.MULTILINE)
    return iter(BLOCK.findall(section[section.index(title) + 1]))


def follow(title: str, root: Path) -> None:
    for file, code in example(title):
        path = root / file
        if not path.exists():
            path.parent.mkdir(exist_ok=True)
            path.write_text(code, encoding="utf-8")
        elif path.suffix == ".yaml":
            values = YAML().load(path)
            merge(values, YAML(typ="safe").load(code))
            YAML().dump(values, path)
        else:
            path.write_text(edited(path.read_text(encoding="utf-8"), code), encoding="utf-8")


def edited(text: str, code: str) -> str:
    """Add code to that of a file: new definitions, and an entry of a dict or a member of a class or function."""
    if entry := ENTRY.search(code):
        new, name, key, more = entry.groups()
        node = definition(text, name)
        table: Any = node.value  # type: ignore[attr-defined]
        if key:
            table = table.values[[each.value for each in table.keys].index(key)]
        end = place(text, table.end_lineno, table.end_col_offset - 1)  # of its closing brace
        more = more if text[:end].rstrip().endswith(",") else f", {more}"
    elif member := MEMBER.search(code):
        new, name, more = member.groups()
        node = definition(text, name)
        end = place(text, node.end_lineno + 1)  # type: ignore[operator]
    else:
        return f"{text}\n\n{code}"
    start = place(text, node.lineno)
    return f"{text[:start]}{new}{text[start:end]}{more}{text[end:]}"


def definition(text: str, name: str) -> ast.stmt:
    """Where a module defines a dict, a class or a function."""
    for node in ast.parse(text).body:
        target = node.targets[0] if isinstance(node, ast.Assign) else getattr(node, "target", node)
        if name in (getattr(target, "id", ""), getattr(target, "name", "")):
            return node
    raise AssertionError(f"nothing defines {name}")


def place(text: str, line: int, column: int = 0) -> int:
    """The index of a place in a text, whose lines count from 1."""
    return sum(map(len, text.splitlines(keepends=True)[: line - 1])) + column


@pytest.fixture(scope="module")
def extended(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the project to which all examples were added."""
    root = tmp_path_factory.mktemp("extended")
    for name in ("src", "docs"):
        shutil.copytree(ROOT / name, root / name, ignore=shutil.ignore_patterns("__pycache__", "_build"))
    for name in ("params.yaml", "dvc.yaml"):
        shutil.copy(ROOT / name, root)
    for title in (*FILES, STAGE):
        follow(title, root)
    random = np.random.default_rng(0)
    (root / "mirror").mkdir()
    np.savez(
        root / "mirror/mine.npz",
        images=random.integers(0, 256, (40, 1, 4, 4), dtype=np.uint8),
        labels=np.arange(40) % 2,
    )
    registry = root / "src/reparam/data/sources/registry.py"
    digest = hashlib.sha256((root / "mirror/mine.npz").read_bytes()).hexdigest()
    registry.write_text(registry.read_text(encoding="utf-8").replace("3a7bd3e2...", digest), encoding="utf-8")
    run(root, "docs/generate.py")
    return root


def run(root: Path, *arguments: str) -> str:
    """Run Python on the copy."""
    settings = {"PYTHONPATH": str(root / "src"), "MLFLOW_TRACKING_URI": "off", "REPARAM_MIRRORS": "mirror"}
    done = subprocess.run(
        [sys.executable, *arguments], cwd=root, env=os.environ | settings, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("title", [*FILES, STAGE])
def test_an_example_touches_as_few_files_as_it_says_with_as_few_lines(title: str) -> None:
    wanted = ["paths.py", *FILES_OF_STAGE, "dvc.yaml"] if title == STAGE else FILES[title]
    assert [file.removeprefix(SOURCE) for file, _ in example(title)] == wanted
    for _, code in example(title):
        assert len([line for line in code.splitlines() if line]) < LONGEST


def test_what_was_added_is_documented_everywhere(extended: Path) -> None:
    params = (extended / "params.yaml").read_text(encoding="utf-8")
    assert "    share: 0.5 # Share of the importance-weighted bound.\n" in params
    assert "  split: test # train | validation | test: Images that are counted.\n" in params
    comments = " ".join(params.replace("#", " ").split())  # which are broken where a line is full
    assert "| mine: Data set to fetch." in comments
    reference = (extended / "docs/reference/parameters.md").read_text(encoding="utf-8")
    choices = ("student_t", "scale_mixture", "blend", "affine", "mine", "nesterov", "inverse_root", "encoded")
    for name in (*(f"`{choice}`" for choice in choices), "### `objective.blend`", "## `count`"):
        assert name in reference, name
    assert "| `squared_kl` | Squared KL | nats² | lower |" in (extended / "docs/reference/metrics.md").read_text(
        "utf-8"
    )
    assert "### `reparam count`" in (extended / "docs/reference/commands.md").read_text("utf-8")
    assert "a number (at least 0 and at most 1)" in run(extended, "-m", "reparam", "params", "objective.blend.share")


def test_what_was_added_runs(extended: Path) -> None:
    params = YAML().load(extended / "params.yaml")
    for section, values in SMALL.items():
        merge(params[section], values)
    params["download"]["source"] = "mine"
    change(params["preprocess"], {"binarization": "none"})
    change(params["model"], {"likelihood": "student_t", "prior": "scale_mixture", "network": "affine"})
    change(params["objective"], {"name": "blend", "samples": 2, "share": 0.25})
    change(params["train"], {"optimizer": "nesterov", "schedule": "inverse_root"})
    change(params["evaluate"], {"sampler": "encoded"})
    YAML().dump(params, extended / "params.yaml")
    run(extended, "-c", RUN, "download", "preprocess", "train", "evaluate", "count")
    card = json.loads((extended / "models/vae/card.json").read_text())
    assert card["data"]["source"] == "mine"
    assert card["objective"]["blend"] == {"share": 0.25}
    assert card["epochs"] == 2
    evaluation = extended / "reports/evaluation"
    metrics = json.loads((evaluation / "metrics.json").read_text())
    with np.load(evaluation / "scores.npz") as scores:
        assert metrics["squared_kl"] == pytest.approx(np.square(scores["kl"]).mean(), rel=1e-3)
    assert json.loads((evaluation / "card.json").read_text())["sampled_from"] == "encoded training images"
    assert json.loads((extended / "reports/counts.json").read_text()) == {"cat": 4, "dog": 4}


def test_the_stage_that_was_added_depends_on_what_it_imports(extended: Path) -> None:
    [deps] = [
        YAML(typ="safe").load(code)["stages"]["count"]["deps"] for file, code in example(STAGE) if file == "dvc.yaml"
    ]
    listed = [extended / path for path in deps if path.startswith("src/")]
    code = "from reparam.lineage import source_files; print(*source_files('count'))"
    followed = [Path(file) for file in run(extended, "-c", code).split()]
    assert [file for file in followed if not any(file.is_relative_to(path) for path in listed)] == []
    assert [path for path in listed if not any(file.is_relative_to(path) for file in followed)] == []
