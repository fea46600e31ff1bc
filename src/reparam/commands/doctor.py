"""Check the installation, the project and its stores; for each problem, name the next step."""

import io
import json
import os
import shutil
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from queue import Empty, Queue
from threading import Thread
from typing import Any

from reparam import track
from reparam.commands import project
from reparam.config import load_config
from reparam.errors import TrackingError, UserError
from reparam.lineage import package_hash
from reparam.machine import locks
from reparam.machine.git import ask as ask_git
from reparam.machine.threads import COPIES
from reparam.machine.versions import LIBRARIES, versions
from reparam.paths import Paths
from reparam.redact import redact, without_secrets

NO_FOLDER = "no folder is there"
PATIENCE = 10.0  # seconds for a remote to answer
LEAST_DISK = 2e9  # bytes; the default run takes a tenth of that
DRIVER = Path("/dev/nvidia0")
SHOWN = 3  # failed tasks by name
INSTALL = "install the package again: docs/how-to/install.md"


@dataclass(frozen=True)
class Finding:
    """The result of one check. A remedy means that something is wrong; if that is tolerable, work goes on."""

    name: str
    text: str
    remedy: str = ""  # the next step
    is_tolerable: bool = False

    @property
    def is_broken(self) -> bool:
        return bool(self.remedy) and not self.is_tolerable


def examine(paths: Paths) -> Iterator[Finding]:
    """Look at everything, one thing after the other."""
    for check in CHECKS:
        yield from check(paths)


def installed(_: Paths) -> Iterator[Finding]:
    """List the versions of Python, the package and the libraries."""
    found = versions()
    yield Finding("reparam", f"{found.pop('reparam')} (source {package_hash()[:12]}), Python {found.pop('python')}")
    yield Finding("libraries", ", ".join(f"{name} {version}" for name, version in found.items()))
    missing = [name for name in LIBRARIES if name not in found and not name.startswith("onnxruntime")]
    if missing:
        yield Finding("libraries", f"not found: {', '.join(missing)}", INSTALL)


def stages(paths: Paths) -> Iterator[Finding]:
    """Check that DVC, which takes programs from the PATH, starts stages with this environment."""
    command = "reparam" if paths.installation.exists() else "python"
    found, here = shutil.which(command), Path(sys.executable).parent
    if found and Path(found).parent == here:
        yield Finding("stages", f"start with {found}")
    else:
        text = f"DVC would run {found or f'no {command}'}, but this is {sys.executable}"
        yield Finding("stages", text, f"activate the environment: `. {here}/activate`")


def devices(_: Paths) -> Iterator[Finding]:
    """List the devices of torch."""
    try:
        import torch
    except (ImportError, OSError) as error:
        yield Finding("devices", f"torch does not load: {error}", INSTALL)
        return
    properties = [torch.cuda.get_device_properties(number) for number in range(torch.cuda.device_count())]
    gpus = [f"{one.name} ({one.total_memory / 2**30:.0f} GiB)" for one in properties]
    text = ", ".join([f"{os.cpu_count()} CPU cores", *(gpus or ["no GPU"])])
    if not gpus and DRIVER.exists() and os.environ.get("CUDA_VISIBLE_DEVICES") != "":
        built = f"for CUDA {torch.version.cuda}" if torch.version.cuda else "for CPUs"
        remedy = "install a build of torch for the CUDA version of `nvidia-smi`"
        yield Finding("devices", f"{text}, but an NVIDIA driver; torch was built {built}", remedy, is_tolerable=True)
        return
    yield Finding("devices", text)
    if len(gpus) > 1 and not os.environ.get("REPARAM_LAUNCH"):
        yield Finding(
            "devices", "a training uses one GPU", 'all: `export REPARAM_LAUNCH="torchrun --nproc-per-node gpu"`', True
        )


