"""The meaning of parameters, read off the sections: comments of params files, the reference page, `reparam params`."""

import io
import json
import textwrap
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any

from pydantic.fields import FieldInfo
from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedSeq

from reparam.config.load import SHIPPED, Config, flatten, hint, load_config, paths_of, schema_at, section_at
from reparam.config.section import Section, describe_type
from reparam.errors import ParamsError

ALL = "`reparam params` lists all"
TRAINED = ("model", "objective")  # sections of stage train; each other section is that of the stage of its name
COLUMNS = 150  # of a line of a params file
HEAD = """\
# Everything that determines the result. `dvc exp run -S train.epochs=3` changes a value for one experiment.
# What changes no result (device, tracking server) comes from the environment: see docs/reference/environment.md.
# A block (model.mlp) has the parameters of one choice, and is ignored under others. `make docs` writes the comments.
"""


def with_comments(values: Mapping[str, Any], head: str = HEAD) -> str:
    """Write a complete params file; values that ruamel.yaml loaded keep their spelling."""
    parts = [head]
    for name, section in Config.blocks().items():
        parts += [f"\n# {_doc(section)}\n{name}:\n", *_lines(section, values[name], (name,))]
    return "".join(parts)


def _lines(section: type[Section], values: Mapping[str, Any], path: tuple[str, ...]) -> Iterator[str]:
    indent, blocks = "  " * len(path), section.blocks()
    for name, field in section.model_fields.items():
        if name in blocks:
            yield f"{indent}# {_meaning(field)}\n{indent}{name}:\n"
            yield from _lines(blocks[name], values[name], (*path, name))
            continue
        options = schema_at((*path, name)).get("enum", ())
        text = f"{' | '.join(map(str, options))}: {_meaning(field)}" if options else _meaning(field)
        line = textwrap.indent(_spell(name, values[name]), indent)
        if len(line) + len(text) + 3 <= COLUMNS and "\n" not in line:
            yield f"{line} # {text}\n"
        else:
            above = textwrap.fill(text, COLUMNS, initial_indent=f"{indent}# ", subsequent_indent=f"{indent}# ")
            yield f"{above}\n{line}\n"


def _spell(name: str, value: Any) -> str:
    if value is None:
        return f"{name}: null"  # ruamel.yaml would write nothing
    if isinstance(value, list | tuple):
        value = CommentedSeq(value)  # a new one, because the comment behind a list belongs to the list
        value.fa.set_flow_style()
    yaml, stream = YAML(), io.StringIO()
    yaml.width = 10_000
    yaml.dump({name: value}, stream)
    return stream.getvalue().removesuffix("\n")


def reference() -> str:
    """Write the reference page, in Markdown."""
    parts = [
        "# Parameters\n\n"
        "Everything in `params.yaml`, section by section. A block such as `model.mlp` has the parameters of one\n"
        "choice, and is ignored under others. `reparam params` prints the same with the values of a working copy.\n"
        "`make docs` writes this page from the docstrings in `src/reparam/config/`.\n"
    ]
    for name, section in Config.blocks().items():
        parts.append(f"\n## `{name}`\n\n{_doc(section)}\n\n{_table(section, (name,))}")
        for inner, block in section.blocks().items():
            parts.append(
                f"\n### `{name}.{inner}`\n\n{_meaning(section.model_fields[inner])}\n\n{_table(block, (name, inner))}"
            )
    return "".join(parts)


def _table(section: type[Section], path: tuple[str, ...]) -> str:
    rows, defaults = ["| parameter | values | default | meaning |\n|---|---|---|---|\n"], _defaults()
    for name, field in section.model_fields.items():
        if name not in section.blocks():
            schema, default = schema_at((*path, name)), _json(defaults[".".join((*path, name))])
            options = ", ".join(f"`{option}`" for option in schema.get("enum", ()))
            rows.append(f"| `{name}` | {options or describe_type(schema)} | `{default}` | {_meaning(field)} |\n")
    return "".join(rows)


def explain(config: Config, name: str = "") -> str:
    """Explain one parameter, those of a section or block, or all.

    Raises: ParamsError if there is none of that name.
    """
    values, defaults = flatten(config), _defaults()
    found = [path for path in paths_of() if f"{path}.".startswith(f"{name}." if name else "")]
    if not found:
        raise ParamsError(f"params.yaml: {name}: no such parameter; {hint(name, ALL)}")
    parts = [_explain(path, _json(values[path]), _json(defaults[path])) for path in found]
    return "\n\n".join(parts) + (f"\n    {_reader(name)}" if found == [name] else "")


def _explain(path: str, value: str, default: str) -> str:
    location = tuple(path.split("."))
    origin = "the default" if value == default else f"default: {default}"
    lines = [f"{path}: {value} ({origin})", describe_type(schema_at(location)), _meaning(_field(location))]
    return "\n    ".join(lines)


def _reader(path: str) -> str:
    """Name the stage that a parameter belongs to."""
    section = path.partition(".")[0]
    return f"After a change, `dvc repro` runs {'train' if section in TRAINED else section} and what depends on it."


@cache
def _defaults() -> dict[str, Any]:
    return flatten(load_config(SHIPPED))


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _field(location: tuple[str, ...]) -> FieldInfo:
    owner = section_at(location[:-1])
    assert owner is not None
    return owner.model_fields[location[-1]]


def _meaning(field: FieldInfo) -> str:
    return " ".join(str(field.description).split())


def _doc(section: type[Section]) -> str:
    return str(section.__doc__).splitlines()[0]
