"""A service in a thread, and what tests send it and read of its answers."""

import io
import threading
from typing import Any

import numpy as np
import requests
import uvicorn
from PIL import Image

from reparam.client import Client
from reparam.serve.app import create
from reparam.serve.routes import Limits


class Service:
    """A server in a thread, and what a test asks it."""

    def __init__(self, client: Client, limits: Limits, token: str = "") -> None:
        self.client = client
        self.app = create(client, limits, token)
        self._server = uvicorn.Server(uvicorn.Config(self.app, port=0, log_level="error"))
        self._thread = threading.Thread(target=self._server.run)

    def __enter__(self) -> "Service":
        self._thread.start()
        while not self._server.started:
            self._thread.join(0.01)
        self.address = f"http://127.0.0.1:{self._server.servers[0].sockets[0].getsockname()[1]}"
        return self

    def __exit__(self, *_: object) -> None:
        self._server.should_exit = True
        self._thread.join()

    def end(self) -> None:
        """Ask it to end, and wait until it takes no more requests."""
        self._server.should_exit = True
        while self._server.servers[0].is_serving():
            self._thread.join(0.01)

    def get(self, path: str, **more: Any) -> requests.Response:
        return requests.get(self.address + path, timeout=60, **more)

    def post(self, path: str, body: Any = None, **more: Any) -> requests.Response:
        return requests.post(self.address + path, json=body, timeout=60, **more)

    def send(self, path: str, body: bytes, kind: str = "application/json", **headers: str) -> requests.Response:
        """Post bytes as they are."""
        headers = {"Content-Type": kind, **headers}
        return requests.post(self.address + path, data=body, timeout=60, headers=headers)

    def infer(self, name: str, **inputs: Any) -> dict[str, np.ndarray]:
        """Ask as a client of the protocol does."""
        tensors = [tensor(name, values) for name, values in inputs.items()]
        answer = self.post(f"/v2/models/{name}/infer", {"inputs": tensors}).json()
        return {output["name"]: np.reshape(output["data"], output["shape"]) for output in answer["outputs"]}


def tensor(name: str, values: Any) -> dict[str, Any]:
    kind = {"uint8": "UINT8", "float32": "FP32", "int64": "INT64"}[values.dtype.name]
    return {"name": name, "shape": list(values.shape), "datatype": kind, "data": values.ravel().tolist()}


def png(picture: np.ndarray, mode: str = "RGB") -> bytes:
    file = io.BytesIO()
    Image.fromarray(picture).convert(mode).save(file, "PNG")
    return file.getvalue()


def shown(answer: requests.Response) -> np.ndarray:
    assert answer.headers["content-type"] == "image/png"
    return np.asarray(Image.open(io.BytesIO(answer.content)))


def column(images: np.ndarray) -> np.ndarray:
    return images.reshape(-1, *images.shape[2:])


def error(answer: requests.Response) -> tuple[int, str]:
    return answer.status_code, answer.json()["error"]
