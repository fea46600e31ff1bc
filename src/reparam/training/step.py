"""One optimizer step."""

import torch
from torch import Tensor, nn

from reparam.config import ModelConfig, ObjectiveConfig, TrainConfig
from reparam.data.scaling import Scaling
from reparam.errors import ParamsError
from reparam.models.build import AnyModel
from reparam.objectives import OBJECTIVES, Setting, Terms
from reparam.training.optimizers import OPTIMIZERS, rate_at


class LossModule(nn.Module):
    """Model and objective as one module, so that whatever wraps modules wraps both."""

    seen: Tensor  # images, in all epochs so far
    black: Tensor
    white: Tensor

    def __init__(self, model: AnyModel, config: ObjectiveConfig, scaling: Scaling, images: int) -> None:
        super().__init__()
        self.model = model
        self.config = config
        self.objective = OBJECTIVES[config.name].terms
        self.images = images
        # On the device, because reading it from the host would be one more wait per step.
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64), persistent=False)
        for name, value in (("black", 0.0), ("white", 1.0)):
            pixel = torch.full((1, 1), value, device=scaling.shift.device)
            self.register_buffer(name, scaling(pixel), persistent=False)

    def forward(self, x: Tensor) -> Terms:
        """Return the loss terms of a training batch, each (B,)."""
        return self.objective(self.model, x, self.config, self._setting(self.seen / self.images))

    def score(self, x: Tensor) -> Terms:
        """Return the loss terms of a held-out batch, with every schedule at its end, so that epochs can be compared."""
        self.eval()
        try:
            end = torch.full((), torch.inf, device=self.seen.device)
            return self.objective(self.model, x, self.config, self._setting(end))
        finally:
            self.train()

    def _setting(self, epoch: Tensor) -> Setting:
        return Setting(epoch, self.images, self.black, self.white)


class Step:
    """Lower the loss on a batch; the returned terms stay on the device."""

    def __init__(self, module: LossModule, config: TrainConfig) -> None:
        self.module = module
        self.config = config
        self.optimizer = OPTIMIZERS[config.optimizer](module.parameters(), config)
        self.images = 0

    def __call__(self, x: Tensor) -> Terms:
        for group in self.optimizer.param_groups:
            group["lr"] = rate_at(self.config, self.images / self.module.images)
        self.optimizer.zero_grad()
        terms = self.module(x)
        terms["loss"].mean().backward()
        self.optimizer.step()
        self.images += len(x)
        self.module.seen += len(x)
        return {name: values.detach() for name, values in terms.items()}


def check_fit(model: AnyModel, config: ModelConfig, objective: ObjectiveConfig) -> None:
    """Refuse a model that the objective is not defined for.

    Raises: ParamsError.
    """
    least, most = OBJECTIVES[objective.name].layers
    if not least <= model.stochastic_layers <= most:
        kinds = {0: "'autoencoder'", 1: "'vae'", 2: "'hierarchical'"}
        wanted = " or ".join(kind for layers, kind in kinds.items() if least <= layers <= most)
        raise ParamsError(
            f"params.yaml: model.kind: wanted {wanted} with objective.name {objective.name!r}, found {config.kind!r}"
        )
    if objective.name == "contractive" and config.norm == "batch":
        raise ParamsError(
            "params.yaml: model.norm: wanted 'none' or 'layer' with objective.name 'contractive', found 'batch': "
            "it makes an image's code depend on the other images of the batch"
        )
