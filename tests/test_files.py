import json
import os
import re
from pathlib import Path

import pytest
from dvc_data.hashfile.build import build
from dvc_data.hashfile.db.local import LocalHashFileDB
from dvc_objects.fs import LocalFileSystem

from reparam.errors import MissingInputError
from reparam.files import dvc_hash, parse_table, require, sha256, whole_directory, whole_file, write_json


def names(directory: Path) -> list[str]:
    """Everything below a directory, hidden files included."""
    return sorted(path.relative_to(directory).as_posix() for path in directory.rglob("*"))


def test_a_file_appears_when_its_block_ends(tmp_path: Path) -> None:
    path = tmp_path / "deep/er/a.txt"
    with whole_file(path) as partial:
        partial.write_text("new")
        assert not path.exists()
        assert partial.parent == path.parent  # a rename is atomic within one file system only
    assert path.read_text() == "new"
    assert names(path.parent) == ["a.txt"]


def test_a_file_is_replaced_at_once_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")

    def fail_half_way() -> None:
        with whole_file(path) as partial:
            partial.write_text("ne")
            raise RuntimeError("half way")

    with pytest.raises(RuntimeError, match="half way"):
        fail_half_way()
    assert names(tmp_path) == ["a.txt"]
    assert path.read_text() == "old"
    with whole_file(path) as partial:
        partial.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert names(tmp_path) == ["a.txt"]


def test_content_is_on_disk_before_it_takes_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[str] = []
    fsync, replace, rename = os.fsync, Path.replace, Path.rename

    def note_fsync(descriptor: int) -> None:
        events.append("fsync")
        fsync(descriptor)

    def note_replace(self: Path, target: Path) -> Path:
        events.append("rename")
        return replace(self, target)

    def note_rename(self: Path, target: Path) -> Path:
        events.append("rename")
        return rename(self, target)

    monkeypatch.setattr(os, "fsync", note_fsync)
    monkeypatch.setattr(Path, "replace", note_replace)
    monkeypatch.setattr(Path, "rename", note_rename)
    with whole_file(tmp_path / "a.txt") as partial:
        partial.write_text("new")
    assert events == ["fsync", "rename", "fsync"]  # the file, its name, the directory that holds the name
    events.clear()
    with whole_directory(tmp_path / "model") as partial:
        (partial / "a.txt").write_text("new")
        (partial / "b.txt").write_text("new")
    assert events == ["fsync", "fsync", "rename", "fsync"]


def test_a_second_writer_of_a_file_is_refused_and_harms_nothing(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    with whole_file(path) as partial:
        partial.write_text("first")
        with pytest.raises(OSError, match="another process is writing it; wait for its end") as caught:
            write_json(path, "second")
        assert caught.value.filename == str(path)
        assert partial.read_text() == "first"
    assert path.read_text() == "first"
    write_json(path, "second")
    assert path.read_text() == '"second"\n'


def test_a_pipe_or_folder_is_not_replaced_by_a_file(tmp_path: Path) -> None:
    pipe, folder = tmp_path / "pipe", tmp_path / "folder"
    os.mkfifo(pipe)  # in place of a device, which a mistake would destroy
    folder.mkdir()
    for path in (pipe, folder):
        with pytest.raises(OSError, match="wanted a file, found a folder, device or pipe; name another path") as caught:
            write_json(path, {})
        assert caught.value.filename == str(path)
    assert pipe.is_fifo()
    assert names(tmp_path) == ["folder", "pipe"]


def test_a_directory_is_replaced_as_a_whole(tmp_path: Path) -> None:
    path = tmp_path / "deep/model"
    for content in ("first", "second"):
        with whole_directory(path) as partial:
            assert names(partial) == []
            (partial / "nested").mkdir()
            (partial / f"nested/{content}.txt").write_text(content)
            assert (path / "nested/first.txt").exists() == (content == "second")
        assert names(path.parent) == ["model", "model/nested", f"model/nested/{content}.txt"]
        assert (path / f"nested/{content}.txt").read_text() == content


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_a_directory_stays_as_it_was_when_its_block_raises(error: type[BaseException], tmp_path: Path) -> None:
    path = tmp_path / "model"
    path.mkdir()
    (path / "old.txt").write_text("old")

    def fail_half_way() -> None:
        with whole_directory(path) as partial:
            (partial / "new.txt").write_text("ne")
            raise error

    with pytest.raises(error):
        fail_half_way()
    assert names(tmp_path) == ["model", "model/old.txt"]
    assert (path / "old.txt").read_text() == "old"


def test_what_a_killed_process_left_behind_is_cleared_away(tmp_path: Path) -> None:
    for name in (".partial-model", ".partial-old-model"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "torn.bin").write_bytes(b"\0")
    with whole_directory(tmp_path / "model") as partial:
        (partial / "new.txt").write_text("new")
    assert names(tmp_path) == ["model", "model/new.txt"]


def test_the_old_directory_survives_a_failed_swap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "model"
    path.mkdir()
    (path / "old.txt").write_text("old")
    rename = Path.rename

    def fail_into_place(self: Path, target: Path) -> Path:
        if self.name == ".partial-model":
            raise PermissionError(13, "Permission denied", str(target))
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fail_into_place)
    with pytest.raises(PermissionError), whole_directory(path) as partial:
        (partial / "new.txt").write_text("new")
    assert names(tmp_path) == ["model", "model/old.txt"]


