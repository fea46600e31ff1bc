"""Cards that somebody edited: the next stage refuses each value that anything depends on."""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as some
from some_cards import resealed

from reparam.cards.card import Card, SealedCard
from reparam.cards.data import DataCard, DownloadCard
from reparam.cards.evaluation import EvaluationCard, EvaluationMetrics
from reparam.cards.export import ExportCard
from reparam.cards.model import ModelCard
from reparam.config import load_config
from reparam.data.sources import registry
from reparam.errors import UserError
from reparam.files import write_json
from reparam.paths import Paths
from reparam.report import stage as report

KINDS: dict[str, type[Card]] = {
    "data/raw/manifest.json": DownloadCard,
    "data/processed/card.json": DataCard,
    "models/vae/card.json": ModelCard,
    "models/onnx/manifest.json": ExportCard,
    "reports/evaluation/card.json": EvaluationCard,
    "reports/evaluation/metrics.json": EvaluationMetrics,
}
SEALED = [name for name, kind in KINDS.items() if issubclass(kind, SealedCard)]
# What is not refused where the checksum was corrected, too: the card of an evaluation is the last one, and nothing else
# knows what it says. The page prints it.
UNKNOWN_ELSEWHERE = {
    "models/onnx/manifest.json": {
        *("lineage.export_code_sha256", "ir_version", "oldest_onnxruntime"),
        *("graphs", "parity", "scores", "codes", "variants", "sigma", "prior", "title", "licence"),
    },
    "reports/evaluation/card.json": {
        "images",
        "images_sha256",
        "sampled_from",
        "details",
        "warnings",
        "tiles",
        "lineage.evaluate_code_sha256",
        *("files.headline.json", "files.latents.csv", "files.scores.npz"),  # the page reads none of them
    },
}


def leaves(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every place of a value that holds no others."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else None
    if items is None:
        yield path
    else:
        for key, part in items:
            yield from leaves(part, (*path, key))


def others(value: Any) -> some.SearchStrategy[Any]:
    """Values of the same type."""
    if isinstance(value, str):
        return some.one_of(some.sampled_from(["mnist", "none", "0" * 64, "0" * 32 + ".dir"]), some.text(max_size=5))
    # Stages let numbers too small to matter count as zero, in the processes of tests, too.
    floats = [some.floats(*bounds, allow_subnormal=False) for bounds in ((-9, 9), (0, 1))]
    number = some.one_of(some.integers(-1, 99), some.integers(), *floats)
    return some.booleans() if isinstance(value, bool) else some.one_of(number, some.none())


def edit(path: Path, draw: Callable[..., Any], is_mended: bool) -> str:
    """Change one value of a card; return its place."""
    values = json.loads(path.read_text(encoding="utf-8"))
    place = draw(some.sampled_from([place for place in leaves(values) if place != ("checksum",)]))
    holder = values
    for key in place[:-1]:
        holder = holder[key]
    before, holder[place[-1]] = holder[place[-1]], draw(others(holder[place[-1]]))
    assume(json.dumps(holder[place[-1]]) != json.dumps(before) and holder[place[-1]] != before)
    write_json(path, resealed(values) if is_mended else values)
    return ".".join(map(str, place))


@pytest.fixture(scope="module")
def checked(finished_once: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Paths]:
    """A finished working copy, and a report that draws nothing."""
    root = tmp_path_factory.mktemp("edited") / "copy"
    shutil.copytree(finished_once, root)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", "off")
        for name in ("plot_contact_sheet", "plot_training", "png", "render"):
            patch.setattr(report, name, lambda *_: "")
        yield Paths(root, root)


def next_stage(name: str, paths: Paths) -> None:
    if name == "data/raw/manifest.json":
        registry.read(paths.raw, paths.root / "scratch")
    else:
        report.run(load_config(paths.params), paths)


@pytest.mark.parametrize("name", SEALED)
def test_an_edited_card_is_refused_whatever_was_edited(name: str, checked: Paths) -> None:
    path, kind = checked.root / name, KINDS[name]
    content = path.read_bytes()

    @settings(max_examples=100, deadline=None, derandomize=True)
    @given(some.data())
    def attack(data: some.DataObject) -> None:
        try:
            edit(path, data.draw, is_mended=False)
            with pytest.raises(UserError):
                kind.read(path, "stage")
        finally:
            path.write_bytes(content)

    kind.read(path, "stage")
    attack()


@pytest.mark.parametrize("name", KINDS)
def test_the_next_stage_refuses_an_edited_card_even_if_its_checksum_was_mended(name: str, checked: Paths) -> None:
    path = checked.root / name
    content = path.read_bytes()

    @settings(max_examples=60, deadline=None, derandomize=True)
    @given(some.data())
    def attack(data: some.DataObject) -> None:
        try:
            place = edit(path, data.draw, is_mended=True)
            try:
                next_stage(name, checked)
            except UserError:
                return
            unknown = UNKNOWN_ELSEWHERE.get(name, set())
            assert any(place == known or place.startswith(f"{known}.") for known in unknown), place
        finally:
            path.write_bytes(content)

    next_stage(name, checked)
    attack()
