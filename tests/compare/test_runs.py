import os
import socket
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from experiments import PICTURE
from some_cards import evaluation_card, hash_of

from reparam import track
from reparam.cards.card import FileFacts
from reparam.compare import runs
from reparam.compare.side_by_side import find
from reparam.errors import TrackingError, UserError
from reparam.paths import Paths


@pytest.fixture(scope="module")
def store_once(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str, str]:
    """A store with a run that was evaluated, and one that was interrupted; their ids."""
    root = tmp_path_factory.mktemp("store")
    (root / "samples.png").write_bytes(PICTURE)
    np.savez(root / "scores.npz", elbo=np.array([-21.0, -19.0]))
    facts = {name: FileFacts.of(root / name) for name in ("samples.png", "scores.npz")}
    evaluation_card(files=facts).write(root / "card.json")
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith(("DVC_", "MLFLOW_"))]:
            patch.delenv(name)
        patch.setenv("DVC_EXP_NAME", "bonny-bream")
        tracker = track.connect(Paths(root, root))
        with tracker.training_run("hash.dir") as run:
            run.log_params({"model.latent": 12, "model.mlp.hidden": [16, 8], "train.learning_rate": 1e-5})
            for epoch, loss in enumerate((30.0, 20.0), start=1):
                run.log_metrics({"train/loss": loss + 1, "validation/loss": loss, "images_per_second": 9.0}, epoch)
            run.log_metrics({"validation/elbo": -30.0}, 2)  # a curve, no result
            run.log_metrics({"best_epoch": 2, "best_validation_loss": 20.0})
            run.set_tags({track.WEIGHTS_TAG: hash_of("d")})
        with tracker.child_run("evaluate", {"weights_sha256": hash_of("d")}) as child:
            child.log_params({"evaluate.nll_samples": 100, "evaluate.split": "test", "evaluate.outliers": None})
            child.log_params({"evaluate.generated.images": 50})
            child.log_and_share({"elbo": -20.0, "elbo_se": 0.25, "images": 359}, "evaluation")
            child.log_metrics({"0": 1.0}, group="latent_kl")
            child.log_files([root / name for name in ("samples.png", "card.json", "scores.npz")], "evaluation")
        with suppress(KeyboardInterrupt), tracker.child_run("evaluate", {"weights_sha256": hash_of("d")}) as child:
            child.log_params({"evaluate.nll_samples": 7})
            raise KeyboardInterrupt
        with tracker.child_run("export", {"weights_sha256": hash_of("d")}) as child:
            child.log_and_share({"encoder_max_error": 1e-7}, "export")
        patch.setenv("DVC_EXP_NAME", "dull-dace")
        tracker = track.connect(Paths(root, root))
        with suppress(KeyboardInterrupt), tracker.training_run("hash.dir") as other:
            other.log_metrics({"train/loss": 40.0}, 1)
            raise KeyboardInterrupt
        with tracker.training_run("hash.dir"):
            pass
        patch.setenv("DVC_EXP_NAME", "odd-ox")
        tracker = track.connect(Paths(root, root))
        with tracker.training_run("hash.dir") as odd:
            odd.log_metrics({"best_epoch": 2, "encoder_max_error": 1e-7})
            odd.set_tags({track.WEIGHTS_TAG: hash_of("9")})
        with tracker.child_run("evaluate", {"weights_sha256": hash_of("9")}) as child:
            child.log_and_share({"elbo": -20.0, "elbo_se": 0.25}, "evaluation")
            child.log_files([root / name for name in ("samples.png", "card.json", "scores.npz")], "evaluation")
    return root, run.run_id, other.run_id


@pytest.fixture
def store(project: Paths, store_once: tuple[Path, str, str], monkeypatch: pytest.MonkeyPatch) -> tuple[Paths, str, str]:
    root, evaluated, interrupted = store_once
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    return Paths(project.root, root), evaluated, interrupted


