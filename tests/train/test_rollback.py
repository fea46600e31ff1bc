"""Back to the last good epoch where the loss is no longer finite."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from training import GREY, Training, equal, kill_after, result_of, small_data, small_trainer, spoil

from reparam.config import TrainConfig
from reparam.errors import NonFiniteError
from reparam.train.checkpoint import Checkpoints
from reparam.train.loss import Loss
from reparam.train.sums import Totals
from reparam.train.trainer import Trainer


class Spoiled(Trainer):
    """Training whose loss is NaN at the last step of some epoch while the rate factor is too large."""

    def __init__(self, loss: Loss, config: TrainConfig, too_large: float, epoch: int) -> None:
        super().__init__(loss, config, len(GREY))
        self.too_large = too_large
        self.epoch = epoch
        self.factors: list[float] = []

    def step(self, images: Tensor, labels: Tensor | None = None) -> Totals:
        is_last = self.images >= len(GREY) * self.epoch - 2  # of the epoch's three steps
        self.factors.append(self.rate_factor)
        if is_last and self.rate_factor >= self.too_large:
            spoil(self)
        return super().step(images)


def spoiled(
    directory: Path | None, too_large: float, epoch: int = 3, seconds: float = math.inf, **changes: Any
) -> Training:
    plain = small_trainer(**{"on_nonfinite": "rollback"} | changes)
    torch.manual_seed(1)
    return Training(Spoiled(plain.loss, plain.config, too_large, epoch), directory, seconds)


def warnings_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name.startswith("reparam.")]


def test_training_that_diverges_recovers_with_half_the_learning_rate(caplog: pytest.LogCaptureFixture) -> None:
    training, epochs = spoiled(None, too_large=1.0), []
    record = training.fit(small_data(), lambda _, epoch: epochs.append(epoch))
    assert epochs == [1, 2, 3, 4]
    assert [row["epoch"] for row in record.history] == [1.0, 2.0, 3.0, 4.0]
    assert (training.rollback.count, training.trainer.rate_factor) == (1, 0.5)
    assert training.trainer.optimizer.param_groups[0]["lr"] == 0.005
    assert all(tensor.isfinite().all() for tensor in training.trainer.model.state_dict().values())
    nonfinite, back = warnings_of(caplog)
    assert nonfinite.startswith("train: the train loss is no longer finite at epoch 3, step 3 of 3 (loss nan, ")
    assert back == "train: back to the end of epoch 2, learning rate times 0.5 (1 of 3 times)"


def test_a_roll_back_goes_to_the_very_state_of_the_last_good_epoch() -> None:
    # As a training that halves its rate there, and never diverges.
    plain = spoiled(None, too_large=math.inf)
    inner = plain.rollback.remember

    def remember() -> None:
        inner()
        if len(plain.record.history) == 2:
            plain.trainer.rate_factor = 0.5

    plain.rollback.remember = remember  # type: ignore[method-assign]
    plain.fit(small_data())
    wanted = result_of(plain)
    training = spoiled(None, too_large=1.0)
    training.fit(small_data())
    assert equal(result_of(training), wanted)


def test_what_is_remembered_does_not_change_with_training() -> None:
    training = spoiled(None, too_large=math.inf, average=0.5)
    for _ in range(2):
        training.trainer.step(small_data().training.take(torch.arange(4)))
    training.record.keep(1.0, training.trainer.model.state_dict())
    training.rollback.remember()
    kept = training.rollback.good["trainer"]
    before = [kept["loss"]["model.encoder.1.weight"].clone(), kept["optimizer"][0]["exp_avg"].clone()]
    training.trainer.step(small_data().training.take(torch.arange(4)))
    training.record.add({"epoch": 1.0})
    assert torch.equal(kept["loss"]["model.encoder.1.weight"], before[0])
    assert torch.equal(kept["optimizer"][0]["exp_avg"], before[1])
    assert (kept["images"], training.rollback.good["record"]["history"]) == (8, [])


def test_a_loss_that_diverges_in_the_first_epoch_goes_back_to_the_start(caplog: pytest.LogCaptureFixture) -> None:
    training = spoiled(None, too_large=0.5, epoch=1)
    record = training.fit(small_data())
    assert (training.rollback.count, training.trainer.rate_factor, len(record.history)) == (2, 0.25, 4)
    assert [text for text in warnings_of(caplog) if "back to" in text] == [
        "train: back to the end of epoch 0, learning rate times 0.5 (1 of 3 times)",
        "train: back to the end of epoch 0, learning rate times 0.25 (2 of 3 times)",
    ]


def test_three_roll_backs_are_enough(caplog: pytest.LogCaptureFixture) -> None:
    training = spoiled(None, too_large=0.0)
    with pytest.raises(NonFiniteError, match="the train loss is no longer finite at epoch 3, step 3 of 3"):
        training.fit(small_data())
    assert training.trainer.factors == [1.0] * 9 + [0.5] * 3 + [0.25] * 3 + [0.125] * 3
    assert [text for text in warnings_of(caplog) if "back to" in text] == [
        f"train: back to the end of epoch 2, learning rate times {factor} ({count} of 3 times)"
        for count, factor in ((1, "0.5"), (2, "0.25"), (3, "0.125"))
    ]


def test_a_rate_that_is_right_at_an_eighth_is_reached() -> None:
    training = spoiled(None, too_large=0.25)
    record = training.fit(small_data())
    assert (training.rollback.count, training.trainer.rate_factor, len(record.history)) == (3, 0.125, 4)


def test_stop_stops_at_once(caplog: pytest.LogCaptureFixture) -> None:
    training = spoiled(None, too_large=1.0, on_nonfinite="stop")
    with pytest.raises(NonFiniteError, match="epoch 3, step 3 of 3"):
        training.fit(small_data())
    assert (len(training.record.history), training.rollback.count, warnings_of(caplog)) == (2, 0, [])


@pytest.mark.parametrize("steps", [7, 8, 9, 10, 11])
def test_a_training_that_was_killed_rolls_back_to_where_it_would_have(steps: int, tmp_path: Path) -> None:
    # Not to the checkpoint, which lies within the epoch that diverges.
    whole = spoiled(tmp_path / "whole", too_large=1.0)
    whole.fit(small_data())
    wanted = result_of(whole)
    kill_after(spoiled(tmp_path / "killed", too_large=1.0, seconds=0), steps)
    training = spoiled(tmp_path / "killed", too_large=1.0)
    assert training.keeper.resume()
    training.fit(small_data())
    assert equal(result_of(training), wanted)
    assert training.rollback.count == 1


def test_a_checkpoint_without_rolling_back_holds_no_second_state(tmp_path: Path) -> None:
    sizes = {}
    for mode in ("stop", "rollback"):
        kill_after(Training(small_trainer(on_nonfinite=mode), tmp_path / mode, seconds=0), 4)
        sizes[mode] = max((tmp_path / mode).glob("*.safetensors")).stat().st_size
        assert (Checkpoints(tmp_path / mode).read()["rollback"]["good"] != {}) == (mode == "rollback")
    assert sizes["stop"] < sizes["rollback"]
