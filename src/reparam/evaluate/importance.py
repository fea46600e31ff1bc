"""Importance sampling of log p(x): the NLL, the bounds on the way to it, and how many samples really counted."""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from reparam.data.batches import Seen
from reparam.models.draw import Draw, Encoded, standard_error
from reparam.models.latent import LatentModel
from reparam.models.model import Model
from reparam.progress import Advance, ignore

# Bytes that one number of the decoder's output takes while it is scored, with the likelihood's intermediate values.
BYTES_PER_NUMBER = 4 * 6
# The approximate memory of scoring, for any number of samples. It fits the caches of a CPU; a GPU needs more work at
# once.
MEMORY = {"cpu": 12 << 20, "cuda": 512 << 20}  # bytes


@dataclass(frozen=True)
class Importance:
    """Estimates from K samples of each image, in float64. Units: nats."""

    nll: Tensor  # (B,) estimate of -log p(x)
    bounds: Tensor  # (L, B) lower bounds on log p(x) of the first k samples, k as `levels` says
    effective: Tensor  # (B,) effective number of samples, at most K: 1 / sum of the squared normalised weights


def levels(samples: int) -> list[int]:
    """Return where bounds are read off: 1, 2, 5, 10, 20, 50, ... and all samples."""
    steps = (factor * 10**power for power in range(len(str(samples))) for factor in (1, 2, 5))
    return [*(step for step in steps if step < samples), samples]


@torch.no_grad()
def importance(model: LatentModel, batches: Iterable[Seen], samples: int, advance: Advance = ignore) -> Importance:
    """Estimate -log p(x) with samples of the posterior; an upper bound in expectation, exact as K grows.

    Sums are streamed: memory stays near MEMORY for any K, unless one sample of one image needs more. `advance` gets
    the number of samples that were drawn since it was last called. With labels, p(x) is p(x|y).
    Source: Burda et al. 2016, eq. 8; Kong 1992 for the effective sample size.
    """
    parts = [importance_of(chunk, samples, advance) for chunk in chunks(model, batches)]
    return Importance(
        torch.cat([part.nll for part in parts]),
        torch.cat([part.bounds for part in parts], 1),
        torch.cat([part.effective for part in parts]),
    )


@dataclass(frozen=True)
class Chunk:
    """Images that are scored together, encoded once, and the number of samples that are drawn at once."""

    x: Tensor  # (B, C, H, W)
    encoded: Encoded
    at_once: int
    model: Model  # with their labels bound, if it is conditional


def chunks(model: LatentModel, batches: Iterable[Seen]) -> Iterator[Chunk]:
    """Cut batches into images of which one sample each fits into MEMORY, or single ones.

    The first batch shows how much memory a sample takes: all images have the same shape.
    """
    at_once = 0
    for x, labels in batches:
        at_once = at_once or max(1, MEMORY[x.device.type] // bytes_per_draw(model, x, labels))
        for start in range(0, len(x), at_once):
            part = slice(start, start + at_once)
            its = Model(model, None if labels is None else labels[part])
            yield Chunk(x[part], its.encode(x[part]), at_once, its)


@torch.no_grad()
def importance_of(chunk: Chunk, samples: int, advance: Advance) -> Importance:
    """Estimate -log p(x) of images that are encoded already, as `importance` does."""
    total = torch.full((len(chunk.x),), -math.inf, dtype=torch.float64, device=chunk.x.device)
    squares, bounds, seen = total.clone(), [], 0
    for level in levels(samples):
        for draw in draws(chunk, level - seen):
            log_w = draw.log_weights.double()  # (k, B)
            total = torch.logaddexp(total, log_w.logsumexp(0))
            squares = torch.logaddexp(squares, (2 * log_w).logsumexp(0))
            advance(log_w.numel())
        bounds.append(total - math.log(level))
        seen = level
    return Importance(math.log(samples) - total, torch.stack(bounds), (2 * total - squares).exp())


def draws(chunk: Chunk, samples: int) -> Iterator[Draw]:
    """Draw samples of each image, as many together as fit into MEMORY, or one of each."""
    each = max(1, chunk.at_once // len(chunk.x))
    for start in range(0, samples, each):
        yield chunk.model.draw_from(chunk.encoded, chunk.x, min(each, samples - start))


def bytes_per_draw(model: LatentModel, x: Tensor, labels: Tensor | None = None) -> int:
    """Estimate the memory of one sample of one image: that of the widest layer, or of the likelihood if it is more.

    Shapes: x (B, C, H, W), labels (B,), of which the first row is used.
    """
    widest = 0

    def note(_module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal widest
        widest = max(widest, 4 * (output.numel() + sum(value.numel() for value in inputs)))

    leaves = [module for module in model.modules() if not list(module.children())]
    hooks = [leaf.register_forward_hook(note) for leaf in leaves]
    with torch.random.fork_rng(range(torch.cuda.device_count())), torch.no_grad():
        model.draw(x[:1], x[:1], 1, labels=None if labels is None else labels[:1])
    for hook in hooks:
        hook.remove()
    return max(widest, BYTES_PER_NUMBER * x[0].numel() * model.likelihood.outputs)


def read_curve(bounds: Tensor, samples: int) -> tuple[Sequence[int], list[float], list[float]]:
    """Average bounds over images: the levels, the means and their standard errors. Shapes: (N, L)."""
    return levels(samples), bounds.mean(0).tolist(), standard_error(bounds).tolist()
