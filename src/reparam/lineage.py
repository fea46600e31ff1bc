"""Which of our source files a stage depends on, and the hash of them."""

import ast
import hashlib
from collections.abc import Iterator
from pathlib import Path

PACKAGE = Path(__file__).parent


def source_files(module: Path) -> list[Path]:
    """Follow the imports of a module through this package, those inside functions included.

    A template that stands beside a module under the same name counts as part of it. Empty `__init__` files do not
    count.
    """
    found: set[Path] = set()
    open_modules = [module]
    while open_modules:
        current = open_modules.pop()
        if current in found:
            continue
        found.update([current, *current.parent.glob(f"{current.stem}.html")])
        open_modules.extend(_imports(current))
    return sorted(file for file in found if file.stat().st_size)


def source_hash(stage: str) -> str:
    """Hash the source of a stage and of all it imports: SHA-256 over names and contents."""
    digest = hashlib.sha256()
    for file in source_files(PACKAGE / "stages" / f"{stage}.py"):
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