def test_a_file_where_the_directory_should_be_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "model"
    path.write_text("mine")
    with pytest.raises(NotADirectoryError, match="is a file, wanted a directory; move it away"), whole_directory(path):
        pass
    assert names(tmp_path) == ["model"]
    assert path.read_text() == "mine"


def test_equal_values_give_equal_bytes(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"name": "é", "values": [1, 0.5]})
    assert (tmp_path / "a.json").read_bytes() == (b'{\n  "name": "\\u00e9",\n  "values": [\n    1,\n    0.5\n  ]\n}\n')


def test_a_number_that_json_cannot_hold_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "a.json", {"loss": float("nan")})
    assert names(tmp_path) == []


def test_json_comes_back_as_it_was_written(tmp_path: Path) -> None:
    value = {"shape": [1, 8, 8], "mean": 0.1, "name": "ü"}
    write_json(tmp_path / "a.json", value)
    assert json.loads((tmp_path / "a.json").read_bytes()) == value


def test_a_missing_file_names_the_stage_that_writes_it(tmp_path: Path) -> None:
    with pytest.raises(MissingInputError) as caught:
        require(tmp_path / "card.json", made_by="preprocess")
    assert str(caught.value) == f"{tmp_path}/card.json: not found; run `dvc repro preprocess` first"
    require(tmp_path, made_by="preprocess")


def test_sha256_is_that_of_the_content(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")  # the example of FIPS 180-2
    assert sha256(tmp_path / "a") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def hash_by_dvc(directory: Path, scratch: Path) -> str:
    database = LocalHashFileDB(LocalFileSystem(), str(scratch))
    _, _, tree = build(database, str(directory), LocalFileSystem(), "md5", dry_run=True)
    return str(tree.hash_info.value)


def test_a_directory_is_hashed_as_dvc_hashes_it(tmp_path: Path) -> None:
    directory = tmp_path / "data"
    contents = {
        "b.txt": b"b",
        "a.txt": b"",
        "a/b/c.bin": bytes(range(256)),
        "a-b.txt": b"sorts between a.txt and a/b in some orders",
        "Größe/日本.npy": b"names beyond ASCII",
        "line\r\nends.txt": b"one\r\ntwo\r\n",
    }
    for name, content in contents.items():
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_bytes(content)
    first = dvc_hash(directory)
    assert first == hash_by_dvc(directory, tmp_path / "cache")
    assert first.endswith(".dir")

    (directory / "a/b/c.bin").rename(directory / "a/c.bin")
    moved = dvc_hash(directory)
    assert moved == hash_by_dvc(directory, tmp_path / "cache")
    assert moved != first


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not rows of finite numbers"),
        ("epoch,kl\n", "not rows of finite numbers"),
        ("epoch,kl\n1,1e999\n", "not rows of finite numbers"),
        ("epoch,kl\n1,many\n", "could not convert string to float: 'many'"),
        ("epoch,kl\n1\n", "float() argument must be a string or a real number, not 'NoneType'"),
        ("epoch,kl\n1,2,3\n", "float() argument must be a string or a real number, not 'list'"),
        (f"epoch,kl\n1,{'9' * 200_000}\n", "field larger than field limit (131072)"),
        ("epoch\n1\n", "no column kl"),
    ],
)
def test_a_table_that_is_not_one_of_numbers_is_damaged(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        parse_table(text, "epoch", "kl")
    assert parse_table("kl,epoch\n1e-3,2\n", "epoch", "kl") == [{"kl": 0.001, "epoch": 2.0}]
