"""A model with the labels of its images: what objectives, evaluation and export work with."""

from collections.abc import Callable
from dataclasses import replace

from torch import Tensor

from reparam.models.draw import Draw, Encoded, Estimator, Gaussian
from reparam.models.latent import LatentModel


class Model:
    """p(x|y) and q(z|x, y) of images whose labels are known, or p(x) and q(z|x) of a model that has no condition."""

    def __init__(
        self,
        module: LatentModel,
        labels: Tensor | None = None,
        charge: Callable[[Tensor, Tensor], Tensor] | None = None,
    ) -> None:
        """Bind the labels, (B,) int64, and perhaps a charge for mean images, (K, B, C, H, W), which each `draw` adds.

        The charge is also given the target, (B, C, H, W), and returns (K, B).
        """
        self.module, self.labels, self.charge = module, labels, charge
        self.likelihood = module.likelihood
        self.prior = module.prior  # of the latents, as `decode` takes them
        self.stochastic_layers = module.stochastic_layers  # of latents with a posterior; 0: a code, no log-likelihood

    def draw(self, x: Tensor, target: Tensor, samples: int, estimator: Estimator = "pathwise") -> Draw:
        """Encode `x`, sample the posterior, and score `target`: `draw_from` the output of `encode`.

        Shapes: x and target (B, C, H, W); fields (samples, B).
        """
        draw = self.draw_from(self.encode(x), target, samples, estimator)
        if self.charge is None:
            return draw
        assert draw.output is not None
        charge = self.charge(self.likelihood.mean(draw.output), target).mean(0)
        return replace(draw, auxiliary=charge if draw.auxiliary is None else draw.auxiliary + charge)

    def encode(self, x: Tensor) -> Encoded:
        """Run the encoder, once for all samples that are drawn from its output. Shapes: (B, C, H, W)."""
        return self.module.encode(x, self.labels)

    def draw_from(self, encoded: Encoded, target: Tensor, samples: int, estimator: Estimator = "pathwise") -> Draw:
        """Sample the posterior of encoded images, and score `target`. Shapes: (B, C, H, W); fields (samples, B)."""
        return self.module.draw_from(encoded, target, samples, estimator, self.labels)

    def posterior(self, x: Tensor) -> Gaussian:
        """Return mean and log variance of q(z|x). Shapes: (B, C, H, W) -> (B, D), (B, D)."""
        return self.module.posterior(x, self.labels)

    def posterior_of(self, encoded: Encoded) -> Gaussian:
        """Return the same for encoded images."""
        return self.module.posterior_of(encoded)

    def output(self, z: Tensor) -> Tensor:
        """Return the parameters of the likelihood for latents of `prior`. Shapes: (N, D) -> (N, P*C, H, W)."""
        return self.module.output(z, self.labels)

    def decode(self, z: Tensor) -> Tensor:
        """Return the mean image. Shapes: (N, D) -> (N, C, H, W). Units: those of the pixels that `draw` is given."""
        return self.module.decode(z, self.labels)
