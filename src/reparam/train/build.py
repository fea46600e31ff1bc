"""From parameters and a data card to a trainer."""

import torch

from reparam.cards.data import ImageFacts
from reparam.config import Config
from reparam.data.batches import Batches
from reparam.data.pixels import Pixels
from reparam.distributed import ALONE, World
from reparam.models.build import build_model, start_at_mean
from reparam.train.checks import check_monitor, check_parts
from reparam.train.loss import Loss
from reparam.train.memory import check_memory
from reparam.train.perceptual import Perceptual
from reparam.train.trainer import Trainer


def build_trainer(
    config: Config, data: ImageFacts, training: Batches, world: World = ALONE, classes: int = 0
) -> Trainer:
    """Put model, objective and optimizer together, on the device of the training images.

    `classes` are those of a conditional model.

    Raises: ParamsError if they do not go together.
    """
    check_memory(config, data, training, classes, world)
    model = build_model(config.model, data.shape, classes)
    check_parts(model, config, data, images=len(training), processes=world.size)
    pixels = Pixels(data)
    if config.model.start_at_mean:
        start_at_mean(model, pixels.scaled(training.mean().cpu()))
    if config.train.channels_last:
        model = model.to(memory_format=torch.channels_last)
    pixels, perceptual, wanted = pixels.to(training.device), None, config.objective.perceptual
    if wanted.weight:
        perceptual = Perceptual.load(wanted, pixels, data.shape)
    loss = Loss(model, pixels, config.objective, perceptual).to(training.device)
    check_monitor(loss, config.train.monitor)
    return Trainer(loss, config.train, len(training), world)
