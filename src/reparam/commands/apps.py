"""The commands that bring an exported model to a browser, as a file or over HTTP."""

import os
from pathlib import Path
from typing import Annotated

import typer

from reparam.shell.commands import HERE, Model

app = typer.Typer()
PANEL = "The exported model"


@app.command(rich_help_panel=PANEL)
def explorer(
    model: Model = HERE, output: Annotated[Path, typer.Option(help="Where to write the page.")] = Path("explorer.html")
) -> None:
    """Write one HTML page that computes the exported model in a browser, without a network.

    Reads the folder of the model.
    Writes explorer.html.
    """
    from reparam.explorer.page import render
    from reparam.files import whole_file

    with whole_file(output) as partial:
        partial.write_text(render(model), encoding="utf-8")
    typer.echo(f"{output}: written")


@app.command(rich_help_panel=PANEL)
def serve(
    model: Model = HERE,
    host: Annotated[
        str, typer.Option(help="Address to listen at; others than this machine need a token.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes one that is free.")] = 8000,
) -> None:
    """Answer requests over HTTP with the exported model: / is a page to explore it, /docs describes the others.

    Reads the folder of the model, REPARAM_SERVE_TOKEN and REPARAM_DEVICE.
    Writes nothing.
    """
    from reparam.serve import server

    server.run(model, host, port, os.environ.get("REPARAM_DEVICE", "auto"))
