"""Score a trained model: ELBO, reconstruction, KL, log-likelihood, use of the latents."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from reparam.config import EvaluateConfig
from reparam.data.batches import Batches
from reparam.models.draw import Model, kl_to_standard_normal
from reparam.objectives import log_weights

# Importance samples drawn at once, times images: bounds memory, and at this size the CPU is already busy.
ROWS_AT_ONCE = 16_384


@dataclass(frozen=True)
class Scores:
    """Per-image and per-dimension results on one split, in float64 on the CPU. Units: nats."""

    reconstruction: Tensor  # (N,) expected negative log p(x|z)
    kl: Tensor  # (N,)
    nll: Tensor  # (N,) importance-sampled estimate of -log p(x)
    latent_kl: Tensor  # (D,) mean over images
    latent_variance: Tensor  # (D,) variance over images of the posterior mean
    means: Tensor  # (N, D) posterior means


@torch.no_grad()
def score(model: Model, data: Batches, config: EvaluateConfig) -> Scores:
    """Score every image of a split, drawing from torch's generator."""
    parts = [_score_batch(model, x, config) for x in data.ordered(config.seed)]
    reconstruction, kl, nll, latent_kl, means = (torch.cat(part).double().cpu() for part in zip(*parts, strict=True))
    # The population variance, as an activity statistic of this very split, and 0 for a single image.
    return Scores(reconstruction, kl, nll, latent_kl.mean(0), means.var(0, correction=0), means)


def _score_batch(model: Model, x: Tensor, config: EvaluateConfig) -> tuple[Tensor, ...]:
    mean, log_variance = model.posterior(x)  # (B, D)
    draw = model.draw(x, x, config.elbo_samples)
    nll = negative_log_likelihood(model, x, config.nll_samples)
    return (-draw.log_px.mean(0), draw.kl.mean(0), nll, kl_to_standard_normal(mean, log_variance), mean)


def negative_log_likelihood(model: Model, x: Tensor, samples: int) -> Tensor:
    """Estimate -log p(x) by importance sampling from the posterior; an upper bound in expectation, exact as K grows.

    Shapes: (B, C, H, W) -> (B,). Units: nats per image. Source: Burda et al. 2016, eq. 8.
    """
    total = torch.full((len(x),), -math.inf, dtype=torch.float64, device=x.device)
    chunk = max(1, ROWS_AT_ONCE // len(x))
    for start in range(0, samples, chunk):
        log_w = log_weights(model.draw(x, x, min(chunk, samples - start))).double()  # (k, B)
        total = torch.logaddexp(total, log_w.logsumexp(0))
    return math.log(samples) - total


def headline(scores: Scores, active_variance: float, is_density: bool) -> dict[str, float]:
    """Reduce scores to means over images with their standard errors (`_se`). Units: nats per image.

    Where the likelihood is no density of the data (`is_density` false: grey pixels under a Bernoulli), the
    reconstruction is reported as `bce`, and there is neither an ELBO nor a log-likelihood to report.
    """
    if is_density:
        per_image = {
            "elbo": -(scores.reconstruction + scores.kl),
            "reconstruction": scores.reconstruction,
            "kl": scores.kl,
            "nll": scores.nll,
        }
    else:
        per_image = {"bce": scores.reconstruction, "kl": scores.kl}
    metrics = {}
    for name, values in per_image.items():
        metrics[name] = round(values.mean().item(), 4)
        metrics[f"{name}_se"] = round(_standard_error(values), 4)
    metrics["active_units"] = int((scores.latent_variance > active_variance).sum())
    metrics["images"] = len(scores.kl)
    return metrics


def _standard_error(values: Tensor) -> float:
    return values.std().item() / math.sqrt(len(values)) if len(values) > 1 else 0.0
