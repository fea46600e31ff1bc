"""An exported model as functions of arrays.

>>> model = Client("models/onnx")
>>> mean, log_variance = model.encode(images)  # uint8 (B, H, W, C)
>>> images = model.sample(16, seed=0)          # uint8 (16, H, W, C)
"""

import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from reparam.client.bundle import Bundle, Mixture, role_of
from reparam.client.checks import (
    Floats,
    Images,
    checked_count,
    checked_images,
    checked_latents,
    checked_temperature,
    generator,
    noise_of,
)
from reparam.client.codes import nearest, vectors_of
from reparam.client.labels import Labels, as_input
from reparam.client.runtime import Runtime
from reparam.client.scores import Scores
from reparam.errors import DamagedInputError, MissingInputError, UserError

# Numbers of images at once, unless `batch` says otherwise. Measured with 100,000 digits: `encode` takes 12 MB instead
# of 733, and less time, because values between the layers stay in the caches.
NUMBERS = 1 << 18
PARTS = ["negative_log_likelihood", "kl"]
NOISE = 1 << 24  # numbers that are drawn at once for scores, except for a single image: 64 MB


class Client:
    """An exported model: a folder with its graphs and manifest, or a single graph.

    D is `latent_shape`, the shape of latents: their number or, if they are an image, channels, height and width. Rows
    of numbers are accepted in either case.

    Several threads may use a client at once. If it is sent to another process, that opens the files again.

    Units: images in grey levels 0..255; latents as drawn from the prior, which is N(0, 1) in each dimension unless
    `metadata["prior"]` says otherwise; scores in nats per image.
    """

    def __init__(
        self, path: str | PathLike[str], device: str = "auto", threads: int | None = None, batch: int | None = None
    ) -> None:
        """Open the graphs, after their checksums were compared with those of the manifest.

        `device` is `cpu`, `cuda`, or `auto`: CUDA where it works. `threads` are those of one call, by default one for
        each core. `batch` is the largest number of images that are computed at once; by default as many as stay in the
        caches.

        Raises: UserError if files are missing, damaged, of two exports or of a newer format, or if the device
        cannot be used.
        """
        if batch is not None and not (type(batch) is int and batch > 0):
            raise UserError(f"batch: wanted a whole number above 0, found {batch!r}")
        self._arguments = (Path(path).absolute(), device, threads, batch)
        bundle, runtime = Bundle.open(Path(path)), Runtime(device, threads)
        paths = [bundle.directory / name for name in bundle.names]
        sessions = {path: runtime.open(bundle.read(path.name), path) for path in paths}
        facts = [bundle.facts(path, session.get_modelmeta().custom_metadata_map) for path, session in sessions.items()]
        if any(other != facts[0] for other in facts):
            raise DamagedInputError(
                f"{bundle.directory}: {' and '.join(bundle.names)} come from different exports; run `dvc repro export`"
            )
        self.path = Path(path)
        self._bundle = bundle
        self.metadata: dict[str, Any] = facts[0]
        self._graphs = {role_of(path, session): session for path, session in sessions.items()}
        height, width, channels = self.metadata["image"]["shape"]
        self.image_shape: tuple[int, int, int] = (height, width, channels)
        self.latent_size: int = self.metadata["latent_size"]
        self.latent_shape: tuple[int, ...] = tuple(self.metadata["latent_shape"])
        self.batch = batch or max(1, NUMBERS // math.prod(self.image_shape))

    def __reduce__(self) -> tuple[type["Client"], tuple[Any, ...]]:
        """Pickle the arguments that the model was opened with, not the open graphs."""
        return Client, self._arguments

    @property
    def provider(self) -> str:
        """Return the execution provider that computes, for example `CPUExecutionProvider`."""
        provider: str = next(iter(self._graphs.values())).get_providers()[0]
        return provider

    @property
    def graphs(self) -> tuple[str, ...]:
        """Return which graphs there are, of `encoder`, `decoder` and `score`."""
        return tuple(self._graphs)

    @cached_property
    def classes(self) -> tuple[str, ...]:
        """Return the names of the labels of a conditional model, by number; none for another model."""
        return tuple(self.metadata.get("classes", ()))

    @cached_property
    def _moments(self) -> list[str]:
        """Return the names of what `encode` returns."""
        return [name for name in self.outputs("encoder") if name != "codes"]

    @cached_property
    def _noise(self) -> tuple[int, ...]:
        """Return the shape of the noise of one image."""
        (row,) = (value.shape[1:] for value in self._graph("score").get_inputs() if value.name == "epsilon")
        return tuple(row)

    @cached_property
    def _prior(self) -> Mixture:
        return self._bundle.prior(self.latent_size)

    @cached_property
    def _codebook(self) -> Floats:
        self._require_codebook("decode")
        facts = self.metadata["codebook"]
        return self._bundle.codebook(facts["codes"], facts["dimensions"])

    def encode(self, images: Images, labels: Labels | None = None) -> tuple[Floats, Floats]:
        """Return mean and log variance of the posterior. Shapes: (B, H, W, C) -> (B, D), (B, D).

        An autoencoder's code has no variance: its logarithm is minus infinity. With a codebook, the mean is made of the
        vectors of codes, whose numbers `encode_codes` returns. A conditional model needs labels, one for each image or
        one for all, with all images and codes.

        Raises: UserError if images are not uint8 of the model's size, or a label is unknown.
        """
        wanted = self._moments
        rows = self._checked("encode", images)
        inputs = self._inputs("encode", labels, "images", rows)
        mean, *log_variance = self._computed("encoder", wanted, inputs, len(rows))
        return mean, log_variance[0] if log_variance else np.full_like(mean, -np.inf)

    def encode_codes(self, images: Images, labels: Labels | None = None) -> npt.NDArray[np.int64]:
        """Return the codes of images, of a model with a codebook. Shapes: (B, H, W, C) -> (B, P).

        Raises: UserError if the model has no codebook, and as `encode` does.
        """
        self._require_codebook("encode_codes")
        codes: npt.NDArray[np.int64]
        rows = self._checked("encode_codes", images)
        (codes,) = self._computed("encoder", ["codes"], self._inputs("encode_codes", labels, "images", rows), len(rows))
        return codes

    def vectors(self, codes: npt.ArrayLike) -> Floats:
        """Return the latents of codes, as `decode` takes them. Shapes: (B, P) -> (B, D).

        Raises: UserError if the model has no codebook, or codes are not whole numbers that it has.
        """
        return vectors_of(codes, self._codebook, self.latent_shape)

    def embed(self, images: Iterable[Images], label: int | None = None) -> Iterator[Floats]:
        """Yield the posterior means of any number of images, some at a time, in flat memory.

        Shapes: (H, W, C) each -> (at most `batch`, D) each.

        Raises: UserError as `encode` does.
        """
        rest = iter(images)
        while some := list(itertools.islice(rest, self.batch)):
            for image in some:
                self._checked("embed", [image])
            yield self.encode(np.stack(some), label)[0]

    def decode(
        self, latents: npt.ArrayLike | None = None, labels: Labels | None = None, *, codes: npt.ArrayLike | None = None
    ) -> Images:
        """Return the mean images of latents, or of codes, as grey levels. Shapes: (B, D) or (B, P) -> (B, H, W, C).

        Latents lie from -1,000,000 to 1,000,000: of far larger ones, a decoder may compute no numbers and black images.

        Raises: UserError if latents are not such numbers of the model's size, or a label is unknown, and for codes as
        `vectors` does.
        """
        if codes is not None and latents is None:
            latents, codes = self.vectors(codes), None
        if codes is not None or latents is None:
            raise UserError("decode: wanted either latents or codes, found both or neither")
        rows = checked_latents(latents, self.latent_shape)
        inputs = self._inputs("decode", labels, "latents", rows)
        images: Images = self._computed("decoder", ["images"], inputs, len(rows))[0]
        return images

    def decode_mean(self, latents: npt.ArrayLike, labels: Labels | None = None) -> Floats:
        """Return the mean images as floats in [0, 1]. Shapes: (B, D) -> (B, H, W, C).

        Raises: UserError as `decode` does.
        """
        rows = checked_latents(latents, self.latent_shape)
        inputs = self._inputs("decode", labels, "latents", rows)
        mean: Floats = self._computed("decoder", ["mean"], inputs, len(rows))[0]
        return mean

    def reconstruct(self, images: Images, labels: Labels | None = None) -> Images:
        """Encode and decode the posterior mean. Shapes: (B, H, W, C), unchanged."""
        return self.decode(self.encode(images, labels)[0], labels)

    def sample(self, n: int, seed: int, temperature: float = 1.0, label: Labels | None = None) -> Images:
        """Decode latents that `sample_latents` draws, of a conditional model with one label or n. Shapes: (n, H, W, C).

        Raises: UserError as `sample_latents` and `decode` do.
        """
        as_input("sample", label, self.classes, checked_count("sample", "images", n, 0))
        return self.decode(self.sample_latents(n, seed, temperature), label)

    def sample_latents(self, n: int, seed: int, temperature: float = 1.0) -> npt.NDArray[np.float64]:
        """Draw from the prior. Shapes: (n, D).

        `temperature` scales the noise in the draws: below 1, images are more typical and vary less.

        Raises: UserError if the model has no prior, or one that no app can draw from.
        """
        if not self.metadata["has_prior"]:
            raise UserError("sample: wanted a model with a prior, found one without; decode codes of your own instead")
        if self.metadata["prior"] is None:
            raise UserError(
                "sample: wanted a prior that is normal or a mixture, found another; decode latents of your own"
            )
        temperature = checked_temperature(temperature)
        rng, count = generator("sample", seed), checked_count("sample", "images", n, 0)
        if self.metadata["prior"] == "gaussian mixture":
            return self._prior.sample(rng, count, temperature).reshape(count, *self.latent_shape)
        return rng.standard_normal((count, *self.latent_shape)) * temperature

    def interpolate(self, first: Images, second: Images, steps: int, label: int | None = None) -> Images:
        """Decode a straight line between the posterior means of two images, with a codebook the nearest codes.

        Shapes: (H, W, C) twice -> (steps, H, W, C).
        """
        ends = (self.encode(self._checked("interpolate", [image]), label)[0] for image in (first, second))
        start, end = (latents.reshape(1, -1) for latents in ends)  # (1, D)
        share = np.linspace(0, 1, checked_count("interpolate", "steps", steps, 1))[:, None]
        line = start * (1 - share) + end * share
        return self.decode(nearest(line, self._codebook, self.latent_shape) if self._has_codebook else line, label)

    def score(
        self, images: Images, samples: int = 1, seed: int | Sequence[int] = 0, labels: Labels | None = None
    ) -> Scores:
        """Estimate the negative ELBO of each image, and its two parts: the larger, the stranger the image.

        It is an average over `samples` draws from the posterior, which do not depend on `batch`. With 0 samples, it is
        computed at the posterior mean: a little lower, and comparable with the quantiles under `scores` in the
        manifest. For a conditional model, it is that of an image given its label.

        Shapes: (B, H, W, C) -> (B,). Units: nats.
        Raises: UserError if the model is no density, and as `encode` does.
        """
        found, samples = self._checked("score", images), checked_count("score", "samples", samples, 0)
        draw = noise_of("score", seed, samples)
        inputs, row = self._inputs("score", labels, "images", found), self._noise
        if not samples or samples == len(found) == 1:  # without sums and slices, which take longer than one image
            inputs["epsilon"] = draw((len(found), *row), np.float32)
            return Scores(*(part.astype(np.float64) for part in self._computed("score", PARTS, inputs, len(found))))
        nll, kl = np.zeros((len(PARTS), len(found)))
        most = max(1, min(self.batch, NOISE // (samples * math.prod(row))))
        for start in range(0, len(found), most):
            rows = slice(start, start + most)
            some = {name: values[rows] for name, values in inputs.items()}
            drawn = draw((len(some["images"]), samples, *row), np.float32)
            for some["epsilon"] in drawn.swapaxes(0, 1):
                first, second = self.run("score", PARTS, **some)
                nll[rows] += first
                kl[rows] += second
        return Scores(nll / samples, kl / samples)

    def outputs(self, graph: str) -> tuple[str, ...]:
        """Return the names of the outputs of a graph."""
        return tuple(value.name for value in self._graph(graph).get_outputs())

    def signature(self, graph: str) -> tuple[list[Any], list[Any]]:
        """Return the inputs and outputs of a graph, as onnxruntime describes them."""
        session = self._graph(graph)
        return session.get_inputs(), session.get_outputs()

    def run(self, graph: str, outputs: list[str] | None, **inputs: Any) -> list[Any]:
        """Run a graph as it is, with inputs and outputs by their names, at most `batch` rows at a time.

        Without names of `outputs`, it returns all. Use it for work of your own, such as draws of your own.
        """
        return self._computed(graph, outputs, inputs, len(next(iter(inputs.values()), ())))

    def _computed(self, graph: str, outputs: list[str] | None, inputs: dict[str, Any], count: int) -> list[Any]:
        session = self._graphs.get(graph) or self._graph(graph)
        if 0 < count <= self.batch:
            found: list[Any] = session.run(outputs, inputs)
            return found
        if not count:  # which some graphs, such as those that reshape, refuse
            row = {name: np.zeros((1, *np.shape(values)[1:]), values.dtype) for name, values in inputs.items()}
            return [values[:0] for values in session.run(outputs, row)]
        whole: list[Any] = []
        for start in range(0, count, self.batch):
            rows = slice(start, start + self.batch)
            part = session.run(outputs, {name: values[rows] for name, values in inputs.items()})
            # Put in place at once: to join parts in the end would take twice the memory.
            whole = whole or [np.empty((count, *values.shape[1:]), values.dtype) for values in part]
            for target, values in zip(whole, part, strict=True):
                target[rows] = values
        return whole

    def _graph(self, name: str) -> Any:
        if name not in self._graphs:
            why = "; score.onnx is only exported if the model has an ELBO" if name == "score" else ""
            raise MissingInputError(f"{self.path}: wanted {name}.onnx, found {', '.join(self._graphs)} only{why}")
        return self._graphs[name]

    @property
    def _has_codebook(self) -> bool:
        return bool(self.metadata.get("codebook"))

    def _require_codebook(self, what: str) -> None:
        if not self._has_codebook:
            raise UserError(f"{what}: wanted a model with a codebook, found one of kind {self.metadata['kind']!r}")

    def _inputs(self, what: str, labels: Labels | None, name: str, rows: npt.NDArray[Any]) -> dict[str, Any]:
        if labels is None and not self.classes:
            return {name: rows}
        return {name: rows, **as_input(what, labels, self.classes, len(rows))}

    def _checked(self, what: str, images: npt.ArrayLike) -> Images:
        return checked_images(what, images, self.image_shape)
