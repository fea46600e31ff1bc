"""Training speed on MNIST: the usual way (torchvision, DataLoader, the step of the PyTorch example), pythae where it is
installed, and this project.

    python benchmarks/train.py [OLD NEW] [--mnist DIRECTORY] [--epochs 3] [--only MODEL]

Every way is a process of its own, which trains one epoch when it is asked to; the ways take turns, so that a noisy
machine is noisy for all. Medians are reported, without each way's first epoch (imports, compilation, caches).
With two trees of this project, each way of the one is compared with the same way of the other.
"""

import argparse
import copy
import gzip
import importlib.util
import itertools
import json
import logging
import math
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from results import RESULTS, commit_of, peak_megabytes, table, write_section
from torch import Tensor, nn
from torch.nn import functional as F

ROOT = Path(__file__).parent.parent
MODELS = {  # recipe, changes to it
    "784-400-20, batch 128": ("pytorch-example", {}),
    "784-512-512-2, batch 64": ("keras-gaussian", {"model.init": "torch"}),
    "conv 32/64, latent 2, batch 128": (
        "conv-latent2",
        {"train.batch_size": 128, "train.optimizer": "adam", "train.weight_decay": 0.0},
    ),
}
WAYS: dict[str, dict[str, Any]] = {  # changes to section `train`
    "fp32": {},
    "bf16 inside products": {"precision": "bf16_matmul"},
    "bf16 autocast": {"precision": "bf16"},
    "compiled, fp32": {"compile": True},
    "compiled, bf16 autocast": {"compile": True, "precision": "bf16"},
}
CONV_WAYS: dict[str, dict[str, Any]] = {
    "compiled, fp32, channels last": {"compile": True, "channels_last": True},
    "compiled, bf16 autocast, channels last": {"compile": True, "precision": "bf16", "channels_last": True},
}
GPU_WAYS: dict[str, dict[str, Any]] = {
    "launched, fp32": {},
    "launched, fp32, sums in any order": {"deterministic": False},
    "CUDA graph, fp32": {"cuda_graph": True},
    "CUDA graph, fp32, sums in any order": {"cuda_graph": True, "deterministic": False},
    "CUDA graph, tf32": {"cuda_graph": True, "precision": "tf32"},
    "CUDA graph, bf16 autocast": {"cuda_graph": True, "precision": "bf16"},
    "compiled, fp32": {"compile": True},
    "compiled, CUDA graph, bf16 autocast": {"compile": True, "cuda_graph": True, "precision": "bf16"},
}
REFERENCE = "the usual way"
PYTHAE = "pythae"
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
TITLE = "Training on a GPU" if DEVICE.type == "cuda" else "Training"
PLOT = RESULTS.with_name("training-gpu.png" if DEVICE.type == "cuda" else "training.png")
IMAGES = 60_000
SIDE = 8192 if DEVICE.type == "cuda" else 1024  # of the matrices whose product shows what the machine can do


