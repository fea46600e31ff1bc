from typing import Any

import pytest
import torch
from conftest import small_section
from torch import Tensor, nn
from torch.distributions import Bernoulli

from reparam.config import ModelConfig
from reparam.models import likelihoods
from reparam.models.autoencoder import Autoencoder
from reparam.models.build import build_model
from reparam.models.draw import Estimator
from reparam.models.priors import StandardNormal

SHAPE = (3, 2, 4)  # (C, H, W), all different, so that no two can be mixed up


def settings(**changes: Any) -> ModelConfig:
    small = {"kind": "autoencoder", "hidden": (6,), "activation": "tanh", "latent": 2, "likelihood": "bernoulli"}
    return small_section("model", **small | changes)


def some_model() -> Autoencoder:
    torch.manual_seed(0)
    model = build_model(settings(), SHAPE)
    assert isinstance(model, Autoencoder)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.4)
    return model


def some_images(count: int) -> Tensor:
    return torch.bernoulli(torch.full((count, *SHAPE), 0.5), generator=torch.Generator().manual_seed(1))


def test_it_has_no_layer_with_a_posterior() -> None:
    assert Autoencoder.stochastic_layers == 0
    model = some_model()
    assert model.layers(model.encode(some_images(2)), torch.zeros(1, 2, model.latent_size)) == []


def test_the_code_is_what_the_encoder_puts_out_and_has_no_variance() -> None:
    decoder = nn.Unflatten(1, (1, 2, 2))
    model = Autoencoder(nn.Flatten(), decoder, likelihoods.Bernoulli(), StandardNormal(4), (1, 2, 2))
    x = torch.arange(8.0).reshape(2, 1, 2, 2)
    code, log_variance = model.posterior(x)
    assert code.tolist() == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert log_variance.exp().tolist() == [[0.0] * 4] * 2


def test_decoding_a_code_gives_the_mean_image() -> None:
    model, code = some_model(), torch.tensor([[0.5, -2.0], [1.0, 3.0], [0.0, 0.0]])
    torch.testing.assert_close(model.decode(code), Bernoulli(logits=model.decoder(code)).mean)
    assert model.decode(code).shape == (3, *SHAPE)


@pytest.mark.parametrize("estimator", ["pathwise", "stopped", "score_function"])
@pytest.mark.parametrize("samples", [1, 3])
def test_a_draw_scores_the_target_from_the_code_of_the_input(samples: int, estimator: Estimator) -> None:
    model, x, target = some_model(), some_images(8)[:4], some_images(8)[4:]
    draw = model.draw(x, target, samples, estimator)
    code = model.posterior(x)[0]
    wanted = Bernoulli(logits=model.decoder(code)).log_prob(target).sum((1, 2, 3))
    torch.testing.assert_close(draw.log_px, wanted.expand(samples, 4))
    for name in ("log_pz", "log_qz", "kl"):
        assert getattr(draw, name).tolist() == [[0.0] * 4] * samples, name

    [layer] = draw.layers
    assert torch.equal(layer.mean, code)
    assert torch.equal(layer.z, code.expand(samples, 4, 2))
    assert layer.kl is not None
    assert layer.kl.tolist() == [[[0.0] * 2] * 4] * samples
    assert layer.log_pz.tolist() == layer.log_qz.tolist() == [[0.0] * 4] * samples


def test_a_draw_uses_no_noise() -> None:
    model, x = some_model(), some_images(4)
    torch.manual_seed(0)
    before = torch.get_rng_state()
    draws = [model.draw(x, x, 2).log_px for _ in range(2)]
    assert torch.equal(draws[0], draws[1])
    assert torch.equal(torch.get_rng_state(), before)


def test_gradients_reach_encoder_and_decoder() -> None:
    model, x = some_model(), some_images(4)
    model.draw(x, x, 2).log_px.sum().backward()
    once = [parameter.grad for parameter in model.parameters()]
    # Two samples, which are the same: twice the gradient of the log-likelihood of the decoded code.
    log_px = Bernoulli(logits=model.decoder(model.encoder(x))).log_prob(x).sum()
    wanted = torch.autograd.grad(2 * log_px, list(model.parameters()))
    for found, gradient in zip(once, wanted, strict=True):
        assert gradient.abs().max().item() > 1e-3
        torch.testing.assert_close(found, gradient)
