"""How long a person waits for a small change: whole processes, from the command line to the last file.

    python benchmarks/loop.py [OLD NEW] [--repeats 5]

Each tree is copied into a git repository of its own, where the pipeline runs once on small data. The trees take
turns with every command, so that a noisy machine is noisy for both. Without trees, this one is measured alone.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from results import commit_of, table, write_section
from ruamel.yaml import YAML

ROOT = Path(__file__).parent.parent
STAGES = ("download", "preprocess", "train", "evaluate", "export", "report")
EPOCHS = 3
DATA_AND_MODEL = {  # the same in each tree, whatever its default is; these keys have not changed their names
    "download.source": "digits",
    "preprocess.validation": 0.125,
    "preprocess.test": 0.2,
    "model.network": "mlp",
    "model.latent": 12,
    "train.epochs": EPOCHS,
    "train.batch_size": 64,
    "train.learning_rate": 0.002,
    "train.schedule": "constant",
    "train.average": 0.0,
    "train.channels_last": False,
    "evaluate.batch_size": 128,
    "evaluate.elbo_samples": 16,
    "evaluate.nll_samples": 2000,
}
OFF = {"MLFLOW_TRACKING_URI": "off"}
COMMANDS: dict[str, tuple[str, dict[str, str]]] = {  # and the environment
    # Another seed each time, or DVC would find the result in its cache.
    f"`dvc exp run -S train.epochs={EPOCHS}`": (
        f"dvc exp run --quiet -S train.epochs={EPOCHS} -S train.seed={{seed}}",
        {},
    ),
    "`dvc exp run -S evaluate.seed=1`": ("dvc exp run --quiet -S evaluate.seed={seed}", {}),
    **{f"`reparam {stage}`, tracking off": (f"python -m reparam {stage}", OFF) for stage in STAGES},
    "`reparam --help`": ("python -m reparam --help", {}),
}

Seconds = dict[str, list[list[float]]]  # of each command, tree by tree


class Repository:
    """A tree in a fresh repository, under DVC."""

    def __init__(self, tree: Path, root: Path) -> None:
        self.root = root
        kept = {
            name: value for name, value in os.environ.items() if not name.startswith(("DVC_", "MLFLOW_", "REPARAM_"))
        }
        self.environment = kept | {
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": "src",
            "DVC_NO_ANALYTICS": "true",
            "DVC_SITE_CACHE_DIR": f"{root}-site-cache",
            **{
                f"GIT_{who}_{what}": "benchmark@localhost"
                for who in ("AUTHOR", "COMMITTER")
                for what in ("NAME", "EMAIL")
            },
        }
        self._copy(tree)
        for command in ("git init --quiet --initial-branch main", "dvc repro --quiet"):
            self(command)
        self("git add --all")
        self("git commit --quiet --message start")

    def __call__(self, command: str, **environment: str) -> float:
        """Run a command that must succeed, and return how many seconds it took."""
        start = time.perf_counter()
        done = subprocess.run(
            command.split(),
            cwd=self.root,
            env=self.environment | environment,
            capture_output=True,
            text=True,
            check=False,
        )
        seconds = time.perf_counter() - start
        if done.returncode:
            raise SystemExit(f"{command}: exit {done.returncode}\n{done.stdout}\n{done.stderr}")
        return seconds

    def _copy(self, tree: Path) -> None:
        """Copy what git knows or would add, without results, with the same data and model."""
        command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
        names = subprocess.run(command, cwd=tree, capture_output=True, text=True, check=True).stdout.split("\0")
        for name in filter(None, names):
            is_result = name == "dvc.lock" or (name.startswith("reports/") and name.endswith("metrics.json"))
            if not is_result and (tree / name).exists():
                (self.root / name).parent.mkdir(parents=True, exist_ok=True)
                (self.root / name).write_bytes((tree / name).read_bytes())
        yaml = YAML()
        params = yaml.load(self.root / "params.yaml")
        for key, value in DATA_AND_MODEL.items():
            section, name = key.split(".")
            params[section][name] = value
        yaml.dump(params, self.root / "params.yaml")


def main() -> None:
    """Measure and write RESULTS.md."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("trees", type=Path, nargs="*", default=[ROOT], metavar="TREE")
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        repositories = [Repository(tree, Path(scratch) / str(number)) for number, tree in enumerate(arguments.trees)]
        measured = _measure(repositories, arguments.repeats)
    write_section("The inner loop", _describe(measured, arguments))


def _measure(repositories: list[Repository], repeats: int) -> Seconds:
    seconds: Seconds = {name: [[] for _ in repositories] for name in COMMANDS}
    for repeat in range(1, repeats + 1):
        for name, (command, environment) in COMMANDS.items():
            for found, repository in zip(seconds[name], repositories, strict=True):
                found.append(repository(command.format(seed=repeat), **environment))
                print(f"{repeat}  {name}  {found[-1]:.2f} s", file=sys.stderr)
    return seconds


def _describe(measured: Seconds, arguments: argparse.Namespace) -> str:
    header = ["command", *(f"seconds, {commit_of(tree)}" for tree in arguments.trees)]
    rows = []
    for name, found in measured.items():
        medians = [statistics.median(seconds) for seconds in found]
        rows.append([name, *(f"{median:.2f}" for median in medians)])
        rows[-1] += [f"{medians[-1] / medians[0]:.0%}"] * (len(medians) > 1)
    note = (
        f"Small digits and an MLP, {EPOCHS} epochs. Medians of {arguments.repeats} runs, in turns; imports and the "
        "start of processes are included."
    )
    return f"{table(header + ['share'] * (len(arguments.trees) > 1), rows)}\n\n{note}"


if __name__ == "__main__":
    main()
