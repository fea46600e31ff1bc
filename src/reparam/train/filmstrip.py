"""Pictures of a model in training: what it makes of the same images, and of the same draws from the prior."""

import io

import torch
from torch import Tensor

from reparam.data.batches import Batches
from reparam.models.build import AnyModel
from reparam.runtime import random_stream
from reparam.track import Run

COLUMNS = 10
SMALLEST_SIDE = 64  # pixels of a shown image; smaller ones are enlarged


class Filmstrip:
    """Logs a picture every so many epochs, as artifact `filmstrip/epoch-0010.png`: images, reconstructions, samples.

    Training draws the same numbers with and without it.
    """

    def __init__(self, images: Batches, run: Run, every: int, seed: int) -> None:
        self.images = images
        self.run = run
        self.every = every
        self.seed = seed

    def show(self, model: AnyModel, epoch: int) -> None:
        """Log the picture of an epoch, where it is one of those that get one."""
        if not self.every or epoch % self.every:
            return
        from torchvision.utils import save_image

        rows = torch.cat(self._rows(model))
        scale = -(-SMALLEST_SIDE // rows.shape[-1])
        enlarged = rows.repeat_interleave(scale, -1).repeat_interleave(scale, -2)
        picture = io.BytesIO()
        save_image(enlarged, picture, format="png", nrow=COLUMNS, padding=scale, pad_value=1.0)
        self.run.log_picture(f"filmstrip/epoch-{epoch:04}.png", picture.getvalue())

    @torch.no_grad()
    def _rows(self, model: AnyModel) -> list[Tensor]:
        """Return images, reconstructions and, where there is a prior, samples. Shapes: each (COLUMNS, C, H, W)."""
        was_training = model.training
        model.eval()
        rows = torch.arange(COLUMNS) % len(self.images)
        with random_stream(self.seed, "filmstrip"):
            generator = torch.Generator().manual_seed(self.seed)
            x = self.images.pixels(self.images.grey(rows), generator)
            mean, _ = model.posterior(x)
            shown = [x, model.decode(mean)]
            if model.stochastic_layers:
                shown.append(model.decode(torch.randn(mean.shape, generator=generator).to(mean.device)))
        model.train(was_training)
        return [self.images.scaling.invert(part).cpu() for part in shown]
