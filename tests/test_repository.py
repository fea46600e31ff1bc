"""The files around the package: for GitHub, containers and editors."""

import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
from dvc_project import Project, clone_of, finished, project
from ruamel.yaml import YAML
from typer.main import get_command

from reparam.cli import app

ROOT = Path(__file__).parents[1]
TARGETS = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
TEMPLATES = sorted(ROOT.glob(".github/ISSUE_TEMPLATE/*.yml"))
CONTAINER = (ROOT / "Dockerfile").read_text()


def read(path: str | Path) -> Any:
    return YAML(typ="safe").load(ROOT / path)


def check(schema: str, *files: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", f"vendor.{schema}", *map(str, files)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("schema", "pattern"),
    [
        ("github-workflows", ".github/workflows/*.yml"),
        ("github-issue-forms", ".github/ISSUE_TEMPLATE/[bi]*.yml"),
        ("github-issue-config", ".github/ISSUE_TEMPLATE/config.yml"),
        ("citation-file-format", "CITATION.cff"),
    ],
)
def test_files_for_others_are_valid_by_their_schema(schema: str, pattern: str, tmp_path: Path) -> None:
    files = sorted(ROOT.glob(pattern))
    assert files
    found = check(schema, *files)
    assert found.returncode == 0, found.stdout
    for file in files:
        (broken := tmp_path / file.name).write_text(
            f"{file.read_text(encoding='utf-8')}\nnonsense: 3\n", encoding="utf-8"
        )
        assert "nonsense" in check(schema, broken).stdout


def test_ci_runs_what_a_developer_runs() -> None:
    jobs = read(".github/workflows/ci.yml")["jobs"]
    commands = {name: [step["run"] for step in job["steps"] if "run" in step] for name, job in jobs.items()}
    assert commands == {"test": ["make lint", "make test"], "docs": ["make docs"]}
    assert {command.removeprefix("make ") for lines in commands.values() for command in lines} <= TARGETS
    assert [line for line in (ROOT / ".ci/run").read_text().splitlines() if line.startswith("make")] == commands["test"]


def test_ci_runs_on_every_python_from_the_oldest_supported_on() -> None:
    versions = read(".github/workflows/ci.yml")["jobs"]["test"]["strategy"]["matrix"]["python"]
    assert versions == ["3.11", "3.12", "3.13"]
    assert PROJECT["requires-python"] == f">={versions[0]}"


def test_a_pull_request_is_commented_with_what_the_command_prints() -> None:
    workflow = read(".github/workflows/compare.yml")
    assert workflow["permissions"] == {"contents": "write", "pull-requests": "write"}
    [command] = [line for step in workflow["jobs"]["compare"]["steps"] if "compare " in (line := step.get("run", ""))]
    name, arguments = command.split(">")[0].removeprefix(".venv/bin/").split(maxsplit=1)
    assert name == "reparam"
    given = [argument.strip('"') for argument in arguments.split()]
    assert given == ["compare", "--markdown", "$BASE", "$HEAD"]
    options = {option for parameter in get_command(app).commands["compare"].params for option in parameter.opts}  # type: ignore[attr-defined]
    assert "--markdown" in options


def test_the_samples_of_revisions_are_put_on_a_branch_and_shown_in_a_table(tmp_path: Path) -> None:
    project, remote = tmp_path / "project", tmp_path / "remote.git"
    samples = project / "reports/evaluation/figures/samples.png"
    samples.parent.mkdir(parents=True)

    def git(*arguments: str, folder: Path = project) -> str:
        settings = ("-c", "user.name=a", "-c", "user.email=a@localhost", "-c", "init.defaultBranch=main")
        command = ["git", *settings, *arguments]
        return subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True).stdout.strip()

    git("init", "--bare", str(remote))
    git("init")
    git("remote", "add", "origin", str(remote))
    for name in ("name", "email"):
        git("config", f"user.{name}", "a@localhost")
    subprocess.run(["dvc", "init", "--quiet"], cwd=project, check=True)
    commits = []
    for content in (b"", b"first picture", b"second picture"):  # the first commit has none
        if content:
            samples.write_bytes(content)
        git("add", "--all")
        git("commit", "--message", "one")
        commits.append(git("rev-parse", "HEAD"))
    without, *with_samples = commits
    short = [commit[:7] for commit in with_samples]
    for folder, revisions in (("7", with_samples), ("8", [without, with_samples[1]])):
        script = [str(ROOT / ".github/pictures.sh"), folder, "https://host/pictures", *revisions]
        done = subprocess.run(script, cwd=project, check=True, capture_output=True, text=True)
        shown = [f"![Samples](https://host/pictures/{folder}/{one[:7]}.png?raw=true)" for one in revisions]
        if folder == "8":
            shown[0] = "no samples"
        head = " | ".join(one[:7] for one in revisions)
        assert done.stdout.splitlines() == ["", f"| {head} |", "|---|---|", f"| {' | '.join(shown)} |"]
    assert git("ls-tree", "-r", "--name-only", "pictures", folder=remote).splitlines() == [
        *sorted(f"7/{one}.png" for one in short),
        f"8/{short[1]}.png",
    ]
    assert git("show", f"pictures:7/{short[0]}.png", folder=remote) == "first picture"
    assert git("worktree", "list").count("\n") == 0  # nothing is left of the work
    assert git("branch", "--list") == "* main"


