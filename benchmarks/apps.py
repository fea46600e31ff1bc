"""Speed of an exported model in an app: onnxruntime, torch and torch.compile on one thread, and what the client adds.

    python benchmarks/apps.py [--rounds 200]

All ways are in one process and take turns with every call, so that a noisy machine is noisy for all; a ratio is the
median over the rounds of the ratios within each. Models are trained for one epoch on few images, because speed is all
that counts.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from results import table, write_section
from ruamel.yaml import YAML

from reparam.client import Client
from reparam.data.pixels import Pixels
from reparam.export.onnx import DecoderGraph, EncoderGraph
from reparam.models.storage import load_model
from reparam.paths import Paths

ROOT = Path(__file__).parent.parent
NETWORKS = ("mlp", "conv", "resnet")
BATCHES = (1, 256)
IMAGES = 500  # of each split
WARM = 5  # calls before the first that counts
LEAST, BUDGET = 20, 30.0  # rounds at least, and the seconds after which there are no more
STARTS = 7  # of a process
CALLS = 100  # on a schedule
EVERY = 0.02  # seconds
COMPOSED = ("client.reconstruct", "client.score, samples 0", "client.score, samples 1")
IMPORTS = "import numpy, onnxruntime"
OPEN = "onnxruntime.InferenceSession('{0}/encoder.onnx'); onnxruntime.InferenceSession('{0}/decoder.onnx')"
PROGRAMS = {
    "Python alone": "pass",
    "`import numpy, onnxruntime`": IMPORTS,
    "the same, and both graphs opened": f"{IMPORTS}; {OPEN}",
    "`import reparam.client`": "import reparam.client",
    "`Client(path)`": "from reparam.client import Client; Client('{0}')",
}

Calls = dict[str, Callable[[], Any]]


def main() -> None:
    """Measure and write RESULTS.md."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=200)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        models = {network: train(network, Path(scratch) / network) for network in NETWORKS}
        rows = [row for network, paths in models.items() for row in _inference(network, paths, arguments.rounds)]
        text = [
            "One thread; milliseconds, and how many times as fast as torch. Medians over "
            f"{arguments.rounds} rounds of one call each, or as many as take {BUDGET:.0f} s, at least {LEAST}; the "
            "client and its own sessions, called as they are, over 10 times as many at batch 1.",
            table(["graph, images", "torch", "torch.compile", "onnxruntime", "client over onnxruntime"], rows),
            "The same at batch 1 for calls of two graphs and of the score (samples 0: no random numbers):",
            table(
                ["network", *COMPOSED],
                [[network, *_composed(paths, 10 * arguments.rounds)] for network, paths in models.items()],
            ),
            f"Medians of {STARTS} processes, in turns:",
            table(["start of a process", "ms"], _starts(models["mlp"].onnx)),
            "Encoder and decoder together:",
            table(
                ["network", "files", "kB", "change of the ELBO, nats"],
                [row for network, paths in models.items() for row in _sizes(network, paths.onnx)],
            ),
            f"CPU time of this process for a call of 8 images every {1000 * EVERY:.0f} ms, the MLP:",
            table(["session", "ms CPU", "ms waited"], _spinning(models["mlp"].onnx)),
        ]
    write_section("A model in an app", "\n\n".join(text))


def train(network: str, root: Path) -> Paths:
    """Run the stages up to the exported model in a folder of its own."""
    root.mkdir()
    yaml = YAML()
    params = yaml.load(ROOT / "params.yaml")
    params["model"]["network"] = network
    params["preprocess"]["limit"] = IMAGES
    params["train"]["epochs"] = 1
    params["export"]["variants"] = ["int8", "int8_static", "fp16"]
    yaml.dump(params, root / "params.yaml")
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src"), "MLFLOW_TRACKING_URI": "off"}
    for stage in ("download", "preprocess", "train", "export"):
        command = [sys.executable, "-m", "reparam", stage]
        subprocess.run(command, cwd=root, env=environment, check=True, capture_output=True)
    return Paths(root, root)


def _inference(network: str, paths: Paths, rounds: int) -> list[list[str]]:
    model, card = load_model(paths.model, torch.device("cpu"))
    client = Client(paths.onnx, "cpu", threads=1)
    rng, pixels, rows = np.random.default_rng(0), Pixels(card.data), []
    for batch in BATCHES:
        images = rng.integers(0, 256, (batch, *client.image_shape), dtype=np.uint8)
        latents = rng.standard_normal((batch, client.latent_size), dtype=np.float32)
        graphs = {
            "encoder": (EncoderGraph(model, pixels, "keep"), client.encode, {"images": images}, None),
            "decoder": (DecoderGraph(model, pixels), client.decode, {"latents": latents}, ["images"]),
        }
        for name, (graph, call, inputs, outputs) in graphs.items():
            (values,) = inputs.values()
            session = _session(paths.onnx / f"{name}.onnx", spin="0", threads=1)
            calls = _calls(graph, values)
            bare = {"onnxruntime": lambda session=session, outputs=outputs, inputs=inputs: session.run(outputs, inputs)}
            # The client's own session, because two sessions of one graph differ by up to 3 %.
            own = client._graphs[name]
            both = (
                lambda call=call, values=values: call(values),
                lambda own=own, outputs=outputs, inputs=inputs: own.run(outputs, inputs),
            )
            rows.append([f"{network} {name}, {batch}", *_describe(_take_turns(calls | bare, rounds))])
            # Without torch in between, and often enough to see a few microseconds.
            rows[-1].append(_surplus(*both, rounds * (10 if batch == 1 else 1)))
    return rows


