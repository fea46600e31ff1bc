"""Every kind of model with every likelihood and every objective: it trains, or it is refused by name."""

import pytest
import torch
from some_cards import image_facts, small_config
from torch import Tensor
from training import (
    KINDS,
    NEEDS_INDEPENDENT_LATENTS,
    REFUSED,
    SIZES,
    black_and_white,
    model_config,
    objective_config,
    train_config,
)

from reparam.config import ObjectiveConfig
from reparam.data.pixels import Pixels
from reparam.errors import ParamsError
from reparam.models import build
from reparam.models.build import build_model
from reparam.models.latent import LatentModel
from reparam.models.likelihoods import LIKELIHOODS, Gaussian
from reparam.models.model import Model
from reparam.models.networks import NETWORKS
from reparam.models.priors import PRIORS, Standard
from reparam.models.quantized import Quantized
from reparam.objectives import OBJECTIVES
from reparam.train.checks import check_objective, check_parts
from reparam.train.loss import Loss
from reparam.train.trainer import Trainer

TRAIN = train_config()
IMAGES = black_and_white(4, 1, 8, 8)


pytestmark = pytest.mark.usefixtures("one_thread")


def test_every_kind_is_combined_with_the_rest() -> None:
    assert {changes["kind"] for changes in KINDS.values()} == set(build.KINDS)


def test_the_objectives_that_we_ship_are_defined_for_the_models_of_their_publications() -> None:
    with_prior, without = {"vae", "bottom_up", "top_down"}, {"autoencoder", "fsq", "vq"}
    kinds = {
        "reconstruction": {"vae", *without},
        "denoising": with_prior | without,
        "sparse": {"autoencoder", "vae"},
        "contractive": {"autoencoder", "vae"},
        "elbo": with_prior,
        "capacity": with_prior,
        "beta_tc": {"vae"},
        "mmd": {"autoencoder", "vae"},
        "iwae": with_prior,
        "dreg": {"vae"},
        "reinforce": with_prior,
    }
    assert {name: {kind for kind in KINDS if (kind, name) not in REFUSED} for name in kinds} == kinds
    assert {name for name in kinds if name in NEEDS_INDEPENDENT_LATENTS} == {"reconstruction", "beta_tc"}
    assert {name for name in kinds if OBJECTIVES[name].has_own_gradient} == {"dreg", "reinforce"}
    assert {name for name in kinds if OBJECTIVES[name].has_jacobian} == {"contractive"}
    assert {name for name in kinds if OBJECTIVES[name].matches_prior} == {"mmd"}


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("likelihood", LIKELIHOODS)
@pytest.mark.parametrize("kind", KINDS)
def test_every_combination_trains_or_is_refused(kind: str, likelihood: str, objective: str) -> None:
    # Each kind and objective has a third of its likelihoods with each network.
    number = list(LIKELIHOODS).index(likelihood) + list(OBJECTIVES).index(objective)
    changes = KINDS[kind] | SIZES | {"likelihood": likelihood, "network": list(NETWORKS)[number % len(NETWORKS)]}
    config, wanted = model_config(**changes), objective_config(name=objective, samples=2)
    torch.manual_seed(0)
    model = build_model(config, IMAGES.shape[1:])
    if (kind, objective) in REFUSED:
        with pytest.raises(ParamsError, match=rf"^params\.yaml: model\.kind: .*'{objective}', found '{config.kind}'$"):
            check_objective(model, config, wanted)
        return

    check_objective(model, config, wanted)
    train_two_steps(model, wanted)


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_and_objective_is_conditional(kind: str, objective: str) -> None:
    if (kind, objective) in REFUSED:
        return
    network = list(NETWORKS)[list(OBJECTIVES).index(objective) % len(NETWORKS)]
    changes = KINDS[kind] | SIZES | {"condition": "label", "network": network}
    torch.manual_seed(0)
    model = build_model(model_config(**changes), IMAGES.shape[1:], classes=3)
    train_two_steps(model, objective_config(name=objective, samples=2), torch.tensor([0, 2, 1, 2]))


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("kind", ["autoencoder", "vae", "fsq", "vq"])
def test_every_kind_and_objective_has_latents_that_are_an_image(kind: str, objective: str) -> None:
    if (kind, objective) in REFUSED:
        return
    changes = KINDS[kind] | SIZES | {"network": "resnet", "latent_channels": 3, "latent": None}
    torch.manual_seed(0)
    model = build_model(model_config(**changes), IMAGES.shape[1:])
    assert model.latent_shape == (3, 4, 4)
    train_two_steps(model, objective_config(name=objective, samples=2))


