"""A YAML file of parameters -> plain values: sections, lists, numbers and text, and nothing else that YAML can do."""

from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.constructor import ConstructorError, SafeConstructor
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.events import AliasEvent, CollectionEndEvent, CollectionStartEvent, NodeEvent
from ruamel.yaml.nodes import Node

from reparam.errors import ParamsError

DEEPEST = 8  # sections, blocks and lists in each other; params.yaml has 3
LONGEST = 100_000  # characters: ten times params.yaml, and read within seconds
MOST_BITS = 1_000  # of a whole number: far beyond what any parameter can be, and short enough to be shown
NULL = "tag:yaml.org,2002:null"


class _Constructor(SafeConstructor):
    """Name the line of a value that Python cannot represent: an impossible date, a number of 5,000 digits."""

    def construct_object(self, node: Node, deep: bool = False) -> Any:
        """Make a value. Raises: ConstructorError with its line."""
        try:
            value = super().construct_object(node, deep=deep)
        except (ValueError, OverflowError):
            value = None
        if (value is None and node.tag != NULL) or (isinstance(value, int) and value.bit_length() > MOST_BITS):
            problem = f"there is no such value, found {str(node.value)[:40]!r}"
            raise ConstructorError(None, None, problem, node.start_mark)
        return value


def read_yaml(path: Path) -> Any:
    """Read a file of parameters.

    Raises: ParamsError.
    """
    try:
        if path.exists() and not path.is_file():
            raise ParamsError(f"{path}: wanted a file of parameters, found a folder, device or pipe; move it away")
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ParamsError(f"{path}: not found; run from the root of the project, where params.yaml is") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ParamsError(f"{path}: not valid YAML: {error}") from None
    try:
        return parse_yaml(text)
    except ValueError as error:
        raise ParamsError(f"{path}: {error}") from None


def parse_yaml(text: str) -> Any:
    """Read the text of a file of parameters.

    Raises: ValueError.
    """
    if len(text) > LONGEST:
        raise ValueError(f"wanted at most {LONGEST:,} characters of parameters, found {len(text):,}")
    # ruamel reads YAML 1.2, where 1e-05 (as `dvc exp run -S` writes it) is a number; PyYAML reads a string.
    yaml = YAML(typ="safe", pure=True)
    yaml.Constructor = _Constructor
    try:
        _refuse_what_is_not_plain(yaml, text)
        return yaml.load(text)
    except MarkedYAMLError as error:
        where = f"line {error.problem_mark.line + 1}, column {error.problem_mark.column + 1}"
        raise ValueError(f"{where}: not valid YAML: {error.problem}") from None
    except (YAMLError, OverflowError) as error:
        raise ValueError(f"not valid YAML: {error}") from None


def _refuse_what_is_not_plain(yaml: YAML, text: str) -> None:
    """Refuse tags, deep nesting, and references, which can expand without end."""
    depth = 0
    for event in yaml.parse(text):
        depth += isinstance(event, CollectionStartEvent) - isinstance(event, CollectionEndEvent)
        if isinstance(event, AliasEvent) or (isinstance(event, NodeEvent) and event.anchor):
            found = f"reference {event.anchor!r}"
        elif getattr(event, "tag", None):
            found = f"tag {str(event.tag)!r}"
        elif depth > DEEPEST:
            found = f"values nested {depth} deep"
        else:
            continue
        line = event.start_mark.line + 1
        raise ValueError(f"line {line}: wanted plain sections, lists, numbers and text, found {found}")
