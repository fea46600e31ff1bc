"""Conditional models: exact against models of each class, and against a known p(x|y)."""

from typing import Any

import pytest
import torch
from conftest import small_section
from linear_gaussian import LOADINGS, OFFSET, SHAPE, SIGMA, linear, linear_vae
from torch import Tensor, nn
from torch.distributions import MultivariateNormal

from reparam.config.model import LabelConfig
from reparam.data.batches import Batch
from reparam.errors import ParamsError
from reparam.evaluate.importance import importance
from reparam.models.build import build_model
from reparam.models.conditions import Label
from reparam.models.latent import LatentModel
from reparam.models.model import Model
from reparam.models.vae import VAE

CLASSES, SIZE, LATENT = 3, 2, 3
IMAGE = (1, 2, 4)
KINDS: dict[str, dict[str, Any]] = {
    "autoencoder": {"kind": "autoencoder"},
    "vae": {"kind": "vae"},
    "bottom_up": {"kind": "hierarchical", "inference": "bottom_up"},
    "top_down": {"kind": "hierarchical", "inference": "top_down"},
}
every_kind = pytest.mark.parametrize("kind", KINDS)


def conditional(network: str = "mlp", **changes: Any) -> LatentModel:
    """A model that was trained with labels long enough for them to matter, in double precision."""
    small = {"condition": "label", "size": SIZE, "latent": LATENT, "network": network, "activation": "tanh"}
    small |= {"hidden": (6,), "channels": (4,), "upper": (2,), "upper_hidden": (4,)}
    torch.manual_seed(0)
    model = build_model(small_section("model", **small | changes), IMAGE, CLASSES).double().eval()
    nn.init.normal_(model.condition.image)  # type: ignore[union-attr]
    return model


def some_images(count: int) -> Tensor:
    return torch.rand((count, *IMAGE), dtype=torch.float64, generator=torch.Generator().manual_seed(1)).round()


def of_class(model: LatentModel, label: int) -> VAE:
    """The model of one class alone, without labels: what they would add is in the biases of its first layers."""
    assert isinstance(model.condition, Label)
    alone = build_model(small_section("model", latent=LATENT, hidden=(6,), activation="tanh"), IMAGE).double().eval()
    weights = {name: weight for name, weight in model.state_dict().items() if not name.startswith("condition")}
    labelled = model.condition.numbers.weight[label]
    decoder, image = weights["decoder.0.weight"], labelled @ model.condition.image
    weights["encoder.1.bias"] = weights["encoder.1.bias"] + weights["encoder.1.weight"] @ image
    weights["decoder.0.bias"] = weights["decoder.0.bias"] + decoder[:, LATENT:] @ labelled
    weights["decoder.0.weight"] = decoder[:, :LATENT]
    alone.load_state_dict(weights)
    assert isinstance(alone, VAE)
    return alone


@pytest.mark.parametrize("label", range(CLASSES))
def test_the_elbo_given_a_label_is_that_of_a_model_of_this_class_alone(label: int) -> None:
    model, x = conditional(), some_images(5)
    draws = []
    for each in (Model(model, torch.full((5,), label)), of_class(model, label)):
        torch.manual_seed(2)
        draws.append(each.draw(x, 1 - x, 4))
    for name in ("log_px", "log_pz", "log_qz", "kl"):
        torch.testing.assert_close(getattr(draws[0], name), getattr(draws[1], name), rtol=1e-12, atol=1e-12)


@every_kind
@pytest.mark.parametrize("network", ["mlp", "conv"])
def test_rows_follow_their_labels(kind: str, network: str) -> None:
    model, x, labels = conditional(network, **KINDS[kind]), some_images(4), torch.tensor([0, 1, 2, 1])
    order = torch.tensor([2, 0, 3, 1])
    labelled, ordered = Model(model, labels), Model(model, labels[order])
    mean = labelled.posterior(x)[0]
    torch.testing.assert_close(ordered.posterior(x[order])[0], mean[order])
    torch.testing.assert_close(ordered.decode(mean[order]), labelled.decode(mean)[order])
    for number, label in enumerate(labels):
        alone = Model(model, label[None])
        torch.testing.assert_close(alone.posterior(x[[number]])[0], mean[[number]])
        torch.testing.assert_close(alone.output(mean[[number]]), labelled.output(mean)[[number]])


@every_kind
@pytest.mark.parametrize("network", ["mlp", "conv"])
def test_another_label_changes_the_images_that_have_it_and_no_others(kind: str, network: str) -> None:
    model, x = conditional(network, **KINDS[kind]), some_images(3)
    first, second = (Model(model, torch.tensor(labels)) for labels in ([0, 1, 2], [0, 2, 2]))
    z = first.posterior(x)[0]
    for before, after in ((z, second.posterior(x)[0]), (first.output(z), second.output(z))):
        assert torch.equal(before[[0, 2]], after[[0, 2]])
        assert not torch.isclose(before[1], after[1]).any()


