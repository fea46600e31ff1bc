import re
from dataclasses import replace
from pathlib import Path

import pytest

from reparam import summary
from reparam.errors import MissingInputError
from reparam.files import write_json
from reparam.paths import Paths

DENSITY = {
    "elbo": -20.126,
    "elbo_se": 0.301,
    "reconstruction": 12.0,
    "reconstruction_se": 0.25,
    "kl": 8.126,
    "kl_se": 0.1,
    "nll": 18.5,
    "nll_se": 0.2,
    "active_units": 9,
    "images": 359,
}
GREY = {"bce": 17.25, "bce_se": 0.2, "kl": 8.0, "kl_se": 0.1, "active_units": 9, "images": 359}
CODE = {"reconstruction": 12.0, "reconstruction_se": 0.25, "active_units": 9, "images": 359}
DISCRETE = {**DENSITY, "bits_per_dim": 1.23456, "bits_per_dim_se": 0.0123, "kl_layer_1": 5.126, "kl_layer_2": 3.0}
PARITY = {"encoder_max_error": 1e-7, "decoder_max_error": 3.4e-7, "decoder_max_grey_levels": 0.0}


@pytest.fixture
def paths(tmp_path: Path) -> Paths:
    """Metrics of an evaluated and exported model."""
    paths = Paths(tmp_path, tmp_path)
    write_json(paths.evaluation_metrics, DENSITY)
    write_json(paths.evaluation_card, {"split": "validation"})
    write_json(paths.export_metrics, PARITY)
    return paths


def rows(text: str) -> list[list[str]]:
    """Read the cells of the table below its head."""
    lines = [line for line in text.splitlines() if line.startswith("│")]
    return [[cell.strip() for cell in line.strip("│").split("│")] for line in lines]


def test_the_table_names_the_split(paths: Paths, capsys: pytest.CaptureFixture[str]) -> None:
    summary.show(paths)
    assert capsys.readouterr().out.startswith("Validation split")


def test_the_table_holds_means_and_standard_errors(paths: Paths, capsys: pytest.CaptureFixture[str]) -> None:
    summary.show(paths)
    assert rows(capsys.readouterr().out) == [
        ["ELBO", "-20.13", "0.30"],
        ["reconstruction", "12.00", "0.25"],
        ["KL", "8.13", "0.10"],
        ["NLL", "18.50", "0.20"],
    ]


def test_grey_pixels_have_a_cross_entropy_and_neither_elbo_nor_nll(
    paths: Paths, capsys: pytest.CaptureFixture[str]
) -> None:
    write_json(paths.evaluation_metrics, GREY)
    summary.show(paths)
    assert rows(capsys.readouterr().out) == [["cross-entropy", "17.25", "0.20"], ["KL", "8.00", "0.10"]]


def test_an_autoencoder_has_a_reconstruction_alone(paths: Paths, capsys: pytest.CaptureFixture[str]) -> None:
    write_json(paths.evaluation_metrics, CODE)
    summary.show(paths)
    assert rows(capsys.readouterr().out) == [["reconstruction", "12.00", "0.25"]]


def test_grey_values_have_bits_per_dimension(paths: Paths, capsys: pytest.CaptureFixture[str]) -> None:
    write_json(paths.evaluation_metrics, DISCRETE)
    summary.show(paths)
    assert rows(capsys.readouterr().out)[-2:] == [["NLL", "18.50", "0.20"], ["bits per dimension", "1.23", "0.01"]]


def test_the_summary_ends_with_parity_and_where_to_look_next(paths: Paths, capsys: pytest.CaptureFixture[str]) -> None:
    summary.show(paths)
    assert capsys.readouterr().out.splitlines()[-3:] == [
        "ONNX parity   largest difference from torch 3.4e-07",
        "report        reports/index.html",
        "experiments   mlflow ui --backend-store-uri sqlite:///mlflow.db",
    ]


def test_a_scratch_copy_names_the_database_of_the_real_repository(
    paths: Paths, capsys: pytest.CaptureFixture[str]
) -> None:
    shared = Path("/somewhere/else", "x" * 100)  # longer than a line
    summary.show(replace(paths, shared=shared))
    last = capsys.readouterr().out.splitlines()[-1]
    assert last == f"experiments   mlflow ui --backend-store-uri sqlite:///{shared}/mlflow.db"


@pytest.mark.parametrize(("missing", "stage"), [("evaluation_metrics", "evaluate"), ("export_metrics", "export")])
def test_missing_metrics_name_the_stage_that_writes_them(missing: str, stage: str, paths: Paths) -> None:
    path: Path = getattr(paths, missing)
    path.unlink()
    with pytest.raises(MissingInputError, match=rf"^{re.escape(str(path))}: not found; run `dvc repro {stage}` first$"):
        summary.show(paths)
