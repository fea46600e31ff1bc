"""The command line: one thin command per stage, and some around them.

Torch is imported by the stage that runs, and MLflow by a process beside it, so `--help` answers at once.
"""

import gc
import logging
import signal
import sys
import textwrap
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from reparam.errors import UserError
from reparam.redact import redacted_output
from reparam.shell import commands as model
from reparam.threads import OthersCompute, choose_wait_policy, start_again

if TYPE_CHECKING:
    from collections.abc import Iterator

    from reparam.config import Config
    from reparam.paths import Paths
    from reparam.track import Tracker

app = typer.Typer(
    help="Train variational autoencoders as a reproducible pipeline. "
    "Parameters are in params.yaml; `dvc repro` runs the stages in order.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.add_typer(model.app, name="model", rich_help_panel="The exported model")


class Device(StrEnum):
    """Where torch computes."""

    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"


DeviceOption = Annotated[
    Device, typer.Option(envvar="REPARAM_DEVICE", help="Where to compute; auto takes the GPU when there is one.")
]


@app.command(rich_help_panel="Stages")
def download() -> None:
    """Fetch the raw data and verify every file."""
    with _stage("download") as inputs:
        from reparam.download import stage as download

        _end_properly()
        download.run(*inputs)


@app.command(rich_help_panel="Stages")
def preprocess() -> None:
    """Split the raw images and write them in the one processed format."""
    with _stage("preprocess") as inputs:
        from reparam.preprocess import stage as preprocess

        _end_properly()
        preprocess.run(*inputs)


@app.command(rich_help_panel="Stages")
def train(
    device: DeviceOption = Device.auto, quiet: Annotated[bool, typer.Option(help="Show no progress.")] = False
) -> None:
    """Train a model and keep the weights of its best epoch; go on where an interrupted training was."""
    try:
        with _stage("train") as (config, paths, tracker):
            from reparam.train import stage as train

            _end_properly()
            train.run(config, paths, device.value, quiet=quiet, tracker=tracker)
    except OthersCompute:
        start_again()


@app.command(rich_help_panel="Stages")
def evaluate(device: DeviceOption = Device.auto) -> None:
    """Score the trained model on the test split, and draw what it does."""
    with _stage("evaluate") as (config, paths, tracker):
        from reparam.evaluate import stage as evaluate

        _end_properly()
        evaluate.run(config, paths, device.value, tracker)


@app.command(rich_help_panel="Stages")
def export() -> None:
    """Export encoder and decoder to ONNX, and check them against torch."""
    with _stage("export") as inputs:
        from reparam.export import stage as export

        _end_properly()
        export.run(*inputs)


@app.command(rich_help_panel="Stages")
def report() -> None:
    """Bring numbers, figures, parameters and lineage together on one page."""
    with _stage("report") as inputs:
        from reparam.report import stage as report

        _end_properly()
        report.run(*inputs)


@app.command(rich_help_panel="Around the stages")
def summary() -> None:
    """Print the headline numbers of the last run, and where to look next."""
    from reparam import summary
    from reparam.paths import Paths

    summary.show(Paths.here())


@app.command(rich_help_panel="Around the stages")
def check() -> None:
    """Check params.yaml and do nothing else."""
    _, paths = _inputs()
    print(f"{paths.relative(paths.params)}: valid")


@app.command(rich_help_panel="Around the stages")
def params(
    name: Annotated[
        str, typer.Argument(help="A parameter, block or section; without it, all.", show_default=False)
    ] = "",
) -> None:
    """Print parameters of params.yaml with their values, and say what they mean."""
    from reparam.config.document import explain

    print(explain(_inputs()[0], name))


@app.command(rich_help_panel="Around the stages")
def recipe(
    name: Annotated[str, typer.Argument(help="A recipe; without it, all are listed.", show_default=False)] = "",
    output: Annotated[Path | None, typer.Option(help="Where to write it.", show_default="params.yaml")] = None,
) -> None:
    """List systems from the literature, or write the parameters of one to params.yaml."""
    from reparam import recipes
    from reparam.paths import Paths

    paths = Paths.here()
    if not name:
        for known in recipes.names(paths.recipes):
            print(f"{known:<16}  {textwrap.shorten(recipes.source(paths.recipes, known), 100, placeholder=' ...')}")
        return
    target = output or paths.params
    kept = recipes.place(recipes.params_file(paths.recipes, name), target)
    print(f"{paths.relative(target)}: written")
    if kept:
        print(f"{paths.relative(kept)}: the file that was there")


@app.command(rich_help_panel="Around the stages")
def gradients(device: DeviceOption = Device.auto) -> None:
    """Compare the reparameterisation trick with the score function on the trained model."""
    from reparam import gradients

    config, paths = _inputs()
    gradients.run(config, paths, device.value)
    print(f"{paths.relative(paths.gradients)}: written")


@app.command(rich_help_panel="Around the stages")
def compare(
    experiments: Annotated[
        list[str],
        typer.Argument(
            metavar="A B [C]...",
            help="Each a revision of git, an experiment of `dvc exp show`, `workspace`, or an MLflow run: its id, the "
            "first 6 or more digits of it, or its name.",
            show_default=False,
        ),
    ],
    output: Annotated[
        Path | None, typer.Option(help="Where to write the page.", show_default="reports/compare.html")
    ] = None,
) -> None:
    """Put experiments side by side: parameters, metrics and whether they differ by more than noise, curves, samples."""
    from reparam.compare import side_by_side
    from reparam.paths import Paths

    side_by_side.run(experiments, Paths.here(), output)


@app.command(rich_help_panel="Around the stages")
def replay() -> None:
    """Deliver to MLflow what it missed while it was away."""
    from reparam import track
    from reparam.paths import Paths

    print(f"delivered {track.replay(Paths.here())} calls")


@redacted_output()
def main() -> None:
    """Run a command; a mistake of the user is one message and exit code 1."""
    gc.disable()  # imports leave no garbage, and make enough objects for a search to take half a second
    choose_wait_policy(Path.cwd())
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    try:
        app()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package in ("", "reparam"):
            raise  # a bug of ours
        print(f"error: {sys.argv[1]}: needs {package}; run `pip install 'reparam[pipeline]'`", file=sys.stderr)
        sys.exit(1)
    except (MemoryError, RuntimeError) as error:
        if not _is_out_of_memory(error):
            raise
        print(
            f"error: out of memory: {str(error).splitlines()[0]}\nLower train.batch_size, objective.samples or the "
            "size of the model in params.yaml, or evaluate.batch_size where it was `evaluate`",
            file=sys.stderr,
        )
        sys.exit(1)
    except OSError as error:
        # No permission, a full disk, a file where a folder should be: the system's own words name the file.
        name = error.filename2 or error.filename  # of a failed copy, what was to be written
        where = f"{name}: " if name else ""
        print(f"error: {where}{error.strerror or error}", file=sys.stderr)
        sys.exit(1)


def _is_out_of_memory(error: Exception) -> bool:
    # By name and words, because to import torch for its exception would make `--help` slow.
    is_named = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
    return is_named or "can't allocate memory" in str(error)


def _inputs() -> "tuple[Config, Paths]":
    from reparam.config import load_config
    from reparam.paths import Paths

    paths = Paths.here()
    config = load_config(paths.params)
    gc.freeze()  # what was imported stays: no search for garbage need look at it
    gc.enable()
    return config, paths


@contextmanager
def _stage(name: str) -> "Iterator[tuple[Config, Paths, Tracker]]":
    """Read what a stage needs; meanwhile no other process runs it in this working copy.

    What tracks is started first, because it loads MLflow while the stage loads torch.
    """
    from reparam import track
    from reparam.locks import held

    config, paths = _inputs()
    with held(paths.locks, name):
        yield config, paths, track.connect(paths)


def _end_properly() -> None:
    """From now on, let a request to end close the MLflow run and remove what is half-written.

    Earlier there is nothing to close, and libraries that are being imported could swallow the exception.
    """
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # the shell's code
    signal.signal(signal.SIGINT, signal.default_int_handler)
