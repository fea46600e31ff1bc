"""Score a trained model: ELBO, reconstruction, KL, log-likelihood, use of the latents."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from reparam.config import EvaluateConfig
from reparam.data.batches import Batches
from reparam.models.draw import Model
from reparam.objectives import log_weights
from reparam.runtime import NUMBERS_AT_ONCE


@dataclass(frozen=True)
class Scores:
    """Per-image and per-dimension results on one split, in float64 on the CPU. Units: nats."""

    reconstruction: Tensor  # (N,) expected negative log p(x|z)
    kl: Tensor  # (N,)
    nll: Tensor  # (N,) importance-sampled estimate of -log p(x); NaN where a code has no density
    latent_kl: Tensor  # (D,) mean over images; layer by layer, that next to the image first
    latent_variance: Tensor  # (D,) variance over images of the posterior mean, as `latent_kl`
    means: Tensor  # (N, D) posterior means, as `decode` takes them
    layer_sizes: tuple[int, ...]  # D of each layer of latents


@dataclass(frozen=True)
class Reports:
    """Which numbers mean something."""

    density: bool  # the likelihood is one of these pixels; else (grey ones under a Bernoulli) it is a `bce`
    posterior: bool  # there is one, and a prior, so that there are ELBO, KL and log-likelihood
    bits: bool  # the likelihood is one of 256 grey values


@torch.no_grad()
def score(model: Model, data: Batches, config: EvaluateConfig) -> Scores:
    """Score every image of a split, drawing from torch's generator."""
    parts: list[tuple[Tensor, ...]] = []
    for x in data.ordered(config.seed):
        expectations, sizes = _expectations(model, x, config.elbo_samples)
        parts.append((*expectations, _nll(model, x, config), model.posterior(x)[0]))
    columns = (torch.cat(part).double().cpu() for part in zip(*parts, strict=True))
    reconstruction, kl, latent_kl, expected, noise, nll, means = columns
    # The population variance, as an activity statistic of this very split, and 0 for a single image.
    variance = (expected.var(0, correction=0) - noise.mean(0)).clamp_min(0)
    return Scores(reconstruction, kl, nll, latent_kl.mean(0), variance, means, sizes)


def _expectations(model: Model, x: Tensor, samples: int) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
    """Average over posterior samples: -log p(x|z), KL, KL and mean of each dimension, variance of the latter average.

    The mean of a layer depends on the samples of others, in a hierarchy: the noise of its average would count as
    variance over images. (With one sample it is not known, and taken for 0.) Return the sizes of layers, too.
    """
    sums: tuple[Tensor, ...] = ()
    for count in _chunks(model, x, samples):
        draw = model.draw(x, x, count)
        # Given the samples of the layers that it depends on, the mean of a layer is known without noise.
        means = torch.cat([layer.mean.expand_as(layer.z) for layer in draw.layers], -1).double()
        found = (-draw.log_px, draw.kl, torch.cat([layer.kl for layer in draw.layers], -1), means, means.square())
        part = tuple(values.double().sum(0) for values in found)
        sums = tuple(a + b for a, b in zip(sums, part, strict=True)) if sums else part
    sizes = tuple(layer.z.shape[-1] for layer in draw.layers)
    *averages, squares = (values / samples for values in sums)
    noise = (squares - averages[-1].square()).clamp_min(0) / max(1, samples - 1)
    return (*averages, noise), sizes


def _nll(model: Model, x: Tensor, config: EvaluateConfig) -> Tensor:
    if not model.stochastic_layers:
        return torch.full((len(x),), torch.nan)
    return negative_log_likelihood(model, x, config.nll_samples)


def _chunks(model: Model, x: Tensor, samples: int) -> Iterator[int]:
    """Cut samples so that the decoder puts out no more than NUMBERS_AT_ONCE, or one sample of each image."""
    chunk = max(1, NUMBERS_AT_ONCE // (x.numel() * model.likelihood.outputs))
    for start in range(0, samples, chunk):
        yield min(chunk, samples - start)


def negative_log_likelihood(model: Model, x: Tensor, samples: int) -> Tensor:
    """Estimate -log p(x) by importance sampling from the posterior; an upper bound in expectation, exact as K grows.

    Shapes: (B, C, H, W) -> (B,). Units: nats per image. Source: Burda et al. 2016, eq. 8.
    """
    total = torch.full((len(x),), -math.inf, dtype=torch.float64, device=x.device)
    for count in _chunks(model, x, samples):
        log_w = log_weights(model.draw(x, x, count)).double()  # (k, B)
        total = torch.logaddexp(total, log_w.logsumexp(0))
    return math.log(samples) - total


def headline(scores: Scores, active_variance: float, reports: Reports, pixels: int) -> dict[str, float]:
    """Reduce scores to means over images with their standard errors (`_se`). Units: nats per image.

    `pixels` counts channels too: `bits_per_dim` is the NLL in bits, per pixel and channel.
    """
    per_image = {"reconstruction" if reports.density else "bce": scores.reconstruction}
    if reports.density and reports.posterior:
        per_image = {"elbo": -(scores.reconstruction + scores.kl), **per_image, "kl": scores.kl, "nll": scores.nll}
    elif reports.posterior:
        per_image["kl"] = scores.kl
    if "nll" in per_image and reports.bits:
        per_image["bits_per_dim"] = scores.nll / (math.log(2) * pixels)
    metrics = {}
    for name, values in per_image.items():
        metrics[name] = round(values.mean().item(), 4)
        metrics[f"{name}_se"] = round(_standard_error(values), 4)
    if len(scores.layer_sizes) > 1:
        for number, part in enumerate(torch.split(scores.latent_kl, list(scores.layer_sizes)), start=1):
            metrics[f"kl_layer_{number}"] = round(part.sum().item(), 4)
    metrics["active_units"] = int((scores.latent_variance > active_variance).sum())
    metrics["images"] = len(scores.kl)
    return metrics


def _standard_error(values: Tensor) -> float:
    return values.std().item() / math.sqrt(len(values)) if len(values) > 1 else 0.0