GH = """#!/bin/sh
echo "$@" > {folder}/said
cp comment.md {folder}
"""


@pytest.mark.slow
def test_the_steps_of_the_comment_run_from_a_checkout_to_the_comment(project: Project, tmp_path: Path) -> None:
    remote, host = tmp_path / "remote.git", "https://host"
    project(f"dvc remote add --default storage {tmp_path / 'storage'}")
    project.commit("base")
    project("dvc exp run --quiet -S evaluate.nll_samples=30 evaluate")
    project.commit("head")
    project("dvc push --quiet --all-commits")
    project(f"git clone --quiet --bare . {remote}")
    base, head = (project(f"git rev-parse {name}").strip() for name in ("HEAD~1", "HEAD"))
    clone = clone_of(remote, tmp_path / "clone")
    (gh := tmp_path / "bin/gh").parent.mkdir()
    gh.write_text(GH.format(folder=tmp_path))
    gh.chmod(0o755)
    clone.environment["PATH"] = f"{gh.parent}{os.pathsep}{clone.environment['PATH']}"
    given = {
        "github.event.pull_request.base.sha": base,
        "github.event.pull_request.head.sha": head,
        "github.event.pull_request.number": "7",
        "github.token": "secret",
        "steps.page.outputs.artifact-url": f"{host}/artifact",
    }

    def filled(text: str) -> str:
        return re.sub(r"\$\{\{ (.*?) \}\}", lambda found: given[found[1]], text)

    job = read(".github/workflows/compare.yml")["jobs"]["compare"]
    clone.environment |= {name: filled(value) for name, value in job["env"].items()}
    clone.environment |= {"GITHUB_SERVER_URL": host, "GITHUB_REPOSITORY": "us/digits"}
    for step in job["steps"]:
        if "run" in step:
            clone.type_in(filled(step["run"]))
        elif "path" in (wanted := step.get("with", {})):
            assert (clone.root / wanted["path"]).stat().st_size > 1000  # what is uploaded
    assert (tmp_path / "said").read_text() == "pr comment 7 --edit-last --create-if-none --body-file comment.md\n"
    comment = (tmp_path / "comment.md").read_text()
    assert re.search(r"^\| NLL \| -?\d", comment, re.M), comment
    assert "no results" not in comment
    pictures = [f"7/{commit[:7]}.png" for commit in (base, head)]
    shown = [f"![Samples]({host}/us/digits/blob/pictures/{picture}?raw=true)" for picture in pictures]
    assert f"| {' | '.join(shown)} |\n" in comment
    assert comment.endswith(f"\n[Page with samples and curves]({host}/artifact)\n")
    names = subprocess.run(
        ["git", "ls-tree", "-r", "--name-only", "pictures"], cwd=remote, capture_output=True, text=True
    )
    assert names.stdout.split() == sorted(pictures)


def test_actions_are_pinned_to_a_version() -> None:
    workflows = [read(path) for path in ROOT.glob(".github/workflows/*.yml")]
    steps = [step for workflow in workflows for job in workflow["jobs"].values() for step in job["steps"]]
    used = [step["uses"] for step in steps if "uses" in step]
    assert [action for action in used if not re.fullmatch(r"actions/[a-z-]+@v\d+", action)] == []


