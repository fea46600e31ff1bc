import json
import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from conftest import small_section
from data_card import data_card
from torch import Tensor

from reparam.config import TrainConfig
from reparam.data.batches import Batches
from reparam.data.scaling import Scaling
from reparam.data.sources import registry as sources
from reparam.data.sources.raw import ImageArrays
from reparam.data.store import Images
from reparam.errors import NonFiniteError
from reparam.models.build import build_model
from reparam.objectives import Terms
from reparam.runtime import make_deterministic
from reparam.train.loop import Fit, Metrics, Sums, Totals, Trainer, fit
from reparam.train.step import LossModule, Step

CPU = torch.device("cpu")


def settings(epochs: int, **changes: Any) -> TrainConfig:
    values = {"epochs": epochs, "patience": 100, "seed": 0, "batch_size": 4, "learning_rate": 0.005}
    return small_section("train", **values | changes)


def batches(images: int, batch_size: int = 4) -> Batches:
    return Batches(np.zeros((images, 1, 2, 2), np.uint8), data_card("none"), batch_size, CPU)


def terms(*loss: float) -> Terms:
    return {"loss": torch.tensor(loss), "kl": torch.ones(len(loss))}


def summed(given: list[Terms]) -> Sums:
    sums = Sums()
    for batch in given:
        sums.add(Totals.of(batch))
    return sums


class Nobody:
    """A keeper that keeps nothing, and counts how often it was asked."""

    is_stopping = False

    def __init__(self) -> None:
        self.steps = 0
        self.epochs = 0

    def after_step(self) -> None:
        self.steps += 1

    def after_epoch(self) -> None:
        self.epochs += 1

    def roll_back(self, error: NonFiniteError) -> None:
        raise error


def ignore(metrics: Metrics, epoch: int) -> None:
    pass


# Sums


def test_a_mean_over_images_is_no_mean_of_batch_means_where_the_last_batch_is_ragged() -> None:
    sums = summed([terms(1.0, 2.0), terms(6.0)])
    assert sums.means("train", epoch=1) == {"train_loss": 3.0, "train_kl": 1.0}
    assert (sums.images, sums.steps) == (3, 2)


def test_sums_do_not_lose_images_to_rounding() -> None:
    # 2^24 + 1 is the first whole number that float32 does not have.
    assert summed([terms(2.0**24), terms(1.0)]).means("train", epoch=1)["train_loss"] == (2**24 + 1) / 2


def test_summing_never_waits_for_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    def wait(*_: object) -> None:
        raise AssertionError("this would wait for the device once per step")

    given = [terms(1.0, 2.0), terms(3.0)]
    with monkeypatch.context() as patched:
        for name in ("item", "tolist", "cpu", "numpy", "__bool__", "__float__", "__int__"):
            patched.setattr(torch.Tensor, name, wait)
        sums = summed(given)
    assert sums.means("train", epoch=1)["train_loss"] == 2.0


@pytest.mark.parametrize(
    ("losses", "step", "found"),
    [
        ([math.nan, 1.0, 1.0], 1, "loss nan"),
        ([1.0, math.inf, 1.0], 2, "loss inf"),
        ([1.0, 1.0, -math.inf], 3, "loss -inf"),
        ([1.0, math.inf, -math.inf], 2, "loss nan"),
    ],
)
def test_the_first_step_whose_loss_is_not_finite_is_named(losses: list[float], step: int, found: str) -> None:
    with pytest.raises(NonFiniteError) as error:
        summed([terms(1.0, loss) for loss in losses]).means("train", epoch=5)
    assert str(error.value) == (
        f"train: the train loss is no longer finite at epoch 5, step {step} of 3 ({found}, kl 1.0); "
        "lower train.learning_rate in params.yaml, or objective.beta where it is large, set train.clip_norm, or "
        "train.on_nonfinite to rollback"
    )


def test_sums_are_spoilt_from_the_first_loss_on_that_is_not_finite() -> None:
    sums = Sums()
    assert not sums.is_spoilt()  # there was no step yet
    spoilt = []
    for loss in (1.0, math.inf, -math.inf, 1.0):
        sums.add(Totals.of(terms(loss)))
        spoilt.append(sums.is_spoilt())
    assert spoilt == [False, True, True, True]


