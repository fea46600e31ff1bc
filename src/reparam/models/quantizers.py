"""Codebooks, fixed and learned, on those of vector-quantize-pytorch."""

import math
from contextlib import AbstractContextManager, nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from vector_quantize_pytorch import FSQ
from vector_quantize_pytorch.vector_quantize_pytorch import Codebook

from reparam.config.model import FsqConfig, VqConfig


class FiniteScalars(nn.Module):
    """Numbers that are bounded and rounded to a few values; each combination of values is a code.

    Source: Mentzer et al. 2024, sec. 3.
    """

    commitment, is_learned = 0.0, False
    top: Tensor  # (d,) steps between the values of each number
    middle: Tensor  # (d,) steps from the lowest value to 0
    basis: Tensor  # (d,) how much a step adds to the number of a code

    def __init__(self, config: FsqConfig) -> None:
        super().__init__()
        levels = config.levels
        self.size, self.dimensions = math.prod(levels), len(levels)
        self.inner = FSQ(list(levels), return_indices=False)
        numbers = {
            "top": [level - 1 for level in levels],
            "middle": [level // 2 for level in levels],
            "basis": [math.prod(levels[:position]) for position in range(len(levels))],
        }
        for name, values in numbers.items():
            self.register_buffer(name, torch.tensor(values, dtype=torch.float32), persistent=False)

    def forward(self, z: Tensor) -> Tensor:
        """Bound and round; the gradient is that of the bound."""
        vectors: Tensor = self.inner.quantize(z)
        return vectors

    def quantized(self, z: Tensor) -> Tensor:
        """Bound and round, exactly: what passes gradients is off by a last digit."""
        steps: Tensor = (self(z) * self.middle).round()
        return steps / self.middle

    def codes(self, vectors: Tensor) -> Tensor:
        """Number vectors, the values of the first number one after the other."""
        steps = (vectors * self.middle + self.middle).round().clamp_min(0).minimum(self.top)
        return (steps * self.basis).sum(-1).long()

    def vectors(self) -> Tensor:
        """Return all combinations."""
        vectors: Tensor = self.inner.indices_to_codes(torch.arange(self.size, device=self.top.device))
        return vectors


class LearnedCodes(nn.Module):
    """Vectors that are running averages of the encoder's vectors nearest to them.

    Source: van den Oord et al. 2017, app. A.1.
    """

    is_learned = True

    def __init__(self, config: VqConfig) -> None:
        super().__init__()
        self.size, self.dimensions, self.commitment = config.codes, config.dimensions, config.commitment
        self.averages = Averages(config)

    def forward(self, z: Tensor) -> Tensor:
        """Quantise; in training, let the codebook follow the vectors."""
        if not self.training:
            return self.quantized(z)
        with _in_full(z):
            found: Tensor = self.averages(z.detach())[0]
        return z + (found - z).detach()

    def quantized(self, z: Tensor) -> Tensor:
        """Take the nearest vectors."""
        return F.embedding(self.codes(z), self.vectors())

    def codes(self, vectors: Tensor) -> Tensor:
        """Find the nearest: those with the largest product, less half of their own square."""
        table = self.vectors()
        with _in_full(vectors):
            nearness: Tensor = vectors.to(table.dtype) @ table.T - table.square().sum(1) / 2
        return nearness.argmax(-1)

    def vectors(self) -> Tensor:
        """Return the codebook."""
        vectors: Tensor = self.averages.embed[0]
        return vectors


class Averages(Codebook):  # type: ignore[misc]
    """A codebook with its running averages, which never waits for the device.

    The library's own codebook waits at each step, to ask whether it was initialised and whether codes are dead.
    """

    cluster_size: Tensor  # (1, C) running average of how many vectors of a batch have a code
    embed_avg: Tensor  # (1, C, d) that of the sum of these vectors
    embed: Tensor  # (1, C, d) their ratio

    def __init__(self, config: VqConfig) -> None:
        super().__init__(config.dimensions, config.codes, decay=config.decay, threshold_ema_dead_code=0)
        self.restart = config.restart
        del self.initted
        if self.restart:  # then codes that the first batch does not use start at its vectors, too
            self.cluster_size.zero_()
            self.embed_avg.zero_()

    def init_embed_(self, data: Tensor, mask: Tensor | None = None) -> None:
        """Do nothing: the constructor did."""

    def expire_codes_(self, batch_samples: Tensor, seq_mask: Tensor | None = None) -> None:  # noqa: ARG002
        """Let codes that are used too little start again, at vectors drawn from the batch. Shapes: (1, N, d).

        Source: Dhariwal et al. 2020, sec. 3.1.
        """
        if not self.restart:
            return
        least = self.restart * self.cluster_size.mean()
        is_dead = self.cluster_size < least
        rows = torch.randint(batch_samples.shape[1], (self.codebook_size,), device=batch_samples.device)
        drawn = batch_samples[:, rows]
        for kept, fresh in ((self.embed, drawn), (self.embed_avg, least * drawn)):
            kept.copy_(torch.where(is_dead[..., None], fresh, kept))
        self.cluster_size.clamp_min_(least)


def _in_full(z: Tensor) -> AbstractContextManager[None]:
    """Compute distances in float32, also where training or scoring takes bfloat16.

    ONNX and the device without memory know no such precisions.
    """
    has_others = not (torch.compiler.is_exporting() or z.is_meta)
    return torch.autocast(z.device.type, enabled=False) if has_others else nullcontext()
