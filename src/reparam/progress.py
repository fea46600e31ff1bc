"""Show the progress of long work: a bar on a terminal; elsewhere one line per epoch of training, or per minute."""

import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

SECONDS_BETWEEN_LINES = 60
Advance = Callable[[int], None]


def ignore(_count: int) -> None:
    """Show no progress."""


@contextmanager
def progress(epochs: int, console: Console) -> Iterator[Callable[[Mapping[str, float], int], None]]:
    """Yield `show(metrics, epoch)`."""
    if not console.is_terminal:
        yield lambda metrics, epoch: console.print(
            f"epoch {epoch}/{epochs}  {_line(metrics)}", highlight=False, soft_wrap=True
        )
        return
    columns = (
        TextColumn("training"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TextColumn("{task.description}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as bar:
        task = bar.add_task("", total=epochs)
        yield lambda metrics, epoch: bar.update(task, completed=epoch, description=_line(metrics))


@contextmanager
def counting(title: str, total: int, console: Console | None = None) -> Iterator[Advance]:
    """Yield `advance(count)`: on a terminal it moves a bar with the time left, elsewhere it prints a line a minute."""
    console = console or Console(stderr=True)
    if not console.is_terminal:
        yield _Lines(title, total, console).advance
        return
    columns = TextColumn(title), BarColumn(bar_width=24), TaskProgressColumn(), TimeRemainingColumn()
    with Progress(*columns, console=console) as bar:
        task = bar.add_task("", total=total)
        yield lambda count: bar.advance(task, count)


def note_epoch(metrics: Mapping[str, float]) -> None:
    """Append the metrics of an epoch, a line of JSON, to a file that another program watches."""
    if path := os.environ.get("REPARAM_EPOCHS"):
        with Path(path).open("a", encoding="utf-8") as file:
            file.write(json.dumps(metrics) + "\n")


class _Lines:
    """Says from time to time how far long work is, and how long the rest will take at the same rate."""

    def __init__(self, title: str, total: int, console: Console) -> None:
        self.title, self.total, self.console = title, total, console
        self.done = 0
        self.start = self.said = time.monotonic()

    def advance(self, count: int) -> None:
        """Count finished work, and print a line if the last one is old."""
        self.done += count
        now = time.monotonic()
        if now - self.said >= SECONDS_BETWEEN_LINES:
            self.said = now
            left = timedelta(seconds=round((now - self.start) * (self.total - self.done) / self.done))
            self.console.print(f"{self.title}: {self.done / self.total:.1%}, {left} left", highlight=False)


def _line(metrics: Mapping[str, float]) -> str:
    validation = f"validation {metrics['validation_loss']:.2f}  " if "validation_loss" in metrics else ""
    return (
        f"loss {metrics['train_loss']:.2f}  KL {metrics['train_kl']:.2f}  {validation}"
        f"{metrics['images_per_second']:,.0f} images/s"
    )
