import errno
import io
import os
import random
import stat
import subprocess
import tarfile
import zipfile
import zlib
from pathlib import Path

import pytest

from reparam.data.sources.archives import unpack
from reparam.errors import DamagedInputError, UserError

SUFFIXES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
FILES = {
    "cats/a cat.png": bytes(range(256)) * 40,
    "cats/Größe 大.png": b"2",
    "dogs/deep/er/c.png": random.Random(0).randbytes(
        20_000
    ),  # does not compress: a cut in the middle of the archive cuts it
    "empty.txt": b"",
}


def pack(path: Path, files: dict[str, bytes]) -> Path:
    """Write an archive of the kind that the suffix of `path` says."""
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, content in files.items():
                archive.writestr(name, content)
        return path
    compression = {".gz": "gz", ".tgz": "gz", ".bz2": "bz2", ".xz": "xz"}.get(path.suffix, "")
    with tarfile.open(path, f"w:{compression}") as tar:  # type: ignore[call-overload]
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


def pack_special(path: Path, name: str, kind: int) -> Path:
    """Write an archive of one file and, after it, one member that is no file."""
    pack(path, {"first.png": b"1"})
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "a") as archive:
            info = zipfile.ZipInfo(name)
            info.external_attr = (kind | 0o777) << 16
            archive.writestr(info, "/etc/passwd")
        return path
    types = {stat.S_IFLNK: tarfile.SYMTYPE, stat.S_IFBLK: tarfile.BLKTYPE, stat.S_IFIFO: tarfile.FIFOTYPE}
    with tarfile.open(path, "a") as tar:
        member = tarfile.TarInfo(name)
        member.type, member.linkname = types.get(kind, tarfile.LNKTYPE), "first.png"
        tar.addfile(member)
    return path


def content(directory: Path) -> dict[str, bytes]:
    return {
        path.relative_to(directory).as_posix(): path.read_bytes() for path in directory.rglob("*") if path.is_file()
    }


def names(directory: Path) -> list[str]:
    return sorted(path.relative_to(directory).as_posix() for path in directory.rglob("*"))


def refusal(archive: Path) -> str:
    """What is said of an archive that is refused, after checking that nothing of it was left behind."""
    with pytest.raises(UserError) as caught:
        unpack(archive, archive.parent / "out")
    assert names(archive.parent) == [archive.name]
    return str(caught.value).removeprefix(f"{archive}: ")


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_every_file_comes_out_as_it_went_in(suffix: str, tmp_path: Path) -> None:
    archive = pack(tmp_path / f"some images{suffix}", FILES)
    unpack(archive, tmp_path / "deep/out")
    assert content(tmp_path / "deep/out") == FILES
    assert names(tmp_path / "deep") == sorted(
        ["out", "out/cats", "out/dogs", "out/dogs/deep", "out/dogs/deep/er", *(f"out/{name}" for name in FILES)]
    )


def test_the_suffix_may_be_in_capitals(tmp_path: Path) -> None:
    archive = pack(tmp_path / "a.zip", FILES).rename(tmp_path / "A.ZIP")
    unpack(archive, tmp_path / "out")
    assert content(tmp_path / "out") == FILES


def test_archives_of_the_system_tar_are_understood(tmp_path: Path) -> None:
    (tmp_path / "in/cats").mkdir(parents=True)
    (tmp_path / "in/cats/a cat.png").write_bytes(b"1")
    archive = tmp_path / "a.tar.gz"
    subprocess.run(["tar", "-czf", archive, "-C", tmp_path / "in", "."], check=True)  # names begin with ./
    unpack(archive, tmp_path / "out")
    assert names(tmp_path / "out") == ["cats", "cats/a cat.png"]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_an_empty_archive_gives_an_empty_directory(suffix: str, tmp_path: Path) -> None:
    unpack(pack(tmp_path / f"a{suffix}", {}), tmp_path / "out")
    assert names(tmp_path / "out") == []


def test_what_was_in_the_directory_is_replaced_as_a_whole(tmp_path: Path) -> None:
    archive = pack(tmp_path / "a.zip", {"new.png": b"2"})
    (tmp_path / "out").mkdir()
    (tmp_path / "out/old.png").write_bytes(b"1")
    unpack(archive, tmp_path / "out")
    assert names(tmp_path) == ["a.zip", "out", "out/new.png"]