@pytest.mark.parametrize("path", [path for path in TEMPLATES if path.stem != "config"], ids=lambda path: path.stem)
def test_an_issue_form_is_complete(path: Path) -> None:
    form = read(path)
    assert {"name", "description", "body"} <= set(form)
    ids = [field["id"] for field in form["body"]]
    assert len(set(ids)) == len(ids)
    assert all(field["type"] == "textarea" and field["attributes"]["label"] for field in form["body"])


def test_the_form_of_a_bug_asks_for_what_our_commands_print() -> None:
    asked = [field["attributes"]["description"] for field in read(".github/ISSUE_TEMPLATE/bug.yml")["body"]]
    assert [command for text in asked for command in re.findall("`(reparam [^`]+)`", text)] == [
        "reparam --version",
        "reparam doctor",
    ]


def test_the_citation_is_of_this_version() -> None:
    citation = read("CITATION.cff")
    assert {"cff-version", "message", "title", "authors"} <= set(citation)
    assert (citation["version"], citation["license"]) == (PROJECT["version"], PROJECT["license"])


def test_the_container_installs_and_runs_as_the_makefile_does_without_rights() -> None:
    steps = re.sub(r"\\\n", " ", CONTAINER).splitlines()
    user = steps.index("USER reparam")
    (install,) = (number for number, step in enumerate(steps) if "make install" in step)
    assert user < install
    assert [step for step in steps if step.startswith("USER")] == ["USER reparam"]
    assert steps[-1] == 'CMD ["make", "run"]'
    copied = [step.split()[2:-1] for step in steps if step.startswith("COPY")]
    assert [name for names in copied for name in names if not (ROOT / name).exists()] == []
    # What `make install` reads, and what the build of the package reads: README and licence are named there.
    assert {"Makefile", "pyproject.toml", "constraints.txt", PROJECT["readme"], *PROJECT["license-files"]} == set(
        copied[0]
    )


def test_the_container_gets_what_is_in_git_and_git_itself() -> None:
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    assert not {".git", "src", "params.yaml", "dvc.yaml", "dvc.lock", "reports", "data", "models"} & set(ignored)


def test_the_development_container_is_that_container() -> None:
    settings = json.loads((ROOT / ".devcontainer/devcontainer.json").read_text())
    assert (ROOT / ".devcontainer" / settings["build"]["dockerfile"]).resolve() == ROOT / "Dockerfile"
    assert f"WORKDIR {settings['workspaceFolder']}\n" in CONTAINER
    assert f"USER {settings['remoteUser']}\n" in CONTAINER
    assert settings["postCreateCommand"].removeprefix("make ") in TARGETS


def test_the_extras_are_part_of_that_for_developers_and_pinned() -> None:
    extras = PROJECT["optional-dependencies"]
    assert "reparam[discrete,docs,perceptual,pipeline,ray,serve,sweep]" in extras["dev"]
    pinned = {line.split("==")[0].lower() for line in (ROOT / "constraints.txt").read_text().splitlines()}
    listed = [
        *PROJECT["dependencies"],
        *extras["docs"],
        *extras["pipeline"],
        *extras["discrete"][1:],
        *extras["perceptual"][1:],
        *extras["sweep"][1:],
    ]
    assert {re.split(r"[><=]", name)[0] for name in listed} <= pinned


def test_one_package_of_onnxruntime_is_left_after_an_installation() -> None:
    # Both put their files into one folder, so an environment must not have both.
    listed = [PROJECT["dependencies"], *PROJECT["optional-dependencies"].values()]
    assert [name for names in listed for name in names if name.startswith("onnxruntime")] == ["onnxruntime>=1.23,<2"]
    steps = [line.strip() for line in (ROOT / "Makefile").read_text().splitlines() if "pip" in line]
    assert steps[-3:] == [
        'python -m pip install --quiet --constraint constraints.txt --editable ".[dev]"',
        "python -m pip uninstall --quiet --yes onnxruntime onnxruntime-gpu",
        "python -m pip install --quiet --constraint constraints.txt onnxruntime-gpu",
    ]
    pins = re.findall(r"^onnxruntime(?:-gpu)?==(.*)$", (ROOT / "constraints.txt").read_text(), re.M)
    assert len(pins) == 2
    assert len(set(pins)) == 1
