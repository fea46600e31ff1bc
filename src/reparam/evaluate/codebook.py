"""Measure how a codebook is used, and how many bits an image takes as codes."""

import math

import torch
from torch import Tensor

RARELY = 0.1  # share of the codes: a model that uses fewer wastes three bits or more of each code


def codebook_use(codes: Tensor, size: int) -> dict[str, float]:
    """Return metrics of a codebook, of all positions together.

    The perplexity is the number of codes, equally frequent, that have the same entropy. With few images, both are too
    low, because rare codes are missing.
    Shapes: codes (N, P), each below `size`. Source: van den Oord et al. 2017, sec. 4.1 (bits).
    """
    counts, positions = torch.bincount(codes.flatten(), minlength=size).double(), codes.shape[1]
    entropy = torch.special.entr(counts / counts.sum()).sum().item()  # nats per code
    return {
        "codebook_usage": (counts > 0).double().mean().item(),
        "codebook_perplexity": math.exp(entropy),
        "code_bits": positions * math.log2(size),
        "code_entropy_bits": positions * entropy / math.log(2),
    }


def codebook_collapse(codes: Tensor, size: int) -> list[str]:
    """Warn if few codes are in use although there are enough images for all. Shapes: codes (N, P)."""
    used = int((torch.bincount(codes.flatten()) > 0).sum())
    if used >= RARELY * size or codes.numel() < size:
        return []
    return [
        f"codebook collapse: the images have {used:,} of {size:,} codes; try a higher model.vq.restart, fewer codes "
        "(model.vq.codes, model.fsq.levels), or model.kind fsq"
    ]
