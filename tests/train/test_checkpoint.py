"""Checkpoints on disk, and the guard that writes them, ends on a signal and rolls back."""

import copy
import json
import logging
import math
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import small_section
from data_card import data_card
from filelock import Timeout
from torch import Tensor

from reparam.config import TrainConfig
from reparam.data.batches import Batches
from reparam.data.scaling import Scaling
from reparam.errors import NonFiniteError
from reparam.models.build import build_model
from reparam.train.checkpoint import Checkpoints
from reparam.train.guard import Guard
from reparam.train.loop import Fit, Metrics, Totals, fit
from reparam.train.step import LossModule, Step

CPU = torch.device("cpu")
IMAGES = np.random.default_rng(0).integers(0, 256, (10, 1, 4, 4), dtype=np.uint8)


def settings(**changes: Any) -> TrainConfig:
    values = {"epochs": 4, "patience": 100, "batch_size": 4, "learning_rate": 0.01}
    return small_section("train", **values | changes)


def data() -> tuple[Batches, Batches]:
    card = data_card("dynamic")
    return Batches(IMAGES, card, 4, CPU), Batches(IMAGES[:3], card, 4, CPU)


def new_step(config: TrainConfig) -> Step:
    torch.manual_seed(config.seed)
    model = small_section("model", hidden=(6,), latent=2)
    objective = small_section("objective")
    return Step(LossModule(build_model(model, (1, 4, 4)), objective, Scaling(data_card("none")), 10), config)


def new_guard(directory: Path, seconds: float = math.inf, step: Step | None = None, **changes: Any) -> Guard:
    config = settings(**changes)
    return Guard(step or new_step(config), Fit(), config, Checkpoints(directory), seconds)


def ignore(metrics: Metrics, epoch: int) -> None:
    pass


def go_on(guard: Guard, log: Callable[[Metrics, int], None] = ignore) -> None:
    with guard.listening():
        fit(guard.step, data(), guard.config, log, guard.fit, guard)


def equal(first: Any, second: Any) -> bool:
    """Whether two states are the same to the last bit, types included."""
    if isinstance(first, Tensor):
        return isinstance(second, Tensor) and first.dtype == second.dtype and torch.equal(first, second)
    if isinstance(first, dict):
        return list(first) == list(second) and all(equal(first[name], second[name]) for name in first)
    return type(first) is type(second) and bool(first == second)


def files(directory: Path) -> list[Path]:
    return sorted(directory.glob("*.safetensors"))


def warnings_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [
        record.getMessage()
        for record in caplog.records
        if record.name in ("reparam.train.checkpoint", "reparam.train.guard")
    ]


# On disk


def a_state() -> dict[str, Any]:
    shared = torch.arange(6, dtype=torch.float32)
    return {
        "empty": {},
        "deep": {"er": {"still": {"tensor": torch.tensor(1.5)}}, "none": None},
        "numbers": {"whole": 3, "third": 1 / 3, "far": math.inf, "below": -math.inf, "yes": True},
        "history": [{"epoch": 1.0, "loss": 0.1 + 0.2}, {"epoch": 2.0, "loss": 5e-324}],
        "names": ["loss", "kl"],
        "nothing": [],
        "text": "tensor",
        "tensors": {
            "int64": torch.tensor([2**62, -1]),
            "uint8": torch.arange(256, dtype=torch.uint8),
            "float64": torch.tensor([1 / 3, math.inf, -0.0], dtype=torch.float64),
            "bfloat16": torch.tensor([0.1], dtype=torch.bfloat16),
            "bool": torch.tensor([True, False]),
            "scalar": torch.tensor(7),
            "none of it": torch.zeros(0, 3),
            "shared": shared,
            "view": shared[2:4],
            "transposed": shared.view(2, 3).T,
            "with a gradient": torch.ones(2, requires_grad=True),
        },
        "0": {"1": torch.ones(1)},
    }


def test_a_state_comes_back_as_it_was(tmp_path: Path) -> None:
    Checkpoints(tmp_path).write(a_state())
    found = Checkpoints(tmp_path).read()
    assert equal(found, a_state())
    assert math.copysign(1, found["tensors"]["float64"][2].item()) == -1


def test_nan_comes_back_too(tmp_path: Path) -> None:
    Checkpoints(tmp_path).write({"number": math.nan, "tensor": {"x": torch.tensor([math.nan])}})
    found = Checkpoints(tmp_path).read()
    assert math.isnan(found["number"])
    assert math.isnan(found["tensor"]["x"].item())


