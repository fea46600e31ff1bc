"""Inputs of stages that nobody wrote so: each stage ends well or in one message, whatever it finds."""

import hashlib
import io
import json
import random
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save
from some_cards import resealed

from reparam import cli
from reparam.paths import Paths

Damage = Callable[[Paths, random.Random], str]
COMMANDS = (
    *("preprocess", "train", "evaluate", "export", "report", "summary"),
    *("compare workspace workspace", "model verify", "model info"),
)
VALUES = [
    None,
    True,
    -1,
    0,
    1,
    2**31,
    2**63,
    10**30,
    1e308,
    -0.5,
    "",
    "x",
    "0" * 64,
    "é" * 300,
    [],
    [1, -1],
    {},
    {"a": 1},
]
NUMBERS = [np.nan, np.inf, -np.inf, 0.0, -1.0, 1e30, -3e38]
CARDS = (
    "data/raw/manifest.json",
    "data/processed/card.json",
    "models/vae/card.json",
    "models/onnx/manifest.json",
    "reports/evaluation/card.json",
    "reports/evaluation/metrics.json",
    "reports/export/metrics.json",
    "reports/training/metrics.json",
)
BINARIES = (
    "data/raw/digits.csv.gz",
    "data/processed/train-images.npy",
    "data/processed/test-labels.npy",
    "models/vae/weights.safetensors",
    "models/onnx/encoder.onnx",
    "models/onnx/golden.npz",
    "reports/evaluation/scores.npz",
    "reports/training/history.csv",
    "reports/evaluation/figures/samples.png",
)


def leaves(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every place in a JSON value, those of groups included."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(place for key, part in items for place in leaves(part, (*path, key)))]


def put(value: Any, path: tuple[Any, ...], new: Any) -> Any:
    if not path:
        return new
    key, *rest = path
    copy = dict(value) if isinstance(value, dict) else list(value)
    copy[key] = put(copy[key], tuple(rest), new)
    return copy


def change_a_field(paths: Paths, chance: random.Random) -> str:
    name = chance.choice(CARDS)
    card = json.loads((paths.root / name).read_text())
    place, value = chance.choice(leaves(card)), chance.choice(VALUES)
    changed = put(card, place, value)
    (paths.root / name).write_text(json.dumps(resealed(changed) if chance.random() < 0.8 else changed))
    return f"{name}: {place} = {str(value)[:30]!r}"


def cut_or_flip(paths: Paths, chance: random.Random) -> str:
    name = chance.choice(CARDS + BINARIES)
    content = bytearray((paths.root / name).read_bytes())
    place = chance.randrange(len(content))
    if chance.random() < 0.5:
        del content[place:]
    else:
        content[place] ^= 1 << chance.randrange(8)
    (paths.root / name).write_bytes(content)
    return f"{name}: {place}"


def change_weights(paths: Paths, chance: random.Random) -> str:
    """Other weights, whose checksum is corrected."""
    path = paths.model / "weights.safetensors"
    weights = load_file(path)
    name = chance.choice(sorted(weights))
    how = chance.choice(["shape", "type", "number", "gone", "more"])
    if how == "shape":
        weights[name] = torch.zeros(3, 3)
    elif how == "type":
        weights[name] = weights[name].to(chance.choice([torch.float64, torch.int32, torch.bfloat16]))
    elif how == "number":
        weights[name].view(-1)[0] = chance.choice(NUMBERS)
    elif how == "gone":
        del weights[name]
    else:
        weights["another"] = torch.zeros(2)
    path.write_bytes(save(weights))
    digest, card = hashlib.sha256(path.read_bytes()).hexdigest(), paths.model / "card.json"
    found = json.loads(card.read_text())
    card.write_text(json.dumps(resealed(put(found, ("lineage", "weights_sha256"), digest))))
    return f"weights: {name}: {how}"


def change_arrays(paths: Paths, chance: random.Random) -> str:
    """Other images or labels, whose checksum is corrected."""
    split, kind = chance.choice(["train", "validation", "test"]), chance.choice(["images", "labels"])
    path = paths.processed / f"{split}-{kind}.npy"
    array = np.load(path)
    changed = {
        "shorter": array[: len(array) // 2],
        "none": array[:0],
        "flat": array.reshape(len(array), -1),
        "wider": np.repeat(array, 2, -1),
        "floats": array.astype(np.float64),
        "objects": np.array(["a"] * len(array)),
        "numbers": (array.astype(np.int64) * 1000 - 5).astype(array.dtype),
    }
    how = chance.choice(sorted(changed))
    np.save(path, changed[how])
    card = json.loads((paths.processed / "card.json").read_text())
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    place = ("splits", split, f"{kind}_sha256")
    (paths.processed / "card.json").write_text(json.dumps(resealed(put(card, place, digest))))
    return f"{path.name}: {how}"


def change_scores(paths: Paths, chance: random.Random) -> str:
    buffer = io.BytesIO()
    np.savez(buffer, **{chance.choice(["elbo", "nll", "x"]): np.array(chance.choice([[1.0], ["a"], [[np.nan]]]))})
    paths.scores.write_bytes(buffer.getvalue())
    return "scores"


def change_history(paths: Paths, chance: random.Random) -> str:
    field = chance.choice(["", "nan", "x", "9" * 200_000, "1e999", '"', "\0"])
    lines = paths.history.read_text().splitlines()
    lines[chance.randrange(len(lines))] = ",".join([field] * chance.choice([1, 8, 50]))
    paths.history.write_text("\n".join(lines))
    return f"history: {field[:9]!r}"


DAMAGES: tuple[Damage, ...] = (
    change_a_field,
    change_a_field,
    cut_or_flip,
    change_weights,
    change_arrays,
    change_scores,
    change_history,
)


def attack(seed: int, project: Paths, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    chance = random.Random(seed)
    what, command = chance.choice(DAMAGES)(project, chance), chance.choice(COMMANDS)
    monkeypatch.setattr(sys, "argv", ["reparam", *command.split()])
    capfd.readouterr()
    try:
        cli.main()
        code: Any = 0
    except SystemExit as ended:
        code = ended.code
    except Exception as error:
        raise AssertionError(f"{command} after {what}") from error
    said = capfd.readouterr().err
    assert code in (0, None, 1), f"{command} after {what}"
    if code == 1:
        message = said[said.index("error: ") :]
        assert "Traceback" not in said, f"{command} after {what}"
        assert len(message) < 3_000, f"{command} after {what}"


@pytest.mark.parametrize("seed", range(15))
def test_a_stage_ends_well_or_in_one_message(
    seed: int, finished: Paths, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    attack(seed, finished, monkeypatch, capfd)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(15, 230))
def test_215_stages_end_well_or_in_one_message(
    seed: int, finished: Paths, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    attack(seed, finished, monkeypatch, capfd)
