"""The results of an evaluation."""

from dataclasses import dataclass, field

from torch import Tensor

from reparam.cards.evaluation import Details
from reparam.cards.model import require_finite
from reparam.metrics import ERROR, describe
from reparam.models.draw import standard_error


@dataclass
class Findings:
    """Metrics by name, what a reader must know of them, and why some are missing."""

    metrics: dict[str, float] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    facts: dict[str, object] = field(default_factory=dict)  # by the name of a field of `Details`
    not_measured: dict[str, str] = field(default_factory=dict)  # the reason, by metric
    of_images: dict[str, Tensor] = field(default_factory=dict)  # of each measured image, by metric: (N,) or fewer
    outlier_nll: Tensor | None = None  # (M,) of the images that should be unusual

    @property
    def details(self) -> Details:
        return Details.model_validate({**self.facts, "not_measured": self.not_measured})

    def add(self, name: str, value: float, error: float | None = None, each: Tensor | None = None) -> None:
        """Add a metric, its standard error, and the value of each image, if there are such. Shapes: each (N,).

        Raises: NonFiniteError.
        """
        assert describe(name), f"{name}: no metric of this name in metrics.py, so no page would show it"
        numbers = {name: value} | ({} if error is None else {f"{name}{ERROR}": error})
        require_finite(numbers)
        self.metrics |= {key: round(number, 4) for key, number in numbers.items()}
        if each is not None:
            self.of_images[name] = each

    def add_mean(self, name: str, values: Tensor) -> None:
        """Add the mean over images, its standard error, and the values themselves. Shapes: (N,)."""
        self.add(name, values.mean().item(), standard_error(values).item(), values)

    def add_outliers(self, nll: Tensor, area: float, error: float) -> None:
        """Add how well the NLL recognises outliers, and their NLL. Shapes: (M,). Units: nats."""
        self.add("auroc", area, error)
        self.outlier_nll = nll

    def note(self, **facts: object) -> None:
        """Add facts, by the names of fields of `Details`."""
        self.facts |= facts

    def warn(self, *messages: str) -> None:
        """Add what a reader must know before using the numbers, one sentence each."""
        self.warnings += messages

    def leave_out(self, name: str, reason: str, *, is_warned_of: bool = False) -> None:
        """Say why something is not measured."""
        self.not_measured[name] = reason
        if is_warned_of:
            self.warn(f"{name}: {reason}")
