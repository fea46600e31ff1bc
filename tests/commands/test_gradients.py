import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from reparam.commands import gradients
from reparam.commands import gradients as estimators
from reparam.config import load_config
from reparam.download import stage as download
from reparam.errors import ParamsError
from reparam.paths import Paths
from reparam.preprocess import stage as preprocess
from reparam.train import stage as train


@pytest.fixture
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few images, repeats and samples."""
    monkeypatch.setattr(gradients, "IMAGES", 10)
    monkeypatch.setattr(gradients, "REPEATS", 4)
    monkeypatch.setattr(estimators, "SAMPLES", (1, 2))


@pytest.mark.usefixtures("_quick")
def test_the_noise_of_a_trained_model_is_written_and_drawn(finished: Paths) -> None:
    gradients.run(load_config(finished.params), finished)
    assert sorted(path.name for path in finished.gradients.iterdir()) == ["noise.json", "noise.png"]
    assert finished.gradients == finished.root / "reports/gradients"
    found = json.loads((finished.gradients / "noise.json").read_text())
    rows = found.pop("variance_over_square")
    assert found == {"images": 10, "repeats": 4}
    assert list(rows) == ["score function", "score function, control variate", "reparameterised"]
    for row in rows.values():
        assert list(row) == ["1", "2"]
        assert all(value > 0 for value in row.values())
    assert rows["score function"]["1"] > rows["reparameterised"]["1"]
    assert (finished.gradients / "noise.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.usefixtures("_quick")
def test_the_noise_is_printed_as_a_table(finished: Paths, reparam: Callable[..., tuple[int, str]]) -> None:
    code, printed = reparam("gradients")
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in printed.splitlines() if "│" in line]
    noise = json.loads((finished.gradients / "noise.json").read_text())["variance_over_square"]
    assert (code, rows) == (0, [[name, *(f"{value:.3g}" for value in row.values())] for name, row in noise.items()])
    assert printed.endswith("reports/gradients: written\n")


def test_git_ignores_what_is_written() -> None:
    ignored = (Path(__file__).parents[2] / ".gitignore").read_text().splitlines()
    assert {"/reports/gradients/", "/reports/compare.html"} <= set(ignored)


@pytest.mark.usefixtures("_quick")
def test_the_same_model_gives_the_same_bytes(finished: Paths) -> None:
    written = []
    for _ in range(2):
        gradients.run(load_config(finished.params), finished)
        written.append({path.name: path.read_bytes() for path in finished.gradients.iterdir()})
    assert written[0] == written[1]


@pytest.mark.usefixtures("_quick")
def test_an_autoencoder_is_refused(
    project: Paths, params: dict[str, Any], write_params: Callable[[dict[str, Any]], None]
) -> None:
    params["model"]["kind"] = "autoencoder"
    params["objective"]["name"] = "reconstruction"
    params["train"]["epochs"] = 1
    params["preprocess"]["limit"] = 50
    write_params(params)
    config = load_config(project.params)
    for stage in (download, preprocess, train):
        stage.run(config, project)
    with pytest.raises(ParamsError) as error:
        gradients.run(config, project)
    assert str(error.value) == "gradients: wanted a model with a posterior, found one without, which draws no samples"
    assert not project.gradients.exists()
