"""Labels travel with images through training: in any order, compiled, over processes, and after a kill."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from some_cards import data_card, image_facts, small_config
from torch import Tensor
from training import CPU, GREY, Killed, Training, equal, model_config, objective_config, result_of, train_config

from reparam.cards.data import SplitFacts
from reparam.data.batches import Batches
from reparam.data.pixels import Pixels
from reparam.distributed import World
from reparam.errors import ParamsError
from reparam.logged.filmstrip import Filmstrip
from reparam.models.build import build_model
from reparam.models.model import Model
from reparam.objectives import Terms
from reparam.track.run import NoRun
from reparam.train.build import build_trainer
from reparam.train.checks import condition_classes
from reparam.train.loop import Data
from reparam.train.loss import Loss
from reparam.train.trainer import Trainer

LABELS = np.array([0, 1, 2, 0, 1, 2, 0, 1, 2, 0], np.int32)


def labelled(rows: slice = slice(None), batch_size: int = 4) -> Batches:
    return Batches(GREY[rows], batch_size, CPU, LABELS[rows])


def conditional_loss(**changes: Any) -> Loss:
    torch.manual_seed(0)
    small = {"condition": "label", "size": 2, "hidden": (6,), "latent": 2}
    model = build_model(model_config(**small | changes), GREY.shape[1:], classes=3)
    return Loss(model, Pixels(image_facts("dynamic")), objective_config())


def trainer(**changes: Any) -> Trainer:
    config = train_config(**{"epochs": 4, "patience": 100, "batch_size": 4, "learning_rate": 0.01} | changes)
    return Trainer(conditional_loss(), config, len(GREY))


@pytest.mark.parametrize("fraction", ["1", "0"])
def test_labels_are_those_of_the_images_in_any_order(fraction: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REPARAM_RESIDENT_FRACTION", fraction)
    order = torch.tensor([7, 2, 9, 0, 1])
    batches = list(labelled(batch_size=2).visit(order))
    assert [len(labels) for _, labels in batches] == [2, 2, 1]
    assert torch.equal(torch.cat([labels for _, labels in batches]), torch.from_numpy(LABELS).long()[order])
    assert torch.equal(torch.cat([images for images, _ in batches]), torch.from_numpy(GREY)[order])
    assert [labels for _, labels in Batches(GREY, 4, CPU).visit(order)] == [None, None]


def test_processes_share_the_labels_of_their_images() -> None:
    for rank in range(2):
        [(images, labels)] = labelled(batch_size=5).visit(torch.arange(5), World(rank, 2).share)
        assert torch.equal(images, torch.from_numpy(GREY)[:5][rank::2])
        assert torch.equal(labels, torch.from_numpy(LABELS).long()[:5][rank::2])


@pytest.mark.parametrize("steps", [2, 5])
def test_a_training_that_was_killed_goes_on_to_the_same_bytes(steps: int, tmp_path: Path) -> None:
    data = Data(labelled(), labelled(slice(3)))
    torch.manual_seed(5)
    whole = Training(trainer())
    whole.fit(data)
    torch.manual_seed(5)
    killed, done = Training(trainer(), tmp_path, seconds=0.0), 0
    inner = killed.keeper.after_step

    def after_step() -> None:
        nonlocal done
        inner()
        done += 1
        if done == steps:
            raise Killed

    killed.keeper.after_step = after_step  # type: ignore[method-assign]
    with pytest.raises(Killed):
        killed.fit(data)
    torch.manual_seed(9)
    resumed = Training(trainer(), tmp_path, seconds=0.0)
    assert resumed.keeper.resume()
    resumed.fit(data)
    assert equal(result_of(resumed), result_of(whole))


def test_training_moves_what_labels_become() -> None:
    training = Training(trainer())
    before = {name: weight.clone() for name, weight in training.trainer.model.condition.state_dict().items()}
    training.fit(Data(labelled(), labelled(slice(3))))
    after = training.trainer.model.condition.state_dict()
    assert sorted(after) == ["image", "numbers.weight"]
    for name, weight in after.items():
        assert not torch.isclose(weight, before[name]).any(), name


def squared_error(model: Model, x: Tensor, *_: Any) -> Terms:
    return {"loss": (model.decode(model.posterior(x)[0]) - x).square().flatten(1).sum(1)}


@pytest.mark.slow
def test_a_compiled_step_is_given_what_an_eager_one_is() -> None:
    x, labels, found = torch.from_numpy(GREY[:4]), torch.from_numpy(LABELS[:4]).long(), []
    for is_compiled in (False, True):
        loss = conditional_loss()
        loss.pixels.is_drawn = False  # without noise: compiled code draws other numbers
        its = Trainer(loss, train_config(compile=is_compiled), epoch_images=4)
        loss.objective = lambda model, x, *_: {
            "loss": (model.decode(model.posterior(x)[0]) - x).square().flatten(1).sum(1)
        }
        its.step(x, labels)
        found.append(its.model.state_dict())
    for name, weight in found[0].items():
        torch.testing.assert_close(weight, found[1][name], msg=name)


def test_a_filmstrip_shows_images_and_samples_with_their_labels() -> None:
    loss = conditional_loss()
    rows = Filmstrip(labelled(), loss.pixels, NoRun(), 0, every=1, has_prior=True)._rows(loss.model)
    with torch.no_grad():
        loss.model.condition.numbers.weight[1] += 1.0
    others = Filmstrip(labelled(), loss.pixels, NoRun(), 0, every=1, has_prior=True)._rows(loss.model)
    assert torch.equal(rows[0], others[0])
    for before, after in zip(rows[1:], others[1:], strict=True):
        changed = [not torch.equal(*pair) for pair in zip(before, after, strict=True)]
        assert changed == [label == 1 for label in LABELS.tolist()]


def test_a_model_that_fits_is_built_with_its_classes() -> None:
    config = small_config(model=model_config(condition="label"))
    images = Batches(np.zeros((12, 1, 8, 8), np.uint8), 4, CPU, np.arange(12) % 2)
    built = build_trainer(config, data_card(), images, classes=2)
    assert built.model.condition.numbers.num_embeddings == 2


def test_images_without_labels_are_refused_with_sources_that_have_some() -> None:
    card = data_card()
    message = (
        r"^params\.yaml: model\.condition: wanted 'none' with training images of one class alone \('0'\), found "
        r"'label'; set download\.source to data with labels: digits, mnist_5k, a set of torchvision, or a folder with "
    )
    with pytest.raises(ParamsError, match=message):
        condition_classes("label", card)
    assert condition_classes("none", card) == ()
    train = SplitFacts(count=12, classes={"0": 5, "1": 7}, images_sha256="1" * 64, labels_sha256="0" * 64)
    labelled = data_card(classes=("0", "1", "2"), splits=card.splits | {"train": train})
    message = (
        r"^params\.yaml: model\.condition: wanted 'none' where a class has no training image \('2'\), found 'label'; "
        r"list the other classes in preprocess\.classes, or raise preprocess\.limit if it is set$"
    )
    with pytest.raises(ParamsError, match=message):
        condition_classes("label", labelled)
    assert condition_classes("none", labelled) == ()
    assert condition_classes("label", data_card(classes=("0", "1"), splits=labelled.splits)) == ("0", "1")
