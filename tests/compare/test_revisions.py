import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from experiments import CONDITIONS, PICTURE, numbers, type_in, write_results
from ruamel.yaml import YAML
from some_cards import PARITY, evaluation_card, evaluation_metrics, hash_of, model_card, training_metrics

from reparam.compare.side_by_side import find
from reparam.config import flatten, load_config
from reparam.errors import UserError
from reparam.paths import Paths

WITHHELD = (
    "reports/evaluation/card.json",
    "reports/evaluation/metrics.json",
    "reports/export/metrics.json",
    "models/onnx/manifest.json",
)


def test_the_working_copy_is_read_as_it_lies_there(project: Paths, params: dict[str, Any]) -> None:
    write_results(project, params, -20.0)
    found = find("workspace", project)
    assert found.params == flatten(params)
    assert found.params["model.latent"] == 3
    assert found.metrics == {"best_epoch": 80, "epochs": 120, **numbers(-20.0), **PARITY}
    assert found.conditions == CONDITIONS
    assert (found.loss_split, found.losses) == ("validation", {1: 30.0, 2: 20.0})
    assert (found.samples, found.notes) == (PICTURE + b"-20.0", ())
    assert found.scores["elbo"].tolist() == [-19.0, -20.0, -21.0]


@pytest.mark.parametrize("has_metrics", [True, False])
def test_what_was_measured_of_another_model_is_withheld(
    has_metrics: bool, project: Paths, params: dict[str, Any]
) -> None:
    # As `dvc exp run --temp -S train.epochs=2 train` leaves it: a new model, and the evaluation of the one before.
    before = write_results(project, params, -20.0)
    after = model_card(weights=hash_of("9"))
    after.write(project.model / "card.json")
    if has_metrics:
        training_metrics(after, project.history.read_bytes(), best_epoch=2, epochs=2).write(project.training_metrics)
    found = find("workspace", project)
    assert found.metrics == ({"best_epoch": 2, "epochs": 2} if has_metrics else {})
    assert (found.conditions, dict(found.scores), found.samples) == ({}, {}, None)
    assert found.losses == ({1: 30.0, 2: 20.0} if has_metrics else {})
    assert found.notes == tuple(
        f"{name}: withheld: wanted results of the trained model (weights {'9' * 12}), found those of "
        f"another one (weights {before.weights}); run `dvc repro`"
        for name in (*([] if has_metrics else ["reports/training/metrics.json"]), *WITHHELD)
    )


def test_without_a_model_results_are_those_of_one(project: Paths, params: dict[str, Any]) -> None:
    write_results(project, params, -20.0)
    (project.model / "card.json").unlink()
    project.training_metrics.unlink()
    evaluation_metrics(model_card(weights=hash_of("9"))).write(project.evaluation_metrics)
    found = find("workspace", project)
    assert "elbo" not in found.metrics
    assert found.notes[0].startswith("reports/evaluation/metrics.json: damaged: wanted 106 bytes of SHA-256 ")


def test_without_validation_the_curve_is_that_of_training(project: Paths, params: dict[str, Any]) -> None:
    model = write_results(project, params, -20.0)
    table = b"epoch,train_loss\n1,31\n2,27\n"
    project.history.write_bytes(table)
    training_metrics(model, table).write(project.training_metrics)
    found = find("workspace", project)
    assert (found.loss_split, found.losses) == ("train", {1: 31.0, 2: 27.0})


def test_parameters_that_were_changed_after_training_are_named(
    project: Paths, params: dict[str, Any], write_params: Callable[[dict[str, Any]], None]
) -> None:
    write_results(project, params, -20.0)
    params["model"]["latent"] = 7
    write_params(params)
    (note,) = find("workspace", project).notes
    assert note == (
        "params.yaml was changed after training: the parameters are not those of the results; run `dvc repro`"
    )


@pytest.mark.parametrize(
    ("section", "changes", "what"),
    [
        ("evaluate", {"elbo_samples": 3}, "evaluation"),
        ("export", {"grey_pixels": "threshold"}, "export"),
        ("export", {"opset": 21}, "export"),
        ("export", {"triton": True}, "export"),
        ("export", {"variants": ["int8"]}, "export"),
        ("report", {"title": "Another title"}, ""),
    ],
)
def test_parameters_that_were_changed_after_a_later_stage_are_named(
    section: str,
    changes: dict[str, Any],
    what: str,
    project: Paths,
    params: dict[str, Any],
    write_params: Callable[[dict[str, Any]], None],
) -> None:
    write_results(project, params, -20.0)
    params[section] |= changes
    write_params(params)
    found = find("workspace", project)
    text = f"params.yaml was changed after {what}: the parameters are not those of the results; run `dvc repro`"
    assert found.notes == ((text,) if what else ())
    assert found.conditions == CONDITIONS  # those of the evaluation that is there


