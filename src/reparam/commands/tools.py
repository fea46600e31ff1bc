"""The commands around the stages, and functions that they share with the commands of stages."""

import textwrap
from contextlib import suppress
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from reparam.config import Config
    from reparam.paths import Paths

app = typer.Typer()
PANEL = "Around the stages"


class Device(StrEnum):
    """The devices of torch."""

    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"


DeviceOption = Annotated[
    Device, typer.Option(envvar="REPARAM_DEVICE", help="Where to compute; auto takes the GPU when there is one.")
]


def inputs() -> "tuple[Config, Paths]":
    """Read the parameters of the working copy."""
    from reparam.config import load_config
    from reparam.paths import Paths

    paths = Paths.here()
    return load_config(paths.params), paths


@app.command(rich_help_panel=PANEL)
def summary() -> None:
    """Print the headline numbers of the last run, and where to look next.

    Reads the cards and metrics below models and reports.
    Writes nothing.
    """
    from reparam.commands import summary
    from reparam.paths import Paths

    summary.show(Paths.here())


@app.command(rich_help_panel=PANEL)
def doctor() -> None:
    """Check the installation and the project, and print the next step for each problem; exit code 1 if broken.

    Reads the environment, the working copy, the repositories of git and DVC, and the MLflow store.
    Writes nothing.
    """
    from reparam.commands import doctor
    from reparam.paths import Paths

    is_broken = False
    for finding in doctor.examine(Paths.here()):
        state = "BROKEN: " if finding.is_broken else "note: " if finding.remedy else ""
        print(f"{finding.name:<12}  {state}{finding.text}", flush=True)
        if finding.remedy:
            print(f"{'':<12}  next: {finding.remedy}", flush=True)
        is_broken |= finding.is_broken
    raise typer.Exit(int(is_broken))


@app.command(rich_help_panel=PANEL)
def clean(yes: Annotated[bool, typer.Option("--yes", help="Remove it, not only list it.")] = False) -> None:
    """List leftovers of interrupted work that can be made again; never data, models, reports or tracked runs.

    Reads .resume, data/.downloads, .tracking, and the folders of outputs.
    Writes nothing; with --yes it removes what it lists, except what a process still needs.
    """
    from reparam.commands import clean
    from reparam.paths import Paths

    paths = Paths.here()
    found = clean.find(paths)
    for leftover in found:
        print(leftover.line(paths.relative(leftover.path)))
    loose = [leftover for leftover in found if not leftover.kept]
    if not loose:
        print("nothing to remove")
    elif yes:
        for leftover in loose:
            leftover.remove()
        print("removed")
    else:
        print(f"`reparam clean --yes` removes {'this' if len(loose) == len(found) else 'what does not stay'}")


@app.command(rich_help_panel=PANEL)
def check() -> None:
    """Check params.yaml and do nothing else.

    Reads params.yaml.
    Writes nothing.
    """
    _, paths = inputs()
    print(f"{paths.relative(paths.params)}: valid")


def _parameters(incomplete: str) -> list[str]:
    with suppress(ModuleNotFoundError):  # where the client alone is installed
        from reparam.config.load import paths_of

        return [path for path in paths_of(blocks=True) if path.startswith(incomplete)]
    return []


@app.command(rich_help_panel=PANEL)
def params(
    name: Annotated[
        str,
        typer.Argument(
            help="A parameter, block or section; without it, all.", show_default=False, autocompletion=_parameters
        ),
    ] = "",
) -> None:
    """Print parameters with their values, defaults and meanings.

    Reads params.yaml.
    Writes nothing.
    """
    from reparam.config.document import explain

    print(explain(inputs()[0], name))


@app.command(rich_help_panel=PANEL)
def recipe(
    name: Annotated[str, typer.Argument(help="A recipe; without it, all are listed.", show_default=False)] = "",
    output: Annotated[Path | None, typer.Option(help="Where to write it.", show_default="params.yaml")] = None,
) -> None:
    """List systems from the literature, or write the parameters of one to params.yaml.

    Reads recipes, without that folder those of the package.
    Writes params.yaml; the file that was there becomes params.yaml.bak.
    """
    from reparam import recipes
    from reparam.commands import project
    from reparam.paths import Paths

    paths = Paths.here()
    folder = paths.recipes if paths.recipes.is_dir() else project.shipped() / "recipes"
    if not name:
        for known in recipes.names(folder):
            print(f"{known:<16}  {textwrap.shorten(recipes.source(folder, known), 100, placeholder=' ...')}")
        return
    target = output or paths.params
    kept = recipes.place(recipes.params_file(folder, name), target)
    print(f"{paths.relative(target)}: written")
    if kept:
        print(f"{paths.relative(kept)}: the file that was there")


