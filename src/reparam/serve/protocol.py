"""The Open Inference Protocol, version 2, with its binary tensors: what Triton, KServe and MLServer speak.

Source: https://github.com/kserve/open-inference-protocol and Triton's `extension_binary_data.md`
"""

import json
import math
from typing import Annotated, Any, TypeVar

import numpy as np
import numpy.typing as npt
from fastapi.responses import Response
from pydantic import BaseModel, Field, ValidationError
from starlette.exceptions import HTTPException

from reparam.errors import UserError
from reparam.serve import answers
from reparam.serve.batches import Arrays

DTYPES: dict[str, np.dtype[Any]] = {"UINT8": np.dtype("u1"), "INT64": np.dtype("<i8"), "FP32": np.dtype("<f4")}
NAMES = {"tensor(uint8)": "UINT8", "tensor(int64)": "INT64", "tensor(float)": "FP32"}  # by those of onnxruntime
Body = TypeVar("Body", bound=BaseModel)
JSON_BYTES = 4 << 20  # of one request: Python answers nobody else while it reads them, 0.1 s each MB
HEADER = "Inference-Header-Content-Length"  # the number of bytes of JSON before binary tensors


class TensorParameters(BaseModel):
    """The parameters of an input."""

    binary_data_size: Annotated[int, Field(ge=0)] | None = None


class Tensor(BaseModel):
    """A tensor as JSON, or the description of a binary one."""

    name: str
    shape: Annotated[list[Annotated[int, Field(ge=0, le=2**31)]], Field(max_length=8)]
    datatype: str
    data: list[Any] | None = None
    parameters: TensorParameters = TensorParameters()


class OutputParameters(BaseModel):
    """The form of one output."""

    binary_data: bool | None = None


class Output(BaseModel):
    """An output that is asked for."""

    name: str
    parameters: OutputParameters = OutputParameters()


class RequestParameters(BaseModel):
    """The form of all outputs that do not set their own."""

    binary_data_output: bool = False


class Request(BaseModel):
    """The body of `infer`."""

    id: str | None = None
    inputs: list[Tensor]
    outputs: list[Output] | None = None
    parameters: RequestParameters = RequestParameters()


def parse(kind: type[Body], body: bytes) -> Body:
    """Read a JSON body.

    Raises: UserError if it is no such JSON, HTTPException if it is too long.
    """
    if len(body) > JSON_BYTES:
        message = f"wanted at most {JSON_BYTES} bytes of JSON, found {len(body)}; send fewer rows, or binary tensors"
        raise HTTPException(413, message)
    try:
        return kind.model_validate_json(body)
    except ValidationError as error:
        raise UserError(answers.describe(error.errors(include_input=False, include_url=False))) from None


def request_of(body: bytes, length: str | None) -> tuple[Request, dict[str, bytes]]:
    """Return a request, and the bytes of its binary inputs by their names; `length` is that of its JSON.

    Raises: UserError if the lengths do not add up.
    """
    if length is None:
        return parse(Request, body), {}
    if not (length.isascii() and length.isdecimal() and len(length) < 19 and int(length) <= len(body)):
        raise UserError(f"{HEADER}: wanted 0 to {len(body)}, found {length}")
    request, start, binary = parse(Request, body[: int(length)]), int(length), {}
    for tensor in request.inputs:
        if (size := tensor.parameters.binary_data_size) is not None:
            binary[tensor.name] = body[start : start + size]
            start += size
    if start != len(body):
        raise UserError(f"inputs: wanted a body of {start} bytes by its sizes of binary data, found {len(body)}")
    return request, binary


def describe(value: Any) -> dict[str, Any]:
    """Describe an input or output of a graph."""
    return {"name": value.name, "datatype": NAMES[value.type], "shape": [-1, *value.shape[1:]]}


def read(given: list[Tensor], binary: dict[str, bytes], wanted: list[dict[str, Any]], rows: int) -> Arrays:
    """Return the inputs of a graph by their names.

    Raises: UserError if they are not of its names, types and shapes, or have more than `rows` rows.
    """
    names = [tensor.name for tensor in given]
    if sorted(names) != sorted(facts["name"] for facts in wanted):
        raise UserError(f"inputs: wanted {', '.join(facts['name'] for facts in wanted)}, found {', '.join(names)}")
    of_graph = {facts["name"]: facts for facts in wanted}
    found = {tensor.name: _array(tensor, binary.get(tensor.name), of_graph[tensor.name], rows) for tensor in given}
    if len({len(values) for values in found.values()}) > 1:
        raise UserError("inputs: wanted as many rows in each, found different ones")
    return found


