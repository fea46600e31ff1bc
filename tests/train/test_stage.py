import csv
import json
import logging
import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import change
from safetensors.torch import load_file
from torch import Tensor
from training import Killed, spoil

from reparam.cards.model import ModelCard, TrainingMetrics
from reparam.config import Config, Section, flatten, load_config
from reparam.data import store
from reparam.data.store import SPLITS
from reparam.distributed import ALONE
from reparam.errors import NonFiniteError, ParamsError, UserError
from reparam.files import sha256
from reparam.objectives import Terms
from reparam.paths import Paths
from reparam.track import Tracker
from reparam.train import stage as train
from reparam.train.checkpoint import Checkpoints
from reparam.train.loss import Loss
from reparam.train.sums import Totals
from reparam.train.trainer import Trainer

Train = Callable[..., None]


@pytest.fixture(autouse=True)
def deterministic() -> Iterator[None]:
    """Take back what the stage sets."""
    before, precision = torch.are_deterministic_algorithms_enabled(), torch.get_float32_matmul_precision()
    yield
    torch.use_deterministic_algorithms(before)
    torch.set_float32_matmul_precision(precision)


@pytest.fixture
def run(project: Paths, params: dict[str, Any], write_params: Callable[[dict[str, Any]], None]) -> Train:
    """Run the stage on a few images of noise; names of sections give what changes in them."""

    def run(
        counts: tuple[int, int, int] = (24, 8, 4),
        scaling: str = "unit",
        binarization: str = "dynamic",
        **changes: dict[str, Any],
    ) -> None:
        for section, values in changes.items():
            change(params[section], values)
        write_params(params)
        _write_store(project.processed, counts, scaling, binarization)
        train.run(load_config(project.params), project, "cpu")

    return run


def _write_store(directory: Path, counts: tuple[int, int, int], scaling: str, binarization: str) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(0)
    for name, count in zip(SPLITS, counts, strict=True):
        np.save(directory / f"{name}-images.npy", random.integers(0, 256, (count, 1, 4, 4), dtype=np.uint8))
        np.save(directory / f"{name}-labels.npy", np.zeros(count, np.int32))
    store.write_card(directory, store.Origin("noise", {}, binarization, ("all",), {}, "Noise", "CC0"), scaling)


def refusal(run: Train, project: Paths, **changes: Any) -> str:
    """The message of a run that is refused, and leaves nothing."""
    with pytest.raises(ParamsError) as caught:
        run(**changes)
    assert not project.model.exists()
    assert not project.history.exists()
    return str(caught.value)


def test_weights_of_a_perceptual_loss_are_looked_for_in_the_repository_not_in_the_scratch_copy(
    project: Paths, params: dict[str, Any], write_params: Callable[[dict[str, Any]], None], tmp_path: Path
) -> None:
    pytest.importorskip("lpips", reason="needs lpips: pip install 'reparam[perceptual]'")
    repository = tmp_path / "repository"
    for weights, wanted in (("vgg16.safetensors", repository / "vgg16.safetensors"), ("/no/vgg16", "/no/vgg16")):
        change(params["objective"], {"perceptual": {"weight": 1.0, "network": "vgg", "weights": weights}})
        write_params(params)
        _write_store(project.processed, (24, 8, 4), "unit", "dynamic")
        with pytest.raises(ParamsError, match=rf"weights: wanted a \.safetensors file, found '{wanted}': "):
            train.run(load_config(project.params), replace(project, shared=repository), "cpu")


# What does not go together


@pytest.mark.parametrize("scaling", ["symmetric", "standard"])
@pytest.mark.parametrize(
    "likelihood", ["bernoulli", "continuous_bernoulli", "discretised_logistic", "logistic_mixture"]
)
def test_a_likelihood_of_pixels_between_0_and_1_wants_them_unscaled(
    likelihood: str, scaling: str, run: Train, project: Paths
) -> None:
    settings = " (components=5)" if likelihood == "logistic_mixture" else ""
    assert refusal(run, project, scaling=scaling, model={"likelihood": likelihood}) == (
        f"params.yaml: preprocess.scaling: wanted 'unit' with model.likelihood '{likelihood}'{settings}, which is "
        f"defined for pixels in [0, 1], found '{scaling}'"
    )


