"""`reparam init`: a project without a clone, whose stages run from the installed package."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from dvc.repo import Repo
from dvc_project import Project
from experiments import type_in
from ruamel.yaml import YAML

from reparam.cards.model import ModelCard
from reparam.commands import project as projects
from reparam.config import load_config
from reparam.config.load import SHIPPED
from reparam.errors import ParamsError, StaleInputError, UserError
from reparam.lineage import source_hash
from reparam.paths import Paths

ROOT = Path(__file__).parents[2]
STAGES = YAML(typ="safe").load(ROOT / "dvc.yaml")["stages"]

NEXT = """
Next: cd mine && dvc repro && reparam summary
Then: git add . && git commit -m "First run"    # experiments start from a commit
"""


of_a_library = pytest.mark.filterwarnings("ignore:_NoneStep:DeprecationWarning")


def paths_of(root: Path) -> Paths:
    return Paths(root, root)


def names(root: Path) -> set[str]:
    return {path.name for path in root.iterdir()}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project; nobody changes it."""
    root = tmp_path_factory.mktemp("project") / "mine"
    projects.create(paths_of(root))
    return root


@pytest.fixture
def bare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Paths:
    """Where a project is to be; git and DVC are left out, because they take seconds."""
    monkeypatch.setattr(projects, "_start_version_control", lambda _: None)
    return paths_of(tmp_path / "mine")


@of_a_library
def test_a_project_has_parameters_a_pipeline_and_repositories(made: Path) -> None:
    assert names(made) == {"params.yaml", "dvc.yaml", ".reparam.yaml", ".gitignore", ".dvcignore", ".git", ".dvc"}
    assert (made / "params.yaml").read_bytes() == SHIPPED.read_bytes()
    for name in (".gitignore", ".dvcignore"):
        assert (made / name).read_bytes() == (ROOT / name).read_bytes()
    with Repo(str(made)) as repo:
        page = Path(repo.dvc_dir, repo.config["plots"]["html_template"])
    assert page.read_bytes() == (ROOT / ".dvc/plots.html").read_bytes()


def test_its_stages_are_those_of_the_clone_with_the_hash_of_their_source_in_the_place_of_the_source(made: Path) -> None:
    found = YAML(typ="safe").load(made / "dvc.yaml")
    assert found["plots"] == YAML(typ="safe").load(ROOT / "dvc.yaml")["plots"]
    assert list(found["stages"]) == list(STAGES)
    for name, stage in found["stages"].items():
        ours = STAGES[name]
        assert stage.pop("cmd") == f"reparam {name}"
        assert stage.pop("deps", []) == [path for path in ours["deps"] if not path.startswith("src/")]
        assert stage.pop("params") == [*ours["params"], {".reparam.yaml": [f"source.{name}"]}]
        assert stage == {key: value for key, value in ours.items() if key in ("outs", "metrics", "plots")}
    hashes = YAML(typ="safe").load(made / ".reparam.yaml")["source"]
    assert hashes == {name: source_hash(name) for name in STAGES}


@of_a_library
def test_dvc_reads_the_graph(made: Path) -> None:
    with Repo(str(made)) as repo:
        edges = {(before.name, after.name) for after, before in repo.index.graph.edges}
    ours = {"download", "preprocess", "train", "evaluate", "export", "report"}
    assert {edge for edge in edges if ours.issuperset(edge)} == {
        ("download", "preprocess"),
        ("preprocess", "train"),
        *((before, after) for after in ("evaluate", "export") for before in ("preprocess", "train")),
        *((before, "report") for before in ("preprocess", "train", "evaluate", "export")),
    }


def test_recipes_come_on_request(bare: Paths) -> None:
    written = projects.create(bare, with_recipes=True)
    assert set(written) == {path for path in bare.root.rglob("*") if path.is_file()}
    # Those that `reparam recipe` writes, and not what measures the table.
    ours = {path.name for path in (ROOT / "recipes").glob("*.yaml")} - {"dvc.yaml", "published.yaml"}
    assert names(bare.recipes) == ours


def test_a_project_that_is_there_is_left_alone(bare: Paths) -> None:
    bare.root.mkdir()
    bare.params.write_text("mine")
    with pytest.raises(UserError) as caught:
        projects.create(bare)
    assert str(caught.value) == (
        f"{bare.root}: wanted no project, found params.yaml; `--force` replaces them and keeps what was there, "
        "`--update` fits them to the installed package"
    )
    assert (names(bare.root), bare.params.read_text()) == ({"params.yaml"}, "mine")


def test_by_force_what_was_there_is_kept_beside(bare: Paths) -> None:
    bare.root.mkdir()
    bare.params.write_text("mine")
    assert bare.root / "params.yaml.bak" in projects.create(bare, force=True)
    assert (bare.root / "params.yaml.bak").read_text() == "mine"
    assert load_config(bare.params) == load_config(SHIPPED)


def test_files_that_ignore_keep_their_lines_and_get_those_that_are_missing(bare: Paths) -> None:
    bare.root.mkdir()
    (bare.root / ".gitignore").write_text("mine/\n.venv/")
    projects.create(bare)
    ours = (ROOT / ".gitignore").read_text().splitlines()
    assert (bare.root / ".gitignore").read_text().splitlines() == [
        "mine/",
        ".venv/",
        *(line for line in ours if line != ".venv/"),
    ]


def test_files_that_ignore_may_have_any_encoding(bare: Paths) -> None:
    bare.root.mkdir()
    (bare.root / ".gitignore").write_bytes(b"gr\xfc\xdfe/\n")
    projects.create(bare)
    assert (bare.root / ".gitignore").read_bytes().startswith(b"gr\xfc\xdfe/\n")


