"""REPARAM_LAUNCH: run a command in several processes, as torchrun does, with one message where they fail."""

import json
import logging
import os
import re
import shlex
import signal
import sys
import time
from collections.abc import Mapping
from contextlib import redirect_stderr
from io import StringIO
from pathlib import Path
from typing import Any, NoReturn

from reparam.commands import tools
from reparam.errors import UserError
from reparam.redact import redact

# What gloo, NCCL and torch's store say where a process at the other end is gone.
LOST = re.compile(
    r"connection (?:reset|closed) by peer|broken pipe|ncclRemoteError|DistNetworkError|DistStoreError|timed out",
    re.IGNORECASE,
)
SILENT = "FATAL"


def is_wanted() -> bool:
    """Return whether this process must start others, and is not one of them."""
    return bool(os.environ.get("REPARAM_LAUNCH")) and not is_rank()


def is_rank() -> bool:
    """Return whether `run` or torchrun started this process."""
    return "TORCHELASTIC_ERROR_FILE" in os.environ


def keep_quiet() -> None:
    """Silence torch if processes share a training; call it before torch loads.

    Warnings are of intended behaviour. `run` reports the errors of the process that starts the others.
    """
    if is_rank():
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    elif is_wanted():
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", SILENT)


def run() -> NoReturn:
    """Run this command in several processes, and end as they do.

    Raises: UserError if they cannot be started, or one of them fails.
    """
    import torch
    from torch.distributed import DistError
    from torch.distributed import run as torchrun
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.elastic.rendezvous import RendezvousError

    options = _options(torchrun)
    if os.environ.get("TORCH_CPP_LOG_LEVEL") == SILENT:
        del os.environ["TORCH_CPP_LOG_LEVEL"]  # for the processes, whose own errors are theirs to report
    tools.inputs()  # a mistake in them is said before other machines wait for this one
    try:
        threads = torch.get_num_threads() // _processes(options, torchrun)
        is_alone = torchrun.parse_min_max_nnodes(options.nnodes) == (1, 1)
        os.environ.setdefault("OMP_NUM_THREADS", str(max(1, threads)))
        _prepare(options, is_alone=is_alone)
        torchrun.run(options)  # type: ignore[no-untyped-call]
    except ChildFailedError as error:
        _explain(error.failures, is_alone=is_alone)
    except SignalException as error:
        sys.exit(128 + error.sigval)
    except (RendezvousError, DistError) as error:
        raise UserError(_unmet(options.nnodes, error)) from None
    except (ValueError, OSError) as error:  # an option that has no such value; an address that is taken
        raise UserError(f"REPARAM_LAUNCH: {_launch()!r} cannot be started: {error}; fix it, or unset it") from None
    sys.exit()


def record(message: str, *, is_mistake: bool) -> bool:
    """Hand the message of a failing process to the process that started it; return whether the latter will show it.

    It shows no message if it will start the processes again; then a connection that is lost is one line here, because
    another process says why. `is_mistake`: whether the user can correct it.
    """
    if not is_rank():
        return False
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # it ends already, and torchrun asks it to
    content = {"message": redact(message), "timestamp": f"{time.time():.0f}", "is_mistake": is_mistake}
    Path(os.environ["TORCHELASTIC_ERROR_FILE"]).write_text(json.dumps(content), encoding="utf-8")
    is_last = os.environ["TORCHELASTIC_RESTART_COUNT"] == os.environ["TORCHELASTIC_MAX_RESTARTS"]
    is_ours = bool(os.environ.get("REPARAM_LAUNCH"))
    if is_ours and not is_last and not is_mistake and LOST.search(message):
        sys.stderr.write(f"WARNING: process {os.environ['RANK']} lost its connection to another one: all start again\n")
        return True
    return is_ours and is_last


def _prepare(options: Any, *, is_alone: bool) -> None:
    """Set what torchrun reads and says; say what it waits for."""
    if options.max_restarts == 0:
        logging.disable(logging.ERROR)  # `_explain` reports failures, so torchrun need not
    if options.max_restarts or options.rdzv_backend != "static":
        # Otherwise processes that are started again may find the addresses of those that are gone.
        os.environ.setdefault("TORCH_DISABLE_SHARE_RDZV_TCP_STORE", "1")
    if not is_alone:
        address = options.rdzv_endpoint or f"{options.master_addr}:{options.master_port or 29500}"
        sys.stderr.write(f"waiting for {options.nnodes} machines to meet at {address}\n")