@app.command(rich_help_panel=PANEL)
def init(
    directory: Annotated[Path, typer.Argument(help="Folder of the project.")] = Path(),
    *,
    recipes: Annotated[bool, typer.Option("--recipes", help="Also write the recipes.")] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Replace files that are there; they are kept as *.bak.")
    ] = False,
    update: Annotated[bool, typer.Option("--update", help="Fit a project to the installed package.")] = False,
) -> None:
    """Make a project, whose stages run from the installed package.

    Reads the installed package.
    Writes params.yaml, dvc.yaml, .reparam.yaml, .gitignore, .dvcignore and, where missing, repositories of git and DVC.
    """
    from reparam.commands import project
    from reparam.paths import Paths

    paths = Paths(directory.resolve(), directory.resolve())
    written = project.update(paths) if update else project.create(paths, with_recipes=recipes, force=force)
    for name in dict.fromkeys(path.relative_to(paths.root).parts[0] for path in written):
        print(f"{directory / name}: written")
    here = "" if paths.root == Path.cwd() else f"cd {directory} && "
    print(f"\nNext: {here}dvc repro && reparam summary")
    if not update:
        print('Then: git add . && git commit -m "First run"    # experiments start from a commit')


@app.command(rich_help_panel=PANEL)
def gradients(device: DeviceOption = Device.auto) -> None:
    """Print the variance of the encoder's gradient by the reparameterisation trick and by the score function.

    Reads params.yaml, data/processed and models/vae.
    Writes reports/gradients.
    """
    from reparam.commands import gradients

    config, paths = inputs()
    gradients.show(gradients.run(config, paths, device.value))
    print(f"{paths.relative(paths.gradients)}: written")


@app.command(rich_help_panel=PANEL)
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
    markdown: Annotated[
        bool, typer.Option("--markdown", help="Print Markdown, as comments on GitHub show it.")
    ] = False,
) -> None:
    """Put experiments side by side: parameters, metrics and whether they differ by more than noise, curves, samples.

    Reads the working copy, revisions of git, the cache of DVC and the MLflow store.
    Writes reports/compare.html.
    """
    from reparam.compare import side_by_side
    from reparam.paths import Paths

    side_by_side.run(experiments, Paths.here(), output, as_markdown=markdown)


@app.command(rich_help_panel=PANEL)
def experiments(
    sort: Annotated[
        str, typer.Option(help="Metric or parameter that sorts them, the best first.", show_default="elbo_validation")
    ] = "",
    all_commits: Annotated[
        bool,
        typer.Option(
            "--all-commits/--this-commit",
            help="Show all commits with their experiments, or only the one that is checked out. A commit with the "
            "parameters and results of another has no row.",
        ),
    ] = True,
) -> None:
    """Print a table of all experiments of DVC: which parameters differ, and the headline metrics, the best marked.

    Reads the working copy, the commits and experiments in git, and the cache of DVC.
    Writes nothing.
    """
    from reparam.commands import experiments
    from reparam.paths import Paths

    experiments.run(Paths.here(), sort, all_commits=all_commits)


@app.command(rich_help_panel=PANEL)
def sweep(
    file: Annotated[Path, typer.Argument(help="What is varied, what is optimised, and how.")],
    n_trials: Annotated[
        int | None, typer.Option(min=1, help="Trials of the study, those of all processes.", show_default="as in FILE")
    ] = None,
    storage: Annotated[
        str | None,
        typer.Option(
            envvar="REPARAM_SWEEP_STORAGE",
            help="Database that processes and machines share, as SQLAlchemy names it.",
            show_default=".sweeps/studies.db",
        ),
    ] = None,
    workers: Annotated[int, typer.Option(min=1, help="Trials that run side by side here.")] = 1,
) -> None:
    """Run a study of Optuna, each trial an experiment of DVC; begin it, join it, or go on with it.

    Reads FILE, params.yaml, the working copy, and the cache of DVC.
    Writes .sweeps, reports/sweeps, experiments of DVC, and to the MLflow store.
    """
    from reparam.paths import Paths
    from reparam.sweep import run

    run.run(file, Paths.here(), count=n_trials, storage=storage, workers=workers)


@app.command(rich_help_panel=PANEL)
def replay() -> None:
    """Send the calls that MLflow missed while it was away.

    Reads .tracking.
    Writes to the MLflow store, and removes from .tracking what was delivered.
    """
    from reparam import track
    from reparam.paths import Paths

    print(f"delivered {track.replay(Paths.here())} calls")


@app.command(rich_help_panel=PANEL)
def track() -> None:
    """Log results to MLflow that were computed elsewhere and came with `dvc pull`.

    Reads params.yaml, data, models and reports.
    Writes to the MLflow store.
    """
    from reparam import logged
    from reparam import track as tracking

    config, paths = inputs()
    is_new = logged.everything(config, paths, tracking.connect(paths))
    print("tracked" if is_new else "MLflow has a run of this model already")


@app.command(rich_help_panel=PANEL)
def promote(
    version: Annotated[
        int | None, typer.Argument(help="A version of the registered model.", show_default="the newest")
    ] = None,
    metric: Annotated[
        str, typer.Option(help="Metric in which it must not be worse than the champion, beyond noise.")
    ] = "nll",
) -> None:
    """Make an exported model the champion in MLflow, unless it is worse than the present one or computes other numbers.

    Reads models/onnx/manifest.json and the MLflow store.
    Writes the alias `champion` to the MLflow store.
    """
    from reparam.commands import promote
    from reparam.paths import Paths

    print(promote.run(version, metric, Paths.here()))
