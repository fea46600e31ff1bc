"""Measure how near reconstructions are to images, both in [0, 1]."""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from reparam.evaluate.subject import AT_ONCE, Subject

BEST = 100.0  # dB: an image that is reproduced in every bit would count as infinity, and so would the mean
WINDOW, SIGMA = 11, 1.5  # pixels; Wang et al. 2004, sec. III-B and C, for both and for the two constants
CONSTANTS = (0.01**2, 0.03**2)


@torch.no_grad()
def fidelity(subject: Subject) -> dict[str, Tensor]:
    """Compare images with the images that their posterior means are decoded to; SSIM needs images of WINDOW pixels.

    Shapes: (N,) each.
    """
    images, labels = subject.data.scored.images, subject.data.scored.labels
    measures = {"psnr": signal_to_noise, "ssim": structural_similarity}
    if min(images.shape[2:]) < WINDOW:
        del measures["ssim"]
    found: dict[str, list[Tensor]] = {name: [] for name in measures}
    for rows in torch.split(torch.arange(len(images)), AT_ONCE):
        original = torch.from_numpy(images[rows.numpy()].astype(np.float32) / 255)
        decoded = torch.from_numpy(subject.decode(subject.means[rows], labels[rows.numpy()]))
        for name, measure in measures.items():
            found[name].append(measure(decoded, original).double())
    return {name: torch.cat(values) for name, values in found.items()}


def signal_to_noise(first: Tensor, second: Tensor) -> Tensor:
    """Return the peak signal-to-noise ratio, at most BEST. Shapes: (N, C, H, W) twice -> (N,). Units: dB."""
    error = (first - second).square().mean((1, 2, 3))
    return (-10 * error.log10()).clamp_max(BEST)


def structural_similarity(first: Tensor, second: Tensor) -> Tensor:
    """Return the mean structural similarity over all windows within the image, channel by channel; 1: equal.

    Shapes: (N, C, H, W) twice, H and W at least WINDOW -> (N,). Source: Wang et al. 2004, eq. 13 to 16.
    """
    # Not by torchmetrics, whose import takes 3 s of CPU time; a test compares.
    moments = (first, second, first * first, second * second, first * second)
    mean, other, square, other_square, product = (_blur(values) for values in moments)
    luminance, contrast = CONSTANTS
    similarity = (2 * mean * other + luminance) / (mean.square() + other.square() + luminance)
    variances = (square - mean.square()) + (other_square - other.square())
    similarity = similarity * (2 * (product - mean * other) + contrast) / (variances + contrast)
    return similarity.mean((1, 2, 3))


def _blur(images: Tensor) -> Tensor:
    """Average each window with Gaussian weights. Shapes: (N, C, H, W) -> (N, C, H - WINDOW + 1, W - WINDOW + 1)."""
    places = torch.arange(WINDOW, dtype=images.dtype, device=images.device) - WINDOW // 2
    weights = (-0.5 * (places / SIGMA).square()).softmax(0)
    planes = images.flatten(0, 1)[:, None]
    planes = F.conv2d(F.conv2d(planes, weights[None, None, None]), weights[None, None, :, None])
    return planes.view(*images.shape[:2], *planes.shape[2:])
