"""`reparam model`: the exported model from a shell. Nothing but Typer is imported before a command runs."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from reparam.client import Client
    from reparam.shell.work import Place

app = typer.Typer(help="Use the exported model: numpy and onnxruntime compute it.", no_args_is_help=True)

Model = Annotated[Path, typer.Option(help="Folder of the exported model, or one of its graphs.")]
Inputs = Annotated[
    list[str],
    typer.Argument(
        metavar="IMAGES...",
        help="Image files, folders of them, patterns such as 'scans/**/*.png', or .npy files of uint8 "
        "(N, height, width, channels).",
        show_default=False,
    ),
]
Resize = Annotated[bool, typer.Option("--resize", help="Resize and crop images to the size of the model.")]
Shard = Annotated[
    str, typer.Option(metavar="I/N", help="Compute part I of N only; the parts in order are what one run computes.")
]
Ray = Annotated[
    str | None,
    typer.Option(
        metavar="ADDRESS",
        help="Let Ray compute: local (all cores of this machine), auto (the cluster that runs here) or an address.",
        show_default=False,
    ),
]
Table = Annotated[
    Path | None, typer.Option(help="A .csv, .npy or .parquet file; without it, CSV is printed.", show_default=False)
]
Pictures = Annotated[Path, typer.Option(help="A .npy file, or a .png with all images side by side.")]
Label = Annotated[
    str, typer.Option(help="Class of all images, by name or number, for a conditional model.", show_default=False)
]
HERE = Path("models/onnx")


@app.command()
def info(model: Model = HERE) -> None:
    """Print the facts of a model, and the device that computes it.

    Reads the folder of a model.
    Writes nothing.
    """
    from reparam.shell import work

    typer.echo("\n".join(work.info(_client(model))))


@app.command()
def verify(model: Model = HERE) -> None:
    """Check the checksums of all files, and the answers of the graphs against golden.npz.

    Reads the folder of a model.
    Writes nothing.
    """
    from reparam.shell.verify import verify

    for line in verify(model):
        typer.echo(line)
    typer.echo(f"{model}: verified")


@app.command()
def encode(
    inputs: Inputs,
    model: Model = HERE,
    output: Table = None,
    resize: Resize = False,
    shard: Shard = "1/1",
    ray: Ray = None,
    label: Label = "",
) -> None:
    """Write the codes of images: .npy holds their means for `decode`; tables also have variances, or whole codes.

    Reads the folder of a model and images.
    Writes the table of --output, or prints it.
    """
    from reparam.shell import work

    client = _client(model)
    work.encode(client, work.find_images(client, inputs, resize=resize), output, _place(shard, ray), label)


@app.command()
def decode(
    codes: Annotated[Path, typer.Argument(help="A .npy file of numbers (N, latents).", show_default=False)],
    output: Pictures,
    model: Model = HERE,
    shard: Shard = "1/1",
    label: Label = "",
) -> None:
    """Write the images of codes.

    Reads the folder of a model and a .npy file of codes.
    Writes the file of --output.
    """
    from reparam.shell import work

    work.decode(_client(model), codes, output, shard, label)


@app.command()
def sample(
    output: Pictures,
    count: Annotated[int, typer.Option(min=0, max=100_000_000, help="How many images.")] = 64,
    seed: Annotated[int, typer.Option(min=0, help="The same seed gives the same images.")] = 0,
    temperature: Annotated[float, typer.Option(min=0, help="Below 1, images are more typical and vary less.")] = 1.0,
    label: Label = "",
    model: Model = HERE,
) -> None:
    """Write images that the model invents.

    Reads the folder of a model.
    Writes the file of --output.
    """
    from reparam.shell import work

    work.sample(_client(model), count, seed, temperature, output, label)


@app.command()
def reconstruct(
    inputs: Inputs,
    output: Pictures,
    model: Model = HERE,
    resize: Resize = False,
    shard: Shard = "1/1",
    ray: Ray = None,
    label: Label = "",
) -> None:
    """Write the reconstructions of images; a .png has each image and its reconstruction side by side.

    Reads the folder of a model and images.
    Writes the file of --output.
    """
    from reparam.shell import work

    client = _client(model)
    work.reconstruct(client, work.find_images(client, inputs, resize=resize), output, _place(shard, ray), label)


@app.command()
def score(
    inputs: Inputs,
    model: Model = HERE,
    output: Table = None,
    samples: Annotated[
        int, typer.Option(min=0, max=1_000_000, help="Posterior samples of each image; 0: at the posterior mean.")
    ] = 1,
    resize: Resize = False,
    shard: Shard = "1/1",
    ray: Ray = None,
    label: Label = "",
) -> None:
    """Write the negative ELBO of images in nats: the larger, the stranger an image.

    Reads the folder of a model and images.
    Writes the table of --output, or prints it.
    """
    from reparam.shell import work

    client = _client(model)
    work.score(client, work.find_images(client, inputs, resize=resize), output, _place(shard, ray), samples, label)


@app.command()
def bench(model: Model = HERE) -> None:
    """Measure how long calls take here; show size, ELBO and speed of each variant.

    Reads the folder of a model.
    Writes nothing.
    """
    from reparam.shell.bench import bench

    for line in bench(model, _client):
        typer.echo(line)


def _client(model: Path) -> "Client":
    from reparam.client import Client

    return Client(model, os.environ.get("REPARAM_DEVICE", "auto"))


def _place(shard: str, ray: str | None) -> "Place":
    from reparam.shell.spread import Cluster
    from reparam.shell.work import Place

    return Place(shard, None if ray is None else Cluster(ray))