def test_all_that_was_done_before_parameters_changed_is_named_at_once(
    project: Paths, params: dict[str, Any], write_params: Callable[[dict[str, Any]], None]
) -> None:
    write_results(project, params, -20.0)
    params["train"]["epochs"] = 7
    params["evaluate"]["seed"] = 7
    write_params(params)
    (note,) = find("workspace", project).notes
    assert note.startswith("params.yaml was changed after training and evaluation: ")


@pytest.mark.parametrize(
    "content", ["", "{", "[]", "epoch\n1\n", "epoch,validation_loss\n1,many\n", "epoch,train_loss\n1e999,1\n"]
)
def test_damaged_files_are_named_and_the_rest_is_read(content: str, project: Paths, params: dict[str, Any]) -> None:
    model = write_results(project, params, -20.0)
    project.history.write_text(content)
    training_metrics(model, content.encode()).write(project.training_metrics)  # so that the table itself is read
    project.evaluation_card.write_text("{")
    found = find("workspace", project)
    card, history = found.notes
    assert card.startswith("reports/evaluation/card.json: damaged: not valid JSON (")
    assert history.startswith("reports/training/history.csv: damaged: ")
    assert {note.endswith("; run `dvc repro`") for note in found.notes} == {True}
    assert found.metrics["elbo"] == -20.0
    assert (found.conditions, found.samples) == ({}, None)


def test_the_curve_of_another_training_is_not_shown(project: Paths, params: dict[str, Any]) -> None:
    write_results(project, params, -20.0)
    project.history.write_text("epoch,train_loss\n1,31\n")
    found = find("workspace", project)
    (note,) = found.notes
    assert note.startswith("reports/training/history.csv: damaged: wanted the epochs of this training, SHA-256 ")
    assert (found.losses, found.metrics["elbo"]) == ({}, -20.0)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"\x93NUMPY", b"no archive"])
def test_damaged_scores_are_named_and_nothing_is_paired(content: bytes, project: Paths, params: dict[str, Any]) -> None:
    write_results(project, params, -20.0)
    project.scores.write_bytes(content)
    found = find("workspace", project)
    assert dict(found.scores) == {}
    assert found.notes[0].startswith("reports/evaluation/scores.npz: damaged: wanted ")


def test_files_of_another_evaluation_are_not_shown(project: Paths, params: dict[str, Any]) -> None:
    write_results(project, params, -20.0)
    np.savez(project.scores, elbo=-20.0 * np.array([0.9, 1.0, 1.1]))  # of the same mean
    (project.figures / "samples.png").write_bytes(PICTURE + b"of another model")
    evaluation_metrics(model_card(weights=hash_of("4")), numbers(-19.0)).write(project.evaluation_metrics)
    found = find("workspace", project)
    assert ("elbo" in found.metrics, dict(found.scores), found.samples) == (False, {}, None)
    names = ("metrics.json", "figures/samples.png", "scores.npz")
    assert [note.partition(":")[0] for note in found.notes] == [f"reports/evaluation/{name}" for name in names]
    for note in found.notes:
        wanted = r"[\d,]+ bytes of SHA-256 \w{12}"
        assert re.search(
            rf": damaged: wanted {wanted} \(as evaluate wrote it\), found {wanted}; run `dvc repro`$", note
        )


def test_an_empty_working_copy_holds_no_experiment(project: Paths) -> None:
    project.params.unlink()
    with pytest.raises(UserError) as caught:
        find("workspace", project)
    assert str(caught.value) == (
        "workspace (working copy): wanted an experiment, found none of its files; run `dvc repro`"
    )