@pytest.mark.parametrize("suffix", [".zip", ".tar", ".tar.gz"])
@pytest.mark.parametrize(
    "name",
    [
        "../evil.png",
        "cats/../../evil.png",
        "cats/..",
        "/evil.png",
        "//host/share/evil.png",
        "..\\evil.png",
        "\\evil.png",
        "C:\\evil.png",
        "C:evil.png",
    ],
)
def test_a_member_that_would_land_outside_is_refused(name: str, suffix: str, tmp_path: Path) -> None:
    archive = pack(tmp_path / f"a{suffix}", {"cats/first.png": b"1", name: b"evil"})
    assert refusal(archive) == (
        f"{name!r} would land outside of the directory; nothing was unpacked; "
        "take the archive from a source that you trust"
    )


def test_dots_in_a_name_are_no_way_out(tmp_path: Path) -> None:
    files = {"..a/b..png": b"1", "...": b"2", ".hidden": b"3"}
    unpack(pack(tmp_path / "a.tar", files), tmp_path / "out")
    assert content(tmp_path / "out") == files


@pytest.mark.parametrize(
    ("suffix", "kind", "words"),
    [
        (".zip", stat.S_IFLNK, "a symbolic link"),
        (".zip", stat.S_IFIFO, "a special file"),
        (".tar", stat.S_IFLNK, "a symbolic link"),
        (".tar", 0, "a hard link"),
        (".tar", stat.S_IFBLK, "a special file"),
        (".tar", stat.S_IFIFO, "a special file"),
    ],
)
def test_links_and_special_files_are_refused(suffix: str, kind: int, words: str, tmp_path: Path) -> None:
    archive = pack_special(tmp_path / f"a{suffix}", "cats/odd", kind)
    assert refusal(archive) == (
        f"'cats/odd' is {words}, wanted plain files and folders; nothing was unpacked; pack the files themselves"
    )


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("share", [0.0, 0.02, 0.5, 0.9])
def test_a_truncated_archive_is_damaged(share: float, suffix: str, tmp_path: Path) -> None:
    archive = pack(tmp_path / f"a{suffix}", FILES)
    # A plain tar ends in up to 10 kB of zeros, which do no harm when they are missing.
    whole = archive.read_bytes() if suffix != ".tar" else archive.read_bytes().rstrip(b"\0")
    archive.write_bytes(whole[: int(share * len(whole))])
    message = refusal(archive)
    assert message.startswith("damaged or truncated (")
    assert message.endswith("); nothing was unpacked; fetch or copy the archive again")


def test_damage_has_its_own_kind_of_error(tmp_path: Path) -> None:
    archive = tmp_path / "a.zip"
    archive.write_bytes(b"no zip at all")
    with pytest.raises(DamagedInputError) as caught:
        unpack(archive, tmp_path / "out")
    assert str(caught.value) == (
        f"{archive}: damaged or truncated (File is not a zip file); nothing was unpacked; "
        "fetch or copy the archive again"
    )


