"""The objectives of training, and the bounds that evaluation reports."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from reparam.config import ModelConfig, ObjectiveConfig
from reparam.errors import ParamsError
from reparam.models.draw import Draw, Layer, gaussian_log_prob
from reparam.models.latent import LatentModel
from reparam.models.model import Model

# Each term has shape (B,), in nats per image; `loss` is what the optimizer lowers. A term of the whole batch, such as a
# penalty on batch means, is the same number for each of its images.
Terms = dict[str, Tensor]


def alone(rows: Tensor) -> Tensor:
    """Return rows unchanged, if one process has the whole batch."""
    return rows


@dataclass(frozen=True)
class Setting:
    """The facts that an objective may use beside model and batch."""

    epoch: Tensor  # scalar: epochs done, a fraction within one; infinite where schedules are to be at their end
    black: Tensor  # (C, 1, 1) values of a black and of a white pixel, as the model sees them
    white: Tensor
    # Gathers the rows of all processes; each process has a part of the batch: (b, ...) -> (B, ...).
    gather: Callable[[Tensor], Tensor] = alone


def reconstruction(model: Model, x: Tensor, config: ObjectiveConfig, _setting: Setting) -> Terms:
    """Minimise the expected -log p(x|z) alone. Source: Hinton & Salakhutdinov 2006."""
    draw = model.draw(x, x, config.samples)
    return _terms(model, draw, -draw.log_px.mean(0))


def denoising(model: Model, x: Tensor, config: ObjectiveConfig, setting: Setting) -> Terms:
    """Score the clean image after encoding a corrupted one. Source: Vincent et al. 2008, sec. 2.3; Im et al. 2017."""
    draw = model.draw(corrupt(x, config.denoising.noise, config.denoising.level, setting), x, config.samples)
    return _terms(model, draw, _weighted(model, draw, config, setting))


def sparse(model: Model, x: Tensor, config: ObjectiveConfig, setting: Setting) -> Terms:
    """Charge for codes away from 0 (`l1`), or for units of a sigmoid code whose mean activation is not rho (`kl`).

    Source: Ng 2011, sec. 3.
    """
    draw = model.draw(x, x, config.samples)
    code = draw.layers[0].mean  # (B, D)
    if config.sparse.penalty == "l1":
        penalty = code.abs().sum(-1)
    else:
        rho, found = config.sparse.rho, setting.gather(code).mean(0).clamp(1e-6, 1 - 1e-6)  # (D,)
        distance = rho * (rho / found).log() + (1 - rho) * ((1 - rho) / (1 - found)).log()
        penalty = distance.sum().expand(len(x))
    loss = _weighted(model, draw, config, setting) + config.sparse.weight * penalty
    return _terms(model, draw, loss, penalty=penalty)


def contractive(model: Model, x: Tensor, config: ObjectiveConfig, setting: Setting) -> Terms:
    """Charge for codes that move with the image: the squared Frobenius norm of the encoder's Jacobian.

    Source: Rifai et al. 2011, eq. 1 and 7.
    """
    draw = model.draw(x, x, config.samples)
    penalty = squared_jacobian_norm(model, x)
    loss = _weighted(model, draw, config, setting) + config.contractive.weight * penalty
    return _terms(model, draw, loss, penalty=penalty)


def elbo(model: Model, x: Tensor, config: ObjectiveConfig, setting: Setting) -> Terms:
    """Negate the evidence lower bound, its KL weighted by beta.

    Source: Kingma & Welling 2014, eq. 7; Higgins et al. 2017, eq. 4; Kingma et al. 2016, app. C (free bits).
    """
    draw = model.draw(x, x, config.samples)
    return _terms(model, draw, _weighted(model, draw, config, setting))


def capacity(model: Model, x: Tensor, config: ObjectiveConfig, setting: Setting) -> Terms:
    """Hold the mean KL at a capacity that rises with the epochs. Source: Burgess et al. 2018, eq. 8."""
    draw = model.draw(x, x, config.samples)
    wanted = config.capacity.nats * (setting.epoch / config.capacity.epochs).clamp(0, 1)
    distance = (setting.gather(_kl(draw, config, setting)).mean() - wanted).abs()
    return _terms(model, draw, -draw.log_px.mean(0) + config.capacity.weight * distance, capacity=wanted.expand(len(x)))


def beta_tc(model: Model, x: Tensor, config: ObjectiveConfig, setting: Setting) -> Terms:
    """Weight only the part of the KL that makes latents dependent on each other, their total correlation.

    Source: Chen et al. 2018, eq. 2.
    """
    draw = model.draw(x, x, config.samples)
    [layer] = draw.layers
    log_q, log_q_dimensions = aggregate_posterior(layer, setting.gather)  # (K, B), (K, B, D)
    mutual_information = (draw.log_qz - log_q).mean(0)
    total_correlation = (log_q - log_q_dimensions.sum(-1)).mean(0)
    dimensions = (log_q_dimensions.sum(-1) - draw.log_pz).mean(0)
    loss = -draw.log_px.mean(0) + mutual_information + beta_at(config, setting.epoch) * total_correlation + dimensions
    return _terms(model, draw, loss, mutual_information=mutual_information, total_correlation=total_correlation)


def mmd(model: Model, x: Tensor, config: ObjectiveConfig, setting: Setting) -> Terms:
    """Charge for an aggregate posterior unlike the prior; beta = 0 leaves only this charge (MMD-VAE), beta > 0 is
    InfoVAE.

    Source: Zhao et al. 2019, eq. 6.
    """
    draw = model.draw(x, x, config.samples)
    z = draw.layers[0].z  # (K, B, D): samples of one image are no samples of the aggregate posterior
    pairs = [(setting.gather(codes), setting.gather(model.prior.sample(codes))) for codes in z]
    found = [maximum_mean_discrepancy(codes, samples) for codes, samples in pairs]
    discrepancy = torch.stack(found).mean().expand(len(x))
    loss = _weighted(model, draw, config, setting) + config.mmd.weight * discrepancy
    return _terms(model, draw, loss, mmd=discrepancy)


def importance_weighted(model: Model, x: Tensor, config: ObjectiveConfig, _setting: Setting) -> Terms:
    """Negate the importance-weighted bound with K = `samples`. Source: Burda et al. 2016, eq. 8."""
    draw = model.draw(x, x, config.samples)
    return _terms(model, draw, iwae(draw))


def dreg(model: Model, x: Tensor, config: ObjectiveConfig, _setting: Setting) -> Terms:
    """Negate the same bound; its gradient to the encoder is doubly reparameterised, so its noise falls with K.

    Source: Tucker et al. 2019, eq. 8.
    """
    draw = model.draw(x, x, config.samples, "stopped")
    log_w = draw.log_weights  # (K, B)
    share = log_w.detach().softmax(0)
    z = draw.layers[0].z
    if z.requires_grad:
        # The decoder's gradient has the shares once. The encoder's gradient comes through z, and has them twice.
        z.register_hook(  # type: ignore[no-untyped-call]
            lambda gradient: share[..., None] * gradient
        )
    return _terms(model, draw, _with_gradient_of(iwae(draw), -(share * log_w).sum(0)))


def reinforce(model: Model, x: Tensor, config: ObjectiveConfig, _setting: Setting) -> Terms:
    """Negate the ELBO; its gradient to the encoder comes from the density of the samples, not through them.

    Source: Williams 1992; Kool et al. 2019, eq. 5 (control variate).
    """
    draw = model.draw(x, x, config.samples, "score_function")
    value = draw.log_weights  # (K, B)
    signal = leave_one_out(value.detach())
    surrogate = -(signal * draw.log_qz + draw.log_px + draw.log_pz).mean(0)
    return _terms(model, draw, _with_gradient_of(-value.mean(0), surrogate))


def iwae(draw: Draw) -> Tensor:
    """Negate the importance-weighted bound on log p(x); K = 1 is a negated ELBO sample.

    Shapes: fields of `draw` (K, B) -> (B,). Units: nats per image, lower is better.
    Source: Burda et al. 2016, eq. 8.
    """
    log_w = draw.log_weights  # (K, B)
    # logsumexp, because exp(log_w) is 0 in float32 below about -104 nats.
    return math.log(len(log_w)) - log_w.logsumexp(0)


def leave_one_out(values: Tensor) -> Tensor:
    """Subtract from each the mean over the other samples of its image or, with one sample, over the other images.

    A control variate: it does not depend on the sample itself, so the score-function gradient stays unbiased.
    Shapes: (K, B), unchanged.
    """
    others = 0 if len(values) > 1 else 1
    count = values.shape[others] - 1
    return values - (values.sum(others, keepdim=True) - values) / count if count else values


def corrupt(x: Tensor, noise: str, level: float, setting: Setting) -> Tensor:
    """Add Gaussian noise of standard deviation `level`, or replace a share `level` of the pixels.

    `masking` makes them black, `salt_and_pepper` black or white. Shapes: (B, C, H, W), unchanged. Units: `level` of
    Gaussian noise in the range from black to white. Source: Vincent et al. 2010, sec. 3.3.
    """
    if noise == "gaussian":
        return x + level * (setting.white - setting.black) * torch.randn_like(x)
    # All channels of a pixel share its fate.
    draw = torch.rand(len(x), 1, *x.shape[2:], device=x.device)
    grain = setting.black
    if noise == "salt_and_pepper":
        grain = torch.where(draw < level / 2, setting.black, setting.white)
    return torch.where(draw < level, grain, x)


def squared_jacobian_norm(model: Model, x: Tensor) -> Tensor:
    """Sum the squared derivatives of each code by each pixel. Shapes: (B, C, H, W) -> (B,)."""
    is_training = torch.is_grad_enabled()
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        code = model.posterior(x)[0]  # (B, D)
        # One dimension at a time: an image's code depends on no other image, so the sum over B separates.
        total = torch.zeros(len(x), device=x.device, dtype=x.dtype)
        for dimension in code.sum(0):
            [slope] = torch.autograd.grad(dimension, x, retain_graph=True, create_graph=is_training)
            total = total + slope.square().flatten(1).sum(1)
    return total if is_training else total.detach()


def aggregate_posterior(layer: Layer, gather: Callable[[Tensor], Tensor] = alone) -> tuple[Tensor, Tensor]:
    """Estimate log q(z), and log q(z_d) of each dimension, by the mixture of the whole batch's own posteriors.

    The minibatch-weighted estimate of Chen et al. 2018, app. C.1, is smaller by the logarithm of the number of training
    images. It has the same gradient, but its mutual information exceeds the KL. Here, the mutual information is at most
    log B.
    Shapes: -> (K, b), (K, b, D).
    """
    mean, log_variance = gather(layer.mean), gather(layer.log_variance)  # (B, D)
    pairs = gaussian_log_prob(layer.z[:, :, None], mean, log_variance)  # (K, b, B, D)
    scale = math.log(len(mean))
    return pairs.sum(-1).logsumexp(-1) - scale, pairs.logsumexp(-2) - scale


def maximum_mean_discrepancy(first: Tensor, second: Tensor) -> Tensor:
    """Estimate the squared MMD of two distributions without bias, so that it can be below 0.

    The kernel is the inverse multiquadratic c / (c + |a - b|^2), c = 2D. One sample of each says nothing: 0.
    Shapes: (N, D) twice -> (). Source: Gretton et al. 2012, eq. 4; Tolstikhin et al. 2018, sec. 4, for the kernel.
    """
    c, pairs = 2 * first.shape[1], len(first) * (len(first) - 1)

    def kernel(a: Tensor, b: Tensor) -> Tensor:
        values = c / (c + (a[:, None] - b).square().sum(-1))
        return values.sum() - values.diagonal().sum()  # no sample with itself, nor with its neighbour in the formula

    return (kernel(first, first) + kernel(second, second) - 2 * kernel(first, second)) / max(1, pairs)


def _weighted(model: Model, draw: Draw, config: ObjectiveConfig, setting: Setting) -> Tensor:
    if not model.stochastic_layers:
        return -draw.log_px.mean(0)  # without a posterior there is no KL, and `_kl` would charge the free bits
    return -draw.log_px.mean(0) + beta_at(config, setting.epoch) * _kl(draw, config, setting)


def _kl(draw: Draw, config: ObjectiveConfig, setting: Setting) -> Tensor:
    """Reduce the KL to (B,): closed form or sampled, with or without free bits."""
    is_sampled = config.kl == "monte_carlo"
    if not config.free_bits:
        return (draw.log_qz - draw.log_pz if is_sampled else draw.kl).mean(0)
    each = [layer.sampled_kl if is_sampled else layer.kl for layer in draw.layers]
    dimensions = torch.cat(
        [kl for kl in each if kl is not None], -1
    )  # all of them: `check_objective` refuses other priors
    whole = setting.gather(dimensions.movedim(1, 0)).movedim(0, 1)  # (K, B, D)
    free = whole.mean((0, 1)).clamp_min(config.free_bits)  # (D,)
    return free.sum().expand(draw.kl.shape[1])


def _terms(model: Model, draw: Draw, loss: Tensor, **more: Tensor) -> Terms:
    reconstruction, kl = -draw.log_px.mean(0), draw.kl.mean(0)
    bound = {"elbo": -(reconstruction + kl)} if model.stochastic_layers else {}
    if draw.auxiliary is not None:
        loss, more = loss + draw.auxiliary, {**more, "auxiliary": draw.auxiliary}
    return {"loss": loss, "reconstruction": reconstruction, "kl": kl, **bound, **more}


def _with_gradient_of(value: Tensor, surrogate: Tensor) -> Tensor:
    return value.detach() + surrogate - surrogate.detach()


def _accept(_config: ObjectiveConfig, _model: ModelConfig) -> None:
    """Accept any parameters."""


def _check_denoising(config: ObjectiveConfig, _model: ModelConfig) -> None:
    noise, level = config.denoising.noise, config.denoising.level
    if noise != "gaussian" and level > 1:
        raise ParamsError(
            f"params.yaml: objective.denoising.level: wanted a share of the pixels, at most 1, with noise {noise!r}, "
            f"found {level}"
        )


def _check_sparse(config: ObjectiveConfig, model: ModelConfig) -> None:
    code = (model.kind, model.autoencoder.code)
    if config.sparse.penalty == "kl" and code != ("autoencoder", "sigmoid"):
        raise ParamsError(
            "params.yaml: model.autoencoder.code: wanted 'sigmoid' with model.kind 'autoencoder' for "
            f"objective.sparse.penalty 'kl', which wants activations from 0 to 1, found {code[1]!r} with {code[0]!r}"
        )


@dataclass(frozen=True)
class Objective:
    """A function of model, images and parameters, and the models that it is defined for."""

    terms: Callable[[Model, Tensor, ObjectiveConfig, Setting], Terms]
    layers: tuple[int, float] = (0, math.inf)  # of latents with a posterior: at least, at most
    matches_prior: bool = False  # whether it pulls codes that have no posterior to the prior
    has_any_prior: bool = True  # otherwise only one with independent dimensions
    has_any_code: bool = True  # otherwise only one that changes smoothly with the image: not entries of a codebook
    has_own_gradient: bool = False  # whether the encoder is not trained by the gradient of the loss
    prior_weight: str | None = None  # the parameter that weights the KL; where it is 0, a learned prior is refused
    has_jacobian: bool = False  # whether the loss is made of derivatives of an image's code by its pixels
    check: Callable[[ObjectiveConfig, ModelConfig], None] = _accept  # raises ParamsError for parameters that clash


def beta_at(config: ObjectiveConfig, epoch: Tensor) -> Tensor:
    """Return the weight of the KL after `epoch` epochs, a fraction within one. Shapes: () -> ().

    Source: Bowman et al. 2016, sec. 3.1 (linear); Fu et al. 2019, sec. 4, R = 1/2 (cyclic).
    """
    share = epoch / config.warmup_epochs
    if config.warmup == "none":
        share = torch.ones_like(share)
    elif config.warmup == "cyclic":
        share = torch.where(share.isinf(), 1.0, 2 * share.remainder(1))
    return config.beta * share.clamp(0, 1)


# Each takes the whole section `objective`, because beta and the warm-up are for all, and reads its block there.
OBJECTIVES: dict[str, Objective] = {
    "reconstruction": Objective(reconstruction, layers=(0, 1), has_any_prior=False),  # layers above would never learn
    "denoising": Objective(denoising, prior_weight="beta", check=_check_denoising),
    "sparse": Objective(sparse, layers=(0, 1), has_any_code=False, prior_weight="beta", check=_check_sparse),
    "contractive": Objective(contractive, layers=(0, 1), has_any_code=False, prior_weight="beta", has_jacobian=True),
    "elbo": Objective(elbo, layers=(1, math.inf), prior_weight="beta"),
    "capacity": Objective(capacity, layers=(1, math.inf), prior_weight="capacity.weight"),
    "beta_tc": Objective(beta_tc, layers=(1, 1), has_any_prior=False),
    "mmd": Objective(mmd, layers=(0, 1), matches_prior=True, has_any_code=False, prior_weight="beta"),
    "iwae": Objective(importance_weighted, layers=(1, math.inf)),
    "dreg": Objective(dreg, layers=(1, 1), has_own_gradient=True),
    "reinforce": Objective(reinforce, layers=(1, math.inf), has_own_gradient=True),
}


def has_prior(model: LatentModel, objective: str) -> bool:
    """Return whether decoded draws from the prior are samples of a model that was trained with this objective."""
    return model.stochastic_layers > 0 or OBJECTIVES[objective].matches_prior
