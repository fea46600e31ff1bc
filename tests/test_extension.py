"""What it costs to add something: the examples of CONTRIBUTING.md, followed to the letter in a copy of the source."""

import ast
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import fake_gpu
import numpy as np
import pytest
from conftest import SMALL, change
from ruamel.yaml import YAML

ROOT = Path(__file__).parents[1]
SOURCE = "src/reparam/"
# The only files that each example touches.
FILES = {
    "A likelihood": ["models/likelihoods.py", "tests/models/test_likelihoods.py"],
    "A prior": ["models/priors.py"],
    "An objective with a parameter": ["objectives.py", "config/objective.py", "config/params.yaml"],
    "A network": ["models/networks.py"],
    "A data set": ["data/sources/registry.py", "docs/reference/data.md"],
    "An optimizer or a schedule": ["train/optimizers.py", "tests/train/test_optimizers.py", "train/optimizers.py"],
    "A sampler": ["evaluate/samplers.py"],
    "To add a metric or a figure": ["metrics.py", "tests/subjects.py"],
}
STAGE = "To add a stage"
FILES_OF_STAGE = [
    *("paths.py", "config/count.py", "config/load.py", "config/params.yaml", "count/__init__.py", "count/stage.py"),
    *("cli.py", "dvc.yaml"),
]
LONGEST = 15  # lines of an example in one file
BLOCK = re.compile(r"```(?:python|yaml|md)\n# ((?:src/|tests/|docs/|dvc\.yaml)\S*)\n(.*?)```", re.DOTALL)
ENTRY = re.compile(r'(.*?)^(\w+)(?:\["(\w+)"\])? = \{\.\.\., (.*)\}$', re.DOTALL | re.MULTILINE)
MEMBER = re.compile(r"(.*?)^(?:class|def) (\w+)[^\n]*:\n    \.\.\.\n(.*)", re.DOTALL | re.MULTILINE)
# What was added, and a choice that we ship of which the same is tested.
LIKE = {
    "continuous_logistic": "gaussian_per_pixel",
    "scale_mixture": "vamp",
    "blend": "iwae",
    "nesterov": "adamax",
    "encoded": "frequencies",
}
# Tests that run over what can be chosen.
OVER_CHOICES = [
    *(f"models/test_{name}.py" for name in ("build", "likelihoods", "priors", "samples")),
    *("test_combinations.py", "test_fake_gpu.py", "test_objectives.py"),
    *(f"train/test_{name}.py" for name in ("loss", "on_fake_gpu", "optimizers", "perceptual", "trainer")),
    *("evaluate/test_gallery.py", "evaluate/test_on_fake_gpu.py"),
]
NO_GPU, NO_CUDA_BUILD = "torch finds no CUDA GPU", fake_gpu.needs_cuda_build.kwargs["reason"]
EXPORTED = "tests/export/test_onnx.py::test_every_model_is_exported_as_torch_computes_it"
# Tests that hold what is there as a whole: lists of names, the layers, the pipeline.
OF_THE_WHOLE = [
    "test_architecture.py",
    "config",
    "data/sources/test_registry.py",
    "evaluate/test_measures.py",
    "evaluate/test_stage.py::test_grey_pixels_under_a_bernoulli_have_neither_elbo_nor_nll",
    "evaluate/test_stage.py::test_the_same_seed_writes_the_same_bytes_and_another_seed_other_numbers",
    "models/test_likelihoods.py::test_every_likelihood_has_its_reference",
    "train/test_optimizers.py::test_every_optimizer_has_a_reference",
    "test_docs.py::test_the_table_of_data_sets_has_every_source_with_its_licence",
    "test_lineage.py",
    "test_pipeline.py::test_repro_leaves_every_output_and_nothing_to_do",
    "test_pipeline.py::test_the_stages_without_dvc_give_the_same_bytes_elsewhere",
    "test_project.py",
]
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
            add(values, YAML(typ="safe").load(code))
            YAML().dump(values, path)
        elif path.suffix == ".md":
            table, gap, rest = path.read_text(encoding="utf-8").partition("|\n\n")
            path.write_text(f"{table}|\n{code}{gap[2:]}{rest}", encoding="utf-8")
        else:
            path.write_text(edited(path.read_text(encoding="utf-8"), code), encoding="utf-8")