def providers(_: Paths) -> Iterator[Finding]:
    """List the providers that onnxruntime can load: its own list also has some whose libraries are missing."""
    try:
        import onnxruntime
        from onnx import TensorProto, helper
    except (ImportError, OSError) as error:
        yield Finding("onnxruntime", f"does not load: {error}", INSTALL)
        return
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in ("x", "y")]
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "identity", ends[:1], ends[1:])
    model = helper.make_model(graph, ir_version=9, opset_imports=[helper.make_opsetid("", 17)]).SerializeToString()
    onnxruntime.set_default_logger_severity(4)  # it logs what it cannot load
    loaded = []
    with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        for name in onnxruntime.get_available_providers():
            loaded += [name] if name in onnxruntime.InferenceSession(model, providers=[name]).get_providers() else []
    absent = [name for name in onnxruntime.get_available_providers() if name not in loaded]
    text = ", ".join(loaded) + (f"; listed without their libraries: {', '.join(absent)}" if absent else "")
    yield Finding("onnxruntime", text)


def tracking(paths: Paths) -> Iterator[Finding]:
    """Check the tracking store, and count the calls that did not reach it."""
    address = without_secrets(track.address(paths))
    try:
        store = track.connect_to_read(paths)
    except TrackingError as error:
        text, _, remedy = str(error).partition("\n")
        yield Finding("MLflow", text, remedy or "set MLFLOW_TRACKING_URI")
    else:
        is_new = store is None and address != track.OFF
        yield Finding("MLflow", f"{address}: nothing was tracked yet" if is_new else address)
    kept = list(paths.tracking_spool.glob("*.jsonl"))
    if kept:
        yield Finding(
            "MLflow", f"runs with calls that were not delivered: {len(kept)}", "`reparam replay`", is_tolerable=True
        )


def git(paths: Paths) -> Iterator[Finding]:
    """Check that there is a repository with a commit, from which experiments start."""
    ask = partial(ask_git, paths.root)
    if shutil.which("git") is None:
        yield Finding("git", "not found", "install git, which experiments of DVC need")
    elif ask("rev-parse", "--git-dir") is None:
        yield Finding("git", "no repository", "`git init`, or `reparam init` where there is no project yet")
    elif not (commit := ask("rev-parse", "--short", "HEAD")):
        yield Finding(
            "git", "no commit", "`git add . && git commit`: experiments start from a commit", is_tolerable=True
        )
    else:
        changed = len((ask("status", "--porcelain") or "").splitlines())
        yield Finding("git", f"commit {commit}, {changed} changed file{'' if changed == 1 else 's'}")


def dvc(paths: Paths) -> Iterator[Finding]:
    """Cache, remotes, locks and queue of DVC."""
    from dvc.exceptions import DvcException
    from dvc.repo import Repo

    try:
        with Repo(str(paths.root)) as repo:
            cache = repo.cache.local.path
            remotes = repo.config["remote"]
            yield Finding("DVC cache", cache)
            for name, remote in remotes.items():
                yield _remote(f"{name} {without_secrets(remote['url'])}", partial(_reach, repo, name))
            if not remotes:
                yield Finding("DVC remotes", "none")
            yield from _locks(Path(repo.tmp_dir))
            if Path(repo.tmp_dir, "exps/celery").exists():
                yield from _queue(repo.experiments.celery_queue)
    except DvcException as error:
        yield Finding("DVC", str(error).splitlines()[0], "`dvc init`, or `reparam init` where there is no project yet")


def _reach(repo: Any, name: str) -> None:
    """Ask a remote whether a file exists; any answer will do. A folder must be there.

    Raises: FileNotFoundError, or whatever a plugin raises.
    """
    remote = repo.cloud.get_remote(name)
    remote.fs.exists(remote.fs.join(remote.path, "files"))
    if remote.fs.protocol == "local" and not Path(remote.path).is_dir():
        raise FileNotFoundError(NO_FOLDER)


