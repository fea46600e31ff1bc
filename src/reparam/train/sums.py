"""Loss terms summed over batches on the device, so that nothing waits for it within an epoch."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch

from reparam.distributed import World
from reparam.errors import NonFiniteError
from reparam.objectives import Terms

EpochMetrics = dict[str, float]


class Totals(NamedTuple):
    """Loss terms of a batch, summed over its images, on the device."""

    terms: Terms  # each (), float64
    images: int

    @classmethod
    def of(cls, terms: Terms) -> "Totals":
        """Sum terms of images. Shapes: each (B,)."""
        return cls(summed(terms), len(terms["loss"]))

    def of_nothing(self) -> "Totals":
        """Return the same terms of no images."""
        return Totals({name: torch.zeros_like(total) for name, total in self.terms.items()}, 0)


def summed(terms: Terms) -> Terms:
    """Sum each term over images. Shapes: (B,) -> ()."""
    # float64, because a large data set would lose its last images in float32.
    return dict(zip(terms, torch.stack(list(terms.values())).sum(1, dtype=torch.float64).unbind(), strict=True))


class Sums:
    """Loss terms summed over the batches of an epoch: a ragged last batch weighs what it should."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.clear()

    def clear(self) -> None:
        """Begin again."""
        self.names: list[str] = []
        # (terms + 1,), float64; the last counts steps since the loss ceased to be finite.
        self.totals = torch.zeros(0, dtype=torch.float64, device=self.device)
        self.images = 0  # in the totals; each of several processes counts its own
        self.steps = 0

    def add(self, batch: Totals) -> None:
        """Add a batch, without waiting for the device."""
        terms = batch.terms
        if not self.names:
            self.names = list(terms)
            self.totals = torch.zeros(len(terms) + 1, dtype=torch.float64, device=self.device)
        self.totals[:-1] += torch.stack(list(terms.values()))
        # A sum that was NaN or infinite once never recovers, so the first such step can be found afterwards.
        self.totals[-1] += ~self.totals[self.names.index("loss")].isfinite()
        self.images += batch.images
        self.steps += 1

    def is_spoilt(self) -> bool:
        """Wait for the device and say whether the loss was not finite at some step."""
        return self.steps > 0 and self.totals[-1].item() > 0

    def means(self, split: str, epoch: int) -> EpochMetrics:
        """Wait for the device and return means over images, named `<split>_<term>`.

        Raises: NonFiniteError.
        """
        *sums, spoilt = self.totals.tolist()
        means = {name: value / self.images for name, value in zip(self.names, sums, strict=True)}
        if spoilt:
            bad = ", ".join(f"{name} {value}" for name, value in means.items())
            raise NonFiniteError(
                f"train: the {split} loss is no longer finite at epoch {epoch}, step {self.steps - int(spoilt) + 1} of "
                f"{self.steps} ({bad}); lower train.learning_rate in params.yaml, or objective.beta if it is large, "
                "set train.clip_norm, or train.on_nonfinite to rollback"
            )
        return {f"{split}_{name}": value for name, value in means.items()}

    def over(self, world: World) -> "Sums":
        """Add up what all processes saw."""
        if world.size == 1 or not self.names:
            return self
        numbers = torch.cat([self.totals, self.totals.new_tensor([self.images])])
        *totals, images = world.total(numbers).unbind()
        gathered = Sums(self.device)
        gathered.names, gathered.steps, gathered.images = self.names, self.steps, round(images.item())
        # Every process counts the steps since the loss ceased to be finite; the mean of these counts names the step.
        gathered.totals = torch.stack([*totals[:-1], (totals[-1] / world.size).ceil()])
        return gathered

    def state_dict(self) -> dict[str, Any]:
        return {"names": self.names, "totals": self.totals, "images": self.images, "steps": self.steps}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.names, self.totals = list(state["names"]), state["totals"].clone().to(self.device)
        self.images, self.steps = state["images"], state["steps"]
