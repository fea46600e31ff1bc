import errno
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from conftest import change
from pictures import draw, noise, pack, write_mnist
from some_cards import resealed

from reparam import cli
from reparam.config import load_config
from reparam.data.sources import web
from reparam.data.sources.meter import Meter
from reparam.data.sources.part import BLOCK
from reparam.download import stage as download
from reparam.errors import ParamsError, UserError
from reparam.files import dvc_hash, sha256
from reparam.paths import Paths

SOURCE = Path(download.__file__).parents[2]
NOWHERE = "file:///nowhere/"
REMEDY = "set REPARAM_MIRRORS to a directory or server that holds it"
MNIST = ("t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz", "train-images-idx3-ubyte.gz")
MNIST += ("train-labels-idx1-ubyte.gz",)

Configure = Callable[..., None]
Fetch = Callable[..., None]


@pytest.fixture
def configure(
    project: Paths,
    params: dict[str, Any],
    write_params: Callable[[dict[str, Any]], None],
    monkeypatch: pytest.MonkeyPatch,
) -> Configure:
    """Write the parameters of the stage, and name the mirrors in the environment."""

    def write(source: str, mirrors: object = None, path: str | None = None, **attributes: str) -> None:
        change(params["download"], {"source": source, "path": path, **attributes})
        write_params(params)
        if mirrors is None:
            monkeypatch.delenv("REPARAM_MIRRORS", raising=False)
        else:
            monkeypatch.setenv("REPARAM_MIRRORS", str(mirrors))

    return write


@pytest.fixture
def fetch(project: Paths, configure: Configure) -> Fetch:
    """Run the stage with these settings, in the working copy or another one."""

    def run(source: str, paths: Paths = project, **settings: Any) -> None:
        configure(source, **settings)
        download.run(load_config(project.params), paths)

    return run


@pytest.fixture
def mnist(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory of a small MNIST, which passes for the published one, and has no published address."""
    from torchvision import datasets

    directory = tmp_path_factory.mktemp("mirror") / "mnist"
    monkeypatch.setattr(datasets.MNIST, "resources", write_mnist(directory))
    monkeypatch.setattr(datasets.MNIST, "mirrors", [NOWHERE])
    return directory


@pytest.fixture
def before(project: Paths, fetch: Fetch) -> dict[str, bytes]:
    """The working copy after an earlier download of the digits, which a failure must not touch."""
    fetch("digits")
    return contents(project.raw)


def contents(directory: Path) -> dict[str, bytes]:
    """Every file, link and empty folder below a directory; of a file, what it holds."""
    return {
        path.relative_to(directory).as_posix(): b"" if path.is_dir() else path.read_bytes()
        for path in directory.rglob("*")
        if path.is_symlink() or path.is_file() or not any(path.iterdir())
    }


def md5(content: bytes) -> str:
    return f"md5:{hashlib.md5(content).hexdigest()}"


# ---- a server that cuts, or says no


class Handler(BaseHTTPRequestHandler):
    server: "Server"

    def do_GET(self) -> None:
        start = int((self.headers["Range"] or "bytes=0-").removeprefix("bytes=").removesuffix("-"))
        self.server.seen.append((self.path, start))
        path = self.server.directory / self.path[1:]
        if not path.exists():
            self.send_error(404)
            return
        body = path.read_bytes()
        self.send_response(206 if start else 200)
        self.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
        self.send_header("Content-Length", str(len(body) - start))
        self.end_headers()
        if self.path in self.server.cuts:
            self.server.cuts.remove(self.path)
            self.wfile.write(body[start : len(body) // 2])
            self.wfile.flush()
            self.server.held.wait(20)
        else:
            self.wfile.write(body[start:])

    def log_message(self, *arguments: object) -> None:
        pass


class Server(ThreadingHTTPServer):
    """Serves a directory; a path in `cuts` is cut half-way once for each time that it is there."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.directory = Path("/nonexistent")
        self.cuts: list[str] = []
        self.seen: list[tuple[str, int]] = []  # path, and first byte asked for
        self.held = threading.Event()  # until it is set, a connection to be cut stays open
        self.held.set()
        self.url = f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, *arguments: object) -> None:
        pass  # of clients that went away


