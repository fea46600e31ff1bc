"""Find the source files that can change the outputs of a stage, and hash them."""

import ast
import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path

PACKAGE = Path(__file__).parent
TEMPLATES = (".html", ".md")
# Modules and folders that cannot change a byte that a stage writes: they read, refuse, name, show or log. An edit
# there must not retrain a model. `config` is one of them, because DVC compares the values that it reads; `__init__` is
# the package's own.
WITHOUT_EFFECT = (
    "__init__",
    "arrays",
    "cli",
    "config",
    "errors",
    "logged",
    "machine",
    "paths",
    "progress",
    "redact",
    "track",
)


def source_files(stage: str) -> list[Path]:
    """Follow the imports of a stage through this package, also those in functions, to the files that can change
    outputs.

    A template with the name of a module, beside it, counts as part of it. Empty `__init__` files do not count.
    """
    found: set[Path] = set()
    open_modules = [PACKAGE / stage / "stage.py"]
    while open_modules:
        current = open_modules.pop()
        if current in found or current.relative_to(PACKAGE).with_suffix("").parts[0] in WITHOUT_EFFECT:
            continue
        found.update(
            [current, *(current.with_suffix(kind) for kind in TEMPLATES if current.with_suffix(kind).exists())]
        )
        open_modules.extend(_imports(current))
    return sorted(file for file in found if file.stat().st_size)


def source_hash(stage: str) -> str:
    """Hash the source files of a stage: SHA-256 over names and contents."""
    return _hash(source_files(stage))


def package_hash() -> str:
    """Hash all source files of the package."""
    return _hash(
        sorted(file for kind in (".py", ".yaml", ".css", ".js", *TEMPLATES) for file in PACKAGE.rglob(f"*{kind}"))
    )


def _hash(files: Iterable[Path]) -> str:
    digest = hashlib.sha256()
    for file in files:
        digest.update(file.relative_to(PACKAGE).as_posix().encode() + b"\0" + file.read_bytes() + b"\0")
    return digest.hexdigest()


def _imports(module: Path) -> Iterator[Path]:
    for node in ast.walk(ast.parse(module.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        else:
            continue
        for name in names:
            if name.split(".")[0] == PACKAGE.name:
                path = PACKAGE.parent.joinpath(*name.split("."))
                # To import a module also runs the `__init__` of every package above it.
                above = [parent / "__init__.py" for parent in (path, *path.parents) if parent.is_relative_to(PACKAGE)]
                yield from (file for file in (path.with_suffix(".py"), *above) if file.exists())
