"""Model, objective and pixels as one module: 8-bit images in, loss terms out."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from reparam.config import ObjectiveConfig
from reparam.data.pixels import Pixels
from reparam.models.latent import LatentModel
from reparam.models.likelihoods import is_density
from reparam.models.model import Model
from reparam.objectives import OBJECTIVES, Setting, Terms, alone, has_prior
from reparam.train.perceptual import Perceptual


class Loss(nn.Module):
    """The loss as one module, so that DDP and torch.compile wrap all of it."""

    epoch: Tensor  # (): epochs trained so far, a fraction within one; on the device, where schedules read it
    black: Tensor  # (C, 1, 1): what the model sees of a black pixel
    white: Tensor

    def __init__(
        self, model: LatentModel, pixels: Pixels, config: ObjectiveConfig, perceptual: Perceptual | None = None
    ) -> None:
        super().__init__()
        self.model = model
        self.perceptual = perceptual
        self.pixels = pixels
        self.config = config
        self.is_density = is_density(model.likelihood, pixels.binarization)
        self.has_elbo = model.has_elbo(is_density=self.is_density)  # otherwise the terms have none
        self.has_prior = has_prior(model, config.name)
        self.objective = OBJECTIVES[config.name].terms
        self.register_buffer("epoch", torch.zeros((), device=pixels.shift.device), persistent=False)
        for name, value in (("black", 0.0), ("white", 1.0)):
            self.register_buffer(name, pixels.scaled(torch.full_like(pixels.shift, value)), persistent=False)

    def begin(self, epoch: float) -> None:
        """Set the number of trained epochs, on which schedules depend."""
        self.epoch.fill_(epoch)

    def forward(
        self, images: Tensor, labels: Tensor | None = None, gather: Callable[[Tensor], Tensor] = alone
    ) -> Terms:
        """Return the loss terms of a training batch, each (B,); `gather` is that of `Setting`.

        Shapes: (B, C, H, W) uint8, (B,) int64 where the model is conditional.
        """
        return self._terms(images, labels, self.epoch, gather)

    def validate(self, images: Tensor, labels: Tensor | None = None) -> Terms:
        """Return the loss terms of a held-out batch, with every schedule at its end, so that epochs can be compared."""
        self.eval()
        try:
            return self._terms(images, labels, torch.full_like(self.epoch, torch.inf))
        finally:
            self.train()

    def _terms(
        self, images: Tensor, labels: Tensor | None, epoch: Tensor, gather: Callable[[Tensor], Tensor] = alone
    ) -> Terms:
        model, setting = Model(self.model, labels, self.perceptual), Setting(epoch, self.black, self.white, gather)
        terms = self.objective(model, self.pixels(images), self.config, setting)
        return {name: values for name, values in terms.items() if name != "elbo" or self.has_elbo}
