import json
import math
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from conftest import small_section
from some_cards import image_facts
from torch import Tensor
from training import (
    CPU,
    GREY,
    FakeTrainer,
    Training,
    model_config,
    objective_config,
    small_trainer,
    spoil,
    terms,
    train_config,
)

from reparam.config import TrainConfig
from reparam.data.batches import Batches
from reparam.data.pixels import Pixels
from reparam.data.sources import registry as sources
from reparam.data.sources.raw import ImageArrays
from reparam.data.store import Images
from reparam.distributed import ALONE, World
from reparam.errors import NonFiniteError
from reparam.models.build import build_model
from reparam.runtime import make_deterministic
from reparam.train.keeper import Keeper
from reparam.train.loop import Data, validate
from reparam.train.loss import Loss
from reparam.train.record import Record
from reparam.train.rollback import Rollback
from reparam.train.sums import EpochMetrics, Sums, Totals
from reparam.train.trainer import Trainer


def settings(epochs: int, **changes: Any) -> TrainConfig:
    values = {"epochs": epochs, "patience": 100, "seed": 0, "batch_size": 4, "learning_rate": 0.005}
    return train_config(**values | changes)


def black(images: int) -> Batches:
    return Batches(np.zeros((images, 1, 2, 2), np.uint8), 4, CPU)


def numbered(count: int, batch_size: int = 4) -> Batches:
    """Images of one pixel whose grey value is their number."""
    return Batches(np.arange(count, dtype=np.uint8).reshape(count, 1, 1, 1), batch_size, CPU)


# Early stopping, with a training whose validation losses are prescribed


class Script(FakeTrainer):
    """Validation that reads its terms off lists."""

    def __init__(self, config: TrainConfig, losses: list[float], elbos: list[float] | None = None) -> None:
        super().__init__(config)
        self.losses = iter(losses)
        self.elbos = iter(elbos or [])
        self.logged: list[tuple[int, EpochMetrics]] = []

    def validate(self, images: Tensor, labels: Tensor | None = None) -> Totals:
        assert not torch.is_grad_enabled()
        elbo = next(self.elbos, None)
        more = {} if elbo is None else {"elbo": torch.full((len(images),), elbo)}
        return Totals.of(terms(*[next(self.losses)] * len(images)) | more)

    def log(self, metrics: EpochMetrics, epoch: int) -> None:
        self.logged.append((epoch, metrics))

    def fit(self, validation: int = 4) -> Record:
        return Training(self).fit(Data(black(4), black(validation)), self.log)


def test_training_stops_after_patience_epochs_without_a_lower_validation_loss() -> None:
    # An equal loss is not a lower one.
    record = Script(settings(epochs=100, patience=3), [5.0, 4.0, 3.0, 3.5, 3.0, 4.0, 1.0]).fit()
    assert [row["validation_loss"] for row in record.history] == [5.0, 4.0, 3.0, 3.5, 3.0, 4.0]
    assert (record.best_score, record.best_epoch) == (3.0, 3)


def test_the_kept_weights_are_those_of_the_best_epoch_and_not_of_the_last() -> None:
    script = Script(settings(epochs=6), [5.0, 4.0, 3.0, 3.5, 3.2, 3.1])
    record = script.fit()
    assert script.weight.item() == 6
    assert record.best_weights["w"].item() == 3


def test_patience_begins_again_at_every_improvement() -> None:
    record = Script(settings(epochs=7, patience=2), [5.0, 6.0, 4.0, 6.0, 3.0, 6.0, 2.0]).fit()
    assert (len(record.history), record.best_epoch) == (7, 7)


def test_patience_of_one_stops_at_the_first_disappointment() -> None:
    record = Script(settings(epochs=3, patience=1), [5.0, 5.0, 1.0]).fit()
    assert (len(record.history), record.best_epoch) == (2, 1)


