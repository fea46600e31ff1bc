"""The files of an exported model: read once, and checked against the manifest before anything runs."""

import hashlib
import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from reparam.arrays import parse_arrays
from reparam.errors import DamagedInputError, MissingInputError

MANIFEST = "manifest.json"
GRAPHS = ("encoder.onnx", "decoder.onnx", "score.onnx")
PRIOR = "prior.npz"
CODEBOOK = "codebook.npz"
GOLDEN = "golden.npz"
PRIORS = (None, "standard normal", "gaussian mixture")
FORMAT = 4
EXPORT = "run `dvc repro export`, or copy the whole folder again"
# By the inputs of a graph other than `label`.
ROLES = {("images",): "encoder", ("latents",): "decoder", ("epsilon", "images"): "score"}


@dataclass(frozen=True)
class Mixture:
    """A mixture of C Gaussians, whose D dimensions are independent."""

    means: npt.NDArray[np.float32]  # (C, D)
    log_variances: npt.NDArray[np.float32]  # (C, D)
    weights: npt.NDArray[np.float64]  # (C,)

    def sample(self, rng: np.random.Generator, count: int, temperature: float) -> npt.NDArray[np.float64]:
        """Draw latents; `temperature` scales how far they are from the means. Shapes: -> (count, D)."""
        chosen = rng.choice(len(self.weights), size=count, p=self.weights)
        noise = temperature * rng.standard_normal((count, self.means.shape[1]))
        drawn: npt.NDArray[np.float64] = self.means[chosen] + np.exp(self.log_variances[chosen] / 2) * noise
        return drawn


@dataclass(frozen=True)
class Bundle:
    """A folder, and what its manifest says; without a manifest, nothing is known of the files."""

    directory: Path
    manifest: dict[str, Any] | None
    names: tuple[str, ...]  # of the graphs

    @classmethod
    def open(cls, path: Path) -> "Bundle":
        """Take a folder with all its graphs, or a single graph.

        Raises: MissingInputError, DamagedInputError.
        """
        _require_there(path)
        directory = path if path.is_dir() else path.parent
        manifest = _read_manifest(directory / MANIFEST)
        present = tuple(name for name in GRAPHS if (directory / name).is_file()) if path.is_dir() else (path.name,)
        if manifest is None or not path.is_dir():
            names = present
        else:
            names = tuple(name for name in GRAPHS if name in manifest["files"])
            if foreign := set(present) - set(names):
                raise DamagedInputError(
                    f"{directory / min(foreign)}: {MANIFEST} does not list it, so it is of another export; {EXPORT}"
                )
        if not names:
            raise MissingInputError(f"{path}: wanted any of {', '.join(GRAPHS)}, found none; {EXPORT}")
        return cls(directory, manifest, names)

    @property
    def files(self) -> dict[str, dict[str, Any]]:
        """The facts of each file in the manifest, by its name."""
        return self.manifest["files"] if self.manifest else {}

    def read(self, name: str) -> bytes:
        """Return the content of a file; if there is a manifest, check that it lists the file with this checksum.

        Raises: MissingInputError, DamagedInputError.
        """
        path, facts = self.directory / name, self.files.get(name)
        if not path.is_file():
            raise MissingInputError(f"{path}: not found{f', but {MANIFEST} lists it' if facts else ''}; {EXPORT}")
        if self.manifest and not facts:
            raise DamagedInputError(f"{path}: {MANIFEST} does not list it, so it is of another export; {EXPORT}")
        content = path.read_bytes()
        if facts:
            if len(content) != facts["bytes"]:
                raise DamagedInputError(f"{path}: wanted {facts['bytes']} bytes, found {len(content)}; {EXPORT}")
            if hashlib.sha256(content).hexdigest() != facts["sha256"]:
                raise DamagedInputError(
                    f"{path}: its SHA-256 is not that in {MANIFEST}: damaged, changed, or of another export; {EXPORT}"
                )
        return content

    def prior(self, size: int) -> Mixture:
        """Return the mixture that latents, so many numbers, are drawn from.

        Raises: MissingInputError, DamagedInputError.
        """
        arrays, path = self.arrays(PRIOR), self.directory / PRIOR
        try:
            found = Mixture(arrays["means"], arrays["log_variances"], arrays["weights"])
        except KeyError as error:
            raise DamagedInputError(f"{path}: not the prior of an export, it has no {error}; {EXPORT}") from None
        shapes = [values.shape for values in (found.means, found.log_variances, found.weights)]
        if shapes != [wanted := (found.weights.size, size), wanted, wanted[:1]]:
            raise DamagedInputError(
                f"{path}: wanted means, log variances and weights of C Gaussians of {size} latents, found shapes "
                f"{', '.join(map(str, shapes))}; {EXPORT}"
            )
        return found

    def codebook(self, codes: int, dimensions: int) -> npt.NDArray[np.float32]:
        """Return the vectors of codes, by their numbers. Shapes: -> (codes, dimensions).

        Raises: MissingInputError, DamagedInputError.
        """
        path = self.directory / CODEBOOK
        try:
            found = self.arrays(CODEBOOK)["vectors"]
        except KeyError as error:
            raise DamagedInputError(f"{path}: not the codebook of an export, it has no {error}; {EXPORT}") from None
        if found.shape != (codes, dimensions):
            raise DamagedInputError(
                f"{path}: wanted vectors of shape ({codes}, {dimensions}), found {found.shape}; {EXPORT}"
            )
        return found

    def arrays(self, name: str) -> dict[str, npt.NDArray[Any]]:
        """Read a file of arrays.

        Raises: MissingInputError, DamagedInputError.
        """
        try:
            return parse_arrays(self.read(name))
        except ValueError as error:
            raise DamagedInputError(f"{self.directory / name}: {error}; {EXPORT}") from None

    def facts(self, path: Path, metadata: dict[str, str]) -> dict[str, Any]:
        """Return the facts in the metadata of a graph, and check them against the manifest.

        Raises: DamagedInputError if they disagree, or do not say what the client must know.
        """
        try:
            said = dict(json.loads(metadata["reparam"]))
        except (KeyError, ValueError, TypeError, RecursionError):
            raise DamagedInputError(
                f"{path}: not exported by reparam, its metadata are missing; run `dvc repro export`"
            ) from None
        manifest = self.manifest or {}
        for key in said:
            if key in manifest and said[key] != manifest[key]:
                raise DamagedInputError(
                    f"{path}: its {key} is not that in {MANIFEST}, so they are of two exports; {EXPORT}"
                )
        return _check({**said, **manifest}, path)


