"""The rules of the house that a reader cannot see at a glance, held by reading the source."""

import ast
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import Any

import pytest
import typer
from dvc_project import Project, finished
from ruamel.yaml import YAML
from typer.testing import CliRunner

from reparam.cli import app
from reparam.config import Config
from reparam.lineage import WITHOUT_EFFECT, source_files
from reparam.paths import Paths

REPOSITORY = Path(__file__).parents[1]
SOURCE = REPOSITORY / "src"
PACKAGE = SOURCE / "reparam"
STAGES = tuple(YAML(typ="safe").load(REPOSITORY / "dvc.yaml")["stages"])

# A module imports from the rows above its own, and inside its own part; never from another part in its row.
LAYERS = (
    ("errors", "redact", "metrics"),
    ("machine",),
    ("config", "distributed", "arrays", "tolerance", "paths", "files", "lineage", "runtime", "pages", "progress"),
    ("cards",),
    ("data", "models", "track", "client"),
    ("objectives", "figures", "logged", "explorer"),
    STAGES,
    ("compare", "recipes", "serve", "shell"),
    ("sweep",),
    ("commands",),
    ("cli",),
    ("__main__",),
)
LAYER = {name: number for number, names in enumerate(LAYERS) for name in names}
COMMANDS = typer.main.get_command(app).commands  # type: ignore[attr-defined]
# What a working copy holds that no stage writes: the user's parameters, and what commands around the stages write.
OUTSIDE = {"params.yaml", "dvc.yaml", ".reparam.yaml", ".locks", "recipes", "reports/gradients", "reports/compare.html"}
OUTSIDE |= {"reports/sweeps"}
OF_THE_MACHINE = {"reports/speed.html"}  # which a stage writes, and DVC does not keep


def modules() -> dict[str, Path]:
    """Every module of the package by its dotted name, `reparam` itself and empty `__init__` files left out."""
    files = sorted(file for file in PACKAGE.rglob("*.py") if file.stat().st_size)  # sorted: every worker the same
    names = {".".join(file.relative_to(PACKAGE).with_suffix("").parts): file for file in files}
    names.pop("__init__", None)
    return names


MODULES = modules()


def imports(file: Path) -> Iterator[tuple[str, int]]:
    """Every module that a file imports, wherever the import is, and its line."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}:{node.lineno}: relative import; lineage.py follows absolute ones"
            for alias in node.names:
                yield f"{node.module}.{alias.name}", node.lineno


def ours(name: str) -> list[str]:
    """The parts of one of our modules' names below `reparam`; empty for everybody else's."""
    package, *rest = name.split(".")
    return rest if package == "reparam" else []


def words(file: Path) -> Iterator[tuple[str, str]]:
    """Every name in a file, and every attribute after the name that it belongs to, where that is a plain name."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Name):
            yield "", node.id
        elif isinstance(node, ast.Attribute):
            yield (node.value.id if isinstance(node.value, ast.Name) else ""), node.attr


def part(name: str) -> str:
    """The part of the package that a module belongs to: a folder, or a file beside it."""
    return name.split(".")[0]


def test_every_module_has_its_layer() -> None:
    assert {part(name) for name in MODULES} == set(LAYER)


@pytest.mark.parametrize("name", MODULES)
def test_imports_point_down(name: str) -> None:
    wrong = [
        f"{name} imports {imported} (line {line})"
        for imported, line in imports(MODULES[name])
        if (other := ours(imported)) and part(other[0]) != part(name) and LAYER[part(other[0])] >= LAYER[part(name)]
    ]
    assert wrong == []


def test_the_command_line_alone_imports_stages() -> None:
    found = {
        name
        for name, file in MODULES.items()
        for other, _ in imports(file)
        if (parts := ours(other)) and parts[0] in STAGES and parts[0] != part(name)
    }
    assert found == {"cli"}


def test_files_and_functions_are_short() -> None:
    lengths = []
    for name, file in MODULES.items():
        source = file.read_text(encoding="utf-8")
        functions = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.FunctionDef)]
        found = {node.name: (node.end_lineno or 0) - node.lineno + 1 for node in functions}
        long = [function for function, lines in found.items() if lines > 50]
        assert (name, len(source.splitlines()) > 350, long) == (name, False, [])
        lengths += found.values()
    assert sorted(lengths)[int(0.95 * len(lengths))] <= 24


