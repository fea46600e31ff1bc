"""The exported files under other runtimes, which are installed for the purpose: old and new onnxruntime, OpenVINO."""

import os
import subprocess
import sys
from pathlib import Path

import onnxruntime
import pytest
from exported_model import Exported

from reparam.export.manifest import OLDEST_ONNXRUNTIME
from reparam.export.program import export_graphs

pytest_plugins = ["fixtures_export"]
pytestmark = pytest.mark.slow

CHECK = """
import sys
from pathlib import Path
import numpy as np

golden = dict(np.load(sys.argv[1], allow_pickle=False))
NAMES = {("decoder", name): f"decoded_{name}" for name in ("images", "mean")}

def check(graph, found):
    for name, value in found.items():
        wanted = golden[NAMES.get((graph, name), name)]
        assert value.shape == wanted.shape and value.dtype == wanted.dtype, (graph, name, value.shape, value.dtype)
        if value.dtype == np.uint8:
            assert abs(value.astype(int) - wanted).max() <= 1, (graph, name)
        else:
            np.testing.assert_allclose(value, wanted, rtol=1e-4, atol=1e-4, err_msg=f"{graph}, {name}")

"""
ONNXRUNTIME = """
import onnxruntime
for path in sorted(Path(sys.argv[2]).glob("*.onnx")):
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    inputs = {value.name: golden[value.name] for value in session.get_inputs()}
    names = [value.name for value in session.get_outputs()]
    check(path.stem, dict(zip(names, session.run(names, inputs))))
print(onnxruntime.__version__)
"""
OPENVINO = """
import openvino
core = openvino.Core()
# Else it computes in bfloat16 where the processor can.
core.set_property("CPU", {"INFERENCE_PRECISION_HINT": "f32"})
for path in sorted(Path(sys.argv[2]).glob("*.onnx")):
    model = core.compile_model(str(path), "CPU")
    inputs = {value.any_name: golden[value.any_name] for value in model.inputs}
    found = model(inputs)
    check(path.stem, {value.any_name: found[value] for value in model.outputs})
print("agrees")
"""


def run(code: str, packages: list[str], exported: Exported, graphs: Path, target: Path) -> str:
    """Install packages into a folder of their own, and run code with them; return what it prints."""
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--only-binary=:all:", "--target", str(target), *packages]
    installed = subprocess.run(pip, capture_output=True, text=True)
    if installed.returncode:
        pytest.skip(f"pip cannot install {packages} for this Python: {installed.stderr.strip()[-200:]}")
    command = [sys.executable, "-c", CHECK + code, str(exported.directory / "golden.npz"), str(graphs)]
    environment = {**os.environ, "PYTHONPATH": str(target)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize("opset", OLDEST_ONNXRUNTIME)
def test_the_oldest_runtime_of_each_opset_agrees(opset: int, exported: Exported, tmp_path: Path) -> None:
    version = OLDEST_ONNXRUNTIME[opset]
    export_graphs(exported.graphs(), opset, {}, tmp_path)
    numpy = "numpy<2" if version < "1.19" else "numpy"  # which it was built for
    found = run(ONNXRUNTIME, [f"onnxruntime=={version}", numpy], exported, tmp_path, tmp_path / "packages")
    assert found == version


@pytest.mark.parametrize("wanted", ["onnxruntime==1.22.0", "onnxruntime"], ids=["middle", "newest"])
def test_newer_runtimes_agree(wanted: str, exported: Exported, tmp_path: Path) -> None:
    found = run(ONNXRUNTIME, [wanted, "numpy"], exported, exported.directory, tmp_path / "packages")
    assert found == "1.22.0" if "==" in wanted else found >= onnxruntime.__version__


def test_openvino_agrees(exported: Exported, tmp_path: Path) -> None:
    assert run(OPENVINO, ["openvino"], exported, exported.directory, tmp_path / "packages") == "agrees"
