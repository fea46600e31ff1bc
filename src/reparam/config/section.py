"""The base class of the sections of `params.yaml`, types of parameters, and words for these types."""

import ast
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, Any

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    PlainValidator,
    WithJsonSchema,
)
from pydantic_core import core_schema

PACKAGE = Path(__file__).parents[1]


class Section(BaseModel):
    """A strict, frozen group of parameters without defaults: a section of `params.yaml`, or a block in one.

    The docstring below a field is the one place where its meaning is written; see `document.py`.
    """

    model_config = ConfigDict(
        strict=True, frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True
    )

    def arguments(self, choice: str) -> tuple["Section", ...]:
        """Return the block of a choice as a 1-tuple, or an empty tuple if it has none."""
        block = getattr(self, choice, None)
        return (block,) if isinstance(block, Section) else ()

    @classmethod
    def blocks(cls) -> dict[str, type["Section"]]:
        """Return the classes of the blocks in it, by name."""
        kinds = {name: field.annotation for name, field in cls.model_fields.items()}
        return {name: kind for name, kind in kinds.items() if isinstance(kind, type) and issubclass(kind, Section)}

    def unused(self) -> list[str]:
        """Name the blocks of choices that are not taken."""
        properties = self.model_json_schema()["properties"]
        options = {name: each["enum"] for name, each in properties.items() if "enum" in each}
        taken, known = {getattr(self, name) for name in options}, {each for some in options.values() for each in some}
        return [name for name in self.blocks() if name in known - taken]