def test_a_run_is_read_by_its_id_its_beginning_its_name_and_a_run_below_it(store: tuple[Paths, str, str]) -> None:
    paths, run, _ = store
    for name in (run, run[:6], "bonny-bream", "export"):
        found = find(name, paths)
        assert found.name == (run[:8] if run.startswith(name) else name)
        assert found.origin == f"MLflow run {run[:8]} (bonny-bream)"
        assert found.params == {
            "model.latent": 12,
            "model.mlp.hidden": [16, 8],
            "train.learning_rate": 1e-5,
            "evaluate.nll_samples": 100,
            "evaluate.split": "test",
            "evaluate.outliers": None,
            "evaluate.generated.images": 50,
        }
        assert found.metrics == {
            "best_epoch": 2,
            "best_validation_loss": 20.0,
            "elbo": -20.0,
            "elbo_se": 0.25,
            "images": 359,
            "encoder_max_error": 1e-7,
        }
        assert found.conditions == evaluation_card().conditions
        assert found.scores["elbo"].tolist() == [-21.0, -19.0]
        assert (found.loss_split, found.losses) == ("validation", {1: 30.0, 2: 20.0})
        assert (found.samples, found.notes) == (PICTURE, ())


def test_an_evaluation_of_other_weights_is_withheld(store: tuple[Paths, str, str]) -> None:
    paths, *_ = store
    found = find("odd-ox", paths)
    assert found.metrics == {"best_epoch": 2, "encoder_max_error": 1e-7}
    assert (found.conditions, dict(found.scores), found.samples) == ({}, {}, None)
    assert found.notes == (
        f"evaluate: withheld: wanted results of the trained model (weights {'9' * 12}), found those of another one "
        f"(weights {'d' * 12}); run `dvc repro` with its parameters",
    )


def test_an_unfinished_run_shows_what_there_is(store: tuple[Paths, str, str]) -> None:
    paths, _, run = store
    found = find(run, paths)
    assert (found.loss_split, found.losses, found.metrics, found.samples) == ("train", {1: 40.0}, {}, None)
    assert found.notes == (
        "the run is KILLED",
        "no evaluation was logged below this run: run `dvc repro` with its parameters",
        "not found: evaluation/card.json among its artifacts",
        "not found: evaluation/scores.npz among its artifacts",
        "not found: evaluation/samples.png among its artifacts",
    )


def test_a_name_of_several_runs_wants_an_id(store: tuple[Paths, str, str]) -> None:
    paths, _, run = store
    with pytest.raises(UserError, match=rf"^dull-dace: wanted one run of MLflow, found 2: .*{run}.*; give"):
        find("dull-dace", paths)


def test_a_store_without_the_run_says_so(store: tuple[Paths, str, str]) -> None:
    paths, _, _ = store
    for name in ("nonesuch", "0" * 32, "000000", "bonny-bream' OR ''='"):
        with pytest.raises(UserError, match="found none; `dvc exp show` lists experiments, `mlflow ui`"):
            find(name, paths)


@pytest.mark.parametrize("uri", ["", "sqlite:///{root}/other.db", "file://{root}/mlruns"])
def test_looking_for_a_run_makes_no_store(uri: str, project: Paths, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri.format(root=project.root))
    with pytest.raises(UserError, match=r"^nonesuch: wanted"):
        find("nonesuch", project)
    assert [path.name for path in project.root.iterdir()] == ["params.yaml"]


def test_a_server_that_cannot_be_reached_is_reported_at_once(project: Paths, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{port}")
    with pytest.raises(TrackingError, match=r"^nonesuch: no revision of git and no experiment of DVC; MLflow at http"):
        find("nonesuch", project)


def test_results_keep_the_order_of_the_store_without_curves() -> None:
    logged = {"evaluation/nll": 2.0, "validation/elbo": 9.0, "evaluation/elbo": 1.0, "export/served_elbo": 3.0}
    assert list(runs._results(logged, {"export/served_elbo"}).items()) == [("nll", 2.0), ("elbo", 1.0)]