def test_the_pipeline_has_25_lines_a_stage_at_most() -> None:  # 150 of six
    assert len((REPOSITORY / "dvc.yaml").read_text(encoding="utf-8").splitlines()) <= 25 * len(STAGES)


def test_tracking_alone_imports_mlflow() -> None:
    found = {name for name, file in MODULES.items() for other, _ in imports(file) if other.split(".")[0] == "mlflow"}
    assert {part(name) for name in found} == {"track"}


def test_the_client_needs_numpy_and_onnxruntime_alone() -> None:
    names = [name for name in MODULES if part(name) in ("arrays", "client", "errors")]
    found = {imported.split(".")[0] for name in names for imported, _ in imports(MODULES[name])}
    assert found - set(sys.stdlib_module_names) == {"numpy", "onnxruntime", "reparam"}
    assert {parts[0] for name in names for other, _ in imports(MODULES[name]) if (parts := ours(other))} == {
        "arrays",
        "client",
        "errors",
    }


@pytest.mark.parametrize("name", MODULES)
def test_nothing_is_imported_by_a_string(name: str) -> None:
    # Neither a reader nor lineage.py nor the tests above would notice.
    assert {"import_module", "__import__"} & {word for _, word in words(MODULES[name])} == set()


def python(code: str) -> str:
    """Run code in a fresh interpreter that finds the package, and return what it prints."""
    environment = {**os.environ, "PYTHONPATH": str(SOURCE)}
    result = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.mark.parametrize("name", ["cli", "config", "recipes", "paths", "client"])
def test_the_light_modules_load_neither_torch_nor_mlflow(name: str) -> None:
    loaded = json.loads(python(f"import json, sys, reparam.{name}; print(json.dumps(sorted(sys.modules)))"))
    assert f"reparam.{name}" in loaded
    assert {"torch", "mlflow", "onnxruntime", *(["numpy"] if name != "client" else [])} & set(loaded) == set()


def test_the_client_loads_numpy_and_few_modules_of_ours() -> None:
    show = "import json, sys; print(json.dumps(sorted(sys.modules)))"
    loaded = set(json.loads(python(f"import reparam.client; {show}"))) - set(json.loads(python(show)))
    installed = set(packages_distributions()) - {"reparam"}
    assert {"typer", "dvc", "pandas", "PIL"} < installed
    assert {name.split(".")[0] for name in loaded} & installed == {"numpy"}
    assert {".".join(name.split(".")[:2]) for name in loaded if name.startswith("reparam.")} == {
        "reparam.arrays",
        "reparam.client",
        "reparam.errors",
    }


# Libraries that take a tenth of a second or more to import, and who cannot do without them on the default data.
HEAVY = {"matplotlib", "mlflow", "onnx", "onnxruntime", "pandas", "scipy", "sklearn", "torch", "torchvision"}
COMPILER = "torch._dynamo"  # a second and a half more than torch
NEEDED = {
    "download": set(),
    "preprocess": set(),
    "train": {"torch"},
    "evaluate": {"matplotlib", "scipy", "torch"},
    "export": {"onnx", "torch", COMPILER},
    "report": {"matplotlib"},
}


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_loads_only_what_it_needs(stage: str, finished: Project) -> None:
    loaded = finished.modules(stage)
    assert (HEAVY | {COMPILER}) & loaded == NEEDED.get(stage, set())


def test_the_client_loads_where_nothing_else_is_installed() -> None:
    block = """
import sys

class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] not in {*sys.stdlib_module_names, "numpy", "onnxruntime", "reparam"}:
            raise ModuleNotFoundError(f"blocked: {name}", name=name)

sys.meta_path.insert(0, Block())
"""
    assert python(block + "import reparam.client; print(reparam.client.Client.__name__)") == "Client\n"
    # The block holds: what it lets through above is not simply everything.
    with pytest.raises(AssertionError, match="blocked: pydantic"):
        python(block + "import reparam.config")


def test_help_lists_the_six_stages_and_their_purpose() -> None:
    result = CliRunner().invoke(app, ["--help"], env={"COLUMNS": "200", "TERM": "dumb"})
    assert result.exit_code == 0
    lines = [line.strip(" │|").split(maxsplit=1) for line in result.stdout.splitlines()]
    listed = {line[0]: line[1] for line in lines if len(line) == 2}
    assert [name for name in listed if name in STAGES] == list(STAGES)
    for name in STAGES:
        assert len(listed[name]) > 20


