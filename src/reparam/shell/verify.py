"""Check that a model is unchanged since its export, and that this machine computes the same as torch did."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt

from reparam.client import Client
from reparam.client.bundle import EXPORT, GOLDEN, MANIFEST, Bundle
from reparam.errors import DamagedInputError, ParityError, UserError
from reparam.tolerance import tolerance_of

GREY_LEVELS = 1
SLACK = 10  # the tolerance of an export follows the largest of its numbers; golden.npz has those of eight images only
Golden = dict[str, npt.NDArray[np.generic]]
INPUTS = {"encoder": ("images",), "decoder": ("latents",), "score": ("images", "epsilon")}
# Names of outputs in golden.npz that differ from those of the graphs.
NAMES = {"decoder": {"images": "decoded_images", "mean": "decoded_mean"}}


def verify(path: Path, *, whole: bool = False) -> Iterator[str]:
    """Compare all files with the manifest, and answers with those in golden.npz; say what was found.

    The differences from torch that the manifest records must also be within the tolerance.
    Raises: UserError if anything differs; if `whole`, also if golden.npz has no answers of a graph.
    """
    bundle = Bundle.open(path)
    if bundle.manifest is None:
        raise UserError(f"{path}: wanted a folder with {MANIFEST}, which has the checksums, found none")
    for name in bundle.files:
        bundle.read(name)
    yield f"{len(bundle.files)} files: as in {MANIFEST}"
    if GOLDEN not in bundle.files:
        raise UserError(f"{path}: wanted right answers in {GOLDEN}, found none; run `dvc repro export`")
    golden = bundle.arrays(GOLDEN)
    client = Client(path, device="cpu")  # the tolerance is that of CPUs
    for role in client.graphs:
        if lacks := _lacks(client, role, golden):
            if whole:
                raise DamagedInputError(f"{path}: {lacks}; {EXPORT}")
            yield lacks
        else:
            _check_recorded(client, role, golden, bundle)
            yield from _compare(client, role, golden, _tolerance(client, bundle))


def _tolerance(client: Client, bundle: Bundle) -> float:
    """Return the tolerance of a graph; a variant, such as `encoder.int8.onnx`, has the one of its export."""
    variants = (bundle.manifest or {}).get("variants", {})
    kind = Path(bundle.names[0]).stem.rpartition(".")[2]
    return float(variants[kind]["tolerance"]) if kind in variants else tolerance_of(*client.image_shape[:2])


def _check_recorded(client: Client, role: str, golden: Golden, bundle: Bundle) -> None:
    """Check the differences from torch that the export measured. Raises: ParityError if too large or not there."""
    answers = [golden[name] for name in _outputs(client, role).values() if name in golden]
    scale = max([1.0, *(float(np.abs(values).max(initial=0)) for values in answers if values.dtype.kind == "f")])
    most = {f"{role}_max_error": SLACK * tolerance_of(*client.image_shape[:2]) * scale}
    if role == "decoder":
        most["decoder_max_grey_levels"] = GREY_LEVELS
    parity = (bundle.manifest or {}).get("parity")
    for name, allowed in most.items():
        found = parity.get(name) if isinstance(parity, dict) else None
        if not isinstance(found, int | float) or not 0 <= found <= allowed:  # also catches NaN
            raise ParityError(
                f"{bundle.directory / MANIFEST}: parity.{name}: wanted at most {allowed:.3g}, found {found}; {EXPORT}"
            )


def _inputs(client: Client, role: str) -> list[str]:
    return [*INPUTS[role], *(["label"] if client.classes else [])]


def _outputs(client: Client, role: str) -> dict[str, str]:
    """Return the outputs of a graph, and their names in golden.npz."""
    return {output: NAMES.get(role, {}).get(output, output) for output in client.outputs(role)}


def _lacks(client: Client, role: str, golden: Golden) -> str:
    """Say what golden.npz lacks to check a graph."""
    missing = [name for name in (*_inputs(client, role), *_outputs(client, role).values()) if name not in golden]
    return f"{role}: not checked, {GOLDEN} has no {', '.join(missing)}" if missing else ""


def _compare(client: Client, role: str, golden: Golden, tolerance: float) -> Iterator[str]:
    outputs, inputs = _outputs(client, role), _inputs(client, role)
    try:
        found = client.run(role, list(outputs), **{name: golden[name] for name in inputs})
    except Exception as problem:  # onnxruntime's own exceptions share no public base class
        raise DamagedInputError(
            f"{client.path}: {role}: {GOLDEN} does not fit this graph: {problem}; {EXPORT}"
        ) from problem
    for (output, name), values in zip(outputs.items(), found, strict=True):
        wanted = golden[name]
        if (values.dtype, values.shape) != (wanted.dtype, wanted.shape):
            raise DamagedInputError(
                f"{client.path}: {role}, {output}: wanted {wanted.dtype} {wanted.shape} (as {GOLDEN} has it), found "
                f"{values.dtype} {values.shape}; {EXPORT}"
            )
        error = float(np.abs(values.astype(np.float64) - wanted.astype(np.float64)).max(initial=0))
        is_grey = wanted.dtype == np.uint8
        scale = max(1.0, float(np.abs(wanted).max(initial=0)))
        allowed = max(GREY_LEVELS, 255 * tolerance) if is_grey else tolerance * scale
        if not error <= allowed:  # also catches NaN
            raise ParityError(
                f"{client.path}: {role}, {output}: wanted at most {allowed:.3g} from {GOLDEN}, found {error:.3g}; "
                "another version of onnxruntime may compute it"
            )
        yield f"{role}, {output}: largest difference {error:.2g}{' grey levels' if is_grey else ''}"