@pytest.mark.parametrize("suffix", [".zip", ".tar.gz", ".tar.bz2", ".tar.xz"])
def test_one_changed_byte_is_noticed(suffix: str, tmp_path: Path) -> None:
    archive = pack(tmp_path / f"a{suffix}", FILES)
    changed = bytearray(archive.read_bytes())
    changed[len(changed) // 2] ^= 1
    archive.write_bytes(changed)
    assert refusal(archive).startswith("damaged or truncated (")


@pytest.mark.parametrize(
    ("before", "after", "words"),
    [
        ("é.png".encode(), b"\xff\xff.png", "'utf-8' codec can't decode byte 0xff"),
        (zlib.compress(b"1" * 99, wbits=-15), b"\xff" * 5, "Error -3 while decompressing data: invalid block type"),
    ],
    ids=["name", "content"],
)
def test_a_zip_is_damaged_in_more_ways_than_zipfile_knows(
    before: bytes, after: bytes, words: str, tmp_path: Path
) -> None:
    archive = pack(tmp_path / "a.zip", {"é.png": b"1" * 99})
    assert before in archive.read_bytes()
    archive.write_bytes(archive.read_bytes().replace(before, after.ljust(len(before), b"\xff")))
    assert refusal(archive).startswith(f"damaged or truncated ({words}")


@pytest.mark.parametrize("damage", ["header", "cut"])
def test_a_tar_that_ends_after_a_whole_member_is_damaged(damage: str, tmp_path: Path) -> None:
    # tarfile alone takes both for the end of the archive, and drops the members behind it in silence.
    archive = pack(tmp_path / "a.tar", {"1.png": b"1", "2.png": b"2"})  # 512 bytes of header, 512 of content, each
    whole = bytearray(archive.read_bytes())
    archive.write_bytes(whole[:1024] if damage == "cut" else whole[:1024] + b"\1" + whole[1025:])
    assert refusal(archive) == (
        "damaged or truncated (no end of archive after the last readable member); nothing was unpacked; "
        "fetch or copy the archive again"
    )


def test_a_wrong_checksum_at_the_end_of_a_gzip_is_noticed(tmp_path: Path) -> None:
    # tarfile alone stops reading before it.
    archive = pack(tmp_path / "a.tar.gz", {"1.png": b"1"})
    whole = archive.read_bytes()
    archive.write_bytes(whole[:-8] + bytes(4) + whole[-4:])
    assert refusal(archive).startswith("damaged or truncated (CRC check failed")


def test_an_encrypted_zip_is_refused(tmp_path: Path) -> None:
    archive = pack(tmp_path / "a.zip", {"1.png": b"1"})
    whole = bytearray(archive.read_bytes())
    for signature, offset in ((b"PK\3\4", 6), (b"PK\1\2", 8)):
        whole[whole.index(signature) + offset] |= 1  # the flag alone makes it encrypted for the reader
    archive.write_bytes(whole)
    assert refusal(archive) == (
        "'1.png' is encrypted, wanted plain files and folders; nothing was unpacked; pack the files themselves"
    )


def test_an_unknown_compression_is_refused(tmp_path: Path) -> None:
    archive = pack(tmp_path / "a.zip", {"1.png": b"1"})
    whole = bytearray(archive.read_bytes())
    for signature, offset in ((b"PK\3\4", 8), (b"PK\1\2", 10)):
        whole[whole.index(signature) + offset] = 98  # PPMd
    archive.write_bytes(whole)
    assert refusal(archive) == ("cannot be unpacked (That compression method is not supported); pack the files again")


def test_another_suffix_is_refused(tmp_path: Path) -> None:
    archive = tmp_path / "a.rar"
    archive.write_bytes(b"Rar!")
    assert refusal(archive) == (
        "wanted a name that ends in .zip or .tar, .tar.gz, .tgz, .tar.bz2, .tar.xz; pack the files again"
    )


def test_a_missing_archive_keeps_the_words_of_the_system(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as caught:
        unpack(tmp_path / "a.zip", tmp_path / "out")
    assert caught.value.filename == str(tmp_path / "a.zip")
    assert names(tmp_path) == []


@pytest.mark.parametrize("suffix", [".zip", ".tar"])
def test_a_full_disk_leaves_nothing_behind(suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    archive = pack(tmp_path / f"a{suffix}", FILES)
    monkeypatch.setattr("tarfile.copyfileobj", fail)
    monkeypatch.setattr("shutil.copyfileobj", fail)
    with pytest.raises(OSError, match="No space left on device") as caught:
        unpack(archive, tmp_path / "out")
    assert (caught.value.errno, caught.value.filename) == (errno.ENOSPC, str(tmp_path / "out"))
    assert names(tmp_path) == [archive.name]


def test_the_former_content_survives_a_refusal(tmp_path: Path) -> None:
    archive = pack(tmp_path / "a.zip", {"new.png": b"2", "../evil.png": b"evil"})
    (tmp_path / "out").mkdir()
    (tmp_path / "out/old.png").write_bytes(b"1")
    with pytest.raises(UserError, match="would land outside"):
        unpack(archive, tmp_path / "out")
    assert names(tmp_path) == ["a.zip", "out", "out/old.png"]
