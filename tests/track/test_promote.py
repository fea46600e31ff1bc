"""Champions among registered models: better, as good, worse, and not comparable."""

from collections.abc import Callable
from hashlib import sha256
from typing import Any

import numpy as np
import onnx
import pytest
from experiments import PICTURE
from in_process import InProcess
from some_cards import evaluation_card, export_card, model_card

from reparam.cards.card import FileFacts
from reparam.commands import promote
from reparam.errors import UserError
from reparam.paths import Paths
from reparam.track import WEIGHTS_TAG

Register = Callable[..., None]
NLL = np.array([20.0, 30.0, 10.0, 40.0])  # nats of four images, of the first model


@pytest.fixture(autouse=True)
def _export(paths: Paths, tracker: InProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    """An export in the working copy."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", tracker.store.uri)  # MLflow sets it, and would leave it to other tests
    paths.onnx.mkdir(parents=True)
    x, y = (onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["batch", 1]) for name in "xy")
    graph = onnx.helper.make_graph([onnx.helper.make_node("Identity", ["x"], ["y"])], "same", [x], [y])
    onnx.save(onnx.helper.make_model(graph), paths.onnx / "encoder.onnx")
    export_card().write(paths.onnx / "manifest.json")


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
        export_card(latent_size=len(tracker.rows())).write(paths.onnx / "manifest.json")  # another one each time
        with tracker.child_run("export", {"weights_sha256": weights}) as child:
            child.log_model(paths.onnx, "digits")

    return register


@pytest.fixture
def name(tracker: InProcess) -> str:
    return f"{tracker.experiment}-digits"


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


def test_versions_that_do_not_compare_are_refused(register: Register, paths: Paths) -> None:
    register(NLL)
    promote.run(None, "nll", paths)
    register(NLL - 1, images="4" * 64)
    for metric, reason in (("nll", "images_sha256 is 4444"), ("beauty", "")):
        with pytest.raises(
            UserError, match=f"wanted a verdict on {metric} of version 2 against 1, found none: .*{reason}"
        ):
            promote.run(None, metric, paths)


def test_a_version_or_a_model_that_does_not_exist_is_refused(register: Register, paths: Paths, name: str) -> None:
    with pytest.raises(UserError, match="wanted a registered model of 'digits', found none; run `dvc repro`"):
        promote.run(None, "nll", paths)
    register(NLL)
    with pytest.raises(UserError, match=f"{name}: wanted one of its versions, 1, found 7"):
        promote.run(7, "nll", paths)
