"""Put the output of a benchmark into RESULTS.md, each in a section of its own."""

import os
import platform
import re
import subprocess
from pathlib import Path

RESULTS = Path(__file__).parent / "RESULTS.md"


def write_section(title: str, text: str) -> None:
    """Replace the section `## title`, or append it."""
    old = RESULTS.read_text(encoding="utf-8") if RESULTS.exists() else "# Measurements\n\nWritten by `make bench`.\n"
    section = f"## {title}\n\n{machine()}\n\n{text.strip()}\n"
    pattern = re.compile(rf"^## {re.escape(title)}\n.*?(?=^## |\Z)", re.MULTILINE | re.DOTALL)
    new = pattern.sub(lambda _: section + "\n", old) if pattern.search(old) else f"{old.rstrip()}\n\n{section}"
    RESULTS.write_text(new.rstrip() + "\n", encoding="utf-8")


def machine() -> str:
    """Name what was measured on."""
    return f"{len(os.sched_getaffinity(0))} cores, {platform.machine()}, Python {platform.python_version()}."


def commit_of(tree: Path) -> str:
    """Name the commit of a tree, and say whether files differ from it."""
    command = ["git", "describe", "--always", "--dirty", "--exclude=*"]
    return subprocess.run(command, cwd=tree, capture_output=True, text=True, check=True).stdout.strip()


def table(header: list[str], rows: list[list[str]]) -> str:
    """Lay out a Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def peak_megabytes() -> float:
    """Return the most memory that this process ever held."""
    # Not getrusage, whose peak a child inherits from the process that started it.
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return int(re.search(r"VmHWM:\s+(\d+)", status)[1]) / 1024
