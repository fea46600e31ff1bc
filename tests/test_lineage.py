import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from reparam import lineage
from reparam.lineage import package_hash, source_files, source_hash

STAGES = sorted(path.parent.name for path in lineage.PACKAGE.glob("*/stage.py"))

# A package in small: every way to import, a circle, a template, and files that nobody imports.
SOURCES = {
    "__init__.py": '"""Not empty, so it counts."""\n',
    "one/__init__.py": "",
    "one/stage.py": "import json\nfrom reparam import direct\ndef run():\n    from reparam.inner.late import f\n",
    "two/__init__.py": "",
    "two/stage.py": "import reparam.direct\nfrom reparam.track import store\n",
    "direct.py": "import reparam.circle\nimport torch, reparam.second_of_a_line, reparam.errors\n",
    "errors.py": "import reparam.inner.unused\n",
    "track/__init__.py": "Z = 4\n",
    "track/store.py": "import reparam.inner.unused\n",
    "circle.py": "from reparam.direct import x\nfrom numpy import reparam_is_not_ours\n",
    "second_of_a_line.py": "X = 1\n",
    "inner/__init__.py": "",
    "inner/late.py": "from reparam.inner import sibling\nfrom reparamother import nothing\n",
    "inner/late.html": "<p>a template</p>\n",
    "inner/sibling.py": "Y = 2\n",
    "inner/unused.py": "import reparam.direct\n",
    "inner/unused.html": "<p>another template</p>\n",
    "../reparamother.py": "A = 'a neighbour whose name begins like ours'\n",
}


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """SOURCES, in the place of our package."""
    root = tmp_path / "reparam"
    for name, text in SOURCES.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text, encoding="utf-8")
    monkeypatch.setattr(lineage, "PACKAGE", root)
    return root


def followed(package: Path, stage: str) -> list[str]:
    return [file.relative_to(package).as_posix() for file in source_files(stage)]


def test_imports_are_followed_wherever_they_are(package: Path) -> None:
    assert followed(package, "one") == [
        "circle.py",
        "direct.py",
        "inner/late.html",
        "inner/late.py",
        "inner/sibling.py",
        "one/stage.py",
        "second_of_a_line.py",
    ]


def test_what_cannot_change_outputs_is_neither_counted_nor_followed(package: Path) -> None:
    assert followed(package, "two") == ["circle.py", "direct.py", "second_of_a_line.py", "two/stage.py"]


def test_an_init_file_counts_once_it_holds_something(package: Path) -> None:
    assert "inner/__init__.py" not in followed(package, "one")
    (package / "inner/__init__.py").write_text("Z = 3\n", encoding="utf-8")
    assert "inner/__init__.py" in followed(package, "one")


def test_the_init_files_above_an_imported_module_count_too(package: Path) -> None:
    (package / "inner/late.py").write_text("", encoding="utf-8")  # no longer names `reparam.inner` itself
    (package / "inner/__init__.py").write_text("Z = 3\n", encoding="utf-8")
    assert "inner/__init__.py" in followed(package, "one")


@pytest.mark.parametrize("name", ["one/stage.py", "inner/sibling.py", "inner/late.html", "circle.py"])
def test_the_hash_changes_with_every_file_that_is_imported(name: str, package: Path) -> None:
    before = source_hash("one")
    with (package / name).open("a", encoding="utf-8") as file:
        file.write("\n")
    assert source_hash("one") != before


@pytest.mark.parametrize("name", ["two/stage.py", "inner/unused.py", "errors.py", "track/store.py", "__init__.py"])
def test_the_hash_does_not_change_with_other_files(name: str, package: Path) -> None:
    before = source_hash("one")
    with (package / name).open("a", encoding="utf-8") as file:
        file.write("\n")
    (package / "one/stage.pyc").write_bytes(b"\0")
    assert source_hash("one") == before


@pytest.mark.parametrize("name", ["errors.py", "inner/unused.html", "__init__.py"])
def test_the_hash_of_the_package_changes_with_every_source_file(name: str, package: Path) -> None:
    before = package_hash()
    with (package / name).open("a", encoding="utf-8") as file:
        file.write("\n")
    assert package_hash() != before


def test_the_hash_changes_when_a_line_moves_to_another_file(package: Path) -> None:
    (package / "circle.py").write_text("A = 1\nB = 2\n", encoding="utf-8")
    (package / "direct.py").write_text("import reparam.circle\n", encoding="utf-8")
    before = source_hash("two")
    # One after the other the two files hold the same text as before.
    (package / "circle.py").write_text("A = 1\n", encoding="utf-8")
    (package / "direct.py").write_text("B = 2\nimport reparam.circle\n", encoding="utf-8")
    assert source_hash("two") != before


def test_the_hash_does_not_depend_on_where_the_package_is(
    package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = source_hash("one")
    (tmp_path / "elsewhere").mkdir()
    moved = package.rename(tmp_path / "elsewhere/reparam")
    monkeypatch.setattr(lineage, "PACKAGE", moved)
    assert source_hash("one") == before


def test_what_python_imports_for_a_stage_is_what_is_followed() -> None:
    # One process, because torch takes its time; between the stages our own modules are forgotten.
    script = f"""
import importlib, json, sys
found = {{}}
for stage in {STAGES}:
    for name in [name for name in sys.modules if name.split(".")[0] == "reparam"]:
        del sys.modules[name]
    importlib.import_module(f"reparam.{{stage}}.stage")
    ours = [module for name, module in sys.modules.items() if name.split(".")[0] == "reparam"]
    found[stage] = [module.__file__ for module in ours]
print(json.dumps(found))
"""
    environment = {**os.environ, "PYTHONPATH": str(lineage.PACKAGE.parent)}
    result = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    imported = json.loads(result.stdout)
    assert len(STAGES) >= 6
    for stage in STAGES:
        really = {Path(file) for file in imported[stage] if Path(file).stat().st_size}
        assert lineage.PACKAGE / stage / "stage.py" in really
        missed = {file.relative_to(lineage.PACKAGE).with_suffix("") for file in really - set(source_files(stage))}
        unseen = {path.as_posix() for path in missed if path.parts[0] not in lineage.WITHOUT_EFFECT}
        # What `logged` and `track` read, whatever the stage.
        assert unseen <= {"cards/evaluation", "cards/export", "cards/model", "cards/results", "lineage"}
