"""Cost of an epoch when images do not fit into memory and are read ahead from the disk: time and private memory.

    python benchmarks/streaming.py [--images 30000 120000 360000]

Each size is a process of its own that trains 784-400-20 for one epoch after a short warm-up.
"""

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from results import table, write_section

ROOT = Path(__file__).parent.parent
WARM_UP = 50  # batches
REPEATS = 3  # of which the median counts


def main() -> None:
    """Measure and write RESULTS.md."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, nargs="+", default=[30_000, 120_000, 360_000])
    parser.add_argument("--worker", nargs=2, metavar=("FILE", "FRACTION"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        _work(*arguments.worker)
        return
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        for images in arguments.images:
            path = Path(scratch) / f"{images}.npy"
            _write_images(path, images)
            for name, fraction in (("read ahead", "0"), ("in memory", "1")):
                found = [_measure(path, fraction) for _ in range(REPEATS)]
                seconds = statistics.median(row["seconds"] for row in found)
                megabytes = max(row["megabytes"] for row in found)
                rows.append([f"{images:,}", name, f"{seconds:.1f}", f"{images / seconds:,.0f}", f"{megabytes:.0f}"])
                print(rows[-1], file=sys.stderr)
    text = table(["images of 28x28", "kept", "seconds per epoch", "images/s", "private MB at its end"], rows)
    note = (
        "Mapped pages of the file are not counted: the system takes them back when it needs them. Files start outside "
        f"of the page cache. Medians of {REPEATS} runs, the largest of their memory."
    )
    write_section("Streaming", f"{text}\n\n{note}")


def _write_images(path: Path, images: int) -> None:
    file = np.lib.format.open_memmap(path, "w+", np.uint8, (images, 1, 28, 28))
    random = np.random.default_rng(0)
    for start in range(0, images, 10_000):
        part = file[start : start + 10_000]
        part[:] = random.integers(0, 256, part.shape, dtype=np.uint8)
    file.flush()


def _measure(path: Path, fraction: str) -> dict[str, float]:
    with path.open("rb") as file:  # out of the page cache, so that it comes from the disk
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    command = [sys.executable, __file__, "--worker", str(path), fraction]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr)
    found: dict[str, float] = json.loads(done.stdout)
    return found


def _work(path: str, fraction: str) -> None:
    os.environ["REPARAM_RESIDENT_FRACTION"] = fraction
    import torch

    from reparam.cards.data import ImageFacts, Scaling
    from reparam.data.batches import Batches
    from reparam.recipes import read
    from reparam.train.build import build_trainer
    from reparam.train.sums import Sums

    images = np.load(path, mmap_mode="r")
    config = read(ROOT / "recipes", "pytorch-example")
    data = Batches(images, config.train.batch_size, torch.device("cpu"))
    scaling = Scaling(kind="unit", shift=(0.0,), scale=(1.0,))
    facts = ImageFacts(source="mnist", binarization="none", scaling=scaling, shape=(1, 28, 28))
    trainer = build_trainer(config, facts, data)
    for batch in data.visit(torch.arange(min(len(data), WARM_UP * config.train.batch_size))):
        trainer.step(*batch)
    start, sums = time.perf_counter(), Sums(data.device)
    for batch in data.visit(torch.randperm(len(data))):
        sums.add(trainer.step(*batch))
    sums.means("train", 1)
    seconds = time.perf_counter() - start
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    private = re.search(r"RssAnon:\s+(\d+)", status)
    assert private
    print(json.dumps({"seconds": seconds, "megabytes": int(private[1]) / 1024}))


if __name__ == "__main__":
    main()
