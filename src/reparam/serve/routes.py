"""Simple routes for people: images in, codes or images out."""

from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
import numpy.typing as npt
from fastapi import Depends, FastAPI, Header, HTTPException, Query, Request
from fastapi.responses import Response
from pydantic import BaseModel, Field, StrictInt

from reparam.client import Client
from reparam.client.labels import as_input, number_of
from reparam.data.images import MODES
from reparam.errors import UserError
from reparam.serve import pictures, protocol
from reparam.serve.answers import Json, aside, check_finite, to_png
from reparam.serve.batches import Arrays, Batches


@dataclass(frozen=True)
class Limits:
    """The limits of one request."""

    rows: int = 1024
    bytes: int = 16 << 20


# The label of all images, or one for each, for conditional models: numbers as in `Client.classes`.
Label = StrictInt | list[StrictInt] | None


class Images(BaseModel):
    """Images as nested lists (N, height, width, channels) of grey levels 0 to 255."""

    images: list[Any]
    label: Label = None


class Latents(BaseModel):
    """Codes as nested lists: (N, latents), of latents that are an image also (N, channels, height, width)."""

    latents: list[Any]
    label: Label = None


class Draw(BaseModel):
    """The number of images to draw from the prior."""

    count: Annotated[int, Field(ge=1)] = 1
    seed: Annotated[int, Field(ge=0)] = 0
    temperature: Annotated[float, Field(ge=0, le=100, allow_inf_nan=False)] = 1.0
    label: Label = None


def _wants_png(
    kind: Annotated[
        Literal["json", "png"] | None,
        Query(alias="format", description="`png`: images one below the other. By default what `Accept` names."),
    ] = None,
    accept: Annotated[str, Header(include_in_schema=False)] = "",
) -> bool:
    return kind == "png" if kind else "image/png" in accept and "application/json" not in accept


Png = Annotated[bool, Depends(_wants_png)]
BINARY = {"schema": {"type": "string", "format": "binary"}}
PICTURES: dict[int | str, dict[str, Any]] = {200: {"content": {"image/png": BINARY}}}
GREY_LEVEL = {"type": "integer", "minimum": 0, "maximum": 255}