def test_terms_of_two_precisions_are_summed_in_float64() -> None:
    sums = summed([{"loss": torch.tensor([1.5, 2.0]), "kl": torch.tensor([0.5, 0.25], dtype=torch.bfloat16)}])
    assert sums.totals.dtype == torch.float64
    assert sums.means("train", epoch=1) == {"train_loss": 1.75, "train_kl": 0.375}


# When it is over


def history(*losses: float) -> list[Metrics]:
    return [{"epoch": float(epoch), "validation_loss": loss} for epoch, loss in enumerate(losses, 1)]


@pytest.mark.parametrize(
    ("rows", "best_epoch", "is_over"),
    [
        (0, 0, False),
        (2, 2, False),
        (4, 3, False),  # one epoch without a better one, of two
        (4, 2, True),
        (5, 5, True),  # as many epochs as wanted
        (6, 6, True),  # more than wanted, which a changed params.yaml might bring
    ],
)
def test_training_is_over_after_all_epochs_or_where_patience_ends(rows: int, best_epoch: int, is_over: bool) -> None:
    state = Fit(history=history(*[1.0] * rows), best_epoch=best_epoch)
    assert state.is_over(settings(epochs=5, patience=2)) == is_over


def test_without_validation_patience_never_ends_training() -> None:
    state = Fit(history=[{"epoch": 1.0, "train_loss": 1.0}] * 4, best_epoch=1)
    assert not state.is_over(settings(epochs=5, patience=1))


# Early stopping, with a training whose validation losses are prescribed


class Script:
    """Training that only counts its steps, into its one weight, and validation that reads its terms off lists."""

    def __init__(self, losses: list[float], elbos: list[float] | None = None) -> None:
        self.losses = iter(losses)
        self.elbos = iter(elbos or [])
        self.weight = torch.zeros(())
        self.logged: list[tuple[int, Metrics]] = []

    def check(self, epoch: int) -> None:
        pass

    def agree(self, order: Tensor) -> Tensor:
        return order

    def gather(self, sums: Sums) -> Sums:
        return sums

    def schedules(self) -> Metrics:
        return {}

    def weights(self) -> dict[str, Tensor]:
        return {"w": self.weight}

    def step(self, batch: Tensor) -> Totals:
        self.weight += 1  # in place, as an optimizer does
        return Totals.of(terms(*[0.0] * len(batch)))

    def score(self, batch: Tensor) -> Totals:
        assert not torch.is_grad_enabled()
        elbo = next(self.elbos, None)
        more = {} if elbo is None else {"elbo": torch.full((len(batch),), elbo)}
        return Totals.of(terms(*[next(self.losses)] * len(batch)) | more)

    def log(self, metrics: Metrics, epoch: int) -> None:
        self.logged.append((epoch, metrics))

    def fit(self, config: TrainConfig, validation: int = 4) -> Fit:
        result = Fit()
        fit(self, (batches(4), batches(validation)), config, self.log, result, Nobody())
        return result


class Functions:
    """A trainer of two functions."""

    def __init__(self, step: Callable[[Tensor], Totals], score: Callable[[Tensor], Totals]) -> None:
        self.step = step
        self.score = score

    def check(self, epoch: int) -> None:
        pass

    def agree(self, order: Tensor) -> Tensor:
        return order

    def gather(self, sums: Sums) -> Sums:
        return sums

    def schedules(self) -> Metrics:
        return {}

    def weights(self) -> dict[str, Tensor]:
        return {}


def ones(batch: Tensor) -> Totals:
    return Totals.of(terms(*[1.0] * len(batch)))


def fitted(trainer: Trainer, data: tuple[Batches, Batches], config: TrainConfig) -> Fit:
    result = Fit()
    fit(trainer, data, config, ignore, result, Nobody())
    return result


def test_training_stops_after_patience_epochs_without_a_lower_validation_loss() -> None:
    script = Script([5.0, 4.0, 3.0, 3.5, 3.0, 4.0, 1.0])  # an equal loss is not a lower one
    result = script.fit(settings(epochs=100, patience=3))
    assert [row["validation_loss"] for row in result.history] == [5.0, 4.0, 3.0, 3.5, 3.0, 4.0]
    assert (result.best_score, result.best_epoch) == (3.0, 3)


