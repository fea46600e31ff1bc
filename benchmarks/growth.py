"""How work grows: bytes that processes exchange, by their number, and seconds of a stage, by images.

    python benchmarks/growth.py [--most 400000]

The exchange is counted by torch's fake process group: one process of n, whose collectives return at once. The times are
those of whole processes. The seconds of a core show what a stage costs also where other programs slow it: those of its
first process are the serial part, which more cores do not shorten; workers share the rest.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import matplotlib.pyplot as plt
import numpy as np
import torch
import torch.distributed as dist
from PIL import Image
from results import table, write_section
from ruamel.yaml import YAML
from torch.testing._internal.distributed.fake_pg import FakeStore

from reparam import recipes
from reparam.cards.data import ImageFacts, Scaling
from reparam.data.batches import Batches
from reparam.distributed import World
from reparam.train.build import build_trainer

ROOT = Path(__file__).parent.parent
PROCESSES = (2, 8, 64, 1024)
BATCHES = (128, 1024)
CELEBA = 202_599  # images
IMAGES = (2_000, 10_000, 50_000, 100_000, 200_000, 400_000)
MB = 1e6
# Run a command and print the seconds of a core that it took: of its own process, and of those that it started.
MEASURED = """import atexit, json, resource, sys
from reparam.__main__ import main
spent = lambda who: sum(resource.getrusage(who)[:2])
atexit.register(lambda: print(json.dumps([spent(resource.RUSAGE_SELF), spent(resource.RUSAGE_CHILDREN)])))
main()"""
UNIT = Scaling(kind="unit", shift=(0.0,) * 3, scale=(1.0,) * 3)
RECIPE = "celeba-conv-vae"
FACES = ImageFacts(source="celeba", shape=(3, 64, 64), binarization="none", scaling=UNIT)
STEPS = 7  # of training, of which the first two do not count


@contextmanager
def counted(sent: Counter[str], size: int) -> Iterator[Callable[..., Any]]:
    """Count the bytes that one process of `size` sends in collectives; yield a hook that does it for gradients.

    In a ring, all-reduce sends 2 (n - 1) / n of what there is, all-gather n - 1 times what one process has, and
    broadcast what there is once.
    """
    ring = (size - 1) / size

    def all_reduce(tensor: torch.Tensor, *_: Any) -> None:
        sent["all_reduce"] += 2 * ring * tensor.nbytes

    def all_gather(_found: list[torch.Tensor], tensor: torch.Tensor) -> None:
        sent["all_gather"] += (size - 1) * tensor.nbytes

    def broadcast(tensor: torch.Tensor, **_: Any) -> None:
        sent["broadcast"] += tensor.nbytes

    def gradients(_: None, bucket: dist.GradBucket) -> torch.futures.Future[torch.Tensor]:
        sent["gradients"] += 2 * ring * bucket.buffer().nbytes
        future: torch.futures.Future[torch.Tensor] = torch.futures.Future()
        future.set_result(bucket.buffer())
        return future

    collectives = {"all_reduce": all_reduce, "all_gather": all_gather, "broadcast": broadcast}
    with mock.patch.multiple(dist, **collectives):
        yield gradients


def exchange(objective: str, size: int, batch: int) -> Counter[str]:
    """Return the bytes that the first of `size` processes sends in a step, and at the start of an epoch."""
    changes = {"objective.name": objective, "train.batch_size": batch, "model.conv.norm": "layer"}
    config = recipes.read(ROOT / "recipes", RECIPE, changes)
    dist.init_process_group("fake", rank=0, world_size=size, store=FakeStore())
    sent: Counter[str] = Counter()
    try:
        world = World(0, size)
        images = Batches(np.zeros((batch, 3, 64, 64), np.uint8), batch, torch.device("cpu"))
        trainer = build_trainer(config, FACES, images, world)
        with counted(sent, size) as hook:
            trainer._wrapped.register_comm_hook(None, hook)
            [part] = images.visit(torch.arange(batch), world.share)
            trainer.step(*part)
            in_step = Counter(sent)
            world.agree(torch.randperm(CELEBA))  # the order of images
            return in_step + Counter({"order": sent["broadcast"] - in_step["broadcast"]})
    finally:
        dist.destroy_process_group()


def exchanges() -> str:
    """Lay out what is exchanged."""
    rows = []
    for objective in ("elbo", "mmd"):
        for size in PROCESSES:
            for batch in BATCHES:
                if batch < size:
                    continue
                sent = exchange(objective, size, batch)
                order = sent.pop("order")
                step = sum(sent.values())
                epoch = step * (CELEBA / batch) + order
                parts = ", ".join(f"{name} {value / MB:.3f}" for name, value in sorted(sent.items()))
                rows.append([objective, f"{size:,}", f"{batch:,}", f"{step / MB:.1f}", parts, f"{epoch / 1e9:.2f}"])
    header = ["objective", "processes", "batch", "MB in a step", "of which", "GB in an epoch of CelebA"]
    return table(header, rows)


def training() -> str:
    """Say how fast a core trains the model, by the time of the core, which other programs hardly change."""
    torch.set_num_threads(1)
    rng, size = np.random.default_rng(0), 128
    images = Batches(rng.integers(0, 256, (STEPS * size, 3, 64, 64), np.uint8), size, torch.device("cpu"))
    trainer = build_trainer(recipes.read(ROOT / "recipes", RECIPE, {}), FACES, images, World(0, 1))
    seconds = []
    for batch in images.visit(torch.arange(STEPS * size), World(0, 1).share):
        start = time.process_time()
        trainer.step(*batch)
        seconds.append(time.process_time() - start)
    rate = size / statistics.median(seconds[2:])
    return (
        f"A core trains `{RECIPE}` with {rate:,.0f} images of 64x64 in colour a second, in float32, batches of {size}."
    )


def write_images(folder: Path, start: int, stop: int) -> None:
    """Add grey images of 28 x 28, a thousand to a folder."""
    rng = np.random.default_rng(start)
    for number in range(start, stop):
        path = folder / f"{number // 1000:04}" / f"{number:07}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (28, 28), np.uint8)).save(path, compress_level=0)


@dataclass(frozen=True)
class Times:
    """Of one process and those that it started."""

    wall: float  # seconds
    serial: float  # seconds of a core, of the process itself
    shared: float  # seconds of a core, of its workers


def times(most: int) -> tuple[list[int], dict[str, list[Times]]]:
    """Measure whole stages, on a folder that grows."""
    found: dict[str, list[Times]] = {}
    counts = [count for count in IMAGES if count <= most]
    with tempfile.TemporaryDirectory(prefix="reparam-growth-") as directory:
        root, images = Path(directory), Path(directory) / "images"
        _write_params(root, images)
        for before, count in zip([0, *counts], counts, strict=False):
            write_images(images, before, count)
            for name, taken in _measure(root):
                print(f"{count:,} images: {name}: {taken}", flush=True)
                found.setdefault(name, []).append(taken)
    return counts, found


def _measure(root: Path) -> Iterator[tuple[str, Times]]:
    yield "download", _run(root, ["download"])
    for workers in sorted({1, len(os.sched_getaffinity(0))}):
        yield f"preprocess, {workers} workers", _run(root, ["preprocess"], REPARAM_WORKERS=str(workers))
    for name in ("train", "export"):
        _run(root, [name])
    processed = np.load(root / "data/processed/train-images.npy")
    np.save(root / "images.npy", processed.transpose(0, 2, 3, 1))  # as apps have them
    yield "model encode", _run(root, ["model", "encode", str(root / "images.npy"), "--output", str(root / "codes.npy")])


def _write_params(root: Path, images: Path) -> None:
    values = recipes.complete(ROOT / "recipes", "smoke")
    recipes.merge(values, {"download": {"source": "folder", "folder": {"path": str(images)}}})
    recipes.merge(values, {"preprocess": {"limit": None, "image_size": 28, "validation": 0, "test": 10}})
    recipes.merge(values, {"train": {"epochs": 1, "batch_size": 8192}})
    YAML().dump(values, root / "params.yaml")


def _run(root: Path, command: list[str], **environment: str) -> Times:
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", MEASURED, *command],
        cwd=root,
        env=os.environ | {"MLFLOW_TRACKING_URI": "off", "PYTHONPATH": str(ROOT / "src")} | environment,
        stdout=subprocess.PIPE,
        check=True,
    )
    serial, shared = json.loads(done.stdout.splitlines()[-1])
    return Times(time.perf_counter() - start, serial, shared)


def straight(counts: list[int], seconds: list[float]) -> tuple[float, float]:
    """Fit a straight line: seconds that every run takes, and microseconds for each image more."""
    slope, offset = np.polyfit(counts, seconds, 1, w=1 / np.asarray(seconds))  # errors are shares of the time
    return float(offset), float(slope * 1e6)


def draw(counts: list[int], found: dict[str, list[Times]]) -> None:
    """Plot seconds over images."""
    figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
    for color, (name, taken) in enumerate(found.items()):
        axes.plot(counts, [one.serial + one.shared for one in taken], f"C{color}o-", label=name)
        if any(one.shared > 0.1 for one in taken):
            axes.plot(counts, [one.serial for one in taken], f"C{color}o:", label="of which serial")
    axes.set(xscale="log", yscale="log", xlabel="images of 28 x 28", ylabel="seconds of a core")
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(Path(__file__).parent / "growth.png", dpi=120)


def rows(counts: list[int], found: dict[str, list[Times]]) -> list[list[str]]:
    """Lay out the times: of each stage the seconds, the seconds of a core, and those of its first process."""
    lines = []
    for name, taken in found.items():
        parts = {"": [one.wall for one in taken], ", of a core": [one.serial + one.shared for one in taken]}
        if any(one.shared > 0.1 for one in taken):
            parts[", of a core, serial"] = [one.serial for one in taken]
        for part, seconds in parts.items():
            offset, slope = straight(counts, seconds)
            lines.append([name + part, *(f"{value:.1f}" for value in seconds), f"{offset:.1f}", f"{slope:.0f}"])
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--most", type=int, default=IMAGES[-1], help="images")
    parser.add_argument("--note", default="", help="what else ran, for the record")
    asked = parser.parse_args()
    counts, found = times(asked.most)
    draw(counts, found)
    header = ["seconds of", *(f"{count:,} images" for count in counts), "of which every run", "us an image"]
    text = f"A stage is a whole process. The last columns are those of a straight line. {asked.note}".rstrip() + "\n\n"
    text += f"{table(header, rows(counts, found))}\n\n![Seconds over images](growth.png)\n\n"
    write_section("Growth", f"{text}Sent by each process, counted:\n\n{exchanges()}\n\n{training()}")


if __name__ == "__main__":
    main()
