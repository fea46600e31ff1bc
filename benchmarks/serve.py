"""What the service adds to inference, and what it answers under load, with batches and without.

    python benchmarks/serve.py [--model models/onnx] [--requests 1000]

Clients and service are processes of their own and share the cores. Clients send binary tensors, as Triton's does.
"""

import argparse
import asyncio
import http.client
import json
import multiprocessing
import socket
import statistics
import time
from pathlib import Path

import numpy as np
import uvicorn
from results import table, write_section

from reparam.client import Client
from reparam.serve.app import create
from reparam.serve.protocol import HEADER
from reparam.serve.routes import Limits
from reparam.serve.server import listen

CONNECTIONS = (1, 16, 64, 256)
TURNS = 7
WARM = 50  # requests before the first that counts
WAYS = {"batches": Limits().rows, "one request a run": 1}  # rows of a run


def main() -> None:
    """Measure and write RESULTS.md."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=Path("models/onnx"))
    parser.add_argument("--requests", type=int, default=1000)
    arguments = parser.parse_args()
    ways = {name: _start(arguments.model, rows) for name, rows in WAYS.items()}
    try:
        ports = {name: port for name, (_, port) in ways.items()}
        text = [_alone(arguments.model, ports["batches"], arguments.requests), _load(arguments, ports)]
    finally:
        for process, _ in ways.values():
            process.terminate()
    write_section("The service", "\n\n".join(text))


def _start(model: Path, rows: int) -> tuple[multiprocessing.Process, int]:
    listener = listen("127.0.0.1", 0)
    process = multiprocessing.get_context("fork").Process(target=_serve, args=(model, rows, listener), daemon=True)
    process.start()
    with listener:  # the other process has it too
        return process, listener.getsockname()[1]


def _serve(model: Path, rows: int, listener: socket.socket) -> None:
    app = create(Client(model, "cpu"), Limits(rows=rows))
    uvicorn.Server(uvicorn.Config(app, log_level="error")).run([listener])


def _body(client: Client) -> tuple[bytes, dict[str, str]]:
    image = np.random.default_rng(0).integers(0, 256, (1, *client.image_shape), dtype=np.uint8)
    described = {"name": "images", "shape": image.shape, "datatype": "UINT8"}
    described["parameters"] = {"binary_data_size": image.nbytes}
    head = json.dumps({"inputs": [described], "parameters": {"binary_data_output": True}}).encode()
    return head + image.tobytes(), {HEADER: str(len(head))}


def _alone(model: Path, port: int, requests: int) -> str:
    """Take turns between a request and the same call in this process."""
    client = Client(model, "cpu")
    body, headers = _body(client)
    image = np.frombuffer(body[int(headers[HEADER]) :], np.uint8).reshape(1, *client.image_shape)
    connection = http.client.HTTPConnection("127.0.0.1", port)

    def ask(method: str, path: str, *more: object) -> None:
        connection.request(method, path, *more)
        answer = connection.getresponse()
        assert answer.status == 200, answer.read()
        answer.read()

    calls = {
        "`Client.encode` in this process": lambda: client.encode(image),
        "`/v2/health/live`": lambda: ask("GET", "/v2/health/live"),
        "`/v2/models/encoder/infer`": lambda: ask("POST", "/v2/models/encoder/infer", body, headers),
    }
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for number in range(requests + WARM):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            if number >= WARM:
                seconds[name].append(time.perf_counter() - start)
    rows = [
        [name, f"{1000 * statistics.median(each):.2f}", f"{1000 * np.quantile(each, 0.95):.2f}"]
        for name, each in seconds.items()
    ]
    here, _, there = seconds.values()
    added = statistics.median(b - a for a, b in zip(here, there, strict=True))
    shown = table(["call", "ms", "ms, 95th percentile"], rows)
    return f"One image, one connection:\n\n{shown}\n\nThe service adds {1000 * added:.2f} ms to a call (median)."


def _load(arguments: argparse.Namespace, ports: dict[str, int]) -> str:
    """Let the two ways take turns, because others use the machine, too; compare them within each turn."""
    body, headers = _body(Client(arguments.model, "cpu"))
    lines = ["POST /v2/models/encoder/infer HTTP/1.1", "Host: localhost", f"Content-Length: {len(body)}"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    message = "\r\n".join(lines).encode() + b"\r\n\r\n" + body
    rates = {(connections, name): list[float]() for connections in CONNECTIONS for name in ports}
    waited = {key: list[float]() for key in rates}
    for turn in range(TURNS):
        for connections, name in list(rates)[:: 1 if turn % 2 else -1]:
            start = time.perf_counter()
            found = asyncio.run(_ask_all(ports[name], message, connections, arguments.requests))
            rates[connections, name].append(len(found) / (time.perf_counter() - start))
            waited[connections, name] += found
    rows = []
    for connections in CONNECTIONS:
        first, second = (np.array(rates[connections, name]) for name in ports)
        for name in ports:
            times = [f"{1000 * np.quantile(waited[connections, name], share):.1f}" for share in (0.5, 0.99)]
            rows.append([f"{connections}", name, f"{np.median(rates[connections, name]):,.0f}", *times, ""])
        gain = first / second
        rows[-2][-1] = f"{np.median(gain):.2f} ({gain.min():.2f} to {gain.max():.2f})"
    header = ["connections", "way", "requests a second", "ms, median", "ms, 99th percentile", "times as many"]
    count = f"{TURNS} turns of {arguments.requests} requests of one image, none of which failed, medians over turns"
    return f"{count}:\n\n{table(header, rows)}"


async def _ask_all(port: int, message: bytes, connections: int, requests: int) -> list[float]:
    left = iter(range(requests))

    async def ask() -> list[float]:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        waited = []
        for _ in left:
            start = time.perf_counter()
            writer.write(message)
            head = (await reader.readuntil(b"\r\n\r\n")).lower()
            assert head.startswith(b"http/1.1 200"), head
            await reader.readexactly(int(head.split(b"\r\ncontent-length: ")[1].split(b"\r\n")[0]))
            waited.append(time.perf_counter() - start)
        writer.close()
        return waited

    return [each for some in await asyncio.gather(*(ask() for _ in range(connections))) for each in some]


if __name__ == "__main__":
    main()
