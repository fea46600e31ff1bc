"""Scores of images: the larger, the stranger a model finds the image."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Doubles = npt.NDArray[np.float64]  # (B,)


@dataclass(frozen=True)
class Scores:
    """The two parts of the negative ELBO of each image.

    Shapes: (B,). Units: nats.
    """

    negative_log_likelihood: Doubles
    kl: Doubles

    @property
    def negative_elbo(self) -> Doubles:
        """Return their sum: the larger, the less an image is like those of training."""
        return self.negative_log_likelihood + self.kl
