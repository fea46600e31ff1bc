"""An ONNX file -> what `network.js` computes, read with the standard library: `pip install reparam` brings no `onnx`.

Source: https://github.com/onnx/onnx/blob/main/onnx/onnx.proto, and protobuf's encoding:
https://protobuf.dev/programming-guides/encoding
"""

import base64
import struct
from collections import defaultdict
from typing import Any

import numpy as np

from reparam.errors import DamagedInputError

# Fields by their numbers in onnx.proto.
GRAPH, METADATA = 7, 14  # of a model
NODE, INITIALIZER, OUTPUT = 1, 5, 12  # of a graph
INPUTS, OUTPUTS, OPERATOR, ATTRIBUTE = 1, 2, 4, 5  # of a node
KIND = 20  # of an attribute
DIMENSIONS, TYPE, NAME, RAW = 1, 2, 8, 9  # of a tensor
DTYPES: dict[int, np.dtype[Any]] = {1: np.dtype("<f4"), 7: np.dtype("<i8")}  # of numbers in a tensor

Fields = dict[int, list[Any]]


def read(content: bytes, what: str) -> dict[str, Any]:
    """Return nodes, constants, outputs and metadata of a graph, as JSON can hold them; `what` names it in messages.

    Raises: DamagedInputError if it is no such graph.
    """
    try:
        model = _fields(content)
        entries = [_fields(entry) for entry in model[METADATA]]
        return _describe(_fields(model[GRAPH][0])) | {
            "metadata": {_text(entry[1]): _text(entry[2]) for entry in entries}
        }
    except (LookupError, ValueError, struct.error) as error:
        raise DamagedInputError(
            f"{what}: wanted a graph as `reparam export` writes it, found another ({type(error).__name__}: {error}); "
            "run `dvc repro export`"
        ) from None


def _describe(graph: Fields) -> dict[str, Any]:
    constants, weights = dict[str, Any](), list[bytes]()
    start = 0
    for tensor in map(_fields, graph[INITIALIZER]):
        shape, values = _numbers(tensor[DIMENSIONS]), np.frombuffer(tensor[RAW][0], DTYPES[tensor[TYPE][0]])
        if values.dtype.kind == "i":  # shapes and axes
            constants[_text(tensor[NAME])] = {"shape": shape, "values": values.tolist()}
        else:
            constants[_text(tensor[NAME])] = {"shape": shape, "start": start}
            weights.append(values.tobytes())
            start += values.size
    return {
        "nodes": [_node(_fields(node)) for node in graph[NODE]],
        "outputs": [_text(_fields(value)[1]) for value in graph[OUTPUT]],
        "constants": constants,
        "weights": base64.b64encode(b"".join(weights)).decode(),
    }


def _node(node: Fields) -> dict[str, Any]:
    attributes = [_fields(attribute) for attribute in node[ATTRIBUTE]]
    return {
        "op": _text(node[OPERATOR]),
        "inputs": [name.decode() for name in node[INPUTS]],
        "outputs": [name.decode() for name in node[OUTPUTS]],
        "attributes": {_text(attribute[1]): _value(attribute) for attribute in attributes},
    }


def _value(attribute: Fields) -> Any:
    """Return a float, whole number, text, or list of whole numbers. A field that is 0 may be absent."""
    kind = attribute[KIND][0]
    if kind == 1:
        return struct.unpack("<f", attribute[2][0])[0] if attribute[2] else 0.0
    if kind == 2:
        return _signed(attribute[3][0]) if attribute[3] else 0
    if kind == 3:
        return _text(attribute[4])
    if kind == 7:
        return _numbers(attribute[8])
    raise ValueError(f"an attribute of kind {kind}")


def _text(values: list[bytes]) -> str:
    return values[0].decode()


def _numbers(values: list[Any]) -> list[int]:
    """Return whole numbers, which are written one by one or packed."""
    numbers = list[int]()
    for value in values:
        if isinstance(value, int):
            numbers.append(_signed(value))
        else:
            at = 0
            while at < len(value):
                number, at = _varint(value, at)
                numbers.append(_signed(number))
    return numbers


def _signed(number: int) -> int:
    return number - (1 << 64) if number >> 63 else number


def _fields(content: bytes) -> Fields:
    """Split a message into its fields: whole numbers, or bytes."""
    fields: Fields = defaultdict(list)
    at = 0
    while at < len(content):
        key, at = _varint(content, at)
        kind = key & 7
        if kind == 0:
            value, at = _varint(content, at)
            fields[key >> 3].append(value)
            continue
        length, at = (8 if kind == 1 else 4, at) if kind in (1, 5) else _varint(content, at)
        if kind not in (1, 2, 5) or at + length > len(content):
            raise ValueError("a message cut short, or none")
        fields[key >> 3].append(content[at : at + length])
        at += length
    return fields


def _varint(content: bytes, at: int) -> tuple[int, int]:
    """Return a whole number of seven bits a byte, lowest first, and where the next field starts."""
    number = shift = 0
    while True:
        byte = content[at]
        number |= (byte & 127) << shift
        shift, at = shift + 7, at + 1
        if byte < 128:
            return number, at