@pytest.mark.parametrize(
    ("min_delta", "best_epoch", "best_score", "epochs"),
    [
        (0.0, 5, 3.25, 8),
        (0.25, 4, 3.5, 7),  # to be better by 0.25 is not enough
        (2.0, 1, 5.0, 4),
    ],
)
def test_what_is_not_better_by_min_delta_is_no_improvement(
    min_delta: float, best_epoch: int, best_score: float, epochs: int
) -> None:
    config = settings(epochs=100, patience=3, min_delta=min_delta)
    record = Script(config, [5.0, 4.25, 4.0, 3.5, 3.25, 3.25, 3.25, 3.25]).fit()
    assert (record.best_epoch, record.best_score, len(record.history)) == (best_epoch, best_score, epochs)
    assert record.best_weights["w"].item() == best_epoch


def test_small_steps_count_once_they_add_up_to_min_delta() -> None:
    # Measured from the last that counted.
    record = Script(settings(epochs=5, min_delta=0.375), [5.0, 4.75, 4.5, 4.25, 4.0]).fit()
    assert (record.best_epoch, record.best_score) == (5, 4.0)


@pytest.mark.parametrize(
    ("monitor", "epoch", "score", "epochs"),
    [("loss", 3, 1.0, 5), ("elbo", 2, 4.0, 4)],  # lower is better, and a score of 4 is an ELBO of -4
)
def test_loss_and_elbo_choose_different_epochs(monitor: str, epoch: int, score: float, epochs: int) -> None:
    config = settings(epochs=6, patience=2, monitor=monitor)
    record = Script(config, [3.0, 2.0, 1.0, 2.0, 2.0, 2.0], [-5.0, -4.0, -6.0, -7.0, -4.0, -4.0]).fit()
    assert (record.best_epoch, record.best_score, len(record.history)) == (epoch, score, epochs)
    assert record.best_weights["w"].item() == epoch
    assert [row["validation_loss"] for row in record.history] == [3.0, 2.0, 1.0, 2.0, 2.0][:epochs]
    assert [row["validation_elbo"] for row in record.history] == [-5.0, -4.0, -6.0, -7.0, -4.0][:epochs]


@pytest.mark.parametrize("monitor", ["loss", "elbo"])
def test_without_validation_every_epoch_is_trained_and_the_last_weights_are_kept(monitor: str) -> None:
    script = Script(settings(epochs=5, patience=1, monitor=monitor), [])  # any score would raise StopIteration
    record = script.fit(validation=0)
    assert (len(record.history), record.best_epoch) == (5, 5)
    assert record.best_weights["w"].item() == 5
    assert record.history[0] == {"epoch": 1.0, "train_loss": 0.0, "train_kl": 1.0}
    assert [set(metrics) for _, metrics in script.logged] == [
        {"epoch", "train_loss", "train_kl", "images_per_second"}
    ] * 5


def test_a_score_is_the_mean_over_images_and_no_mean_of_batch_means() -> None:
    class Ragged(FakeTrainer):
        def validate(self, images: Tensor, labels: Tensor | None = None) -> Totals:
            return Totals.of(terms(*[1.0 if len(images) == 4 else 11.0] * len(images)))

    record = Training(Ragged(settings(epochs=1))).fit(Data(black(4), black(10)))
    assert record.history[0]["validation_loss"] == record.best_score == 3.0  # of batch means it would be 13 / 3


@pytest.mark.parametrize("found", [math.nan, -math.inf])
def test_a_monitored_elbo_that_is_not_finite_stops_training_although_the_loss_is(found: float) -> None:
    with pytest.raises(NonFiniteError) as error:
        Script(settings(epochs=9, monitor="elbo"), [3.0, 2.0], [-5.0, found]).fit()
    assert str(error.value) == (
        f"train: the validation elbo is no longer finite at epoch 2 (found {found}); set train.monitor to loss in "
        "params.yaml, or lower train.learning_rate"
    )


