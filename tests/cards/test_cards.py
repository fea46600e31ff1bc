import hashlib
import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import some_cards
from some_cards import hash_of

from reparam.cards.card import Card, SealedCard, facts_of, require_file
from reparam.cards.data import DataMetrics
from reparam.cards.model import Result
from reparam.config.section import LONGEST
from reparam.errors import DamagedInputError, MissingInputError, NonFiniteError, StaleInputError, UserError
from reparam.files import sha256, to_json

DATA_METRICS = DataMetrics(
    train_images=12, validation_images=3, test_images=5, skipped_images=0, train_mean=0.25, train_standard_deviation=0.5
)
CARDS: dict[str, Card] = {
    "download": some_cards.download_card(),
    "data": some_cards.data_card(),
    "data metrics": DATA_METRICS,
    "model": some_cards.model_card(),
    "training metrics": some_cards.training_metrics(best_validation_loss=20.5),
    "evaluation": some_cards.evaluation_card(),
    "evaluation metrics": some_cards.evaluation_metrics(),
    "export": some_cards.export_card(),
    "export metrics": some_cards.export_metrics(),
}
# What was made of a model: a card names the model's card, numbers name its weights.
RESULTS: dict[str, Callable[..., Result]] = {
    "training metrics": some_cards.training_metrics,
    "evaluation": some_cards.evaluation_card,
    "evaluation metrics": some_cards.evaluation_metrics,
    "export": some_cards.export_card,
    "export metrics": some_cards.export_metrics,
}

INTERNAL = re.compile(r"\[key\]|literal\[|type=|\w='|\w\(|Error|Facts")  # of pydantic, or of Python


def damaged(card: Card, path: Path, damage: Callable[[Any], None]) -> str:
    """Write a card, damage its values, and return how it is refused."""
    card.write(path)
    values = json.loads(path.read_text(encoding="utf-8"))
    damage(values)
    path.write_text(json.dumps(values), encoding="utf-8")
    with pytest.raises(DamagedInputError) as caught:
        type(card).read(path, "stage")
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert message.endswith("; run `dvc repro --force --single-item stage`")
    return message.removeprefix(f"{path}: ").removesuffix("; run `dvc repro --force --single-item stage`")


