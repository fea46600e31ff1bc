"""The command line: one thin command per stage, and those of `commands/` around them.

Torch is imported by the stage that runs, and MLflow by a process beside it, so `--help` answers at once.
"""

import gc
import logging
import signal
import sys
import traceback
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from reparam.commands import apps, launch, tools
from reparam.commands.tools import Device, DeviceOption
from reparam.errors import UserError
from reparam.machine.threads import OthersCompute, choose_wait_policy, start_again
from reparam.redact import redacted_output
from reparam.shell import commands as model

if TYPE_CHECKING:
    from collections.abc import Iterator

    from reparam.config import Config
    from reparam.paths import Paths
    from reparam.track import Tracker

app = typer.Typer(
    help="Train variational autoencoders as a reproducible pipeline. "
    "Parameters are in params.yaml; `dvc repro` runs the stages in order.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
app.add_typer(model.app, name="model", rich_help_panel=apps.PANEL)


def _print_version(is_wanted: bool) -> None:
    if is_wanted:
        from reparam.lineage import package_hash
        from reparam.machine.versions import version

        print(f"reparam {version()} (source {package_hash()[:12]})")
        raise typer.Exit


@app.callback()
def common(
    _version: Annotated[
        bool,
        typer.Option(
            "--version", is_eager=True, callback=_print_version, help="Print the version and the hash of the source."
        ),
    ] = False,
) -> None:
    """Take the options before a command."""


@app.command(rich_help_panel="Stages")
def download() -> None:
    """Fetch the raw data and verify every file.

    Reads params.yaml, and what it names: an installed package, published addresses, mirrors, a folder of images.
    Writes data/raw.
    """
    with _stage("download") as inputs:
        from reparam.download import stage as download

        _begin()
        download.run(*inputs)


@app.command(rich_help_panel="Stages")
def preprocess() -> None:
    """Split the raw images and write them in the one processed format.

    Reads params.yaml and data/raw.
    Writes data/processed and reports/data.
    """
    with _stage("preprocess") as inputs:
        from reparam.preprocess import stage as preprocess

        _begin()
        preprocess.run(*inputs)


@app.command(rich_help_panel="Stages")
def train(
    device: DeviceOption = Device.auto, quiet: Annotated[bool, typer.Option(help="Show no progress.")] = False
) -> None:
    """Train a model and keep the weights of its best epoch; go on where an interrupted training was.

    Reads params.yaml and data/processed.
    Writes models/vae and reports/training.
    """
    if launch.is_wanted():
        launch.run()
    try:
        with _stage("train") as (config, paths, tracker):
            from reparam.train import stage as train

            _begin()
            train.run(config, paths, device.value, quiet=quiet, tracker=tracker)
    except OthersCompute:
        start_again()


@app.command(rich_help_panel="Stages")
def evaluate(device: DeviceOption = Device.auto) -> None:
    """Score the trained model on the split that evaluate.split names, and plot its images and latents.

    Reads params.yaml, data/processed and models/vae.
    Writes reports/evaluation.
    """
    if launch.is_wanted():
        launch.run()
    with _stage("evaluate") as (config, paths, tracker):
        from reparam.evaluate import stage as evaluate

        _begin()
        evaluate.run(config, paths, device.value, tracker)


@app.command(rich_help_panel="Stages")
def export() -> None:
    """Export encoder, decoder and score to ONNX, and compare them with torch.

    Reads params.yaml, data/processed and models/vae.
    Writes models/onnx and reports/export.
    """
    with _stage("export") as inputs:
        from reparam.export import stage as export

        _begin()
        export.run(*inputs)


@app.command(rich_help_panel="Stages")
def report() -> None:
    """Bring numbers, figures, parameters and lineage together on one page.

    Reads params.yaml, data/processed, models/vae, models/onnx, and what earlier stages wrote to reports.
    Writes reports/index.html.
    """
    with _stage("report") as inputs:
        from reparam.report import stage as report

        _begin()
        report.run(*inputs)


app.add_typer(tools.app)
app.add_typer(apps.app)


@redacted_output()
def main() -> None:
    """Run a command; a mistake of the user is one message and exit code 1."""
    # `export` computes little itself: onnxruntime runs in another process. With threads that sleep, it takes 5.1 s
    # instead of 5.7 s.
    choose_wait_policy(Path.cwd(), computes=sys.argv[1:2] != ["export"])
    launch.keep_quiet()
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    try:
        app()
    except UserError as error:
        _fail(str(error))
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package in ("", "reparam"):
            raise  # a bug of ours
        extra = sys.argv[1] if sys.argv[1] in ("serve", "sweep") else "pipeline"
        _fail(f"{sys.argv[1]}: needs {package}; run `pip install 'reparam[{extra}]'`")
    except OSError as error:
        # No permission, a full disk, a file where a folder should be: the system's own words name the file.
        name = error.filename2 or error.filename  # of a failed copy, what was to be written
        where = f"{name}: " if name else ""
        _fail(f"{where}{error.strerror or error}")
    except Exception as error:
        if _is_out_of_memory(error):
            _fail(f"out of memory: {(str(error).splitlines() or [''])[0]}\n{_less_memory()}")
        if launch.record(traceback.format_exc(), is_mistake=False):
            sys.exit(1)
        raise


def _fail(message: str) -> NoReturn:
    """Show a mistake of the user, and end. If several processes run, the process that started them shows it once."""
    if not launch.record(message, is_mistake=True):
        print(f"error: {message}", file=sys.stderr)
    sys.exit(1)


def _less_memory() -> str:
    if sys.argv[1:2] == ["model"]:
        return "Ask for fewer images or samples at once"
    return (
        "Lower train.batch_size, objective.samples or the size of the model in params.yaml, or evaluate.batch_size "
        "where it was `evaluate`"
    )


def _is_out_of_memory(error: Exception) -> bool:
    # By name and words, because to import torch for its exception would make `--help` slow.
    is_named = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
    return is_named or "can't allocate memory" in str(error)


@contextmanager
def _stage(name: str) -> "Iterator[tuple[Config, Paths, Tracker]]":
    """Read what a stage needs; meanwhile no other process runs it in this working copy.

    The recorder is started first, because it loads MLflow while the stage loads torch.
    """
    gc.disable()  # until `_begin`: imports leave no garbage, and to search their objects takes a third of a second
    try:
        from reparam import track
        from reparam.commands import project
        from reparam.machine.locks import held

        config, paths = tools.inputs()
        project.check(paths, name)
        with held(paths.locks, name):
            yield config, paths, track.connect(paths)
    finally:
        gc.enable()


def _begin() -> None:
    """Turn the garbage collector on, and let a request to end close the MLflow run and remove half-written files.

    Before this, there is nothing to close, and libraries that are being imported could swallow the exception.
    """
    gc.freeze()  # imported objects stay: the garbage collector need not visit them
    gc.enable()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # the shell's code
    signal.signal(signal.SIGINT, signal.default_int_handler)
