"""A conditional model with its labels bound, for callers that pass no labels."""

from torch import Tensor

from reparam.models.build import AnyModel
from reparam.models.draw import Draw, Encoded, Estimator, Model


class Given:
    """p(x|y) and q(z|x, y) as functions of images or latents alone. Each row has its own label."""

    def __init__(self, model: AnyModel, labels: Tensor) -> None:
        """Shapes: labels (B,) int64."""
        self.model = model
        self.labels = labels
        self.likelihood, self.prior = model.likelihood, model.prior
        self.latent_size, self.latent_shape = model.latent_size, model.latent_shape
        self.stochastic_layers = model.stochastic_layers

    def draw(self, x: Tensor, target: Tensor, samples: int, estimator: Estimator = "pathwise") -> Draw:
        return self.model.draw(x, target, samples, estimator, self.labels)

    def encode(self, x: Tensor) -> Encoded:
        return self.model.encode(x, self.labels)

    def draw_from(self, encoded: Encoded, target: Tensor, samples: int, estimator: Estimator = "pathwise") -> Draw:
        return self.model.draw_from(encoded, target, samples, estimator, self.labels)

    def posterior(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.model.posterior(x, self.labels)

    def posterior_of(self, encoded: Encoded) -> tuple[Tensor, Tensor]:
        return self.model.posterior_of(encoded)

    def sample_posterior(self, x: Tensor) -> Tensor:
        return self.model.sample_posterior(x, self.labels)

    def output(self, z: Tensor) -> Tensor:
        return self.model.output(z, self.labels)

    def decode(self, z: Tensor) -> Tensor:
        return self.model.decode(z, self.labels)


def given(model: AnyModel, labels: Tensor | None) -> Model:
    """Bind labels to a model; without labels, return the model unchanged. Shapes: (B,) int64."""
    return model if labels is None else Given(model, labels)
