import copy
from typing import Any

import pytest
import torch
from some_cards import image_facts
from torch import Tensor, nn
from training import black_and_white, small_loss

from reparam.cards.data import Scaling
from reparam.data.pixels import Pixels
from reparam.objectives import OBJECTIVES, Setting
from reparam.train.loss import Loss

MODEL: dict[str, Any] = {"hidden": (5,), "activation": "tanh", "latent": 2}
OBJECTIVE: dict[str, Any] = {"beta": 3.0, "samples": 2}
SHAPE = (1, 2, 3)
IMAGES = black_and_white(4, *SHAPE)


def loss_with(objective: dict[str, Any] | None = None, model: dict[str, Any] | None = None, **others: Any) -> Loss:
    binarization = {"binarization": "threshold"}
    return small_loss(MODEL | (model or {}), OBJECTIVE | (objective or {}), SHAPE, **binarization | others)


def score(loss: Loss, images: Tensor = IMAGES) -> dict[str, Tensor]:
    return loss.validate(images)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_the_loss_gives_the_terms_of_the_objective(name: str) -> None:
    kind = "autoencoder" if OBJECTIVES[name].layers[0] == 0 else "vae"
    loss = loss_with({"name": name}, {"kind": kind})
    setting = Setting(torch.tensor(0.0), torch.zeros(1, 1, 1), torch.ones(1, 1, 1))
    torch.manual_seed(1)
    wanted = OBJECTIVES[name].terms(loss.model, IMAGES / 255, loss.config, setting)
    torch.manual_seed(1)
    found = loss(IMAGES)
    assert found.keys() == wanted.keys()
    for term, values in found.items():
        assert values.shape == (4,), term
        assert torch.equal(values, wanted[term]), term


def test_grey_images_are_drawn_and_scaled_before_the_model_sees_them() -> None:
    grey = torch.arange(0, 240, 10, dtype=torch.uint8).reshape(4, *SHAPE)
    for card in (image_facts("none"), image_facts("dynamic"), image_facts("none", shift=0.5, scale=0.25)):
        loss = Loss(loss_with().model, Pixels(card), loss_with().config)
        setting = Setting(loss.epoch, loss.black, loss.white)
        torch.manual_seed(1)
        wanted = OBJECTIVES["elbo"].terms(loss.model, loss.pixels(grey), loss.config, setting)
        torch.manual_seed(1)
        assert torch.equal(loss(grey)["loss"], wanted["loss"])


def test_a_model_that_has_no_elbo_puts_out_none() -> None:
    of_grey, of_binary = loss_with(binarization="none"), loss_with()
    assert (of_grey.is_density, of_grey.has_elbo, of_binary.is_density, of_binary.has_elbo) == (
        False,
        False,
        True,
        True,
    )
    assert set(of_binary(IMAGES)) - set(of_grey(IMAGES)) == {"elbo"}
    assert set(score(of_binary)) - set(score(of_grey)) == {"elbo"}
    code = loss_with({"name": "reconstruction"}, {"kind": "autoencoder"}, binarization="dynamic")
    assert (code.is_density, code.has_elbo) == (True, False)


def test_an_objective_knows_how_the_model_sees_black_and_white() -> None:
    scaling = Scaling(kind="standard", shift=(0.5, 0.0), scale=(0.5, 0.25))
    pixels = Pixels(image_facts("none").model_copy(update={"scaling": scaling}))
    loss = Loss(loss_with().model, pixels, loss_with().config)
    assert loss.black.tolist() == [[[-1.0]], [[0.0]]]
    assert loss.white.tolist() == [[[1.0]], [[4.0]]]


def test_pixels_on_another_device_than_the_cpu_will_do() -> None:
    # No GPU is needed to see it.
    loss = Loss(loss_with().model, Pixels(image_facts("none")).to("meta"), loss_with().config)
    assert {value.device.type for value in (loss.black, loss.white, loss.epoch)} == {"meta"}


def test_nothing_but_the_model_is_trained_or_kept() -> None:
    loss = loss_with()
    assert {f"model.{name}" for name in loss.model.state_dict()} == set(loss.state_dict())
    assert len(list(loss.parameters())) == len(list(loss.model.parameters()))


# Held-out images


def test_a_warm_up_starts_at_beta_0_and_scores_held_out_images_with_the_whole_beta() -> None:
    loss = loss_with({"beta": 4.0, "warmup": "linear", "warmup_epochs": 10})
    first = loss(IMAGES)
    assert torch.equal(first["loss"], first["reconstruction"])
    held_out = score(loss)
    torch.testing.assert_close(held_out["loss"], held_out["reconstruction"] + 4.0 * held_out["kl"])
    loss.epoch.fill_(5)  # half of the ten
    half = loss(IMAGES)
    torch.testing.assert_close(half["loss"], half["reconstruction"] + 2.0 * half["kl"])


@pytest.mark.parametrize("warmup", ["none", "linear", "cyclic"])
@pytest.mark.parametrize("epoch", [0, 5, 10, 100])
def test_the_beta_of_training_is_not_forgotten_in_model_selection(warmup: str, epoch: int) -> None:
    loss = loss_with({"beta": 4.0, "warmup": warmup, "warmup_epochs": 10})
    loss.epoch.fill_(epoch)  # whichever it is, a score is comparable to that of any other
    held_out = score(loss)
    torch.testing.assert_close(held_out["loss"], held_out["reconstruction"] + 4.0 * held_out["kl"])
    torch.testing.assert_close(held_out["elbo"], -held_out["reconstruction"] - held_out["kl"])


def test_a_capacity_is_whole_where_held_out_images_are_scored() -> None:
    loss = loss_with({"name": "capacity", "capacity": {"nats": 7.0, "epochs": 100}})
    assert loss(IMAGES)["capacity"].tolist() == [0.0] * 4
    assert score(loss)["capacity"].tolist() == [7.0] * 4


def test_held_out_images_leave_the_statistics_of_a_batch_norm_alone() -> None:
    loss = loss_with(model={"norm": "batch"})
    loss(IMAGES)  # so that they are not those of a fresh layer
    before = copy.deepcopy(loss.state_dict())
    held_out = score(loss)
    after = loss.state_dict()
    assert [name for name in before if not torch.equal(before[name], after[name])] == []
    assert any("running_mean" in name for name in before)
    assert all(part.training for part in loss.modules())
    # An image's score depends on no other image of its batch.
    torch.manual_seed(0)
    [alone] = score(loss, IMAGES[:1])["kl"].tolist()
    assert alone == pytest.approx(held_out["kl"][0].item(), rel=1e-5)


def test_a_training_batch_does_change_the_statistics_of_a_batch_norm() -> None:
    loss = loss_with(model={"norm": "batch"})
    norms = [part for part in loss.modules() if isinstance(part, nn.BatchNorm1d)]
    loss(IMAGES)
    assert norms
    assert [norm.num_batches_tracked.item() for norm in norms if norm.num_batches_tracked is not None] == [1] * len(
        norms
    )


def test_training_goes_on_after_a_score_that_failed() -> None:
    loss = loss_with()
    with pytest.raises(RuntimeError):
        score(loss, IMAGES[..., :1])
    assert all(part.training for part in loss.modules())
