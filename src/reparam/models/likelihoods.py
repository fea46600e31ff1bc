"""Distributions over images, given what the decoder puts out."""

import torch.nn.functional as F
from torch import Tensor

from reparam.models.draw import Likelihood


class Bernoulli:
    """Each pixel is white with probability sigmoid(output).

    A density of black and white pixels only: on grey ones the value is a cross-entropy, not a log-likelihood.
    """

    needs_binary = True

    def log_prob(self, output: Tensor, target: Tensor) -> Tensor:
        # From the logits: log(sigmoid(output)) would be -inf where the sigmoid underflows.
        return (target * output - F.softplus(output)).sum((-3, -2, -1))

    def mean(self, output: Tensor) -> Tensor:
        return output.sigmoid()


def is_density(likelihood: Likelihood, binarization: str) -> bool:
    """Whether the likelihood is one of pixels so treated: a Bernoulli of grey pixels is only a cross-entropy."""
    return binarization != "none" or not likelihood.needs_binary


LIKELIHOODS: dict[str, type[Likelihood]] = {"bernoulli": Bernoulli}
