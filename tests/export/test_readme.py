"""The README of an exported model, and its snippets."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from exported_model import Exported
from ruamel.yaml import YAML

from reparam.client import Client

pytest_plugins = ["fixtures_export"]


def text(exported: Exported) -> str:
    return (exported.directory / "README.md").read_text(encoding="utf-8")


def snippet(exported: Exported, language: str) -> str:
    [found] = re.findall(rf"^```{language}\n(.*?)^```$", text(exported), re.S | re.M)
    return str(found)


def test_the_head_is_what_a_model_hub_reads(exported: Exported, code: Exported) -> None:
    heads = [YAML(typ="safe").load(text(files).split("---\n")[1]) for files in (exported, code)]
    assert heads[0] == {
        "library_name": "onnx",
        "license": "cc0-1.0",
        "tags": ["onnx", "image-generation", "vae", "reparam"],
        "datasets": ["noise"],
        "metrics": ["elbo"],
    }
    assert "metrics" not in heads[1]


def test_the_page_says_how_old_a_runtime_may_be_and_which_scores_are_usual(exported: Exported) -> None:
    page = text(exported)
    assert "wherever onnxruntime 1.17.0 or newer runs" in page
    assert "| percent of images below | 1 | 5 | 25 | 50 | 75 | 95 | 99 |\n|---|---|---|---|---|---|---|---|\n" in page
    assert "licence: CC0" in page
    assert "{{" not in page
    assert "{%" not in page


@pytest.mark.parametrize("fixture", ["exported", "code"])
def test_the_python_snippet_runs_and_gives_the_golden_answers(
    fixture: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    files: Exported = request.getfixturevalue(fixture)
    monkeypatch.chdir(files.directory)
    found: dict[str, np.ndarray] = {}
    exec(snippet(files, "python"), found)
    with np.load("golden.npz", allow_pickle=False) as golden:
        np.testing.assert_allclose(found["mean"], golden["mean"], rtol=1e-5, atol=1e-5)
        assert np.abs(found["reconstructed"].astype(int) - golden["decoded_images"]).max() <= 1
    found["golden"].close()  # type: ignore[attr-defined]
    if fixture == "exported":
        assert found["generated"].shape == (16, 4, 6, 3)
        scores = Client(".", device="cpu").score(files.images, samples=0).negative_elbo
        wanted = scores[::5] > float(np.percentile(scores, 99))  # of the test split; the images are spread over it
        assert found["is_unusual"].tolist() == wanted.tolist()


@pytest.mark.slow
def test_the_javascript_snippet_runs_under_node(exported: Exported, tmp_path: Path) -> None:
    if not (shutil.which("node") and shutil.which("npm")):
        pytest.skip("needs node and npm")
    # Its script would only fetch what a GPU needs.
    command = ["npm", "install", "--ignore-scripts", "--no-audit", "--no-fund", "onnxruntime-node"]
    installed = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    if installed.returncode:
        pytest.skip(f"npm cannot install onnxruntime-node: {installed.stderr[-200:]}")
    (tmp_path / "snippet.js").write_text(snippet(exported, "js"), encoding="utf-8")
    environment = {**os.environ, "NODE_PATH": str(tmp_path / "node_modules")}
    command = ["node", str(tmp_path / "snippet.js")]
    done = subprocess.run(command, cwd=exported.directory, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    shape, *mean = done.stdout.split()
    black = np.zeros((1, 4, 6, 3), np.uint8)
    import onnxruntime

    wanted = onnxruntime.InferenceSession(exported.directory / "encoder.onnx").run(["mean"], {"images": black})[0]
    assert shape == "1x4x6x3"
    np.testing.assert_allclose([float(value) for value in mean], wanted[0], rtol=1e-4, atol=1e-5)
