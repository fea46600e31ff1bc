"""One quiet style for all figures, and PNGs whose bytes depend on the figure alone."""

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import matplotlib as mpl
import numpy as np
import numpy.typing as npt
from cycler import cycler
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

Array = npt.NDArray[np.floating]

# The first six: Okabe & Ito 2008, distinguishable with every common colour blindness; four more for ten classes.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#9A8F1B", "#4D4D4D", "#7F5FA8", "#A0A0A0")
QUIET = "#8A8F98"  # for what guides the eye: axes, lines to compare with
# Axes from edge to edge: `png` adds the room that labels take. matplotlib's layouts find it in half as long again.
WIDE: Any = {"left": 0.0, "right": 1.0, "bottom": 0.0, "top": 1.0}
PADDING = 0.08  # inches around a figure
STYLE: Any = {  # Any, because matplotlib types the keys one by one
    "axes.edgecolor": QUIET,
    "axes.labelcolor": "#3A3F47",
    "axes.linewidth": 0.8,
    "axes.prop_cycle": cycler(color=COLOURS),
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 10,
    "axes.labelsize": 9,
    "figure.dpi": 200,
    "figure.facecolor": "white",
    "font.family": "DejaVu Sans",  # ships with matplotlib, so figures are the same on every machine
    "font.size": 9,
    "legend.frameon": False,
    "text.color": "#3A3F47",
    "xtick.color": "#5A6069",
    "ytick.color": "#5A6069",
}


@contextmanager
def style() -> Iterator[None]:
    """Plot in our style, whatever the user has set."""
    with mpl.rc_context():
        mpl.rcdefaults()  # a matplotlibrc of the user must not change what a stage writes
        mpl.rcParams.update(STYLE)
        yield


def png(figure: Figure) -> bytes:
    """Render a PNG whose bytes depend on the figure alone."""
    buffer = io.BytesIO()
    with style():
        # As `bbox_inches="tight"`, without the drawing that it makes first and throws away.
        FigureCanvasAgg(figure)  # one canvas for all, because it remembers the sizes of texts
        box = figure.get_tightbbox().padded(PADDING)
        figure.savefig(buffer, format="png", bbox_inches=box, metadata={"Software": None})
    return buffer.getvalue()


def indexed(name: str) -> str:
    """Write the number in the name of a latent, z7, as a subscript: matplotlib's formulas take ten times as long."""
    return name.translate(str.maketrans("0123456789", "₀₁₂₃₄₅₆₇₈₉"))


def literal(text: str) -> str:
    """Escape dollars, between which matplotlib reads formulas; those that are escaped stay so."""
    return re.sub(r"(?<!\\)\$", r"\\$", text)
