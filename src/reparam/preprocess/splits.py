"""Which image goes into which split."""

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from reparam.cards.data import SplitName
from reparam.config import PreprocessConfig
from reparam.data.sources.raw import Raw
from reparam.data.store import SPLITS
from reparam.errors import UserError

Rows = npt.NDArray[np.int64]  # (N,)


def assign(raw: Raw, config: PreprocessConfig) -> dict[SplitName, tuple[str, Rows]]:
    """Name, for each of our splits, the published split and the rows of it, in rising order.

    A published test or validation split is kept; what is missing is drawn at random from the images that are left.
    A validation share of 0 asks for an empty split.
    Raises: UserError where a class is unknown or a split would be empty against the parameters.
    """
    rng = np.random.default_rng(config.seed)
    kept = list(class_numbers(raw.classes, config.classes))
    pools = {name: np.flatnonzero(np.isin(split.labels, kept)) for name, split in raw.splits.items()}
    source = "all" if "all" in pools else "train"
    rest = rng.permutation(pools[source])
    parts: dict[SplitName, tuple[str, Rows]] = {}
    shares: dict[SplitName, float | int] = {"test": config.test, "validation": config.validation}
    for name, share in shares.items():
        if name in pools:
            parts[name] = name, pools[name]
        else:
            count = share if isinstance(share, int) else round(len(rest) * share)
            parts[name], rest = (source, rest[:count]), rest[count:]
    parts["train"] = source, rest
    for name, (_, rows) in parts.items():
        if not len(rows) and (name in pools or shares.get(name) != 0):
            raise UserError(
                f"preprocess: the {name} split of {sum(map(len, pools.values()))} images is empty with validation "
                f"{config.validation} and test {config.test}; change them in params.yaml"
            )
    return {name: (parts[name][0], _limit(parts[name][1], config.limit, rng)) for name in SPLITS}


def class_numbers(classes: Sequence[str], wanted: Sequence[str] | None) -> Mapping[int, int]:
    """Map the label of each class to keep to its new number, in the order of the source.

    Raises: UserError that lists the classes there are.
    """
    for name in wanted or ():
        if name not in classes:
            listing = ", ".join(map(repr, classes[:50]))
            raise UserError(f"preprocess.classes: wanted names among {listing}; found {name!r}; mend it in params.yaml")
    kept = [label for label, name in enumerate(classes) if wanted is None or name in wanted]
    return {label: number for number, label in enumerate(kept)}


def _limit(rows: Rows, limit: int | None, rng: np.random.Generator) -> Rows:
    # At random, because published files are often sorted by class.
    chosen = rows if limit is None or len(rows) <= limit else rng.permutation(rows)[:limit]
    return np.sort(chosen)
