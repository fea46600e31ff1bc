import csv
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from reparam.config import load_config
from reparam.data import store
from reparam.data.splits import SPLITS
from reparam.errors import ParamsError
from reparam.objectives import Terms
from reparam.paths import Paths
from reparam.stages import train
from reparam.training.step import LossModule

Train = Callable[..., None]


@pytest.fixture(autouse=True)
def deterministic() -> Iterator[None]:
    """Take back what the stage sets."""
    before = torch.are_deterministic_algorithms_enabled()
    yield
    torch.use_deterministic_algorithms(before)


@pytest.fixture
def run(project: Paths, params: dict[str, Any], write_params: Callable[[dict[str, Any]], None]) -> Train:
    """Run the stage on a few images of noise; names of sections give what changes in them."""

    def run(counts: tuple[int, int, int] = (24, 8, 4), scaling: str = "unit", **changes: dict[str, Any]) -> None:
        for section, values in changes.items():
            params[section] |= values
        write_params(params)
        _write_store(project.processed, counts, scaling)
        train.run(load_config(project.params), project, "cpu")

    return run


def _write_store(directory: Path, counts: tuple[int, int, int], scaling: str) -> None:
    directory.mkdir(parents=True)
    random = np.random.default_rng(0)
    for name, count in zip(SPLITS, counts, strict=True):
        np.save(directory / f"{name}-images.npy", random.integers(0, 256, (count, 1, 4, 4), dtype=np.uint8))
        np.save(directory / f"{name}-labels.npy", np.zeros(count, np.int32))
    store.write_card(directory, {"source": "noise", "binarization": "dynamic", "classes": ["all"]}, scaling)


def refusal(run: Train, project: Paths, **changes: Any) -> str:
    """The message of a run that is refused, and leaves nothing."""
    with pytest.raises(ParamsError) as caught:
        run(**changes)
    assert not project.model.exists()
    assert not project.history.exists()
    return str(caught.value)


# What does not go together


@pytest.mark.parametrize("scaling", ["symmetric", "standard"])
@pytest.mark.parametrize(
    "likelihood", ["bernoulli", "continuous_bernoulli", "discretised_logistic", "logistic_mixture"]
)
def test_a_likelihood_of_pixels_between_0_and_1_wants_them_unscaled(
    likelihood: str, scaling: str, run: Train, project: Paths
) -> None:
    assert refusal(run, project, scaling=scaling, model={"likelihood": likelihood}) == (
        f"params.yaml: preprocess.scaling: wanted 'unit' with model.likelihood '{likelihood}', which is of pixels in "
        f"[0, 1], found '{scaling}'"
    )


@pytest.mark.parametrize("likelihood", ["gaussian", "gaussian_learned", "gaussian_per_pixel", "laplace"])
def test_an_output_between_0_and_1_wants_pixels_unscaled(likelihood: str, run: Train, project: Paths) -> None:
    message = refusal(run, project, scaling="standard", model={"likelihood": likelihood, "output": "sigmoid"})
    assert message == (
        "params.yaml: preprocess.scaling: wanted 'unit' with model.output 'sigmoid', which is of pixels in [0, 1], "
        "found 'standard'"
    )


@pytest.mark.parametrize("likelihood", ["gaussian", "gaussian_learned", "gaussian_per_pixel", "laplace"])
def test_other_likelihoods_take_scaled_pixels(likelihood: str, run: Train, project: Paths) -> None:
    run(scaling="standard", model={"likelihood": likelihood, "output": "linear"}, train={"epochs": 1})
    assert project.model.exists()


def test_an_autoencoder_cannot_be_chosen_by_its_elbo(run: Train, project: Paths) -> None:
    message = refusal(
        run, project, model={"kind": "autoencoder"}, objective={"name": "reconstruction"}, train={"monitor": "elbo"}
    )
    assert message == ("params.yaml: train.monitor: wanted 'loss' with an autoencoder, which has no ELBO, found 'elbo'")


@pytest.mark.parametrize("milestones", [[], [3, 6]])
def test_a_step_schedule_wants_one_period(milestones: list[int], run: Train, project: Paths) -> None:
    assert refusal(run, project, train={"schedule": "step", "milestones": milestones}) == (
        f"params.yaml: train.milestones: wanted one number, the period, with train.schedule 'step', found {milestones}"
    )