def _composed(paths: Paths, rounds: int) -> list[str]:
    """Compare calls of the client with the same runs of its sessions."""
    client = Client(paths.onnx, "cpu", threads=1)
    encoder, decoder, score = (client._graphs[name] for name in ("encoder", "decoder", "score"))
    images = np.random.default_rng(0).integers(0, 256, (1, *client.image_shape), dtype=np.uint8)
    parts, shape = ["negative_log_likelihood", "kl"], (1, *client.latent_shape)

    def reconstruct() -> Any:
        return decoder.run(["images"], {"latents": encoder.run(["mean"], {"images": images})[0]})

    def score_at_mean() -> Any:
        return score.run(parts, {"images": images, "epsilon": np.zeros(shape, np.float32)})

    def score_a_draw() -> Any:
        noise = np.random.default_rng(0).standard_normal(shape, dtype=np.float32)
        return score.run(parts, {"images": images, "epsilon": noise})

    return [
        _surplus(lambda: client.reconstruct(images), reconstruct, rounds),
        _surplus(lambda: client.score(images, samples=0), score_at_mean, rounds),
        _surplus(lambda: client.score(images, samples=1), score_a_draw, rounds),
    ]


def _surplus(first: Callable[[], Any], second: Callable[[], Any], rounds: int) -> str:
    """Return by how much the first call takes longer than the second."""
    seconds = _take_turns({"first": first, "second": second}, rounds)
    more = statistics.median(a - b for a, b in zip(*seconds.values(), strict=True))
    return f"{_ratio(*seconds.values()) - 1:+.1%} ({1e6 * more:+.1f} us)"


def _calls(graph: torch.nn.Module, values: np.ndarray) -> Calls:
    """Return torch's two ways to compute what a graph does, arrays in and arrays out."""
    compiled = torch.compile(graph)

    def call(module: Callable[..., Any]) -> Callable[[], Any]:
        def run() -> Any:
            with torch.inference_mode():
                return [output.numpy() for output in module(torch.from_numpy(values))]

        return run

    return {"torch": call(graph.eval()), "torch.compile": call(compiled)}


def _take_turns(calls: Calls, rounds: int) -> dict[str, list[float]]:
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    ways, began = list(calls.items()), time.perf_counter()
    for number in range(rounds + WARM):
        if number >= LEAST + WARM and time.perf_counter() - began > BUDGET:
            break
        ways.reverse()  # because a call finds in the caches what the one before it left
        for name, call in ways:
            start = time.perf_counter()
            call()
            if number >= WARM:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def _describe(seconds: dict[str, list[float]]) -> list[str]:
    first = [f"{1000 * statistics.median(seconds['torch']):.3f}"]
    times = [
        f"{1000 * statistics.median(seconds[name]):.3f} ({_ratio(seconds['torch'], seconds[name]):.1f} x)"
        for name in ("torch.compile", "onnxruntime")
    ]
    return [*first, *times]


def _ratio(above: list[float], below: list[float]) -> float:
    return statistics.median(a / b for a, b in zip(above, below, strict=True))


def _starts(onnx: Path) -> list[list[str]]:
    seconds: dict[str, list[float]] = {name: [] for name in PROGRAMS}
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src")}
    for _ in range(STARTS):
        for name, program in PROGRAMS.items():
            start = time.perf_counter()
            subprocess.run([sys.executable, "-c", program.format(onnx)], env=environment, check=True)
            seconds[name].append(time.perf_counter() - start)
        seconds.setdefault("`reparam serve`, until it listens", []).append(_start_of_service(onnx, environment))
    return [[name, f"{1000 * statistics.median(found):.0f}"] for name, found in seconds.items()]


def _start_of_service(onnx: Path, environment: dict[str, str]) -> float:
    command = [sys.executable, "-m", "reparam", "serve", "--model", str(onnx), "--port", "0"]
    start = time.perf_counter()
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as service:
        assert service.stdout is not None
        assert service.stdout.readline().startswith("http://")
        seconds = time.perf_counter() - start
        service.terminate()
    return seconds


def _sizes(network: str, onnx: Path) -> list[list[str]]:
    manifest = json.loads((onnx / "manifest.json").read_text())
    whole = sum(manifest["files"][f"{name}.onnx"]["bytes"] for name in ("encoder", "decoder"))
    rows = [[network, "float32", f"{whole / 1000:,.0f}", ""]]
    for kind, facts in manifest["variants"].items():
        size = f"{facts['bytes'] / 1000:,.0f} ({facts['size_ratio']} x smaller)"
        change = "" if facts["elbo_change"] is None else f"{facts['elbo_change']:+.4f}"
        rows.append([network, f"{kind}, not written" if facts["lost"] else kind, size, change])
    return rows


def _spinning(onnx: Path) -> list[list[str]]:
    """Measure calls that come on a schedule, as in a service."""
    sessions = {
        "onnxruntime as it comes": _session(onnx / "encoder.onnx", spin="1", threads=0),
        "no spinning, as in the client": _session(onnx / "encoder.onnx", spin="0", threads=0),
        "no spinning, one thread": _session(onnx / "encoder.onnx", spin="0", threads=1),
    }
    shape = sessions["onnxruntime as it comes"].get_inputs()[0].shape[1:]
    images = np.random.default_rng(0).integers(0, 256, (8, *shape), dtype=np.uint8)
    rows = []
    for name, session in sessions.items():
        waited = []
        session.run(None, {"images": images})
        before = time.process_time()
        for _ in range(CALLS):
            start = time.perf_counter()
            session.run(None, {"images": images})
            waited.append(time.perf_counter() - start)
            time.sleep(EVERY)
        used = (time.process_time() - before) / CALLS
        rows.append([name, f"{1000 * used:.2f}", f"{1000 * statistics.median(waited):.2f}"])
    return rows


def _session(path: Path, spin: str, threads: int) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.intra_op.allow_spinning", spin)
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


if __name__ == "__main__":
    main()