@pytest.mark.parametrize("likelihood", ["gaussian", "gaussian_learned", "gaussian_per_pixel", "laplace"])
def test_an_output_between_0_and_1_wants_pixels_unscaled(likelihood: str, run: Train, project: Paths) -> None:
    message = refusal(run, project, scaling="standard", model={"likelihood": likelihood, "mean": "sigmoid"})
    settings = "mean='sigmoid'" if likelihood == "gaussian_per_pixel" else "mean='sigmoid' sigma=0.5"
    assert message == (
        f"params.yaml: preprocess.scaling: wanted 'unit' with model.likelihood '{likelihood}' ({settings}), which is "
        "defined for pixels in [0, 1], found 'standard'"
    )


@pytest.mark.parametrize("likelihood", ["gaussian", "gaussian_learned", "gaussian_per_pixel", "laplace"])
def test_other_likelihoods_take_scaled_pixels(likelihood: str, run: Train, project: Paths) -> None:
    run(
        scaling="standard", binarization="none", model={"likelihood": likelihood, "mean": "linear"}, train={"epochs": 1}
    )
    assert project.model.exists()


def test_an_autoencoder_cannot_be_chosen_by_its_elbo(run: Train, project: Paths) -> None:
    message = refusal(
        run, project, model={"kind": "autoencoder"}, objective={"name": "reconstruction"}, train={"monitor": "elbo"}
    )
    assert message == (
        "params.yaml: train.monitor: wanted 'loss' with a model without a posterior, which has no ELBO, found 'elbo'"
    )


@pytest.mark.parametrize(
    ("objective", "kind", "wanted"),
    [
        ("elbo", "autoencoder", "'vae' or 'hierarchical'"),
        ("capacity", "autoencoder", "'vae' or 'hierarchical'"),
        ("iwae", "autoencoder", "'vae' or 'hierarchical'"),
        ("reinforce", "autoencoder", "'vae' or 'hierarchical'"),
        ("beta_tc", "autoencoder", "'vae'"),
        ("beta_tc", "hierarchical", "'vae'"),
        ("dreg", "hierarchical", "'vae'"),
        ("sparse", "hierarchical", "'autoencoder' or 'vae'"),
        ("contractive", "hierarchical", "'autoencoder' or 'vae'"),
        ("mmd", "hierarchical", "'autoencoder' or 'vae'"),
        ("reconstruction", "hierarchical", "'autoencoder' or 'vae' or 'fsq' or 'vq'"),
    ],
)
def test_an_objective_that_a_model_has_not_is_refused(
    objective: str, kind: str, wanted: str, run: Train, project: Paths
) -> None:
    assert refusal(run, project, model={"kind": kind}, objective={"name": objective}) == (
        f"params.yaml: model.kind: wanted {wanted} with objective.name '{objective}', found '{kind}'"
    )


def test_a_contraction_is_not_that_of_a_whole_batch(run: Train, project: Paths) -> None:
    assert refusal(run, project, model={"norm": "batch"}, objective={"name": "contractive"}) == (
        "params.yaml: model.mlp.norm: wanted 'none' or 'layer' with objective.name 'contractive', found 'batch': "
        "it makes an image's code depend on the other images of the batch"
    )


@pytest.mark.parametrize(("images", "batch_size"), [(9, 4), (9, 8), (8, 1), (1, 4)])
def test_a_batch_norm_wants_no_image_alone(images: int, batch_size: int, run: Train, project: Paths) -> None:
    found = refusal(run, project, counts=(images, 2, 2), model={"norm": "batch"}, train={"batch_size": batch_size})
    assert found == (
        "params.yaml: train.batch_size: wanted more than one image in every batch with model.mlp.norm 'batch', found "
        f"{batch_size}, which leaves one of the {images} training images alone; take another number"
    )


@pytest.mark.parametrize(("images", "batch_size"), [(8, 4), (10, 4), (9, 9), (9, 100)])
def test_a_batch_norm_takes_any_other_batches(images: int, batch_size: int, run: Train, project: Paths) -> None:
    run(counts=(images, 1, 2), model={"norm": "batch"}, train={"batch_size": batch_size, "epochs": 1})
    assert project.model.exists()


# What is left behind