def add(values: dict[str, Any], more: dict[str, Any]) -> None:
    """Add parameters or stages to those of a file, and to a list what follows its three dots."""
    for name, value in more.items():
        if isinstance(value, dict):
            add(values.setdefault(name, {}), value)
        elif isinstance(value, list) and value[:1] == ["..."]:
            values[name] += value[1:]
        else:
            values[name] = value


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
    no = shutil.ignore_patterns("__pycache__", "_build", "cache", "tmp", "config.local")
    for name in ("src", "docs", "tests", "recipes", ".dvc"):
        shutil.copytree(ROOT / name, root / name, ignore=no)
    for path in ROOT.iterdir():
        if path.is_file():
            shutil.copy(path, root)
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


def run(root: Path, *arguments: str, at: Path | None = None) -> str:
    """Run Python on the copy, in its own directory or in that of a project."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    environment |= {"PYTHONPATH": str(root / "src"), "MLFLOW_TRACKING_URI": "off"}
    environment |= {"REPARAM_MIRRORS": str(root / "mirror")}
    done = subprocess.run([sys.executable, *arguments], cwd=at or root, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize("title", [*FILES, STAGE])
def test_an_example_touches_as_few_files_as_it_says_with_as_few_lines(title: str) -> None:
    wanted = FILES_OF_STAGE if title == STAGE else FILES[title]
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
    choices = ("continuous_logistic", "scale_mixture", "blend", "affine", "mine", "nesterov", "inverse_root", "encoded")
    for name in (*(f"`{choice}`" for choice in choices), "### `objective.blend`", "## `count`"):
        assert name in reference, name
    assert "| `squared_kl` | Squared KL | nats² | lower |" in (extended / "docs/reference/metrics.md").read_text(
        "utf-8"
    )
    assert "### `reparam count`" in (extended / "docs/reference/commands.md").read_text("utf-8")
    assert "a number (at least 0 and at most 1)" in run(extended, "-m", "reparam", "params", "objective.blend.share")


def test_what_was_added_runs(extended: Path, tmp_path: Path) -> None:
    params = YAML().load(extended / "params.yaml")
    add(params, SMALL)
    change(params["download"], {"source": "mine"})
    change(params["preprocess"], {"binarization": "none"})
    change(params["model"], {"likelihood": "continuous_logistic", "prior": "scale_mixture", "network": "affine"})
    change(params["objective"], {"name": "blend", "samples": 2, "share": 0.25})
    change(params["train"], {"optimizer": "nesterov", "schedule": "inverse_root"})
    change(params["evaluate"], {"sampler": "encoded"})
    YAML().dump(params, tmp_path / "params.yaml")
    stages = ("download", "preprocess", "train", "evaluate", "export", "report", "count")
    run(extended, "-c", RUN, *stages, at=tmp_path)
    card = json.loads((tmp_path / "models/vae/card.json").read_text())
    assert card["data"]["source"] == "mine"
    assert card["objective"]["blend"] == {"share": 0.25}
    assert card["epochs"] == 2
    evaluation = tmp_path / "reports/evaluation"
    metrics = json.loads((evaluation / "metrics.json").read_text())
    with np.load(evaluation / "scores.npz") as scores:
        assert metrics["squared_kl"] == pytest.approx(np.square(scores["kl"]).mean(), rel=1e-3)
    assert json.loads((evaluation / "card.json").read_text())["sampled_from"] == "encoded training images"
    assert json.loads((tmp_path / "reports/counts.json").read_text()) == {"cat": 4, "dog": 4}
    assert (tmp_path / "models/onnx/score.onnx").exists()
    assert 0 <= json.loads((tmp_path / "reports/export/metrics.json").read_text())["score_max_error"] < 1e-3
    with np.load(tmp_path / "models/onnx/prior.npz") as prior:
        np.testing.assert_allclose(np.exp(prior["log_variances"]), [[1.0] * 3, [9.0] * 3], rtol=1e-6)
    readme = (tmp_path / "models/onnx/README.md").read_text()
    assert "affine, likelihood continuous_logistic, objective blend." in readme
    page = (tmp_path / "reports/index.html").read_text()
    assert "<h3>Squared KL</h3>" in page
    assert "drawn from encoded training images.</p>" in page
    chosen = {"source": "mine", "likelihood": "continuous_logistic", "prior": "scale_mixture", "optimizer": "nesterov"}
    for name, value in chosen.items():
        assert f'<tr><th scope="row">{name}</th><td>{value}</td></tr>' in page


def test_the_stage_that_was_added_depends_on_what_it_imports(extended: Path) -> None:
    [deps] = [
        YAML(typ="safe").load(code)["stages"]["count"]["deps"] for file, code in example(STAGE) if file == "dvc.yaml"
    ]
    listed = [extended / path for path in deps if path.startswith("src/")]
    code = "from reparam.lineage import source_files; print(*source_files('count'))"
    followed = [Path(file) for file in run(extended, "-c", code).split()]
    assert [file for file in followed if not any(file.is_relative_to(path) for path in listed)] == []
    assert [path for path in listed if not any(file.is_relative_to(path) for file in followed)] == []


def outcome(root: Path, *arguments: str) -> dict[str, str]:
    """Run tests of the copy, none of which may fail: each with the reason why it was skipped, or "" if it passed."""
    report = root / "junit.xml"
    run(root, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--junitxml={report}", *arguments)
    found = {}
    for case in ElementTree.parse(report).iter("testcase"):
        skipped = case.find("skipped")
        name = f"{case.attrib['classname'].replace('.', '/')}.py::{case.attrib['name']}"
        found[name] = "" if skipped is None else skipped.attrib["message"]
    return found


def with_choice(name: str, tests: Iterable[str]) -> Counter[str]:
    """Count the tests of each function that have a choice among their parameters."""
    parts = (test.partition("[") for test in tests)
    return Counter(function for function, _, parameters in parts if name in re.split(r"\W", parameters))


@pytest.mark.slow
def test_the_tests_over_choices_pick_up_what_was_added(extended: Path) -> None:
    files = [f"tests/{name}" for name in OVER_CHOICES]
    found = outcome(extended, "-k", " or ".join((*LIKE, "affine")), *files, EXPORTED)
    assert set(found.values()) <= {"", NO_GPU, NO_CUDA_BUILD}
    assert found.pop(f"{EXPORTED}[continuous_logistic]") == ""  # those we ship share their lines with networks
    listed = run(extended, "-m", "pytest", "-q", "--collect-only", "-p", "no:cacheprovider", *files).splitlines()
    for new, ours in LIKE.items():
        assert with_choice(new, found) == with_choice(ours, listed) != {}, new
    # Networks take turns, so that how often each has its turn differs by one or two.
    assert set(with_choice("affine", found)) == set(with_choice("resnet", listed)) != set()


@pytest.mark.slow
def test_the_tests_of_the_whole_pass_with_what_was_added(extended: Path) -> None:
    subprocess.run(["git", "init", "--quiet"], cwd=extended, check=True)
    found = outcome(extended, *(f"tests/{name}" for name in OF_THE_WHOLE))
    assert set(found.values()) == {""}
    of_stages = [
        {test.partition("[")[0] for test in found if "test_architecture" in test and test.endswith(f"[{stage}]")}
        for stage in ("count", "preprocess")
    ]
    assert of_stages[0] == of_stages[1] != set()
