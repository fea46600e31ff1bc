"""Assign images to splits."""

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
    """Name, for each of our splits, the published split and its rows in that, in rising order.

    A published test or validation split is kept; a missing split is drawn at random from the other images.
    A validation share of 0 asks for an empty split.
    Raises: UserError if a class is unknown or a split is empty that the parameters ask for.
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
            count = _count(name, share, len(rest))
            parts[name], rest = (source, rest[:count]), rest[count:]
    parts["train"] = source, rest
    for name, (_, rows) in parts.items():
        if not len(rows) and (name in pools or shares.get(name) != 0):
            raise UserError(_why_empty(name, pools, {key: shares[key] for key in shares if key not in pools}))
    return {name: (parts[name][0], _limit(parts[name][1], config.limit, rng)) for name in SPLITS}


def _count(name: SplitName, share: float | int, left: int) -> int:
    """Turn a share of the remaining images into a number. Raises: UserError if a fraction is less than one."""
    count = share if isinstance(share, int) else round(left * share)
    if share and left and not count:
        raise UserError(
            f"preprocess.{name}: wanted one image at least, found {share} of {left} images; raise it in params.yaml"
        )
    return count


def _why_empty(name: SplitName, pools: Mapping[str, Rows], shares: Mapping[SplitName, float | int]) -> str:
    """Name the parameter that leaves a split empty; `shares` are the ones that apply."""
    pool = pools.get(name, pools["all" if "all" in pools else "train"])
    if not len(pool):
        return (
            f"preprocess.classes: wanted images for {name}, found none of these classes; keep other classes in "
            "params.yaml, or get other data"
        )
    keys = " and ".join(f"preprocess.{key} {share}" for key, share in shares.items())
    return f"{keys}: wanted images for {name}, found none left of {len(pool)}; lower what is too large in params.yaml"


def class_numbers(classes: Sequence[str], wanted: Sequence[str] | None) -> Mapping[int, int]:
    """Map the label of each kept class to its new number, in the order of the source.

    Raises: UserError that lists the classes there are.
    """
    for name in wanted or ():
        if name not in classes:
            listing = ", ".join(map(repr, classes[:50]))
            raise UserError(f"preprocess.classes: wanted names among {listing}; found {name!r}; fix it in params.yaml")
    kept = [label for label, name in enumerate(classes) if wanted is None or name in wanted]
    return {label: number for number, label in enumerate(kept)}


def _limit(rows: Rows, limit: int | None, rng: np.random.Generator) -> Rows:
    # At random, because published files are often sorted by class.
    chosen = rows if limit is None or len(rows) <= limit else rng.permutation(rows)[:limit]
    return np.sort(chosen)