def test_the_kept_weights_are_those_of_the_best_epoch_and_not_of_the_last() -> None:
    script = Script([5.0, 4.0, 3.0, 3.5, 3.2, 3.1])
    result = script.fit(settings(epochs=6))
    assert script.weight.item() == 6
    assert result.best_weights["w"].item() == 3


def test_patience_begins_anew_at_every_improvement() -> None:
    result = Script([5.0, 6.0, 4.0, 6.0, 3.0, 6.0, 2.0]).fit(settings(epochs=7, patience=2))
    assert (len(result.history), result.best_epoch) == (7, 7)


def test_patience_of_one_stops_at_the_first_disappointment() -> None:
    result = Script([5.0, 5.0, 1.0]).fit(settings(epochs=3, patience=1))
    assert (len(result.history), result.best_epoch) == (2, 1)


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
    script = Script([5.0, 4.25, 4.0, 3.5, 3.25, 3.25, 3.25, 3.25])
    result = script.fit(settings(epochs=100, patience=3, min_delta=min_delta))
    assert (result.best_epoch, result.best_score, len(result.history)) == (best_epoch, best_score, epochs)
    assert result.best_weights["w"].item() == best_epoch


def test_small_steps_count_once_they_add_up_to_min_delta() -> None:
    script = Script([5.0, 4.75, 4.5, 4.25, 4.0])  # measured from the last that counted
    result = script.fit(settings(epochs=5, min_delta=0.375))
    assert (result.best_epoch, result.best_score) == (5, 4.0)


@pytest.mark.parametrize(
    ("monitor", "epoch", "score", "epochs"),
    [("loss", 3, 1.0, 5), ("elbo", 2, 4.0, 4)],  # lower is better, and a score of 4 is an ELBO of -4
)
def test_loss_and_elbo_choose_different_epochs(monitor: str, epoch: int, score: float, epochs: int) -> None:
    script = Script([3.0, 2.0, 1.0, 2.0, 2.0, 2.0], [-5.0, -4.0, -6.0, -7.0, -4.0, -4.0])
    result = script.fit(settings(epochs=6, patience=2, monitor=monitor))
    assert (result.best_epoch, result.best_score, len(result.history)) == (epoch, score, epochs)
    assert result.best_weights["w"].item() == epoch
    assert [row["validation_loss"] for row in result.history] == [3.0, 2.0, 1.0, 2.0, 2.0][:epochs]
    assert [row["validation_elbo"] for row in result.history] == [-5.0, -4.0, -6.0, -7.0, -4.0][:epochs]


@pytest.mark.parametrize("monitor", ["loss", "elbo"])
def test_without_validation_every_epoch_is_trained_and_the_last_weights_are_kept(monitor: str) -> None:
    script = Script([])  # any score would raise StopIteration
    result = script.fit(settings(epochs=5, patience=1, monitor=monitor), validation=0)
    assert (len(result.history), result.best_epoch) == (5, 5)
    assert result.best_weights["w"].item() == 5
    assert result.history[0] == {"epoch": 1.0, "train_loss": 0.0, "train_kl": 1.0}
    assert [set(metrics) for _, metrics in script.logged] == [
        {"epoch", "train_loss", "train_kl", "images_per_second"}
    ] * 5


def test_a_score_is_the_mean_over_images_and_no_mean_of_batch_means() -> None:
    values = iter([Totals.of(terms(*loss)) for loss in ([1.0] * 4, [1.0] * 4, [11.0] * 2)])
    result = fitted(Functions(ones, lambda _: next(values)), (batches(4), batches(10)), settings(epochs=1))
    assert result.history[0]["validation_loss"] == result.best_score == 3.0  # of batch means it would be 13 / 3


@pytest.mark.parametrize("found", [math.nan, -math.inf])
def test_a_monitored_elbo_that_is_not_finite_stops_training_although_the_loss_is(found: float) -> None:
    script = Script([3.0, 2.0], [-5.0, found])
    with pytest.raises(NonFiniteError) as error:
        script.fit(settings(epochs=9, monitor="elbo"))
    assert str(error.value) == (
        f"train: the validation elbo is no longer finite at epoch 2 (found {found}); set train.monitor to loss in "
        "params.yaml, or lower train.learning_rate"
    )


