import errno
import gc
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from some_cards import PARITY, evaluation_card, evaluation_metrics, export_metrics

from reparam import cli, track
from reparam.cards.card import FileFacts
from reparam.cards.model import ModelCard
from reparam.commands import summary
from reparam.config import load_config
from reparam.download import stage as download
from reparam.evaluate import stage as evaluate
from reparam.export import stage as export
from reparam.lineage import package_hash
from reparam.machine.locks import held
from reparam.machine.threads import OthersCompute
from reparam.machine.versions import version
from reparam.paths import Paths
from reparam.preprocess import stage as preprocess
from reparam.report import stage as report
from reparam.train import stage as train

SOURCE = Path(__file__).parents[1] / "src"
STAGES = {
    "download": download,
    "preprocess": preprocess,
    "train": train,
    "evaluate": evaluate,
    "export": export,
    "report": report,
}
# Empty, and ignored by git and DVC; it stays, because another process may be waiting for it.
LOCK = "data/.downloads/digits.lock"
Write = Callable[[dict[str, Any]], None]
Command = Callable[..., tuple[int, str]]


def files(root: Path) -> dict[str, bytes]:
    """Every file and what it holds, but for locks."""
    locks = (".resume", ".locks")
    found = (path for path in root.rglob("*") if path.is_file() and path.relative_to(root).parts[0] not in locks)
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in found}


GRAPHS = {  # and how many tensors each takes and gives
    "encoder": {"input": 1, "output": 2},
    "decoder": {"input": 1, "output": 2},
    "score": {"input": 2, "output": 3},
}


def test_stages_leave_their_outputs_and_nothing_else(finished: Paths) -> None:
    found = {name for name in files(finished.root) if not name.endswith(".png")}
    assert found == {
        "params.yaml",
        LOCK,
        "data/raw/digits.csv.gz",
        "data/raw/manifest.json",
        "data/processed/card.json",
        *(
            f"data/processed/{split}-{kind}.npy"
            for split in ("train", "validation", "test")
            for kind in ("images", "labels")
        ),
        "models/vae/card.json",
        "models/vae/weights.safetensors",
        "models/onnx/encoder.onnx",
        "models/onnx/decoder.onnx",
        "models/onnx/golden.npz",
        "models/onnx/score.onnx",
        "models/onnx/README.md",
        *(f"models/onnx/tests/{graph}/data.json" for graph in GRAPHS),
        *(
            f"models/onnx/tests/{graph}/test_data_set_0/{kind}_{number}.pb"
            for graph, counts in GRAPHS.items()
            for kind, count in counts.items()
            for number in range(count)
        ),
        "models/onnx/manifest.json",
        "reports/data/metrics.json",
        "reports/training/history.csv",
        "reports/training/metrics.json",
        "reports/evaluation/card.json",
        "reports/evaluation/latents.csv",
        "reports/evaluation/scores.npz",
        "reports/evaluation/metrics.json",
        "reports/evaluation/headline.json",
        "reports/export/metrics.json",
        "reports/index.html",
    }


# ---- what goes well


def test_help_exits_with_0(reparam: Command) -> None:
    code, printed = reparam("--help")
    assert code == 0
    assert "params.yaml" in printed


def test_the_version_has_the_hash_of_the_source(reparam: Command) -> None:
    code, printed = reparam("--version")
    assert (code, printed) == (0, f"reparam {version()} (source {package_hash()[:12]})\n")
    assert re.fullmatch(r"reparam \d+\.\d+\.\d+ \(source [0-9a-f]{12}\)\n", printed)


def test_check_accepts_valid_parameters(project: Paths, reparam: Command) -> None:
    assert reparam("check") == (0, "params.yaml: valid\n")


