"""What it costs to add something: the examples of CONTRIBUTING.md, followed to the letter in a copy of the source."""

import ast
import hashlib
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from conftest import SMALL, change
from ruamel.yaml import YAML

from reparam.recipes import merge

ROOT = Path(__file__).parents[1]
# The only files that each example touches.
FILES = {
    "A likelihood": ["models/likelihoods.py"],
    "A prior": ["models/priors.py"],
    "An objective with a parameter": ["objectives.py", "config/objective.py", "config/params.yaml"],
    "A network": ["models/networks.py"],
    "A data set": ["data/sources/registry.py"],
}
LONGEST = 15  # lines of an example in one file
ENTRY = re.compile(r"(.*?)^(\w+) = \{\.\.\., (.*)\}$", re.DOTALL | re.MULTILINE)
FIELD = re.compile(r"(.*?)^class (\w+)\(Section\):\n    \.\.\.\n(.*)", re.DOTALL | re.MULTILINE)


def example(title: str) -> Iterator[tuple[str, str]]:
    """The code below a heading of CONTRIBUTING.md: the file that each block names in its first line, and the rest."""
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    section = text.split(f"\n### {title}\n")[1].split("\n### ")[0]
    for block in re.findall(r"```(?:python|yaml)\n# src/reparam/(.*?)```", section, re.DOTALL):
        file, _, code = block.partition("\n")
        yield file, code


def follow(title: str, package: Path) -> None:
    for file, code in example(title):
        path = package / file
        if path.suffix == ".yaml":
            values = YAML().load(path)
            merge(values, YAML(typ="safe").load(code))
            YAML().dump(values, path)
        else:
            path.write_text(edited(path.read_text(encoding="utf-8"), code), encoding="utf-8")


def edited(text: str, code: str) -> str:
    """Add code to that of a file: new definitions, and an entry of a dict or a field of a section."""
    entry, field = ENTRY.search(code), FIELD.search(code)
    new, name, more = (entry or field).groups()  # type: ignore[union-attr]
    statements = {
        getattr(node, "name", getattr(getattr(node, "target", None), "id", "")): node for node in ast.parse(text).body
    }
    statements |= {node.targets[0].id: node for node in statements.values() if isinstance(node, ast.Assign)}
    known = statements[name]
    lines = text.splitlines(keepends=True)
    before, body, after = (
        lines[: known.lineno - 1],
        lines[known.lineno - 1 : known.end_lineno],
        lines[known.end_lineno :],
    )
    if entry:
        start, brace, _ = "".join(body).rpartition("}")
        more = f"{start}{'' if start.rstrip().endswith(',') else ', '}{more}{brace}\n"
    else:
        more = "".join(body) + more
    return "".join([*before, f"{new}\n\n", more, *after])


@pytest.fixture(scope="module")
def extended(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the project to which all examples were added."""
    root = tmp_path_factory.mktemp("extended")
    for name in ("src", "docs"):
        shutil.copytree(ROOT / name, root / name, ignore=shutil.ignore_patterns("__pycache__", "_build"))
    shutil.copy(ROOT / "params.yaml", root)
    for title in FILES:
        follow(title, root / "src/reparam")
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
    environment = {**os.environ, "PYTHONPATH": str(root / "src"), "MLFLOW_TRACKING_URI": "off"}
    done = subprocess.run([sys.executable, *arguments], cwd=root, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("title", FILES)
def test_an_example_touches_as_few_files_as_it_says_with_as_few_lines(title: str) -> None:
    assert [file for file, _ in example(title)] == FILES[title]
    for _, code in example(title):
        assert len([line for line in code.splitlines() if line]) < LONGEST


def test_what_was_added_is_documented_everywhere(extended: Path) -> None:
    params = (extended / "params.yaml").read_text(encoding="utf-8")
    assert "    share: 0.5 # Share of the importance-weighted bound.\n" in params
    comments = " ".join(params.replace("#", " ").split())  # which are broken where a line is full
    assert "| mine: Data set to fetch." in comments
    reference = (extended / "docs/reference/parameters.md").read_text(encoding="utf-8")
    for name in ("`student_t`", "`scale_mixture`", "`blend`", "`affine`", "`mine`", "### `objective.blend`"):
        assert name in reference, name
    assert "a number (at least 0 and at most 1)" in run(extended, "-m", "reparam", "params", "objective.blend.share")


def test_what_was_added_runs(extended: Path) -> None:
    params = YAML().load(extended / "params.yaml")
    for section, values in SMALL.items():
        merge(params[section], values)
    change(params["download"], {"source": "mine", "mirrors": ["mirror"]})
    change(params["preprocess"], {"binarization": "none"})
    change(params["model"], {"likelihood": "student_t", "prior": "scale_mixture", "network": "affine"})
    change(params["objective"], {"name": "blend", "samples": 2, "share": 0.25})
    YAML().dump(params, extended / "params.yaml")
    for stage in ("download", "preprocess", "train"):
        run(extended, "-m", "reparam", stage)
    card = YAML(typ="safe").load(extended / "models/vae/card.json")
    assert card["data"]["source"] == "mine"
    assert card["objective"]["blend"] == {"share": 0.25}
    assert card["epochs"] == 2