def test_training_shuffles_again_in_every_epoch_and_validation_keeps_the_order() -> None:
    class Looking(FakeTrainer):
        trained_images, scored_images = list[int](), list[int]()

        def trained(self, images: Tensor) -> Totals:
            self.trained_images.extend(images.flatten().tolist())
            return super().trained(images)

        def validate(self, images: Tensor, labels: Tensor | None = None) -> Totals:
            self.scored_images.extend(images.flatten().tolist())
            return super().validate(images)

    torch.manual_seed(0)
    looking = Looking(settings(epochs=2), epoch_images=100)
    Training(looking).fit(Data(numbered(100, 32), numbered(100, 32)))
    everything = list(range(100))
    assert looking.scored_images == everything * 2
    first, second = looking.trained_images[:100], looking.trained_images[100:]
    assert sorted(first) == sorted(second) == everything
    assert len({tuple(first), tuple(second), tuple(everything)}) == 3
    torch.manual_seed(0)
    assert first == torch.randperm(100).tolist()  # of the CPU, so that the order is the same on every device


def test_every_epoch_is_logged_once_and_only_the_log_holds_the_speed() -> None:
    script = Script(settings(epochs=2), [2.0, 1.0])
    record = script.fit()
    assert record.history == [
        {"epoch": 1.0, "train_loss": 0.0, "train_kl": 1.0, "validation_loss": 2.0, "validation_kl": 1.0},
        {"epoch": 2.0, "train_loss": 0.0, "train_kl": 1.0, "validation_loss": 1.0, "validation_kl": 1.0},
    ]
    assert [epoch for epoch, _ in script.logged] == [1, 2]
    for (_, metrics), row in zip(script.logged, record.history, strict=True):
        assert metrics.pop("images_per_second") > 0
        assert metrics == row


def test_a_validation_loss_that_is_not_finite_stops_training_before_it_is_logged() -> None:
    script = Script(settings(epochs=9), [2.0, math.nan])
    with pytest.raises(NonFiniteError) as error:
        script.fit()
    assert str(error.value) == (
        "train: the validation loss is no longer finite at epoch 2, step 1 of 1 (loss nan, kl 1.0); "
        "lower train.learning_rate in params.yaml, or objective.beta if it is large, set train.clip_norm, or "
        "train.on_nonfinite to rollback"
    )
    assert [epoch for epoch, _ in script.logged] == [1]


def test_weights_that_are_not_finite_stop_training_before_the_epoch_is_kept_or_logged() -> None:
    class Checked(Script):
        def check(self, epoch: int) -> None:
            if epoch == 2:
                raise NonFiniteError("the weights of epoch 2")

    script = Checked(settings(epochs=9), [2.0, 1.0])
    training = Training(script)
    with pytest.raises(NonFiniteError, match="the weights of epoch 2"):
        training.fit(Data(black(4), black(4)), script.log)
    assert [epoch for epoch, _ in script.logged] == [1]
    assert (len(training.record.history), training.record.best_weights["w"].item()) == (1, 1)


# What looks after training, and going on


class Stop(BaseException):
    """What a keeper ends the process with."""


class Looking(Keeper):
    """A keeper that counts how often it was asked, and ends training after so many steps."""

    steps = 0
    last = math.inf

    def after_step(self) -> None:
        self.steps += 1
        super().after_step()
        if self.steps == self.last:
            raise Stop


def looked_after(trainer: FakeTrainer, last: float = math.inf) -> tuple[Training, Looking]:
    training = Training(trainer)
    keeper = Looking(training.state, training.rollback, training.keeper.stop, None, math.inf)
    keeper.last = last
    training.keeper = keeper
    return training, keeper


class Tape(FakeTrainer):
    """Training that notes which images it sees, and whose loss is their number."""

    def __init__(self, config: TrainConfig) -> None:
        super().__init__(config, epoch_images=10)
        self.seen: list[list[int]] = []
        self.scored = 0

    def trained(self, images: Tensor) -> Totals:
        numbers = images.flatten()
        self.seen.append(numbers.tolist())
        return Totals.of({"loss": numbers / 7, "kl": numbers.float().square()})

    def validate(self, images: Tensor, labels: Tensor | None = None) -> Totals:
        self.scored += 1
        return super().validate(images)


