"""A codebook that learns by itself is part of the state of a training, to the last bit."""

from pathlib import Path

import numpy as np
import pytest
import torch
from some_cards import image_facts, small_config
from training import GREY, Training, equal, kill_after, model_config, result_of, small_data, small_loss, train_config

from reparam.data.batches import Batches
from reparam.errors import ParamsError
from reparam.models.build import build_model
from reparam.models.quantized import Quantized
from reparam.train.checks import check_parts
from reparam.train.loss import Loss
from reparam.train.trainer import Trainer

pytestmark = pytest.mark.usefixtures("one_thread")
SMALL = {"kind": "vq", "hidden": (6,), "latent": 4, "codes": 6, "dimensions": 2, "restart": 0.5}


def new_training(directory: Path | None = None, **changes: object) -> Training:
    changes = {"epochs": 4, "patience": 100, "batch_size": 4, "learning_rate": 0.01, "average": 0.5} | changes
    trainer = Trainer(loss_of(), train_config(**changes), len(GREY))
    torch.manual_seed(1)
    return Training(trainer, directory, seconds=0)


def loss_of() -> Loss:
    return small_loss(SMALL, {"name": "reconstruction"}, binarization="dynamic")


def codebook_of(training: Training) -> torch.Tensor:
    model = training.trainer.loss.model
    assert isinstance(model, Quantized)
    return model.quantizer.vectors().clone()


def test_two_trainings_end_with_the_same_codebook_to_the_last_bit() -> None:
    results = []
    for _ in range(2):
        training = new_training()
        before = codebook_of(training)
        training.fit(small_data())
        results.append(result_of(training))
        assert not torch.equal(codebook_of(training), before)
    assert equal(*results)


@pytest.mark.parametrize("steps", [1, 4, 11])
def test_a_training_that_was_killed_goes_on_with_its_codebook(steps: int, tmp_path: Path) -> None:
    plain = new_training()
    plain.fit(small_data())
    kill_after(new_training(tmp_path), steps)
    torch.manual_seed(99)
    resumed = new_training(tmp_path)
    assert resumed.keeper.resume()
    resumed.fit(small_data())
    assert equal(result_of(resumed), result_of(plain))


def test_a_roll_back_takes_the_codebook_along() -> None:
    training = new_training(on_nonfinite="rollback")
    before = result_of(training)
    training.trainer.step(small_data().training.take(torch.arange(4)))
    assert not torch.equal(codebook_of(training), before["last"]["model.quantizer.averages.embed"][0])
    training.state.load_state_dict(training.rollback.good)
    assert equal(result_of(training)["last"], before["last"])


def test_averaged_weights_are_kept_with_the_codebook_of_the_last_step() -> None:
    training = new_training()
    training.trainer.step(small_data().training.take(torch.arange(4)))
    training.trainer.step(small_data().training.take(torch.arange(4)))
    kept, last = training.trainer.model.state_dict(), training.trainer.loss.model.state_dict()
    same = {name for name in kept if torch.equal(kept[name], last[name])}
    assert same == {f"quantizer.averages.{name}" for name in ("cluster_size", "embed_avg", "embed")}


def test_a_held_out_batch_teaches_the_codebook_nothing() -> None:
    training = new_training()
    before = codebook_of(training)
    training.trainer.validate(small_data().validation.take(torch.arange(3)), torch.Generator())
    assert torch.equal(codebook_of(training), before)


def test_a_codebook_is_learned_by_one_process() -> None:
    for kind in ("fsq", "vq"):
        config = small_config(model=model_config(kind=kind, latent=8, likelihood="gaussian"))
        objective = config.objective.model_copy(update={"name": "reconstruction"})
        config = config.model_copy(update={"objective": objective})
        model = build_model(config.model, (1, 8, 8))
        check_parts(model, config, image_facts("none"), images=100)
        if kind == "fsq":
            check_parts(model, config, image_facts("none"), images=100, processes=2)
            continue
        message = r"^params\.yaml: model\.kind: wanted 'fsq' or another .* several processes train, .*, found 'vq'$"
        with pytest.raises(ParamsError, match=message):
            check_parts(model, config, image_facts("none"), images=100, processes=2)


@pytest.mark.parametrize("kind", ["fsq", "vq"])
def test_codes_do_not_collapse_on_digits(kind: str) -> None:
    from sklearn.datasets import load_digits

    images = (load_digits().images[:512, None] * 15.9375).astype(np.uint8)
    latent = {"fsq": 9, "vq": 8}[kind]  # three codes, or two, of 64
    model = {"kind": kind, "hidden": (32,), "latent": latent, "levels": (4, 4, 4), "codes": 64, "dimensions": 4}
    loss = small_loss(model | {"likelihood": "gaussian", "sigma": 0.5}, {"name": "reconstruction"}, (1, 8, 8))
    trainer = Trainer(loss, train_config(learning_rate=0.01), len(images))
    data = Batches(images, 64, torch.device("cpu"))
    for _ in range(20):
        for batch in data.visit(torch.randperm(len(images))):
            trainer.step(*batch)
    with torch.no_grad():
        codes = loss.model.codebook.codes(loss.model.eval().posterior(torch.from_numpy(images) / 255)[0])
    assert len(codes.unique()) / 64 > {"fsq": 0.9, "vq": 0.7}[kind]


@pytest.mark.slow
def test_a_compiled_step_teaches_the_codebook_what_an_eager_one_does() -> None:
    found = []
    images = small_data().training.take(torch.arange(4))
    for compiled in (False, True):
        loss = small_loss(SMALL | {"restart": 0.0}, {"name": "reconstruction"})  # compiled code draws other numbers
        trainer = Trainer(loss, train_config(batch_size=4, compile=compiled), len(GREY))
        losses = torch.stack([trainer.step(images).terms["loss"] for _ in range(3)])
        assert isinstance(loss.model, Quantized)
        found.append(torch.cat([losses, loss.model.quantizer.vectors().flatten().double()]))
    torch.testing.assert_close(found[1], found[0], rtol=1e-5, atol=1e-6)
