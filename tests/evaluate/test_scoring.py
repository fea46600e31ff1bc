import math
from typing import Any

import numpy as np
import pytest
import torch
from conftest import small_section
from data_card import data_card
from linear_gaussian import LinearGaussian
from torch import Tensor
from views import view_of

from reparam.config import EvaluateConfig
from reparam.evaluate.metrics import Reports, Scores, headline, score
from reparam.models.build import AnyModel, build_model
from reparam.models.draw import Draw, kl_to_standard_normal
from reparam.models.hierarchical import HierarchicalVAE
from reparam.models.likelihoods import LIKELIHOODS, is_density

SHAPE = (1, 2, 3)
DENSITY = Reports(density=True, posterior=True, bits=False)


def settings(elbo_samples: int = 2, nll_samples: int = 3, batch_size: int = 2) -> EvaluateConfig:
    changes = {"batch_size": batch_size, "elbo_samples": elbo_samples, "nll_samples": nll_samples}
    return small_section("evaluate", **changes)


def some_model(shape: tuple[int, ...] = SHAPE, **changes: Any) -> AnyModel:
    small = {"hidden": [5], "latent": 3, "upper": [2], "upper_hidden": [4]}
    torch.manual_seed(0)
    return build_model(small_section("model", **small | changes), shape).eval()


def some_images(count: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, *SHAPE), dtype=np.uint8)


# Scores of a split


def tensors(scores: Scores) -> dict[str, Tensor]:
    return {name: values for name, values in vars(scores).items() if isinstance(values, Tensor)}


def test_scores_are_per_image_in_the_order_of_the_split() -> None:
    grey = np.arange(0, 250, 25, dtype=np.uint8).reshape(5, 1, 1, 2)  # 5 images in batches of 2
    torch.manual_seed(0)
    model = LinearGaussian(slope=1.0, variance=0.7)
    scores = score(model, view_of(grey, data_card("none"), 2), settings(elbo_samples=20_000, nll_samples=20_000))

    x = torch.from_numpy(grey).float() / 255
    mean, log_variance = model.posterior(x)
    kl = kl_to_standard_normal(mean, log_variance).double()
    torch.testing.assert_close(scores.means, mean.double())
    torch.testing.assert_close(scores.kl, kl.sum(1), rtol=1e-5, atol=0)
    torch.testing.assert_close(scores.latent_kl, kl.mean(0), rtol=1e-5, atol=0)
    # The greys of a pixel are 0, 50, ..., 200 or 25, 75, ..., 225: a population variance of 5000.
    assert scores.latent_variance.tolist() == pytest.approx([5_000 / 255**2] * 2, rel=1e-5)
    torch.testing.assert_close(scores.nll, -model.log_evidence(x).double(), rtol=0, atol=0.05)
    torch.testing.assert_close(scores.reconstruction + scores.kl, -model.expected_elbo(x).double(), rtol=0, atol=0.05)
    assert scores.layer_sizes == (2,)
    for values in tensors(scores).values():
        assert (values.dtype, values.device.type) == (torch.float64, "cpu")


def test_scoring_asks_for_the_samples_of_the_params_and_keeps_no_graph() -> None:
    model = some_model((1, 2, 2))
    asked: list[int] = []
    model.decoder.register_forward_hook(lambda _module, inputs, _output: asked.append(len(inputs[0])))
    scores = score(model, view_of(np.full((3, 1, 2, 2), 255, np.uint8), data_card("none"), 2), settings())
    # ELBO samples, then NLL samples up to each level: of a batch of two and a batch of one.
    # (One more of each batch, and of the samples of it, sees how much memory they take.)
    assert asked == [1, 2 * 2, 1, 2, 2, 2, 1, 2 * 1, 1, 1, 1, 1]
    assert {name: tuple(values.shape) for name, values in tensors(scores).items()} == {
        "reconstruction": (3,),
        "kl": (3,),
        "nll": (3,),
        "bounds": (3, 3),
        "effective": (3,),
        "latent_kl": (3,),
        "latent_kl_error": (3,),
        "layer_kl": (3, 1),
        "latent_variance": (3,),
        "means": (3, 3),
        "log_variances": (3, 3),
    }
    assert not any(values.requires_grad for values in tensors(scores).values())


