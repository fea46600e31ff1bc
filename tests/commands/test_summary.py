import re
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import small_section
from some_cards import EVALUATED, PARITY, evaluation_card, evaluation_metrics, export_metrics, hash_of, model_card

from reparam.cards.card import CARD, FileFacts
from reparam.cards.model import ModelCard
from reparam.commands import summary
from reparam.errors import DamagedInputError, MissingInputError, StaleInputError, UserError
from reparam.paths import Paths

NATS = "nats per image"
GREY = {"bce": 17.25, "bce_se": 0.2, "kl": 8.0, "kl_se": 0.1, "active_units": 9, "images": 359}
CODE = {"reconstruction": 12.0, "reconstruction_se": 0.25, "active_units": 9, "images": 359}
DISCRETE = {**EVALUATED, "bits_per_dim": 1.23456, "bits_per_dim_se": 0.0123, "kl_layer_1": 5.126, "kl_layer_2": 3.0}


def write_evaluation(paths: Paths, values: dict[str, float] = EVALUATED, split: str = "test") -> None:
    evaluation_metrics(values=values).write(paths.evaluation_metrics)
    files = {"metrics.json": FileFacts.of(paths.evaluation_metrics)}
    evaluation_card(files=files, settings=small_section("evaluate", split=split)).write(paths.evaluation_card)


@pytest.fixture
def paths(tmp_path: Path) -> Paths:
    """Cards and metrics of a model that was evaluated and exported."""
    paths = Paths(tmp_path, tmp_path)
    model_card().write(paths.model / "card.json")
    write_evaluation(paths)
    export_metrics().write(paths.export_metrics)
    return paths


def rows(text: str) -> list[list[str]]:
    """Read the cells of the table below its head."""
    lines = [line for line in text.splitlines() if line.startswith("│")]
    return [[cell.strip() for cell in line.strip("│").split("│")] for line in lines]


def columns(text: str) -> list[str]:
    """Read the head of the table."""
    return [cell.strip() for cell in text.splitlines()[2].strip("┃").split("┃")]


def test_the_table_has_the_scores_of_both_splits_with_their_errors(
    paths: Paths, capsys: pytest.CaptureFixture[str]
) -> None:
    validated = {"elbo_validation": -19.0, "elbo_validation_se": 0.41, "kl_validation": 7.9, "kl_validation_se": 0.11}
    write_evaluation(paths, {**EVALUATED, **validated})
    summary.show(paths)
    text = capsys.readouterr().out
    assert text.splitlines()[0].strip() == "± one standard error"
    assert columns(text) == ["", "validation", "test", "unit"]
    assert rows(text) == [
        ["ELBO", "-19.00 ± 0.41", "-20.13 ± 0.30", NATS],
        ["Reconstruction", "", "12.00 ± 0.25", NATS],
        ["KL", "7.90 ± 0.11", "8.13 ± 0.10", NATS],
        ["NLL", "", "18.50 ± 0.20", NATS],
    ]


def test_where_validation_is_scored_it_has_one_column(paths: Paths, capsys: pytest.CaptureFixture[str]) -> None:
    write_evaluation(paths, {**EVALUATED, "elbo_validation": -20.126}, split="validation")
    export_metrics(values={**PARITY, "served_elbo_loss": 1.5}).write(paths.export_metrics)
    summary.show(paths)
    text = capsys.readouterr().out
    assert columns(text) == ["", "validation", "test", "unit"]
    first, *_, last = rows(text)
    assert (first, last) == (["ELBO", "-20.13 ± 0.30", "", NATS], ["Serving skew", "", "1.50", NATS])


def test_grey_pixels_have_a_cross_entropy_and_neither_elbo_nor_nll(
    paths: Paths, capsys: pytest.CaptureFixture[str]
) -> None:
    write_evaluation(paths, GREY)
    summary.show(paths)
    printed = capsys.readouterr().out
    assert rows(printed) == [["Cross-entropy", "17.25 ± 0.20", NATS], ["KL", "8.00 ± 0.10", NATS]]
    assert "sum           cross-entropy + KL 25.25 nats per image\n" in printed


def test_an_autoencoder_has_a_reconstruction_alone(paths: Paths, capsys: pytest.CaptureFixture[str]) -> None:
    write_evaluation(paths, CODE)
    summary.show(paths)
    assert rows(capsys.readouterr().out) == [["Reconstruction", "12.00 ± 0.25", NATS]]


def test_grey_values_have_bits_per_dimension(paths: Paths, capsys: pytest.CaptureFixture[str]) -> None:
    write_evaluation(paths, DISCRETE)
    summary.show(paths)
    assert rows(capsys.readouterr().out)[-1] == ["Bits per dimension", "1.235 ± 0.012", "bits"]