@pytest.mark.parametrize("prior", PRIORS)
def test_every_prior_is_that_of_all_labels(prior: str) -> None:
    config = model_config(**SIZES | {"condition": "label", "prior": prior})
    torch.manual_seed(0)
    model = build_model(config, IMAGES.shape[1:], classes=3)
    train_two_steps(model, objective_config(name="iwae", samples=2), torch.tensor([0, 2, 1, 2]))
    labelled, others = (Model(model, torch.tensor(labels)) for labels in ([0, 2, 1, 2], [1, 1, 1, 1]))
    x = IMAGES.float() / 255
    for view in (labelled, others):
        draw = view.draw_from(view.encode(x), x, 2)
        assert torch.allclose(draw.log_pz, model.prior.log_prob(draw.layers[0].z))


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("prior", [name for name in PRIORS if name != "standard"])
@pytest.mark.parametrize("kind", KINDS)
def test_every_prior_is_learned_or_refused(kind: str, prior: str, objective: str) -> None:
    changes = KINDS[kind] | SIZES | {"prior": prior, "activation": "gated"}
    config, wanted = model_config(**changes), objective_config(name=objective, samples=2)
    torch.manual_seed(0)
    if kind != "vae":
        message = rf"^params\.yaml: model\.prior: wanted 'standard' with model\.kind '{config.kind}', found '{prior}'$"
        with pytest.raises(ParamsError, match=message):
            build_model(config, IMAGES.shape[1:])
        return

    model = build_model(config, IMAGES.shape[1:])
    if objective in NEEDS_INDEPENDENT_LATENTS and not model.prior.is_independent:
        message = rf"^params\.yaml: model\.prior: wanted 'standard' with .* '{objective}', found '{prior}'$"
        with pytest.raises(ParamsError, match=message):
            check_objective(model, config, wanted)
        return
    check_objective(model, config, wanted)
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    train_two_steps(model, wanted)
    for name, weight in model.named_parameters():
        assert not torch.equal(before[name], weight), name


@pytest.mark.parametrize("objective", [name for name in OBJECTIVES if name not in NEEDS_INDEPENDENT_LATENTS])
@pytest.mark.parametrize("prior", ["mixture", "vamp"])
def test_a_weight_without_which_a_prior_learns_nothing_is_refused_at_0(prior: str, objective: str) -> None:
    config = model_config(**SIZES | {"prior": prior})
    wanted = objective_config(name=objective, samples=2, beta=0.0, capacity={"weight": 0.0, "nats": 1.0, "epochs": 1})
    torch.manual_seed(0)
    model = build_model(config, IMAGES.shape[1:])
    if weight := OBJECTIVES[objective].prior_weight:
        message = (
            rf"^params\.yaml: objective\.{weight}: wanted more than 0\.0 with model\.prior '{prior}'.* found 0\.0$"
        )
        with pytest.raises(ParamsError, match=message):
            check_objective(model, config, wanted)
        check_objective(build_model(model_config(**SIZES), IMAGES.shape[1:]), model_config(**SIZES), wanted)
        return
    check_objective(model, config, wanted)
    before = [weight.detach().clone() for weight in model.prior.parameters()]
    train_two_steps(model, wanted)
    assert not any(torch.equal(*pair) for pair in zip(before, model.prior.parameters(), strict=True))


@pytest.mark.parametrize("objective", ["elbo", "iwae", "dreg", "reinforce"])
@pytest.mark.parametrize("network", ["conv", "resnet", "spatial"])
@pytest.mark.parametrize("prior", ["mixture", "vamp"])
def test_every_prior_is_learned_with_every_network(prior: str, network: str, objective: str) -> None:
    spatial = {"network": "resnet", "latent_channels": 3, "latent": None}
    config = model_config(**SIZES | {"prior": prior} | (spatial if network == "spatial" else {"network": network}))
    torch.manual_seed(0)
    model = build_model(config, IMAGES.shape[1:])
    before = [weight.detach().clone() for weight in model.prior.parameters()]
    train_two_steps(model, objective_config(name=objective, samples=2))
    assert not any(torch.equal(*pair) for pair in zip(before, model.prior.parameters(), strict=True))