@pytest.mark.parametrize("schedule", ["constant", "cosine", "milestones"])
def test_other_schedules_take_any_milestones(schedule: str, run: Train, project: Paths) -> None:
    run(train={"schedule": schedule, "milestones": [], "epochs": 1})
    assert project.model.exists()


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
        "params.yaml: model.norm: wanted 'none' or 'layer' with objective.name 'contractive', found 'batch': "
        "it makes an image's code depend on the other images of the batch"
    )


@pytest.mark.parametrize(("images", "batch_size"), [(9, 4), (9, 8), (8, 1), (1, 4)])
def test_a_batch_norm_wants_no_image_alone(images: int, batch_size: int, run: Train, project: Paths) -> None:
    found = refusal(run, project, counts=(images, 2, 2), model={"norm": "batch"}, train={"batch_size": batch_size})
    assert found == (
        "params.yaml: train.batch_size: wanted more than one image in every batch with model.norm 'batch', found "
        f"{batch_size}, which leaves one of the {images} training images alone; take another number"
    )


@pytest.mark.parametrize(("images", "batch_size"), [(8, 4), (10, 4), (9, 9), (9, 100)])
def test_a_batch_norm_takes_any_other_batches(images: int, batch_size: int, run: Train, project: Paths) -> None:
    run(counts=(images, 1, 2), model={"norm": "batch"}, train={"batch_size": batch_size, "epochs": 1})
    assert project.model.exists()


# What is left behind


def rows(project: Paths) -> list[dict[str, str]]:
    with project.history.open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_the_weights_on_disk_are_those_of_the_best_epoch_and_not_of_the_last(
    run: Train, project: Paths, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[dict[str, Tensor]] = []

    def score(self: LossModule, x: Tensor) -> Terms:
        seen.append({name: tensor.clone() for name, tensor in self.model.state_dict().items()})
        loss = torch.full((len(x),), [3.0, 1.0, 2.0, 4.0][len(seen) - 1])
        return {"loss": loss, "elbo": -loss}

    monkeypatch.setattr(LossModule, "score", score)
    run(train={"epochs": 4, "patience": 4})
    kept = load_file(project.model / "weights.safetensors")
    assert kept.keys() == seen[1].keys()
    assert all(torch.equal(kept[name], tensor) for name, tensor in seen[1].items())
    assert not any(torch.equal(kept[name], tensor) for name, tensor in seen[3].items())
    card = json.loads((project.model / "card.json").read_text())
    assert (card["best_epoch"], card["epochs"]) == (2, 4)
    assert json.loads(project.training_metrics.read_text()) == {
        "best_validation_loss": 1.0,
        "best_epoch": 2,
        "epochs": 4,
    }


def test_history_holds_the_loss_and_the_elbo_of_both_splits(run: Train, project: Paths) -> None:
    run(train={"epochs": 2}, objective={"beta": 4.0})
    assert list(rows(project)[0]) == ["epoch"] + [
        f"{split}_{term}" for split in ("train", "validation") for term in ("loss", "reconstruction", "kl", "elbo")
    ]
    assert [row["epoch"] for row in rows(project)] == ["1", "2"]


def test_without_a_validation_split_all_epochs_are_trained(run: Train, project: Paths) -> None:
    run(counts=(24, 0, 4), train={"epochs": 3, "patience": 1})
    assert [row["epoch"] for row in rows(project)] == ["1", "2", "3"]
    assert list(rows(project)[0]) == ["epoch", "train_loss", "train_reconstruction", "train_kl", "train_elbo"]
    card = json.loads((project.model / "card.json").read_text())
    assert (card["best_epoch"], card["epochs"]) == (3, 3)
    assert json.loads(project.training_metrics.read_text()) == {"best_epoch": 3, "epochs": 3}


def test_a_total_correlation_needs_no_validation_split(run: Train, project: Paths) -> None:
    run(counts=(24, 0, 4), objective={"name": "beta_tc"}, train={"epochs": 1})  # of an empty batch, it has none
    assert len(rows(project)) == 1


def test_a_model_that_starts_at_the_mean_puts_it_out_before_it_is_trained(run: Train, project: Paths) -> None:
    # At a rate of next to nothing, the weights on disk are those of the start.
    run(model={"start_at_mean": True, "hidden": []}, train={"epochs": 1, "learning_rate": 1e-12, "optimizer": "sgd"})
    bias = load_file(project.model / "weights.safetensors")["decoder.0.bias"]
    mean = store.read_split(project.processed, "train").images.mean(0).ravel() / 255
    torch.testing.assert_close(bias.sigmoid(), torch.tensor(mean).float())