def test_revisions_and_experiments_are_read_through_the_cache_of_dvc(repository: Paths) -> None:
    commit = type_in(repository.root, "git", "rev-parse", "HEAD")
    for name in ("main", commit, commit[:7], "HEAD"):
        found = find(name, repository)
        assert found.name == (commit[:7] if commit.startswith(name) else name)
        assert found.origin == f"revision {commit[:7]}"
        assert found.params["model.latent"] == 8  # as shipped
        assert (found.metrics["elbo"], found.samples) == (-20.0, PICTURE + b"-20.0")
        as_shipped = evaluation_card(settings=load_config(repository.params).evaluate).conditions
        assert found.conditions == as_shipped | {"nll_samples": 100}
        assert (found.losses, found.notes) == ({1: 30.0, 2: 20.0}, ())
    wide = find("wide", repository)
    assert (wide.params["model.latent"], wide.metrics["elbo"], wide.losses[2]) == (20, -18.0, 18.0)
    assert wide.conditions["nll_samples"] == 5


def test_a_revision_that_was_never_run_has_parameters_alone_and_says_what_to_do(repository: Paths) -> None:
    found = find("HEAD~1", repository)
    assert found.params["model.latent"] == 8  # as shipped
    assert (found.metrics, found.losses, found.samples) == ({}, {}, None)
    assert found.notes == (
        "not here: models/vae/card.json and 7 other files; it was not run at this revision; run `dvc exp run`, and "
        "compare that experiment",
    )


UNSENT = (
    "no remote was named when it was made, so they were not pushed: run it once more, where they are, from a commit "
    "that names one, and push that"
)
UNREACHED = (
    "they were not pushed, or the remote does not answer: `dvc exp push origin wide` (of a commit `dvc push`) sends "
    "them from where they are"
)
AGAIN = "`dvc exp apply wide` (of a commit `git checkout wide`) and `dvc repro` make it again"


@pytest.mark.parametrize(("remote", "why"), [("", UNSENT), ("store", UNREACHED)])
def test_what_the_cache_does_not_have_is_counted_and_the_cause_is_named(
    remote: str, why: str, repository: Paths, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    root = tmp_path / "elsewhere"
    shutil.copytree(repository.root, root, ignore=shutil.ignore_patterns("cache"))
    local = root / ".dvc/config.local"
    if remote:
        local.write_text(f"[core]\n    remote = store\n['remote \"store\"']\n    url = {tmp_path / 'empty'}\n")
    monkeypatch.chdir(root)
    found = find("wide", Paths.here())
    assert (found.metrics["elbo"], found.losses, found.conditions) == (-18.0, {}, {})
    assert found.notes == (f"not here: reports/evaluation/card.json and 4 other files; {why}; {AGAIN}",)


@pytest.mark.parametrize("evaluated", [True, False])
def test_stages_after_a_training_that_did_not_run_are_named_and_their_old_results_are_not_read(
    evaluated: bool, repository: Paths, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "elsewhere"
    shutil.copytree(repository.root, root)
    type_in(root, "git", "checkout", "--quiet", "--force", "main")
    yaml = YAML()
    lock = yaml.load(root / "dvc.lock")
    lock["stages"]["train"] = {"cmd": "train", "outs": [{"path": "models/vae", "md5": "this model", "hash": "md5"}]}
    for stage in ("evaluate", "export") if evaluated else ():
        other = {"path": "models/vae", "md5": "the model before", "hash": "md5"}
        lock["stages"][stage] = {"cmd": stage, "deps": [other]}
    yaml.dump(lock, root / "dvc.lock")
    type_in(root, "git", "commit", "--quiet", "--all", "--message", "trained")
    monkeypatch.chdir(root)
    found = find("HEAD", Paths.here())
    assert found.params["model.latent"] == 8  # as shipped
    assert found.losses == {1: 30.0, 2: 20.0}
    assert set(found.metrics) == {"best_epoch", "epochs"}  # of the training
    assert found.notes == ("evaluate and export did not run in it; " + AGAIN.replace("wide", "HEAD"),)


def test_an_unknown_name_says_what_was_wanted_and_what_lists_it(repository: Paths) -> None:
    for name in ("nonesuch", "abc123", "it's", "a b", "main:params.yaml"):
        with pytest.raises(UserError) as caught:
            find(name, repository)
        assert str(caught.value) == (
            f"{name}: wanted `workspace`, a revision of git, an experiment of DVC, or a run of MLflow (an id, 6 or "
            "more digits of it, or a name), found none; `dvc exp show` lists experiments, `mlflow ui` (with "
            "--backend-store-uri as `reparam summary` prints it) lists runs"
        )
    with pytest.raises(UserError, match="found an empty name"):
        find("", repository)


def test_where_there_is_no_repository_a_name_is_unknown(project: Paths) -> None:
    with pytest.raises(UserError, match=r"^main: wanted `workspace`, a revision of git"):
        find("main", project)
