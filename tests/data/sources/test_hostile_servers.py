"""Servers that mean no good, or know no better: a download ends in time, in the right file or in a message."""

import gc
import hashlib
import random
import socket
import socketserver
import struct
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from reparam.data.sources import part, web
from reparam.data.sources.deadline import Deadline
from reparam.data.sources.transport import RemoteFile, fetch
from reparam.errors import UserError

BODY = random.Random(0).randbytes(200_000)
HALF = len(BODY) // 2
MD5 = f"md5:{hashlib.md5(BODY).hexdigest()}"
REMEDY = "set REPARAM_MIRRORS to a directory or server that holds it"
LATER = f"run again to go on from there, set REPARAM_DOWNLOAD_SECONDS to more seconds, or {REMEDY}"
UNFINISHED = "not finished when the time was up"
NO_ADDRESS = "wanted http:// or https://, found another scheme in it, a redirect or a proxy"

# `requests` leaves the connection of a redirect that leads to no address to the collector of garbage.
pytestmark = pytest.mark.filterwarnings("ignore:.*socket.socket:pytest.PytestUnraisableExceptionWarning")

Send = Callable[[bytes], None]
Answer = Callable[[Send, int], None]  # given what sends, and the first byte that is asked for


class Handler(socketserver.StreamRequestHandler):
    server: "Server"

    def handle(self) -> None:
        path, start = self.rfile.readline().split()[1].decode(), 0
        while line := self.rfile.readline().strip():
            if line.lower().startswith(b"range: bytes="):
                start = int(line[13:].rstrip(b"-"))
        self.server.seen.append(path)
        try:
            self.server.answers[path](self.wfile.write, start)
        except ConnectionAbortedError:
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        except OSError:  # the client went away
            return


class Server(socketserver.ThreadingTCPServer):
    """Sends whatever bytes the answer of a path sends; `seen` holds the paths of all requests."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.answers: dict[str, Answer] = {}
        self.seen: list[str] = []
        self.stopped = threading.Event()
        self.url = f"http://127.0.0.1:{self.server_address[1]}"

    def pause(self, seconds: float) -> None:
        if self.stopped.wait(seconds):
            raise BrokenPipeError

    def handle_error(self, *arguments: object) -> None:
        pass


@pytest.fixture(scope="module", autouse=True)
def clean() -> Iterator[None]:
    """No connection is left to the tests of another module."""
    yield
    gc.collect()


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr("reparam.data.sources.web.time.sleep", lambda _: None)
    others = set(threading.enumerate())
    with Server() as server:
        threading.Thread(target=server.serve_forever, args=(0.005,)).start()
        yield server
        server.stopped.set()
        server.shutdown()
        server.server_close()  # or a request that came too late would wait for its answer
        for thread in set(threading.enumerate()) - others:  # those that were left behind, too
            thread.join(10)
            assert not thread.is_alive()


@pytest.fixture
def hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file must be there within a quarter of a second."""
    monkeypatch.setenv("REPARAM_DOWNLOAD_SECONDS", "0.25")


def head(status: str = "200 OK", *headers: str) -> bytes:
    return "\r\n".join([f"HTTP/1.1 {status}", "Connection: close", *headers, "", ""]).encode("latin-1")


def good(send: Send, start: int) -> None:
    """Send what is asked for."""
    known = f"Content-Range: bytes {start}-{len(BODY) - 1}/{len(BODY)}"
    send(head("206 Partial Content", known) if start else head())
    send(BODY[start:])


def file_at(*urls: str) -> RemoteFile:
    return RemoteFile("images.gz", MD5, urls)


def refusal(directory: Path, *urls: str) -> list[str]:
    """The lines of the message that a file which does not arrive ends in."""
    with pytest.raises(UserError) as caught:
        fetch(file_at(*urls), directory, [])
    return str(caught.value).splitlines()


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


# ---- bodies without end


