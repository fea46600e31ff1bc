"""Report the epochs of a training: on the terminal, in MLflow, and as pictures."""

from collections.abc import Callable

from reparam import logged
from reparam.progress import note_epoch
from reparam.track import Run
from reparam.train.filmstrip import Filmstrip
from reparam.train.sums import Metrics
from reparam.train.trainer import Trainer


class EpochLog:
    """Show every epoch, and log it once, also where an interrupted training goes on."""

    def __init__(
        self, trainer: Trainer, run: Run, show: Callable[[Metrics, int], None], filmstrip: Filmstrip, known: set[int]
    ) -> None:
        """`known` are the epochs that the tracking store has already."""
        self.trainer = trainer
        self.run = run
        self.show = show
        self.filmstrip = filmstrip
        self.known = known

    def __call__(self, metrics: Metrics, epoch: int) -> None:
        self.show(metrics, epoch)
        self.log(metrics, epoch)
        if self.trainer.world.is_first:
            self.filmstrip.show(self.trainer.model, epoch)

    def log(self, metrics: Metrics, epoch: int) -> None:
        """Note the metrics of an epoch for whoever watches, and log them unless the store has them."""
        if self.trainer.world.is_first:
            note_epoch(metrics)
        if epoch not in self.known:
            logged.epoch(self.run, metrics, epoch)