def test_generated_images_and_the_exported_model_have_a_line_each(
    paths: Paths, capsys: pytest.CaptureFixture[str]
) -> None:
    write_evaluation(paths, {**EVALUATED, "pca_frechet": 3.6543, "pca_frechet_se": 0.1234})
    lost = {**PARITY, "served_elbo_loss": 1.5, "served_elbo_loss_se": 0.025}
    export_metrics(values=lost).write(paths.export_metrics)
    summary.show(paths)
    assert rows(capsys.readouterr().out)[-2:] == [
        ["Fréchet distance", "3.65 ± 0.12", ""],
        ["Serving skew", "1.50 ± 0.03", NATS],
    ]


def test_the_summary_ends_with_parity_and_where_to_look_next(paths: Paths, capsys: pytest.CaptureFixture[str]) -> None:
    summary.show(paths)
    assert capsys.readouterr().out.splitlines()[-4:-1] == [
        "ONNX parity   largest difference from torch 3.4e-07",
        "report        reports/index.html",
        "experiments   mlflow ui --backend-store-uri sqlite:///mlflow.db",
    ]


def test_a_scratch_copy_names_the_database_of_the_real_repository(
    paths: Paths, capsys: pytest.CaptureFixture[str]
) -> None:
    shared = Path("/somewhere/else", "x" * 100)  # longer than a line
    summary.show(replace(paths, shared=shared))
    line = capsys.readouterr().out.splitlines()[-2]
    assert line == f"experiments   mlflow ui --backend-store-uri sqlite:///{shared}/mlflow.db"


@pytest.mark.parametrize("is_same", [True, False])
def test_the_summary_names_commit_and_versions_and_says_whether_this_code_trained_the_model(
    is_same: bool, paths: Paths, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for command in ("init", "add --all", "-c user.name=a -c user.email=a@b commit --message one"):
        subprocess.run(["git", *command.split()], cwd=paths.root, check=True, capture_output=True)
    describe = ["git", "rev-parse", "--short=7", "HEAD"]
    commit = subprocess.run(describe, cwd=paths.root, check=True, capture_output=True, text=True).stdout.strip()
    trained = ModelCard.read(paths.model / CARD, "train").lineage.code_sha256
    monkeypatch.setattr(summary, "source_hash", lambda _stage: trained if is_same else "0" * 64)
    monkeypatch.setattr(summary, "versions", lambda: {"python": "3.13.1", "torch": "2.0", "reparam": "1.2"})
    summary.show(paths)
    line = capsys.readouterr().out.splitlines()[-1]
    other = "" if is_same else "; the model was trained by other code"
    assert line == f"code          commit {commit}, reparam 1.2, torch 2.0, python 3.13.1{other}"


@pytest.mark.parametrize(("missing", "stage"), [("evaluation_metrics", "evaluate"), ("export_metrics", "export")])
def test_missing_metrics_name_the_stage_that_writes_them(missing: str, stage: str, paths: Paths) -> None:
    path: Path = getattr(paths, missing)
    path.unlink()
    with pytest.raises(MissingInputError, match=rf"^{re.escape(str(path))}: not found; run `dvc repro {stage}` first$"):
        summary.show(paths)


@pytest.mark.parametrize(
    ("stale", "stage"),
    [("evaluation_metrics", "evaluate"), ("evaluation_card", "evaluate"), ("export_metrics", "export")],
)
def test_numbers_of_another_model_are_withheld(stale: str, stage: str, paths: Paths) -> None:
    other = model_card(weights=hash_of("9"))
    results = {
        "evaluation_metrics": evaluation_metrics(other),
        "evaluation_card": evaluation_card(other),
        "export_metrics": export_metrics(other),
    }
    results[stale].write(getattr(paths, stale))
    with pytest.raises(StaleInputError) as caught:
        summary.show(paths)
    assert str(caught.value) == (
        f"{getattr(paths, stale)}: wanted results of the model in models/vae, weights {'d' * 12}, found those of "
        f"{'9' * 12}; run `dvc repro {stage}`"
    )


def test_numbers_that_were_edited_are_withheld(paths: Paths) -> None:
    evaluation_metrics(values={**EVALUATED, "elbo": -19.0}).write(paths.evaluation_metrics)
    with pytest.raises(
        DamagedInputError, match=r"metrics.json: wanted \d+ bytes of SHA-256 \w{12} \(as evaluate wrote it\), found "
    ):
        summary.show(paths)


def test_outside_a_project_the_summary_says_so(tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        summary.show(Paths(tmp_path, tmp_path))
    assert str(caught.value) == (
        f"{tmp_path}: wanted a project, found neither params.yaml nor dvc.yaml; change to the folder of one, or make "
        "one here with `reparam init`"
    )
    (tmp_path / "params.yaml").touch()
    with pytest.raises(MissingInputError, match=r"card.json: not found; run `dvc repro train` first$"):
        summary.show(Paths(tmp_path, tmp_path))