def main() -> None:
    """Measure and write RESULTS.md."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("trees", nargs="*", type=Path, metavar="OLD NEW", help="two trees of this project")
    parser.add_argument("--mnist", type=Path, default=ROOT.parent / "shared/data/mnist")
    parser.add_argument(
        "--epochs", type=int, default=3 if DEVICE.type == "cpu" else 10, help="measured, after one that is not"
    )
    parser.add_argument("--only", default="", help="models whose name contains this")
    parser.add_argument("--ways", default="", help="ways of two trees whose name contains this")
    parser.add_argument("--worker", nargs=2, metavar=("MODEL", "WAY"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        _work(*arguments.worker, arguments.mnist)
        return
    if arguments.trees:
        _compare_trees(arguments)
        return
    measured = {model: _measure(model, arguments) for model in MODELS if arguments.only in model}
    rates = _matmul_rates()
    parts = [_describe_floor(*rates), f"![Speed against the usual way]({PLOT.name})"]
    parts += [_table_of(model, answers, arguments.epochs, max(rates)) for model, answers in measured.items()]
    write_section(TITLE, "\n\n".join(parts))
    _plot({model: _medians(answers) for model, answers in measured.items()})


def _describe_floor(torchs: float, ours: float) -> str:
    about = (
        f"Float32 matrix products run at {torchs / 1e9:.0f} GFLOP/s here as torch computes them, and at "
        f"{ours / 1e9:.0f} GFLOP/s in `reparam`'s linear layers (best of 20, {SIDE} x {SIDE}). The floor of a model is "
        "the arithmetic of its products, forward and backward, at the higher rate, in float32: lower precisions may go "
        "below it. Reading, shuffling and batching are part of an epoch; validation, checkpoints and progress are not. "
        "One seed: losses differ by some tenths between seeds. `compiled` is without the first epoch's compilation (10 "
        "to 60 s), `CUDA graph` without the capture. pythae's Gaussian is another, so its losses of the other models "
        "do not compare. "
    )
    if DEVICE.type == "cuda":
        return f"{about}On {torch.cuda.get_device_name()}. Peaks of memory are those of the host."
    return about + (
        "Threads of `reparam` spin while they wait, as it chooses by itself on a quiet machine; those of the other "
        "ways wait as OpenMP likes. `bf16 inside products` rounds factors only on processors that have instructions "
        "for it (AMX)."
    )


def _matmul_rates() -> tuple[float, float]:
    """Measure torch's layer and ours, in operations per second."""
    from reparam.models.linear import Linear

    x = torch.randn(SIDE, SIDE, device=DEVICE)
    rates = []
    for layer in (nn.Linear(SIDE, SIDE), Linear(SIDE, SIDE)):
        seconds = []
        layer.to(DEVICE)
        for _ in range(20):
            start = time.perf_counter()
            with torch.no_grad():
                layer(x)[0, 0].item()  # waits for the device
            seconds.append(time.perf_counter() - start)
        rates.append(2 * SIDE**3 / min(seconds))
    return rates[0], rates[1]


Answers = dict[str, list[dict[str, float]]]  # of each way, epoch by epoch
Start = Callable[[], "subprocess.Popen[str]"]


def _measure(model: str, arguments: argparse.Namespace) -> Answers:
    pythae = [PYTHAE] if importlib.util.find_spec("pythae") else []
    ways = [REFERENCE, *pythae, *_our_ways(model)]
    return _take_turns(model, {way: partial(_start, model, way, arguments.mnist) for way in ways}, arguments.epochs)


def _our_ways(model: str) -> dict[str, dict[str, Any]]:
    return GPU_WAYS if DEVICE.type == "cuda" else WAYS | (CONV_WAYS if "conv" in model else {})


def _take_turns(model: str, starts: dict[str, Start], epochs: int) -> Answers:
    workers: dict[str, subprocess.Popen[str]] = {}
    answers: Answers = {way: [] for way in starts}
    try:
        for way in list(starts) * (epochs + 1):
            if way not in workers:
                workers[way] = starts[way]()
            answers[way].append(_ask(workers[way], f"{model}, {way}"))
            print(f"{model}  {way}  {answers[way][-1]}", file=sys.stderr)
    finally:
        for worker in workers.values():
            worker.kill()
            worker.communicate()
    return answers


def _compare_trees(arguments: argparse.Namespace) -> None:
    """Train each way with the source of both trees in turns, and write how long the new one takes against the old."""
    old, new = (tree.resolve() for tree in arguments.trees)
    parts = []
    for model in MODELS:
        if arguments.only not in model:
            continue
        ways = [way for way in _our_ways(model) if arguments.ways in way]
        starts = {
            f"{way} {tree}": partial(_start, model, way, arguments.mnist, tree) for way in ways for tree in (old, new)
        }
        answers = _take_turns(model, starts, arguments.epochs)
        medians = _medians(answers)
        rows = [
            [
                way,
                *(f"{medians[f'{way} {tree}']:#.3g}" for tree in (old, new)),
                *_compare(answers[f"{way} {old}"], answers[f"{way} {new}"]),
            ]
            for way in ways
        ]
        header = [
            model,
            f"seconds per epoch, {commit_of(old)}",
            f"seconds per epoch, {commit_of(new)}",
            "share",
            "losses",
        ]
        parts.append(table(header, rows))
    about = (
        f"Medians of {arguments.epochs} epochs, in turns; the share is the median of the ratios of epochs, with their "
        "quartiles."
    )
    write_section(f"{TITLE}, before and after", "\n\n".join([*parts, about]))