def test_writing_leaves_what_is_written_as_it_was(tmp_path: Path) -> None:
    state = a_state()
    Checkpoints(tmp_path).write(state)
    assert equal(state, a_state())


def test_without_a_checkpoint_there_is_nothing_to_read(tmp_path: Path) -> None:
    assert Checkpoints(tmp_path / "nowhere").read() is None
    assert not (tmp_path / "nowhere").exists()


def test_the_newest_two_are_kept_under_their_checksums(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    for number in range(12):  # past one digit
        checkpoints.write({"number": number})
        assert checkpoints.read() == {"number": number}
    assert [path.name[:9] for path in files(tmp_path)] == ["00000011-", "00000012-"]
    for path in files(tmp_path):
        assert path.name[9:] == f"{sha256(path.read_bytes()).hexdigest()}.safetensors"
    assert len(list(tmp_path.iterdir())) == 2


def test_a_checkpoint_is_safetensors_and_holds_no_pickle(tmp_path: Path) -> None:
    guard = new_guard(tmp_path, seconds=0, average=0.9, on_nonfinite="rollback")
    go_on(guard)
    for path in files(tmp_path):
        content = path.read_bytes()
        length = int.from_bytes(content[:8], "little")
        header = json.loads(content[8 : 8 + length])
        metadata = header.pop("__metadata__")
        assert list(metadata) == ["state"]
        assert isinstance(json.loads(metadata["state"]), dict)
        # Every byte after the header belongs to a tensor of a plain type.
        spans = sorted(tensor["data_offsets"] for tensor in header.values())
        assert [start for start, _ in spans] == [0, *[end for _, end in spans[:-1]]]
        assert 8 + length + spans[-1][1] == len(content)
        assert {tensor["dtype"] for tensor in header.values()} <= {"F32", "F64", "I64", "U8"}


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "truncated": lambda content: content[: len(content) // 2],
    "one bit of a tensor": lambda content: content[:-1] + bytes([content[-1] ^ 1]),
    "one bit of the header": lambda content: content[:20] + bytes([content[20] ^ 1]) + content[21:],
    "longer": lambda content: content + b"\0",
    "empty": lambda content: b"",
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_the_checkpoint_before_a_damaged_one_is_used_and_the_damage_is_told(
    damage: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    checkpoints = Checkpoints(tmp_path)
    for number in (1, 2):
        checkpoints.write({"number": number, "x": torch.ones(3)})
    before, newest = files(tmp_path)
    newest.write_bytes(DAMAGES[damage](newest.read_bytes()))
    assert checkpoints.read()["number"] == 1
    assert warnings_of(caplog) == [
        f"{newest}: damaged, its checksum differs; using the checkpoint before it, or starting anew"
    ]
    assert files(tmp_path) == [before]
    checkpoints.write({"number": 3})
    assert checkpoints.read() == {"number": 3}


def test_where_all_are_damaged_training_starts_anew(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    checkpoints = Checkpoints(tmp_path)
    for number in (1, 2):
        checkpoints.write({"number": number})
    for path in files(tmp_path):
        path.write_bytes(b"")
    assert checkpoints.read() is None
    assert len(warnings_of(caplog)) == 2
    assert files(tmp_path) == []
    assert not new_guard(tmp_path).resume()


def test_what_a_killed_process_left_half_written_is_neither_read_nor_kept(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    checkpoints = Checkpoints(tmp_path)
    checkpoints.write({"number": 1})
    partial = tmp_path / f".partial-00000002-{'0' * 64}.safetensors"
    partial.write_bytes(b"half")
    assert checkpoints.read() == {"number": 1}
    checkpoints.write({"number": 2})
    assert checkpoints.read() == {"number": 2}
    with checkpoints.held():
        assert not partial.exists()
    assert warnings_of(caplog) == []


def test_an_interrupted_write_leaves_the_checkpoints_there_were(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoints = Checkpoints(tmp_path)
    checkpoints.write({"number": 1})

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", fail)
        with pytest.raises(OSError, match="No space"):
            checkpoints.write({"number": 2})
    assert checkpoints.read() == {"number": 1}
    assert len(list(tmp_path.iterdir())) == 1


def test_clearing_leaves_nothing_behind(tmp_path: Path) -> None:
    checkpoints, other = (Checkpoints(tmp_path / "resume" / name) for name in ("one", "other"))
    other.write({"number": 7})
    assert checkpoints.run_id == ""
    with checkpoints.held():
        checkpoints.write({"number": 1})
        checkpoints.run_id = "abc"
        assert Checkpoints(checkpoints.directory).run_id == "abc"
        checkpoints.clear()
        assert list((tmp_path / "resume").iterdir()) == [other.directory]
    assert (checkpoints.read(), checkpoints.run_id) == (None, "")
    checkpoints.clear()  # of nothing
    assert other.read() == {"number": 7}
    other.clear()
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_run_is_told_and_forgotten(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "run").write_bytes(b"\xff\xfe")
    assert Checkpoints(tmp_path).run_id == ""
    assert warnings_of(caplog) == [f"{tmp_path / 'run'}: damaged; tracking starts a new run"]


def test_only_one_process_holds_the_checkpoints(tmp_path: Path) -> None:
    script = """
import sys
from pathlib import Path
from reparam.train.checkpoint import Checkpoints
with Checkpoints(Path(sys.argv[1])).held():
    print("held", flush=True)
    sys.stdin.readline()
"""
    path = os.pathsep.join(filter(None, sys.path))
    with subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path)],
        env={**os.environ, "PYTHONPATH": path},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        with pytest.raises(Timeout), Checkpoints(tmp_path).held():
            pass
        other.kill()  # which must not leave the lock behind
    with Checkpoints(tmp_path).held():
        pass


# When they are written


@pytest.mark.parametrize(("seconds", "written"), [(0, 12), (1000, 0)])
def test_a_checkpoint_is_written_once_so_many_seconds_have_passed(seconds: float, written: int, tmp_path: Path) -> None:
    guard = new_guard(tmp_path, seconds)
    count = 0
    write = guard.checkpoints.write

    def counting(state: Any) -> None:
        nonlocal count
        count += 1
        write(state)

    guard.checkpoints.write = counting  # type: ignore[method-assign]
    go_on(guard)
    assert count == written  # four epochs of three steps


def test_training_goes_on_where_no_checkpoint_can_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Checkpoints, "write", fail)
    guard = new_guard(tmp_path, seconds=0.0)
    go_on(guard)
    assert len(guard.fit.history) == guard.config.epochs
    told = f"{tmp_path}: no checkpoint could be written, going on without: [Errno 28] No space left on device"
    assert set(warnings_of(caplog)) == {told}


def test_the_seconds_begin_anew_with_every_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr("reparam.train.guard.time.monotonic", lambda: now)
    guard = new_guard(tmp_path, 10)
    written = []
    for now in (105.0, 109.9, 110.0, 119.0, 120.5, 130.0, 130.5):
        before = files(tmp_path)
        guard.after_step()
        written += [now] if files(tmp_path) != before else []
    assert written == [110.0, 120.5, 130.5]


@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_a_spoilt_state_is_never_written(loss: float, tmp_path: Path) -> None:
    guard = new_guard(tmp_path, 0)
    guard.fit.seen.add(Totals.of({"loss": torch.tensor([1.0, 2.0])}))
    guard.after_step()
    (good,) = files(tmp_path)
    guard.fit.seen.add(Totals.of({"loss": torch.tensor([1.0, loss])}))
    guard.after_step()
    assert files(tmp_path) == [good]
    guard.signal = signal.SIGTERM
    with pytest.raises(SystemExit):
        guard.after_step()
    assert files(tmp_path) == [good]


# Going on


def result_of(guard: Guard) -> Any:
    fit_ = guard.fit
    return copy.deepcopy(
        {
            "history": fit_.history,
            "best": [fit_.best_score, fit_.best_epoch],
            "weights": fit_.best_weights,
            "last": dict(guard.step.module.state_dict()),
            "next draw": torch.get_rng_state(),
        }
    )


class Killed(BaseException):
    pass


def killed_after(guard: Guard, steps: int) -> None:
    """Train until so many steps are done, and leave nothing but the checkpoints."""
    inner, done = guard.after_step, 0

    def after_step() -> None:
        nonlocal done
        inner()
        done += 1
        if done == steps:
            raise Killed

    guard.after_step = after_step  # type: ignore[method-assign]
    with pytest.raises(Killed):
        go_on(guard)


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
    whole = new_guard(tmp_path / "whole", **changes)
    go_on(whole)
    wanted = result_of(whole)

    killed_after(new_guard(tmp_path / "killed", 0, **changes), steps)
    torch.rand(99)  # whatever was drawn in between
    guard = new_guard(tmp_path / "killed", **changes)
    assert guard.resume()
    assert len(guard.fit.history) == (steps - 1) // 3
    go_on(guard)
    assert equal(result_of(guard), wanted)


def test_training_that_is_killed_again_and_again_ends_as_if_nothing_had_been(tmp_path: Path) -> None:
    whole = new_guard(tmp_path / "whole", average=0.5)
    go_on(whole)
    wanted = result_of(whole)
    for _ in range(11):  # of 12 steps
        guard = new_guard(tmp_path / "killed", 0, average=0.5)
        guard.resume()
        killed_after(guard, 1)
    guard = new_guard(tmp_path / "killed", average=0.5)
    assert guard.resume()
    go_on(guard)
    assert equal(result_of(guard), wanted)


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
    guard, steps = new_guard(tmp_path), 0
    inner = guard.step.step

    def step(x: Tensor) -> Totals:
        nonlocal steps
        steps += 1
        if steps == 5:
            signal.raise_signal(number)
        return inner(x)

    guard.step.step = step  # type: ignore[method-assign]
    with pytest.raises(SystemExit) as ended:
        go_on(guard)
    assert ended.value.code == 128 + number
    assert steps == 5
    other = new_guard(tmp_path)
    assert other.resume()
    assert (len(other.fit.history), other.fit.seen.steps, other.step.images) == (1, 2, 18)  # 10, then 8 of 10


@pytest.mark.usefixtures("_handlers")
def test_a_signal_in_validation_leaves_a_checkpoint_of_the_whole_epoch(tmp_path: Path) -> None:
    whole = new_guard(tmp_path / "whole")
    go_on(whole)
    wanted = result_of(whole)
    guard = new_guard(tmp_path / "killed")
    inner = guard.step.score

    def score(x: Tensor) -> Totals:
        signal.raise_signal(signal.SIGTERM)
        return inner(x)

    guard.step.score = score  # type: ignore[method-assign]
    with pytest.raises(SystemExit):
        go_on(guard)
    other = new_guard(tmp_path / "killed")
    assert other.resume()
    assert (len(other.fit.history), other.fit.seen.images) == (0, 10)
    go_on(other)
    assert equal(result_of(other), wanted)


@pytest.mark.usefixtures("_handlers")
def test_a_second_signal_ends_training_at_once(tmp_path: Path) -> None:
    guard = new_guard(tmp_path)
    with guard.listening():
        signal.raise_signal(signal.SIGINT)
        assert guard.is_stopping
        with pytest.raises(SystemExit) as ended:
            signal.raise_signal(signal.SIGTERM)
    assert ended.value.code == 143
    assert files(tmp_path) == []


# Rolling back


class Spoiled(Step):
    """Training whose loss is NaN at some step of some epoch while the rate factor is too large."""

    def __init__(self, module: LossModule, config: TrainConfig, too_large: float, epoch: int) -> None:
        super().__init__(module, config)
        self.too_large = too_large
        self.epoch = epoch
        self.factors: list[float] = []

    def step(self, x: Tensor) -> Totals:
        is_last = self.images >= 10 * self.epoch - 2  # of the epoch's three steps
        self.factors.append(self.rate_factor)
        if is_last and self.rate_factor >= self.too_large:
            x = x * math.nan
        return super().step(x)


def spoiled(directory: Path, too_large: float, epoch: int = 3, seconds: float = math.inf, **changes: Any) -> Guard:
    config = settings(**{"on_nonfinite": "rollback"} | changes)
    step = Spoiled(new_step(config).module, config, too_large, epoch)
    torch.manual_seed(1)
    return Guard(step, Fit(), config, Checkpoints(directory), seconds)


def test_training_that_diverges_recovers_with_half_the_learning_rate(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    guard, epochs = spoiled(tmp_path, too_large=1.0), []
    go_on(guard, lambda _, epoch: epochs.append(epoch))
    assert epochs == [1, 2, 3, 4]
    assert [row["epoch"] for row in guard.fit.history] == [1.0, 2.0, 3.0, 4.0]
    assert (guard.rollbacks, guard.step.rate_factor) == (1, 0.5)
    assert guard.step.optimizer.param_groups[0]["lr"] == 0.005
    assert all(tensor.isfinite().all() for tensor in guard.step.weights().values())
    nonfinite, back = warnings_of(caplog)
    assert nonfinite.startswith("train: the train loss is no longer finite at epoch 3, step 3 of 3 (loss nan, ")
    assert back == "train: back to the end of epoch 2, learning rate times 0.5 (1 of 3 times)"


def test_a_roll_back_goes_to_the_very_state_of_the_last_good_epoch(tmp_path: Path) -> None:
    # As a training that halves its rate there, and never diverges.
    plain = spoiled(tmp_path / "plain", too_large=math.inf)
    inner = plain.after_epoch

    def after_epoch() -> None:
        inner()
        if len(plain.fit.history) == 2:
            plain.step.rate_factor = 0.5

    plain.after_epoch = after_epoch  # type: ignore[method-assign]
    go_on(plain)
    wanted = result_of(plain)
    guard = spoiled(tmp_path / "spoiled", too_large=1.0)
    go_on(guard)
    assert equal(result_of(guard), wanted)


def test_a_loss_that_diverges_in_the_first_epoch_goes_back_to_the_start(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    guard = spoiled(tmp_path, too_large=0.5, epoch=1)
    go_on(guard)
    assert (guard.rollbacks, guard.step.rate_factor, len(guard.fit.history)) == (2, 0.25, 4)
    assert [text for text in warnings_of(caplog) if "back to" in text] == [
        "train: back to the end of epoch 0, learning rate times 0.5 (1 of 3 times)",
        "train: back to the end of epoch 0, learning rate times 0.25 (2 of 3 times)",
    ]


def test_three_roll_backs_are_enough(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    guard = spoiled(tmp_path, too_large=0.0)
    with pytest.raises(NonFiniteError, match="the train loss is no longer finite at epoch 3, step 3 of 3"):
        go_on(guard)
    step = guard.step
    assert isinstance(step, Spoiled)
    assert step.factors == [1.0] * 9 + [0.5] * 3 + [0.25] * 3 + [0.125] * 3
    assert [text for text in warnings_of(caplog) if "back to" in text] == [
        f"train: back to the end of epoch 2, learning rate times {factor} ({count} of 3 times)"
        for count, factor in ((1, "0.5"), (2, "0.25"), (3, "0.125"))
    ]


def test_a_rate_that_is_right_at_an_eighth_is_reached(tmp_path: Path) -> None:
    guard = spoiled(tmp_path, too_large=0.25)
    go_on(guard)
    assert (guard.rollbacks, guard.step.rate_factor, len(guard.fit.history)) == (3, 0.125, 4)


def test_stop_stops_at_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    guard = spoiled(tmp_path, too_large=1.0, on_nonfinite="stop")
    with pytest.raises(NonFiniteError, match="epoch 3, step 3 of 3"):
        go_on(guard)
    assert (len(guard.fit.history), guard.rollbacks, warnings_of(caplog)) == (2, 0, [])


@pytest.mark.parametrize("steps", [7, 8, 9, 10, 11])
def test_a_training_that_was_killed_rolls_back_to_where_it_would_have(
    steps: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    # Not to the checkpoint, which lies within the epoch that diverges.
    whole = spoiled(tmp_path / "whole", too_large=1.0)
    go_on(whole)
    wanted = result_of(whole)
    killed_after(spoiled(tmp_path / "killed", too_large=1.0, seconds=0), steps)
    guard = spoiled(tmp_path / "killed", too_large=1.0)
    assert guard.resume()
    go_on(guard)
    assert equal(result_of(guard), wanted)
    assert guard.rollbacks == 1


def test_a_checkpoint_without_rolling_back_holds_no_second_state(tmp_path: Path) -> None:
    sizes = {}
    for mode in ("stop", "rollback"):
        killed_after(new_guard(tmp_path / mode, 0, on_nonfinite=mode), 4)
        sizes[mode] = files(tmp_path / mode)[-1].stat().st_size
        assert (Checkpoints(tmp_path / mode).read()["good"] != {}) == (mode == "rollback")
    assert sizes["stop"] < sizes["rollback"]


def test_the_guard_says_nothing_while_all_is_well(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, "reparam"):
        go_on(new_guard(tmp_path, 0, on_nonfinite="rollback"))
    assert warnings_of(caplog) == []


def test_a_checkpoint_pairs_the_optimizer_with_its_own_weights_and_not_with_the_best_ones(tmp_path: Path) -> None:
    guard = new_guard(tmp_path, seconds=0.0)
    step, batch = guard.step, torch.full((4, 1, 4, 4), 0.5)
    step.step(batch)
    guard.fit.best_weights = {name: weight.clone() for name, weight in step.weights().items()}  # of an earlier epoch
    step.step(batch)
    guard.after_step()

    other = new_guard(tmp_path)
    assert other.resume()
    for name, weight in other.step.weights().items():
        assert torch.equal(weight, step.weights()[name])
    assert any(not torch.equal(weight, guard.fit.best_weights[name]) for name, weight in step.weights().items())
    for found, wanted in zip(other.step.module.parameters(), step.module.parameters(), strict=True):
        moments, kept = other.step.optimizer.state[found], step.optimizer.state[wanted]
        assert moments["step"].item() == 2
        assert torch.equal(moments["exp_avg"], kept["exp_avg"])
    for name, weight in other.fit.best_weights.items():
        assert torch.equal(weight, guard.fit.best_weights[name])