@dataclass(frozen=True)
class KeyOf:
    """Accept the keys of a dict in another module, read as text, because importing it would import torch.

    So the names are written in that dict alone, and a wrong name is still reported together with all other mistakes.
    """

    table: str
    module: str

    @property
    def names(self) -> list[str]:
        return _keys(self.table, self.module)

    def check(self, name: str) -> str:
        if name not in self.names:
            raise ValueError("one of " + ", ".join(map(repr, self.names)))
        return name

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> core_schema.CoreSchema:
        return core_schema.no_info_after_validator_function(self.check, handler(source))

    def __get_pydantic_json_schema__(
        self, _schema: core_schema.CoreSchema, _handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        return {"enum": self.names}


@cache
def _keys(table: str, module: str) -> list[str]:
    for node in ast.walk(ast.parse((PACKAGE / module).read_text(encoding="utf-8"))):
        target = node.targets[0] if isinstance(node, ast.Assign) else getattr(node, "target", None)
        if isinstance(target, ast.Name) and target.id == table:
            return [ast.literal_eval(key) for key in node.value.keys]  # type: ignore[attr-defined]
    raise AssertionError(f"{module}: no dict {table}")


def _at_most(most: int, unit: str = "") -> AfterValidator:
    """Refuse absurd values, which would overflow or run for ever. These limits are not documented."""

    def check(value: Any) -> Any:
        if (len(value) if isinstance(value, tuple) else value) > most:
            raise ValueError(f"at most {most:,} {unit}".strip())
        return value

    return AfterValidator(check)


SANE = _at_most(10**9)
FEW = _at_most(100, "items")

SHARE = "a fraction below 1, or a whole number of images"
MAYBE_SHARE = f"0, {SHARE}"


def _check_share(value: Any) -> float | int:
    is_count = isinstance(value, int) and not isinstance(value, bool) and value > 0
    is_fraction = isinstance(value, float) and 0 < value < 1
    if not is_count and not is_fraction:
        raise ValueError(SHARE)
    return value  # type: ignore[no-any-return]


def _check_maybe_share(value: Any) -> float | int:
    if value == 0 and not isinstance(value, bool):
        return value  # type: ignore[no-any-return]
    try:
        return _check_share(value)
    except ValueError:
        raise ValueError(MAYBE_SHARE) from None


Share = Annotated[float | int, PlainValidator(_check_share), SANE, WithJsonSchema({"wanted": SHARE})]
MaybeShare = Annotated[float | int, PlainValidator(_check_maybe_share), SANE, WithJsonSchema({"wanted": MAYBE_SHARE})]
Seed = Annotated[int, Field(ge=0, lt=2**63)]  # what torch and numpy both take
Decay = Annotated[float, Field(ge=0, lt=1)]
Count = Annotated[int, Field(gt=0), SANE]
MaybeCount = Annotated[int, Field(ge=0), SANE]
Width = Annotated[int, Field(gt=0), _at_most(65_536, "units")]  # of a layer: units, channels, dimensions
Depth = Annotated[int, Field(gt=0), _at_most(100, "blocks")]  # of a network
Side = Annotated[int, Field(gt=0), _at_most(4_096, "pixels")]  # in pixels
Positive = Annotated[float, Field(gt=0), SANE]
NotNegative = Annotated[float, Field(ge=0), SANE]
# A YAML list arrives as a Python list; the tuples keep the model frozen, and their items stay strict.
Widths = Annotated[tuple[Width, ...], Field(strict=False, min_length=1), FEW]
MaybeWidths = Annotated[tuple[Width, ...], Field(strict=False), FEW]
Counts = Annotated[tuple[Count, ...], Field(strict=False, min_length=1), FEW]
Strings = Annotated[tuple[str, ...], Field(strict=False, min_length=1)]

LONGEST = 200  # characters of a value that a message shows
TYPES = {
    "integer": "a whole number",
    "number": "a number",
    "boolean": "true or false",
    "string": "text",
    "null": "null",
}
BOUNDS = {"exclusiveMinimum": "above", "minimum": "at least", "exclusiveMaximum": "below", "maximum": "at most"}

WANTED = {  # by pydantic's name of a mistake, with its names of limits
    "model_type": "named values",
    "dict_type": "named values",
    "tuple_type": "a list",
    "too_short": "at least {min_length} items",
    "too_long": "at most {max_length} items",
    "string_pattern_mismatch": "text of the form {pattern}",
    "int_type": TYPES["integer"],
    "int_from_float": TYPES["integer"],
    "float_type": TYPES["number"],
    "bool_type": TYPES["boolean"],
    "string_type": TYPES["string"],
    "greater_than": "above {gt}",
    "greater_than_equal": "at least {ge}",
    "less_than": "below {lt}",
    "less_than_equal": "at most {le}",
}


def describe_type(schema: Mapping[str, Any]) -> str:
    """Describe the values that a parameter can have, given its JSON schema."""
    if "anyOf" in schema:
        options = sorted(schema["anyOf"], key=lambda option: option.get("type") != "null")
        return " or ".join(describe_type(option) for option in options)
    if "enum" in schema:
        return "one of " + ", ".join(map(repr, schema["enum"]))
    if "wanted" in schema:
        return str(schema["wanted"])
    if schema["type"] == "array":
        least, most = schema.get("minItems"), schema.get("maxItems")
        length = "" if least is None else f" of {least}" if least == most else f" of at least {least}"
        return f"a list{length}, each {describe_type(schema['items'])}"
    bounds = " and ".join(f"{word} {schema[name]}" for name, word in BOUNDS.items() if name in schema)
    return TYPES[schema["type"]] + (f" ({bounds})" if bounds else "")


def shorten(text: str) -> str:
    """Cut a value that is too long for a message."""
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}..."


def describe_problem(problem: Any) -> str:
    """Describe a mistake that pydantic found in one line: `field: wanted this, found that`."""
    path, context = ".".join(str(part) for part in problem["loc"] if part != "[key]"), problem.get("ctx", {})
    where, found = f"{path}: " if path else "", shorten(repr(problem["input"]))
    match problem["type"]:
        case "missing":
            return f"{where}missing"
        case "extra_forbidden":
            return f"{where}unknown, found {found}"
        case "json_invalid":
            return f"not valid JSON ({context['error']})"
        case kind if kind in WANTED:
            limits = {name: f"{value:g}" if isinstance(value, float) else value for name, value in context.items()}
            wanted = WANTED[kind].format(**limits)
        case _:
            wanted = problem["msg"].removeprefix("Input should be ").removeprefix("Value error, ")
    return f"{where}wanted {wanted}, found {found}"
