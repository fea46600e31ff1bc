import hashlib
import os
import random
import re
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import requests

from reparam.data.sources import transport, web
from reparam.data.sources.part import BLOCK
from reparam.data.sources.transport import RemoteFile, fetch
from reparam.errors import UserError

BODY = random.Random(0).randbytes(300_000)  # several blocks
HALF = len(BODY) // 2
MD5 = f"md5:{hashlib.md5(BODY).hexdigest()}"
OTHER = bytes(len(BODY))
OTHER_MD5 = f"md5:{hashlib.md5(OTHER).hexdigest()}"
IMAGES = RemoteFile("images.gz", MD5, ())
REMEDY = "set REPARAM_MIRRORS to a directory or server that holds it"
NO_ADDRESS = "wanted http:// or https://, found another scheme in it, a redirect or a proxy"
MISMATCH = f"wrong checksum: wanted {MD5}, found {OTHER_MD5}"


# ---- a server that misbehaves as it is asked to


class Handler(BaseHTTPRequestHandler):
    server: "Server"

    def do_GET(self) -> None:
        wanted = self.headers["Range"]
        self.server.seen.append(self.path + (f" {wanted}" if wanted else ""))
        self.server.headers.append(dict(self.headers))
        answer = self.server.answers.pop(0) if self.server.answers else serve
        answer(self)

    def log_message(self, *arguments: object) -> None:
        pass

    def head(self, status: int, **headers: object) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()

    def offset(self) -> int:
        found = re.fullmatch(r"bytes=(\d+)-", self.headers["Range"] or "")
        return int(found[1]) if found and self.server.resumes else 0

    def start(self, missing: int = 0) -> bytes:
        """Send the head of a good answer, and return the body that belongs to it."""
        body, start = self.server.files[self.path], self.offset()
        if start:
            self.head(206, Content_Range=f"bytes {start}-{len(body) - 1}/{len(body)}", Content_Length=len(body) - start)
        else:
            self.head(200, Content_Length=len(body) + missing)
        return body[start:]


Answer = Callable[[Handler], Any]


