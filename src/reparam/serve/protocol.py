"""The Open Inference Protocol, version 2, over JSON: what Triton, KServe and MLServer speak.

Source: https://github.com/kserve/open-inference-protocol
"""

import math
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, Field

from reparam.errors import UserError

KINDS = {"UINT8": np.uint8, "FP32": np.float32}
NAMES = {"tensor(uint8)": "UINT8", "tensor(float)": "FP32"}  # by those of onnxruntime


class Tensor(BaseModel):
    """A tensor as JSON."""

    name: str
    shape: Annotated[list[Annotated[int, Field(ge=0, le=2**31)]], Field(max_length=8)]
    datatype: str
    data: list[Any]


class Output(BaseModel):
    """An output that is asked for."""

    name: str


class Request(BaseModel):
    """What `infer` takes."""

    id: str | None = None
    inputs: list[Tensor]
    outputs: list[Output] | None = None


def describe(value: Any) -> dict[str, Any]:
    """Describe an input or output of a graph."""
    return {"name": value.name, "datatype": NAMES[value.type], "shape": [-1, *value.shape[1:]]}


def read(given: list[Tensor], wanted: list[dict[str, Any]], rows: int) -> dict[str, npt.NDArray[Any]]:
    """Return the inputs of a graph by their names.

    Raises: UserError where they are not of its names, types and shapes, or have more than `rows` rows.
    """
    names = [tensor.name for tensor in given]
    if sorted(names) != sorted(facts["name"] for facts in wanted):
        raise UserError(f"inputs: wanted {', '.join(facts['name'] for facts in wanted)}, found {', '.join(names)}")
    of_graph = {facts["name"]: facts for facts in wanted}
    found = {tensor.name: _array(tensor, of_graph[tensor.name], rows) for tensor in given}
    if len({len(values) for values in found.values()}) > 1:
        raise UserError("inputs: wanted as many rows in each, found different ones")
    return found


def _array(tensor: Tensor, facts: dict[str, Any], rows: int) -> npt.NDArray[Any]:
    where = f"inputs.{tensor.name}"
    shape = ["rows", *facts["shape"][1:]]
    if tensor.datatype != facts["datatype"]:
        raise UserError(f"{where}: wanted datatype {facts['datatype']}, found {tensor.datatype}")
    if len(tensor.shape) != len(shape) or tensor.shape[1:] != shape[1:]:
        raise UserError(f"{where}: wanted shape {shape}, found {tensor.shape}")
    if not 1 <= tensor.shape[0] <= rows:
        raise UserError(f"{where}: wanted 1 to {rows} rows, found {tensor.shape[0]}")
    return numbers(tensor.data, facts["datatype"], tensor.shape, where)


def numbers(data: Any, kind: str, shape: list[int], where: str) -> npt.NDArray[Any]:
    """Turn lists, flat or nested, into an array of a shape.

    Raises: UserError where they hold something else than so many finite numbers of the kind.
    """
    try:
        values = np.asarray(data, np.float64)
    except (ValueError, TypeError, OverflowError):
        raise UserError(f"{where}: wanted numbers in lists of one length, found something else") from None
    if values.size != math.prod(shape):
        raise UserError(f"{where}: wanted {math.prod(shape)} numbers, found {values.size}")
    if not np.isfinite(values).all() or np.abs(values).max(initial=0) > np.finfo(np.float32).max:
        raise UserError(f"{where}: wanted finite numbers, found NaN, infinity or one beyond float32")
    if kind == "UINT8" and not ((values >= 0) & (values <= 255) & (values == np.floor(values))).all():
        raise UserError(f"{where}: wanted whole numbers from 0 to 255, found others")
    return values.astype(KINDS[kind]).reshape(shape)