def test_training_shuffles_anew_in_every_epoch_and_validation_keeps_the_order() -> None:
    images = np.arange(100, dtype=np.uint8).reshape(100, 1, 1, 1)
    data = Batches(images, data_card("none"), 32, CPU)
    trained, scored = list[float](), list[float]()

    def look(seen: list[float]) -> Callable[[Tensor], Totals]:
        def visit(batch: Tensor) -> Totals:
            seen.extend((batch.flatten() * 255).round().tolist())
            return Totals.of(terms(*[1.0] * len(batch)))

        return visit

    torch.manual_seed(0)
    fitted(Functions(look(trained), look(scored)), (data, data), settings(epochs=2))
    everything = [float(value) for value in range(100)]
    assert scored == everything * 2
    first, second = trained[:100], trained[100:]
    assert sorted(first) == sorted(second) == everything
    assert len({tuple(first), tuple(second), tuple(everything)}) == 3


def test_every_epoch_is_logged_once_and_only_the_log_holds_the_speed() -> None:
    script = Script([2.0, 1.0])
    result = script.fit(settings(epochs=2))
    assert result.history == [
        {"epoch": 1.0, "train_loss": 0.0, "train_kl": 1.0, "validation_loss": 2.0, "validation_kl": 1.0},
        {"epoch": 2.0, "train_loss": 0.0, "train_kl": 1.0, "validation_loss": 1.0, "validation_kl": 1.0},
    ]
    assert [epoch for epoch, _ in script.logged] == [1, 2]
    for (_, metrics), row in zip(script.logged, result.history, strict=True):
        assert metrics.pop("images_per_second") > 0
        assert metrics == row


def test_a_validation_loss_that_is_not_finite_stops_training_before_it_is_logged() -> None:
    script = Script([2.0, math.nan])
    with pytest.raises(NonFiniteError) as error:
        script.fit(settings(epochs=9))
    assert str(error.value) == (
        "train: the validation loss is no longer finite at epoch 2, step 1 of 1 (loss nan, kl 1.0); "
        "lower train.learning_rate in params.yaml, or objective.beta where it is large, set train.clip_norm, or "
        "train.on_nonfinite to rollback"
    )
    assert [epoch for epoch, _ in script.logged] == [1]


# Keepers, and going on


class Stop(BaseException):
    """What a keeper ends the process with."""


class Stopping(Nobody):
    """A keeper that ends training after some steps, or, where validation asks, at once."""

    def __init__(self, steps: int, *, in_validation: bool = False) -> None:
        super().__init__()
        self.last = steps
        self.in_validation = in_validation

    @property
    def is_stopping(self) -> bool:  # type: ignore[override]
        return self.in_validation and self.steps >= self.last

    def after_step(self) -> None:
        super().after_step()
        if self.steps == self.last + self.in_validation:
            raise Stop


class Tape:
    """Training that notes which images it sees, and whose loss is their grey value."""

    def __init__(self) -> None:
        self.trained: list[list[int]] = []
        self.scored = 0

    def check(self, epoch: int) -> None:
        pass

    def agree(self, order: Tensor) -> Tensor:
        return order

    def gather(self, sums: Sums) -> Sums:
        return sums

    def schedules(self) -> Metrics:
        return {}

    def weights(self) -> dict[str, Tensor]:
        return {"w": torch.tensor(float(len(self.trained)))}

    def step(self, batch: Tensor) -> Totals:
        numbers = (batch.flatten() * 255).round()
        self.trained.append([int(number) for number in numbers.tolist()])
        return Totals.of({"loss": numbers / 7, "kl": numbers.square()})

    def score(self, batch: Tensor) -> Totals:
        self.scored += 1
        return Totals.of(terms(*[1.0] * len(batch)))


def numbered(count: int, batch_size: int) -> Batches:
    return Batches(np.arange(count, dtype=np.uint8).reshape(count, 1, 1, 1), data_card("none"), batch_size, CPU)


def test_a_keeper_is_told_of_every_step_and_every_epoch() -> None:
    keeper = Nobody()
    fit(Tape(), (numbered(10, 4), numbered(3, 4)), settings(epochs=3), ignore, Fit(), keeper)
    assert (keeper.steps, keeper.epochs) == (9, 3)  # validation makes no steps