class Server(ThreadingHTTPServer):
    """Serves `files`; the first requests get `answers` instead; `seen` has paths and ranges of all."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files = {"/images.gz": BODY}
        self.answers: list[Answer] = []
        self.seen: list[str] = []
        self.headers: list[dict[str, str]] = []
        self.resumes = True
        self.stopped = threading.Event()
        self.url = f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, *arguments: object) -> None:
        pass  # of clients that went away


def serve(handler: Handler) -> None:
    body = handler.server.files.get(handler.path)
    if body is None:
        handler.head(404)
    elif handler.offset() >= max(len(body), 1):
        handler.head(416, Content_Range=f"bytes */{len(body)}")
    else:
        handler.wfile.write(handler.start())


def cut(handler: Handler) -> None:
    body = handler.start()
    handler.wfile.write(body[: len(body) // 2])


def reset(handler: Handler) -> None:
    handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    handler.connection.close()


def hang_up(handler: Handler) -> None:
    handler.wfile.close()


def stall(handler: Handler) -> None:
    cut(handler)
    handler.wfile.flush()
    handler.server.stopped.wait(10)


def trickle(handler: Handler) -> None:
    for byte in handler.start()[:100]:
        try:
            handler.wfile.write(bytes([byte]))
            handler.wfile.flush()
        except OSError:  # the client has given up
            return
        handler.server.stopped.wait(0.02)


def stay_silent(handler: Handler) -> None:
    handler.server.stopped.wait(10)


def corrupt(handler: Handler) -> None:
    handler.wfile.write(bytes(len(handler.start())))


def corrupt_and_cut(handler: Handler) -> None:
    handler.wfile.write(bytes(len(handler.start()) // 2))


def promise_too_much(handler: Handler) -> None:
    handler.wfile.write(handler.start(missing=1000))


def promise_too_little(handler: Handler) -> None:
    handler.wfile.write(handler.start(missing=-1000))


def send_another_range(handler: Handler) -> None:
    handler.head(206, Content_Range=f"bytes 7-{len(BODY) - 1}/{len(BODY)}", Content_Length=len(BODY) - 7)
    handler.wfile.write(BODY[7:])


def send_a_range_unasked(handler: Handler) -> None:
    handler.head(206, Content_Range=f"bytes 0-6/{len(BODY)}", Content_Length=7)
    handler.wfile.write(BODY[:7])


def call_it_encoded(handler: Handler) -> None:
    handler.head(200, Content_Length=len(BODY), Content_Encoding="gzip")
    handler.wfile.write(BODY)


def send_chunks(handler: Handler) -> None:
    handler.protocol_version = "HTTP/1.1"
    handler.head(200, Transfer_Encoding="chunked", Connection="close")
    for part in (BODY[:HALF], BODY[HALF:], b""):
        handler.wfile.write(b"%x\r\n%b\r\n" % (len(part), part))


def send_half_of_the_chunks(handler: Handler) -> None:
    handler.protocol_version = "HTTP/1.1"
    handler.head(200, Transfer_Encoding="chunked", Connection="close")
    handler.wfile.write(b"%x\r\n%b\r\n" % (HALF, BODY[:HALF]))


def status(code: int, **headers: object) -> Answer:
    return lambda handler: handler.head(code, **headers)


def redirect(location: str) -> Answer:
    return status(302, Location=location, Content_Length=0)


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as server:
        # Looking for the end of the test every 5 ms, not every 500.
        thread = threading.Thread(target=server.serve_forever, args=(0.005,))
        thread.start()
        yield server
        server.stopped.set()
        server.shutdown()
        thread.join()


@pytest.fixture(autouse=True)
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The waits between tries, which take no time here; nor is any proxy between the test and its server."""
    taken: list[float] = []
    monkeypatch.setattr("reparam.data.sources.web.time.sleep", taken.append)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    return taken


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Servers that stall are given up soon."""
    monkeypatch.setattr(web, "READ_SECONDS", 0.2)


def names(directory: Path) -> list[str]:
    return sorted(path.relative_to(directory).as_posix() for path in directory.rglob("*"))


def arrived(directory: Path) -> bool:
    """Whether the whole file is there, under its name, and nothing else."""
    return names(directory) == ["images.gz"] and (directory / "images.gz").read_bytes() == BODY


def refusals(file: RemoteFile, directory: Path, mirrors: list[str]) -> list[str]:
    """What is said of each source of a file that no source gives."""
    with pytest.raises(UserError) as caught:
        fetch(file, directory, mirrors)
    first, *lines, last = str(caught.value).splitlines()
    assert first == f"{file.name} ({file.checksum}): no source gives this file"
    assert last == REMEDY
    return [line.removeprefix("  ") for line in lines]


# ---- what goes well


def test_a_published_file_arrives_whole(server: Server, tmp_path: Path, waits: list[float]) -> None:
    fetch(RemoteFile("images.gz", MD5, (f"{server.url}/images.gz",)), tmp_path, [])
    assert arrived(tmp_path)
    assert (server.seen, waits) == (["/images.gz"], [])


def test_sha256_is_understood_too(server: Server, tmp_path: Path) -> None:
    fetch(RemoteFile("images.gz", f"sha256:{hashlib.sha256(BODY).hexdigest()}", ()), tmp_path, [server.url])
    assert arrived(tmp_path)


def test_a_file_that_is_there_and_right_is_not_transferred_again(server: Server, tmp_path: Path) -> None:
    (tmp_path / "images.gz").write_bytes(BODY)
    fetch(IMAGES, tmp_path, [server.url])
    assert (arrived(tmp_path), server.seen) == (True, [])


def test_a_file_that_is_there_but_wrong_is_replaced(server: Server, tmp_path: Path) -> None:
    (tmp_path / "images.gz").write_bytes(BODY[:-1])
    fetch(IMAGES, tmp_path, [server.url])
    assert arrived(tmp_path)


def test_mirrors_come_first_in_their_order_then_the_published_addresses(server: Server, tmp_path: Path) -> None:
    server.files["/p/images.gz"] = BODY
    file = RemoteFile("images.gz", MD5, (f"{server.url}/o/images.gz", f"{server.url}/p/images.gz"))
    fetch(file, tmp_path, [f"{server.url}/a", f"{server.url}/b/"])
    assert arrived(tmp_path)
    assert server.seen == ["/a/images.gz", "/b/images.gz", "/o/images.gz", "/p/images.gz"]


def test_a_mirror_may_keep_the_folders_of_a_name_or_be_flat(server: Server, tmp_path: Path) -> None:
    server.files = {"/flat/50%25%20%231%3F.gz": BODY}
    fetch(RemoteFile("Größe/50% #1?.gz", MD5, ()), tmp_path, [f"{server.url}/deep", f"{server.url}/flat"])
    assert server.seen == [
        "/deep/Gr%C3%B6%C3%9Fe/50%25%20%231%3F.gz",
        "/deep/50%25%20%231%3F.gz",
        "/flat/Gr%C3%B6%C3%9Fe/50%25%20%231%3F.gz",
        "/flat/50%25%20%231%3F.gz",
    ]
    assert names(tmp_path) == ["Größe", "Größe/50% #1?.gz"]
    assert (tmp_path / "Größe/50% #1?.gz").read_bytes() == BODY


def test_an_empty_file_is_a_file(server: Server, tmp_path: Path) -> None:
    server.files["/empty"] = b""
    fetch(RemoteFile("empty", f"md5:{hashlib.md5(b'').hexdigest()}", ()), tmp_path, [server.url])
    assert (tmp_path / "empty").read_bytes() == b""


def test_redirects_are_followed(server: Server, tmp_path: Path) -> None:
    server.answers = [redirect("/images.gz")]
    fetch(IMAGES, tmp_path, [f"{server.url}/old"])
    assert (arrived(tmp_path), server.seen) == (True, ["/old/images.gz", "/images.gz"])


@pytest.mark.parametrize("answer", [send_chunks, call_it_encoded])
def test_the_bytes_are_kept_as_published(answer: Answer, server: Server, tmp_path: Path) -> None:
    server.answers = [answer]
    fetch(IMAGES, tmp_path, [server.url])
    assert arrived(tmp_path)
    assert server.headers[0]["Accept-Encoding"] == "identity"


def test_connecting_and_reading_have_their_time_limits(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    limits, get = [], requests.get

    def note(url: str, **options: Any) -> requests.Response:
        limits.append(options["timeout"])
        return get(url, **options)

    monkeypatch.setattr(requests, "get", note)
    fetch(IMAGES, tmp_path, [server.url])
    assert limits == [(10, 30)]


def test_a_file_is_on_disk_before_it_takes_its_name(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events, fsync, replace = [], os.fsync, Path.replace

    def note_fsync(descriptor: int) -> None:
        events.append("fsync")
        fsync(descriptor)

    def note_replace(path: Path, target: Path) -> Path:
        events.append(f"{path.name} -> {target.name}")
        return replace(path, target)

    monkeypatch.setattr(os, "fsync", note_fsync)
    monkeypatch.setattr(Path, "replace", note_replace)
    fetch(IMAGES, tmp_path, [server.url])
    assert events[-3:] == ["fsync", ".partial-images.gz -> images.gz", "fsync"]


# ---- directories as mirrors


@pytest.mark.parametrize("spell", ["plain", "quoted", "unquoted", "localhost"])
def test_a_local_mirror_is_copied(spell: str, tmp_path: Path) -> None:
    mirror = tmp_path / "a mirror/für 100%25 大"
    mirror.mkdir(parents=True)
    (mirror / "images.gz").write_bytes(BODY)
    spelled = {
        "plain": str(mirror),
        "quoted": mirror.as_uri(),
        "unquoted": f"file://{mirror}".replace("%", "%25"),
        "localhost": mirror.as_uri().replace("file://", "FILE://localhost"),
    }
    fetch(IMAGES, tmp_path / "out", [spelled[spell]])
    assert arrived(tmp_path / "out")
    assert names(mirror) == ["images.gz"]


def test_a_directory_of_downloaded_files_needs_no_network(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(requests, "get")
    (tmp_path / "mirror").mkdir()
    (tmp_path / "mirror/images.gz").write_bytes(BODY)
    fetch(RemoteFile("raw/images.gz", MD5, (f"{server.url}/images.gz",)), tmp_path / "out", [str(tmp_path / "mirror")])
    assert arrived(tmp_path / "out/raw")


def test_a_local_mirror_says_what_is_wrong_with_it(tmp_path: Path) -> None:
    for name in ("folder/images.gz", "wrong", "short"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "wrong/images.gz").write_bytes(OTHER)
    (tmp_path / "short/images.gz").write_bytes(BODY[:-1])
    short = f"md5:{hashlib.md5(BODY[:-1]).hexdigest()}"
    mirrors = [f"{tmp_path}/{name}" for name in ("none", "folder", "wrong", "short")]
    assert refusals(IMAGES, tmp_path / "out", mirrors) == [
        f"{tmp_path}/none/images.gz: No such file or directory",
        f"{tmp_path}/folder/images.gz: wanted a regular file, found a directory, device or pipe",
        f"{tmp_path}/wrong/images.gz: {MISMATCH}",
        f"{tmp_path}/short/images.gz: wrong checksum: wanted {MD5}, found {short}",
    ]
    assert names(tmp_path / "out") == []


def test_a_local_mirror_that_cannot_be_read_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("bad", "good"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "images.gz").write_bytes(BODY)
    open_file = Path.open

    def refuse(path: Path, *arguments: Any, **options: Any) -> Any:
        if path.parent.name == "bad":
            raise PermissionError(13, "Permission denied", str(path))
        return open_file(path, *arguments, **options)

    monkeypatch.setattr(Path, "open", refuse)
    fetch(IMAGES, tmp_path / "out", [f"{tmp_path}/bad", f"{tmp_path}/good"])
    assert arrived(tmp_path / "out")
    assert refusals(IMAGES, tmp_path / "other", [f"{tmp_path}/bad"]) == [f"{tmp_path}/bad/images.gz: Permission denied"]


# ---- trouble that is survived


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("answer", [cut, stall])
def test_an_interrupted_download_goes_on_where_it_stopped(
    answer: Answer, server: Server, tmp_path: Path, waits: list[float]
) -> None:
    server.answers = [answer, answer]
    fetch(IMAGES, tmp_path, [server.url])
    assert arrived(tmp_path)
    first, *later = server.seen
    starts = [int(re.fullmatch(r"/images\.gz bytes=(\d+)-", line)[1]) for line in later]  # type: ignore[index]
    assert first == "/images.gz"
    if answer is cut:
        assert starts == [HALF, HALF + HALF // 2]
    else:  # the block that stalled is lost
        assert HALF - BLOCK < starts[0] <= HALF < starts[1] < len(BODY)
    assert waits == [1, 1]  # each try brought something


@pytest.mark.parametrize("answer", [cut, send_half_of_the_chunks])
def test_a_server_that_cannot_resume_sends_everything_again(answer: Answer, server: Server, tmp_path: Path) -> None:
    server.resumes = False
    server.answers = [answer]
    fetch(IMAGES, tmp_path, [server.url])
    assert arrived(tmp_path)
    assert server.seen == ["/images.gz", f"/images.gz bytes={HALF}-"]


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize(
    "answer", [hang_up, reset, stay_silent, status(503), status(500), status(429)], ids=lambda answer: answer.__name__
)
def test_a_passing_failure_is_tried_again(answer: Answer, server: Server, tmp_path: Path, waits: list[float]) -> None:
    server.answers = [answer, answer, answer]
    fetch(IMAGES, tmp_path, [server.url])
    assert arrived(tmp_path)
    assert (server.seen, waits) == (["/images.gz"] * 4, [1, 2, 4])


def test_the_server_says_how_long_to_wait(server: Server, tmp_path: Path, waits: list[float]) -> None:
    date = formatdate(time.time() + 30, usegmt=True)
    server.answers = [status(503, Retry_After=after) for after in ("7", "0", date, "soon")]
    fetch(IMAGES, tmp_path, [server.url])
    assert arrived(tmp_path)
    assert waits == [7, 2, pytest.approx(30, abs=3), 8]


@pytest.mark.parametrize("after", ["9" * 5_000, "Fri, 31 Dec 99999 23:59:59 GMT"])
def test_a_time_that_cannot_be_counted_is_no_time_to_wait(
    after: str, server: Server, tmp_path: Path, waits: list[float]
) -> None:
    server.answers = [status(503, Retry_After=after)]
    fetch(IMAGES, tmp_path, [server.url])
    assert arrived(tmp_path)
    assert waits == [1]


def test_what_a_killed_process_received_is_not_received_again(server: Server, tmp_path: Path) -> None:
    server.answers = [stall]
    code = (
        "import sys; from pathlib import Path; from reparam.data.sources.transport import *\n"
        "fetch(RemoteFile('images.gz', sys.argv[1], ()), Path(sys.argv[2]), [sys.argv[3]])"
    )
    source = Path(transport.__file__).parents[3]
    command = [sys.executable, "-c", code, MD5, str(tmp_path), server.url]
    partial = tmp_path / ".partial-images.gz"
    with subprocess.Popen(command, env={**os.environ, "PYTHONPATH": str(source)}) as process:
        deadline = time.monotonic() + 20
        while not (partial.exists() and partial.stat().st_size > HALF // 2) and time.monotonic() < deadline:
            server.stopped.wait(0.005)
        process.send_signal(signal.SIGKILL)
    received = partial.stat().st_size
    assert names(tmp_path) == [".partial-images.gz"]
    assert BODY.startswith(partial.read_bytes())
    fetch(IMAGES, tmp_path, [server.url])
    assert arrived(tmp_path)
    assert server.seen == ["/images.gz", f"/images.gz bytes={received}-"]


def test_a_process_killed_before_the_renaming_costs_no_transfer(server: Server, tmp_path: Path) -> None:
    (tmp_path / ".partial-images.gz").write_bytes(BODY)
    fetch(IMAGES, tmp_path, [server.url])
    assert arrived(tmp_path)
    assert server.seen == [f"/images.gz bytes={len(BODY)}-"]  # answered with 416


@pytest.mark.parametrize("size", [1000, len(BODY), len(BODY) + 1000])
def test_a_part_of_another_file_is_thrown_away(size: int, server: Server, tmp_path: Path, waits: list[float]) -> None:
    (tmp_path / ".partial-images.gz").write_bytes(bytes(size))
    fetch(IMAGES, tmp_path, [server.url])
    assert arrived(tmp_path)
    assert server.seen == [f"/images.gz bytes={size}-", "/images.gz"]
    assert waits == []


def test_a_server_that_sends_another_range_is_asked_for_everything(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server.answers = [cut, send_another_range]
    fetch(IMAGES, tmp_path, [server.url])
    assert arrived(tmp_path)
    assert "images.gz: sent another range than asked for; trying again in 2 s\n" in capsys.readouterr().err
    assert server.seen == ["/images.gz", f"/images.gz bytes={HALF}-", "/images.gz"]


def test_one_mirror_finishes_what_another_began(server: Server, tmp_path: Path) -> None:
    server.files |= {"/a/images.gz": BODY, "/b/images.gz": BODY}
    server.answers = [cut, status(404)]
    fetch(IMAGES, tmp_path, [f"{server.url}/a", f"{server.url}/b"])
    assert arrived(tmp_path)
    assert server.seen == ["/a/images.gz", f"/a/images.gz bytes={HALF}-", f"/b/images.gz bytes={HALF}-"]


def test_a_wrong_promise_of_more_bytes_is_seen_through(server: Server, tmp_path: Path) -> None:
    server.answers = [promise_too_much]
    fetch(IMAGES, tmp_path, [server.url])
    assert arrived(tmp_path)
    assert server.seen == ["/images.gz", f"/images.gz bytes={len(BODY)}-"]


@pytest.mark.parametrize("answer", [corrupt, promise_too_little, status(404), status(403)])
def test_the_next_source_helps_at_once(answer: Answer, server: Server, tmp_path: Path, waits: list[float]) -> None:
    server.files |= {"/a/images.gz": BODY, "/b/images.gz": BODY}
    server.answers = [answer]
    fetch(IMAGES, tmp_path, [f"{server.url}/a", f"{server.url}/b"])
    assert arrived(tmp_path)
    assert (server.seen, waits) == (["/a/images.gz", "/b/images.gz"], [])


# ---- trouble that is refused


@pytest.mark.usefixtures("impatient")
def test_every_source_is_listed_with_what_went_wrong(server: Server, tmp_path: Path, waits: list[float]) -> None:
    server.answers = [status(404), status(403), corrupt, *[status(503)] * 5, *[stay_silent] * 5, *[hang_up] * 5]
    server.files |= {f"/{name}/images.gz": BODY for name in "abcdef"}
    file = RemoteFile("images.gz", MD5, (f"{server.url}/f/images.gz",))
    mirrors = [*(f"{server.url}/{name}" for name in "abcde"), str(tmp_path / "none"), "ftp://host/x", "file://x/y"]
    assert refusals(file, tmp_path, mirrors) == [
        f"{server.url}/a/images.gz: HTTP 404 Not Found",
        f"{server.url}/b/images.gz: HTTP 403 Forbidden",
        f"{server.url}/c/images.gz: {MISMATCH}",
        f"{server.url}/d/images.gz: HTTP 503 Service Unavailable after 5 tries",
        f"{server.url}/e/images.gz: timed out after 5 tries",
        f"{tmp_path}/none/images.gz: No such file or directory",
        "ftp://host/x/images.gz: unsupported scheme 'ftp'; wanted https, http, file or a directory",
        "file://x/y/images.gz: a file:// address names no host; write file:///path",
        f"{server.url}/f/images.gz: connection cut after 5 tries",
    ]
    assert names(tmp_path) == []
    assert waits == [1, 2, 4, 8] * 3


def test_without_any_source_the_message_says_so(tmp_path: Path) -> None:
    assert refusals(IMAGES, tmp_path, []) == ["no mirror is set, and no address is published"]


def test_a_server_that_always_cuts_is_survived_while_something_arrives(server: Server, tmp_path: Path) -> None:
    server.answers = [cut] * 6  # more than there are tries
    fetch(IMAGES, tmp_path, [server.url])
    assert arrived(tmp_path)


@pytest.mark.usefixtures("impatient")
def test_a_trickle_is_given_up(server: Server, tmp_path: Path) -> None:
    server.answers = [trickle] * 5
    assert refusals(IMAGES, tmp_path, [server.url]) == [
        f"{server.url}/images.gz: slower than {web.LEAST_RATE} bytes/s after 5 tries"
    ]


def test_a_download_that_never_ends_keeps_its_part_for_the_next_time(server: Server, tmp_path: Path) -> None:
    server.answers = [cut, *[hang_up] * 5]
    assert refusals(IMAGES, tmp_path, [server.url]) == [f"{server.url}/images.gz: connection cut after 5 tries"]
    received = (tmp_path / ".partial-images.gz").read_bytes()
    assert names(tmp_path) == [".partial-images.gz"]
    assert len(received) == HALF
    assert BODY.startswith(received)
    fetch(IMAGES, tmp_path, [server.url])
    assert arrived(tmp_path)


@pytest.mark.parametrize("file", [b"", BODY[:-1]])
def test_a_wrong_file_is_not_given_the_name(file: bytes, server: Server, tmp_path: Path) -> None:
    server.files["/images.gz"] = file
    found = f"md5:{hashlib.md5(file).hexdigest()}"
    assert refusals(IMAGES, tmp_path, [server.url]) == [
        f"{server.url}/images.gz: wrong checksum: wanted {MD5}, found {found}"
    ]
    assert (names(tmp_path), server.seen) == ([], ["/images.gz"])


def test_a_server_that_cuts_and_corrupts_is_given_up(server: Server, tmp_path: Path) -> None:
    server.answers = [corrupt_and_cut, corrupt] * 50
    assert refusals(IMAGES, tmp_path, [server.url]) == [f"{server.url}/images.gz: {MISMATCH}"]
    # The second transfer starts from zero and is the last.
    assert server.seen == ["/images.gz", f"/images.gz bytes={HALF}-"] * 2
    assert names(tmp_path) == []


def test_a_long_wait_is_refused(server: Server, tmp_path: Path, waits: list[float]) -> None:
    server.answers = [status(503, Retry_After=3600)]
    assert refusals(IMAGES, tmp_path, [server.url]) == [
        f"{server.url}/images.gz: HTTP 503 Service Unavailable, and asks to wait 3600 s"
    ]
    assert waits == []


def test_what_cannot_be_an_answer_is_refused_at_once(server: Server, tmp_path: Path, waits: list[float]) -> None:
    server.answers = [redirect("/images.gz")] * 31 + [send_a_range_unasked]
    secure = server.url.replace("http:", "https:")
    lines = refusals(IMAGES, tmp_path, [server.url, server.url, "http://[::1", secure])
    assert lines[:-1] == [
        f"{server.url}/images.gz: redirects without end",
        f"{server.url}/images.gz: HTTP 206 Partial Content",
        f"http://[::1/images.gz: {NO_ADDRESS}",
    ]
    assert lines[-1].startswith(f"{secure}/images.gz: [SSL")
    assert (names(tmp_path), waits) == ([], [])


def test_a_port_where_nobody_listens_is_tried_again(tmp_path: Path, waits: list[float]) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # and does not listen
        url = f"http://127.0.0.1:{closed.getsockname()[1]}"
        assert refusals(IMAGES, tmp_path, [url]) == [f"{url}/images.gz: Connection refused after 5 tries"]
    assert waits == [1, 2, 4, 8]


@pytest.mark.parametrize(
    "mirror",
    [
        "http://ann:secret@{host}/x",
        "http://{host}/x?sig=secret",
        "http://ann:secret@{host}/x?sig=secret@",
        "http://ann:sec/secret@{host}/x",
        "http://ann:sec?secret@{host}/x",
        "ftp://ann:secret@{host}/x",
    ],
)
def test_credentials_are_not_printed(
    mirror: str, server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server.answers = [status(503)]  # so that there is something to say while it goes on
    lines = refusals(IMAGES, tmp_path, [mirror.format(host=f"127.0.0.1:{server.server_port}")])
    assert lines[0].split("://")[1].startswith(("***@", "127.0.0.1"))
    assert "sec" not in lines[0] + capsys.readouterr().err


def test_credentials_are_used(server: Server, tmp_path: Path) -> None:
    server.files = {"/x/images.gz?sig=secret": BODY}
    fetch(IMAGES, tmp_path, [f"http://ann:secret@127.0.0.1:{server.server_port}/x?sig=secret"])
    assert arrived(tmp_path)
    assert server.headers[0]["Authorization"] == "Basic YW5uOnNlY3JldA=="


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full, a disk that is always full")
@pytest.mark.parametrize("local", [True, False])
def test_a_full_disk_is_named_as_such(local: bool, server: Server, tmp_path: Path) -> None:
    (tmp_path / "mirror").mkdir()
    (tmp_path / "mirror/images.gz").write_bytes(BODY)
    partial = tmp_path / "out/.partial-images.gz"
    partial.parent.mkdir()
    partial.symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left on device") as caught:
        fetch(IMAGES, tmp_path / "out", [str(tmp_path / "mirror") if local else server.url, server.url])
    assert caught.value.filename == str(partial)
    assert names(tmp_path / "out") == []
    assert len(server.seen) == (0 if local else 1)  # another source would not help


# ---- what a person sees


def test_a_log_file_gets_one_line_per_file(server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fetch(IMAGES, tmp_path, [server.url])
    out, err = capsys.readouterr()
    assert out == ""
    assert re.fullmatch(r"images\.gz: 300\.0 kB, \d+(\.\d)? [kMG]?B/s\n|images\.gz: 300\.0 kB, \d+ bytes/s\n", err)


def test_a_log_file_names_the_trouble(server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    server.answers = [status(503), cut]
    fetch(IMAGES, tmp_path, [server.url])
    lines = capsys.readouterr().err.splitlines()
    assert lines[:2] == [
        "images.gz: HTTP 503 Service Unavailable; trying again in 1 s",
        "images.gz: connection cut; trying again in 1 s",
    ]
    assert len(lines) == 3


def test_a_terminal_gets_a_bar_with_rate(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    monkeypatch.setenv("COLUMNS", "120")
    server.answers = [cut]
    server.files["/[red]images.gz"] = server.files["/%5Bred%5Dimages.gz"] = BODY
    fetch(RemoteFile("[red]images.gz", MD5, ()), tmp_path, [server.url])
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", capsys.readouterr().err)
    assert "[red]images.gz: connection cut; trying again in 1 s" in plain
    last = plain.strip().splitlines()[-1]
    assert last.startswith("[red]images.gz ━━━")
    assert "300.0/300.0 kB" in last
    assert re.search(r"\d [kMG]?B/s|\d bytes/s", last), last
    assert "300.0 kB, " not in plain