def test_what_a_learned_prior_cannot_have_is_refused() -> None:
    for prior in ("mixture", "vamp"):
        config = model_config(prior=prior)
        model = build_model(config, IMAGES.shape[1:])
        with pytest.raises(ParamsError, match=rf"^params\.yaml: objective\.free_bits: .*'{prior}'.* found 0\.5$"):
            check_objective(model, config, objective_config(free_bits=0.5))
    config = model_config(prior="vamp", norm="batch")
    with pytest.raises(ParamsError, match=r"^params\.yaml: model\.mlp\.norm: wanted 'none' or 'layer' with .*'vamp'"):
        check_objective(build_model(config, IMAGES.shape[1:]), config, objective_config())
    whole, facts = small_config(model=model_config(prior="vamp")), image_facts("dynamic")
    model = build_model(whole.model, IMAGES.shape[1:])
    check_parts(model, whole, facts, images=100)
    scaled = facts.model_copy(update={"scaling": facts.scaling.model_copy(update={"kind": "symmetric"})})
    model.likelihood = Gaussian(whole.model.gaussian)
    with pytest.raises(
        ParamsError, match=r"^params\.yaml: preprocess\.scaling: wanted 'unit' with model\.prior 'vamp'"
    ):
        check_parts(model, whole, scaled, images=100)


@pytest.mark.parametrize("name", KINDS)
def test_a_kind_says_what_its_models_are(name: str) -> None:
    config = model_config(**KINDS[name] | SIZES)
    model, kind = build_model(config, IMAGES.shape[1:]), build.KINDS[config.kind]
    assert kind.layers[0] <= model.stochastic_layers <= kind.layers[1]
    assert kind.has_smooth_code is not isinstance(model, Quantized)


def test_a_refusal_names_every_kind_that_the_objective_goes_with(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(build.KINDS, "pyramid", build.Kind("A new one", build.KINDS["vae"].build, (3, 4)))
    for objective, wanted in (("elbo", "'vae' or 'hierarchical' or 'pyramid'"), ("beta_tc", "'vae'")):
        config = model_config(kind="autoencoder")
        with pytest.raises(ParamsError, match=rf"^params\.yaml: model\.kind: wanted {wanted} with objective"):
            check_objective(build_model(config, IMAGES.shape[1:]), config, objective_config(name=objective))


def test_a_refusal_names_every_prior_that_would_do(monkeypatch: pytest.MonkeyPatch) -> None:
    class Independent(Standard):
        is_standard = False

    monkeypatch.setitem(PRIORS, "shifted", Independent)
    config = model_config(prior="mixture")
    with pytest.raises(
        ParamsError, match=r"^params\.yaml: model\.prior: wanted 'standard' or 'shifted' with objective"
    ):
        check_objective(build_model(config, IMAGES.shape[1:]), config, objective_config(name="beta_tc"))
    with pytest.raises(ParamsError, match=r"^params\.yaml: model\.prior: wanted 'standard' with model\.kind 'fsq'"):
        build_model(model_config(**KINDS["fsq"] | SIZES | {"prior": "mixture"}), IMAGES.shape[1:])


def train_two_steps(model: LatentModel, wanted: ObjectiveConfig, *labels: Tensor) -> None:
    """Take two steps, all of whose numbers must be finite, and see that weights have moved."""
    loss = Loss(model, Pixels(image_facts("none")), wanted)
    trainer = Trainer(loss, TRAIN, epoch_images=100)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    with torch.no_grad():
        held_out = loss.validate(IMAGES, *labels)
    totals = [trainer.step(IMAGES, *labels).terms, trainer.step(IMAGES, *labels).terms]
    for terms, wanted_shape in ((totals[0], ()), (totals[1], ()), (held_out, (4,))):
        assert {name: values.shape for name, values in terms.items()} == dict.fromkeys(held_out, wanted_shape)
        assert all(values.isfinite().all() for values in terms.values()), terms
    assert all(parameter.isfinite().all() for parameter in model.parameters())
    moved = [not torch.equal(*pair) for pair in zip(before, model.parameters(), strict=True)]
    assert any(moved)