def test_a_body_without_end_stops_at_a_bound(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(part, "MOST_BYTES", 1_000_000)

    def flood(send: Send, start: int) -> None:
        send(head())
        while True:
            send(bytes(100_000))

    server.answers = {"/x": flood}
    assert refusal(tmp_path, f"{server.url}/x") == [
        f"images.gz ({MD5}): no source gives this file",
        f"  {server.url}/x: wanted at most 1.0 MB, found that it sends more and more",
        REMEDY,
    ]
    assert (names(tmp_path), server.seen) == ([], ["/x"])


def test_a_body_that_is_announced_too_large_is_not_received(server: Server, tmp_path: Path) -> None:
    server.answers = {"/x": lambda send, start: send(head("200 OK", f"Content-Length: {2**50}") + BODY)}
    assert refusal(tmp_path, f"{server.url}/x")[1] == (
        f"  {server.url}/x: wanted at most 4.3 GB, found that it announces 1.1 PB"
    )
    assert (names(tmp_path), server.seen) == ([], ["/x"])


def test_a_body_stops_at_the_end_of_the_range_that_is_announced(server: Server, tmp_path: Path) -> None:
    (tmp_path / ".partial-images.gz").write_bytes(BODY[:HALF])

    def go_on(send: Send, start: int) -> None:
        send(head("206 Partial Content", f"Content-Range: bytes {start}-{len(BODY) - 1}/*"))
        send(BODY[start:])
        while True:
            send(bytes(100_000))

    server.answers = {"/x": go_on}
    fetch(file_at(f"{server.url}/x"), tmp_path, [])
    assert (tmp_path / "images.gz").read_bytes() == BODY
    assert (names(tmp_path), server.seen) == (["images.gz"], ["/x"])


def test_a_place_that_cannot_be_counted_is_another_range(server: Server, tmp_path: Path) -> None:
    (tmp_path / ".partial-images.gz").write_bytes(BODY[:HALF])

    def count(send: Send, start: int) -> None:
        send(head("206 Partial Content", f"Content-Range: bytes {start}-{'9' * 5_000}/9") + BODY if start else head())
        send(BODY)

    server.answers = {"/x": count}
    fetch(file_at(f"{server.url}/x"), tmp_path, [])
    assert (tmp_path / "images.gz").read_bytes() == BODY
    assert server.seen == ["/x", "/x"]


def test_two_lengths_are_no_valid_answer(server: Server, tmp_path: Path) -> None:
    server.answers = {"/x": lambda send, start: send(head("200 OK", "Content-Length: 5", "Content-Length: 6") + BODY)}
    assert refusal(tmp_path, f"{server.url}/x")[1] == f"  {server.url}/x: no valid answer (InvalidHeader)"


# ---- servers that keep one waiting


def drip(server: Server, send: Send, text: bytes) -> None:
    """Send one byte after the other, over and over."""
    while True:
        for byte in text:
            send(bytes([byte]))
            server.pause(0.01)


WAITING: dict[str, Callable[[Server], Answer]] = {
    "the status": lambda server: lambda send, start: drip(server, send, b"HTTP/1.1 200 " + b"O" * 1000),
    "a header": lambda server: lambda send, start: drip(server, send, b"HTTP/1.1 200 OK\r\nX: " + b"y" * 1000),
    "the body": lambda server: lambda send, start: (send(head()), drip(server, send, bytes(1000)))[1],
    "the size of a chunk": lambda server: (
        lambda send, start: (send(head("200 OK", "Transfer-Encoding: chunked")), drip(server, send, b"0" * 1000))[1]
    ),
    "what follows the last chunk": lambda server: (
        lambda send, start: (
            send(head("200 OK", "Transfer-Encoding: chunked") + b"0\r\n"),
            drip(server, send, b"X: y\r\n"),
        )[1]
    ),
    "nothing": lambda server: lambda send, start: server.pause(60),
}


@pytest.mark.usefixtures("hurry")
@pytest.mark.parametrize("what", WAITING)
def test_what_trickles_for_ever_is_given_up_when_the_time_is_over(what: str, server: Server, tmp_path: Path) -> None:
    server.answers = {"/x": WAITING[what](server), "/y": good}
    started = time.monotonic()
    first, second, third, last = refusal(tmp_path, f"{server.url}/x", f"{server.url}/y")
    assert time.monotonic() - started < 2
    assert first.startswith(f"images.gz ({MD5}): no source gives this file within 0.25 s, only ")
    assert second == f"  {server.url}/x: {UNFINISHED}"
    assert third == f"  {server.url}/y: not tried, because the time was up"
    assert last == LATER
    assert server.seen == ["/x"]


@pytest.mark.usefixtures("hurry")
def test_a_server_that_cuts_after_a_little_progress_is_not_asked_for_ever(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(web, "LEAST_RATE", 0)  # so that every try counts as progress

    def cut(send: Send, start: int) -> None:
        server.pause(0.02)
        send(head("206 Partial Content", f"Content-Range: bytes {start}-9999999/*", "Content-Length: 9999999"))
        send(BODY[start : start + 100])

    (tmp_path / ".partial-images.gz").write_bytes(BODY[:1])
    server.answers = {"/x": cut}
    assert refusal(tmp_path, f"{server.url}/x")[1:] == [f"  {server.url}/x: {UNFINISHED}", LATER]
    received = (tmp_path / ".partial-images.gz").read_bytes()
    assert BODY.startswith(received)
    assert len(received) > 1
    server.answers = {"/x": good}
    fetch(file_at(f"{server.url}/x"), tmp_path, [])  # which goes on from there
    assert (tmp_path / "images.gz").read_bytes() == BODY


def test_a_file_that_starts_again_each_time_is_not_asked_for_for_ever(server: Server, tmp_path: Path) -> None:
    def restart(send: Send, start: int) -> None:
        if start:
            send(head("206 Partial Content", "Content-Range: bytes 7-9/10", "Content-Length: 3") + b"abc")
        else:
            send(head("200 OK", f"Content-Length: {len(BODY)}") + BODY[:HALF])

    server.answers = {"/x": restart}
    lines = refusal(tmp_path, f"{server.url}/x")
    assert lines[1:] == [f"  {server.url}/x: connection cut after 5 tries", REMEDY]
    assert len(server.seen) == 5


@pytest.mark.usefixtures("hurry")
def test_two_servers_that_send_one_back_and_forth_are_not_asked_for_ever(server: Server, tmp_path: Path) -> None:
    server.answers = {
        "/a": lambda send, start: send(head("302 Found", "Location: /b", "Content-Length: 0")),
        "/b": lambda send, start: send(head("302 Found", "Location: /a", "Content-Length: 0")),
    }
    lines = refusal(tmp_path, f"{server.url}/a", f"{server.url}/b")
    assert lines[1] in (f"  {server.url}/a: redirects without end", f"  {server.url}/a: {UNFINISHED}")
    assert len(server.seen) <= 62


@pytest.mark.parametrize(
    "location", ["http://[::1/x", "http://127.0.0.1:99999/x", "ftp://127.0.0.1/x", "http://\xe9\xff/x", "http://.../x"]
)
def test_a_redirect_to_no_address_is_refused(location: str, server: Server, tmp_path: Path) -> None:
    server.answers = {"/x": lambda send, start: send(head("302 Found", f"Location: {location}", "Content-Length: 0"))}
    lines = refusal(tmp_path, f"{server.url}/x")
    assert lines[1:] == [f"  {server.url}/x: {NO_ADDRESS}", REMEDY]


def test_what_a_server_says_does_not_reach_the_terminal(server: Server, tmp_path: Path) -> None:
    server.answers = {"/x": lambda send, start: send(head("404 \x1b[31mred", "Content-Length: 0"))}
    assert refusal(tmp_path, f"{server.url}/x")[1] == f"  {server.url}/x: HTTP 404 Not Found"


# ---- the setting


@pytest.mark.parametrize(("text", "seconds"), [(None, 3600), ("0.5", 0.5), ("1e9", 1e9)])
def test_the_time_for_a_file_can_be_set(text: str | None, seconds: float, monkeypatch: pytest.MonkeyPatch) -> None:
    if text:
        monkeypatch.setenv("REPARAM_DOWNLOAD_SECONDS", text)
    assert Deadline().seconds == seconds


@pytest.mark.parametrize("text", ["", "soon", "0", "-1", "nan", "inf", "1e10"])
def test_a_time_that_is_none_is_refused(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REPARAM_DOWNLOAD_SECONDS", text)
    assert refusal(tmp_path) == [
        f"REPARAM_DOWNLOAD_SECONDS: wanted a number of seconds from 0.001 to 1e9, found {text!r}; fix or unset it"
    ]


# ---- any fault

STATUSES = (
    "200 OK",
    "206 Partial Content",
    "204 No Content",
    "302 Found",
    "404 Not Found",
    "416 Range Not Satisfiable",
)
STATUSES += ("429 Too Many Requests", "500 Internal Server Error", "503 Service Unavailable", "999", "abc", "-1 \xff")
HEADERS = (
    *(f"Content-Length: {length}" for length in (len(BODY), HALF, 10**6, 10**40, -5, "many", "5, 7")),
    *(
        f"Content-Range: bytes {place}"
        for place in (f"{HALF}-{len(BODY) - 1}/{len(BODY)}", "0-5/6", "9-1/0", "x", "9" * 5000)
    ),
    *(f"Retry-After: {time}" for time in (0, -1, "9" * 400, "9" * 5000, "nan", "Thu, 1 Jan 99999 0:0:0 GMT")),
    *(f"Location: {place}" for place in ("/y", "/x", "http://[::1/", "http:///", "\xff", "ftp://h/", "//", "?" * 9999)),
    *(
        "Transfer-Encoding: chunked",
        "Content-Encoding: gzip",
        "X: " + "y" * 70_000,
        "no header",
        ": none",
        "\xff: \xff",
    ),
)
BODIES = (
    b"",
    BODY,
    BODY[:HALF],
    BODY[HALF:],
    BODY + b"more",
    bytes(1000),
    b"%x\r\n%b\r\n0\r\n\r\n" % (len(BODY), BODY),
)
BODIES += (
    b"%x\r\n%b\r\n" % (HALF, BODY[:HALF]),
    b"zz\r\n",
    b"-5\r\nabc",
    b"f" * 60 + b"\r\nabc",
    b"\x1f\x8b\x08 no gzip",
)


def fault(chance: random.Random, server: Server) -> Answer:
    """Make up an answer: any status, headers and body; cut anywhere; ended, reset, held open or without end."""
    sent = head(chance.choice(STATUSES), *chance.sample(HEADERS, chance.randrange(4))) + chance.choice(BODIES)
    sent = sent[: chance.choice([len(sent), len(sent), chance.randrange(len(sent))])]
    end = chance.choice(["close"] * 6 + ["reset"] * 2 + ["hold", "flood"])

    def answer(send: Send, start: int) -> None:
        send(sent)
        if end == "reset":
            raise ConnectionAbortedError
        if end == "hold":
            server.pause(60)
        while end == "flood":
            send(sent)

    return answer


@pytest.mark.parametrize("seed", range(48))
def test_whatever_servers_send_the_right_file_or_a_message_comes_of_it(
    seed: int, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REPARAM_DOWNLOAD_SECONDS", "0.4")
    monkeypatch.setattr(web, "READ_SECONDS", 0.03)
    monkeypatch.setattr(part, "MOST_BYTES", 1_000_000)
    chance = random.Random(seed)
    server.answers = {"/x": fault(chance, server), "/y": good if seed % 2 else fault(chance, server)}
    started = time.monotonic()
    try:
        fetch(file_at(f"{server.url}/x", f"{server.url}/y"), tmp_path, [])
    except UserError as error:
        message = str(error)
    else:
        message = ""
    assert time.monotonic() - started < 2
    if not message:
        assert (tmp_path / "images.gz").read_bytes() == BODY
        assert names(tmp_path) == ["images.gz"]
        return
    first, *reasons, last = message.splitlines()
    assert first.startswith(f"images.gz ({MD5}): no source gives this file")
    assert [reason.partition(": ")[0] for reason in reasons] == [f"  {server.url}/x", f"  {server.url}/y"]
    assert last.endswith(REMEDY)
    assert message.replace("\n", "").isprintable()
    assert names(tmp_path) in ([], [".partial-images.gz"])
    assert seed % 2 == 0 or last == LATER  # the second server gives the file, unless the first took all the time