def test_completion_prints_a_script_and_names_of_parameters_and_loads_no_torch() -> None:
    printed = python("""
import os, sys
from reparam.cli import app
os.environ["_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION"] = "1"
typed = {"_REPARAM_COMPLETE": "complete_bash", "COMP_WORDS": "reparam params objective.mm", "COMP_CWORD": "2"}
for arguments, environment in ((["--show-completion", "bash"], {}), ([], typed)):
    os.environ |= environment
    try:
        app(arguments, prog_name="reparam")
    except SystemExit:
        print("--")
print("torch" in sys.modules, "mlflow" in sys.modules)
""")
    script, names, loaded = printed.split("--\n")
    assert "complete -o default -F _reparam_completion reparam\n" in script
    assert names == "objective.mmd\nobjective.mmd.weight\n"
    assert loaded == "False False\n"


def single_commands(commands: dict[str, Any], group: str = "") -> dict[str, Any]:
    """Every command that is no group, by its words."""
    found: dict[str, Any] = {}
    for name, command in commands.items():
        words = f"{group} {name}".strip()
        found |= single_commands(command.commands, words) if hasattr(command, "commands") else {words: command}
    return found


SINGLE = single_commands(COMMANDS)


@pytest.mark.parametrize("name", SINGLE)
def test_the_help_of_a_command_says_what_it_reads_and_writes(name: str) -> None:
    reads, writes = str(SINGLE[name].help).splitlines()[2:4]
    assert reads.startswith("Reads ")
    assert writes.startswith("Writes ")


# ---- dvc.yaml


def pipeline() -> dict[str, Any]:
    return YAML(typ="safe", pure=True).load((REPOSITORY / "dvc.yaml").read_text(encoding="utf-8"))


PIPELINE = pipeline()


def entries(stage: str, kind: str) -> dict[str, dict[str, Any]]:
    """Paths of one kind with their flags: DVC writes either a path or a mapping of a path to its flags."""
    found: dict[str, dict[str, Any]] = {}
    for item in PIPELINE["stages"][stage].get(kind, []):
        found |= item if isinstance(item, dict) else {item: {}}
    return found


def outputs(stage: str) -> set[str]:
    return {path for kind in ("outs", "metrics", "plots") for path in entries(stage, kind)}


