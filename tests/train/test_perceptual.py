"""The distance of LPIPS beside an objective, with random weights in place of trained ones."""

import copy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from some_cards import image_facts, small_config
from torch import Tensor
from training import model_config, objective_config, train_config

from reparam.config.objective import PerceptualConfig
from reparam.data.batches import Batches
from reparam.data.pixels import Pixels
from reparam.errors import ParamsError
from reparam.models.build import build_model
from reparam.objectives import OBJECTIVES
from reparam.train.build import build_trainer
from reparam.train.checks import check_objective
from reparam.train.loss import Loss
from reparam.train.perceptual import Perceptual
from reparam.train.trainer import Trainer

lpips = pytest.importorskip("lpips", reason="needs lpips: pip install 'reparam[perceptual]'")
SHAPE = (1, 24, 24)
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of random weights of SqueezeNet, the smallest network, under torchvision's names."""
    import torchvision

    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "squeeze.safetensors"
    save_file(torchvision.models.squeezenet1_1(weights=None).state_dict(), path)
    return path


def config(weights: Path | None, weight: float = 2.0, network: str = "squeeze") -> PerceptualConfig:
    return PerceptualConfig(weight=weight, network=network, weights=str(weights) if weights else None)


@pytest.fixture(scope="module")
def load(weights: Path) -> Callable[..., Perceptual]:
    return lambda pixels, shape=SHAPE, **more: Perceptual.load(config(weights, **more), pixels, shape)


def pixels(shift: float = 0.0, scale: float = 1.0, channels: int = 1) -> Pixels:
    return Pixels(image_facts("none", shift, scale, channels))


