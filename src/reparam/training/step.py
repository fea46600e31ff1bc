"""One optimizer step."""

import torch
from torch import Tensor, nn

from reparam.config import ObjectiveConfig
from reparam.models.vae import VAE
from reparam.objectives import OBJECTIVES, Terms


class LossModule(nn.Module):
    """Model and objective as one module, so that whatever wraps modules wraps both."""

    def __init__(self, model: VAE, config: ObjectiveConfig) -> None:
        super().__init__()
        self.model = model
        self.config = config
        self.objective = OBJECTIVES[config.name]

    def forward(self, x: Tensor) -> Terms:
        """Return the loss terms, each (B,)."""
        return self.objective(self.model, x, self.config)


class Step:
    """Lower the loss on a batch; the returned terms stay on the device."""

    def __init__(self, module: LossModule, learning_rate: float) -> None:
        self.module = module
        self.optimizer = torch.optim.Adam(module.parameters(), lr=learning_rate, fused=True)

    def __call__(self, x: Tensor) -> Terms:
        self.optimizer.zero_grad()
        terms = self.module(x)
        terms["loss"].mean().backward()
        self.optimizer.step()
        return {name: values.detach() for name, values in terms.items()}