def test_a_keeper_is_asked_after_every_step() -> None:
    training, keeper = looked_after(Tape(settings(epochs=3)))
    training.fit(Data(numbered(10), numbered(3)))
    assert keeper.steps == 9  # validation makes no steps


def test_an_epoch_is_remembered_after_it_was_kept_and_logged() -> None:
    seen: list[tuple[int, int, bool, int]] = []
    training = Training(script := Script(settings(epochs=2), [2.0, 1.0]))

    class Looking(Rollback):
        def remember(self) -> None:
            state = training.state
            seen.append((len(script.logged), len(state.record.history), state.epoch.order is None, state.position))

    training.rollback = Looking(training.state, is_on=True)
    training.fit(Data(black(4), black(4)), script.log)
    assert seen == [(1, 1, True, 0), (2, 2, True, 0)]


@pytest.mark.parametrize("steps", [1, 2, 3, 4, 5, 6, 7])
def test_training_goes_on_in_the_middle_of_an_epoch_with_the_rest_of_its_order(steps: int) -> None:
    # Three steps an epoch, of 4, 4 and 2 images; after the third, validation is left.
    data, config = Data(numbered(10), numbered(3)), settings(epochs=3)
    torch.manual_seed(0)
    wanted = (whole := Training(Tape(config))).fit(data)

    torch.manual_seed(0)
    training, keeper = looked_after(Tape(config), last=steps)
    with pytest.raises(Stop):
        training.fit(data)
    state = training.state
    assert len(training.trainer.seen) == steps
    assert (state.epoch.order is not None, state.epoch.sums.steps) == (True, (steps - 1) % 3 + 1)
    assert state.position == [4, 8, 10][(steps - 1) % 3]
    keeper.last = math.inf
    record = training.fit(data)
    assert training.trainer.seen == whole.trainer.seen
    assert record.history == wanted.history
    assert record.best_weights == wanted.best_weights
    assert (record.best_score, record.best_epoch) == (wanted.best_score, wanted.best_epoch)


def test_who_wants_to_stop_need_not_wait_for_the_end_of_validation() -> None:
    training, states = Training(tape := Tape(settings(epochs=1))), []

    class Stopping(Keeper):
        def after_step(self) -> None:
            states.append(torch.get_rng_state())
            if len(states) == 3:  # of the epoch: somebody asks between the last step and validation
                self.stop.signal = 15

        def after_validation(self) -> None:
            states.append(torch.get_rng_state())
            if self.stop:
                raise Stop

    training.keeper = Stopping(training.state, training.rollback, training.keeper.stop, None, math.inf)
    data = Data(numbered(10), numbered(100))
    torch.manual_seed(0)
    with pytest.raises(Stop):
        training.fit(data)
    assert torch.equal(states[3], states[2])  # on the random stream of training again
    assert (len(tape.seen), tape.scored, training.record.history) == (3, 0, [])
    training.keeper.stop.signal = 0
    training.fit(data)
    assert (len(tape.seen), tape.scored, len(training.record.history)) == (3, 25, 1)


def test_a_training_that_is_over_does_nothing_more() -> None:
    training = Training(tape := Tape(settings(epochs=9, patience=2)))
    for epoch, loss in enumerate((1.0, 2.0, 2.0), 1):
        training.record.add({"epoch": float(epoch), "validation_loss": loss})
    training.record.best_epoch = 1
    training.fit(Data(numbered(4), numbered(4)))
    assert (tape.seen, len(training.record.history)) == ([], 3)


def test_an_epoch_that_was_rolled_back_is_trained_again_and_logged_once() -> None:
    training = Training(script := Script(settings(epochs=2, on_nonfinite="rollback"), [2.0, math.nan, 1.0]))
    record = training.fit(Data(black(4), black(4)), script.log)
    assert [epoch for epoch, _ in script.logged] == [1, 2]
    assert [row["validation_loss"] for row in record.history] == [2.0, 1.0]
    assert (training.rollback.count, script.rate_factor, script.images) == (1, 0.5, 8)