def test_an_autoencoder_has_a_reconstruction_and_codes_but_neither_kl_nor_likelihood() -> None:
    model = some_model(kind="autoencoder", likelihood="gaussian", sigma=0.5)
    data = view_of(some_images(5), data_card("none"), 2)
    scores = score(model, data, settings())
    x = torch.from_numpy(some_images(5)).float() / 255
    with torch.no_grad():
        code = model.encoder(x)
        error = (model.decode(code) - x).square().sum((1, 2, 3))
    # -log N(x; m, 1/4) over six pixels: 2 (x - m)^2 + log(pi / 2) / 2 each.
    wanted = 2 * error.double() + 3 * math.log(math.pi / 2)
    torch.testing.assert_close(scores.reconstruction, wanted, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(scores.means, code.double())
    assert scores.nll.isnan().all()
    assert scores.kl.tolist() == [0.0] * 5
    assert scores.latent_kl.tolist() == [0.0] * 3
    assert scores.latent_variance.tolist() == pytest.approx(code.double().var(0, correction=0).tolist(), rel=1e-5)
    assert scores.layer_sizes == (3,)


@pytest.mark.parametrize("inference", ["top_down", "bottom_up"])
def test_the_kl_of_a_hierarchy_is_told_layer_by_layer_that_next_to_the_image_first(inference: str) -> None:
    model = some_model(kind="hierarchical", inference=inference, upper=[2, 1])
    assert isinstance(model, HierarchicalVAE)
    with torch.no_grad():
        model.encoders[-1].apply(lambda layer: [weight.zero_() for weight in layer.parameters()])
        top = [layer for layer in model.encoders[-1].modules() if isinstance(layer, torch.nn.Linear)][-1]
        assert top.bias is not None
        top.bias.copy_(torch.tensor([3.0, 0.0]))  # q(z_3 | x) = N(3, 1): a KL of 9/2
    scores = score(model, view_of(some_images(5), data_card("dynamic"), 2), settings(elbo_samples=4))
    assert scores.layer_sizes == (3, 2, 1)
    assert scores.latent_kl.shape == (6,)
    assert scores.means.shape == (5, 6)
    assert scores.latent_kl[5].item() == pytest.approx(4.5, rel=1e-6)
    assert scores.latent_kl[:5].max().item() < 4
    assert scores.latent_kl.sum().item() == pytest.approx(scores.kl.mean().item(), rel=1e-6)
    assert scores.nll.isfinite().all()

    found = headline(scores, 0.01, DENSITY, pixels=6)
    assert found["kl_layer_3"] == 4.5
    assert found["kl_layer_1"] == round(scores.latent_kl[:3].sum().item(), 4)
    layers = [found[f"kl_layer_{number}"] for number in (1, 2, 3)]
    assert sum(layers) == pytest.approx(found["kl"], abs=2e-4)  # four roundings of half a last digit
    assert "kl_layer_4" not in found


def test_a_single_layer_has_no_kl_per_layer() -> None:
    scores = score(some_model(), view_of(some_images(3), data_card("dynamic"), 2), settings())
    assert not [name for name in headline(scores, 0.01, DENSITY, pixels=6) if "layer" in name]


@pytest.mark.parametrize("kind", ["autoencoder", "vae", "hierarchical"])
def test_a_ragged_last_batch_does_not_change_the_mean_over_images(kind: str) -> None:
    # Five images in batches of two: a mean of batch means would count the last image twice.
    grey = np.zeros((5, *SHAPE), np.uint8)
    grey[4] = 255
    model = some_model(kind=kind, likelihood="gaussian", sigma=0.1)
    if kind != "autoencoder":  # without noise, so that nothing but the weighting can differ
        model.draw_from = without_noise(model)  # type: ignore[method-assign]

    def found(batch_size: int) -> dict[str, float]:
        data = view_of(grey, data_card("none"), batch_size)
        scores = score(model, data, settings(elbo_samples=1, nll_samples=1))
        return headline(scores, 0.01, Reports(density=True, posterior=kind != "autoencoder", bits=False), pixels=6)

    def is_close(first: dict[str, float], second: dict[str, float]) -> bool:
        return first == pytest.approx(second, rel=1e-5, abs=2e-4)

    whole = found(5)
    assert whole["images"] == 5
    assert is_close(found(2), whole)
    assert is_close(found(3), whole)
    # The last image is unlike the others, so that the wrong mean would be seen.
    ragged = score(model, view_of(grey, data_card("none"), 2), settings(elbo_samples=1, nll_samples=1))
    of_batches = torch.stack([part.mean() for part in torch.split(ragged.reconstruction, 2)]).mean().item()
    assert abs(of_batches - whole["reconstruction"]) > 1


def without_noise(model: AnyModel) -> Any:
    draw = model.draw_from

    def quiet(*args: Any) -> Draw:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(torch, "randn", torch.zeros)
            return draw(*args)

    return quiet


# Headline numbers


def scores_of(reconstruction: list[float], kl: list[float], nll: list[float], variance: list[float]) -> Scores:
    def tensor(values: list[float]) -> Tensor:
        return torch.tensor(values, dtype=torch.float64)

    return Scores(
        reconstruction=tensor(reconstruction),
        kl=tensor(kl),
        nll=tensor(nll),
        bounds=-tensor(nll)[:, None],
        effective=torch.arange(1.0, len(nll) + 1),
        latent_kl=torch.zeros(len(variance)),
        latent_kl_error=torch.zeros(len(variance)),
        layer_kl=tensor(kl)[:, None],
        latent_variance=tensor(variance),
        means=torch.zeros(len(kl), len(variance)),
        log_variances=torch.zeros(len(kl), len(variance)),
        layer_sizes=(len(variance),),
    )


def test_headline_gives_means_and_standard_errors() -> None:
    scores = scores_of([10.0, 14.0, 18.0], [1.0, 2.0, 6.0], [9.0, 9.0, 15.0], variance=[0.0, 0.01, 0.0101, 2.0])
    assert headline(scores, 0.01, DENSITY, pixels=4) == {
        # The values are 11, 16, 24: deviations -6, -1, 7 of their mean, a sample variance of 43; sqrt(43 / 3) = 3.7859.
        "elbo": -17.0,
        "elbo_se": 3.7859,
        "reconstruction": 14.0,
        "reconstruction_se": 2.3094,  # 4 / sqrt(3)
        "kl": 3.0,
        "kl_se": 1.5275,  # sqrt(7 / 3)
        "nll": 11.0,
        "nll_se": 2.0,  # sqrt(12 / 3)
        "nll_effective_samples": 2.0,
        "active_units": 2,  # strictly above the threshold
        "images": 3,
    }


def test_layers_and_dimensions_have_errors_over_images() -> None:
    model = some_model(kind="hierarchical", upper=[2])
    scores = score(model, view_of(some_images(7), data_card("none"), 3), settings())
    found = headline(scores, 0.01, DENSITY, pixels=6)
    assert scores.layer_kl.shape == (7, 2)
    torch.testing.assert_close(scores.layer_kl.sum(1), scores.kl, rtol=1e-5, atol=1e-6)
    for number in (1, 2):
        values = scores.layer_kl[:, number - 1]
        assert found[f"kl_layer_{number}_se"] == pytest.approx(values.std().item() / math.sqrt(7), abs=5e-5)
    alone = score(model, view_of(some_images(1), data_card("none"), 3), settings())
    assert alone.latent_kl_error.tolist() == [0.0] * 5


def test_without_a_density_there_is_a_cross_entropy_and_neither_elbo_nor_nll() -> None:
    scores = scores_of([10.0, 14.0, 18.0], [1.0, 2.0, 6.0], [9.0, 9.0, 15.0], variance=[2.0])
    assert headline(scores, 0.01, Reports(density=False, posterior=True, bits=False), pixels=4) == {
        "bce": 14.0,
        "bce_se": 2.3094,
        "kl": 3.0,
        "kl_se": 1.5275,
        "active_units": 1,
        "images": 3,
    }


def test_a_single_image_has_no_standard_error_and_no_active_unit() -> None:
    data = view_of(np.full((1, 1, 1, 2), 200, np.uint8), data_card("none"), 2)
    scores = score(LinearGaussian(), data, settings())
    found = headline(scores, 0.01, DENSITY, pixels=2)
    assert [found[f"{name}_se"] for name in ("elbo", "reconstruction", "kl", "nll")] == [0.0] * 4
    assert (found["active_units"], found["images"]) == (0, 1)


def test_the_nll_in_bits_is_per_pixel_and_channel() -> None:
    nll = [12 * math.log(2) * bits for bits in (1.0, 2.0, 6.0)]
    scores = scores_of([1.0] * 3, [1.0] * 3, nll, variance=[2.0])
    found = headline(scores, 0.01, Reports(density=True, posterior=True, bits=True), pixels=12)
    assert (found["bits_per_dim"], found["bits_per_dim_se"]) == (3.0, 1.5275)  # sqrt(7 / 3)


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_bits_are_told_of_the_256_grey_values_alone(likelihood: str) -> None:
    model = some_model(likelihood=likelihood)
    scores = score(model, view_of(some_images(3), data_card("none"), 2), settings())
    reports = Reports(is_density(model.likelihood, "none"), model.stochastic_layers > 0, model.likelihood.is_discrete)
    found = headline(scores, 0.01, reports, pixels=6)
    assert ("bits_per_dim" in found) == (likelihood in ("discretised_logistic", "logistic_mixture"))
    if "bits_per_dim" in found:
        assert found["bits_per_dim"] == pytest.approx(found["nll"] / (6 * math.log(2)), abs=1e-4)


@pytest.mark.parametrize("kind", ["vae", "hierarchical"])
def test_no_nll_is_told_of_grey_pixels_under_a_bernoulli(kind: str) -> None:
    model = some_model(kind=kind)
    decoded = list[int]()
    model.decoder.register_forward_hook(lambda _module, inputs, _output: decoded.append(len(inputs[0])))
    data, has_density = view_of(some_images(3), data_card("none"), 2), is_density(model.likelihood, "none")
    scores = score(model, data, settings(elbo_samples=2), is_density=has_density)
    assert sum(decoded) == 2 * 3 + 2  # samples of the expectations, and one for each batch to measure its memory
    assert all(values.isnan().all() for values in (scores.nll, scores.bounds, scores.effective))
    found = headline(scores, 0.01, Reports(has_density, True, False), pixels=6)
    assert {"elbo", "nll", "bits_per_dim", "reconstruction"} & set(found) == set()
    assert found["bce"] == round(scores.reconstruction.mean().item(), 4)
    assert found["kl"] == round(scores.kl.mean().item(), 4)


@pytest.mark.parametrize(("density", "name"), [(True, "reconstruction"), (False, "bce")])
def test_the_headline_of_an_autoencoder_is_its_reconstruction(density: bool, name: str) -> None:
    scores = scores_of([10.0, 14.0, 18.0], [0.0] * 3, [math.nan] * 3, variance=[2.0, 0.0])
    assert headline(scores, 0.01, Reports(density, posterior=False, bits=True), pixels=4) == {
        name: 14.0,
        f"{name}_se": 2.3094,
        "active_units": 1,
        "images": 3,
    }


@pytest.mark.parametrize("inference", ["bottom_up", "top_down"])
def test_units_that_know_nothing_of_the_image_are_not_active_however_few_the_samples(inference: str) -> None:
    torch.manual_seed(0)
    changes = {"kind": "hierarchical", "inference": inference, "hidden": (8,), "latent": 4, "upper": (2,)}
    model = build_model(small_section("model", **changes), (1, 4, 4)).eval()
    with torch.no_grad():
        first = model.features[0][1] if inference == "top_down" else model.encoders[0][1]
        first.weight.zero_()  # the image reaches nothing, but each layer still depends on the samples of another
        for layer in model.modules():
            if isinstance(layer, torch.nn.Linear):
                layer.weight.mul_(3)
    images = np.random.default_rng(0).integers(0, 256, (400, 1, 4, 4), dtype=np.uint8)
    data = view_of(images, data_card("dynamic"), 100)
    config = small_section("evaluate", elbo_samples=4, nll_samples=1)
    scores = score(model, data, config)
    spread = torch.cat(
        [layer.mean.expand_as(layer.z) for layer in model.draw(next(data.seen(0)), next(data.seen(0)), 50).layers], -1
    )
    dependent = spread.var(0).mean(0) > 0.01
    assert dependent.any()  # without the correction a quarter of this would count
    # Of 400 images the noise of the estimate is a tenth of the variance that it corrects.
    assert (scores.latent_variance <= 0.1 * spread.var(0).mean(0).double() / 4 + 1e-9).all()
