"""A working copy with a sweep.yaml, and a small script in the place of DVC."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from reparam.paths import Paths
from reparam.sweep import study as studies
from reparam.sweep import worker
from reparam.sweep.study import Study

SWEEP = {
    "study": "s",
    "trials": 3,
    "sampler": "random",
    "parameters": {"train.learning_rate": {"low": 0.001, "high": 0.1, "log": True}, "model.latent": [2, 4, 8]},
}
# `behave` of a test says what happens, with `name`, `values`, `number` and `epoch` to use.
DVC = """
import json, os, sys, time
from pathlib import Path

arguments = sys.argv[sys.argv.index("--name") + 1 :]
name, number = arguments[0], int(arguments[0].rpartition("-")[2])
values = dict(pair.split("=", 1) for flag, pair in zip(arguments, arguments[1:]) if flag == "-S")
with open("calls.jsonl", "a") as calls:
    print(json.dumps([name, values, arguments[-1], os.environ["REPARAM_RESUME_DIR"]]), file=calls)

def begin(name=name):
    print(f"Reproducing experiment '{name}'", flush=True)

def epoch(number, elbo):
    with open(os.environ["REPARAM_EPOCHS"], "a") as file:
        print(json.dumps({"epoch": float(number), "validation_loss": -elbo, "validation_elbo": elbo}), file=file)

def finish(elbo=-100.0):
    Path(f"{name}.result").write_text(json.dumps({"elbo_validation": elbo}))

exec(Path("behave.py").read_text())
"""


@dataclass(frozen=True)
class Sweeps:
    """A working copy with a sweep.yaml."""

    paths: Paths
    file: Path

    def write(self, **changes: Any) -> None:
        self.file.write_text(json.dumps({**SWEEP, **changes}))

    def behave(self, code: str) -> None:
        """Say what the script does that runs an experiment."""
        (self.paths.root / "behave.py").write_text(code)

    def open(self, count: int | None = None) -> Study:
        return worker.join(self.file, self.paths, studies.default_storage(self.paths.sweeps), count)

    def work(self, count: int | None = None) -> Study:
        study = self.open(count)
        worker.work(study, self.paths)
        return study

    def calls(self) -> list[Any]:
        """Name, values, stage and folder of checkpoints of each experiment that was begun."""
        return [json.loads(line) for line in (self.paths.root / "calls.jsonl").read_text().splitlines()]


def states(study: Study) -> list[str]:
    """The states of all trials, those too that another one repeats."""
    return [trial.state.name for trial in study.optuna.get_trials(deepcopy=False)]


def params(study: Study) -> list[Mapping[str, Any]]:
    return [trial.params for trial in study.optuna.get_trials(deepcopy=False)]
