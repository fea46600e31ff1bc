"""What looks after a training from step to step: checkpoints, signals, and going on."""

import logging
import math
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from training import Training, black_and_white, equal, kill_after, result_of, small_data, small_trainer

from reparam.machine.threads import OthersCompute
from reparam.train import keeper as keeper_module
from reparam.train.checkpoint import Checkpoints
from reparam.train.sums import Totals


def files(directory: Path) -> list[Path]:
    return sorted(directory.glob("*.safetensors"))


def new_training(directory: Path, seconds: float = math.inf, **changes: Any) -> Training:
    return Training(small_trainer(**changes), directory, seconds)


def warnings_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name.startswith("reparam.")]


# When they are written


@pytest.mark.parametrize(("seconds", "written"), [(0, 12), (1000, 0)])
def test_a_checkpoint_is_written_once_so_many_seconds_have_passed(
    seconds: float, written: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    count, write = 0, Checkpoints.write

    def counting(self: Checkpoints, state: Any) -> None:
        nonlocal count
        count += 1
        write(self, state)

    monkeypatch.setattr(Checkpoints, "write", counting)
    new_training(tmp_path, seconds).fit(small_data())
    assert count == written  # four epochs of three steps


def test_training_goes_on_where_no_checkpoint_can_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Checkpoints, "write", fail)
    record = new_training(tmp_path, seconds=0.0).fit(small_data())
    assert len(record.history) == 4
    message = f"{tmp_path}: no checkpoint could be written, going on without: [Errno 28] No space left on device"
    assert set(warnings_of(caplog)) == {message}


def test_the_seconds_begin_again_with_every_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr("reparam.train.keeper.time.monotonic", lambda: now)
    keeper = new_training(tmp_path, 10).keeper
    written = []
    for now in (105.0, 109.9, 110.0, 119.0, 120.5, 130.0, 130.5):
        before = files(tmp_path)
        keeper.after_step()
        written += [now] if files(tmp_path) != before else []
    assert written == [110.0, 120.5, 130.5]


def test_training_ends_at_a_checkpoint_when_others_have_begun_to_compute(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keeper_module, "others_came", lambda threads: threads == torch.get_num_threads())
    keeper = new_training(tmp_path, seconds=0.0).keeper
    with pytest.raises(OthersCompute):
        keeper.after_step()
    assert files(tmp_path)


def test_training_does_not_end_for_others_where_no_checkpoint_could_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(keeper_module, "others_came", lambda _threads: True)
    monkeypatch.setattr(Checkpoints, "write", fail)
    new_training(tmp_path, seconds=0.0).keeper.after_step()
    assert not files(tmp_path)


@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_a_spoilt_state_is_never_written(loss: float, tmp_path: Path) -> None:
    training = new_training(tmp_path, 0)
    sums, keeper = training.state.epoch.sums, training.keeper
    sums.add(Totals.of({"loss": torch.tensor([1.0, 2.0])}))
    keeper.after_step()
    (good,) = files(tmp_path)
    sums.add(Totals.of({"loss": torch.tensor([1.0, loss])}))
    keeper.after_step()
    assert files(tmp_path) == [good]
    keeper.stop.signal = signal.SIGTERM
    with pytest.raises(SystemExit):
        keeper.after_step()
    assert files(tmp_path) == [good]


def test_nothing_is_said_while_all_is_well(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, "reparam"):
        new_training(tmp_path, 0, on_nonfinite="rollback").fit(small_data())
    assert warnings_of(caplog) == []


# Going on


@pytest.mark.parametrize("steps", [1, 2, 3, 4, 9, 12])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"average": 0.9, "optimizer": "rmsprop", "schedule": "cosine", "clip_norm": 1.0},
        {"on_nonfinite": "rollback", "optimizer": "sgd", "warmup_epochs": 2.0},
    ],
)
def test_training_that_was_killed_ends_as_if_nothing_had_been(
    changes: dict[str, Any], steps: int, tmp_path: Path
) -> None:
    whole = new_training(tmp_path / "whole", **changes)
    whole.fit(small_data())
    wanted = result_of(whole)

    kill_after(new_training(tmp_path / "killed", 0, **changes), steps)
    torch.rand(99)  # whatever was drawn in between
    training = new_training(tmp_path / "killed", **changes)
    assert training.keeper.resume()
    assert len(training.record.history) == (steps - 1) // 3
    training.fit(small_data())
    assert equal(result_of(training), wanted)