# Real training


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Images:
    """The real digits, (1797, 1, 8, 8)."""
    directory = tmp_path_factory.mktemp("raw")
    config = small_section("download", source="digits")
    sources.download(config, directory, directory)
    sources.write_manifest(config, directory)
    _, raw = sources.read(directory, tmp_path_factory.mktemp("scratch"))
    split = raw.splits["all"]
    assert isinstance(split, ImageArrays)
    return split.images


@pytest.fixture
def deterministic() -> Iterator[None]:
    """Take back what `make_deterministic` sets."""
    before = torch.are_deterministic_algorithms_enabled()
    yield
    torch.use_deterministic_algorithms(before)


class Drawing(Trainer):
    """A trainer whose scores draw random numbers of their own."""

    def validate(self, images: Tensor, labels: Tensor | None = None) -> Totals:
        torch.rand(3)
        return super().validate(images)


def train(
    images: Images, config: TrainConfig, device: torch.device = CPU, kind: type[Trainer] = Trainer, **objective: Any
) -> Record:
    """Train on all but the first 50 images, which are held out."""
    make_deterministic(config.seed)
    data = Data(*(Batches(part, config.batch_size, device) for part in (images[50:], images[:50])))
    model = build_model(model_config(hidden=(32,), latent=4), images.shape[1:])
    loss = Loss(model, Pixels(image_facts("dynamic")), objective_config(**objective)).to(device)
    return Training(kind(loss, config, len(data.training))).fit(data)


def history_bytes(record: Record) -> str:
    return json.dumps(record.history)


def same_weights(first: Record, second: Record) -> bool:
    assert first.best_weights.keys() == second.best_weights.keys()
    return all(torch.equal(tensor, second.best_weights[name]) for name, tensor in first.best_weights.items())


@pytest.mark.usefixtures("deterministic")
def test_training_on_real_digits_lowers_the_loss(digits: Images) -> None:
    record = train(digits, settings(epochs=6, batch_size=64))
    assert record.history[0]["train_loss"] > 32  # nats; 64 fair coins make 44.4
    assert record.history[-1]["train_loss"] < 28
    assert record.history[-1]["validation_loss"] < 28
    assert record.best_score == min(row["validation_loss"] for row in record.history)


@pytest.mark.usefixtures("deterministic")
@pytest.mark.parametrize("warmup", ["none", "linear"])
def test_model_selection_weighs_the_kl_with_the_beta_of_training(warmup: str, digits: Images) -> None:
    config = settings(epochs=3, batch_size=64)
    record = train(digits[:300], config, beta=10.0, warmup=warmup, warmup_epochs=1000)
    for row in record.history:
        wanted = row["validation_reconstruction"] + 10 * row["validation_kl"]
        assert row["validation_loss"] == pytest.approx(wanted, rel=1e-5)
        assert row["validation_elbo"] == pytest.approx(
            -row["validation_reconstruction"] - row["validation_kl"], rel=1e-5
        )
    assert record.best_score == min(row["validation_loss"] for row in record.history)
    first = record.history[0]
    beta = {"none": 10.0, "linear": 0.0}[warmup]  # of the first epoch of 1,000: nearly 0
    wanted = first["train_reconstruction"] + beta * first["train_kl"]
    assert first["train_loss"] == pytest.approx(wanted, rel=1e-3)


@pytest.mark.usefixtures("deterministic")
def test_the_same_seed_trains_the_same_model(digits: Images) -> None:
    first, second, other = (train(digits[:300], settings(epochs=2, seed=seed, batch_size=64)) for seed in (3, 3, 4))
    assert same_weights(first, second)
    assert history_bytes(first) == history_bytes(second)
    assert not same_weights(first, other)
    assert history_bytes(first) != history_bytes(other)


