"""Checkpoints on disk, whatever is in them."""

import errno
import fcntl
import json
import math
import os
import subprocess
import sys
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
import torch
from filelock import Timeout
from training import Training, equal, small_data, small_trainer

from reparam.train.checkpoint import Checkpoints


def files(directory: Path) -> list[Path]:
    return sorted(directory.glob("*.safetensors"))


def warnings_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == "reparam.train.checkpoint"]


def a_state() -> dict[str, Any]:
    shared = torch.arange(6, dtype=torch.float32)
    return {
        "empty": {},
        "deep": {"er": {"still": {"tensor": torch.tensor(1.5)}}, "none": None},
        "numbers": {"whole": 3, "third": 1 / 3, "far": math.inf, "below": -math.inf, "yes": True},
        "history": [{"epoch": 1.0, "loss": 0.1 + 0.2}, {"epoch": 2.0, "loss": 5e-324}],
        "names": ["loss", "kl"],
        "nothing": [],
        "text": "tensor",
        "tensors": {
            "int64": torch.tensor([2**62, -1]),
            "uint8": torch.arange(256, dtype=torch.uint8),
            "float64": torch.tensor([1 / 3, math.inf, -0.0], dtype=torch.float64),
            "bfloat16": torch.tensor([0.1], dtype=torch.bfloat16),
            "bool": torch.tensor([True, False]),
            "scalar": torch.tensor(7),
            "none of it": torch.zeros(0, 3),
            "shared": shared,
            "view": shared[2:4],
            "transposed": shared.view(2, 3).T,
            "with a gradient": torch.ones(2, requires_grad=True),
        },
        "0": {"1": torch.ones(1)},
    }


def test_a_state_comes_back_as_it_was(tmp_path: Path) -> None:
    Checkpoints(tmp_path).write(a_state())
    found = Checkpoints(tmp_path).read()
    assert equal(found, a_state())
    assert math.copysign(1, found["tensors"]["float64"][2].item()) == -1


def test_nan_comes_back_too(tmp_path: Path) -> None:
    Checkpoints(tmp_path).write({"number": math.nan, "tensor": {"x": torch.tensor([math.nan])}})
    found = Checkpoints(tmp_path).read()
    assert math.isnan(found["number"])
    assert math.isnan(found["tensor"]["x"].item())


def test_writing_leaves_what_is_written_as_it_was(tmp_path: Path) -> None:
    state = a_state()
    Checkpoints(tmp_path).write(state)
    assert equal(state, a_state())


def test_without_a_checkpoint_there_is_nothing_to_read(tmp_path: Path) -> None:
    assert Checkpoints(tmp_path / "nowhere").read() is None
    assert not (tmp_path / "nowhere").exists()