def test_a_keeper_sees_an_epoch_after_it_was_kept_and_logged() -> None:
    seen: list[tuple[int, int, bool]] = []
    state, script = Fit(), Script([2.0, 1.0])

    class Looking(Nobody):
        def after_epoch(self) -> None:
            seen.append((len(script.logged), len(state.history), state.order is None))

    fit(script, (batches(4), batches(4)), settings(epochs=2), script.log, state, Looking())
    assert seen == [(1, 1, True), (2, 2, True)]


@pytest.mark.parametrize("steps", [1, 2, 3, 4, 5, 6, 7])
def test_training_goes_on_in_the_middle_of_an_epoch_with_the_rest_of_its_order(steps: int) -> None:
    # Three steps an epoch, of 4, 4 and 2 images; after the third, validation is left.
    data, config = (numbered(10, 4), numbered(3, 4)), settings(epochs=3)
    torch.manual_seed(0)
    whole, wanted = Tape(), Fit()
    fit(whole, data, config, ignore, wanted, Nobody())

    torch.manual_seed(0)
    tape, state = Tape(), Fit()
    with pytest.raises(Stop):
        fit(tape, data, config, ignore, state, Stopping(steps))
    assert len(tape.trained) == steps
    assert (state.order is not None, state.seen.steps) == (True, (steps - 1) % 3 + 1)
    fit(tape, data, config, ignore, state, Nobody())
    assert tape.trained == whole.trained
    assert state.history == wanted.history
    assert state.best_weights.keys() == wanted.best_weights.keys()
    assert (state.best_score, state.best_epoch) == (wanted.best_score, wanted.best_epoch)


def test_who_wants_to_stop_need_not_wait_for_the_end_of_validation() -> None:
    data, config = (numbered(10, 4), numbered(100, 4)), settings(epochs=1)
    tape, state = Tape(), Fit()
    torch.manual_seed(0)
    keeper = Stopping(3, in_validation=True)
    before = None

    def note_state() -> None:
        nonlocal before
        before = torch.get_rng_state()

    keeper_step = keeper.after_step

    def after_step() -> None:
        if keeper.steps == 3:  # the call after validation was left: on the random stream of training again
            assert torch.equal(torch.get_rng_state(), before)
        note_state()
        keeper_step()

    keeper.after_step = after_step  # type: ignore[method-assign]
    with pytest.raises(Stop):
        fit(tape, data, config, ignore, state, keeper)
    assert (len(tape.trained), tape.scored, state.history) == (3, 0, [])
    fit(tape, data, config, ignore, state, Nobody())
    assert (len(tape.trained), tape.scored, len(state.history)) == (3, 25, 1)


def test_a_fit_that_is_over_does_nothing_more() -> None:
    tape, state = Tape(), Fit(history=history(1.0, 2.0, 2.0), best_epoch=1)
    fit(tape, (numbered(4, 4), numbered(4, 4)), settings(epochs=9, patience=2), ignore, state, Nobody())
    assert (tape.trained, len(state.history)) == ([], 3)


def test_an_epoch_that_was_rolled_back_is_trained_again_and_logged_once() -> None:
    script, state = Script([2.0, math.nan, 1.0]), Fit()
    errors = []

    class Forgiving(Nobody):
        def roll_back(self, error: NonFiniteError) -> None:
            errors.append(str(error))
            state.order = None

    fit(script, (batches(4), batches(4)), settings(epochs=2), script.log, state, Forgiving())
    assert [epoch for epoch, _ in script.logged] == [1, 2]
    assert [row["validation_loss"] for row in state.history] == [2.0, 1.0]
    assert len(errors) == 1
    assert errors[0].startswith("train: the validation loss is no longer finite at epoch 2, step 1 of 1 ")


# Real training


class Draws:
    """Wrap a score function so that it draws random numbers of its own, and remembers them."""

    def __init__(self, score: Callable[[Tensor], Totals]) -> None:
        self.score = score
        self.drawn: list[float] = []

    def __call__(self, x: Tensor) -> Totals:
        self.drawn.append(torch.rand(()).item())
        return self.score(x)


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