def _compare(old: list[dict[str, float]], new: list[dict[str, float]]) -> tuple[str, str]:
    """Return how long the new tree took, and whether the losses of all epochs are equal to the last digit."""
    ratios = [b["seconds"] / a["seconds"] for a, b in zip(old[1:], new[1:], strict=True)]
    low, median, high = statistics.quantiles(ratios, n=4)
    is_same = [row["loss"] for row in old] == [row["loss"] for row in new]
    return f"{median:.0%} ({low:.0%} to {high:.0%})", "equal" if is_same else "differ"


def _ask(worker: subprocess.Popen[str], name: str) -> dict[str, float]:
    """Let a worker train an epoch; before and after it, the worker is stopped, or its threads would spin."""
    assert worker.stdin is not None
    assert worker.stdout is not None
    worker.send_signal(signal.SIGCONT)
    worker.stdin.write("epoch\n")
    worker.stdin.flush()
    line = worker.stdout.readline()
    if not line:
        raise SystemExit(f"{name}: the process died; its message is above")
    worker.send_signal(signal.SIGSTOP)
    answer: dict[str, float] = json.loads(line)
    return answer


def _start(model: str, way: str, mnist: Path, tree: Path = ROOT) -> subprocess.Popen[str]:
    """Start a way as its users would have it: `reparam` lets threads spin where nobody else computes."""
    policy = {} if way in (REFERENCE, PYTHAE) or DEVICE.type == "cuda" else {"OMP_WAIT_POLICY": "ACTIVE"}
    return subprocess.Popen(
        [sys.executable, str(tree / "benchmarks/train.py"), "--mnist", str(mnist), "--worker", model, way],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | policy | {"PYTHONPATH": str(tree / "src")},
    )


def _medians(answers: Answers) -> dict[str, float]:
    return {way: statistics.median(row["seconds"] for row in rows[1:]) for way, rows in answers.items()}


def _table_of(model: str, answers: Answers, epochs: int, rate: float) -> str:
    medians = _medians(answers)
    rows = [
        [
            way,
            f"{medians[way]:#.3g}",
            f"{medians[REFERENCE] / medians[way]:.1f} x",
            f"{answers[way][-1]['loss']:.2f}",
            f"{answers[way][-1]['megabytes']:.0f}",
        ]
        for way in answers
    ]
    floor = max(rows[0]["flops"] for rows in answers.values()) * IMAGES / rate
    header = [model, "seconds per epoch", "speed", f"loss in epoch {epochs + 1}", "peak MB"]
    return f"{table(header, rows)}\n\nFloor: {floor:#.2g} s."


def _plot(measured: dict[str, dict[str, float]]) -> None:
    """Draw how many times as fast as the usual way each way is."""
    from reparam.figures.images import COLOURS, png, style

    with style():
        heights = [len(medians) for medians in measured.values()]
        figure = Figure(figsize=(7, 0.24 * sum(heights) + 0.75 * len(heights)), layout="constrained")
        panels = figure.subplots(len(measured), 1, squeeze=False, sharex=True, height_ratios=heights)[:, 0]
        for axes, (model, medians) in zip(panels, measured.items(), strict=True):
            ways = list(medians)[::-1]
            speeds = [medians[REFERENCE] / medians[way] for way in ways]
            colours = [COLOURS[9] if way in (REFERENCE, PYTHAE) else COLOURS[0] for way in ways]
            bars = axes.barh(ways, speeds, color=colours, height=0.72)
            axes.bar_label(bars, [f"{medians[way]:#.3g} s" for way in ways], padding=4, fontsize=8)
            axes.set_title(model)
            axes.margins(x=0.12)
        panels[-1].set_xlabel("times as fast as the usual way (labels: seconds per epoch)")
    PLOT.write_bytes(png(figure))


def _work(model: str, way: str, mnist: Path) -> None:
    """Train one epoch for each line that arrives, and answer with what it took."""
    with tempfile.TemporaryDirectory() as scratch:
        start_way = {REFERENCE: _usual_way, PYTHAE: _pythae_way}.get(way, _our_way)
        epoch = start_way(model, way, mnist, Path(scratch))
        for _ in sys.stdin:
            start = time.perf_counter()
            loss, flops = epoch()
            seconds = time.perf_counter() - start
            answer = {"seconds": seconds, "loss": loss, "flops": flops, "megabytes": peak_megabytes()}
            print(json.dumps(answer), flush=True)


