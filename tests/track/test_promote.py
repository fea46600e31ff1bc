"""Champions among registered models: better, as good, worse, and not comparable."""

import json
import re
import shutil
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pytest
from experiments import PICTURE
from exported_model import Exported
from in_process import InProcess
from score_graph import relist
from some_cards import evaluation_card, model_card

from reparam.cards.card import FileFacts
from reparam.commands import promote
from reparam.errors import UserError
from reparam.paths import Paths
from reparam.track import WEIGHTS_TAG

pytest_plugins = ["fixtures_export"]

Register = Callable[..., None]
NLL = np.array([20.0, 30.0, 10.0, 40.0])  # nats of four images, of the first model


@pytest.fixture(autouse=True)
def _export(paths: Paths, exported: Exported, tracker: InProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    """An export in the working copy."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", tracker.store.uri)  # MLflow sets it, and would leave it to other tests
    shutil.copytree(exported.directory, paths.onnx)


@pytest.fixture
def register(tracker: InProcess, paths: Paths) -> Register:
    """Log a training, its evaluation with these NLLs of images, and its export."""

    def register(nll: Any, images: str = "3" * 64) -> None:
        weights = sha256(str(nll).encode()).hexdigest()
        files = [paths.root / name for name in ("card.json", "scores.npz", "samples.png")]
        np.savez(files[1], nll=nll)
        files[2].write_bytes(PICTURE)
        facts = {file.name: FileFacts.of(file) for file in files[1:]}
        of_splits = dict.fromkeys(("train", "validation", "test"), images)
        evaluation_card(model_card(weights=weights), images_sha256=of_splits, files=facts).write(files[0])
        with tracker.training_run("data") as run:
            run.set_tags({WEIGHTS_TAG: weights})
        with tracker.child_run("evaluate", {"weights_sha256": weights}) as child:
            child.log_and_share({"nll": nll.mean(), "nll_se": nll.std(ddof=1) / np.sqrt(len(nll))}, "evaluation")
            child.log_files(files, "evaluation")
        change(paths, opset=len(tracker.rows()))  # another one each time
        with tracker.child_run("export", {"weights_sha256": weights}) as child:
            child.log_model(paths.onnx, "noise")

    return register


@pytest.fixture
def name(tracker: InProcess) -> str:
    return f"{tracker.experiment}-noise"


def change(paths: Paths, **facts: Any) -> None:
    """Change the manifest of the export."""
    path = paths.onnx / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | facts))


def champion(tracker: InProcess, name: str) -> str:
    return str(tracker.client.get_model_version_by_alias(name, "champion").version)


def test_the_newest_version_is_promoted_when_it_is_better_or_as_good(
    tracker: InProcess, register: Register, paths: Paths, name: str
) -> None:
    register(NLL)
    load = f"load it as models:/{name}@champion"
    assert promote.run(None, "nll", paths) == f"{name}: version 1 is the champion: the first champion; {load}"
    register(NLL - np.array([1.0, 1.1, 0.9, 1.0]))
    assert promote.run(None, "nll", paths) == (
        f"{name}: version 2 is the champion: nll -1.000 ± 0.041 against version 1, better; {load}"
    )
    register(NLL - np.array([1.0, 1.2, 0.8, 1.0]))
    assert promote.run(None, "nll", paths) == (
        f"{name}: version 3 is the champion: nll +0.000 ± 0.041 against version 2, within noise; {load}"
    )
    assert promote.run(None, "nll", paths) == f"{name}: version 3 is the champion already"
    assert champion(tracker, name) == "3"


def test_a_worse_version_is_refused_by_what_the_same_images_say(
    tracker: InProcess, register: Register, paths: Paths, name: str
) -> None:
    register(NLL)
    register(NLL + np.array([1.0, 1.1, 0.9, 1.0]))  # of independent images, the error would be 9 nats
    promote.run(1, "nll", paths)
    with pytest.raises(UserError) as caught:
        promote.run(2, "nll", paths)
    assert str(caught.value) == (
        "promote: wanted a nll no worse than the champion's, found nll +1.000 ± 0.041 against version 1, worse beyond "
        "noise; version 1 stays the champion"
    )
    assert champion(tracker, name) == "1"


def test_another_export_of_the_same_model_is_promoted(
    tracker: InProcess, register: Register, paths: Paths, name: str
) -> None:
    register(NLL)
    promote.run(1, "nll", paths)
    register(NLL)
    assert ": the same trained model as version 1; load it" in promote.run(2, "nll", paths)
    assert champion(tracker, name) == "2"


def test_versions_that_do_not_compare_are_refused(register: Register, paths: Paths) -> None:
    register(NLL)
    promote.run(None, "nll", paths)
    register(NLL - 1, images="4" * 64)
    for metric, reason in (("nll", "images_sha256 is 4444"), ("psnr", "")):
        with pytest.raises(
            UserError, match=f"wanted a verdict on {metric} of version 2 against 1, found none: .*{reason}"
        ):
            promote.run(None, metric, paths)


def test_a_metric_that_there_is_not_is_refused_also_where_it_would_not_be_read(
    register: Register, paths: Paths
) -> None:
    register(NLL)
    promote.run(None, "nll", paths)
    with pytest.raises(
        UserError, match=r"^--metric: wanted a metric, such as nll, found 'foo'; docs/reference/metrics"
    ):
        promote.run(None, "foo", paths)


def test_a_version_or_a_model_that_does_not_exist_is_refused(register: Register, paths: Paths, name: str) -> None:
    with pytest.raises(UserError, match="wanted a registered model of 'noise', found none; run `dvc repro`"):
        promote.run(None, "nll", paths)
    register(NLL)
    with pytest.raises(UserError, match=f"{name}: wanted one of its versions, 1, found 7"):
        promote.run(7, "nll", paths)


def stored(tracker: InProcess, name: str, version: int) -> Path:
    """The folder in which MLflow keeps the files of a version."""
    return Path(mlflow.artifacts.download_artifacts(f"models:/{name}/{version}"))


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("file", "message"),
    [
        ("decoder.onnx", "decoder.onnx: its SHA-256 is not that in manifest.json: damaged, changed, or of another"),
        ("golden.npz", "golden.npz: its SHA-256 is not that in manifest.json"),
        ("manifest.json", "wanted a manifest.json of SHA-256 [0-9a-f]{64}, found [0-9a-f]{64}"),
    ],
    ids=["graph", "answers", "manifest"],
)
def test_a_version_whose_files_are_not_those_of_its_export_is_refused(
    file: str, message: str, tracker: InProcess, register: Register, paths: Paths, name: str
) -> None:
    register(NLL)
    promote.run(1, "nll", paths)
    register(NLL - np.array([1.0, 1.1, 0.9, 1.0]))
    flip(stored(tracker, name, 2) / file)
    with pytest.raises(UserError, match=f"^promote: {re.escape(name)}, version 2: .*{message}"):
        promote.run(2, "nll", paths)
    assert champion(tracker, name) == "1"


GOOD = {"encoder_max_error": 1e-6, "decoder_max_error": 1e-6, "decoder_max_grey_levels": 0.0}


@pytest.mark.parametrize(
    ("parity", "message"),
    [
        ({}, "parity.encoder_max_error: wanted at most [^ ]+, found None"),
        ({**GOOD, "encoder_max_error": 0.1}, "parity.encoder_max_error: wanted at most [^ ]+, found 0.1"),
        ({**GOOD, "encoder_max_error": float("nan")}, "parity.encoder_max_error: wanted at most [^ ]+, found nan"),
        ({**GOOD, "decoder_max_error": "small"}, "parity.decoder_max_error: wanted at most 0.0001, found small"),
        ({**GOOD, "decoder_max_grey_levels": 2}, "parity.decoder_max_grey_levels: wanted at most 1, found 2"),
    ],
    ids=["none", "large", "nan", "text", "grey"],
)
def test_a_version_whose_export_recorded_no_parity_or_a_bad_one_is_refused(
    parity: dict[str, Any], message: str, tracker: InProcess, register: Register, paths: Paths, name: str
) -> None:
    intact = json.loads((paths.onnx / "manifest.json").read_text())["parity"]
    change(paths, parity=parity)
    register(NLL)
    change(paths, parity=intact)  # what is in the working copy is of another version
    with pytest.raises(
        UserError, match=f"^promote: {re.escape(name)}, version 1: .*manifest.json: {message}; run `dvc repro"
    ):
        promote.run(1, "nll", paths)
    assert "champion" not in tracker.client.get_registered_model(name).aliases


def test_a_version_that_computes_something_else_or_has_no_answers_is_refused(
    tracker: InProcess, register: Register, paths: Paths, name: str
) -> None:
    with np.load(paths.onnx / "golden.npz") as file:
        golden = dict(file)
    np.savez(paths.onnx / "golden.npz", **golden | {"mean": golden["mean"] + 1e-2})
    relist(paths.onnx)
    register(NLL)
    del golden["mean"]
    np.savez(paths.onnx / "golden.npz", **golden)
    relist(paths.onnx)
    register(NLL - 1)
    for version, message in enumerate(
        (
            "encoder, mean: wanted at most [^ ]+ from golden.npz, found 0.01",
            "encoder: not checked, golden.npz has no mean",
        ),
        1,
    ):
        with pytest.raises(UserError, match=f"^promote: {re.escape(name)}, version {version}: .*{message}"):
            promote.run(version, "nll", paths)
