"""Memory that a client takes for many images: what embed and encode add to the process, some at a time and at once.

    python benchmarks/memory.py

Each number is of a process of its own: the most that it ever held, less what it held before the call. The images that
are encoded, and their codes, are in no number of `embed`; those of `encode` have the codes.
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from apps import ROOT, train
from results import table, write_section

COUNTS = (5_000, 20_000, 100_000)
PROGRAM = """
import itertools, re, sys
from pathlib import Path
import numpy as np
from reparam.client import Client

path, way, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
client = Client(path, "cpu", threads=1, batch=count if way == "at once" else None)
images = np.full((1 if way == "embed" else count, *client.image_shape), 7, np.uint8)
held = lambda name: int(re.search(rf"{name}:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) / 1024
Path("/proc/self/clear_refs").write_text("5")  # forget the peak of the start
before = held("VmRSS")
if way == "embed":
    assert sum(len(codes) for codes in client.embed(itertools.repeat(images[0], count))) == count
else:
    assert len(client.encode(images)[0]) == count
print(held("VmHWM") - before)
"""
WAYS = {"embed": "`embed`", "encode": "`encode`", "at once": "`encode`, batch of all"}


def main() -> None:
    """Measure and write RESULTS.md."""
    with tempfile.TemporaryDirectory() as scratch:
        onnx = train("mlp", Path(scratch) / "mlp").onnx
        write_section("Memory of the client", describe(onnx))


def describe(onnx: Path) -> str:
    """Return the text of the section."""
    rows = [[f"{count:,}", *(f"{_added(onnx, way, count):,.0f}" for way in WAYS)] for count in COUNTS]
    text = "MB that a call adds to its process; one thread, the MLP of the default parameters, images of 28x28:"
    return f"{text}\n\n{table(['images', *WAYS.values()], rows)}"


def _added(onnx: Path, way: str, count: int) -> float:
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src")}
    command = [sys.executable, "-c", PROGRAM, str(onnx), way, str(count)]
    return float(subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout)


if __name__ == "__main__":
    main()