def _unmet(machines: str, error: BaseException) -> str:
    """Say that machines do not reach each other, at the start or later, with the first line of torch's words."""
    words = str(error.__cause__ or error).partition("\n")[0].rstrip(".") or "no other machine that came in time"
    return (
        f"REPARAM_LAUNCH: wanted {machines} machines that reach each other, found: {words}; see what the command says "
        "on the others, and whether address and port are the same; start it again on all machines: training goes on "
        "from its checkpoint"
    )


def _launch() -> str:
    return os.environ["REPARAM_LAUNCH"]


def _options(torchrun: Any) -> Any:
    """Parse the options of torchrun. Raises: UserError."""
    try:
        program, *words = shlex.split(_launch())
    except ValueError:  # a quote that is not closed, or nothing
        program, words = "", []
    if program != "torchrun":
        raise UserError(f"REPARAM_LAUNCH: wanted torchrun and its options, found {_launch()!r}; fix it, or unset it")
    said = StringIO()
    try:
        with redirect_stderr(said):
            options = torchrun.parse_args([*words, "--module", "reparam", *sys.argv[1:]])
    except SystemExit as end:  # after its usage, or what was asked for, such as its version
        if not end.code:
            raise
        problem = said.getvalue().strip().rpartition("error: ")[2]
        raise UserError(f"REPARAM_LAUNCH: {_launch()!r} cannot be started: {problem}; fix it, or unset it") from None
    if options.training_script != "reparam":
        raise UserError(
            f"REPARAM_LAUNCH: wanted options of torchrun alone, found {options.training_script!r} among them; take it "
            "out: the command is this one"
        )
    return options


def _processes(options: Any, torchrun: Any) -> int:
    """Return the number of processes on this machine. Raises: ValueError if torchrun would fail or wait for ever."""
    processes: int = torchrun.determine_local_world_size(options.nproc_per_node)
    counts = [int(part) for part in options.nnodes.split(":") if part.isdecimal()]
    is_whole = len(counts) == options.nnodes.count(":") + 1 <= 2
    if not (is_whole and 0 < counts[0] <= counts[-1]):
        raise ValueError(
            f"--nnodes: wanted a number of machines, or the least and the most as 1:4, found {options.nnodes}"
        )
    if processes < 1:
        raise ValueError(f"--nproc-per-node: wanted 1 or more, found {processes}")
    if options.max_restarts < 0:
        raise ValueError(f"--max-restarts: wanted 0 or more, found {options.max_restarts}")
    if options.rdzv_backend == "static" and not 0 <= options.node_rank < counts[-1]:
        wanted = f"0 to {counts[-1] - 1}" if counts[-1] > 1 else "0"
        raise ValueError(
            f"--node-rank: wanted {wanted}, because of --nnodes {options.nnodes}, found {options.node_rank}"
        )
    return processes


def _explain(failures: Mapping[int, Any], *, is_alone: bool = True) -> NoReturn:
    """End with the failure that the others follow from; it may be one of another machine. Raises: UserError."""
    rank, first = min(failures.items(), key=lambda item: _order(item[1]))
    content = first.error_file_data
    if content.get("is_mistake"):
        raise UserError(content["message"])
    if "is_mistake" in content and not is_alone and LOST.search(content["message"]):
        raise UserError(
            f"process {rank} lost its connection to a process of another machine: see what the command says there; "
            "start it again on all machines: training goes on from its checkpoint"
        )
    if "is_mistake" in content:
        sys.stderr.write(f"process {rank}:\n{content['message']}")
        sys.exit(1)
    if first.exitcode > 0:
        sys.exit(first.exitcode)  # it said why, or was asked to end
    raise UserError(
        f"process {rank} was killed by {signal.Signals(-first.exitcode).name}, and the others were stopped; if nobody "
        "killed it, memory may have run out: see the log of the system; run the same command again: training "
        "goes on from its checkpoint"
    )


def _order(failure: Any) -> tuple[int, int]:
    """Put causes first: a mistake of the user, a process that was killed, a bug; others fail because these did."""
    content = failure.error_file_data
    if content.get("is_mistake"):
        kind = 0
    elif failure.exitcode < 0 and failure.exitcode != -signal.SIGTERM:
        kind = 1
    else:
        kind = 2 if "is_mistake" in content else 3
    return kind, failure.timestamp
