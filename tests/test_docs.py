"""The documents: the site builds without a warning, links lead somewhere, and what they name exists."""

import ast
import json
import re
import runpy
import shutil
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
import typer
from ruamel.yaml import YAML
from typer.testing import CliRunner

from reparam.cli import app
from reparam.config.load import MOVED, check_config, paths_of
from reparam.data.sources.registry import SOURCES
from reparam.paths import Paths
from reparam.recipes import SHIPPED, merge
from reparam.sweep.plan import read_plan

ROOT = Path(__file__).parents[1]
PAGES = sorted(page for page in ROOT.glob("docs/**/*.md") if "_build" not in page.parts)
NOTEBOOK = ROOT / "docs/tour.ipynb"
DOCUMENTS = [*(ROOT / f"{name}.md" for name in ("README", "CONTRIBUTING", "SECURITY")), *PAGES]
PATHS = set(paths_of(blocks=True))
SECTIONS = {path.split(".")[0] for path in PATHS} | {"report"}
# Set for libraries, or for our own child processes: nobody else sets them.
OURS = {
    "PYTHONPATH",
    "CUBLAS_WORKSPACE_CONFIG",
    "MLFLOW_SQLALCHEMYSTORE_POOLCLASS",
    "RAY_BACKEND_LOG_LEVEL",
    "TORCHINDUCTOR_DETERMINISTIC",
    "TORCH_CPP_LOG_LEVEL",
    "TORCH_DISABLE_SHARE_RDZV_TCP_STORE",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR",
}
each_document = pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())


# ---- the site