@dataclass(frozen=True)
class Routes:
    """The routes of one model."""

    client: Client
    limits: Limits
    batches: dict[str, Batches]

    def add_to(self, app: FastAPI) -> None:
        """Let an app answer them."""
        images = {"image/png": BINARY, **self._described("images", GREY_LEVEL, *self.client.image_shape)}
        latents = self._described("latents", {"type": "number"}, *self.client.latent_shape)
        taken = {"encode": images, "reconstruct": images, "score": images, "decode": latents}
        for name, content in taken.items():
            extra = {"requestBody": {"required": True, "content": content}}
            answers = PICTURES if name in ("reconstruct", "decode") else None
            app.post(f"/{name}", openapi_extra=extra, responses=answers)(getattr(self, name))
        draw = {"application/json": {"schema": Draw.model_json_schema()}}
        extra = {"requestBody": {"required": True, "content": draw}}
        app.post("/sample", openapi_extra=extra, responses=PICTURES)(self.sample)

    def _described(self, name: str, number: dict[str, Any], *row: int) -> dict[str, Any]:
        """Describe a body of nested lists (rows, *row) for the OpenAPI page."""
        schema = number
        for size in reversed(row):
            schema = {"type": "array", "items": schema, "minItems": size, "maxItems": size}
        schema = {"type": "array", "items": schema, "minItems": 1, "maxItems": self.limits.rows}
        properties, classes = {name: schema}, self.client.classes
        if classes:
            number = {"type": "integer", "minimum": 0, "maximum": len(classes) - 1}
            properties["label"] = {"anyOf": [number, {"type": "array", "items": number}]}
        wanted = {"type": "object", "required": [*properties], "properties": properties}
        return {"application/json": {"schema": wanted}}

    async def encode(self, request: Request) -> Response:
        """Return the outputs of the encoder for images, as JSON or a PNG with one below the other.

        A conditional model needs the field `label`, or with a PNG the query `?label=`.
        """
        return await _numbers(await self._run("encoder", **await self._images(request)))

    async def decode(self, request: Request, png: Png) -> Response:
        """Return the images of codes."""
        body = await request.body()
        return await self._pictures(await aside(len(body), self._listed_latents, body), png)

    async def reconstruct(self, request: Request, png: Png) -> Response:
        """Return the reconstructions of images, as JSON or a PNG with one below the other."""
        inputs = await self._images(request)
        latents = (await self._run("encoder", **inputs))["mean"]
        return await self._pictures({**inputs, "latents": latents}, png)

    async def sample(self, request: Request, png: Png) -> Response:
        """Return images that the model invents; those of `Client.sample`."""
        body = protocol.parse(Draw, await request.body())
        if body.count > self.limits.rows:
            raise UserError(f"count: wanted 1 to {self.limits.rows}, found {body.count}")
        if not self.client.metadata["has_prior"]:
            raise UserError("sample: wanted a model with a prior, found one without; use /decode")
        latents = self.client.sample_latents(body.count, body.seed, body.temperature)
        label = as_input("sample", body.label, self.client.classes, body.count)
        return await self._pictures({"latents": latents.astype(np.float32), **label}, png)

    async def score(self, request: Request) -> Response:
        """Return the negative ELBO of each image at the posterior mean, in nats: the larger, the stranger.

        Images are JSON or a PNG with one below the other.
        """
        inputs = await self._images(request)
        if "score" not in self.client.graphs:
            raise UserError("score: wanted a model that is a density, found one without score.onnx")
        row = next(value.shape[1:] for value in self.client.signature("score")[0] if value.name == "epsilon")
        found = await self._run("score", **inputs, epsilon=np.zeros((len(inputs["images"]), *row), np.float32))
        parts = {name: found[name].astype(np.float64) for name in ("negative_log_likelihood", "kl")}
        return await _numbers({**parts, "negative_elbo": parts["negative_log_likelihood"] + parts["kl"]})

    async def _run(self, graph: str, **inputs: npt.NDArray[Any]) -> Arrays:
        if graph not in self.batches:
            raise HTTPException(404, f"wanted a model with {graph}.onnx, found {', '.join(self.batches)}")
        return await self.batches[graph].run(inputs)

    async def _images(self, request: Request) -> Arrays:
        """Read images, with their labels for a conditional model."""
        body = await request.body()
        images: Arrays
        if request.headers.get("content-type", "").partition(";")[0].strip().lower() == "image/png":
            found = await aside(len(body), pictures.read, body, self.client.image_shape, self.limits.rows)
            query = request.query_params.get("label")
            label = number_of(query, self.client.classes) if query else None
            images = {"images": found, **as_input("label", label, self.client.classes, len(found))}
        else:
            images = await aside(len(body), self._listed_images, body)
        return images

    def _listed_images(self, body: bytes) -> Arrays:
        given = protocol.parse(Images, body)
        images = self._array(given.images, "UINT8", list(self.client.image_shape), "images")
        return {"images": images, **as_input("label", given.label, self.client.classes, len(images))}

    def _listed_latents(self, body: bytes) -> Arrays:
        given = protocol.parse(Latents, body)
        shape, first = list(self.client.latent_shape), given.latents[:1]
        is_flat = bool(first) and isinstance(first[0], list) and not any(isinstance(part, list) for part in first[0])
        row = [self.client.latent_size] if is_flat else shape
        latents = self._array(given.latents, "FP32", row, "latents").reshape(-1, *shape)
        return {"latents": latents, **as_input("label", given.label, self.client.classes, len(latents))}

    def _array(self, given: list[Any], kind: str, row: list[int], where: str) -> npt.NDArray[Any]:
        if not 1 <= len(given) <= self.limits.rows:
            raise UserError(f"{where}: wanted 1 to {self.limits.rows}, found {len(given)}")
        return protocol.numbers(given, kind, [len(given), *row], where)

    async def _pictures(self, given: Arrays, png: bool) -> Response:
        """Decode latents, with their labels if there are any; images among the inputs are ignored."""
        inputs = {name: values for name, values in given.items() if name != "images"}
        images = (await self._run("decoder", **inputs))["images"]
        if not png:
            return await _numbers({"images": images})
        if images.shape[-1] not in MODES:
            raise UserError(
                f"format: wanted json, because images of {images.shape[-1]} channels have no PNG, found png"
            )
        answer: Response = await aside(images.size, to_png, images)
        return answer


async def _numbers(outputs: Arrays) -> Response:
    check_finite(outputs)
    size = sum(values.size for values in outputs.values())
    answer: Response = await aside(size, lambda: Json({name: values.tolist() for name, values in outputs.items()}))
    return answer
