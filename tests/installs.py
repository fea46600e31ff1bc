"""Packages that slow tests install into folders of their own."""

import subprocess
import sys
from pathlib import Path

import pytest

PIP = [sys.executable, "-m", "pip", "install", "--quiet", "--only-binary=:all:", "--target"]
NPM = ["npm", "install", "--ignore-scripts", "--no-audit", "--no-fund", "--prefix"]  # scripts fetch what a GPU needs


def pip_install(target: Path, *packages: str) -> Path:
    return _install(PIP, target, packages)


def npm_install(target: Path, *packages: str) -> Path:
    return _install(NPM, target, packages) / "node_modules"


def _install(command: list[str], target: Path, packages: tuple[str, ...]) -> Path:
    try:
        done = subprocess.run([*command, str(target), *packages], capture_output=True, text=True)
    except FileNotFoundError:
        pytest.skip(f"needs {command[0]}")
    if done.returncode:
        pytest.skip(f"{command[0]} cannot install {packages}: {done.stderr.strip()[-200:]}")
    return target
