import math

import numpy as np
import pytest
import torch
from linear_gaussian import LinearGaussian
from some_cards import image_facts
from subjects import GREY, settings, some_images, some_model
from torch import Tensor
from views import view_of

from reparam.evaluate.scoring import Scores, score
from reparam.models.draw import kl_to_standard_normal
from reparam.models.hierarchical import HierarchicalVAE
from reparam.models.likelihoods import is_density

DRAWN = image_facts("dynamic")


def tensors(scores: Scores) -> dict[str, Tensor]:
    return {name: values for name, values in vars(scores).items() if isinstance(values, Tensor)}


def test_scores_are_per_image_in_the_order_of_the_split() -> None:
    grey = np.arange(0, 250, 25, dtype=np.uint8).reshape(5, 1, 1, 2)  # 5 images in batches of 2
    torch.manual_seed(0)
    model = LinearGaussian(slope=1.0, variance=0.7)
    scores = score(model, view_of(grey, GREY, 2), settings(elbo_samples=20_000, nll_samples=20_000))

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
    scores = score(model, view_of(np.full((3, 1, 2, 2), 255, np.uint8), GREY, 2), settings())
    # ELBO samples, then NLL samples up to each level: of a batch of two and a batch of one.
    # (One more, of the first image, sees how much memory it takes.)
    assert asked == [1, 2 * 2, 2, 2, 2, 2 * 1, 1, 1, 1]
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


@pytest.mark.parametrize("kind", ["vae", "autoencoder", "fsq"])
def test_images_are_encoded_once(kind: str) -> None:
    model = some_model((1, 2, 2), kind=kind, likelihood="gaussian", latent=4)
    encoded: list[int] = []
    model.encoder.register_forward_hook(lambda _module, inputs, _output: encoded.append(len(inputs[0])))
    score(model, view_of(np.full((3, 1, 2, 2), 255, np.uint8), GREY, 2), settings())
    assert encoded == [1, 2, 1]  # the first image sees how much memory it takes


def test_an_autoencoder_has_a_reconstruction_and_codes_but_neither_kl_nor_likelihood() -> None:
    model = some_model(kind="autoencoder", likelihood="gaussian", sigma=0.5)
    data = view_of(some_images(5), GREY, 2)
    scores = score(model, data, settings(), with_nll=model.has_elbo(is_density=True))
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
def test_the_kl_of_a_hierarchy_is_given_layer_by_layer_that_next_to_the_image_first(inference: str) -> None:
    model = some_model(kind="hierarchical", inference=inference, upper=[2, 1])
    assert isinstance(model, HierarchicalVAE)
    with torch.no_grad():
        model.encoders[-1].apply(lambda layer: [weight.zero_() for weight in layer.parameters()])
        top = [layer for layer in model.encoders[-1].modules() if isinstance(layer, torch.nn.Linear)][-1]
        assert top.bias is not None
        top.bias.copy_(torch.tensor([3.0, 0.0]))  # q(z_3 | x) = N(3, 1): a KL of 9/2
    scores = score(model, view_of(some_images(5), DRAWN, 2), settings(elbo_samples=4))
    assert scores.layer_sizes == (3, 2, 1)
    assert scores.latent_kl.shape == (6,)
    assert scores.means.shape == (5, 6)
    assert scores.latent_kl[5].item() == pytest.approx(4.5, rel=1e-6)
    assert scores.latent_kl[:5].max().item() < 4
    assert scores.latent_kl.sum().item() == pytest.approx(scores.kl.mean().item(), rel=1e-6)
    assert scores.nll.isfinite().all()


def test_layers_and_dimensions_have_errors_over_images() -> None:
    model = some_model(kind="hierarchical")
    scores = score(model, view_of(some_images(7), GREY, 3), settings())
    assert scores.layer_kl.shape == (7, 2)
    torch.testing.assert_close(scores.layer_kl.sum(1), scores.kl, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(scores.layer_kl.mean(0)[0], scores.latent_kl[:3].sum())
    alone = score(model, view_of(some_images(1), GREY, 3), settings())
    assert alone.latent_kl_error.tolist() == [0.0] * 5


@pytest.mark.parametrize("kind", ["vae", "hierarchical"])
def test_no_nll_is_computed_of_grey_pixels_under_a_bernoulli(kind: str) -> None:
    model = some_model(kind=kind)
    decoded = list[int]()
    model.decoder.register_forward_hook(lambda _module, inputs, _output: decoded.append(len(inputs[0])))
    has_density = is_density(model.likelihood, "none")
    scores = score(model, view_of(some_images(3), GREY, 2), settings(), with_nll=has_density)
    assert sum(decoded) == 2 * 3 + 1  # samples of the expectations, and one that measures memory
    assert all(values.isnan().all() for values in (scores.nll, scores.bounds, scores.effective))
    assert scores.reconstruction.isfinite().all()
    assert scores.kl.isfinite().all()


@pytest.mark.parametrize("inference", ["bottom_up", "top_down"])
def test_units_that_know_nothing_of_the_image_are_not_active_however_few_the_samples(inference: str) -> None:
    model = some_model((1, 4, 4), kind="hierarchical", inference=inference, hidden=[8], latent=4, upper_hidden=[64])
    with torch.no_grad():
        first = model.features[0][1] if inference == "top_down" else model.encoders[0][1]
        first.weight.zero_()  # the image reaches nothing, but each layer still depends on the samples of another
        for layer in model.modules():
            if isinstance(layer, torch.nn.Linear):
                layer.weight.mul_(3)
    data = view_of(some_images(400, (1, 4, 4)), DRAWN, 100)
    scores = score(model, data, settings(elbo_samples=4, nll_samples=1))
    x, _ = next(data.seen(0))
    spread = torch.cat([layer.mean.expand_as(layer.z) for layer in model.draw(x, x, 50).layers], -1)
    dependent = spread.var(0).mean(0) > 0.01
    assert dependent.any()  # without the correction a quarter of this would count
    # Of 400 images the noise of the estimate is a tenth of the variance that it corrects.
    assert (scores.latent_variance <= 0.1 * spread.var(0).mean(0).double() / 4 + 1e-9).all()


def test_a_hierarchy_takes_two_samples_at_least_to_know_their_noise() -> None:
    model = some_model((1, 2, 2), kind="hierarchical")
    data = view_of(some_images(6, (1, 2, 2)), GREY, 3)
    one, two = (
        score(model, data, settings(elbo_samples=samples), with_nll=False) for samples in (1, 2) if torch.manual_seed(0)
    )
    torch.testing.assert_close(one.latent_variance, two.latent_variance, rtol=0, atol=0)
    torch.testing.assert_close(one.kl, two.kl, rtol=0, atol=0)
