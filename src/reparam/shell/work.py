"""The work of the commands of `reparam model`."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import typer

from reparam.client import Client
from reparam.client.labels import number_of
from reparam.client.runtime import PACKAGES, installed_twice, repair
from reparam.errors import UserError
from reparam.progress import counting
from reparam.shell import outputs
from reparam.shell.inputs import Batch, Collection, open_array, span_of
from reparam.shell.spread import Array, Cluster, Compute, Results, computed

MB = 1e6


def info(client: Client) -> list[str]:
    """Describe a model, and the device that computes it."""
    facts = client.metadata
    priors = {"standard normal": "of the prior N(0, 1) each", "gaussian mixture": "of a prior that is a mixture"}
    prior = priors.get(facts["prior"], "of a prior of another kind")
    prior = prior if facts["has_prior"] else "without a prior"
    files = facts.get("files", {})
    sizes = [f"{role} {files[name]['bytes'] / MB:.1f} MB" if (name := f"{role}.onnx") in files else role
             for role in client.graphs]  # fmt: skip
    lines = [
        f"{client.path}: format {facts['format']}, {facts['kind']} of {facts['source']}",
        f"images      {' x '.join(map(str, client.image_shape))} (height, width, channels), uint8",
        f"latents     {' x '.join(map(str, client.latent_shape))}, {prior}",
        f"likelihood  {facts['likelihood']}",
        *([f"labels      {', '.join(client.classes)}"] if client.classes else []),
        f"graphs      {', '.join(sizes)}",
        f"runs on     {client.provider}, {client.batch} images at once",
    ]
    if scores := facts.get("scores"):
        usual = ", ".join(f"{percent}%: {value}" for percent, value in scores["quantiles"].items())
        lines.append(f"scores      of the test split with --samples 0, quantiles: {usual}")
    if not files:
        lines.append("warning     no manifest.json: damaged or exchanged files would not be noticed")
    if installed_twice():
        lines.append(f"warning     two packages of onnxruntime in one folder; {repair(*PACKAGES)}")
    return lines


@dataclass(frozen=True)
class Place:
    """The part of a collection to compute, in this process or by a cluster."""

    shard: str = "1/1"
    cluster: Cluster | None = None  # None: this process

    def computed(self, client: Client, images: Collection, span: range, compute: Compute) -> Results:
        return (self.cluster.computed if self.cluster else computed)(client, images, span, compute)


@dataclass(frozen=True)
class Encode:
    """Means, and log variances if there are 2 parts. Shapes: -> (B, parts * latents)."""

    parts: int
    label: int | None = None

    def __call__(self, client: Client, batch: Batch) -> Array:
        found = client.encode(batch.images, self.label)[: self.parts]
        return np.concatenate([values.reshape(len(values), -1) for values in found], axis=1)


@dataclass(frozen=True)
class EncodeCodes:
    """Codes from a codebook, as whole numbers. Shapes: -> (B, positions)."""

    label: int | None = None

    def __call__(self, client: Client, batch: Batch) -> Array:
        return client.encode_codes(batch.images, self.label)


@dataclass(frozen=True)
class Score:
    """The negative ELBO and its parts. Shapes: -> (B, 3)."""

    columns = ("negative_elbo", "negative_log_likelihood", "kl")
    samples: int
    label: int | None = None

    def __call__(self, client: Client, batch: Batch) -> Array:
        # By its place in the collection, so that the draws are the same in any shard.
        found = client.score(batch.images, self.samples, seed=(0, batch.start), labels=self.label)
        return np.stack([getattr(found, name) for name in self.columns], axis=1)


@dataclass(frozen=True)
class Reconstruct:
    """Reconstructions, on request each after its image. Shapes: -> (B or 2B, H, W, C)."""

    in_pairs: bool
    label: int | None = None

    def __call__(self, client: Client, batch: Batch) -> Array:
        found = client.reconstruct(batch.images, self.label)
        return np.stack([batch.images, found], axis=1).reshape(-1, *client.image_shape) if self.in_pairs else found


def encode(client: Client, images: Collection, output: Path | None, place: Place, label: str = "") -> None:
    """Write the code of each image: its posterior mean, and in tables with names the log variance.

    With a codebook, tables have the codes as whole numbers instead.
    """
    span, size = span_of(place.shard, len(images), client.batch), client.latent_size
    number = _label_number(client, label)
    is_array = output is not None and output.suffix == ".npy"
    names = ["mean"] if is_array else list(client.outputs("encoder"))
    columns = [f"{name}_{number}" for name in names for number in range(size)]
    compute: Compute = Encode(len(names), number)
    kind: type[np.number[Any]] = np.float32
    if client.metadata.get("codebook") and not is_array:
        columns = [f"code_{number}" for number in range(client.metadata["codebook"]["positions"])]
        compute, kind = EncodeCodes(number), np.int64
    with outputs.table(output, columns, len(span), kind) as write, counting("encode", len(span)) as advance:
        for batch, values in place.computed(client, images, span, compute):
            write(batch, values)
            advance(len(batch))


def score(client: Client, images: Collection, output: Path | None, place: Place, samples: int, label: str = "") -> None:
    """Write the negative ELBO of each image, and its parts."""
    span = span_of(place.shard, len(images), client.batch)
    client.outputs("score")  # checked first: a part without images computes nothing
    compute = Score(samples, _label_number(client, label))
    with outputs.table(output, Score.columns, len(span)) as write, counting("score", len(span)) as advance:
        for batch, values in place.computed(client, images, span, compute):
            write(batch, values)
            advance(len(batch))


def reconstruct(client: Client, images: Collection, output: Path, place: Place, label: str = "") -> None:
    """Write the decoded codes; in a picture, beside the images themselves."""
    span, is_picture = span_of(place.shard, len(images), client.batch), output.suffix == ".png"
    count, compute = 2 * len(span) if is_picture else len(span), Reconstruct(is_picture, _label_number(client, label))
    if _has_no_picture(span, output, place.shard):
        return
    with (
        outputs.pictures(output, client.image_shape, count, in_pairs=True) as write,
        counting("reconstruct", len(span)) as advance,
    ):
        for batch, found in place.computed(client, images, span, compute):
            write(found)
            advance(len(batch))


def decode(client: Client, path: Path, output: Path, shard: str, label: str = "") -> None:
    """Write the images of codes in a file of `encode`, or of any other origin."""
    latents, number = open_array(path), _label_number(client, label)
    span = span_of(shard, len(latents), client.batch)
    if _has_no_picture(span, output, shard):
        return
    with outputs.pictures(output, client.image_shape, len(span)) as write, counting("decode", len(span)) as advance:
        for start in range(span.start, span.stop, client.batch):
            found = client.decode(latents[start : min(start + client.batch, span.stop)], number)
            write(found)
            advance(len(found))


def sample(client: Client, count: int, seed: int, temperature: float, output: Path, label: str = "") -> None:
    """Write draws from the prior."""
    number = _label_number(client, label)
    with outputs.pictures(output, client.image_shape, count) as write, counting("sample", count) as advance:
        latents = client.sample_latents(count, seed, temperature)
        for start in range(0, count, client.batch):
            found = client.decode(latents[start : start + client.batch], number)
            write(found)
            advance(len(found))


def _has_no_picture(span: range, output: Path, shard: str) -> bool:
    """Return whether a part of a collection is empty and its output a PNG, which cannot be; say so."""
    is_empty = not span and shard != "1/1" and output.suffix == ".png"
    if is_empty:
        typer.echo(f"--shard {shard}: no images, so no {output}; parts are whole batches", err=True)
    return is_empty


def _label_number(client: Client, label: str) -> int | None:
    """Return the number of the class of all images."""
    return number_of(label, client.classes) if label or client.classes else None


def find_images(client: Client, inputs: Sequence[str], *, resize: bool) -> Collection:
    """Find the images that a user named.

    Raises: UserError if there are none, or if they do not fit the model.
    """
    images = Collection.find(inputs, client.image_shape, resize=resize)
    if not len(images):
        raise UserError(f"{', '.join(inputs)}: found no images")
    return images