Epoch = Callable[[], tuple[float, float]]


def _our_way(model: str, way: str, mnist: Path, _scratch: Path) -> Epoch:
    from reparam.cards.data import ImageFacts, Scaling
    from reparam.data.batches import Batches
    from reparam.recipes import read
    from reparam.runtime import make_deterministic, set_precision
    from reparam.train.build import build_trainer
    from reparam.train.sums import Sums

    recipe, changes = MODELS[model]
    of_way = {f"train.{name}": value for name, value in (WAYS | CONV_WAYS | GPU_WAYS)[way].items()}
    config = read(ROOT / "recipes", recipe, changes | of_way)
    make_deterministic(config.train.seed, kernels=config.train.deterministic)
    set_precision(config.train.precision)
    data = Batches(_read_images(mnist), config.train.batch_size, DEVICE)
    scaling = Scaling(kind="unit", shift=(0.0,), scale=(1.0,))
    facts = ImageFacts(source="mnist", binarization="none", scaling=scaling, shape=(1, 28, 28))
    trainer = build_trainer(config, facts, data)
    flops = _flops(trainer.loss)

    def epoch() -> tuple[float, float]:
        sums = Sums(DEVICE)
        for batch in data.visit(torch.randperm(len(data))):
            sums.add(trainer.step(*batch))
        return sums.means("train", 1)["train_loss"], flops

    return epoch


def _flops(loss: Any) -> float:
    """Count the arithmetic of linear layers and convolutions for one image, forward and backward."""
    from torch.utils.flop_counter import FlopCounterMode

    from reparam.objectives import Setting

    # In float64, whose products are all torch's own, which the counter knows.
    loss, x = copy.deepcopy(loss).cpu().double(), torch.zeros(64, 1, 28, 28, dtype=torch.float64)
    with FlopCounterMode(display=False) as counter:
        terms = loss.objective(loss.model, x, loss.config, Setting(loss.epoch, loss.black, loss.white))
        terms["loss"].mean().backward()
    return counter.get_total_flops() / len(x)


def _usual_way(model: str, _way: str, mnist: Path, scratch: Path) -> Epoch:
    """Train as the well-known example does: one image at a time through ToTensor, losses from probabilities."""
    from torchvision import datasets, transforms

    raw = scratch / "MNIST/raw"
    raw.mkdir(parents=True)
    for path in mnist.glob("*.gz"):
        with gzip.open(path) as source, (raw / path.stem).open("wb") as target:
            shutil.copyfileobj(source, target)
    torch.manual_seed(0)
    dataset = datasets.MNIST(scratch, train=True, transform=transforms.ToTensor())
    on_a_gpu = {"num_workers": 1, "pin_memory": True} if DEVICE.type == "cuda" else {}
    loader = torch.utils.data.DataLoader(dataset, batch_size=_batch_size(model), shuffle=True, **on_a_gpu)
    network = UsualVAE(*_usual_networks(model)).to(DEVICE)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)

    def loss_of(x: Tensor) -> Tensor:
        mean_image, mean, log_variance = network(x)
        if "400" in model:
            reconstruction = F.binary_cross_entropy(mean_image.flatten(1), x.flatten(1), reduction="sum")
        else:
            variance = 0.25 if "512" in model else 0.5
            constant = 0.5 * math.log(2 * math.pi * variance) * x.numel()
            reconstruction = (
                F.mse_loss(mean_image.flatten(1), x.flatten(1), reduction="sum") / (2 * variance) + constant
            )
        return reconstruction - 0.5 * torch.sum(1 + log_variance - mean.pow(2) - log_variance.exp())

    def epoch() -> tuple[float, float]:
        network.train()
        total = 0.0
        for x, _ in loader:
            optimizer.zero_grad()
            loss = loss_of(x.to(DEVICE))
            loss.backward()
            total += loss.item()
            optimizer.step()
        return total / len(dataset), 0.0

    return epoch