@pytest.fixture
def server(mnist: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """A mirror of the small MNIST; the waits between tries take no time."""
    monkeypatch.setattr("reparam.data.sources.web.time.sleep", lambda _: None)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with Server() as server:
        server.directory = mnist
        thread = threading.Thread(target=server.serve_forever, args=(0.005,))
        thread.start()
        yield server
        server.held.set()
        server.shutdown()
        thread.join()


# ---- parameters that do not go together


def test_a_source_folder_without_a_folder_is_refused_before_anything_is_made(fetch: Fetch, project: Paths) -> None:
    with pytest.raises(ParamsError) as caught:
        fetch("folder")
    assert str(caught.value) == (
        "params.yaml: download.folder.path: wanted a folder of images, a .zip or a .tar with download.source 'folder', "
        "found null"
    )
    assert list(contents(project.root)) == ["params.yaml"]


def test_a_path_that_is_not_there_leaves_the_raw_data_alone(
    fetch: Fetch, project: Paths, before: dict[str, bytes]
) -> None:
    with pytest.raises(UserError) as caught:
        fetch("folder", path="photos 2024")
    assert str(caught.value) == (
        "download.folder.path: wanted a folder of images, a .zip or a .tar, found nothing at "
        f"{project.root}/photos 2024; fix it in params.yaml"
    )
    assert contents(project.raw) == before
    assert not list(project.raw.parent.glob(".partial-*"))


def test_an_empty_folder_is_refused(fetch: Fetch, project: Paths, before: dict[str, bytes]) -> None:
    (project.root / "photos/cats").mkdir(parents=True)
    (project.root / "photos/notes.txt").write_text("none yet")
    with pytest.raises(UserError) as caught:
        fetch("folder", path="photos")
    assert str(caught.value) == (
        f"{project.root}/photos: found no images, wanted files that end in .png, .jpg, .jpeg, .bmp, .gif, .tif, .tiff, "
        ".webp, .ppm, .pgm; hidden files, and links to folders or out of this one, do not count"
    )
    assert contents(project.raw) == before
    assert not list(project.raw.parent.glob(".partial-*"))


# ---- published files from a mirror


def test_mnist_comes_from_a_directory_as_it_was_published(fetch: Fetch, project: Paths, mnist: Path) -> None:
    fetch("mnist", mirrors=mnist)
    manifest = {
        "source": "mnist",
        "options": {},
        "title": "MNIST (LeCun et al. 1998)",
        "licence": "CC BY-SA 3.0",
        "files": {
            name: {"sha256": sha256(mnist / name), "bytes": (mnist / name).stat().st_size} for name in sorted(MNIST)
        },
    }
    assert contents(project.raw) == contents(mnist) | {
        "manifest.json": json.dumps(resealed(manifest | {"checksum": ""}), indent=2).encode() + b"\n"
    }


def test_what_arrived_is_not_kept_twice(fetch: Fetch, project: Paths, mnist: Path) -> None:
    fetch("mnist", mirrors=mnist)
    # The empty lock stays, because another process may be waiting for it.
    assert contents(project.downloads) == {"mnist.lock": b""}


def test_the_real_mnist_passes_the_checks_of_torchvision(fetch: Fetch, project: Paths, mnist_files: Path) -> None:
    from torchvision import datasets
    from torchvision.datasets.utils import check_integrity

    fetch("mnist", mirrors=mnist_files.as_uri())
    assert sorted(path.name for path in project.raw.iterdir()) == ["manifest.json", *MNIST]
    for name, checksum in datasets.MNIST.resources:
        assert check_integrity(str(project.raw / name), checksum)


def test_two_runs_give_the_same_bytes(fetch: Fetch, project: Paths, mnist: Path) -> None:
    fetch("mnist", mirrors=mnist)
    other = Paths(project.root / "other", project.root / "other")
    fetch("mnist", other, mirrors=f"{NOWHERE} {mnist.as_uri()}")
    assert contents(other.raw) == contents(project.raw)
    assert dvc_hash(other.raw) == dvc_hash(project.raw)


def test_a_relative_mirror_starts_at_the_repository_even_in_a_scratch_copy(
    fetch: Fetch, project: Paths, mnist: Path
) -> None:
    shutil.copytree(mnist, project.root / "mirrors/mnist")
    queued = Paths(project.root / ".dvc" / "tmp" / "exps" / "abc", project.root)
    fetch("mnist", queued, mirrors="mirrors/mnist")
    assert (queued.raw / MNIST[0]).read_bytes() == (mnist / MNIST[0]).read_bytes()
    assert not project.raw.exists()


def test_a_mirror_may_start_at_the_home_directory(
    fetch: Fetch, project: Paths, mnist: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(mnist.parent))
    fetch("mnist", mirrors="~/mnist")
    assert set(contents(project.raw)) == {"manifest.json", *MNIST}


def test_mirrors_are_tried_in_their_order_and_leave_no_trace_in_the_result(
    fetch: Fetch, project: Paths, mnist: Path, server: Server, tmp_path: Path
) -> None:
    near = tmp_path / "near"
    near.mkdir()
    shutil.copyfile(mnist / MNIST[0], near / MNIST[0])
    fetch("mnist", mirrors=mnist)
    without = contents(project.raw)
    fetch("mnist", mirrors=f"  {near}\n\t{server.url} {mnist}")
    assert sorted(path for path, _ in server.seen) == sorted(f"/{name}" for name in MNIST[1:])
    assert contents(project.raw) == without


@pytest.mark.parametrize("mirrors", [None, "", " \n"], ids=repr)
def test_a_variable_that_is_empty_or_not_set_names_no_mirror(mirrors: str | None, fetch: Fetch, mnist: Path) -> None:
    with pytest.raises(UserError) as caught:
        fetch("mnist", mirrors=mirrors)
    assert [line.split(": ")[0].strip() for line in str(caught.value).splitlines()[1:-1]] == [f"{NOWHERE}{MNIST[2]}"]


def test_the_next_mirror_gives_what_one_with_wrong_files_does_not(
    fetch: Fetch, project: Paths, mnist: Path, tmp_path: Path
) -> None:
    wrong = tmp_path / "wrong"
    wrong.mkdir()
    for name in MNIST:
        (wrong / name).write_bytes(b"none of the published files")
    fetch("mnist", mirrors=f"{wrong} {mnist}")
    for name in MNIST:
        assert (project.raw / name).read_bytes() == (mnist / name).read_bytes()


def test_mirrors_are_not_recorded_as_parameters(fetch: Fetch, mnist: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    logged: list[dict[str, Any]] = []
    monkeypatch.setattr("reparam.track.Run.log_params", lambda _, values: logged.append(values))
    fetch("mnist", mirrors=f"{mnist} https://example.org/?signature=secret")
    folder = dict.fromkeys(("download.folder.path", "download.folder.attributes", "download.folder.label"))
    assert logged == [{"download.source": "mnist", "download.emnist.variant": "balanced", **folder}]


def test_one_wrong_file_in_a_mirror_is_refused_and_the_right_ones_are_kept_for_the_next_run(
    fetch: Fetch, project: Paths, mnist: Path, before: dict[str, bytes]
) -> None:
    right = (mnist / MNIST[1]).read_bytes()
    (mnist / MNIST[1]).write_bytes(right[:-1])
    with pytest.raises(UserError) as caught:
        fetch("mnist", mirrors=mnist)
    assert str(caught.value) == (
        f"{MNIST[1]} ({md5(right)}): no source gives this file\n"
        f"  {mnist}/{MNIST[1]}: wrong checksum: wanted {md5(right)}, found {md5(right[:-1])}\n"
        f"  {NOWHERE}{MNIST[1]}: No such file or directory\n"
        f"{REMEDY}"
    )
    assert contents(project.raw) == before
    arrived = {f"mnist/{name}" for name in MNIST if name != MNIST[1]}
    assert set(contents(project.downloads)) == {"digits.lock", "mnist.lock", *arrived}

    (mnist / MNIST[1]).write_bytes(right)
    for name in MNIST:
        if name != MNIST[1]:
            (mnist / name).unlink()
    fetch("mnist", mirrors=mnist)
    assert set(contents(project.raw)) == {"manifest.json", *MNIST}
    assert set(contents(project.downloads)) == {"digits.lock", "mnist.lock"}


def test_mnist_comes_over_http(fetch: Fetch, project: Paths, mnist: Path, server: Server) -> None:
    fetch("mnist", mirrors=server.url)
    assert {name: content for name, content in contents(project.raw).items() if name in MNIST} == contents(mnist)
    assert sorted(server.seen) == [(f"/{name}", 0) for name in MNIST]


def test_one_file_that_a_server_does_not_have_is_named(
    fetch: Fetch, project: Paths, mnist: Path, server: Server, before: dict[str, bytes]
) -> None:
    wanted = md5((mnist / MNIST[0]).read_bytes())
    (mnist / MNIST[0]).unlink()
    with pytest.raises(UserError) as caught:
        fetch("mnist", mirrors=server.url)
    assert str(caught.value) == (
        f"{MNIST[0]} ({wanted}): no source gives this file\n"
        f"  {server.url}/{MNIST[0]}: HTTP 404 Not Found\n"
        f"  {NOWHERE}{MNIST[0]}: No such file or directory\n"
        f"{REMEDY}"
    )
    assert contents(project.raw) == before
    assert not list(project.raw.parent.glob(".partial-*"))


def test_a_server_that_cuts_is_asked_for_the_rest(
    fetch: Fetch, project: Paths, mnist: Path, server: Server, capsys: pytest.CaptureFixture[str]
) -> None:
    server.cuts = [f"/{MNIST[2]}"]
    fetch("mnist", mirrors=server.url)
    half = (mnist / MNIST[2]).stat().st_size // 2
    assert server.seen[:2] == [(f"/{MNIST[2]}", 0), (f"/{MNIST[2]}", half)]
    assert f"{MNIST[2]}: connection cut; trying again in 1 s\n" in capsys.readouterr().err
    assert (project.raw / MNIST[2]).read_bytes() == (mnist / MNIST[2]).read_bytes()
    assert contents(project.downloads) == {"mnist.lock": b""}


def test_a_server_that_cuts_again_and_again_is_given_up_and_its_half_is_kept_for_the_next_run(
    fetch: Fetch, project: Paths, mnist: Path, server: Server, before: dict[str, bytes]
) -> None:
    server.cuts = [f"/{MNIST[2]}"] * web.TRIES
    whole = (mnist / MNIST[2]).read_bytes()
    half = len(whole) // 2
    with pytest.raises(UserError) as caught:
        fetch("mnist", mirrors=server.url)
    assert str(caught.value) == (
        f"{MNIST[2]} ({md5(whole)}): no source gives this file\n"
        f"  {server.url}/{MNIST[2]}: connection cut after 5 tries\n"
        f"  {NOWHERE}{MNIST[2]}: No such file or directory\n"
        f"{REMEDY}"
    )
    assert contents(project.raw) == before
    assert contents(project.downloads / "mnist") == {f".partial-{MNIST[2]}": whole[:half]}

    server.seen.clear()
    fetch("mnist", mirrors=server.url)
    assert server.seen[0] == (f"/{MNIST[2]}", half)
    assert {name: content for name, content in contents(project.raw).items() if name in MNIST} == contents(mnist)
    assert set(contents(project.downloads)) == {"digits.lock", "mnist.lock"}


# The digits, whose checksum is in the arguments: torchvision would take seconds to import.
FETCH = """
import sys
from dataclasses import replace
from reparam.config import load_config
from reparam.data.sources.registry import SOURCES, _fetch_files
from reparam.data.sources.transport import RemoteFile
from reparam.paths import Paths
from reparam.download import stage as download

file = RemoteFile("digits.csv.gz", sys.argv[1], ())
SOURCES["digits"] = replace(SOURCES["digits"], fetch=_fetch_files(lambda: [file]))
download.run(load_config(Paths.here().params), Paths.here())
"""


def test_a_killed_download_goes_on_where_it_stopped(
    configure: Configure, project: Paths, server: Server, before: dict[str, bytes]
) -> None:
    body = noise(0, 300_000).tobytes()
    (server.directory / "digits.csv.gz").write_bytes(body)
    server.cuts = ["/digits.csv.gz"]
    server.held.clear()
    configure("digits", mirrors=server.url)
    command = [sys.executable, "-c", FETCH, md5(body)]
    environment = {**os.environ, "PYTHONPATH": str(SOURCE)}
    partial = project.downloads / "digits/.partial-digits.csv.gz"
    with subprocess.Popen(command, env=environment) as process:
        while process.poll() is None and not (partial.exists() and partial.stat().st_size > BLOCK):
            threading.Event().wait(0.005)
        process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    server.held.set()
    received = partial.stat().st_size
    assert contents(project.raw) == before
    assert contents(project.downloads) == {"digits.lock": b"", "digits/.partial-digits.csv.gz": body[:received]}
    assert (project.raw.parent / ".partial-raw").is_dir()  # which the killed process could not remove

    subprocess.run(command, env=environment, check=True)
    assert server.seen == [("/digits.csv.gz", 0), ("/digits.csv.gz", received)]
    assert (project.raw / "digits.csv.gz").read_bytes() == body
    assert contents(project.downloads) == {"digits.lock": b""}
    assert sorted(path.name for path in project.raw.parent.iterdir()) == [".downloads", "raw"]


def test_a_run_that_waited_for_another_one_of_the_same_source_is_not_disturbed_by_it(
    fetch: Fetch, project: Paths, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wait_for_the_other(lock: str) -> AbstractContextManager[None]:
        shutil.rmtree(lock.removesuffix(".lock"), ignore_errors=True)  # as the other does when it is done
        return nullcontext()

    monkeypatch.setattr(download, "FileLock", wait_for_the_other)
    draw(project.root / "photos/a.png", noise(0))
    fetch("folder", path=str(pack(project.root / "photos", project.root / "photos.zip")))
    assert set(contents(project.raw)) == {"manifest.json", "photos.zip"}


# ---- a folder of images


@pytest.fixture
def photos(project: Paths) -> Path:
    """A folder with what a folder may hold."""
    folder = project.root / "my photos"
    for seed, name in enumerate(("cats/a b.png", "cats/été.png", "dogs/大 #1%20.png", "dogs/deep/er.png")):
        draw(folder / name, noise(seed))
    for name in ("cats/.hidden.png", ".git/x.png", "__MACOSX/cats/a b.png"):
        draw(folder / name, noise(9))
    (folder / "notes.txt").write_text("not an image")
    draw(project.root / "elsewhere/secret.png", noise(9))
    (folder / "cats/link.png").symlink_to(project.root / "elsewhere/secret.png")
    (folder / "birds").symlink_to(project.root / "elsewhere")
    return folder


IMAGES = ["cats/a b.png", "cats/été.png", "dogs/deep/er.png", "dogs/大 #1%20.png"]


def test_the_images_of_a_folder_are_copied_and_nothing_else(fetch: Fetch, project: Paths, photos: Path) -> None:
    fetch("folder", path="my photos")
    copied = {f"images/{name}": (photos / name).read_bytes() for name in IMAGES}
    manifest = {
        "source": "folder",
        "options": {},
        "title": "A folder of images",
        "licence": "not stated",
        "files": {
            name: {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
            for name, content in copied.items()
        },
    }
    found = contents(project.raw)
    assert json.loads(found.pop("manifest.json")) == resealed(manifest | {"checksum": ""})
    assert found == copied
    assert not any(path.is_symlink() for path in project.raw.rglob("*"))
    assert contents(project.downloads) == {"folder.lock": b""}


def test_a_table_of_attributes_is_copied_and_a_change_in_it_changes_the_data(
    fetch: Fetch, project: Paths, photos: Path
) -> None:
    table = photos / "tables/attributes.csv"
    table.parent.mkdir()
    rows = [f"{name},{number}\n" for number, name in enumerate(IMAGES)]
    table.write_text("image,mood\n" + "".join(rows))
    fetch("folder", path="my photos", attributes="tables/attributes.csv", label="mood")
    first, digest = contents(project.raw), dvc_hash(project.raw)
    manifest = json.loads(first["manifest.json"])
    assert set(first) == {"manifest.json", "images/tables/attributes.csv", *(f"images/{name}" for name in IMAGES)}
    assert first["images/tables/attributes.csv"] == table.read_bytes()
    assert manifest["options"] == {"attributes": "tables/attributes.csv", "label": "mood"}
    assert manifest["files"]["images/tables/attributes.csv"] == {"sha256": sha256(table), "bytes": table.stat().st_size}
    fetch("folder", path=str(photos), attributes="tables/attributes.csv", label="mood")
    assert contents(project.raw) == first
    table.write_text("image,mood\n" + "".join(rows[::-1]))
    fetch("folder", path="my photos", attributes="tables/attributes.csv", label="mood")
    assert dvc_hash(project.raw) != digest


def test_a_table_that_does_not_fit_is_refused_before_anything_is_copied(
    fetch: Fetch, project: Paths, photos: Path, before: dict[str, bytes]
) -> None:
    (photos / "attributes.csv").write_text(f"image,mood\n{IMAGES[0]},1\n")
    with pytest.raises(UserError) as caught:
        fetch("folder", path="my photos", attributes="attributes.csv")
    assert str(caught.value) == (
        f"{photos}/attributes.csv: wanted a row for each image, found none for {IMAGES[1]!r} and 2 more; add it, with "
        "this path, or move the image away"
    )
    assert contents(project.raw) == before
    assert contents(project.downloads / "folder") == {}


def test_two_runs_of_a_folder_give_the_same_bytes_wherever_it_is(fetch: Fetch, project: Paths, photos: Path) -> None:
    fetch("folder", path="my photos")
    first = contents(project.raw)
    photos.rename(project.root / "moved")
    fetch("folder", path=f"{project.root}/moved")
    assert contents(project.raw) == first


@pytest.mark.parametrize("name", ["my photos.zip", "my photos.tar", "my photos.tar.gz"])
def test_an_archive_is_copied_as_it_is(fetch: Fetch, project: Paths, photos: Path, name: str) -> None:
    archive = pack(photos, project.root / name)
    fetch("folder", path=name)
    found = contents(project.raw)
    assert json.loads(found.pop("manifest.json"))["files"] == {
        name: {"sha256": sha256(archive), "bytes": archive.stat().st_size}
    }
    assert found == {name: archive.read_bytes()}


def test_a_relative_folder_starts_at_the_repository_even_in_a_scratch_copy(
    fetch: Fetch, project: Paths, photos: Path
) -> None:
    queued = Paths(project.root / ".dvc" / "tmp" / "exps" / "abc", project.root)
    fetch("folder", queued, path="my photos")
    assert set(contents(queued.raw)) == {"manifest.json", *(f"images/{name}" for name in IMAGES)}
    assert not project.raw.exists()


def test_files_of_an_earlier_source_do_not_survive(fetch: Fetch, project: Paths, photos: Path, mnist: Path) -> None:
    archive = pack(photos, project.root / "photos.zip")
    for changes, expected in (
        ({"source": "folder", "path": str(photos)}, {f"images/{name}" for name in IMAGES}),
        ({"source": "folder", "path": str(archive)}, {"photos.zip"}),
        ({"source": "mnist", "mirrors": mnist}, set(MNIST)),
        ({"source": "digits"}, {"digits.csv.gz"}),
    ):
        fetch(**changes)
        assert set(contents(project.raw)) == {"manifest.json", *expected}


def test_what_a_killed_copy_of_another_folder_left_does_not_survive(fetch: Fetch, project: Paths, photos: Path) -> None:
    draw(project.downloads / "folder/images/birds/c.png", noise(8))
    draw(project.downloads / "folder/.partial-images/birds/d.png", noise(8))
    (project.downloads / "folder/old.zip").write_bytes(b"PK")
    fetch("folder", path=str(photos))
    assert set(contents(project.raw)) == {"manifest.json", *(f"images/{name}" for name in IMAGES)}


# ---- a full disk


def run_command(command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> str:
    """Run a command that fails, and return what it says."""
    monkeypatch.setattr(sys, "argv", ["reparam", command])
    with pytest.raises(SystemExit) as caught:
        cli.main()
    assert caught.value.code == 1
    return capsys.readouterr().err


def fill_the_disk(place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let copies to paths that hold `place` write half, and fail as they do on a full disk; it has no hard links."""
    copyfile = shutil.copyfile

    def refuse(*_: object) -> None:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    def copy_half(source: Path, target: Path) -> Path:
        if place not in str(target):
            return copyfile(source, target)
        Path(target).write_bytes(Path(source).read_bytes()[:10])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(source), None, str(target))

    monkeypatch.setattr(os, "link", refuse)
    monkeypatch.setattr(shutil, "copyfile", copy_half)


def test_a_disk_that_is_full_for_the_raw_data_is_named_and_what_arrived_is_kept(
    configure: Configure,
    project: Paths,
    mnist: Path,
    before: dict[str, bytes],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    configure("mnist", mirrors=mnist)
    fill_the_disk("data/.partial-raw/t10k-images", monkeypatch)
    message = run_command("download", monkeypatch, capsys).splitlines()[-1]
    target = project.raw.with_name(".partial-raw") / MNIST[0]
    assert message == f"error: {target}: No space left on device"
    assert contents(project.raw) == before
    assert not list(project.raw.parent.glob(".partial-*"))
    assert contents(project.downloads / "mnist") == contents(mnist)


def test_a_disk_that_is_full_for_a_file_on_its_way_is_named_and_the_file_removed(
    configure: Configure,
    project: Paths,
    mnist: Path,
    before: dict[str, bytes],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    configure("mnist", mirrors=mnist)

    def fail(*arguments: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Meter, "advance", fail)
    message = run_command("download", monkeypatch, capsys).splitlines()[-1]
    partial = project.downloads / f"mnist/.partial-{MNIST[2]}"
    assert message == f"error: {partial}: No space left on device"
    assert contents(project.raw) == before
    assert contents(project.downloads) == {"digits.lock": b"", "mnist.lock": b"", "mnist": b""}


@pytest.mark.parametrize("form", ["a tree", "an archive"])
def test_a_disk_that_is_full_for_a_folder_is_named_and_nothing_half_written_is_left(
    form: str,
    configure: Configure,
    project: Paths,
    photos: Path,
    before: dict[str, bytes],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    archive = pack(photos, project.root / "photos.zip")
    configure("folder", path=str(photos if form == "a tree" else archive))
    half = ".partial-images/dogs/deep/er.png" if form == "a tree" else ".partial-photos.zip"
    fill_the_disk(half, monkeypatch)
    partial = project.downloads / "folder" / half
    assert run_command("download", monkeypatch, capsys) == (f"error: {partial}: No space left on device\n")
    assert contents(project.raw) == before
    assert contents(project.downloads) == {"digits.lock": b"", "folder.lock": b"", "folder": b""}