def _require_there(path: Path) -> None:
    try:
        problem = "" if path.exists() else "not found"
    except OSError as error:  # of a name that is too long
        problem = f"wanted the folder of a model, found: {error.strerror}"
    if problem:
        raise MissingInputError(f"{path}: {problem}; `dvc repro export` writes models/onnx")


def _read_manifest(path: Path) -> dict[str, Any] | None:
    if not path.exists():
        return None
    try:
        manifest = json.loads(path.read_bytes())
    except (ValueError, RecursionError, IsADirectoryError):
        manifest = None
    if not isinstance(manifest, dict) or not _lists_files(_check(manifest, path)):
        raise DamagedInputError(f"{path}: not the manifest of an export; {EXPORT}")
    return manifest


def _lists_files(manifest: dict[str, Any]) -> bool:
    files = manifest.get("files")
    return isinstance(files, dict) and all(
        isinstance(facts, dict) and (type(facts.get("bytes")), type(facts.get("sha256"))) == (int, str)
        for facts in files.values()
    )


def _check(facts: dict[str, Any], path: Path) -> dict[str, Any]:
    """Return the facts, if they are of a format that this client knows and have what it needs.

    Fields that it does not know are kept: an export that adds some has the same format. The format rises where a
    client that ignores a change would compute something else.
    """
    found = facts.get("format")
    if found != FORMAT:
        newer = isinstance(found, int) and found > FORMAT
        remedy = "upgrade reparam" if newer else "run `dvc repro export`, or take the reparam that exported it"
        raise DamagedInputError(f"{path}: wanted a model of format {FORMAT}, found one of format {found!r}; {remedy}")
    facts.setdefault("latent_shape", [facts.get("latent_size")])  # missing in the first exports of format 4
    if wrong := [name for name, makes_sense in SENSE.items() if not _holds(makes_sense, facts)]:
        raise DamagedInputError(f"{path}: {', '.join(wrong)}: missing or without sense; {EXPORT}")
    return facts


def _holds(makes_sense: Callable[[dict[str, Any]], bool], facts: dict[str, Any]) -> bool:
    try:
        return makes_sense(facts)
    except (LookupError, TypeError, AttributeError):
        return False


def _are_sizes(sizes: Any) -> bool:
    return isinstance(sizes, list) and all(type(size) is int and size > 0 for size in sizes)


def _are_numbers(values: Any, count: int) -> bool:
    return isinstance(values, list) and len(values) == count and all(type(value) in (int, float) for value in values)


VARIANT = {"lost", "tolerance", "bytes", "size_ratio", "elbo_change"}
# What the client and its commands read of the facts of a model. The last ones are missing in graphs without a manifest.
SENSE: dict[str, Callable[[dict[str, Any]], bool]] = {
    "image.shape": lambda facts: _are_sizes(facts["image"]["shape"]) and len(facts["image"]["shape"]) == 3,
    "latent_size": lambda facts: _are_sizes([facts["latent_size"]]),
    "latent_shape": lambda facts: (
        _are_sizes(facts["latent_shape"]) and math.prod(facts["latent_shape"]) == facts["latent_size"]
    ),
    "has_prior": lambda facts: type(facts["has_prior"]) is bool,
    "prior": lambda facts: facts["prior"] in PRIORS,
    "kind, source or likelihood": lambda facts: all(
        type(facts[key]) is str for key in ("kind", "source", "likelihood")
    ),
    "classes": lambda facts: all(type(name) is str for name in facts.get("classes", [])),
    "codebook": lambda facts: (
        not facts.get("codebook")
        or _are_sizes([facts["codebook"][size] for size in ("codes", "positions", "dimensions")])
    ),
    "codes": lambda facts: (
        "codes" not in facts
        or all(_are_numbers(facts["codes"][key], facts["latent_size"]) for key in ("mean", "deviation"))
    ),
    "scores": lambda facts: not facts.get("scores") or isinstance(facts["scores"]["quantiles"], dict),
    "variants": lambda facts: all(set(kind) >= VARIANT for kind in facts.get("variants", {}).values()),
}


def role_of(path: Path, session: Any) -> str:
    """Return which graph of a model a session has, by its inputs. Raises: DamagedInputError."""
    names = tuple(sorted({value.name for value in session.get_inputs()} - {"label"}))
    if names not in ROLES:
        raise DamagedInputError(f"{path}: wanted inputs of encoder, decoder or score, found {', '.join(names)}")
    return ROLES[names]
