"""Credentials of addresses appear nowhere: neither in what is printed nor in what is written."""

import contextlib
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from reparam.errors import TrackingError
from reparam.paths import Paths
from reparam.redact import redact, redacted_output, without_secrets
from reparam.track.store import open_store

SOURCE = Path(__file__).parents[1] / "src"
PASSWORD = "pw/Geheim?19"
TOKEN = "tok-Geheim-20"
SECRETS = (PASSWORD, quote(PASSWORD, safe=""), TOKEN)


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        ("http://localhost:5000", "http://localhost:5000"),
        ("https://user:word@host/path", "https://***@host/path"),
        ("https://user:w/o?r@d@host/path", "https://***@host/path"),
        ("https://token@host", "https://***@host"),
        ("https://host/a?signature=abc&b=c", "https://host/a?***"),
        ("https://user:word@host/a?signature=abc", "https://***@host/a?***"),
        ("postgresql+psycopg2://user:word@host:1/name", "postgresql+psycopg2://***@host:1/name"),
        ("postgresql:///name?password=word", "postgresql:///name?***"),
        ("sqlite:////home/me@work/a?b/mlflow.db", "sqlite:////home/me@work/a?b/mlflow.db"),
        ("file:///home/me@work/what?", "file:///home/me@work/what?"),
        ("/home/me@work/what?", "/home/me@work/what?"),
        ("me:w/o@rd@host:5000/a", "***@host:5000/a"),
    ],
)
def test_an_address_is_shown_without_what_opens_it(address: str, shown: str) -> None:
    assert without_secrets(address) == shown
    if "://" in address:
        assert redact(f"asked '{address}', and it refused") == f"asked '{shown}', and it refused"


@pytest.mark.parametrize(
    ("address", "text", "shown"),
    [
        ("http://me:wo%2Frd@host", "no account me with wo%2Frd, nor wo/rd", "no account me with ***, nor ***"),
        ("http://host/?token=abcdef&n=10", "GET /api?token=abcdef: 10 tries", "GET /api?token=***: 10 tries"),
        ("http://token@host", "token, tokens and a_token", "***, tokens and a_token"),
        ("me:word@host:5000", "asked me:word@host:5000, no word", "asked me:***@host:5000, no ***"),
        ("http://host/ab@cd", "a path is no secret: ab", "a path is no secret: ab"),
        ("sqlite:////me:word@work/a.db", "in a word", "in a word"),
    ],
)
def test_the_secrets_of_the_environment_are_hidden_in_any_form(
    address: str, text: str, shown: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("MLFLOW_TRACKING_URI", "REPARAM_MIRRORS"):
        with monkeypatch.context() as patch:
            patch.setenv("MLFLOW_TRACKING_URI", "")
            patch.setenv(name, address)
            assert redact(text) == shown


@pytest.mark.parametrize("name", ["stdout", "stderr"])
def test_what_a_library_prints_holds_no_credentials(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with redacted_output():
        getattr(sys, name).write("View run at https://me:word@host/a?sig=abc\n")
        assert getattr(sys, name).isatty() is False
    getattr(sys, name).write("https://me:word@host\n")
    printed = getattr(capsys.readouterr(), name.removeprefix("std"))
    assert printed == "View run at https://***@host/a?***\nhttps://me:word@host\n"


def test_the_traceback_of_a_bug_holds_no_credentials(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    with pytest.raises(KeyError) as caught, redacted_output():
        raise KeyError("https://me:word@host")
    sys.excepthook(caught.type, caught.value, caught.tb)
    printed = capsys.readouterr().err
    assert printed.startswith("Traceback (most recent call last):\n")
    assert printed.endswith("KeyError: 'https://***@host'\n")


def test_the_refusal_of_a_parameter_holds_no_credentials_of_its_value(
    project: Paths,
    params: dict[str, Any],
    write_params: Callable[[dict[str, Any]], None],
    reparam: Callable[..., tuple[int, str]],
) -> None:
    params["download"]["mirrors"] = ["https://me:word@host/a", "/data/me@work"]
    write_params(params)
    assert reparam("download") == (
        1,
        f"error: {project.params}: 1 problem\n"
        "  download.mirrors: unknown parameter, found ['https://***@host/a', '/data/me@work']; set REPARAM_MIRRORS in "
        "the environment instead\n",
    )


# ---- real commands, and stores that refuse them


@contextlib.contextmanager
def server(status: int) -> Iterator[str]:
    """A server that answers everything with a status, and repeats what it was asked."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = f"{self.path} {self.headers.get('Authorization')}".encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_POST = do_GET  # noqa: N815

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as it:
        threading.Thread(target=it.serve_forever, daemon=True).start()
        yield f"127.0.0.1:{it.server_port}"
        it.shutdown()


ADDRESSES = {
    "password": "http://me:{password}@{host}",
    "token as user": "http://{token}@{host}",
    "token in the query": "http://{host}/?token={token}",
    "postgresql": "postgresql://me:{password}@127.0.0.1:1/name",
    "mysql": "mysql+pymysql://me:{password}@127.0.0.1:1/name?secret={token}",
    "no scheme known": "gopher://me:{password}@{host}/?a={token}",
    "malformed": "http://me:{password}@[::1",
}


@contextlib.contextmanager
def refusing_store(kind: str, status: int | None) -> Iterator[str]:
    """The address of a store that refuses everything, or is not there."""
    with server(status) if status else contextlib.nullcontext("127.0.0.1:1") as host:
        yield ADDRESSES[kind].format(host=host, password=quote(PASSWORD, safe=""), token=TOKEN)


def assert_refused_without_credentials(text: str, address: str) -> None:
    assert f"MLflow at {without_secrets(address)} cannot be used: " in text
    assert [secret for secret in SECRETS if secret in text] == []


@pytest.mark.parametrize(
    ("kind", "status"), [*((kind, None) for kind in ADDRESSES), ("password", 500), ("token in the query", 401)]
)
def test_a_store_is_refused_without_its_credentials(
    kind: str, status: int | None, project: Paths, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    with refusing_store(kind, status) as address:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
        with redacted_output(), pytest.raises(TrackingError) as error:  # as the process that speaks to MLflow does
            open_store(project)
    assert_refused_without_credentials("\n".join([*capfd.readouterr(), str(error.value)]), address)


def test_commands_neither_print_nor_write_the_credentials_of_a_store(project: Paths) -> None:
    project.tracking_spool.mkdir()
    (project.tracking_spool / "a.jsonl").write_text('{"call": "tags", "run": "a", "values": {}}\n')
    with refusing_store("token in the query", 401) as address:
        commands = [
            subprocess.Popen(
                [sys.executable, "-m", "reparam", *command.split()],
                env=os.environ | {"PYTHONPATH": str(SOURCE), "MLFLOW_TRACKING_URI": address},
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
            for command in ("download", "replay", "compare workspace 123456")
        ]
        printed = [command.communicate(timeout=60)[0] for command in commands]
    assert {command.returncode for command in commands} == {1}
    for text in printed:
        assert_refused_without_credentials(text, address)
        assert "Traceback" not in text
    written = b"".join(path.read_bytes() for path in project.root.rglob("*") if path.is_file())
    assert [secret for secret in SECRETS if secret.encode() in written] == []
