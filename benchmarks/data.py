"""Preprocessing: time for MNIST, memory against the number of images, throughput against the number of processes.

    python benchmarks/data.py [--mnist DIRECTORY] [--images 40000]

Every measurement is a process of its own; kinds are interleaved, and medians of three are reported.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image
from results import table, write_section
from ruamel.yaml import YAML

ROOT = Path(__file__).parent.parent
REPEATS = 3


def main() -> None:
    """Measure and write RESULTS.md."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mnist", type=Path, default=ROOT.parent / "shared/data/mnist")
    parser.add_argument("--images", type=int, default=40_000)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        parts = [measure_mnist(Path(scratch) / "mnist", arguments.mnist)]
        parts.append(measure_folder(Path(scratch), arguments.images))
    write_section("Preprocessing", "\n\n".join(parts))


def measure_mnist(work: Path, files: Path) -> str:
    """Time `preprocess` on one core, from the gzip files to the store, process start and imports included."""
    if not files.exists():
        return f"MNIST: skipped, because the four files are not there ({files.name})."
    prepare(work, {"download": {"source": "mnist"}, "preprocess": {"validation": 10_000}})
    run(work, "download", REPARAM_MIRRORS=files.resolve().as_uri())
    seconds = statistics.median(run(work, "preprocess", cores={0})[0] for _ in range(REPEATS))
    stored = sum(path.stat().st_size for path in (work / "data/processed").iterdir())
    over = stored / (70_000 * 784) - 1
    return (
        f"MNIST from the gzip files on one core: {seconds:.2f} s, process start included; "
        f"the store is {over:.2%} over raw uint8."
    )


def measure_folder(scratch: Path, count: int) -> str:
    """Measure peak memory for few and many JPEGs, and throughput with one process and with all cores."""
    few, many, large = scratch / "few", scratch / "many", scratch / "large"
    folders = {few: (2_000, 64), many: (count, 64), large: (3_000, 512)}
    for folder, (number, size) in folders.items():
        draw_jpegs(folder / "jpegs", number, size)
        section = {"source": "folder", "folder": {"path": str(folder / "jpegs")}}
        prepare(folder, {"download": section, "preprocess": {"channels": 3, "image_size": 64, "binarization": "none"}})
        run(folder, "download")
    cores = len(os.sched_getaffinity(0))
    kinds = [(few, cores), (many, cores), (many, 1), (large, cores), (large, 1)]
    measured: dict[tuple[Path, int], list[tuple[float, float]]] = {kind: [] for kind in kinds}
    for _ in range(REPEATS):
        for kind in kinds:
            measured[kind].append(run(kind[0], "preprocess", REPARAM_WORKERS=str(kind[1])))
    rows = []
    for (folder, workers), runs in measured.items():
        seconds, peak = (statistics.median(values) for values in zip(*runs, strict=True))
        number, size = folders[folder]
        rows.append(
            [f"{number:,} of {size}x{size}", str(workers), f"{seconds:.1f}", f"{number / seconds:,.0f}", f"{peak:.0f}"]
        )
    header = ["RGB JPEGs, to 64x64", "processes", "seconds", "images/s", "peak MB of the largest process"]
    note = (
        "The peak is that of the largest process, the one that lists the files: names and checksums, about 1 kB per "
        "image, are all that grows. Process start, listing, checksums and statistics are not spread over processes."
    )
    return f"{table(header, rows)}\n\n{note}"


def draw_jpegs(folder: Path, count: int, size: int) -> None:
    """Write smooth random colour images."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for number in range(count):
        coarse = Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8))
        coarse.resize((size, size), Image.Resampling.BICUBIC).save(folder / f"{number:06}.jpg", quality=90)


def prepare(work: Path, changes: dict[str, dict[str, object]]) -> None:
    """Make a working copy that holds a params file only."""
    work.mkdir(parents=True, exist_ok=True)
    yaml = YAML()
    params = yaml.load(ROOT / "params.yaml")
    for section, values in changes.items():
        params[section].update(values)
    yaml.dump(params, work / "params.yaml")


def run(work: Path, stage: str, cores: set[int] | None = None, **settings: str) -> tuple[float, float]:
    """Run a stage in a process of its own; return seconds, and the peak memory in MB of its largest process."""
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src"), "MLFLOW_TRACKING_URI": "off"} | settings
    # Through a process of its own, because the peak of finished children can be read but not reset.
    code = (
        "import os, resource, subprocess, sys\n"
        f"os.sched_setaffinity(0, {cores or os.sched_getaffinity(0)})\n"
        f"subprocess.run([sys.executable, '-m', 'reparam', '{stage}'], check=True)\n"
        "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)"
    )
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=work, env=environment, check=True, capture_output=True, text=True
    )
    return time.perf_counter() - start, int(done.stdout.split()[-1]) / 1024


if __name__ == "__main__":
    main()
