"""Simple routes for people: images in, codes or images out."""

import io
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
from fastapi import FastAPI, HTTPException, Query
from fastapi.responses import JSONResponse, Response
from PIL import Image
from pydantic import BaseModel, Field

from reparam.client import Client
from reparam.errors import UserError
from reparam.serve import protocol
from reparam.serve.batches import Arrays, Batches


@dataclass(frozen=True)
class Limits:
    """What one request may hold, and how long it waits for others."""

    rows: int = 1024
    bytes: int = 16 << 20
    wait_seconds: float = 0.002


class Images(BaseModel):
    """Images as nested lists (N, height, width, channels) of grey levels 0 to 255."""

    images: list[Any]


class Latents(BaseModel):
    """Codes as nested lists (N, latents)."""

    latents: list[Any]


class Draw(BaseModel):
    """How many images to draw from the prior."""

    count: Annotated[int, Field(ge=1)] = 1
    seed: Annotated[int, Field(ge=0)] = 0
    temperature: Annotated[float, Field(ge=0, le=100, allow_inf_nan=False)] = 1.0


Png = Annotated[bool, Query(description="Answer with a PNG, images one below the other, instead of JSON.")]


@dataclass(frozen=True)
class Routes:
    """The routes of one model."""

    client: Client
    limits: Limits
    batches: dict[str, Batches]

    def add_to(self, app: FastAPI) -> None:
        """Let an app answer them."""
        for route in (self.encode, self.decode, self.reconstruct, self.sample, self.score):
            app.post(f"/{route.__name__}")(route)

    async def encode(self, body: Images) -> dict[str, Any]:
        """Return the outputs of the encoder."""
        found = await self._run("encoder", images=self._images(body))
        return {name: values.tolist() for name, values in found.items()}

    async def decode(self, body: Latents, png: Png = False) -> Response:
        """Return the images of codes."""
        latents = self._array(body.latents, "FP32", [self.client.latent_size], "latents")
        return _answer((await self._run("decoder", latents=latents))["images"], png)

    async def reconstruct(self, body: Images, png: Png = False) -> Response:
        """Return what the model makes of images."""
        found = await self._run("encoder", images=self._images(body))
        return _answer((await self._run("decoder", latents=found["mean"]))["images"], png)

    async def sample(self, body: Draw, png: Png = False) -> Response:
        """Return images that the model invents; those of `Client.sample`."""
        if body.count > self.limits.rows:
            raise UserError(f"count: wanted 1 to {self.limits.rows}, found {body.count}")
        if not self.client.metadata["has_prior"]:
            raise UserError("sample: wanted a model with a prior, found an autoencoder; use /decode")
        draws = np.random.default_rng(body.seed).standard_normal((body.count, self.client.latent_size))
        latents = (draws * body.temperature).astype(np.float32)
        return _answer((await self._run("decoder", latents=latents))["images"], png)

    async def score(self, body: Images) -> dict[str, list[float]]:
        """Return the negative ELBO of each image at the posterior mean, in nats: the larger, the stranger."""
        images = self._images(body)
        if "score" not in self.client.graphs:
            raise UserError("score: wanted a model that is a density, found one without score.onnx")
        width = next(value.shape[1] for value in self.client.signature("score")[0] if value.name == "epsilon")
        found = await self._run("score", images=images, epsilon=np.zeros((len(images), width), np.float32))
        parts = {name: found[name].astype(np.float64) for name in ("negative_log_likelihood", "kl")}
        total = parts["negative_log_likelihood"] + parts["kl"]
        return {name: values.tolist() for name, values in {**parts, "negative_elbo": total}.items()}

    async def _run(self, graph: str, **inputs: npt.NDArray[Any]) -> Arrays:
        if graph not in self.batches:
            raise HTTPException(404, f"wanted a model with {graph}.onnx, found {', '.join(self.batches)}")
        return await self.batches[graph].run(inputs)

    def _images(self, body: Images) -> npt.NDArray[Any]:
        return self._array(body.images, "UINT8", list(self.client.image_shape), "images")

    def _array(self, given: list[Any], kind: str, row: list[int], where: str) -> npt.NDArray[Any]:
        if not 1 <= len(given) <= self.limits.rows:
            raise UserError(f"{where}: wanted 1 to {self.limits.rows}, found {len(given)}")
        return protocol.numbers(given, kind, [len(given), *row], where)


def _answer(images: npt.NDArray[np.uint8], png: bool) -> Response:
    if not png:
        return JSONResponse({"images": images.tolist()})
    column = images.reshape(-1, *images.shape[2:])
    file = io.BytesIO()
    Image.fromarray(column.squeeze(-1) if column.shape[-1] == 1 else column).save(file, "PNG")
    return Response(file.getvalue(), media_type="image/png")
