import json
from pathlib import Path
from typing import Any

import pytest

from reparam.errors import TrackingError
from reparam.track.spool import Spool

CALLS = [{"call": "tags", "run": "r", "values": {"name": "Größe"}}, {"call": "end", "run": "r"}]


def test_calls_are_delivered_in_the_order_in_which_they_came(tmp_path: Path) -> None:
    spool, delivered = Spool(tmp_path / "spool", "r"), []
    for call in CALLS:
        spool.add(call)
    assert Spool(tmp_path / "spool", "r").replay(delivered.append) == 2  # another process reads the same file
    assert delivered == CALLS


def test_nothing_is_written_before_there_is_something_to_keep(tmp_path: Path) -> None:
    Spool(tmp_path / "spool", "r")
    assert list(tmp_path.iterdir()) == []


def test_what_was_delivered_is_forgotten(tmp_path: Path) -> None:
    spool = Spool(tmp_path, "r")
    (tmp_path / "card.json").write_text("{}")
    spool.add({"call": "file", "run": "r", "path": str(tmp_path / "card.json"), "folder": ""})
    assert {path.name for path in tmp_path.iterdir()} == {"card.json", "r", "r.jsonl", "r.lock"}
    spool.replay(lambda call: None)
    assert {path.name for path in tmp_path.iterdir()} == {"card.json", "r.lock"}


def test_a_file_is_kept_as_it_was_when_it_was_logged(tmp_path: Path) -> None:
    path = tmp_path / "card.json"
    path.write_text("first")
    spool = Spool(tmp_path / "spool", "r")
    spool.add({"call": "file", "run": "r", "path": str(path), "folder": "evaluation/deep"})
    path.write_text("second")
    delivered: list[dict[str, Any]] = []

    def deliver(call: dict[str, Any]) -> None:
        delivered.append({**call, "name": Path(call["path"]).name, "content": Path(call["path"]).read_text()})

    assert spool.replay(deliver) == 1
    assert delivered[0] | {"path": ""} == {
        "call": "file",
        "run": "r",
        "path": "",
        "folder": "evaluation/deep",
        "name": "card.json",
        "content": "first",
    }


def test_files_of_one_name_in_two_folders_are_kept_apart(tmp_path: Path) -> None:
    path, spool = tmp_path / "card.json", Spool(tmp_path / "spool", "r")
    for folder in ("training", "evaluation"):
        path.write_text(folder)
        spool.add({"call": "file", "run": "r", "path": str(path), "folder": folder})
    found: dict[str, str] = {}
    spool.replay(lambda call: found.update({call["folder"]: Path(call["path"]).read_text()}))
    assert found == {"training": "training", "evaluation": "evaluation"}


@pytest.mark.parametrize("error", [ConnectionError, KeyboardInterrupt])
def test_what_is_refused_is_kept_with_all_that_follows(error: type[BaseException], tmp_path: Path) -> None:
    spool = Spool(tmp_path, "r")
    for number in range(4):
        spool.add({"call": "tags", "run": "r", "number": number})
    delivered: list[int] = []

    def refuse_the_third(call: dict[str, Any]) -> None:
        if call["number"] == 2:
            raise error("away again")
        delivered.append(call["number"])

    with pytest.raises(error, match="away again"):
        spool.replay(refuse_the_third)
    spool.add({"call": "tags", "run": "r", "number": 4})
    assert delivered == [0, 1]
    assert spool.replay(lambda call: delivered.append(call["number"])) == 3
    assert delivered == [0, 1, 2, 3, 4]


def test_runs_do_not_share_a_file(tmp_path: Path) -> None:
    for run in ("a", "b"):
        Spool(tmp_path, run).add({"call": "end", "run": run})
    delivered: list[dict[str, Any]] = []
    assert Spool(tmp_path, "a").replay(delivered.append) == 1
    assert delivered == [{"call": "end", "run": "a"}]
    assert json.loads((tmp_path / "b.jsonl").read_text()) == {"call": "end", "run": "b"}


def test_numbers_come_back_as_they_were(tmp_path: Path) -> None:
    spool, delivered = Spool(tmp_path, "r"), []
    values = [0.1, 1e-300, 123456789012345678, float("inf"), -0.0]
    spool.add({**CALLS[0], "values": values})
    spool.replay(delivered.append)
    assert repr(delivered) == repr([{**CALLS[0], "values": values}])


@pytest.mark.parametrize("damage", [b'{"call": "tags", "ru', b"\xff", b"[]", b'{"call": "end"}'])
def test_a_line_that_is_no_call_is_named_and_nothing_is_lost(damage: bytes, tmp_path: Path) -> None:
    spool = Spool(tmp_path, "r")
    spool.add(CALLS[0])
    content = spool.calls.read_bytes() + damage + b"\n"
    spool.calls.write_bytes(content)
    with pytest.raises(TrackingError, match=r"^line 2: damaged: no call to MLflow; remove this line, "):
        spool.replay(pytest.fail)
    assert spool.calls.read_bytes() == content