def some(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def loss_of(perceptual: Perceptual | None, objective: str = "elbo", **model: Any) -> Loss:
    torch.manual_seed(0)
    changes = {"network": "resnet", "channels": (4, 6), "groups": 2, "likelihood": "laplace", **model}
    return Loss(
        build_model(model_config(**changes), SHAPE), pixels(), objective_config(name=objective, samples=2), perceptual
    )


def test_the_distance_is_that_of_lpips_by_the_number_of_pixels_and_channels(
    load: Callable[..., Perceptual], weights: Path
) -> None:
    perceptual = load(pixels())
    first, second = some(2, 3, *SHAPE), some(3, *SHAPE, seed=1)
    for sample, found in zip(first, perceptual(first, second), strict=True):
        colour = [(2 * values - 1).expand(3, 3, 24, 24) for values in (sample, second)]
        wanted = 2.0 * 24 * 24 * perceptual.network(*colour).flatten()
        torch.testing.assert_close(found, wanted)
        assert (found > 0).all()
    assert perceptual(second[None], second).abs().max().item() < 1e-4


def test_pixels_of_any_scaling_are_compared_alike(load: Callable[..., Perceptual]) -> None:
    plain, scaled = load(pixels(channels=3), (3, 24, 24)), load(pixels(0.5, 0.25, channels=3), (3, 24, 24))
    first, second = some(1, 2, 3, 24, 24), some(2, 3, 24, 24, seed=1)
    torch.testing.assert_close(scaled((first - 0.5) / 0.25, (second - 0.5) / 0.25), plain(first, second))


def test_the_weights_are_those_of_the_file_and_stay_as_they_are(load: Callable[..., Perceptual], weights: Path) -> None:
    from safetensors.torch import load_file

    perceptual, known = load(pixels()), load_file(weights)
    found = dict(perceptual.network.net.named_parameters())
    assert len(found) == 50  # 8 fire modules of three convolutions, and the first one
    assert all(value.equal(known[f"features.{name.partition('.')[2]}"]) for name, value in found.items())
    assert not any(value.requires_grad for value in perceptual.network.parameters())
    assert copy.deepcopy(perceptual) is perceptual


@pytest.mark.parametrize("kind", ["vae", "autoencoder", "hierarchical"])
def test_its_gradient_reaches_decoder_and_encoder(kind: str, load: Callable[..., Perceptual]) -> None:
    objective = "denoising" if kind == "autoencoder" else "elbo"
    model = {"kind": kind, "latent": 3, "upper": (2,), "upper_hidden": (4,)}
    images = (255 * some(4, *SHAPE)).to(torch.uint8)
    found = []
    for perceptual in (None, load(pixels())):
        loss = loss_of(perceptual, objective, **model)
        torch.manual_seed(1)  # the same draws
        terms = loss(images)
        terms["loss"].mean().backward()
        found.append((loss, terms))
    (plain, without), (charged, terms) = found
    assert ("auxiliary" in without, terms["auxiliary"].shape) == (False, (4,))
    torch.testing.assert_close(terms["loss"], without["loss"] + terms["auxiliary"])
    torch.testing.assert_close(terms["reconstruction"], without["reconstruction"])
    weights = zip(plain.named_parameters(), charged.named_parameters(), strict=True)
    of_image = [(one, other) for one, other in weights if "priors" not in one[0] and "upper" not in one[0]]
    changed = [name for (name, one), (_, other) in of_image if not torch.equal(one.grad, other.grad)]  # type: ignore[arg-type]
    for part in ("model.decoder.", "model.encoder"):
        names = [one[0] for one, _ in of_image if one[0].startswith(part)]
        assert names
        assert [name for name in names if name not in changed and kind != "hierarchical"] == []
        assert [name for name in names if name in changed]


def test_a_model_learns_what_the_distance_asks_for_alone(load: Callable[..., Perceptual]) -> None:
    """With an objective whose own weight is nothing beside it, the distance falls."""
    loss = loss_of(load(pixels(), weight=1e4), "reconstruction", kind="autoencoder")
    trainer = Trainer(loss, train_config(learning_rate=0.01, optimizer="adam"), epoch_images=8)
    images = (255 * some(8, *SHAPE)).to(torch.uint8)
    steps = [trainer.step(images).terms["auxiliary"].item() for _ in range(12)]
    assert steps[-1] < 0.8 * steps[0]


def test_it_is_no_part_of_what_is_trained_and_kept(load: Callable[..., Perceptual]) -> None:
    plain, charged = loss_of(None), loss_of(load(pixels()))
    assert list(charged.state_dict()) == list(plain.state_dict())
    assert len(list(charged.parameters())) == len(list(plain.parameters()))


def test_a_training_of_weight_0_loads_nothing_and_another_draws_the_same_weights(weights: Path) -> None:
    built = []
    for chosen in (config(None, weight=0.0), config(weights)):
        whole = small_config(
            model=model_config(likelihood="laplace", latent=3), objective=objective_config(perceptual=dict(chosen))
        )
        facts = image_facts("none").model_copy(update={"shape": SHAPE})
        images = Batches((255 * some(8, *SHAPE)).to(torch.uint8).numpy(), 4, torch.device("cpu"))
        torch.manual_seed(0)
        built.append((build_trainer(whole, facts, images), torch.rand(()).item()))
    (plain, draw), (charged, other) = built
    assert plain.loss.perceptual is None
    assert isinstance(charged.loss.perceptual, Perceptual)
    assert draw == other
    state = charged.loss.state_dict()
    assert all(value.equal(state[name]) for name, value in plain.loss.state_dict().items())


@pytest.mark.parametrize(
    ("changes", "wanted"),
    [
        ({"weights": None}, r"weights: wanted a file of weights with a weight of 2\.0, found null"),
        ({"weights": "missing.safetensors"}, r"weights: wanted a \.safetensors file, found 'missing\.safetensors': "),
        ({"weights": __file__}, r"weights: wanted a \.safetensors file, found '.*test_perceptual\.py': "),
        (
            {"network": "alex"},
            r"weights: wanted the weights of 'alex' under torchvision's names, found .* without features\.0\.weight of "
            r"shape \(64, 3, 11, 11\)$",
        ),
    ],
)
def test_weights_that_are_not_there_or_of_another_network_are_refused(
    changes: dict[str, Any], wanted: str, weights: Path
) -> None:
    chosen = config(weights).model_copy(update=changes)
    with pytest.raises(ParamsError, match=rf"^params\.yaml: objective\.perceptual\.{wanted}"):
        Perceptual.load(chosen, pixels(), SHAPE)


def test_images_too_small_for_the_network_are_refused(load: Callable[..., Perceptual]) -> None:
    with pytest.raises(ParamsError, match=r"network: wanted images that 'squeeze' can take, found 4x4 pixels; raise"):
        load(pixels(), (1, 4, 4))


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_objectives_whose_gradient_is_not_that_of_their_loss_refuse_it(objective: str) -> None:
    model = model_config(kind="vae")
    wanted = objective_config(name=objective, perceptual={"weight": 1.0})
    if OBJECTIVES[objective].has_own_gradient:
        with pytest.raises(ParamsError, match=rf"perceptual\.weight: wanted 0\.0 with .* '{objective}', .* found 1\.0"):
            check_objective(build_model(model, SHAPE), model, wanted)
    else:
        check_objective(build_model(model, SHAPE), model, wanted)


def test_a_missing_package_is_named_with_the_command_that_installs_it(
    weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "lpips", None)
    with pytest.raises(ParamsError, match=r"weight: needs lpips; run `pip install 'reparam\[perceptual\]'`"):
        Perceptual.load(config(weights), pixels(), SHAPE)
