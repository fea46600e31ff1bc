"""Check that model, objective, data and schedule go together."""

import operator
from typing import get_args

from torch import nn

from reparam.cards.data import DataCard, ImageFacts
from reparam.config import Config, ModelConfig, ObjectiveConfig
from reparam.errors import ParamsError
from reparam.models.build import KINDS, Kind
from reparam.models.latent import LatentModel
from reparam.models.priors import PRIORS
from reparam.objectives import OBJECTIVES, Objective
from reparam.train.loss import Loss


def check_parts(model: LatentModel, config: Config, data: ImageFacts, *, images: int, processes: int = 1) -> None:
    """Refuse parts that do not go together, with this number of training images and processes.

    Raises: ParamsError.
    """
    check_objective(model, config.model, config.objective)
    _check_pixels(model, config.model, data)
    _check_batches(model, config, images, processes)
    _check_codebook(model, config.model.kind, processes)
    _check_parameters(config)


def condition_classes(condition: str, data: DataCard) -> tuple[str, ...]:
    """Return the classes of a conditional model, that is all classes; none for another model.

    Raises: ParamsError if images have no labels, or a class has no training image.
    """
    if condition == "none":
        return ()
    trained = data.splits["train"].classes
    if len(trained) < 2:
        found = ", ".join(map(repr, trained))
        raise ParamsError(
            f"params.yaml: model.condition: wanted 'none' with training images of one class alone ({found}), found "
            f"{condition!r}; set download.source to data with labels: digits, mnist_5k, a set of "
            "torchvision, or a folder with a folder for each class or with download.folder.label"
        )
    if missing := [repr(name) for name in data.classes if name not in trained]:
        raise ParamsError(
            f"params.yaml: model.condition: wanted 'none' where a class has no training image ({', '.join(missing[:9])}"
            f"{', ...' if missing[9:] else ''}), found {condition!r}; list the other classes in preprocess.classes, or "
            "raise preprocess.limit if it is set"
        )
    return data.classes


def _check_pixels(model: LatentModel, config: ModelConfig, data: ImageFacts) -> None:
    kind = data.scaling.kind
    if kind != "unit" and model.likelihood.needs_unit:
        settings = "".join(f" ({block})" for block in config.arguments(config.likelihood))
        raise ParamsError(
            f"params.yaml: preprocess.scaling: wanted 'unit' with model.likelihood {config.likelihood!r}{settings}, "
            f"which is defined for pixels in [0, 1], found {kind!r}"
        )
    if kind != "unit" and model.prior.is_of_images:
        raise ParamsError(
            f"params.yaml: preprocess.scaling: wanted 'unit' with model.prior {config.prior!r}, whose pseudo-inputs "
            f"are images with pixels in [0, 1], found {kind!r}"
        )
    if data.binarization != "none" and not model.likelihood.needs_binary:
        raise ParamsError(
            f"params.yaml: preprocess.binarization: wanted 'none' with model.likelihood {config.likelihood!r}, a "
            f"likelihood of grey pixels, found {data.binarization!r}"
        )


def _check_batches(model: LatentModel, config: Config, images: int, processes: int) -> None:
    if not has_batch_norm(model):
        return
    size, (name, wanted, found) = config.train.batch_size, _batch_norm(config.model)
    if images % size == 1 or min(images, size) == 1:
        raise ParamsError(
            f"params.yaml: train.batch_size: wanted more than one image in every batch with {name} {found}, found "
            f"{size}, which leaves one of the {images} training images alone; take another number"
        )
    if processes > 1:
        raise ParamsError(
            f"params.yaml: {name}: wanted {wanted} where several processes train, each of which sees a part of the "
            f"batch, found {found}"
        )


def _check_codebook(model: LatentModel, kind: str, processes: int) -> None:
    if processes > 1 and model.codebook and model.codebook.quantizer.is_learned:
        raise ParamsError(
            "params.yaml: model.kind: wanted 'fsq' or another without a learned codebook where several processes "
            f"train, each of which would learn one of its own, found {kind!r}"
        )


def check_monitor(loss: Loss, monitor: str) -> None:
    """Refuse to choose the best epoch by an ELBO that there is not.

    Raises: ParamsError.
    """
    if monitor == "elbo" and not loss.has_elbo:
        kind = (
            "a Bernoulli likelihood of grey pixels" if loss.model.stochastic_layers else "a model without a posterior"
        )
        raise ParamsError(f"params.yaml: train.monitor: wanted 'loss' with {kind}, which has no ELBO, found 'elbo'")