@pytest.mark.usefixtures("deterministic")
def test_what_validation_draws_does_not_change_training(digits: Images) -> None:
    config = settings(epochs=2, batch_size=64)
    plain, drawing = train(digits[:300], config), train(digits[:300], config, kind=Drawing)
    assert same_weights(plain, drawing)
    for name in ("train_loss", "train_kl", "train_reconstruction"):
        assert [row[name] for row in plain.history] == [row[name] for row in drawing.history]
    assert plain.history[0]["validation_loss"] != drawing.history[0]["validation_loss"]


def test_validation_sees_the_same_draws_in_every_epoch_whatever_training_drew() -> None:
    class Drawing(FakeTrainer):
        def validate(self, images: Tensor, labels: Tensor | None = None) -> Totals:
            drawn.append(torch.rand(()).item())
            return super().validate(images)

    def draw(validation_seed: int, training_seed: int) -> list[float]:
        drawn.clear()
        torch.manual_seed(training_seed)
        training = Training(Drawing(settings(epochs=3, seed=validation_seed)))
        training.fit(Data(black(4), black(8)))  # two batches of validation
        return drawn.copy()

    drawn: list[float] = []
    first = draw(0, training_seed=1)
    assert first[0:2] == first[2:4] == first[4:6]
    assert first[0] != first[1]
    assert draw(1, training_seed=1)[0] != first[0]
    assert draw(0, training_seed=2) == first


class OneOf(World):
    """One of several processes, which returns what it has for the sum of all."""

    def total(self, values: Tensor) -> Tensor:
        return values


@pytest.mark.parametrize("size", [2, 3, 5])  # batches of 4, 4 and 2 images; the last two of five processes get none
def test_processes_share_the_batches_of_validation_and_find_together_what_one_finds(size: int) -> None:
    def found(world: World) -> Sums:
        training = Training(small_trainer())
        training.trainer.world = world
        quiet: Any = SimpleNamespace(ends_validation=lambda: False, after_validation=lambda: None)
        return validate(training.state, Batches(GREY, 4, CPU), training.trainer.config, quiet)

    alone, parts = found(ALONE), [found(OneOf(rank, size)) for rank in range(size)]
    assert alone.images == len(GREY) == sum(part.images for part in parts)
    assert [part.images for part in parts] == {2: [6, 4], 3: [4, 4, 2], 5: [4, 4, 2, 0, 0]}[size]
    torch.testing.assert_close(sum(part.totals for part in parts), alone.totals, rtol=1e-14, atol=0)
    assert {tuple(part.names) for part in parts} == {tuple(alone.names)}


@pytest.mark.usefixtures("deterministic")
def test_a_loss_that_explodes_in_real_training_names_epoch_and_step() -> None:
    class Exploding(Trainer):
        def step(self, images: Tensor, labels: Tensor | None = None) -> Totals:
            if self.images == 16:  # before the second step of the second epoch
                spoil(self)
            return super().step(images)

    images = np.zeros((62, 1, 2, 2), np.uint8)
    with pytest.raises(NonFiniteError, match=r"the train loss is no longer finite at epoch 2, step 2 of 3 \(loss nan,"):
        train(images, settings(epochs=3, learning_rate=0.001), kind=Exploding)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no CUDA GPU")
@pytest.mark.usefixtures("deterministic")
def test_the_same_seed_trains_the_same_model_on_a_gpu(digits: Images) -> None:
    config, gpu = settings(epochs=2, batch_size=64), torch.device("cuda")
    first, second = train(digits[:300], config, gpu), train(digits[:300], config, gpu)
    assert same_weights(first, second)
    assert history_bytes(first) == history_bytes(second)
    assert {tensor.device.type for tensor in first.best_weights.values()} == {"cuda"}
    on_cpu = train(digits[:300], config)  # another noise generator, so near and not equal
    assert first.best_score == pytest.approx(on_cpu.best_score, rel=0.05)