def test_a_command_runs_its_stage_with_the_parameters_the_tracker_and_the_device(
    project: Paths, reparam: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[tuple[Any, ...]] = []
    monkeypatch.setattr(track, "connect", lambda paths: f"tracker of {paths.root}")
    for name, stage in STAGES.items():
        monkeypatch.setattr(
            stage, "run", lambda *given, name=name, **options: calls.append((name, *given, *options.items()))
        )
    config, tracker = load_config(project.params), f"tracker of {project.root}"
    for name in STAGES:
        assert reparam(name) == (0, "")
    assert reparam("train", "--device", "cpu") == (0, "")
    monkeypatch.setenv("REPARAM_DEVICE", "cuda")
    assert reparam("evaluate") == (0, "")
    assert calls == [
        ("download", config, project, tracker),
        ("preprocess", config, project, tracker),
        ("train", config, project, "auto", ("quiet", False), ("tracker", tracker)),
        ("evaluate", config, project, "auto", tracker),
        ("export", config, project, tracker),
        ("report", config, project, tracker),
        ("train", config, project, "cpu", ("quiet", False), ("tracker", tracker)),
        ("evaluate", config, project, "cuda", tracker),
    ]


def test_how_threads_wait_is_decided_before_the_recorder_starts_which_would_count_as_somebody_else(
    project: Paths, reparam: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []
    monkeypatch.setattr(cli, "choose_wait_policy", lambda *_, **__: order.append("policy"))
    monkeypatch.setattr(track, "connect", lambda *_: order.append("recorder"))
    monkeypatch.setattr(report, "run", lambda *_: order.append("stage"))
    assert reparam("report") == (0, "")
    assert order == ["policy", "recorder", "stage"]


def test_only_while_a_stage_is_imported_is_no_garbage_searched_for(
    project: Paths, reparam: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    found: list[tuple[str, bool]] = []
    monkeypatch.setattr(track, "connect", lambda *_: found.append(("imports", gc.isenabled())))
    monkeypatch.setattr(report, "run", lambda *_: found.append(("stage", gc.isenabled())))
    assert reparam("report") == (0, "")
    monkeypatch.setattr(summary, "show", lambda *_: found.append(("another command", gc.isenabled())))
    assert reparam("summary") == (0, "")
    project.params.unlink()
    assert reparam("report")[0] == 1
    assert found == [("imports", False), ("stage", True), ("another command", True)]
    assert gc.isenabled()


def test_summary_prints_the_headline_and_where_to_look_next(
    finished: Paths, reparam: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = ModelCard.read(finished.model / "card.json", "train")
    values = {"elbo": -25.125, "elbo_se": 0.25, "nll": 24.5, "nll_se": 0.125, "active_units": 3, "images": 359}
    evaluation_metrics(model, values).write(finished.evaluation_metrics)
    files = {"metrics.json": FileFacts.of(finished.evaluation_metrics)}
    evaluation_card(model, files=files).write(finished.evaluation_card)
    export_metrics(model, PARITY | {"decoder_max_error": 3e-7}).write(finished.export_metrics)
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    code, printed = reparam("summary")
    assert code == 0
    rows = [line.strip("│┃ ").replace("│", " ").split() for line in printed.splitlines()]
    assert ["ELBO", "-25.12", "±", "0.25", "nats", "per", "image"] in rows
    assert ["NLL", "24.50", "±", "0.12", "nats", "per", "image"] in rows
    assert not any(row[:1] == ["KL"] for row in rows)
    assert "largest difference from torch 3.0e-07\n" in printed
    assert "reports/index.html\n" in printed
    assert "mlflow ui --backend-store-uri sqlite:///mlflow.db\n" in printed


# ---- mistakes: one message, exit code 1, nothing half-written


@pytest.mark.parametrize("command", [*STAGES, "check"])
def test_bad_parameters_stop_every_command_with_one_message(
    command: str, project: Paths, params: dict[str, Any], write_params: Write, reparam: Command
) -> None:
    params["train"]["epochs"] = "many"
    del params["report"]["title"]
    write_params(params)
    before = files(project.root)
    assert reparam(command) == (
        1,
        f"error: {project.params}: 2 problems\n"
        "  train.epochs: wanted a whole number, found 'many'\n"
        "  report.title: missing; wanted null or text\n",
    )
    assert files(project.root) == before


def test_a_mistake_shows_no_traceback_in_a_real_process(project: Paths) -> None:
    project.params.write_text("")
    result = subprocess.run(
        [sys.executable, "-m", "reparam", "check"],
        env={**os.environ, "PYTHONPATH": str(SOURCE)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr == f"error: {project.params}: wanted sections of parameters, found None\n"


def test_a_command_whose_libraries_are_not_installed_says_what_to_install(
    project: Paths, reparam: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, "reparam.machine.locks")
    monkeypatch.setitem(sys.modules, "filelock", None)  # as if it were not there
    assert reparam("train") == (1, "error: train: needs filelock; run `pip install 'reparam[pipeline]'`\n")


def test_a_module_of_ours_that_is_missing_is_a_bug(
    project: Paths, reparam: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "reparam.download", None)
    with pytest.raises(ModuleNotFoundError, match="reparam"):
        reparam("download")


def test_a_bug_of_ours_keeps_its_traceback(project: Paths, reparam: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*given: Any) -> None:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(download, "run", fail)
    with pytest.raises(ZeroDivisionError, match="a bug"):
        reparam("download")


@pytest.mark.parametrize(
    ("command", "missing", "remedy"),
    [
        ("preprocess", "data/raw/manifest.json", "run `dvc repro download` first"),
        ("train", "data/processed/card.json", "run `dvc repro preprocess` first"),
        ("evaluate", "models/vae/card.json", "run `dvc repro train` first"),
        ("export", "models/vae/card.json", "run `dvc repro train` first"),
        ("report", "models/vae/card.json", "run `dvc repro train` first"),
        ("summary", "models/vae/card.json", "run `dvc repro train` first"),
    ],
)
def test_a_command_before_its_input_exists_names_the_stage_that_makes_it(
    command: str, missing: str, remedy: str, project: Paths, reparam: Command
) -> None:
    assert reparam(command) == (1, f"error: {project.root}/{missing}: not found; {remedy}\n")
    assert set(files(project.root)) == {"params.yaml"}


@pytest.mark.parametrize(
    ("command", "missing", "stage"),
    [
        ("evaluate", "data/processed", "preprocess"),
        ("evaluate", "models/vae/weights.safetensors", "train"),
        ("export", "data/processed", "preprocess"),
        ("report", "data/processed", "preprocess"),
        ("report", "models/onnx", "export"),
        ("report", "reports/training/history.csv", "train"),
        ("report", "reports/evaluation/figures", "evaluate"),
        ("report", "reports/evaluation/metrics.json", "evaluate"),
        ("report", "reports/evaluation/card.json", "evaluate"),
        ("report", "reports/export/metrics.json", "export"),
        ("summary", "reports/evaluation/metrics.json", "evaluate"),
        ("summary", "reports/export/metrics.json", "export"),
    ],
)
def test_every_single_input_is_missed_where_it_is_gone(
    command: str, missing: str, stage: str, finished: Paths, reparam: Command
) -> None:
    path = finished.root / missing
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    before = files(finished.root)
    code, printed = reparam(command)
    assert code == 1
    assert printed.startswith(f"error: {path}")
    assert printed.endswith(f": not found; run `dvc repro {stage}` first\n")
    assert printed.count("\n") == 1
    assert files(finished.root) == before


@pytest.mark.parametrize(
    ("command", "damaged", "stage"),
    [
        ("preprocess", "data/raw/manifest.json", "download"),
        ("preprocess", "data/raw/digits.csv.gz", "download"),
        ("train", "data/processed/card.json", "preprocess"),
        ("train", "data/processed/train-images.npy", "preprocess"),
        ("train", "data/processed/validation-images.npy", "preprocess"),
        ("evaluate", "data/processed/test-images.npy", "preprocess"),
        ("evaluate", "models/vae/card.json", "train"),
        ("evaluate", "models/vae/weights.safetensors", "train"),
        ("export", "models/vae/weights.safetensors", "train"),
        ("export", "data/processed/test-labels.npy", "preprocess"),
        ("report", "reports/evaluation/metrics.json", "evaluate"),
        ("report", "models/onnx/manifest.json", "export"),
        ("report", "reports/training/history.csv", "train"),
        ("summary", "reports/export/metrics.json", "export"),
    ],
)
def test_a_truncated_input_is_named_with_the_command_that_mends_it(
    command: str, damaged: str, stage: str, finished: Paths, reparam: Command
) -> None:
    path = finished.root / damaged
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    before = files(finished.root)
    code, printed = reparam(command)
    assert code == 1
    assert printed.startswith(f"error: {path}: ")
    assert printed.endswith(f"; run `dvc repro --force --single-item {stage}`\n")
    assert printed.count("\n") == 1
    assert files(finished.root) == before


def test_a_loss_that_is_no_number_names_epoch_step_and_what_to_lower(
    finished: Paths, params: dict[str, Any], write_params: Write, reparam: Command
) -> None:
    params["train"]["learning_rate"] = 1e9
    write_params(params)
    shutil.rmtree(finished.model)
    before = files(finished.root)
    assert reparam("train", "--device", "cpu") == (
        1,
        "error: train: the train loss is no longer finite at epoch 1, step 2 of 10 (loss nan, reconstruction nan, "
        "kl nan, elbo nan); lower train.learning_rate in params.yaml, or objective.beta if it is large, set "
        "train.clip_norm, or train.on_nonfinite to rollback\n",
    )
    assert files(finished.root) == before
    assert not finished.model.exists()


def test_a_gpu_that_is_not_there_is_refused_before_anything_runs(
    finished: Paths, reparam: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    before = files(finished.root)
    for command in ("train", "evaluate"):
        assert reparam(command, "--device", "cuda") == (
            1,
            "error: --device cuda: torch finds no CUDA GPU; use --device auto or cpu, or install a CUDA build of "
            "torch\n",
        )
    assert files(finished.root) == before


def test_replay_without_a_store_says_what_it_needs(project: Paths, reparam: Command) -> None:
    assert reparam("replay") == (1, "error: MLFLOW_TRACKING_URI is 'off'; name the store to deliver to\n")


# ---- what cannot be written


@pytest.mark.parametrize(
    ("command", "blocked", "reason"),
    [
        ("download", "data", ": Not a directory"),
        ("train", "models", ": File exists"),
        ("evaluate", "reports", ": Not a directory"),
        ("download", "data/raw", ": is a file, wanted a directory; move it away"),
    ],
)
def test_a_file_where_a_folder_should_be_is_named_and_left_alone(
    command: str, blocked: str, reason: str, finished: Paths, reparam: Command
) -> None:
    shutil.rmtree(finished.root / blocked)
    (finished.root / blocked).write_text("mine")
    before = files(finished.root)
    code, printed = reparam(command)
    assert code == 1
    last = printed.splitlines()[-1]
    assert last.startswith(f"error: {finished.root}/{blocked}")
    assert last.endswith(reason)
    assert files(finished.root) == before


@pytest.mark.parametrize("command", STAGES)
def test_without_the_permission_to_write_a_stage_leaves_everything_as_it_was(
    command: str, finished: Paths, reparam: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Raised where files take their names, because permissions do not bind the superuser, who may run this test.
    def deny(source: Path, target: Path) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(source), None, str(target))

    monkeypatch.setattr(os, "rename", deny)
    monkeypatch.setattr(os, "replace", deny)
    before = files(finished.root)
    code, printed = reparam(command)
    assert code == 1
    last = printed.splitlines()[-1]
    assert last.startswith(f"error: {finished.root}/")
    assert last.endswith(": Permission denied")
    assert files(finished.root) == before


def test_a_full_disk_is_one_message_too(project: Paths, reparam: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", fail)
    assert reparam("download") == (1, f"error: {project.raw}: No space left on device\n")
    assert set(files(project.root)) == {"params.yaml", LOCK}


def test_an_interrupted_training_leaves_everything_as_it_was(
    finished: Paths, reparam: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*given: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(train, "train", interrupt)
    before = files(finished.root)
    assert reparam("train")[0] == 130  # 128 + SIGINT, as shells have it
    assert files(finished.root) == before


def test_a_request_to_end_ends_the_stage_with_the_conventional_code_and_no_half_written_model(
    finished: Paths, params: dict[str, Any], write_params: Write
) -> None:
    shutil.rmtree(finished.model)
    params["train"].update(epochs=100_000, patience=100_000)
    write_params(params)
    stage = subprocess.Popen(
        [sys.executable, "-m", "reparam", "train"],
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(Path(cli.__file__).parents[1])},
    )
    assert stage.stderr is not None
    assert "epoch 1/100000" in stage.stderr.readline()  # training has begun
    stage.terminate()
    stage.communicate(timeout=60)
    assert stage.returncode == 143
    assert not finished.model.exists()
    assert list(finished.model.parent.glob(".partial-*")) == []


@pytest.mark.parametrize("seconds", [0.3, 0.6, 1.0])
def test_ctrl_c_ends_a_stage_that_is_still_starting(seconds: float, finished: Paths) -> None:
    stage = subprocess.Popen(
        [sys.executable, "-m", "reparam", "train"],
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(SOURCE)},
    )
    time.sleep(seconds)
    stage.send_signal(signal.SIGINT)
    _, said = stage.communicate(timeout=60)
    # On a slow machine Python itself may be starting still, and has a traceback of its own.
    assert stage.returncode in (-signal.SIGINT, 130) or "Fatal Python error" in said
    assert "src/reparam/" not in said


def test_two_processes_do_not_run_a_stage_in_one_working_copy(finished: Paths, reparam: Command) -> None:
    with held(finished.locks, "preprocess"):
        code, printed = reparam("preprocess")
        assert (code, printed.split(",")[0]) == (
            1,
            "error: preprocess: wanted to be the only one that runs this stage in this working copy",
        )
        assert reparam("download")[0] == 0


def test_a_training_beside_others_goes_on_in_a_process_whose_threads_sleep(
    finished: Paths, reparam: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    def end(*_: Any, **__: Any) -> None:
        raise OthersCompute

    def start(program: str, arguments: list[str]) -> None:
        assert (program, arguments[1:]) == (sys.executable, ["-m", "reparam", "train", "--quiet"])
        assert os.environ["OMP_WAIT_POLICY"] == "PASSIVE"
        with held(finished.locks, "train"):  # which the process in its place takes
            sys.exit(7)

    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    monkeypatch.setattr(train, "run", end)
    monkeypatch.setattr(os, "execv", start)
    assert reparam("train", "--quiet") == (7, "")


# ---- parameters and recipes


def test_params_explains_the_parameters_of_the_working_copy(project: Paths, reparam: Command) -> None:
    assert reparam("params", "train.epochs") == (
        0,
        "train.epochs: 2 (default: 35)\n    a whole number (above 0)\n    Epochs, at most.\n"
        "    After a change, `dvc repro` runs train and what depends on it.\n",
    )
    code, printed = reparam("params")
    assert code == 0
    assert "model.mlp.hidden: [16] (default: [256, 256])\n" in printed
    assert reparam("params", "train.epoch") == (
        1,
        "error: params.yaml: train.epoch: no such parameter; did you mean 'train.epochs'?\n",
    )


@pytest.fixture
def recipes(project: Paths) -> Path:
    """The recipes, in the working copy."""
    shutil.copytree(SOURCE.parent / "recipes", project.recipes, ignore=shutil.ignore_patterns("results", "figures"))
    return project.recipes


def test_recipe_lists_every_recipe_with_where_it_is_from(recipes: Path, reparam: Command) -> None:
    code, printed = reparam("recipe")
    lines = printed.splitlines()
    assert (code, len(lines)) == (0, 27)
    assert "kingma-mlp        Kingma & Welling 2014, Auto-Encoding Variational Bayes" in printed
    assert max(map(len, lines)) <= 120


def test_recipe_writes_params_yaml_and_keeps_the_one_that_was_there(
    recipes: Path, project: Paths, reparam: Command
) -> None:
    before = project.params.read_bytes()
    assert reparam("recipe", "kingma-mlp") == (0, "params.yaml: written\nparams.yaml.bak: the file that was there\n")
    assert (project.root / "params.yaml.bak").read_bytes() == before
    assert load_config(project.params).report.title == "kingma-mlp"
    assert reparam("recipe", "kingma-mlp", "--output", "other.yaml") == (0, "other.yaml: written\n")
    assert (project.root / "other.yaml").read_bytes() == project.params.read_bytes()


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("kingma", "did you mean 'kingma-mlp'?"),
        ("base", "`reparam recipe` lists all"),
        ("xyz", "`reparam recipe` lists all"),
    ],
)
def test_a_recipe_that_there_is_not_has_a_hint(
    name: str, hint: str, recipes: Path, project: Paths, reparam: Command
) -> None:
    before = project.params.read_bytes()
    assert reparam("recipe", name) == (1, f"error: {name}: no recipe in {recipes}; {hint}\n")
    assert project.params.read_bytes() == before


def test_without_recipes_of_its_own_a_project_has_those_of_the_package(project: Paths, reparam: Command) -> None:
    assert not project.recipes.exists()
    assert len(reparam("recipe")[1].splitlines()) == 27
    assert reparam("recipe", "smoke")[0] == 0
    assert load_config(project.params).report.title == "smoke"
