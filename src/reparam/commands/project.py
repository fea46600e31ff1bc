"""The installed package -> a project whose stages run from it: params.yaml, dvc.yaml and the files beside them."""

import io
import os
import subprocess
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

from ruamel.yaml import YAML

from reparam import recipes
from reparam.config.load import SHIPPED, flatten
from reparam.config.yaml import read_yaml
from reparam.errors import StaleInputError, UserError
from reparam.files import whole_file
from reparam.lineage import PACKAGE, source_hash
from reparam.machine import git
from reparam.machine.versions import version
from reparam.paths import Paths

IGNORING = (".gitignore", ".dvcignore")
PLOTS = ".dvc/plots.html"  # the page of `dvc plots`
HEAD = """\
Stages run from the installed package. Besides files and parameters, they depend on the hash of their source in
.reparam.yaml; run `reparam init --update` after each update of the package.
"""


def shipped() -> Path:
    """Return the folder with the files of a project: inside a built package, otherwise the root of the clone."""
    inside = PACKAGE / "template"
    return inside if inside.is_dir() else PACKAGE.parents[1]


def create(paths: Paths, *, with_recipes: bool = False, force: bool = False) -> list[Path]:
    """Write a project, within git and DVC; return what was written.

    Raises: UserError if files of a project are there; with `force` they are kept beside the new ones.
    """
    files = _files(paths, SHIPPED.read_text(encoding="utf-8"))
    if with_recipes:
        folder = shipped() / "recipes"
        for name in ("base", *recipes.names(folder)):
            files[paths.recipes / f"{name}.yaml"] = (folder / f"{name}.yaml").read_text(encoding="utf-8")
    found = [paths.relative(path) for path in files if path.exists()]
    if found and not force:
        raise UserError(
            f"{paths.root}: wanted no project, found {', '.join(found)}; `--force` replaces them and keeps what was "
            "there, `--update` fits them to the installed package"
        )
    for name in IGNORING:
        _add_lines(paths.root / name, (shipped() / name).read_text(encoding="utf-8").splitlines())
    _start_version_control(paths.root)
    return [*(paths.root / name for name in IGNORING), *_write(files)]


def update(paths: Paths) -> list[Path]:
    """Update a project to the installed package: pipeline, hashes of the source, new parameters.

    Raises: UserError if there is none, or it has parameters that are no longer known.
    """
    if not paths.installation.exists():
        raise UserError(f"{paths.installation}: not found; `reparam init` makes a project")
    return _write(_files(paths, recipes.renewed(paths.params)))


def check(paths: Paths, stage: str) -> None:
    """Raise StaleInputError if the source of a stage has another hash than the one that DVC compares."""
    if not paths.installation.exists():  # a clone, where DVC compares the source itself
        return
    values = read_yaml(paths.installation)
    found = flatten(values if isinstance(values, dict) else {}).get(f"source.{stage}")
    wanted = source_hash(stage)
    if found != wanted:
        raise StaleInputError(
            f"{paths.installation}: {stage}: wanted the source of the installed version {version()}, "
            f"{wanted[:12]}, found {str(found)[:12]}; run `reparam init --update`, then `dvc repro`"
        )


def pipeline() -> str:
    """Return the dvc.yaml of the clone with stages that run from the installed package."""
    installed = Paths(Path(), Path()).installation.as_posix()
    yaml, stream = YAML(), io.StringIO()
    yaml.width = 10_000
    yaml.indent(mapping=2, sequence=4, offset=2)
    values = yaml.load(shipped() / "dvc.yaml")
    values.yaml_set_start_comment(HEAD)
    for name, stage in values["stages"].items():
        stage["cmd"] = f"reparam {name}"
        stage["deps"] = [path for path in stage["deps"] if not path.startswith("src/")]
        stage.setdefault("params", []).append({installed: [f"source.{name}"]})
        if not stage["deps"]:
            del stage["deps"]
    yaml.dump(values, stream)
    return stream.getvalue()


def installation() -> str:
    """Return the file that says which source the stages run."""
    stages = YAML(typ="safe").load(shipped() / "dvc.yaml")["stages"]
    # In quotes, because a hash without letters would be a number.
    hashes = "".join(f'  {stage}: "{source_hash(stage)}"\n' for stage in stages)
    return (
        f"# The installed package, and of each stage the hash of the source.\nversion: {version()}\nsource:\n{hashes}"
    )


def _files(paths: Paths, params: str) -> dict[Path, str]:
    return {paths.params: params, paths.pipeline: pipeline(), paths.installation: installation()}


def _start_version_control(directory: Path) -> None:
    """Make repositories of git and DVC if there are none."""

    def run(*command: str) -> str:
        done = subprocess.run(command, cwd=directory, capture_output=True, text=True, check=False)
        if done.returncode:
            raise UserError(f"{directory}: `{' '.join(command[-3:])}` failed: {done.stderr.strip()}")
        return done.stdout.strip()

    if git.ask(directory, "rev-parse", "--is-inside-work-tree") is None:
        run("git", "init", "--quiet")
        run("git", "symbolic-ref", "HEAD", "refs/heads/main")  # as the documentation names it; old git has no option
    if not (directory / ".dvc").is_dir():
        is_below = Path(run("git", "rev-parse", "--show-toplevel")).resolve() != directory.resolve()
        run(sys.executable, "-m", "dvc", "init", "--quiet", *(["--subdir"] if is_below else []))
        _write({directory / PLOTS: (shipped() / PLOTS).read_text(encoding="utf-8")})
        _add_lines(directory / ".dvc/config", ["[plots]", f"    html_template = {Path(PLOTS).name}"])


def _add_lines(path: Path, lines: Iterable[str]) -> None:
    # As bytes, because the encoding is unknown and must not change.
    own = os.fsdecode(path.read_bytes()).splitlines() if path.exists() else []
    with whole_file(path) as partial:
        partial.write_bytes(os.fsencode("\n".join([*own, *(line for line in lines if line not in own), ""])))


def _write(files: Mapping[Path, str]) -> list[Path]:
    """Write files; different files of the same names get other names. Return the written and the renamed ones."""
    written = [(path, recipes.place(text, path)) for path, text in files.items()]
    return [path for pair in written for path in pair if path]
