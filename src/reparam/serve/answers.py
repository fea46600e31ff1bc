"""The answers of the service: JSON, PNG, and one form for all mistakes."""

import asyncio
import io
import json
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from PIL import Image
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from reparam.errors import UserError

LARGE = 1 << 16  # numbers or bytes, below which a thread takes longer than the work: 0.1 ms


class Mistake(BaseModel):
    """The answer to a bad request."""

    error: str


class Json(JSONResponse):
    """JSON in ASCII: names that a request makes up may hold characters that UTF-8 cannot write."""

    def render(self, content: Any) -> bytes:
        return json.dumps(content, allow_nan=False, separators=(",", ":")).encode()


async def aside(size: int, work: Callable[..., Any], *arguments: Any) -> Any:
    """Work in a thread if there is much to do, so that other requests are answered meanwhile, except during JSON."""
    return await asyncio.to_thread(work, *arguments) if size > LARGE else work(*arguments)


def check_finite(outputs: dict[str, npt.NDArray[Any]]) -> None:
    """Refuse outputs that are not finite: nobody can use them, and JSON cannot express them.

    Raises: UserError if an output of the model is NaN or infinity.
    """
    for name, values in outputs.items():
        if not np.isfinite(values).all():
            raise UserError(f"{name}: wanted inputs that the model has finite outputs for, found NaN or infinity")


def to_png(images: npt.NDArray[np.uint8]) -> Response:
    """Draw images one below the other."""
    column = images.reshape(-1, *images.shape[2:])
    file = io.BytesIO()
    Image.fromarray(column.squeeze(-1) if column.shape[-1] == 1 else column).save(file, "PNG")
    return Response(file.getvalue(), media_type="image/png")


def explain_mistakes(app: FastAPI) -> None:
    """Answer every bad request with `{"error": ...}`, as the Open Inference Protocol does."""

    @app.exception_handler(UserError)
    async def refuse(_: Request, error: UserError) -> Json:
        return Json({"error": str(error)}, 400)

    @app.exception_handler(RequestValidationError)
    async def correct(_: Request, error: RequestValidationError) -> Json:
        return Json({"error": describe(error.errors())}, 400)

    @app.exception_handler(HTTPException)
    async def pass_on(_: Request, error: HTTPException) -> Json:
        return Json({"error": error.detail}, error.status_code, error.headers)

    @app.exception_handler(ClientDisconnect)
    async def note(_: Request, _error: ClientDisconnect) -> Json:
        return Json({"error": "wanted the whole body, found a part"}, 400)  # read by nobody, but counted


def describe(errors: Any) -> str:
    """Name each place that pydantic found wrong, and why."""
    return "; ".join(f"{'.'.join(map(str, error['loc'])) or 'body'}: {error['msg']}" for error in errors)