class Page(HTMLParser):
    """The anchors and links of a page."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.anchors: set[str] = set()
        self.links: set[str] = set()
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.anchors.add(found.get("id") or "")
        self.links.update(found[name] or "" for name in ("href", "src") if name in found)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built as `make docs` does, but for the outputs of the notebook."""
    target = tmp_path_factory.mktemp("site") / "html"
    (line,) = [line.strip() for line in (ROOT / "Makefile").read_text().splitlines() if "sphinx-build" in line]
    command = [sys.executable, "-m", "sphinx", *line.split()[1:-1], str(target), "-D", "nb_execution_mode=off"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    return target


def test_every_page_is_on_the_site(site: Path) -> None:
    built = {path.relative_to(site).with_suffix("") for path in site.rglob("*.html")}
    assert {page.relative_to(ROOT / "docs").with_suffix("") for page in [*PAGES, NOTEBOOK]} <= built
    assert "Return mean and log variance of the posterior." in (site / "reference/client.html").read_text()


def test_formulas_need_neither_a_script_nor_the_network(site: Path) -> None:
    text = (site / "explanation/bounds.html").read_text()
    assert text.count('<math xmlns="http://www.w3.org/1998/Math/MathML" display="block">') == 5
    assert [
        link for path in site.rglob("*.html") for link in re.findall(r'src="(https?:[^"]*)', path.read_text())
    ] == []


def test_links_of_the_site_lead_somewhere(site: Path) -> None:
    pages = {path: Page(path) for path in site.rglob("*.html")}
    broken = []
    for path, page in pages.items():
        for link in page.links:
            parts = urlsplit(link)
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            if parts.scheme or parts.netloc:
                continue
            is_page = target in pages
            if not target.exists() or (is_page and parts.fragment and parts.fragment not in pages[target].anchors):
                broken.append(f"{path.relative_to(site)}: {link}")
    assert broken == []


# ---- the notebook


def cells(kind: str) -> list[dict[str, Any]]:
    notebook = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    return [cell for cell in notebook["cells"] if cell["cell_type"] == kind]


def test_the_notebook_is_kept_without_outputs() -> None:
    assert [(cell["execution_count"], cell["outputs"]) for cell in cells("code")] == [(None, [])] * 8


def tour(root: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Run the notebook in a working copy, and return its names."""
    (root / "docs").mkdir()
    monkeypatch.chdir(root / "docs")
    monkeypatch.setenv("MPLBACKEND", "agg")
    names: dict[str, Any] = {}
    for cell in cells("code"):
        exec("".join(cell["source"]), names)
    assert len(names["plt"].get_fignums()) == 7
    names["plt"].close("all")
    return names


def test_the_notebook_draws_the_model_that_is_there(finished: Paths, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("subprocess.run", None)  # it trains nothing
    found = tour(finished.root, monkeypatch)
    assert (found["root"], found["images"].shape[1:]) == (finished.root, (8, 8, 1))


@pytest.mark.slow
def test_the_notebook_trains_a_model_where_there_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copy(ROOT / "params.yaml", tmp_path)
    (tmp_path / "src").symlink_to(ROOT / "src")
    found = tour(tmp_path, monkeypatch)
    assert (found["root"] == tmp_path, found["images"].shape) == (False, (500, 28, 28, 1))
    found["temporary"].cleanup()  # else a later test is warned of it


# ---- what is generated


@pytest.mark.parametrize("name", ["commands", "metrics"])
def test_a_page_of_reference_is_that_of_the_source(name: str) -> None:
    written = (ROOT / f"docs/reference/{name}.md").read_text(encoding="utf-8")
    assert written == runpy.run_path(str(ROOT / "docs/generate.py"))[name](), "run `make docs`, which writes it"


def test_the_page_of_commands_has_a_heading_for_each_panel_of_the_help_in_its_order() -> None:
    written = (ROOT / "docs/reference/commands.md").read_text(encoding="utf-8")
    shown = CliRunner().invoke(app, ["--help"], env={"COLUMNS": "200", "TERM": "dumb"}).stdout
    panels = re.findall(r"^╭─ (.+?) ─+╮$", shown, re.MULTILINE)
    assert panels == ["Options", "Stages", "The exported model", "Around the stages"]
    assert re.findall(r"^## (.*)$", written, re.MULTILINE) == panels[1:]
    commands = re.findall(r"^│ (\w+) ", shown, re.MULTILINE)
    assert re.findall(r"^### `reparam (\w+)`$", written, re.MULTILINE) == commands


# ---- what is named


def code(document: Path, language: str) -> Iterator[str]:
    yield from re.findall(rf"^ *```{language}\n(.*?)^ *```$", document.read_text(encoding="utf-8"), re.S | re.M)


def lines_of_shell(document: Path) -> list[str]:
    """Return the command lines of a document, without comments; continued lines are one."""
    text = "".join(code(document, "sh")).replace("\\\n", " ")
    lines = [re.sub(r"(^|\s+)# .*", "", line).strip() for line in text.splitlines()]
    return [part.strip() for line in lines if line for part in line.split("&&")]


@each_document
def test_links_between_documents_lead_somewhere(document: Path) -> None:
    text = re.sub(r"^ *```.*?^ *```$", "", document.read_text(encoding="utf-8"), flags=re.S | re.M)
    links = [link for link in re.findall(r"\]\(([^)\s]+)\)", text) if not urlsplit(link).scheme]
    files = [document.parent / link.partition("#")[0] for link in links if not link.startswith("#")]
    assert [str(file) for file in files if not file.exists()] == []


@each_document
def test_parameters_that_a_document_names_exist(document: Path) -> None:
    names = re.findall(r"`([a-z_]+\.[a-z_.]+)(?:: [^`]*)?`", document.read_text(encoding="utf-8"))
    files = {".py", ".yaml", ".json", ".csv", ".onnx", ".npz", ".db", ".lock", ".toml", ".txt", ".md"}
    wanted = {name for name in names if name.split(".")[0] in SECTIONS and Path(name).suffix not in files}
    assert wanted - PATHS == set()


def test_parameters_that_messages_name_exist() -> None:
    sections = "|".join(sorted(SECTIONS))
    wanted = {
        name.rstrip(".")
        for file in (ROOT / "src/reparam").rglob("*.py")
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
        for name in re.findall(rf"(?<![\w./`-])(?:{sections})\.[a-z_]+(?:\.[a-z_]+)*(?![\w.]*[(/])", node.value)
    }
    assert len(wanted) > 50
    assert wanted - PATHS - set(MOVED) == {"model.onnx"}


@each_document
def test_values_that_a_document_sets_are_allowed(document: Path) -> None:
    for line in lines_of_shell(document):
        changes: dict[str, Any] = {}
        for quoted, plain in re.findall(r"-S (?:'([^']*)'|(\S+))", line):
            path, _, value = (quoted or plain).partition("=")
            nested: Any = YAML(typ="safe").load(value if value.startswith("[") else value.split(",")[0])
            for name in reversed(path.split(".")):
                nested = {name: nested}
            merge(changes, nested)
        values = YAML(typ="safe").load(SHIPPED)
        merge(values, changes)
        check_config(values, line)


@each_document
def test_targets_and_commands_that_a_document_names_exist(document: Path) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))
    commands = set(typer.main.get_command(app).commands)  # type: ignore[attr-defined]
    inline = re.findall(r"`([^`\n]+)`", document.read_text(encoding="utf-8"))
    named = [line.split()[:2] for line in (*lines_of_shell(document), *inline)]
    assert {name for tool, *names in named for name in names if tool == "make"} <= targets
    assert {name for tool, *names in named for name in names if tool == "reparam" and name[0] != "-"} <= commands | {
        "COMMAND"
    }


def test_the_study_that_the_page_of_sweeps_shows_is_valid(tmp_path: Path) -> None:
    (text,) = code(ROOT / "docs/how-to/sweeps.md", "yaml")
    (tmp_path / "sweep.yaml").write_text(text)
    plan = read_plan(tmp_path / "sweep.yaml", ROOT / "params.yaml")
    assert (plan.study, plan.trials, list(plan.space)) == (
        "width",
        12,
        ["train.learning_rate", "model.latent", "model.conv.channels"],
    )


def test_the_table_of_environment_variables_is_complete() -> None:
    page = (ROOT / "docs/reference/environment.md").read_text(encoding="utf-8")
    written = set(re.findall(r"`([A-Z]+_[A-Z_]+|RANK)`", page))
    source = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "src").rglob("*.py"))
    used = (
        r'environ(?:ment)?(?:\.get|\.setdefault)?[\[(]"([A-Z_]+)"|"([A-Z_]+)" (?:not )?in os\.environ'
        r'|envvar="([A-Z_]+)"|\b(?:real|seconds|whole)\("([A-Z_]+)"'
    )
    read = {name for found in re.findall(used, source) for name in found if name}
    assert written == read - OURS


def test_the_table_of_data_sets_has_every_source_with_its_licence() -> None:
    page = (ROOT / "docs/reference/data.md").read_text(encoding="utf-8")
    rows = {row.split("`")[1]: row for row in page.splitlines() if row.startswith("| `")}
    assert set(SOURCES) <= set(rows)
    missing = [name for name, source in SOURCES.items() if name != "folder" and source.licence not in rows[name]]
    assert missing == []


def test_the_table_of_costs_follows_from_its_rates() -> None:
    page = (ROOT / "docs/how-to/clusters.md").read_text(encoding="utf-8")
    measured = re.search(
        r"A core trains `celeba-conv-vae` with (\d+) images", (ROOT / "benchmarks/RESULTS.md").read_text()
    )
    assert measured is not None
    rates = re.findall(r"^\| (?:16 CPU cores|a GPU) \| ([\d,]+)[^|]*\| ([\d.]+),", page, re.MULTILINE)
    (cores, _), _ = devices = [(float(rate.replace(",", "")), float(price)) for rate, price in rates]
    assert cores == 16 * int(measured[1])
    counts = {
        name: int(count.replace(",", "")) for name, count in re.findall(r"^\| ([^|]+), 64 x 64 \| ([\d,]+)", page, re.M)
    }
    found, name = [], ""
    for line in page.split("| hours, GPUs | money, GPUs |")[1].split("\n\n")[0].splitlines()[2:]:
        first, disk, number, *cells = (cell.strip() for cell in line.strip("|").split("|"))
        name, several = first or name, int(number)
        wanted = []
        for rate, price in devices:
            hours = counts[name] / (rate * several * (1 if several == 1 else 0.8)) / 3600
            wanted += [hours, hours * several * price]
        assert [float(cell) for cell in cells] == pytest.approx(wanted, rel=0.05)
        assert not disk or float(disk.split()[0]) == round(
            counts[name] * 12_288 / (1e12 if disk.endswith("TB") else 1e9), 1
        )
        found.append((name, several))
    assert found == [(name, several) for name in counts for several in (1, 8, 64)]
