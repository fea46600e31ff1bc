"""Report the epochs of a training: on the terminal, in MLflow, and as pictures."""

from collections.abc import Callable, Mapping

from reparam import logged
from reparam.progress import note_epoch
from reparam.track import Run


class EpochLog:
    """Show every epoch, and log it once, also where an interrupted training goes on."""

    def __init__(
        self,
        run: Run,
        show: Callable[[Mapping[str, float], int], None],
        show_picture: Callable[[int], None],
        known: set[int],
        *,
        is_first: bool,
    ) -> None:
        """`known` are the epochs that the tracking store has already; `is_first`: this is the first process."""
        self.run = run
        self.show = show
        self.show_picture = show_picture
        self.known = known
        self.is_first = is_first

    def __call__(self, metrics: Mapping[str, float], epoch: int) -> None:
        self.show(metrics, epoch)
        self.log(metrics, epoch)
        if self.is_first:
            self.show_picture(epoch)

    def log(self, metrics: Mapping[str, float], epoch: int) -> None:
        """Note the metrics of an epoch for whoever watches, and log them unless the store has them."""
        if self.is_first:
            note_epoch(metrics)
        if epoch not in self.known:
            logged.epoch(self.run, metrics, epoch)
