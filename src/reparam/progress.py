"""What a person sees of long work: a bar on a terminal; elsewhere one line per epoch of training, and nothing else."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn


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
def counting(title: str, total: int, console: Console | None = None) -> Iterator[Callable[[int], None]]:
    """Yield `advance(count)`, which moves a bar with the time left; nothing is shown where there is no terminal."""
    console = console or Console(stderr=True)
    columns = TextColumn(title), BarColumn(bar_width=24), TaskProgressColumn(), TimeRemainingColumn()
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("", total=total)
        yield lambda count: bar.advance(task, count)


def _line(metrics: Mapping[str, float]) -> str:
    validation = f"validation {metrics['validation_loss']:.2f}  " if "validation_loss" in metrics else ""
    return (
        f"loss {metrics['train_loss']:.2f}  KL {metrics['train_kl']:.2f}  {validation}"
        f"{metrics['images_per_second']:,.0f} images/s"
    )