def fields(values: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The paths of all fields, nested ones included; a name that a card gives its own is none."""
    items = values.items() if isinstance(values, dict) else enumerate(values) if isinstance(values, list) else ()
    return [found for key, value in items for found in ((*path, key), *fields(value, (*path, key)))]


def holder_of(values: Any, path: tuple[Any, ...]) -> Any:
    for key in path[:-1]:
        values = values[key]
    return values


@pytest.mark.parametrize("card", CARDS.values(), ids=CARDS)
def test_a_card_that_was_written_is_read_as_it_was(card: Card, tmp_path: Path) -> None:
    card.write(tmp_path / "card.json")
    assert type(card).read(tmp_path / "card.json", "stage") == card
    values = json.loads((tmp_path / "card.json").read_text(encoding="utf-8"))
    seal = values.pop("checksum") if isinstance(card, SealedCard) else sha256(tmp_path / "card.json")
    assert card.digest == seal == hashlib.sha256(to_json(values).encode()).hexdigest()


@pytest.mark.parametrize("card", CARDS.values(), ids=CARDS)
def test_each_field_of_another_type_is_refused_with_its_path(card: Card, tmp_path: Path) -> None:
    for path in fields(card.model_dump(mode="json")):

        def damage(values: Any, path: tuple[Any, ...] = path) -> None:
            holder_of(values, path)[path[-1]] = {"": [None]}

        message = damaged(card, tmp_path / "card.json", damage)
        # A mapping in the place of a mapping is refused by what is in it, or by what is not.
        assert message.startswith(".".join(map(str, path)))
        assert {"wanted", "missing", "unknown,"} & set(message.split())
        assert not INTERNAL.search(message)


@pytest.mark.parametrize("card", CARDS.values(), ids=CARDS)
def test_a_card_without_a_field_or_with_one_too_many_is_refused(card: Card, tmp_path: Path) -> None:
    for name in type(card).model_fields.keys() & card._content().keys():
        assert damaged(card, tmp_path / "card.json", lambda values, name=name: values.pop(name)) == f"{name}: missing"
    found = damaged(card, tmp_path / "card.json", lambda values: values.update(more="text"))
    assert found in ("more: unknown, found 'text'", "more: wanted a number, found 'text'")


@pytest.mark.parametrize("card", CARDS.values(), ids=CARDS)
@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "not valid JSON (EOF while parsing a value at line 1 column 0)"),
        (b'{"a": ', "not valid JSON (EOF while parsing a value at line 1 column 6)"),
        (b"[]", "wanted named values, found []"),
        (b"null", "wanted named values, found None"),
        (b"\xff", "not valid JSON (expected value at line 1 column 1)"),
    ],
)
def test_what_is_no_card_at_all_is_refused(content: bytes, problem: str, card: Card, tmp_path: Path) -> None:
    path = tmp_path / "card.json"
    path.write_bytes(content)
    with pytest.raises(DamagedInputError) as caught:
        type(card).read(path, "stage")
    assert str(caught.value) == f"{path}: {problem}; run `dvc repro --force --single-item stage`"


@pytest.mark.parametrize("card", CARDS.values(), ids=CARDS)
def test_a_card_that_is_missing_names_the_stage_that_writes_it(card: Card, tmp_path: Path) -> None:
    with pytest.raises(MissingInputError, match=r"card.json: not found; run `dvc repro stage` first$"):
        type(card).read(tmp_path / "card.json", "stage")


@pytest.mark.parametrize(
    ("name", "path", "value", "problem"),
    [
        ("data", ("shape", 1), 0, "shape.1: wanted at least 1, found 0"),
        ("data", ("shape", 1), 2**31, "shape.1: wanted at most 65536, found 2147483648"),
        ("data", ("shape",), [3, 65536, 65536], "shape: wanted at most 100,000,000 numbers in an image, found [3, 655"),
        ("data", ("shape",), [1, 8], "shape.2: missing"),
        ("data", ("scaling", "scale"), [0.0], "scaling.scale.0: wanted above 0, found 0.0"),
        ("data", ("train_mean",), [float("nan")], "train_mean.0: wanted a finite number, found nan"),
        ("data", ("splits", "test", "count"), -1, "splits.test.count: wanted at least 0, found -1"),
        ("data", ("splits", "test", "count"), 5.5, "splits.test.count: wanted a whole number, found 5.5"),
        ("data", ("splits", "test", "images_sha256"), "ab", "splits.test.images_sha256: wanted text of the form"),
        ("model", ("objective", "name"), "magic", "objective.name: wanted one of 'reconstruction', "),
        ("model", ("lineage", "data"), "../data", "lineage.data: wanted text of the form"),
        ("model", ("latent_size",), True, "latent_size: wanted a whole number, found True"),
        ("evaluation", ("images",), 0, "images: wanted above 0, found 0"),
        ("evaluation", ("images",), 10**30, "images: wanted at most 1,000,000,000, found 10000000000000000"),
        ("evaluation", ("tiles", "range"), float("inf"), "tiles.range: wanted a finite number, found inf"),
        ("evaluation metrics", ("elbo",), float("-inf"), "elbo: wanted a number, found -inf"),
        ("evaluation metrics", ("elbo",), 10**400, "elbo: wanted a number, found 1000000000"),
        ("export", ("files", "decoder.onnx", "bytes"), 2**60, "files.decoder.onnx.bytes: wanted below 90071992547"),
        ("evaluation metrics", ("elbo",), "high", "elbo: wanted a number, found 'high'"),
        ("evaluation metrics", ("elbo",), True, "elbo: wanted a number, found True"),
        ("evaluation metrics", ("weights",), "short", "weights: wanted text of the form ^[0-9a-f]{12}$, found 'short'"),
        ("export", ("format",), 3, "format: wanted 4, found 3"),
        (
            *("export", ("graphs", "decoder", "inputs", 0, "shape", 1), 0),
            "graphs.decoder.inputs.0.shape.1: wanted 'batch' or a whole number above 0, found 0",
        ),
        (
            *("export", ("graphs", "decoder", "inputs", 0, "shape", 1), True),
            "graphs.decoder.inputs.0.shape.1: wanted 'batch' or a whole number above 0, found True",
        ),
        ("data", ("splits", "extra"), {}, "splits.extra: wanted 'train', 'validation' or 'test', found 'extra'"),
        ("download", ("files",), {}, "files: wanted at least 1 items, found {}"),
    ],
)
def test_a_value_out_of_range_is_refused(
    name: str, path: tuple[Any, ...], value: object, problem: str, tmp_path: Path
) -> None:
    def damage(values: Any) -> None:
        holder_of(values, path)[path[-1]] = value

    assert damaged(CARDS[name], tmp_path / "card.json", damage).startswith(problem)


def test_scaling_has_a_value_for_each_channel(tmp_path: Path) -> None:
    path, wanted = tmp_path / "card.json", "wanted as many channels as scaling.shift and scaling.scale have"
    message = damaged(CARDS["data"], path, lambda values: values.update(shape=[3, 8, 8]))
    assert message == f"shape: {wanted} (1 and 1), found [3, 8, 8]"
    message = damaged(CARDS["model"], path, lambda values: values["data"]["scaling"].update(shift=[0.0, 0.5]))
    assert message == f"data.shape: {wanted} (2 and 1), found [1, 8, 8]"


def test_a_checksum_that_is_missing_or_wrong_is_refused(tmp_path: Path) -> None:
    card, path = CARDS["download"], tmp_path / "card.json"
    wanted = f"checksum: wanted {card.digest}, as of the other values, found"
    assert damaged(card, path, lambda values: values.pop("checksum")) == f"{wanted} none"
    assert damaged(card, path, lambda values: values.update(checksum="0" * 64)) == f"{wanted} {'0' * 64}"


def test_a_file_that_is_not_the_one_on_the_card_is_described_by_size_and_checksum(tmp_path: Path) -> None:
    def refusal(name: str, kind: type[UserError] = DamagedInputError) -> str:
        with pytest.raises(kind) as caught:
            require_file(tmp_path, name, {"a.bin": facts_of(b"right" * 1000)}, "evaluate")
        return str(caught.value)

    path = tmp_path / "a.bin"
    assert refusal("a.bin", MissingInputError) == f"{path}: not found; run `dvc repro evaluate` first"
    right, wrong = (hashlib.sha256(content * 1000).hexdigest()[:12] for content in (b"right", b"wrong"))
    found = f"found 5,000 bytes of SHA-256 {wrong}; run `dvc repro --force --single-item evaluate`"
    path.write_bytes(b"wrong" * 1000)
    assert refusal("a.bin") == f"{path}: wanted 5,000 bytes of SHA-256 {right} (as evaluate wrote it), {found}"
    path.rename(tmp_path / "b.bin")
    assert refusal("b.bin") == f"{tmp_path}/b.bin: wanted no such file (as evaluate wrote it), {found}"


def test_a_long_value_is_cut_in_the_message(tmp_path: Path) -> None:
    message = damaged(CARDS["data"], tmp_path / "card.json", lambda values: values.update(source=["x" * 5000]))
    assert message.startswith("source: wanted text, found ['xxx")
    assert len(message) < LONGEST + 60


def test_metrics_that_are_not_finite_are_no_card() -> None:
    with pytest.raises(NonFiniteError, match=r"^served_elbo: wanted a finite number, found -inf: "):
        some_cards.export_metrics(values={**some_cards.PARITY, "served_elbo": -math.inf})


# ---- of which model


@pytest.mark.parametrize("name", RESULTS)
def test_what_was_made_of_another_model_is_stale(name: str, tmp_path: Path) -> None:
    model, other = some_cards.model_card(), some_cards.model_card(weights=hash_of("9"))
    path = tmp_path / "result.json"
    RESULTS[name](model).write(path)
    kind = type(CARDS[name])
    assert issubclass(kind, Result)
    assert kind.read_of(model, path, "stage") == RESULTS[name](model)
    with pytest.raises(StaleInputError) as caught:
        kind.read_of(other, path, "stage")
    assert str(caught.value) == (
        f"{path}: wanted results of the model in models/vae, weights {'9' * 12}, found those of {'d' * 12}; "
        "run `dvc repro stage`"
    )


@pytest.mark.parametrize("name", ["evaluation", "export"])
def test_a_card_that_was_edited_after_a_result_was_made_of_it_is_found(name: str, tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    RESULTS[name](some_cards.model_card()).write(path)
    edited = some_cards.model_card(has_prior=False)
    kind = type(CARDS[name])
    assert issubclass(kind, Result)
    with pytest.raises(StaleInputError, match="found those of the same weights under another card; run"):
        kind.read_of(edited, path, "stage")