def module_for(images: Images, scaling: Scaling, device: torch.device = CPU, **objective: Any) -> LossModule:
    config = small_section("model", hidden=(32,), latent=4)
    wanted = small_section("objective", **objective)
    return LossModule(build_model(config, images.shape[1:]), wanted, scaling, len(images)).to(device)


def train(
    images: Images,
    config: TrainConfig,
    device: torch.device = CPU,
    wrap: Callable[[Callable[[Tensor], Totals]], Draws] | None = None,
    **objective: Any,
) -> Fit:
    make_deterministic(config.seed)
    training, validation = (
        Batches(part, data_card("dynamic"), config.batch_size, device) for part in (images[50:], images[:50])
    )
    module = module_for(images[50:], training.scaling, device, **objective)
    step = Step(module, config)
    if wrap is not None:
        step.score = wrap(step.score)  # type: ignore[method-assign]
    return fitted(step, (training, validation), config)


def history_bytes(result: Fit) -> str:
    return json.dumps(result.history)


def same_weights(first: Fit, second: Fit) -> bool:
    assert first.best_weights.keys() == second.best_weights.keys()
    return all(torch.equal(tensor, second.best_weights[name]) for name, tensor in first.best_weights.items())


@pytest.mark.usefixtures("deterministic")
def test_training_on_real_digits_lowers_the_loss(digits: Images) -> None:
    result = train(digits, settings(epochs=6, batch_size=64))
    assert result.history[0]["train_loss"] > 32  # nats; 64 fair coins make 44.4
    assert result.history[-1]["train_loss"] < 28
    assert result.history[-1]["validation_loss"] < 28
    assert result.best_score == min(row["validation_loss"] for row in result.history)


@pytest.mark.usefixtures("deterministic")
@pytest.mark.parametrize("warmup", ["none", "linear"])
def test_model_selection_weighs_the_kl_with_the_beta_of_training(warmup: str, digits: Images) -> None:
    config = settings(epochs=3, batch_size=64)
    result = train(digits[:300], config, beta=10.0, warmup=warmup, warmup_epochs=1000)
    for row in result.history:
        wanted = row["validation_reconstruction"] + 10 * row["validation_kl"]
        assert row["validation_loss"] == pytest.approx(wanted, rel=1e-5)
        assert row["validation_elbo"] == pytest.approx(
            -row["validation_reconstruction"] - row["validation_kl"], rel=1e-5
        )
    assert result.best_score == min(row["validation_loss"] for row in result.history)
    first = result.history[0]
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
    plain, drawing = train(digits[:300], config), train(digits[:300], config, wrap=Draws)
    assert same_weights(plain, drawing)
    for name in ("train_loss", "train_kl", "train_reconstruction"):
        assert [row[name] for row in plain.history] == [row[name] for row in drawing.history]


def test_validation_sees_the_same_draws_in_every_epoch_whatever_training_drew() -> None:
    def drawn(validation_seed: int, training_seed: int) -> list[float]:
        score = Draws(ones)
        torch.manual_seed(training_seed)
        config = settings(epochs=3, seed=validation_seed)
        fitted(Functions(ones, score), (batches(4), batches(8)), config)  # two batches of validation
        return score.drawn

    first = drawn(0, training_seed=1)
    assert first[0:2] == first[2:4] == first[4:6]
    assert first[0] != first[1]
    assert drawn(0, training_seed=2) == first
    assert drawn(1, training_seed=1)[:2] != first[:2]


def test_a_loss_that_explodes_in_real_training_names_epoch_and_step() -> None:
    images = np.zeros((12, 1, 2, 2), np.uint8)
    torch.manual_seed(0)
    module = module_for(images, Scaling(data_card("none")))
    step = Step(module, settings(epochs=3, learning_rate=0.001))
    seen = 0

    def poisoned(batch: Tensor) -> Totals:
        nonlocal seen
        seen += 1
        if seen == 5:  # the second step of the second epoch
            batch = batch * math.nan
        return step.step(batch)

    with pytest.raises(NonFiniteError, match=r"the train loss is no longer finite at epoch 2, step 2 of 3 \(loss nan,"):
        fitted(Functions(poisoned, step.score), (batches(12), batches(4)), settings(epochs=3))


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