def _remote(title: str, ask: Callable[[], None]) -> Finding:
    """Check that a remote answers: with its plugin, credentials and network."""
    answers: Queue[str] = Queue()

    def run() -> None:
        try:
            ask()
        except Exception as error:  # noqa: BLE001  # of whatever type a plugin raises, it is the finding
            answers.put(redact((str(error).strip() or type(error).__name__).splitlines()[0]))
        else:
            answers.put("")

    Thread(target=run, daemon=True).start()  # which nobody waits for at the end
    try:
        problem = answers.get(timeout=PATIENCE)
    except Empty:
        problem = f"no answer within {PATIENCE:.0f} s"
    if not problem:
        return Finding("DVC remotes", title)
    remedy = "docs/how-to/remote.md has plugins and credentials of each kind"
    if problem == NO_FOLDER:
        remedy = "mount its disk; or `dvc push`, which makes a new folder"
    return Finding("DVC remotes", f"{title}: {problem}", remedy, is_tolerable=True)


def _locks(directory: Path) -> Iterator[Finding]:
    file = directory / "rwlock"
    try:
        content = json.loads(file.read_bytes()) if file.exists() else {}
        owners = [
            *content.get("write", {}).values(),
            *(one for many in content.get("read", {}).values() for one in many),
        ]
        busy = {owner["pid"]: owner["cmd"] for owner in owners if locks.is_alive(owner["pid"])}
    except (ValueError, TypeError, KeyError, AttributeError):
        yield Finding("DVC locks", f"{file}: damaged", f"when no `dvc` runs: `rm {file}`")
        return
    yield Finding("DVC locks", ", ".join(f"process {pid}: {command}" for pid, command in busy.items()) or "none")


def _queue(queue: Any) -> Iterator[Finding]:
    tasks = queue.status()
    counts = Counter(task["status"] for task in tasks)
    text = ", ".join(f"{count} {status.lower()}" for status, count in counts.items()) or "empty"
    remedy = ""
    if counts["Queued"] and not any(queue.worker_status().values()):
        remedy = "`dvc queue start` runs what is queued"
    elif counts["Failed"]:
        failed = [task["name"] or task["rev"][:7] for task in tasks if task["status"] == "Failed"]
        logs = ", ".join(f"`dvc queue logs {name}`" for name in failed[:SHOWN]) + (", ..." if failed[SHOWN:] else "")
        remedy = f"{logs} says why; `dvc queue remove --failed` forgets it"
    yield Finding("DVC queue", text, remedy, is_tolerable=True)


def disk(paths: Paths) -> Iterator[Finding]:
    """Free space of the working copy and of the repository that stores are in."""
    for root in dict.fromkeys([paths.root, paths.shared]):
        free = shutil.disk_usage(root).free
        remedy = "`dvc gc --workspace` removes what no revision here needs" if free < LEAST_DISK else ""
        yield Finding("disk", f"{free / 1e9:.1f} GB free at {root}", remedy)


def working_copy(paths: Paths) -> Iterator[Finding]:
    """Parameters, the record of the installed package, and stages that run."""
    if not paths.params.exists():
        here = "`reparam init` makes a project here; or change to the folder of one"
        yield Finding("params.yaml", "not found", here)
        return
    try:
        load_config(paths.params)
        yield Finding("params.yaml", "valid")
    except UserError as error:
        yield Finding("params.yaml", str(error), "fix them; `reparam params` says what each may be")
    yield Finding("running", ", ".join(_running(paths)) or "no stage in this folder or in a temporary copy of it")
    if paths.installation.exists() and paths.installation.read_bytes() != project.installation().encode():
        yield Finding("source", "the project is of another version", "`reparam init --update`, then `dvc repro`")


def _running(paths: Paths) -> Iterator[str]:
    """List the stages that run here and, of experiments of DVC, in copies of the repository."""
    below = ask_git(paths.root, "rev-parse", "--show-prefix") or ""
    # Those of `dvc exp run --temp`, and of the queue.
    copies = [copy for name in ("standalone/*", "tmp*") for copy in sorted((paths.shared / COPIES).glob(name))]
    places = {"": paths.locks} | {f" (experiment in {copy.name})": copy / below / paths.locks.name for copy in copies}
    for where, directory in places.items():
        for stage, number in locks.running(directory).items():
            yield f"{stage} in process {number}{where}"


# The slow ones come last: others are read meanwhile.
CHECKS: tuple[Callable[[Paths], Iterator[Finding]], ...] = (
    *(installed, stages, working_copy, git, disk),
    *(dvc, devices, providers, tracking),
)
