import io
import json
import re
from pathlib import Path

import pytest
from rich.console import Console

from reparam.progress import counting, note_epoch, progress

METRICS = {
    "train_loss": 12.345,
    "train_kl": 1.5,
    "train_reconstruction": 10.845,
    "validation_loss": 13.0,
    "images_per_second": 12345.6,
}


def shown(epochs: int, console: Console) -> str:
    with progress(epochs, console) as show:
        for epoch in range(1, epochs + 1):
            show(METRICS | {"validation_loss": 13.0 + epoch}, epoch)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_a_log_file_gets_one_plain_line_per_epoch() -> None:
    text = shown(2, Console(file=io.StringIO(), force_terminal=False, width=30))  # too narrow for the lines
    assert text == (
        "epoch 1/2  loss 12.35  KL 1.50  validation 14.00  12,346 images/s\n"
        "epoch 2/2  loss 12.35  KL 1.50  validation 15.00  12,346 images/s\n"
    )


@pytest.mark.parametrize("width", [20, 120])
def test_a_terminal_gets_a_bar_that_ends_full(width: int) -> None:
    text = shown(2, Console(file=io.StringIO(), force_terminal=True, width=width))
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)
    last = plain.strip().splitlines()[-1]
    assert "\x1b[" in text
    assert len(last) <= width
    if width == 120:
        assert last.startswith("training ")
        assert " 2/2 loss 12.35  KL 1.50  validation 15.00  12,346 images/s" in last


@pytest.mark.parametrize("is_terminal", [False, True])
def test_without_validation_the_line_says_nothing_of_it(is_terminal: bool) -> None:
    console = Console(file=io.StringIO(), force_terminal=is_terminal, width=120)
    with progress(1, console) as show:
        show({name: value for name, value in METRICS.items() if name != "validation_loss"}, 1)
    assert isinstance(console.file, io.StringIO)
    text = console.file.getvalue()
    assert "loss 12.35  KL 1.50  12,346 images/s" in text
    assert "validation" not in text


def counted(console: Console) -> str:
    with counting("scoring images", 40, console) as advance:
        advance(30)
        advance(10)
    assert isinstance(console.file, io.StringIO)
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", console.file.getvalue())


def test_a_terminal_gets_a_bar_of_what_is_counted() -> None:
    last = counted(Console(file=io.StringIO(), force_terminal=True, width=80)).strip().splitlines()[-1]
    assert last.startswith("scoring images ")
    assert last.endswith(" 100% 0:00:00")


def test_a_log_file_gets_nothing_of_what_is_counted() -> None:
    assert counted(Console(file=io.StringIO(), force_terminal=False)) == ""


def test_a_program_that_watches_gets_each_epoch_as_a_line_of_json(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("REPARAM_EPOCHS", raising=False)
    note_epoch(METRICS)
    monkeypatch.setenv("REPARAM_EPOCHS", str(tmp_path / "epochs"))
    for epoch in (1, 2):
        note_epoch(METRICS | {"epoch": epoch})
    found = [json.loads(line) for line in (tmp_path / "epochs").read_text().splitlines()]
    assert found == [METRICS | {"epoch": 1}, METRICS | {"epoch": 2}]
