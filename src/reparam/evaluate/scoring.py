"""Score a trained model: ELBO, reconstruction, KL, log-likelihood, use of the latents."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import torch
from rich.console import Console
from torch import Tensor

from reparam.config import EvaluateConfig
from reparam.data.batches import Seen, View
from reparam.distributed import ALONE, World
from reparam.evaluate.importance import Chunk, chunks, draws, importance_of
from reparam.models.draw import standard_error
from reparam.models.latent import LatentModel
from reparam.progress import Advance, counting
from reparam.runtime import computing_in, random_stream


@dataclass(frozen=True)
class Scores:
    """Per-image and per-dimension results on one split, in float64 on the CPU. Units: nats."""

    reconstruction: Tensor  # (N,) expected negative log p(x|z)
    kl: Tensor  # (N,)
    nll: Tensor  # (N,) importance-sampled estimate of -log p(x); NaN if there is no likelihood of these pixels
    bounds: Tensor  # (N, L) lower bounds on log p(x) of the first samples, as many as `importance.levels` says
    effective: Tensor  # (N,) effective number of importance samples of the NLL
    # (D,), layer by layer from the image up: mean over images; NaN where a layer has only a KL as a whole
    latent_kl: Tensor
    latent_kl_error: Tensor  # (D,) its standard error over images
    layer_kl: Tensor  # (N, L) KL of each image, layer by layer
    latent_variance: Tensor  # (D,) variance over images of the posterior mean, in the order of `latent_kl`
    means: Tensor  # (N, D) posterior means, as `decode` takes them
    log_variances: Tensor  # (N, D) of the posterior; -inf if images have codes without a distribution
    layer_sizes: tuple[int, ...]  # D of each layer of latents


class _OfImages(NamedTuple):
    """What is known of each image: see `Scores`. `expected` are means of posterior means, `noise` their variances."""

    reconstruction: Tensor
    kl: Tensor
    latent_kl: Tensor  # (N, D)
    expected: Tensor  # (N, D)
    noise: Tensor  # (N, D)
    nll: Tensor
    bounds: Tensor
    effective: Tensor
    means: Tensor
    log_variances: Tensor


@torch.no_grad()
def score(
    model: LatentModel,
    data: View,
    config: EvaluateConfig,
    purpose: str = "score",
    world: World = ALONE,
    *,
    with_nll: bool = True,
) -> Scores:
    """Score every image of a split; of several processes, the first has all scores, and the others have some.

    A hierarchy takes two samples at least: the mean of a layer depends on samples of other layers, and a single sample
    does not separate their noise from the differences between images.
    """
    elbo_samples = max(config.elbo_samples, 2 if model.stochastic_layers > 1 else 1)
    nll_samples = config.nll_samples if with_nll else 0
    parts: list[_OfImages] = []
    numbers, rows = world.deal(len(data), data.batches.batch_size)
    console = Console(stderr=True, quiet=not world.is_first)
    with (
        scoring_in(config.precision, data.device),
        counting("scoring images", len(rows) * (elbo_samples + nll_samples), console) as advance,
    ):
        for chunk in chunks(model, dealt(data, numbers, purpose, config.seed)):
            expectations, sizes = _expectations(chunk, elbo_samples, advance)
            likelihoods = _likelihoods(chunk, nll_samples, advance)
            posterior = chunk.model.posterior_of(chunk.encoded)
            parts.append(_OfImages._make((*expectations, *likelihoods, *posterior)))
    own = [torch.cat(column) for column in zip(*parts, strict=True)]
    return _scores(_OfImages._make(column.double().cpu() for column in world.put_together(rows, own)), sizes)


def _scores(found: _OfImages, sizes: tuple[int, ...]) -> Scores:
    """Average the numbers of dimensions over images. `sizes` are D of each layer of latents."""
    # The population variance, as an activity statistic of this very split, and 0 for a single image.
    variance = (found.expected.var(0, correction=0) - found.noise.mean(0)).clamp_min(0)
    layer_kl = torch.stack([part.sum(1) for part in torch.split(found.latent_kl, list(sizes), dim=1)], 1)
    return Scores(
        reconstruction=found.reconstruction,
        kl=found.kl,
        nll=found.nll,
        bounds=found.bounds,
        effective=found.effective,
        latent_kl=found.latent_kl.mean(0),
        latent_kl_error=standard_error(found.latent_kl),
        layer_kl=torch.where(layer_kl.isnan(), found.kl[:, None], layer_kl),  # such a layer is the only one
        latent_variance=variance,
        means=found.means,
        log_variances=found.log_variances,
        layer_sizes=sizes,
    )


def dealt(data: View, numbers: Sequence[int], purpose: str, seed: int) -> Iterator[Seen]:
    """Yield the batches with these numbers, each with a random stream that depends on its number alone."""
    wanted = set(numbers)
    for number, batch in enumerate(data.seen(seed)):  # all of them, because pixels are drawn in order
        if number in wanted:
            with random_stream(seed, f"{purpose} {number}"):
                yield batch


@contextmanager
def scoring_in(precision: str, device: torch.device) -> Iterator[None]:
    """Compute likelihoods in a precision, and leave full precision to what comes after."""
    with computing_in(precision), torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
        yield


def _expectations(chunk: Chunk, samples: int, advance: Advance) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
    """Average over posterior samples: -log p(x|z), the KL, and for each dimension its KL and its mean.

    Also return the variance of that average mean, which is noise, and the sizes of layers. In a hierarchy, the mean of
    a layer depends on samples of other layers, so the noise would count as variance over images. With a single sample
    the noise is unknown, and taken as 0.
    """
    sums: tuple[Tensor, ...] = ()
    for draw in draws(chunk, samples):
        # Given the samples of the layers that it depends on, the mean of a layer is known without noise.
        means = torch.cat([layer.mean.expand_as(layer.z) for layer in draw.layers], -1).double()
        each = [torch.full_like(layer.z, torch.nan) if layer.kl is None else layer.kl for layer in draw.layers]
        found = (-draw.log_px, draw.kl, torch.cat(each, -1), means, means.square())
        part = tuple(values.double().sum(0) for values in found)
        sums = tuple(a + b for a, b in zip(sums, part, strict=True)) if sums else part
        advance(draw.log_px.numel())
    sizes = tuple(layer.z.shape[-1] for layer in draw.layers)
    *averages, squares = (values / samples for values in sums)
    noise = (squares - averages[-1].square()).clamp_min(0) / max(1, samples - 1)
    return (*averages, noise), sizes


def _likelihoods(chunk: Chunk, samples: int, advance: Advance) -> tuple[Tensor, Tensor, Tensor]:
    """Estimate -log p(x), lower bounds and effective samples, or NaN without samples. Shapes: -> (B,), (B, L), (B,)."""
    if not samples:
        nothing = torch.full((len(chunk.x),), torch.nan)
        return nothing, nothing[:, None], nothing
    found = importance_of(chunk, samples, advance)
    return found.nll, found.bounds.T, found.effective