def test_the_newest_two_are_kept_under_their_checksums(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    for number in range(12):  # past one digit
        checkpoints.write({"number": number})
        assert checkpoints.read() == {"number": number}
    assert [path.name[:9] for path in files(tmp_path)] == ["00000011-", "00000012-"]
    for path in files(tmp_path):
        assert path.name[9:] == f"{sha256(path.read_bytes()).hexdigest()}.safetensors"
    assert len(list(tmp_path.iterdir())) == 2


def test_a_checkpoint_is_safetensors_and_holds_no_pickle(tmp_path: Path) -> None:
    Training(small_trainer(average=0.9, on_nonfinite="rollback"), tmp_path, seconds=0).fit(small_data())
    assert len(files(tmp_path)) == 2
    for path in files(tmp_path):
        content = path.read_bytes()
        length = int.from_bytes(content[:8], "little")
        header = json.loads(content[8 : 8 + length])
        metadata = header.pop("__metadata__")
        assert list(metadata) == ["state"]
        assert isinstance(json.loads(metadata["state"]), dict)
        # Every byte after the header belongs to a tensor of a plain type.
        spans = sorted(tensor["data_offsets"] for tensor in header.values())
        assert [start for start, _ in spans] == [0, *[end for _, end in spans[:-1]]]
        assert 8 + length + spans[-1][1] == len(content)
        assert {tensor["dtype"] for tensor in header.values()} <= {"F32", "F64", "I64", "U8"}


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "truncated": lambda content: content[: len(content) // 2],
    "one bit of a tensor": lambda content: content[:-1] + bytes([content[-1] ^ 1]),
    "one bit of the header": lambda content: content[:20] + bytes([content[20] ^ 1]) + content[21:],
    "longer": lambda content: content + b"\0",
    "empty": lambda content: b"",
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_the_checkpoint_before_a_damaged_one_is_used_and_the_damage_is_reported(
    damage: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    checkpoints = Checkpoints(tmp_path)
    for number in (1, 2):
        checkpoints.write({"number": number, "x": torch.ones(3)})
    before, newest = files(tmp_path)
    newest.write_bytes(DAMAGES[damage](newest.read_bytes()))
    assert checkpoints.read()["number"] == 1
    assert warnings_of(caplog) == [
        f"{newest}: damaged, its checksum differs; using the checkpoint before it, or starting again"
    ]
    assert files(tmp_path) == [before]
    checkpoints.write({"number": 3})
    assert checkpoints.read() == {"number": 3}


def test_where_all_are_damaged_training_starts_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    checkpoints = Checkpoints(tmp_path)
    for number in (1, 2):
        checkpoints.write({"number": number})
    for path in files(tmp_path):
        path.write_bytes(b"")
    assert checkpoints.read() is None
    assert len(warnings_of(caplog)) == 2
    assert files(tmp_path) == []
    assert not Training(small_trainer(), tmp_path).keeper.resume()


def test_what_a_killed_process_left_half_written_is_neither_read_nor_kept(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    checkpoints = Checkpoints(tmp_path)
    checkpoints.write({"number": 1})
    partial = tmp_path / f".partial-00000002-{'0' * 64}.safetensors"
    partial.write_bytes(b"half")
    assert checkpoints.read() == {"number": 1}
    checkpoints.write({"number": 2})
    assert checkpoints.read() == {"number": 2}
    with checkpoints.held():
        assert not partial.exists()
    assert warnings_of(caplog) == []


def test_an_interrupted_write_leaves_the_checkpoints_there_were(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoints = Checkpoints(tmp_path)
    checkpoints.write({"number": 1})

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", fail)
        with pytest.raises(OSError, match="No space"):
            checkpoints.write({"number": 2})
    assert checkpoints.read() == {"number": 1}
    assert len(list(tmp_path.iterdir())) == 1


def test_clearing_leaves_nothing_behind(tmp_path: Path) -> None:
    checkpoints, other = (Checkpoints(tmp_path / "resume" / name) for name in ("one", "other"))
    other.write({"number": 7})
    assert checkpoints.run_id == ""
    with checkpoints.held():
        checkpoints.write({"number": 1})
        checkpoints.run_id = "abc"
        assert Checkpoints(checkpoints.directory).run_id == "abc"
        checkpoints.clear()
        assert list((tmp_path / "resume").iterdir()) == [other.directory]
    assert (checkpoints.read(), checkpoints.run_id) == (None, "")
    checkpoints.clear()  # of nothing
    assert other.read() == {"number": 7}
    other.clear()
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_run_is_reported_and_forgotten(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "run").write_bytes(b"\xff\xfe")
    assert Checkpoints(tmp_path).run_id == ""
    assert warnings_of(caplog) == [f"{tmp_path / 'run'}: damaged; tracking starts a new run"]


def test_only_one_process_holds_the_checkpoints(tmp_path: Path) -> None:
    script = """
import sys
from pathlib import Path
from reparam.train.checkpoint import Checkpoints
with Checkpoints(Path(sys.argv[1])).held():
    print("held", flush=True)
    sys.stdin.readline()
"""
    path = os.pathsep.join(filter(None, sys.path))
    with subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path)],
        env={**os.environ, "PYTHONPATH": path},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        with pytest.raises(Timeout), Checkpoints(tmp_path).held():
            pass
        other.kill()  # which must not leave the lock behind
    with Checkpoints(tmp_path).held():
        pass


def test_a_place_without_locks_is_used_with_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(_descriptor: int, _operation: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    checkpoints = Checkpoints(tmp_path / "bucket")
    with checkpoints.held():
        checkpoints.write({"number": 1})
    assert checkpoints.read() == {"number": 1}
    assert warnings_of(caplog) == [
        f"{checkpoints.directory}: has no locks; see that one machine alone trains this model there"
    ]
