"""The README of an exported model, and its program in Python; `test_snippets.py` has the other languages."""

import numpy as np
import pytest
from exported_model import Exported
from ruamel.yaml import YAML

from reparam.client import Client

pytest_plugins = ["fixtures_export"]


def test_the_head_is_what_a_model_hub_reads(exported: Exported, code: Exported) -> None:
    heads = [YAML(typ="safe").load(files.readme().split("---\n")[1]) for files in (exported, code)]
    assert heads[0] == {
        "library_name": "onnx",
        "license": "cc0-1.0",
        "tags": ["onnx", "image-generation", "vae", "reparam"],
        "datasets": ["noise"],
        "metrics": ["elbo"],
    }
    assert "metrics" not in heads[1]


def test_the_page_says_how_old_a_runtime_may_be_and_which_scores_are_usual(exported: Exported) -> None:
    page = exported.readme()
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
    exec(files.snippet("python"), found)
    with np.load("golden.npz", allow_pickle=False) as golden:
        np.testing.assert_allclose(found["mean"], golden["mean"], rtol=1e-5, atol=1e-5)
        assert np.abs(found["reconstructed"].astype(int) - golden["decoded_images"]).max() <= 1
    found["golden"].close()  # type: ignore[attr-defined]
    if fixture == "exported":
        assert found["generated"].shape == (16, 4, 6, 3)
        scores = Client(".", device="cpu").score(files.images, samples=0).negative_elbo
        wanted = scores[::5] > float(np.percentile(scores, 99))  # of the test split; the images are spread over it
        assert found["is_unusual"].tolist() == wanted.tolist()
