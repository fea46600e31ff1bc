"""The programs of an exported model's README in other languages: compiled, and run on golden inputs."""

import os
import platform
import re
import shutil
import subprocess
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import csharp
import numpy as np
import pytest
from exported_model import OPSET, Exported
from installs import npm_install

from reparam.export.manifest import OLDEST_ONNXRUNTIME

pytest_plugins = ["fixtures_export"]
pytestmark = pytest.mark.slow

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
OPTIONS = ["--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=20000", "--dump-dom"]
PAGE = """<body></body><script src="dist/ort.min.js"></script><script>
console.log = (...words) => { document.body.id = "answer"; document.body.textContent = words.join(" "); };
%s</script>"""
IMAGE = 1  # of the golden ones; its label is not 0
HEADERS = "Plugins/iOS~/onnxruntime.xcframework/ios-arm64/onnxruntime.framework/Headers"


@pytest.fixture(scope="session")
def onnxruntime(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A package for Unity, which has the sources of the C# library, the C++ headers and the compiled library."""
    if (platform.system(), platform.machine()) != ("Linux", "x86_64"):
        pytest.skip("needs Linux on x86_64")
    package = "com.github.asus4.onnxruntime"
    found = npm_install(tmp_path_factory.mktemp("onnxruntime"), f"{package}@0.4.9") / package
    library = found / "Plugins/Linux/x64/libonnxruntime.so"
    library.with_name("libonnxruntime.so.1").symlink_to(library.name)
    return found


def golden(files: Exported, name: str) -> np.ndarray:
    with np.load(files.directory / "golden.npz", allow_pickle=False) as arrays:
        return np.asarray(arrays[name][IMAGE]).ravel()


def listed(numbers: np.ndarray, suffix: str = "") -> str:
    return ", ".join(f"{number}{suffix}" for number in numbers.tolist())


def label(files: Exported) -> str:
    return listed(golden(files, "label")) if "label" in files.snippet("python") else ""


def check_images(printed: str, files: Exported) -> None:
    assert np.abs(np.array(printed.split(), int) - golden(files, "decoded_images")).max() <= 1


def check_means(printed: str, files: Exported) -> None:
    shape, *means = printed.split()
    assert shape == "1x4x6x3"
    np.testing.assert_allclose([float(mean) for mean in means], golden(files, "mean"), rtol=1e-4, atol=1e-5)


def javascript(files: Exported) -> str:
    text = files.snippet("js").replace("new Uint8Array(72)", f"Uint8Array.of({listed(golden(files, 'images'))})")
    return text.replace("[0n]", f"[{label(files)}n]")


@pytest.fixture(scope="session")
def node_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return npm_install(tmp_path_factory.mktemp("node"), "onnxruntime-node")


def test_the_javascript_program_runs_under_node(files: Exported, node_path: Path) -> None:
    environment = {**os.environ, "NODE_PATH": str(node_path)}
    command = ["node", "-e", javascript(files)]
    done = subprocess.run(command, cwd=files.directory, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    check_means(done.stdout, files)


class Handler(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


@pytest.mark.skipif(BROWSER is None, reason="needs Chromium")
@pytest.mark.parametrize("version", [f"@{OLDEST_ONNXRUNTIME[OPSET]}", ""], ids=["oldest", "newest"])
def test_the_javascript_program_runs_in_a_browser(version: str, exported: Exported, tmp_path: Path) -> None:
    packages = npm_install(tmp_path, f"onnxruntime-web{version}")
    site = shutil.copytree(exported.directory, tmp_path / "site")
    (site / "dist").symlink_to(packages / "onnxruntime-web/dist")
    _, text = javascript(exported).split("\n", 1)  # without the line for Node
    (site / "index.html").write_text(PAGE % text)
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(site))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}/index.html"
        command = [str(BROWSER), *OPTIONS, f"--user-data-dir={tmp_path / 'profile'}", address]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
        server.shutdown()
    answers = re.findall('<body id="answer">(.*?)</body>', done.stdout, re.DOTALL)
    assert answers, done.stderr
    check_means(answers[0], exported)


def test_the_cpp_program_compiles_and_runs(files: Exported, onnxruntime: Path, tmp_path: Path) -> None:
    if not shutil.which("g++"):
        pytest.skip("needs g++")
    text = files.snippet("cpp").replace("pixels{}", f"pixels{{{listed(golden(files, 'images'))}}}")
    (tmp_path / "program.cpp").write_text(text.replace("label{}", f"label{{{label(files)}}}"))
    libraries = onnxruntime / "Plugins/Linux/x64"
    flags = ["-std=c++17", "-Wall", "-Wextra", "-Werror", f"-I{onnxruntime / HEADERS}"]
    command = ["g++", *flags, "program.cpp", "-o", "program", f"-L{libraries}", "-lonnxruntime"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    environment = {**os.environ, "LD_LIBRARY_PATH": str(libraries)}
    command = [str(tmp_path / "program")]
    done = subprocess.run(command, cwd=files.directory, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    check_images(done.stdout, files)


@pytest.fixture(scope="session")
def compiler(onnxruntime: Path, tmp_path_factory: pytest.TempPathFactory) -> csharp.CSharp:
    """The compiler of C#, which has compiled the library."""
    found = csharp.install(tmp_path_factory.mktemp("csharp"))
    found.compile("Microsoft.ML.OnnxRuntime", *(onnxruntime / "Runtime").rglob("*.cs"))
    return found


def test_the_csharp_program_compiles_and_runs(
    files: Exported, compiler: csharp.CSharp, onnxruntime: Path, tmp_path: Path
) -> None:
    text = files.snippet("csharp").replace("new byte[72]", f"new byte[] {{ {listed(golden(files, 'images'))} }}")
    (tmp_path / "program.cs").write_text(text.replace("new long[1]", f"new[] {{ {label(files)}L }}"))
    compiler.compile("program", tmp_path / "program.cs")
    check_images(compiler.run(files.directory, onnxruntime / "Plugins/Linux/x64"), files)