def _array(tensor: Tensor, binary: bytes | None, facts: dict[str, Any], rows: int) -> npt.NDArray[Any]:
    where = f"inputs.{tensor.name}"
    shape = ["rows", *facts["shape"][1:]]
    if tensor.datatype != facts["datatype"]:
        raise UserError(f"{where}: wanted datatype {facts['datatype']}, found {tensor.datatype}")
    if len(tensor.shape) != len(shape) or tensor.shape[1:] != shape[1:]:
        raise UserError(f"{where}: wanted shape {shape}, found {tensor.shape}")
    if not 1 <= tensor.shape[0] <= rows:
        raise UserError(f"{where}: wanted 1 to {rows} rows, found {tensor.shape[0]}")
    kind, count = DTYPES[tensor.datatype], math.prod(tensor.shape)
    if binary is None:
        return numbers(tensor.data, tensor.datatype, tensor.shape, where)
    if len(binary) != count * kind.itemsize:
        raise UserError(f"{where}: wanted {count * kind.itemsize} bytes, found {len(binary)}")
    return _checked(np.frombuffer(binary, kind), where).reshape(tensor.shape)


def numbers(data: Any, kind: str, shape: list[int], where: str) -> npt.NDArray[Any]:
    """Turn lists into an array of a shape. They are flat, or nested so; a last dimension of 1 may be missing.

    Raises: UserError if they are not finite numbers of this kind, as many as the shape needs, or are nested otherwise.
    """
    try:
        values = np.asarray(data)
    except ValueError:  # lists of different lengths
        values = np.array(None)
    if values.dtype.kind not in "iuf":  # as text, which numpy would read as numbers
        raise UserError(f"{where}: wanted numbers in lists of one length, found something else")
    if values.size != math.prod(shape):
        raise UserError(f"{where}: wanted {math.prod(shape)} numbers, found {values.size}")
    nested = shape if shape[-1:] != [1] or values.ndim == len(shape) else shape[:-1]
    if values.ndim > 1 and values.shape != tuple(nested):  # such as channels before rows
        raise UserError(f"{where}: wanted shape {shape}, found {list(values.shape)}")
    _checked(values, where)
    if kind == "UINT8" and not ((values >= 0) & (values <= 255) & (values == np.floor(values))).all():
        raise UserError(f"{where}: wanted whole numbers from 0 to 255, found others")
    if kind == "INT64" and (values.dtype.kind == "f" or (values > np.iinfo(np.int64).max).any()):
        raise UserError(f"{where}: wanted whole numbers of 64 bits with a sign, found others")
    return values.astype(DTYPES[kind]).reshape(shape)


def _checked(values: npt.NDArray[Any], where: str) -> npt.NDArray[Any]:
    if not np.isfinite(values).all() or np.abs(values).max(initial=0) > np.finfo(np.float32).max:
        raise UserError(f"{where}: wanted finite numbers, found NaN, infinity or one beyond float32")
    return values


def wanted_outputs(request: Request, kinds: dict[str, str]) -> dict[str, bool]:
    """Return which outputs a request asks for, by default all, and whether each shall be binary.

    Raises: UserError if the model has no such output.
    """
    binary = request.parameters.binary_data_output
    asked = request.outputs or [Output(name=name) for name in kinds]
    if unknown := [output.name for output in asked if output.name not in kinds]:
        raise UserError(f"outputs: wanted some of {', '.join(kinds)}, found {', '.join(unknown)}")
    given = {output.name: output.parameters.binary_data for output in asked}
    return {name: binary if said is None else said for name, said in given.items()}


def answer(facts: dict[str, Any], found: Arrays, wanted: dict[str, bool]) -> Response:
    """Answer with outputs; `facts` are those of the whole answer. Raises: UserError if one is not finite."""
    kinds = {kind: name for name, kind in DTYPES.items()}
    outputs, binary = [], []
    for name, is_binary in wanted.items():
        values = found[name]
        answers.check_finite({name: values})
        output: dict[str, Any] = {"name": name, "datatype": kinds[values.dtype], "shape": list(values.shape)}
        if is_binary:
            binary.append(values.tobytes())
            outputs.append(output | {"parameters": {"binary_data_size": len(binary[-1])}})
        else:
            outputs.append(output | {"data": values.ravel().tolist()})
    content = facts | {"outputs": outputs}
    if not binary:
        return answers.Json(content)
    head = json.dumps(content).encode()
    return Response(b"".join((head, *binary)), headers={HEADER: str(len(head))}, media_type="application/octet-stream")
