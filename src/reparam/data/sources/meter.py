"""Show the progress of a download."""

import time

from rich.console import Console
from rich.filesize import decimal
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn


class Meter:
    """Shows one file: a bar with rate on a terminal, one line at the end elsewhere."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.received = 0
        self.started = time.perf_counter()
        self.console = Console(stderr=True, markup=False, emoji=False, highlight=False)
        self.bar = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            DownloadColumn(),
            TransferSpeedColumn(),
            TimeRemainingColumn(),
            console=self.console,
            disable=not self.console.is_terminal,
        )
        self.task = self.bar.add_task(name, total=None)

    def begin(self, present: int, missing: int | None) -> None:
        total = None if missing is None else present + missing
        self.bar.reset(self.task, completed=present, total=total)

    def advance(self, count: int) -> None:
        self.received += count
        self.bar.advance(self.task, count)

    def say(self, text: str) -> None:
        self.console.print(f"{self.name}: {text}", soft_wrap=True)

    def finish(self, size: int) -> None:
        if not self.console.is_terminal:
            rate = self.received / (time.perf_counter() - self.started)
            self.say(f"{decimal(size)}, {decimal(int(rate))}/s")
