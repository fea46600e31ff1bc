"""Pictures of a model in training: reconstructions of the same images, and the same draws from the prior."""

import io

import torch
from torch import Tensor

from reparam.data.batches import Batches
from reparam.data.pixels import Pixels
from reparam.machine.environment import whole
from reparam.models.latent import LatentModel
from reparam.models.model import Model
from reparam.track import Run

EVERY = 10  # epochs
COLUMNS = 10
SMALLEST_SIDE = 64  # pixels of a shown image; smaller ones are enlarged


def epochs_between_pictures() -> int:
    """Read REPARAM_PICTURES_EVERY; 0 means that there are no pictures.

    Raises: UserError.
    """
    return whole("REPARAM_PICTURES_EVERY", EVERY, "a whole number of epochs, or 0 for no pictures", least=0)


class Filmstrip:
    """Logs a picture at regular epochs, as artifact `filmstrip/epoch-0010.png`: images, reconstructions, samples.

    Training draws the same numbers with and without it.
    """

    def __init__(self, images: Batches, pixels: Pixels, run: Run, seed: int, *, every: int, has_prior: bool) -> None:
        self.images = images
        self.pixels = pixels
        self.run = run
        self.seed = seed
        self.every = every
        self.has_prior = has_prior

    def show(self, model: LatentModel, epoch: int) -> None:
        """Log the picture of an epoch, if it is one of the regular epochs."""
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
    def _rows(self, model: LatentModel) -> list[Tensor]:
        """Return images, reconstructions and, if there is a prior, samples. Shapes: each (COLUMNS, C, H, W).

        A conditional model draws its samples with the labels of the images above.
        """
        was_training = model.training
        model.eval()
        rows = torch.arange(COLUMNS) % len(self.images)
        generator = torch.Generator().manual_seed(self.seed)  # and not torch's own, which is that of training
        x = self.pixels(self.images.take(rows), generator)
        its = Model(model, None if self.images.labels is None else self.images.labels[rows.to(x.device)])
        mean, _ = its.posterior(x)
        shown = [x, its.decode(mean)]
        if self.has_prior:
            drawn = model.prior.sample(torch.empty_like(mean, device="cpu"), generator)
            shown.append(its.decode(drawn.to(mean.device)))
        model.train(was_training)
        return [self.pixels.unscaled(part).cpu() for part in shown]
