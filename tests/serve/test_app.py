"""What a service needs beside its routes."""

import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import uvicorn
from exported_model import Exported
from serving import Service, error
from typer.testing import CliRunner

from reparam.client import Client
from reparam.commands import apps
from reparam.errors import UserError
from reparam.explorer.page import render
from reparam.serve import server
from reparam.serve.routes import Limits

pytest_plugins = ["fixtures_export"]


TOKEN = "secret"


def test_requests_that_are_open_are_answered_before_the_end(
    exported: Exported, monkeypatch: pytest.MonkeyPatch
) -> None:
    client, started, go = Client(exported.directory, device="cpu"), threading.Event(), threading.Event()
    wanted, run = client.sample(1, seed=0), client.run

    def wait_and_run(*arguments: Any, **inputs: Any) -> Any:
        started.set()
        assert go.wait(10)
        return run(*arguments, **inputs)

    monkeypatch.setattr(client, "run", wait_and_run)
    with ThreadPoolExecutor(1) as pool, Service(client, Limits()) as service:
        answer = pool.submit(service.post, "/sample", {})
        assert started.wait(10)
        service.end()
        assert not answer.done()
        go.set()
        np.testing.assert_array_equal(answer.result().json()["images"], wanted)


def test_a_large_body_is_refused_before_it_is_read(service: Service) -> None:
    assert error(service.post("/encode", {"images": [0] * 100_000})) == (
        413,
        "wanted a body of at most 200000 bytes, found 300012",
    )


def sent(service: Service, *headers: str, body: bytes = b"") -> bytes:
    """Send a request to encode as bytes, and go away; its answer, if there is one."""
    host, _, port = service.address.removeprefix("http://").partition(":")
    lines = ["POST /encode HTTP/1.1", f"Host: {host}", "Connection: close", *headers, "", ""]
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        connection.sendall("\r\n".join(lines).encode() + body)
        connection.shutdown(socket.SHUT_WR)
        return b"".join(iter(lambda: connection.recv(1 << 16), b""))


@pytest.mark.parametrize("headers", [[], ["Content-Length: 2"]], ids=["alone", "beside a length"])
def test_a_body_in_chunks_whose_size_nobody_knows_is_refused(headers: list[str], service: Service) -> None:
    answer = sent(service, *headers, "Transfer-Encoding: chunked", body=b"2\r\n{}\r\n0\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 411 ")
    assert answer.endswith(b'{"error":"wanted the header Content-Length, and no Transfer-Encoding"}')


def requests_to_encode(service: Service, status: int) -> float:
    start = f'reparam_requests_total{{route="/encode",status="{status}"}} '
    lines = service.get("/metrics").text.splitlines()
    return sum(float(line.removeprefix(start)) for line in lines if line.startswith(start))


def test_who_goes_away_within_a_body_is_no_error_of_the_server(service: Service) -> None:
    before = requests_to_encode(service, 400)
    sent(service, "Content-Length: 100", body=b"{")
    deadline = time.monotonic() + 10
    while requests_to_encode(service, 400) == before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert (requests_to_encode(service, 400), requests_to_encode(service, 500)) == (before + 1, 0)


def test_with_a_token_only_health_is_open(exported: Exported) -> None:
    with Service(Client(exported.directory, device="cpu"), Limits(), TOKEN) as service:
        assert service.get("/v2/health/live").status_code == 200
        assert error(service.get("/v2")) == (401, "wanted the header `Authorization: Bearer TOKEN`")
        for scheme in ("Bearer", "bearer", "BEARER"):
            assert service.get("/v2", headers={"Authorization": f"{scheme} {TOKEN}"}).status_code == 200
        for wrong in (
            "Bearer wrong",
            "Bearer secre",
            "Bearer secrets",
            "Bearer",
            "Bearersecret",
            "Basic secret",
            TOKEN,
        ):
            answer = service.get("/v2", headers={"Authorization": wrong})
            assert (wrong, answer.status_code, answer.headers.get("www-authenticate")) == (wrong, 401, "Bearer")


def test_without_a_token_nobody_else_may_reach_it(exported: Exported, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("REPARAM_SERVE_TOKEN", raising=False)
    with pytest.raises(UserError, match="wanted a token in REPARAM_SERVE_TOKEN where others reach the service"):
        server.run(exported.directory, "0.0.0.0", 0, "cpu")


def test_a_port_that_is_taken_is_a_mistake(exported: Exported) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        wanted = (
            f"^serve: wanted to listen at 127.0.0.1, port {port}, found: Address already in use; choose another --port$"
        )
        with pytest.raises(UserError, match=wanted):
            server.run(exported.directory, "127.0.0.1", port, "cpu")


@pytest.mark.parametrize("host", ["a..b", "192.0.2.1", "\N{LATIN SMALL LETTER E WITH ACUTE}..b"])
def test_a_host_that_is_not_this_machine_is_a_mistake_of_the_host(host: str) -> None:
    with pytest.raises(UserError) as error:
        server.listen(host, 0)
    assert str(error.value).startswith(f"serve: wanted to listen at {host}, port 0, found: ")
    assert str(error.value).endswith("; choose another --host")


def test_a_shutdown_waits_half_a_minute_for_requests_and_no_longer(
    exported: Exported, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seen: list[uvicorn.Config] = []
    monkeypatch.setattr(uvicorn.Server, "run", lambda self, _sockets: seen.append(self.config))
    server.run(exported.directory, "127.0.0.1", 0, "cpu")
    assert [config.timeout_graceful_shutdown for config in seen] == [30]
    assert capsys.readouterr().out.startswith("http://127.0.0.1:")


def test_by_default_only_this_machine_reaches_it(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    monkeypatch.setattr(server, "run", lambda *arguments: seen.extend(arguments))
    result = CliRunner().invoke(apps.app, ["serve"], catch_exceptions=False)
    assert (result.exit_code, seen[1:3]) == (0, ["127.0.0.1", 8000])


def test_small_answers_are_sent_at_once() -> None:
    with server.listen("127.0.0.1", 0) as listener:
        assert listener.proto == socket.IPPROTO_TCP  # where asyncio sets TCP_NODELAY


def test_prometheus_reads_requests_and_times(service: Service) -> None:
    service.get("/v2/models/other")
    lines = service.get("/metrics").text.splitlines()
    [line] = [
        line for line in lines if line.startswith('reparam_requests_total{route="/v2/models/{name}",status="404"}')
    ]
    assert float(line.split()[-1]) >= 1
    assert any(line.startswith('reparam_request_seconds_count{route="/v2/models/{name}"}') for line in lines)


def test_the_page_explores_the_model(service: Service, exported: Exported) -> None:
    answer = service.get("/")
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    assert answer.text == render(exported.directory)


def test_without_a_decoder_there_is_no_page(exported: Exported) -> None:
    path = exported.directory / "encoder.onnx"
    with Service(Client(path, device="cpu"), Limits()) as service:
        assert error(service.get("/")) == (
            400,
            f"{path}: wanted decoder.onnx, found encoder.onnx; give the folder of a model",
        )


def test_the_api_is_described(service: Service) -> None:
    paths = service.get("/openapi.json").json()["paths"]
    assert {"/encode", "/decode", "/sample", "/reconstruct", "/score", "/v2/models/{name}/infer"} <= set(paths)