@every_kind
def test_names_of_classes_mean_nothing(kind: str) -> None:
    model, x, labels = conditional(**KINDS[kind]), some_images(3), torch.tensor([0, 1, 1])
    wanted = Model(model, labels).posterior(x)[0]
    renamed = torch.tensor([2, 0, 1])  # 0 is called 2 now, 1 is called 0, 2 is called 1
    assert isinstance(model.condition, Label)
    with torch.no_grad():
        model.condition.numbers.weight[renamed] = model.condition.numbers.weight.clone()
    assert torch.equal(Model(model, renamed[labels]).posterior(x)[0], wanted)


@pytest.mark.parametrize("kind", ["vae", "bottom_up", "top_down"])
def test_each_sample_of_an_image_has_the_label_of_the_image(kind: str) -> None:
    model, x, labels = conditional(**KINDS[kind]), some_images(3), torch.tensor([0, 1, 2])
    torch.manual_seed(0)
    draw = Model(model, labels).draw(x, x, 5)
    for number, z in enumerate(draw.layers[0].z):
        log_px = model.likelihood.log_prob(model.output_at(z, labels), x)
        torch.testing.assert_close(draw.log_px[number], log_px)


def test_the_log_likelihood_given_a_label_is_that_of_a_linear_gaussian_model() -> None:
    plain = linear_vae()
    shifts = torch.tensor([[0.4, -1.0, 0.3, 0.8], [2.0, 0.5, -0.6, 0.1]], dtype=torch.float64)  # of pixels, by label
    condition = Label(2, SHAPE, LabelConfig(size=2)).double()
    with torch.no_grad():
        condition.numbers.weight.copy_(torch.eye(2))
        condition.image.copy_(-shifts)  # the encoder sees what is left of an image
    decoder = nn.Sequential(linear(torch.cat([LOADINGS, shifts.T], 1), OFFSET), nn.Unflatten(1, SHAPE))
    model = VAE(plain.encoder, decoder, plain.likelihood, plain.prior, SHAPE, condition=condition)
    x, labels = torch.randn(6, *SHAPE, dtype=torch.float64), torch.tensor([0, 1, 1, 0, 1, 0])
    covariance = LOADINGS @ LOADINGS.T + SIGMA**2 * torch.eye(4, dtype=torch.float64)
    exact = MultivariateNormal(OFFSET + shifts[labels], covariance).log_prob(x.flatten(1))
    found = importance(model, [Batch(x, labels)], 3)  # the posterior is exact, so that any number of samples is
    torch.testing.assert_close(-found.nll, exact)
    torch.testing.assert_close(found.effective, torch.full((6,), 3.0, dtype=torch.float64))
    assert not torch.isclose(importance(model, [Batch(x, 1 - labels)], 3).nll, -exact).any()


def test_an_untrained_encoder_sees_the_image_alone() -> None:
    model, x = conditional(), some_images(2)
    nn.init.zeros_(model.condition.image)  # type: ignore[union-attr]
    assert torch.equal(model.posterior(x, torch.tensor([0, 1]))[0], model.posterior(x, torch.tensor([2, 0]))[0])
    fresh = build_model(small_section("model", condition="label"), IMAGE, CLASSES)
    assert fresh.condition.image.count_nonzero() == 0  # type: ignore[union-attr]


def test_labels_add_their_numbers_and_as_many_inputs_of_the_decoder() -> None:
    labelled, unlabelled = (
        build_model(small_section("model", condition=condition, size=SIZE, hidden=(6,)), IMAGE, CLASSES)
        for condition in ("label", "none")
    )
    sizes = [sum(weight.numel() for weight in model.parameters()) for model in (labelled, unlabelled)]
    assert sizes[0] - sizes[1] == CLASSES * SIZE + SIZE * 8 + SIZE * 6


def test_latents_that_are_an_image_get_no_label() -> None:
    wanted = (
        r"^params\.yaml: model\.condition: wanted 'none' where latents are an image, found 'label'; .*latent_channels"
    )
    with pytest.raises(ParamsError, match=wanted):
        conditional("resnet", channels=(4, 4), groups=2, latent_channels=2, latent=None)


@pytest.mark.parametrize("changes", [{"kind": "fsq", "levels": (8, 8)}, {"kind": "vq", "codes": 30, "dimensions": 2}])
def test_the_decoder_of_codes_is_given_labels_and_codes_are_of_the_labelled_image(changes: dict[str, Any]) -> None:
    model, x, labels = conditional(latent=4, **changes), some_images(3), torch.tensor([0, 1, 2])
    codes = Model(model, labels).posterior(x)[0]
    seen = model.condition.on_image(x, labels)
    assert torch.equal(
        codes, model.codebook.joined(model.quantizer.quantized(model.codebook.split(model.encoder(seen))))
    )
    draw = Model(model, labels).draw(x, x, 1)
    assert torch.equal(draw.log_px[0], model.likelihood.log_prob(Model(model, labels).output(codes), x))
    others = Model(model, labels.roll(1)).output(codes)
    assert not torch.isclose(others, Model(model, labels).output(codes)).any()