SCHEDULES = ("learning_rate", "beta")


def rows(project: Paths) -> list[dict[str, str]]:
    with project.history.open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_the_weights_on_disk_are_those_of_the_best_epoch_and_not_of_the_last(
    run: Train, project: Paths, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[dict[str, Tensor]] = []

    def validate(self: Loss, images: Tensor, labels: Tensor | None = None) -> Terms:
        seen.append({name: tensor.clone() for name, tensor in self.model.state_dict().items()})
        loss = torch.full((len(images),), [3.0, 1.0, 2.0, 4.0][len(seen) - 1])
        return {"loss": loss, "elbo": -loss}

    monkeypatch.setattr(Loss, "validate", validate)
    run(train={"epochs": 4, "patience": 4})
    kept = load_file(project.model / "weights.safetensors")
    assert kept.keys() == seen[1].keys()
    assert all(torch.equal(kept[name], tensor) for name, tensor in seen[1].items())
    assert not any(torch.equal(kept[name], tensor) for name, tensor in seen[3].items())
    card = ModelCard.read(project.model / "card.json", "train")
    assert (card.best_epoch, card.epochs) == (2, 4)
    assert json.loads(project.training_metrics.read_text()) == {
        "weights": sha256(project.model / "weights.safetensors")[:12],
        "history_sha256": sha256(project.history),
        "best_validation_loss": 1.0,
        "best_epoch": 2,
        "epochs": 4,
    }


def test_history_holds_the_loss_and_the_elbo_of_both_splits(run: Train, project: Paths) -> None:
    run(train={"epochs": 2}, objective={"beta": 4.0})
    terms = ("loss", "reconstruction", "kl", "elbo")
    names = [f"{split}_{term}" for split in ("train", "validation") for term in terms]
    assert list(rows(project)[0]) == ["epoch", *names, *SCHEDULES]
    assert [row["epoch"] for row in rows(project)] == ["1", "2"]


def test_grey_pixels_under_a_bernoulli_have_no_elbo(run: Train, project: Paths) -> None:
    run(binarization="none", train={"epochs": 1})
    assert [name for name in rows(project)[0] if "elbo" in name] == []
    assert {"train_loss", "validation_loss"} < set(rows(project)[0])


def test_history_holds_what_changed_by_schedule_as_it_was_at_the_last_step(run: Train, project: Paths) -> None:
    schedule = {"epochs": 2, "batch_size": 8, "learning_rate": 0.1, "schedule": "step", "step": {"epochs": 1}}
    run(counts=(24, 4, 4), train=schedule, objective={"beta": 3.0, "warmup": "linear", "warmup_epochs": 4})
    # The last of three steps of an epoch starts after two thirds of it.
    assert [float(row["learning_rate"]) for row in rows(project)] == pytest.approx([0.1, 0.01], rel=1e-5)
    assert [float(row["beta"]) for row in rows(project)] == pytest.approx([3 * 2 / 12, 3 * 5 / 12], rel=1e-5)


def test_pictures_of_training_change_nothing_that_is_learned(
    run: Train, project: Paths, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = []
    for every in ("0", "1"):
        monkeypatch.setenv("REPARAM_PICTURES_EVERY", every)
        run(train={"epochs": 2})
        weights.append(load_file(project.model / "weights.safetensors"))
    assert all(torch.equal(weights[1][name], weight) for name, weight in weights[0].items())


def test_without_a_validation_split_all_epochs_are_trained(run: Train, project: Paths) -> None:
    run(counts=(24, 0, 4), train={"epochs": 3, "patience": 1})
    assert [row["epoch"] for row in rows(project)] == ["1", "2", "3"]
    assert list(rows(project)[0]) == [
        "epoch",
        "train_loss",
        "train_reconstruction",
        "train_kl",
        "train_elbo",
        *SCHEDULES,
    ]
    card = ModelCard.read(project.model / "card.json", "train")
    assert (card.best_epoch, card.epochs) == (3, 3)
    assert TrainingMetrics.read(project.training_metrics, "train").values == {"best_epoch": 3, "epochs": 3}


def test_a_total_correlation_needs_no_validation_split(run: Train, project: Paths) -> None:
    run(counts=(24, 0, 4), objective={"name": "beta_tc"}, train={"epochs": 1})  # of an empty batch, it has none
    assert len(rows(project)) == 1


def test_a_model_that_starts_at_the_mean_puts_it_out_before_it_is_trained(run: Train, project: Paths) -> None:
    # At a rate of next to nothing, the weights on disk are those of the start.
    run(model={"start_at_mean": True, "hidden": []}, train={"epochs": 1, "learning_rate": 1e-12, "optimizer": "sgd"})
    bias = load_file(project.model / "weights.safetensors")["decoder.0.bias"]
    mean = store.read_split(project.processed, "train").images.mean(0).ravel() / 255
    torch.testing.assert_close(bias.sigmoid(), torch.tensor(mean).float())


def test_the_mean_that_a_model_starts_at_is_that_of_the_pixels_that_it_sees(run: Train, project: Paths) -> None:
    model = {"start_at_mean": True, "hidden": [], "likelihood": "gaussian", "mean": "linear"}
    rest = {"epochs": 1, "learning_rate": 1e-12, "optimizer": "sgd"}
    run(scaling="standard", binarization="none", model=model, train=rest)
    bias = load_file(project.model / "weights.safetensors")["decoder.0.bias"]
    scaling = store.read_card(project.processed).scaling
    mean = store.read_split(project.processed, "train").images.mean(0).ravel() / 255
    wanted = (mean - scaling.shift[0]) / scaling.scale[0]
    torch.testing.assert_close(bias, torch.tensor(wanted).float(), rtol=1e-5, atol=1e-5)


# How it computes


@pytest.mark.parametrize(
    ("precision", "wanted"), [("fp32", "highest"), ("tf32", "high"), ("bf16_matmul", "medium"), ("bf16", "highest")]
)
def test_training_computes_in_its_precision_and_leaves_full_precision_to_the_next_stage(
    precision: str, wanted: str, run: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = set()
    step = Trainer.step

    def look(self: Trainer, images: Tensor, labels: Tensor | None = None) -> Totals:
        seen.add(torch.get_float32_matmul_precision())
        return step(self, images, labels)

    monkeypatch.setattr(Trainer, "step", look)
    run(train={"epochs": 1, "precision": precision})
    assert seen == {wanted}
    assert torch.get_float32_matmul_precision() == "highest"


def test_training_that_fails_leaves_full_precision_too(run: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Trainer, "step", not_finite)
    with pytest.raises(NonFiniteError):
        run(train={"precision": "bf16_matmul"})
    assert torch.get_float32_matmul_precision() == "highest"


def test_convolutions_train_with_channels_last_and_their_weights_are_stored_as_any(run: Train, project: Paths) -> None:
    changes = {"network": "conv", "channels": [4, 6], "hidden": [8]}
    run(model=changes, train={"epochs": 1, "channels_last": True, "average": 0.5, "clip_norm": 1.0})
    kept = load_file(project.model / "weights.safetensors")
    assert {tensor.dtype for tensor in kept.values()} == {torch.float32}
    assert all(tensor.isfinite().all() for tensor in kept.values())


def test_the_averaged_weights_are_those_on_disk(run: Train, project: Paths, monkeypatch: pytest.MonkeyPatch) -> None:
    trainers: list[Trainer] = []
    build = train.build_trainer

    def remember(*arguments: Any) -> Trainer:
        trainers.append(build(*arguments))
        return trainers[0]

    monkeypatch.setattr(train, "build_trainer", remember)
    run(counts=(24, 0, 4), train={"epochs": 2, "batch_size": 8, "average": 0.9})
    kept = load_file(project.model / "weights.safetensors")
    [trainer] = trainers
    last = trainer.loss.model.state_dict()
    assert all(torch.equal(kept[name], tensor) for name, tensor in trainer.model.state_dict().items())
    assert not any(torch.equal(kept[name], tensor) for name, tensor in last.items())


@pytest.mark.parametrize("quiet", [True, False])
def test_only_quiet_training_shows_no_progress(
    quiet: bool, run: Train, project: Paths, capfd: pytest.CaptureFixture[str]
) -> None:
    run(train={"epochs": 1})
    capfd.readouterr()
    train.run(load_config(project.params), project, "cpu", quiet=quiet)
    out, err = capfd.readouterr()
    assert out == ""
    assert ("epoch 1/1" in err) == (not quiet)


# Going on after an interruption


def outputs(project: Paths) -> dict[str, bytes]:
    paths = [*project.model.iterdir(), project.history, project.training_metrics]
    return {path.name: path.read_bytes() for path in paths}


def not_finite(_trainer: Trainer, images: Tensor, labels: Tensor | None = None) -> Totals:
    """What a step gives whose loss is NaN."""
    return Totals.of({"loss": torch.full((len(images),), math.nan)})


def checkpoints(project: Paths) -> list[Path]:
    return sorted(project.resume.glob("*/*.safetensors"))


def interrupt(config: Config, project: Paths, steps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Train with a checkpoint after every step, until so many are done."""
    done, step = 0, Trainer.step

    def count(self: Trainer, images: Tensor, labels: Tensor | None = None) -> Totals:
        nonlocal done
        done += 1
        if done > steps:
            raise Killed
        return step(self, images, labels)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "step", count)
        patch.setenv("REPARAM_CHECKPOINT_SECONDS", "0")
        with pytest.raises(Killed):
            train.run(config, project, "cpu")


INTERRUPTED = {"epochs": 3, "batch_size": 8, "patience": 9}  # three steps an epoch


@pytest.mark.parametrize("steps", [1, 3, 5, 8])
def test_a_rerun_goes_on_where_training_was_interrupted_and_leaves_the_same_bytes(
    steps: int, run: Train, project: Paths, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    run(train=INTERRUPTED)
    wanted, config = outputs(project), load_config(project.params)
    assert checkpoints(project) == []
    interrupt(config, project, steps, monkeypatch)
    (directory,) = {path.parent for path in checkpoints(project)}
    trained, step = 0, Trainer.step

    def count(self: Trainer, images: Tensor, labels: Tensor | None = None) -> Totals:
        nonlocal trained
        trained += 1
        return step(self, images, labels)

    monkeypatch.setattr(Trainer, "step", count)
    train.run(config, project, "cpu")
    assert outputs(project) == wanted
    assert trained == 9 - steps
    assert checkpoints(project) == []
    assert [record.getMessage() for record in caplog.records if record.name == "reparam.train.stage"] == [
        f"train: going on after epoch {(steps - 1) // 3}, from {directory}"
    ]


def test_other_parameters_never_go_on_from_the_checkpoint(
    run: Train,
    project: Paths,
    params: dict[str, Any],
    write_params: Callable[[dict[str, Any]], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run(train=INTERRUPTED | {"learning_rate": 0.004})
    wanted = outputs(project)
    params["train"]["learning_rate"] = 0.001
    write_params(params)
    interrupt(load_config(project.params), project, 5, monkeypatch)
    left = checkpoints(project)
    params["train"]["learning_rate"] = 0.004
    write_params(params)
    train.run(load_config(project.params), project, "cpu")
    assert outputs(project) == wanted
    assert checkpoints(project) == left  # of the other one, which may yet go on


def test_two_that_train_the_same_share_no_checkpoints(
    run: Train, project: Paths, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    run(train=INTERRUPTED)
    wanted, config = outputs(project), load_config(project.params)
    interrupt(config, project, 5, monkeypatch)
    left = checkpoints(project)
    resumed: list[str] = []
    monkeypatch.setenv("REPARAM_CHECKPOINT_SECONDS", "0")
    held = Checkpoints(left[0].parent)
    held.run_id = "the run of the first"

    class Spy(Tracker):
        def training_run(self, data_hash: str, resume: str = "", *, name: str = "train") -> Any:
            resumed.append(resume)
            return super().training_run(data_hash, resume, name=name)

    with held.held():
        train.run(config, project, "cpu", tracker=Spy(None, project))
    assert outputs(project) == wanted
    assert checkpoints(project) == left
    assert resumed == [""]  # nor the run
    assert held.run_id == "the run of the first"
    assert [record.getMessage() for record in caplog.records if record.name == "reparam.train.checkpoint"] == [
        "train: another process trains the very same model; this one keeps no checkpoints"
    ]


def test_a_loss_that_is_not_finite_leaves_no_model(run: Train, project: Paths, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Trainer, "step", not_finite)
    monkeypatch.setenv("REPARAM_CHECKPOINT_SECONDS", "0")
    with pytest.raises(NonFiniteError, match="epoch 1, step 1 of 1"):
        run()
    assert not project.model.exists()
    assert checkpoints(project) == []


@pytest.mark.parametrize("epoch", [0, 1])
def test_a_rate_that_is_too_high_is_mended_by_rolling_back(
    epoch: int, run: Train, project: Paths, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    step = Trainer.step

    def diverge(self: Trainer, images: Tensor, labels: Tensor | None = None) -> Totals:
        if self.rate_factor == 1 and self.images >= 24 * epoch:
            spoil(self)
        return step(self, images, labels)

    monkeypatch.setattr(Trainer, "step", diverge)
    with caplog.at_level(logging.WARNING):
        run(train=INTERRUPTED | {"on_nonfinite": "rollback"})
    assert [row["epoch"] for row in rows(project)] == ["1", "2", "3"]
    assert f"train: back to the end of epoch {epoch}, learning rate times 0.5 (1 of 3 times)" in caplog.text
    assert all(tensor.isfinite().all() for tensor in load_file(project.model / "weights.safetensors").values())


@pytest.mark.parametrize("text", ["soon", "-1", "nan", ""])
def test_seconds_between_checkpoints_that_are_none_are_refused(
    text: str, run: Train, project: Paths, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REPARAM_CHECKPOINT_SECONDS", text)
    with pytest.raises(UserError) as error:
        run()
    assert str(error.value) == (
        f"REPARAM_CHECKPOINT_SECONDS: wanted a number of seconds, found {text!r}; fix or unset it"
    )
    assert not project.model.exists()


# Which checkpoints are its own


def identity(config: Config, data: str = "data", device: str = "cpu") -> str:
    return train._identity(config, data, torch.device(device), ALONE)


OTHER: dict[type, Callable[[Any], Any]] = {
    bool: lambda value: not value,
    int: lambda value: value + 1,
    float: lambda value: value / 2 + 0.01,
    str: lambda value: value + "_",
    tuple: lambda value: (*value, 1),
}
INSTEAD_OF_NONE = {"decoder_hidden": (3,), "clip_norm": 3.0, "latent_channels": 3, "weights": "weights.safetensors"}


def changed_once(section: Section) -> Iterator[Section]:
    """The section with another value of one parameter, for each of them."""
    for name, value in section:
        if isinstance(value, Section):
            others: list[Any] = list(changed_once(value))
        else:
            others = [INSTEAD_OF_NONE[name] if value is None else OTHER[type(value)](value)]
        yield from (section.model_copy(update={name: other}) for other in others)


@pytest.mark.parametrize("section", ["model", "objective", "train"])
def test_every_parameter_of_training_makes_it_another_one(
    section: str, project: Paths, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train, "source_hash", lambda stage: "code")  # which takes its time
    config = load_config(project.params)
    found = {identity(config)}
    changed = list(changed_once(getattr(config, section)))
    found.update(identity(config.model_copy(update={section: other})) for other in changed)
    assert len(found) == len(changed) + 1 == len(flatten(getattr(config, section))) + 1


@pytest.mark.parametrize("section", ["evaluate", "export", "report"])
def test_a_parameter_of_a_later_stage_does_not(section: str, project: Paths) -> None:
    config = load_config(project.params)
    name, value = next(iter(dict(getattr(config, section)).items()))
    changed = getattr(config, section).model_copy(update={name: OTHER[type(value)](value)})
    assert identity(config.model_copy(update={section: changed})) == identity(config)


def test_other_data_another_device_code_or_torch_make_it_another_training(
    project: Paths, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = load_config(project.params)
    found = [identity(config), identity(config, data="other"), identity(config, device="cuda")]
    with monkeypatch.context() as patch:
        patch.setattr(train, "source_hash", lambda stage: f"other code of {stage}")
        found.append(identity(config))
    with monkeypatch.context() as patch:
        patch.setattr(torch, "__version__", "99")
        found.append(identity(config))
    assert len(set(found)) == 5
    assert identity(config, device="cuda:1") == identity(config, device="cuda")
    assert identity(config) == found[0]
