from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from reparam.logged.epochs import EpochLog
from reparam.track.run import NoRun


class Notes(NoRun):
    """A run, a terminal and a filmstrip in one, which note what they are given."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, Any, int]] = []

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        self.found.append(("log", dict(metrics), step))

    def print(self, metrics: Mapping[str, float], epoch: int) -> None:
        self.found.append(("print", dict(metrics), epoch))

    def show(self, epoch: int) -> None:
        self.found.append(("show", None, epoch))


@pytest.mark.parametrize("is_first", [True, False])
def test_an_epoch_is_printed_logged_unless_it_was_and_shown_and_noted_by_the_first_process(
    is_first: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    noted = tmp_path / "epochs"
    noted.touch()
    monkeypatch.setenv("REPARAM_EPOCHS", str(noted))
    notes = Notes()
    epoch_log = EpochLog(notes, notes.print, notes.show, known={1, 3}, is_first=is_first)
    for epoch in (2, 3):
        epoch_log({"train_loss": 1.0 * epoch}, epoch)
    shown = [("show", None, epoch) for epoch in (2, 3)] if is_first else []
    assert [note for note in notes.found if note[0] == "print"] == [
        ("print", {"train_loss": 2.0}, 2),
        ("print", {"train_loss": 3.0}, 3),
    ]
    assert [note for note in notes.found if note[0] == "log"] == [("log", {"train/loss": 2.0}, 2)]
    assert [note for note in notes.found if note[0] == "show"] == shown
    assert noted.read_text() == ('{"train_loss": 2.0}\n{"train_loss": 3.0}\n' if is_first else "")


def test_an_epoch_of_before_an_interruption_is_logged_alone() -> None:
    notes = Notes()
    epoch_log = EpochLog(notes, notes.print, notes.show, known={1}, is_first=True)
    for epoch in (1, 2):
        epoch_log.log({"epoch": float(epoch)}, epoch)
    assert notes.found == [("log", {"epoch": 2.0}, 2)]
