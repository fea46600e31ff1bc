"""Write what is generated from the source: the comments of the params files, and the pages of reference."""

from pathlib import Path
from typing import Any

import typer

from reparam.cli import app
from reparam.config.document import reference
from reparam.config.load import SHIPPED
from reparam.metrics import GROUPS, LAYER, VALIDATED, VALIDATION, members
from reparam.recipes import renewed

ROOT = Path(__file__).parents[1]
METRICS = """\
# Metrics

What each number means. Most are means over the images of `evaluate.split`, with their standard errors under
`<name>_se`; the errors of numbers of generated images come from a bootstrap over images. Densities are those of the
pixels as `preprocess.scaling` makes them: compare ELBO, reconstruction and NLL of models with the same scaling only.
`make docs` writes this page from `src/reparam/metrics.py`.

Read the numbers of generated images together. They compare decoder means with grey originals in a few principal
components of pixels, so they cannot see fine detail, nor whether an image was copied from the training images. Few
kinds of images that all look real have a high precision and density: only recall and coverage show what is missing.
"""
HEAD_OF_METRICS = "| metric | shown as | unit | best | meaning | measured with |\n|---|---|---|---|---|---|\n"
COMMANDS = """\
# Commands

`reparam COMMAND --help` prints the same. Everything that determines a result is a [parameter](parameters.md) and no
option. `make docs` writes this page from `src/reparam/cli.py`,
`commands/tools.py`, `commands/apps.py` and `shell/commands.py`.
"""


def main() -> None:
    """Write the files. Values stay as they are; a parameter that params.yaml lacks gets the shipped value."""
    for path in (SHIPPED, ROOT / "params.yaml"):
        path.write_text(renewed(path), encoding="utf-8")
    for name, text in {"parameters": reference(), "metrics": metrics(), "commands": commands()}.items():
        (ROOT / f"docs/reference/{name}.md").write_text(text, encoding="utf-8")


def metrics() -> str:
    """Return the page of metrics: a table for each group."""
    parts = [METRICS]
    for title, group in GROUPS.items():
        parts.append(f"\n## {title}\n\n{HEAD_OF_METRICS}")
        for name, metric in members(title, [*group, f"{LAYER}1", *(f"{name}{VALIDATION}" for name in VALIDATED)]):
            cells = (f"`{name}`", metric.title, metric.unit, metric.best, _cell(metric.text), metric.applies)
            parts.append(f"| {' | '.join(cells)} |\n")
    return "".join(parts)


def commands() -> str:
    """Return the page of commands: what each does, and its arguments and options."""
    group = typer.main.get_command(app)
    assert isinstance(group, typer.core.TyperGroup)
    panels: dict[str, list[str]] = {}  # in the order of `reparam --help`
    for name, command in group.commands.items():
        panels.setdefault(f"## {command.rich_help_panel}\n", []).extend(_command(f"reparam {name}", command, "###"))
    return "\n".join([COMMANDS, *(line for panel, lines in panels.items() for line in (panel, *lines))])


def _command(name: str, command: Any, heading: str) -> list[str]:
    """Return the lines of a command, and of those below it."""
    lines = [f"{heading} `{name}`\n\n{command.help}\n"]
    context = typer.Context(command, info_name=name)
    records = [record for param in command.params if (record := param.get_help_record(context))]
    if records:
        rows = "".join(f"| `{_cell(what)}` | {_cell(text)} |\n" for what, text in records)
        lines.append(f"| argument or option | meaning |\n|---|---|\n{rows}")
    for below, its in getattr(command, "commands", {}).items():
        lines += _command(f"{name} {below}", its, f"{heading}#")
    return lines


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", r"\|")


if __name__ == "__main__":
    main()