def walk(value: Any) -> Iterator[tuple[str, Any]]:
    """Every key with its value, at any depth; items of lists come under the key ''."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield str(key), item
            yield from walk(item)
    elif isinstance(value, list):
        for item in value:
            yield "", item
            yield from walk(item)


def test_stage_command_section_and_module_share_one_word() -> None:
    assert tuple(PIPELINE["stages"]) == STAGES
    assert tuple(Config.model_fields)[:2] == STAGES[:2]
    assert set(STAGES) <= set(Config.model_fields)
    assert {path.parent.name for path in PACKAGE.glob("*/stage.py")} == set(STAGES)
    commands = {command.name or command.callback.__name__ for command in app.registered_commands}
    assert set(STAGES) <= commands


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_runs_the_code_of_its_own_working_copy(stage: str) -> None:
    assert PIPELINE["stages"][stage]["cmd"] == f"PYTHONPATH=src python -m reparam {stage}"


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_depends_on_the_source_that_can_change_its_outputs(stage: str) -> None:
    listed = [REPOSITORY / path for path in PIPELINE["stages"][stage]["deps"] if path.startswith("src/")]
    followed = source_files(stage)
    assert [file for file in followed if not any(file.is_relative_to(path) for path in listed)] == []
    # Nor on anything else: an edit that cannot change a stage's outputs must not run it again.
    assert [path for path in listed if not any(file.is_relative_to(path) for file in followed)] == []
    assert {path.relative_to(PACKAGE).with_suffix("").parts[0] for path in listed} & set(WITHOUT_EFFECT) == set()


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_reads_what_earlier_stages_wrote(stage: str) -> None:
    earlier = set().union(*(outputs(name) for name in STAGES[: STAGES.index(stage)]))
    data = {path for path in PIPELINE["stages"][stage]["deps"] if not path.startswith("src/")}
    assert data - earlier == set()
    assert set(PIPELINE["stages"][stage]["params"]) <= set(Config.model_fields)
    assert stage in PIPELINE["stages"][stage]["params"]


@pytest.mark.parametrize("stage", STAGES)
def test_the_help_of_a_stage_names_its_inputs_and_outputs(stage: str) -> None:
    reads, writes = (re.findall(r"[\w./]*\w", line) for line in str(COMMANDS[stage].help).splitlines()[2:4])
    inputs = {path for path in PIPELINE["stages"][stage]["deps"] if not path.startswith("src/")} | {"params.yaml"}
    for named, files in ((reads, inputs), (writes, outputs(stage))):
        assert [file for file in files if not any(Path(file).is_relative_to(name) for name in named)] == []


@pytest.mark.parametrize("stage", STAGES)
def test_dvc_knows_every_file_and_every_section_that_a_stage_uses(stage: str) -> None:
    imported = [name for name, _ in imports(MODULES[f"{stage}.stage"])]
    used = [*words(MODULES[f"{stage}.stage"])]
    if any(name.startswith("reparam.cards.results.") for name in imported):  # which reads files for the stage
        used += words(MODULES["cards.results"])
    here = Paths(Path("/w"), Path("/shared"))
    named = [getattr(here, name) for owner, name in used if owner == "paths" and name != "relative"]
    # What all working copies share is no file of the pipeline.
    files = {here.relative(path) for path in named if not path.is_relative_to(here.shared)}
    listed = {path for path in PIPELINE["stages"][stage]["deps"] if not path.startswith("src/")} | outputs(stage)
    assert files - OF_THE_MACHINE == listed
    sections = {name for owner, name in used if owner == "config" and name in Config.model_fields}
    assert sections - set(PIPELINE["stages"][stage]["params"]) == set()


def test_every_stage_file_of_paths_is_an_output_once() -> None:
    paths = Paths(Path("/w"), Path("/shared"))
    named = {getattr(paths, name) for name, value in vars(Paths).items() if isinstance(value, property)}
    files = (
        {path.relative_to("/w").as_posix() for path in named if path.is_relative_to("/w")} - OUTSIDE - OF_THE_MACHINE
    )
    written = [path for stage in STAGES for path in outputs(stage)]
    assert sorted(written) == sorted(files)


def test_nothing_in_the_pipeline_disables_the_run_cache() -> None:
    keys = [key for key, _ in walk(PIPELINE)]
    assert {"persist", "always_changed", "frozen"} & set(keys) == set()
    for stage in STAGES:
        assert [path for path, flags in entries(stage, "outs").items() if flags] == []
        # Numbers are in git, for who has no cache. A stage with such files elsewhere has no run cache.
        for path, flags in {**entries(stage, "metrics"), **entries(stage, "plots")}.items():
            assert (Path(path).name, flags) in (("metrics.json", {"cache": False}), ("headline.json", {"cache": False}))


def test_nothing_in_the_pipeline_is_named_by_an_absolute_path() -> None:
    texts = [part for pair in walk(PIPELINE) for part in pair if isinstance(part, str)]
    found = {word for text in texts for word in text.split()}
    assert "data/raw" in found
    assert [word for word in found if word.startswith(("/", "~", "..", "file:")) or ":\\" in word] == []


def test_plots_name_their_axes_or_are_figures_of_evaluate() -> None:
    curves = [next(iter(plot.items())) for plot in PIPELINE["plots"] if isinstance(plot, dict)]
    assert [name for name, plot in curves if not {"x_label", "y_label"} <= set(plot)] == []
    pictures = [plot for plot in PIPELINE["plots"] if isinstance(plot, str)]
    assert {Path(path).parent for path in pictures} == {Path("reports/evaluation/figures")}


def test_dvc_ignores_what_python_and_a_killed_stage_leave_behind() -> None:
    ignored = (REPOSITORY / ".dvcignore").read_text(encoding="utf-8").splitlines()
    assert {"__pycache__/", ".partial-*"} <= set(ignored)


def test_the_report_runs_again_when_any_parameter_changes() -> None:
    # It prints them all, which the test above cannot see.
    assert set(PIPELINE["stages"]["report"]["params"]) == set(Config.model_fields)


@pytest.mark.parametrize("section", [name for name, kind in Config.blocks().items() if kind.blocks()])
def test_a_block_belongs_to_one_choice_of_its_section(section: str) -> None:
    """A block is found by the name of a choice, so no two fields of a section may have a choice of that name."""
    kind = Config.blocks()[section]
    options = [each["enum"] for each in kind.model_json_schema()["properties"].values() if "enum" in each]
    owners = {block: sum(block in names for names in options) for block in kind.blocks()}
    assert {block: count for block, count in owners.items() if count > 1} == {}
    assert 1 in owners.values() or section == "download"
