"""How work grows: bytes that processes exchange, by their number, and seconds of a stage, by images.

    python benchmarks/growth.py [--most 400000]

The exchange is counted by torch's fake process group: one process of n, whose collectives return at once. The times are
those of whole processes, with one worker and with all cores: what more cores do not shorten is the serial part.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
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
UNIT = Scaling(kind="unit", shift=(0.0,) * 3, scale=(1.0,) * 3)


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
    config = recipes.read(ROOT / "recipes", "celeba-conv-vae", changes)
    dist.init_process_group("fake", rank=0, world_size=size, store=FakeStore())
    sent: Counter[str] = Counter()
    try:
        world = World(0, size)
        facts = ImageFacts(source="celeba", shape=(3, 64, 64), binarization="none", scaling=UNIT)
        images = Batches(np.zeros((batch, 3, 64, 64), np.uint8), batch, torch.device("cpu"))
        trainer = build_trainer(config, facts, images, world)
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


def write_images(folder: Path, start: int, stop: int) -> None:
    """Add grey images of 28 x 28, a thousand to a folder."""
    rng = np.random.default_rng(start)
    for number in range(start, stop):
        path = folder / f"{number // 1000:04}" / f"{number:07}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (28, 28), np.uint8)).save(path, compress_level=0)


def times(most: int) -> tuple[list[int], dict[str, list[float]]]:
    """Measure whole stages, on a folder that grows."""
    found: dict[str, list[float]] = {}
    counts = [count for count in IMAGES if count <= most]
    with tempfile.TemporaryDirectory(prefix="reparam-growth-") as directory:
        root, images = Path(directory), Path(directory) / "images"
        _write_params(root, images)
        for before, count in zip([0, *counts], counts, strict=False):
            write_images(images, before, count)
            found.setdefault("download", []).append(_stage(root, "download"))
            for workers in sorted({1, len(os.sched_getaffinity(0))}):
                found.setdefault(f"preprocess, {workers} workers", []).append(_stage(root, "preprocess", workers))
            _stage(root, "train")
            _stage(root, "export")
            processed = np.load(root / "data/processed/train-images.npy")
            np.save(root / "images.npy", processed.transpose(0, 2, 3, 1))  # as apps have them
            command = ["model", "encode", str(root / "images.npy"), "--output", str(root / "codes.npy")]
            found.setdefault("model encode", []).append(_run(root, command))
    return counts, found


def _write_params(root: Path, images: Path) -> None:
    values = recipes.complete(ROOT / "recipes", "smoke")
    recipes.merge(values, {"download": {"source": "folder", "folder": {"path": str(images)}}})
    recipes.merge(values, {"preprocess": {"limit": None, "image_size": 28, "validation": 0, "test": 10}})
    recipes.merge(values, {"train": {"epochs": 1, "batch_size": 8192}})
    YAML().dump(values, root / "params.yaml")


def _stage(root: Path, name: str, workers: int = 0) -> float:
    return _run(root, [name], **({"REPARAM_WORKERS": str(workers)} if workers else {}))


def _run(root: Path, command: list[str], **environment: str) -> float:
    start = time.perf_counter()
    subprocess.run(
        [sys.executable, "-m", "reparam", *command],
        cwd=root,
        env=os.environ | {"MLFLOW_TRACKING_URI": "off", "PYTHONPATH": str(ROOT / "src")} | environment,
        stdout=subprocess.DEVNULL,
        check=True,
    )
    return time.perf_counter() - start


def straight(counts: list[int], seconds: list[float]) -> tuple[float, float]:
    """Fit a straight line: seconds that every run takes, and microseconds for each image more."""
    slope, offset = np.polyfit(counts, seconds, 1, w=1 / np.asarray(seconds))  # errors are shares of the time
    return float(offset), float(slope * 1e6)


def draw(counts: list[int], found: dict[str, list[float]]) -> None:
    """Plot seconds over images."""
    figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
    for name, seconds in found.items():
        axes.plot(counts, seconds, marker="o", label=name)
    axes.set(xscale="log", yscale="log", xlabel="images of 28 x 28", ylabel="seconds")
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(Path(__file__).parent / "growth.png", dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--most", type=int, default=IMAGES[-1], help="images")
    counts, found = times(parser.parse_args().most)
    draw(counts, found)
    rows = []
    for name, seconds in found.items():
        offset, slope = straight(counts, seconds)
        rows.append([name, *(f"{value:.1f}" for value in seconds), f"{offset:.1f}", f"{slope:.0f}"])
    header = ["seconds of", *(f"{count:,} images" for count in counts), "of which every run", "us an image"]
    text = "A stage is a whole process. The last columns are those of a straight line.\n\n"
    text += f"{table(header, rows)}\n\n![Seconds over images](growth.png)\n\nSent by each process, counted:\n\n"
    write_section("Growth", text + exchanges())


if __name__ == "__main__":
    main()