def _pythae_way(model: str, _way: str, mnist: Path, scratch: Path) -> Epoch:
    """Train with pythae's own trainer. (Its Gaussian has a variance of 1, so only the first model's loss compares.)"""
    os.environ["TQDM_DISABLE"] = "1"
    from pythae.data.datasets import BaseDataset
    from pythae.models import VAE, VAEConfig
    from pythae.models.base.base_utils import ModelOutput
    from pythae.models.nn import BaseDecoder, BaseEncoder
    from pythae.trainers import BaseTrainer, BaseTrainerConfig

    logging.disable(logging.INFO)
    network, (mean, log_variance), decoder = _usual_networks(model)

    class Encoder(BaseEncoder):
        def __init__(self) -> None:
            super().__init__()
            self.network, self.mean, self.log_variance = network, mean, log_variance

        def forward(self, x: Tensor) -> ModelOutput:
            h = self.network(x)
            return ModelOutput(embedding=self.mean(h), log_covariance=self.log_variance(h))

    class Decoder(BaseDecoder):
        def __init__(self) -> None:
            super().__init__()
            self.network = decoder

        def forward(self, z: Tensor) -> ModelOutput:
            return ModelOutput(reconstruction=self.network(z).reshape(-1, 1, 28, 28))

    config = VAEConfig((1, 28, 28), mean.out_features, reconstruction_loss="bce" if "400" in model else "mse")
    images = torch.from_numpy(_read_images(mnist).copy()).float() / 255
    trainer = BaseTrainer(
        VAE(config, Encoder(), Decoder()),
        BaseDataset(images, torch.zeros(len(images))),
        training_config=BaseTrainerConfig(
            output_dir=str(scratch),
            learning_rate=1e-3,
            per_device_train_batch_size=_batch_size(model),
            no_cuda=DEVICE.type == "cpu",
        ),
    )
    trainer.prepare_training()
    return lambda: (float(trainer.train_step(1)), 0.0)


class UsualVAE(nn.Module):
    """The model of the example, with its heads side by side."""

    def __init__(self, encoder: nn.Module, heads: tuple[nn.Module, nn.Module], decoder: nn.Module) -> None:
        super().__init__()
        self.encoder, self.decoder = encoder, decoder
        self.mean, self.log_variance = heads

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        h = self.encoder(x)
        mean, log_variance = self.mean(h), self.log_variance(h)
        z = mean + torch.randn_like(mean) * torch.exp(0.5 * log_variance)
        return self.decoder(z), mean, log_variance


def _batch_size(model: str) -> int:
    return 64 if "batch 64" in model else 128


def _usual_networks(model: str) -> tuple[nn.Module, tuple[nn.Module, nn.Module], nn.Module]:
    if "conv" in model:
        encoder = nn.Sequential(
            *(nn.Conv2d(1, 32, 3, 2, 1), nn.ReLU(), nn.Conv2d(32, 64, 3, 2, 1), nn.ReLU(), nn.Flatten()),
            *(nn.Linear(64 * 49, 400), nn.ReLU()),
        )
        decoder = nn.Sequential(
            *(nn.Linear(2, 64 * 49), nn.ReLU(), nn.Unflatten(1, (64, 7, 7))),
            *(nn.ConvTranspose2d(64, 32, 3, 2, 1, 1), nn.ReLU(), nn.ConvTranspose2d(32, 1, 3, 2, 1, 1), nn.Sigmoid()),
        )
        return encoder, (nn.Linear(400, 2), nn.Linear(400, 2)), decoder
    widths, latent = ([784, 400], 20) if "400" in model else ([784, 512, 512], 2)

    def stack(sizes: list[int]) -> list[nn.Module]:
        return [layer for a, b in itertools.pairwise(sizes) for layer in (nn.Linear(a, b), nn.ReLU())]

    decoder_layers = [*stack([latent, *reversed(widths[1:])]), nn.Linear(widths[1], 784), nn.Sigmoid()]
    heads = nn.Linear(widths[-1], latent), nn.Linear(widths[-1], latent)
    return nn.Sequential(nn.Flatten(), *stack(widths)), heads, nn.Sequential(*decoder_layers)


def _read_images(mnist: Path) -> Any:
    with gzip.open(mnist / "train-images-idx3-ubyte.gz") as file:
        return np.frombuffer(file.read(), np.uint8, offset=16).reshape(-1, 1, 28, 28)


if __name__ == "__main__":
    main()