def test_within_a_repository_of_git_no_other_is_made(tmp_path: Path) -> None:
    type_in(tmp_path, "git", "init", "--quiet")
    projects.create(paths_of(tmp_path / "below"))
    assert {".git", ".dvc"} & names(tmp_path / "below") == {".dvc"}


def test_the_first_branch_is_main_whatever_git_is_set_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("COUNT", "1"), ("KEY_0", "init.defaultBranch"), ("VALUE_0", "other")):
        monkeypatch.setenv(f"GIT_CONFIG_{name}", value)
    projects.create(paths_of(tmp_path / "mine"))
    assert type_in(tmp_path / "mine", "git", "symbolic-ref", "HEAD") == "refs/heads/main"


def test_what_git_says_against_a_repository_is_passed_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIT_DIR", "/dev/null/x")
    with pytest.raises(UserError, match=r"^.*/mine: `git init --quiet` failed: .*/dev/null/x"):
        projects.create(paths_of(tmp_path / "mine"))


# ---- an update of the package


@pytest.fixture
def old(bare: Paths) -> Paths:
    """A project that was made with another version, with parameters of its own, and without one that is new."""
    projects.create(bare)
    recorded = bare.installation.read_text()
    bare.installation.write_text(recorded.replace(source_hash("train"), "0" * 64))
    params = bare.params.read_text().replace("  epochs: 35 #", "  epochs: 7 #")
    bare.params.write_text("".join(line for line in params.splitlines(True) if "patience:" not in line))
    return bare


def test_a_stage_refuses_to_run_from_a_source_that_dvc_does_not_know(old: Paths) -> None:
    projects.check(old, "evaluate")
    with pytest.raises(StaleInputError) as caught:
        projects.check(old, "train")
    assert str(caught.value).startswith(f"{old.installation}: train: wanted the source of the installed version ")
    assert str(caught.value).endswith("found 000000000000; run `reparam init --update`, then `dvc repro`")


def test_an_update_records_the_source_and_adds_parameters_that_are_new(old: Paths) -> None:
    projects.update(old)
    projects.check(old, "train")
    train = load_config(old.params).train
    assert (train.epochs, train.patience) == (7, 35)
    assert (old.root / "params.yaml.bak").exists()


def test_an_update_refuses_parameters_that_are_no_longer_known(old: Paths) -> None:
    old.params.write_text(old.params.read_text().replace("\nreport:\n", "\nreport:\n  subtitle: none\n"))
    before = old.installation.read_bytes()
    with pytest.raises(ParamsError, match=r"report\.subtitle: unknown parameter, found 'none'; did you mean"):
        projects.update(old)
    assert old.installation.read_bytes() == before


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[1, 2]", r"params\.yaml: wanted sections of parameters, found \[1, 2\]$"),
        ("train: [", r"params\.yaml: line 1, column 9: not valid YAML: "),
        ("train: 3", r"params\.yaml: 1 problem\n  train: wanted a section of parameters, found 3$"),
    ],
)
def test_an_update_refuses_a_file_that_holds_no_parameters(content: str, message: str, old: Paths) -> None:
    old.params.write_text(content)
    with pytest.raises(ParamsError, match=message):
        projects.update(old)
    assert old.params.read_text() == content


def test_without_a_project_there_is_nothing_to_update(bare: Paths) -> None:
    with pytest.raises(UserError, match=r"/\.reparam\.yaml: not found; `reparam init` makes a project$"):
        projects.update(bare)


@pytest.mark.parametrize("content", ["", "source: 3", "[1]"])
def test_a_record_without_hashes_is_stale(content: str, old: Paths) -> None:
    old.installation.write_text(content)
    with pytest.raises(StaleInputError, match=r"found None; run `reparam init --update`"):
        projects.check(old, "train")


def test_a_clone_needs_no_record(tmp_path: Path) -> None:
    projects.check(paths_of(tmp_path), "train")


# ---- the package as users get it


@pytest.mark.slow
def test_the_installed_package_makes_a_project_that_runs(tmp_path: Path) -> None:
    source = tmp_path / "source"
    ignored = shutil.ignore_patterns(".*_cache", "tests", "docs", "build", "*.egg-info", "results", ".git")
    shutil.copytree(ROOT, source, ignore=ignored)
    pip = ["-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--target", tmp_path / "site"]
    subprocess.run([sys.executable, *pip, source], check=True)
    shutil.rmtree(source)
    project = Project(tmp_path, PYTHONPATH=str(tmp_path / "site"), MLFLOW_TRACKING_URI="off")
    project.environment["PATH"] = f"{tmp_path / 'site/bin'}{os.pathsep}{project.environment['PATH']}"
    assert project("reparam init mine").endswith(NEXT)
    project.root = tmp_path / "mine"
    project("reparam recipe smoke")
    project("dvc repro --quiet")
    assert "ELBO" in project("reparam summary")
    project.commit("first")
    assert project("dvc status").strip() == "Data and pipelines are up to date."
    recorded = YAML(typ="safe").load(project.root / ".reparam.yaml")
    assert (
        ModelCard.read(project.root / "models/vae/card.json", "train").lineage.code_sha256
        == (recorded["source"]["train"])
    )
    project("dvc exp run --quiet --temp --name longer -S train.epochs=3")
    assert "longer" in project("dvc exp list --name-only").split()
    assert project("git status --porcelain") == ""


def test_the_command_says_what_it_wrote_and_what_is_next(
    tmp_path: Path, reparam: Callable[..., Any], bare: Paths, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert reparam("init", "mine", "--recipes") == (
        0,
        "".join(
            f"mine/{name}: written\n"
            for name in (".gitignore", ".dvcignore", "params.yaml", "dvc.yaml", ".reparam.yaml", "recipes")
        )
        + NEXT,
    )