def test_training_that_is_killed_again_and_again_ends_as_if_nothing_had_been(tmp_path: Path) -> None:
    whole = new_training(tmp_path / "whole", average=0.5)
    whole.fit(small_data())
    wanted = result_of(whole)
    for steps in range(11):  # of 12
        training = new_training(tmp_path / "killed", 0, average=0.5)
        assert training.keeper.resume() == (steps > 0)
        kill_after(training, 1)
    training = new_training(tmp_path / "killed", average=0.5)
    assert training.keeper.resume()
    training.fit(small_data())
    assert equal(result_of(training), wanted)


def test_without_checkpoints_there_is_nothing_to_go_on_from() -> None:
    assert not Training(small_trainer()).keeper.resume()


def test_a_checkpoint_pairs_the_optimizer_with_its_own_weights_and_not_with_the_best_ones(tmp_path: Path) -> None:
    training, images = new_training(tmp_path, seconds=0.0), black_and_white(4, 1, 4, 4)
    trainer, record = training.trainer, training.record
    trainer.step(images)
    record.keep(1.0, trainer.model.state_dict())  # of an earlier epoch
    trainer.step(images)
    training.keeper.after_step()

    other = new_training(tmp_path)
    assert other.keeper.resume()
    kept = trainer.model.state_dict()
    for name, weight in other.trainer.model.state_dict().items():
        assert torch.equal(weight, kept[name])
    assert any(not torch.equal(weight, record.best_weights[name]) for name, weight in kept.items())
    for found, wanted in zip(other.trainer.loss.parameters(), trainer.loss.parameters(), strict=True):
        moments = other.trainer.optimizer.state[found]
        assert moments["step"].item() == 2
        assert torch.equal(moments["exp_avg"], trainer.optimizer.state[wanted]["exp_avg"])
    for name, weight in other.record.best_weights.items():
        assert torch.equal(weight, record.best_weights[name])


# Signals


@pytest.fixture
def _handlers() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield
    for number, handler in before.items():
        assert signal.getsignal(number) is handler
        signal.signal(number, handler)


@pytest.mark.usefixtures("_handlers")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_training_after_the_running_step_with_a_checkpoint(number: int, tmp_path: Path) -> None:
    training, steps = new_training(tmp_path), 0
    inner = training.trainer.step

    def step(images: Tensor, labels: Tensor | None = None) -> Totals:
        nonlocal steps
        steps += 1
        if steps == 5:
            signal.raise_signal(number)
        return inner(images)

    training.trainer.step = step
    with pytest.raises(SystemExit) as ended:
        training.fit(small_data())
    assert ended.value.code == 128 + number
    assert steps == 5
    other = new_training(tmp_path)
    assert other.keeper.resume()
    # 10 images, then 8 of 10.
    assert (len(other.record.history), other.state.epoch.sums.steps, other.state.position) == (1, 2, 8)
    assert other.trainer.images == 18


@pytest.mark.usefixtures("_handlers")
def test_a_signal_in_validation_leaves_a_checkpoint_of_the_whole_epoch(tmp_path: Path) -> None:
    whole = new_training(tmp_path / "whole")
    whole.fit(small_data())
    wanted = result_of(whole)
    training = new_training(tmp_path / "killed")
    inner = training.trainer.validate

    def validate(images: Tensor, labels: Tensor | None = None) -> Totals:
        signal.raise_signal(signal.SIGTERM)
        return inner(images)

    training.trainer.validate = validate
    with pytest.raises(SystemExit):
        training.fit(small_data())
    other = new_training(tmp_path / "killed")
    assert other.keeper.resume()
    assert (len(other.record.history), other.state.epoch.sums.images, other.state.position) == (0, 10, 10)
    other.fit(small_data())
    assert equal(result_of(other), wanted)


@pytest.mark.usefixtures("_handlers")
def test_a_second_signal_ends_training_at_once(tmp_path: Path) -> None:
    stop = new_training(tmp_path).keeper.stop
    assert not stop
    with stop.listening():
        signal.raise_signal(signal.SIGINT)
        assert stop.signal == signal.SIGINT
        with pytest.raises(SystemExit) as ended:
            signal.raise_signal(signal.SIGTERM)
    assert ended.value.code == 143
    assert files(tmp_path) == []


@pytest.mark.usefixtures("_handlers")
def test_one_of_several_processes_takes_a_second_signal_for_the_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOCAL_RANK", "0")
    stop = new_training(tmp_path).keeper.stop
    with stop.listening():
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)
    assert stop.signal == signal.SIGTERM
