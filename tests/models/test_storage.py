import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import small_section
from some_cards import data_card, model_card, trained_params

from reparam.cards.model import ModelCard
from reparam.errors import DamagedInputError, MissingInputError
from reparam.models.build import build_model
from reparam.models.storage import load_model, save_weights
from reparam.models.vae import VAE

CPU = torch.device("cpu")
CONFIG = small_section("model", hidden=(5, 4), latent=2)
DATA = data_card(shape=(1, 3, 2))
SHAPE = (1, 3, 2)


@pytest.fixture
def stored(tmp_path: Path) -> VAE:
    """A model whose files are in `tmp_path`."""
    torch.manual_seed(0)
    model = build_model(CONFIG, SHAPE)
    weights = save_weights(tmp_path, model.state_dict())
    model_card(trained_params(model=CONFIG), weights, data=DATA).write(tmp_path / "card.json")
    return model


def read_card(directory: Path) -> ModelCard:
    return ModelCard.read(directory / "card.json", "train")


def test_a_loaded_model_computes_what_the_saved_one_did(stored: VAE, tmp_path: Path) -> None:
    (loaded, card), x = load_model(tmp_path, CPU), torch.rand(4, *SHAPE)
    assert card == read_card(tmp_path)
    assert torch.equal(loaded.posterior(x)[0], stored.posterior(x)[0])
    assert torch.equal(loaded.decode(torch.ones(1, 2)), stored.decode(torch.ones(1, 2)))
    assert not loaded.training
    assert loaded.shape == SHAPE


def test_weights_are_named_by_the_hash_of_their_file(stored: VAE, tmp_path: Path) -> None:
    content = (tmp_path / "weights.safetensors").read_bytes()
    assert read_card(tmp_path).lineage.weights_sha256 == hashlib.sha256(content).hexdigest()


def test_equal_weights_give_equal_bytes_in_any_order_and_layout(stored: VAE, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    shuffled = dict(reversed(stored.state_dict().items()))
    strided = {name: tensor.t().contiguous().t() for name, tensor in shuffled.items()}
    assert save_weights(other, strided) == read_card(tmp_path).lineage.weights_sha256


def test_the_weights_file_is_plain_safetensors(stored: VAE, tmp_path: Path) -> None:
    content = (tmp_path / "weights.safetensors").read_bytes()
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    assert {name: entry["shape"] for name, entry in header.items()} == {
        name: list(tensor.shape) for name, tensor in stored.state_dict().items()
    }
    assert {entry["dtype"] for entry in header.values()} == {"F32"}


def test_a_missing_card_names_the_stage_that_writes_it(tmp_path: Path) -> None:
    with pytest.raises(MissingInputError) as error:
        load_model(tmp_path, CPU)
    assert str(error.value) == f"{tmp_path / 'card.json'}: not found; run `dvc repro train` first"


def test_missing_weights_name_the_stage_that_writes_them(stored: VAE, tmp_path: Path) -> None:
    (tmp_path / "weights.safetensors").unlink()
    with pytest.raises(MissingInputError) as error:
        load_model(tmp_path, CPU)
    assert str(error.value) == f"{tmp_path / 'weights.safetensors'}: not found; run `dvc repro train` first"


def test_weights_other_than_those_of_the_card_are_refused(stored: VAE, tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    wanted, found = read_card(tmp_path).lineage.weights_sha256, hashlib.sha256(content).hexdigest()
    with pytest.raises(DamagedInputError) as error:
        load_model(tmp_path, CPU)
    assert str(error.value) == (
        f"{path}: wanted SHA-256 {wanted} (as in card.json), found {found}; run `dvc repro --force --single-item train`"
    )


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda weights: {"other": torch.zeros(2)}, "{first}: wanted one, found none"),
        (lambda weights: weights | {"other": torch.zeros(2)}, "other: wanted none, found one"),
        (
            lambda weights: weights | {"decoder.0.bias": torch.zeros(2)},
            "decoder.0.bias: wanted ({bias},) torch.float32, found (2,) torch.float32",
        ),
        (
            lambda weights: weights | {"decoder.0.bias": weights["decoder.0.bias"].double()},
            "decoder.0.bias: wanted ({bias},) torch.float32, found ({bias},) torch.float64",
        ),
        (
            lambda weights: weights | {"decoder.0.bias": weights["decoder.0.bias"] * torch.nan},
            "decoder.0.bias: wanted finite numbers, found others",
        ),
    ],
    ids=["gone", "more", "shape", "type", "numbers"],
)
def test_weights_of_another_model_are_refused(change: Any, problem: str, stored: VAE, tmp_path: Path) -> None:
    first, bias = min(stored.state_dict()), len(stored.state_dict()["decoder.0.bias"])
    weights = save_weights(tmp_path, change(stored.state_dict()))
    model_card(trained_params(model=CONFIG), weights, data=DATA).write(tmp_path / "card.json")
    with pytest.raises(DamagedInputError) as error:
        load_model(tmp_path, CPU)
    assert str(error.value) == (
        f"{tmp_path / 'weights.safetensors'}: {problem.format(first=first, bias=bias)}; not the weights of the model "
        "on card.json; run `dvc repro --force --single-item train`"
    )
