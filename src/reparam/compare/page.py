"""A comparison -> one HTML page that opens from disk without a network."""

from pathlib import Path

from matplotlib.figure import Figure

from reparam.compare.differences import Comparison, spell
from reparam.compare.experiment import Experiment
from reparam.figures.curves import fit_after_burn_in
from reparam.figures.style import COLOURS, literal, png, style
from reparam.report import page as report

TEMPLATE = Path(__file__).with_name("comparison.html")
LINES = ("-", "--", ":")  # where there are more experiments than colours


def render(comparison: Comparison) -> str:
    """Fill the template, which extends that of the report; everything in it is escaped."""
    environment = report.environment(TEMPLATE.parent)
    environment.globals["spell"] = spell
    trained = [experiment for experiment in comparison.experiments if experiment.losses]
    curves = png(loss_curves(trained)) if trained else None
    return environment.get_template(TEMPLATE.name).render(comparison=comparison, curves=curves)


def loss_curves(experiments: list[Experiment]) -> Figure:
    """Plot the loss of each experiment per epoch. Units: nats per image."""
    with style():
        figure = Figure(figsize=(9.2, 3.6), layout="constrained")
        axes = figure.subplots()
        splits = {experiment.loss_split for experiment in experiments}
        for number, experiment in enumerate(experiments):
            epochs, losses = list(experiment.losses), list(experiment.losses.values())
            colours = len(COLOURS)
            axes.plot(
                epochs,
                losses,
                color=COLOURS[number % colours],
                linestyle=LINES[number // colours % len(LINES)],
                marker="o" if len(epochs) == 1 else "",
                linewidth=1.4 if number else 2.8,  # so that the first shows below one that is the same
                label=_label(experiment.name) + (f" ({experiment.loss_split})" if len(splits) > 1 else ""),
            )
        fit_after_burn_in(axes, [list(experiment.losses.values()) for experiment in experiments])
        axes.set(xlabel="epoch", ylabel=f"{' or '.join(sorted(splits))} loss (nats per image)")
        axes.legend()
        return figure


def _label(name: str) -> str:
    return literal(name.lstrip("_"))  # matplotlib hides what begins with an underscore