def _check_parameters(config: Config) -> None:
    name = config.objective.name
    OBJECTIVES[name].check(config.objective, config.model)
    if OBJECTIVES[name].has_jacobian and config.train.compile:
        raise ParamsError(
            f"params.yaml: train.compile: wanted false with objective.name {name!r}, whose penalty is a derivative: "
            "torch.compile supports no second derivative, found true"
        )


def check_objective(model: LatentModel, config: ModelConfig, objective: ObjectiveConfig) -> None:
    """Refuse a model that the objective is not defined for.

    Raises: ParamsError.
    """
    chosen = OBJECTIVES[objective.name]
    least, most = chosen.layers
    has_code = chosen.has_any_code or KINDS[config.kind].has_smooth_code
    if not (has_code and least <= model.stochastic_layers <= most):
        wanted = " or ".join(repr(name) for name, kind in KINDS.items() if _fits(kind, chosen))
        raise ParamsError(
            f"params.yaml: model.kind: wanted {wanted} with objective.name {objective.name!r}, found {config.kind!r}"
        )
    _check_prior(model, config, objective)
    if objective.perceptual.weight and OBJECTIVES[objective.name].has_own_gradient:
        raise ParamsError(
            f"params.yaml: objective.perceptual.weight: wanted 0.0 with objective.name {objective.name!r}, whose "
            f"gradient to the encoder is not that of its loss, found {objective.perceptual.weight}"
        )
    if OBJECTIVES[objective.name].has_jacobian and has_batch_norm(model):
        name, wanted, found = _batch_norm(config)
        raise ParamsError(
            f"params.yaml: {name}: wanted {wanted} with objective.name {objective.name!r}, found {found}: it makes "
            "an image's code depend on the other images of the batch"
        )


def _fits(kind: Kind, objective: Objective) -> bool:
    has_code = objective.has_any_code or kind.has_smooth_code
    return has_code and kind.layers[0] <= objective.layers[1] and objective.layers[0] <= kind.layers[1]


def _check_prior(model: LatentModel, config: ModelConfig, objective: ObjectiveConfig) -> None:
    if not OBJECTIVES[objective.name].has_any_prior and not model.prior.is_independent:
        wanted = " or ".join(repr(name) for name, prior in PRIORS.items() if prior.is_independent)
        raise ParamsError(
            f"params.yaml: model.prior: wanted {wanted} with objective.name {objective.name!r}, found {config.prior!r}"
        )
    weight, prior = OBJECTIVES[objective.name].prior_weight, model.prior
    is_learned = isinstance(prior, nn.Module) and any(True for _ in prior.parameters())
    if is_learned and weight and not operator.attrgetter(weight)(objective):
        raise ParamsError(
            f"params.yaml: objective.{weight}: wanted more than 0.0 with model.prior {config.prior!r}, which learns "
            "nothing without it, found 0.0"
        )
    if objective.free_bits and not model.prior.is_independent:
        raise ParamsError(
            f"params.yaml: objective.free_bits: wanted 0.0 with model.prior {config.prior!r}, under which no latent "
            f"dimension has a KL of its own, found {objective.free_bits}"
        )
    if model.prior.is_of_images and has_batch_norm(model):
        name, wanted, found = _batch_norm(config)
        raise ParamsError(
            f"params.yaml: {name}: wanted {wanted} with model.prior {config.prior!r}, whose images are no batch of the "
            f"data, found {found}"
        )


def _batch_norm(config: ModelConfig) -> tuple[str, str, str]:
    """Return the parameter that asks for batch norm, its other values in words, and its value."""
    for block in config.arguments(config.network):
        if norm := type(block).model_fields.get("norm"):
            others = " or ".join(repr(name) for name in get_args(norm.annotation) if name != "batch")
            return f"model.{config.network}.norm", others, "'batch'"
    return "model.network", "one without batch norm", repr(config.network)


def has_batch_norm(model: LatentModel) -> bool:
    """Return whether, in training, the outputs of an image depend on the other images of the batch."""
    return any(isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d) for layer in model.modules())
