"""The exported files under other runtimes, which are installed for the purpose: old and new onnxruntime, OpenVINO."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from exported_model import Exported, prepare, run_stage
from installs import npm_install, pip_install

from reparam.export import quantize
from reparam.export.manifest import OLDEST_OF_STATIC, OLDEST_ONNXRUNTIME
from reparam.export.program import export_graphs

pytest_plugins = ["fixtures_export"]
pytestmark = pytest.mark.slow

# Each program gets the golden answers and of a folder of graphs, and leaves what these compute.
PYTHON = """
import sys
from pathlib import Path
import numpy as np

golden, found = dict(np.load(sys.argv[1], allow_pickle=False)), {}
"""
ONNXRUNTIME = (
    PYTHON
    + """
import onnxruntime
for path in sorted(Path(sys.argv[2]).glob("*.onnx")):
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    inputs = {value.name: golden[value.name] for value in session.get_inputs()}
    names = [f"{path.stem} {value.name}" for value in session.get_outputs()]
    found.update(zip(names, session.run(None, inputs)))
np.savez(sys.argv[3], **found)
print(onnxruntime.__version__)
"""
)
OPENVINO = (
    PYTHON
    + """
import openvino
core = openvino.Core()
# Else it computes in bfloat16 where the processor can.
core.set_property("CPU", {"INFERENCE_PRECISION_HINT": "f32"})
for path in sorted(Path(sys.argv[2]).glob("*.onnx")):
    model = core.compile_model(str(path), "CPU")
    outputs = model({value.any_name: golden[value.any_name] for value in model.inputs})
    found.update({f"{path.stem} {value.any_name}": outputs[value] for value in model.outputs})
np.savez(sys.argv[3], **found)
"""
)
WEB = """
const fs = require("fs"), path = require("path"), ort = require("onnxruntime-web");
const golden = JSON.parse(fs.readFileSync(0)), folder = process.argv[1], found = {};
const read = ({ type, dims, data }) => new ort.Tensor(type, type === "int64" ? data.map(BigInt) : data, dims);
async function main() {
  for (const file of fs.readdirSync(folder).filter(name => name.endsWith(".onnx"))) {
    const session = await ort.InferenceSession.create(fs.readFileSync(path.join(folder, file)));
    const inputs = Object.fromEntries(session.inputNames.map(name => [name, read(golden[name])]));
    for (const [name, { type, dims, data }] of Object.entries(await session.run(inputs)))
      found[`${path.parse(file).name} ${name}`] = { type, dims, data: Array.from(data, Number) };
  }
  console.log(JSON.stringify(found));
}
main();
"""
Arrays = dict[str, np.ndarray]


def read(path: Path) -> Arrays:
    with np.load(path, allow_pickle=False) as arrays:
        return dict(arrays)


def check(found: Arrays, exported: Exported, tolerance: float = 1e-4) -> None:
    """Compare with the golden answers."""
    golden = read(exported.directory / "golden.npz")
    assert {output.split()[0] for output in found} == {"encoder", "decoder", "score"}
    for output, value in found.items():
        graph, name = output.split()
        wanted = golden[f"decoded_{name}" if graph == "decoder" else name]
        assert value.shape == wanted.shape, output
        assert value.dtype == wanted.dtype, output
        if value.dtype == np.uint8:
            assert abs(value.astype(int) - wanted).max() <= max(1, 255 * tolerance), output
        else:
            np.testing.assert_allclose(value, wanted, rtol=tolerance, atol=tolerance, err_msg=output)


def run(
    code: str, packages: list[str], exported: Exported, graphs: Path, scratch: Path, tolerance: float = 1e-4
) -> str:
    """Run Python code with packages of its own, and check what it computes; return what it prints."""
    environment = {**os.environ, "PYTHONPATH": str(pip_install(scratch / "packages", *packages))}
    answers = scratch / "found.npz"
    command = [sys.executable, "-c", code, str(exported.directory / "golden.npz"), str(graphs), str(answers)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    check(read(answers), exported, tolerance)
    return done.stdout.strip()


def run_web(package: str, exported: Exported, graphs: Path, scratch: Path) -> None:
    """The same with onnxruntime-web, under Node."""
    golden = {
        name: {"type": str(array.dtype), "dims": array.shape, "data": array.ravel().tolist()}
        for name, array in read(exported.directory / "golden.npz").items()
    }
    environment = {**os.environ, "NODE_PATH": str(npm_install(scratch, package))}
    command = ["node", "-e", WEB, str(graphs)]
    done = subprocess.run(command, env=environment, input=json.dumps(golden), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    check({name: np.array(x["data"], x["type"]).reshape(x["dims"]) for name, x in found.items()}, exported)


@pytest.mark.parametrize("opset", OLDEST_ONNXRUNTIME)
def test_the_oldest_runtime_of_each_opset_agrees(opset: int, exported: Exported, tmp_path: Path) -> None:
    version = OLDEST_ONNXRUNTIME[opset]
    export_graphs(exported.graphs(), opset, {}, tmp_path)
    numpy = "numpy<2" if version < "1.19" else "numpy"  # which it was built for
    assert run(ONNXRUNTIME, [f"onnxruntime=={version}", numpy], exported, tmp_path, tmp_path) == version


@pytest.mark.parametrize("opset", OLDEST_OF_STATIC)
def test_the_oldest_runtime_of_integers_in_convolutions_agrees(opset: int, tmp_path: Path) -> None:
    network = {"network": "conv", "channels": [8], "norm": "batch", "activation": "relu"}
    exported, graphs = prepare(tmp_path, **network), tmp_path / "graphs"
    run_stage(exported.paths, opset=opset)
    golden = read(exported.directory / "golden.npz")
    graphs.mkdir()
    for name, inputs in {"encoder": ["images"], "decoder": ["latents"], "score": ["images", "epsilon"]}.items():
        calibration = {name: golden[name] for name in inputs}
        quantize.static(exported.directory / f"{name}.onnx", graphs / f"{name}.onnx", calibration)
    version = OLDEST_OF_STATIC[opset]
    packages = [f"onnxruntime=={version}", "numpy<2" if version < "1.19" else "numpy"]
    assert run(ONNXRUNTIME, packages, exported, graphs, tmp_path, tolerance=0.05) == version


@pytest.mark.parametrize("opset", OLDEST_ONNXRUNTIME)
def test_so_does_the_oldest_onnxruntime_web(opset: int, exported: Exported, tmp_path: Path) -> None:
    export_graphs(exported.graphs(), opset, {}, tmp_path)
    run_web(f"onnxruntime-web@{OLDEST_ONNXRUNTIME[opset]}", exported, tmp_path, tmp_path)


@pytest.mark.parametrize("wanted", ["onnxruntime==1.22.0", "onnxruntime"], ids=["middle", "newest"])
def test_newer_runtimes_agree(wanted: str, exported: Exported, tmp_path: Path) -> None:
    found = run(ONNXRUNTIME, [wanted, "numpy"], exported, exported.directory, tmp_path)
    assert found == "1.22.0" if "==" in wanted else found >= onnxruntime.__version__


def test_the_newest_onnxruntime_web_agrees(exported: Exported, tmp_path: Path) -> None:
    run_web("onnxruntime-web", exported, exported.directory, tmp_path)


def test_openvino_agrees(exported: Exported, tmp_path: Path) -> None:
    run(OPENVINO, ["openvino"], exported, exported.directory, tmp_path)
