"""The page: what it holds, what it may do, and what it refuses."""

import html
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from exported_model import Exported
from policy import Policy

from reparam.client.bundle import Bundle
from reparam.errors import DamagedInputError, MissingInputError, UserError
from reparam.explorer import graph
from reparam.explorer.page import render

pytest_plugins = ["fixtures_export"]


def facts(page: str) -> dict[str, Any]:
    """What the page knows of the model."""
    [text] = re.findall(r'<script type="application/json" id="facts">(.*?)</script>', page, re.DOTALL)
    return json.loads(text)


def test_the_page_names_model_and_data(exported: Exported) -> None:
    manifest = json.loads((exported.directory / "manifest.json").read_text())
    data = f"{manifest['title']} (licence: {manifest['licence']}). 2 dimensions, images of 4 × 6 pixels"
    words = f"Variational autoencoder. Data: {data}. All is computed in this page."
    assert f'<p class="soft">{html.escape(words)}</p>' in render(exported.directory)


@pytest.fixture
def copy(exported: Exported, tmp_path: Path) -> Path:
    """A model that a test may change, without the manifest, which would not agree."""
    directory = shutil.copytree(exported.directory, tmp_path / "model")
    (directory / "manifest.json").unlink()
    return directory


def test_the_page_may_run_its_own_script_and_reach_nothing(exported: Exported) -> None:
    policy = Policy(render(exported.directory))
    assert [len(hashes) for hashes in policy.hashes.values()] == [1, 1]
    assert policy.allows_exactly_what_is_there, policy.rules


def test_what_a_model_says_of_itself_is_text(exported: Exported, monkeypatch: pytest.MonkeyPatch) -> None:
    of = Bundle.facts
    hostile = {"title": "</title><script>alert(1)</script>", "units": "<!--<script>"}
    monkeypatch.setattr(Bundle, "facts", lambda *arguments: of(*arguments) | hostile)
    page = render(exported.directory)
    assert "alert(1)" in page
    assert "<script>alert" not in page
    assert Policy(page).allows_exactly_what_is_there


def test_the_dimensions_that_vary_most_come_first(exported: Exported) -> None:
    manifest = json.loads((exported.directory / "manifest.json").read_text())
    deviation = manifest["codes"]["deviation"]
    found = facts(render(exported.directory))
    assert [each["index"] for each in found["latents"]] == sorted(range(2), key=lambda index: -deviation[index])
    assert [each["deviation"] for each in found["latents"]] == sorted(deviation, reverse=True)
    assert [each["middle"] for each in found["latents"]] == [0, 0]
    assert [each["reach"] for each in found["latents"]] == [3, 3]  # these codes stay within the prior
    assert found["units"] == "In standard deviations of the prior, those that vary most over images first."


def test_samples_start_from_the_prior(exported: Exported, mixed: Exported) -> None:
    assert facts(render(exported.directory))["prior"] == {"means": [[0, 0]], "deviations": [[1, 1]], "shares": [1]}
    prior, found = mixed.model.prior.components(), facts(render(mixed.directory))
    np.testing.assert_allclose(found["prior"]["means"], prior.means.detach(), atol=2e-6)
    np.testing.assert_allclose(found["prior"]["deviations"], (0.5 * prior.log_variances).exp().detach(), atol=2e-6)
    np.testing.assert_allclose(found["prior"]["shares"], prior.log_weights.exp().cumsum(0).detach(), atol=1e-6)
    assert found["units"].startswith("Outputs of the encoder, which have no unit")


def test_the_sliders_of_an_autoencoder_reach_as_far_as_its_codes(code: Exported) -> None:
    codes = json.loads((code.directory / "manifest.json").read_text())["codes"]
    found = facts(render(code.directory))
    assert found["prior"] is None
    for each in found["latents"]:
        assert each["middle"] == codes["mean"][each["index"]]
        assert each["reach"] == pytest.approx(3 * codes["deviation"][each["index"]])


def test_a_model_without_a_manifest_has_no_examples_and_its_dimensions_in_order(copy: Path) -> None:
    found = facts(render(copy))
    assert found["examples"] == {"count": 0, "pixels": ""}
    assert found["latents"] == [{"index": i, "middle": 0.0, "reach": 3.0, "deviation": None} for i in range(2)]
    assert found["units"] == "In standard deviations of the prior."


def test_the_page_knows_the_classes_of_a_conditional_model(conditional: Exported, exported: Exported) -> None:
    found = facts(render(conditional.directory))
    assert found["classes"] == ["cat", "dog", "owl"]
    assert found["examples"]["labels"] == [0, 2, 1, 0, 2, 1, 0, 2]
    assert facts(render(conditional.directory / "decoder.onnx"))["classes"] == ["cat", "dog", "owl"]
    found = facts(render(exported.directory))
    assert (found["classes"], "labels" in found["examples"]) == ([], False)


def test_a_decoder_alone_is_shown_without_the_encoder(exported: Exported) -> None:
    found = facts(render(exported.directory / "decoder.onnx"))
    assert "encoder" not in found
    assert found["decoder"]["outputs"] == ["images", "mean"]


def test_an_encoder_alone_is_refused(exported: Exported) -> None:
    with pytest.raises(UserError, match=r"wanted decoder.onnx, found encoder.onnx; give the folder of a model"):
        render(exported.directory / "encoder.onnx")
    with pytest.raises(MissingInputError, match="nowhere: not found; `dvc repro export` writes models/onnx"):
        render(Path("nowhere"))


def test_an_operator_that_the_page_does_not_know_is_refused_by_its_name(copy: Path) -> None:
    def change(model: Any) -> None:
        model.graph.node[0].op_type = "Sinkhorn"

    _rewrite(copy / "decoder.onnx", change)
    with pytest.raises(UserError, match=r"decoder.onnx: wanted operators that the page computes, found Sinkhorn; add"):
        render(copy)


def _rewrite(path: Path, change: Callable[[Any], None]) -> None:
    model = onnx.load(path)
    change(model)
    onnx.save(model, path)


def test_a_graph_of_another_exporter_is_refused(exported: Exported) -> None:
    content = (exported.directory / "decoder.onnx").read_bytes()
    for end in (*range(0, len(content) - 1, 211), len(content) - 3):
        with pytest.raises(DamagedInputError, match="it: wanted a graph as `reparam export` writes it, found another"):
            graph.read(content[:end], "it")
    rng = np.random.default_rng(0)
    for _ in range(200):
        with pytest.raises(DamagedInputError):
            graph.read(rng.bytes(64), "it")


def test_the_command_writes_the_page(
    exported: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reparam: Callable[..., tuple[int, str]]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert reparam("explorer", "--model", str(exported.directory)) == (0, "explorer.html: written\n")
    assert Path("explorer.html").read_text(encoding="utf-8") == render(exported.directory)
