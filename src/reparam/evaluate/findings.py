"""The results of an evaluation."""

from dataclasses import dataclass, field

from torch import Tensor

from reparam.cards.evaluation import Details
from reparam.cards.model import require_finite
from reparam.models.draw import standard_error


@dataclass
class Findings:
    """Metrics by name, what a reader must know of them, and why some are missing."""

    metrics: dict[str, float] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    facts: dict[str, object] = field(default_factory=dict)  # by the name of a field of `Details`
    not_measured: dict[str, str] = field(default_factory=dict)  # the reason, by metric
    of_images: dict[str, Tensor] = field(
        default_factory=dict
    )  # values of each image, by metric: (N,), or fewer for annealing
    outlier_nll: Tensor | None = None  # (M,) of the images that should be unusual

    @property
    def details(self) -> Details:
        return Details.model_validate({**self.facts, "not_measured": self.not_measured})

    def add(self, name: str, value: float, error: float | None = None) -> None:
        """Add a metric, and its standard error.

        Raises: NonFiniteError.
        """
        require_finite({name: value})
        self.metrics[name] = round(value, 4)
        if error is not None:
            self.metrics[f"{name}_se"] = round(error, 4)

    def add_mean(self, name: str, values: Tensor) -> None:
        """Add the mean over images, its standard error, and the values themselves. Shapes: (N,)."""
        self.add(name, values.mean().item(), standard_error(values).item())
        self.of_images[name] = values
