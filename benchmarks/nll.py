"""Speed and memory of the importance-sampled NLL on MNIST: image by image, and this project.

    python benchmarks/nll.py [--mnist DIRECTORY] [--images 10000] [--samples 5000]

Every way is a process of its own, which scores a block of images when it is asked to; the ways take turns, so that a
noisy machine is noisy for all. All draw the same noise where they draw as many numbers at once.
"""

import argparse
import functools
import gzip
import json
import math
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from results import peak_megabytes, table, write_section
from torch import Tensor, nn
from torch.nn import functional as F

ROOT = Path(__file__).parent.parent
BLOCK = 500  # images
BATCH = 100  # images that are scored together
REFERENCE = "image by image"
WAYS = {"fp32": "fp32", "bf16 inside products": "bf16_matmul", "bf16 autocast": "bf16"}
COUNTS = (50, 500, 50_000)  # samples, of few images, for the peaks of memory


def main() -> None:
    """Measure and write RESULTS.md."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mnist", type=Path, default=ROOT.parent / "shared/data/mnist")
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--samples", type=int, default=5_000)
    parser.add_argument("--worker", nargs=2, metavar=("WAY", "WEIGHTS"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        _work(*arguments.worker, arguments)
        return
    with tempfile.TemporaryDirectory() as scratch:
        weights = Path(scratch) / "weights.pt"
        torch.save(_train(arguments.mnist).state_dict(), weights)
        answers = _measure(weights, arguments)
        peaks = [_peak(weights, samples, arguments) for samples in COUNTS]
    write_section("Log-likelihood", _describe(answers, peaks, arguments))


Answers = dict[str, list[dict[str, float]]]  # of each way, block by block


def _measure(weights: Path, arguments: argparse.Namespace) -> Answers:
    workers = {way: _start(way, weights, arguments.samples, arguments) for way in (REFERENCE, *WAYS)}
    answers: Answers = {way: [] for way in workers}
    for block in range(-(-arguments.images // BLOCK)):
        for way, worker in workers.items():
            answers[way].append(_ask(worker, block * BLOCK, min(arguments.images, (block + 1) * BLOCK)))
            print(f"block {block}  {way}  {answers[way][-1]}", file=sys.stderr)
    for worker in workers.values():
        worker.communicate()
    return answers


def _peak(weights: Path, samples: int, arguments: argparse.Namespace) -> tuple[int, float]:
    found = []
    for count in (1, samples):
        worker = _start("fp32", weights, count, arguments)
        found.append(_ask(worker, 0, 1 if count == 1 else BATCH)["megabytes"])
        worker.communicate()
    return samples, found[1] - found[0]


def _start(way: str, weights: Path, samples: int, arguments: argparse.Namespace) -> subprocess.Popen[str]:
    command = [sys.executable, __file__, "--mnist", str(arguments.mnist), "--samples", str(samples)]
    return subprocess.Popen(
        [*command, "--worker", way, str(weights)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )


def _ask(worker: subprocess.Popen[str], start: int, end: int) -> dict[str, float]:
    assert worker.stdin is not None
    assert worker.stdout is not None
    worker.stdin.write(f"{start} {end}\n")
    worker.stdin.flush()
    line = worker.stdout.readline()
    if not line:
        raise SystemExit("a worker died; its message is above")
    found: dict[str, float] = json.loads(line)
    return found


def _describe(answers: Answers, peaks: list[tuple[int, float]], arguments: argparse.Namespace) -> str:
    from reparam.evaluate.importance import MEMORY

    seconds = {way: sum(row["seconds"] for row in rows) for way, rows in answers.items()}
    nll = {way: sum(row["nll"] * row["images"] for row in rows) / arguments.images for way, rows in answers.items()}
    speeds = {
        way: statistics.median(a["seconds"] / b["seconds"] for a, b in zip(answers[REFERENCE], rows, strict=True))
        for way, rows in answers.items()
    }
    rows = [
        [
            way,
            f"{seconds[way]:.0f}",
            f"{speeds[way]:.1f} x",
            f"{nll[way]:.3f}",
            f"{nll[way] - nll['fp32']:+.4f}",
            f"{answers[way][-1]['megabytes']:.0f}",
        ]
        for way in answers
    ]
    title = f"{arguments.images:,} images, {arguments.samples:,} samples each"
    header = [title, "seconds", "speed", "NLL", "against fp32", "peak MB"]
    found = [[f"{samples:,}", f"{megabytes:.0f}"] for samples, megabytes in peaks]
    return (
        f"784-400-20 after one epoch, thresholded MNIST. Speeds are medians over blocks of {BLOCK} images.\n\n"
        f"{table(header, rows)}\n\n"
        f"What {BATCH} images add to the peak of one image and sample, with a budget of {MEMORY['cpu'] >> 20} MB "
        "(`MEMORY` in `evaluate/importance.py`):\n\n"
        f"{table(['samples', 'MB'], found)}"
    )


def _work(way: str, weights: str, arguments: argparse.Namespace) -> None:
    """Score images from one number to another for each line that arrives, and answer with what it took."""
    model = _build()
    model.load_state_dict(torch.load(weights, weights_only=True))
    images = _read_images(arguments.mnist / "t10k-images-idx3-ubyte.gz")
    score = (_image_by_image if way == REFERENCE else _ours)(model, way, arguments.samples)
    for line in sys.stdin:
        first, last = map(int, line.split())
        torch.manual_seed(first)
        start = time.perf_counter()
        nll = score(images[first:last]).mean().item()
        seconds = time.perf_counter() - start
        answer = {"seconds": seconds, "nll": nll, "images": last - first, "megabytes": peak_megabytes()}
        print(json.dumps(answer), flush=True)


def _ours(model: Any, way: str, samples: int) -> Callable[[Tensor], Tensor]:
    from reparam.data.batches import Batch
    from reparam.evaluate.importance import importance
    from reparam.runtime import set_precision

    set_precision(WAYS[way])

    def score(images: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=WAYS[way] == "bf16"):
            return importance(model, map(Batch, torch.split(images, BATCH)), samples).nll

    return score


def _image_by_image(model: Any, _way: str, samples: int) -> Callable[[Tensor], Tensor]:
    """Score as scripts do: all samples of one image at once by torch's own layers, pixel by pixel from the logits."""
    for layers in (model.encoder, model.decoder):
        for layer in layers.modules():
            if isinstance(layer, nn.Linear):
                layer.forward = functools.partial(nn.Linear.forward, layer)

    @torch.no_grad()
    def score_one(x: Tensor) -> Tensor:
        mean, log_variance = model.encoder(x[None]).chunk(2, -1)
        noise = torch.randn(samples, mean.shape[1])
        z = mean + noise * (0.5 * log_variance).exp()
        logits = model.decoder(z)
        log_px = -F.binary_cross_entropy_with_logits(logits, x.expand_as(logits), reduction="none").sum((1, 2, 3))
        log_w = log_px - 0.5 * z.square().sum(1) + 0.5 * (noise.square() + log_variance).sum(1)
        return math.log(samples) - log_w.logsumexp(0)

    return lambda images: torch.stack([score_one(x) for x in images])


def _train(mnist: Path) -> Any:
    """Train one epoch in the plainest way."""
    torch.manual_seed(0)
    model, images = _build(), _read_images(mnist / "train-images-idx3-ubyte.gz")
    optimizer = torch.optim.Adam(model.parameters(), 1e-3, fused=True)
    for rows in torch.randperm(len(images)).split(128):
        optimizer.zero_grad()
        draw = model.draw(images[rows], images[rows], 1)
        (draw.kl - draw.log_px).mean().backward()
        optimizer.step()
    return model


def _build() -> Any:
    from reparam.models.build import build_model
    from reparam.recipes import read

    return build_model(read(ROOT / "recipes", "pytorch-example").model, (1, 28, 28))


def _read_images(path: Path) -> Tensor:
    """Return black and white images, on which a Bernoulli is a density."""
    with gzip.open(path) as file:
        pixels = np.frombuffer(file.read(), np.uint8, offset=16).reshape(-1, 1, 28, 28)
    return torch.from_numpy((pixels > 127).astype(np.float32))


if __name__ == "__main__":
    main()
