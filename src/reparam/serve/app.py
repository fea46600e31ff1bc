"""An exported model over HTTP: the Open Inference Protocol for programs, and simple routes for people."""

import asyncio
from functools import cache
from typing import Annotated, Any

from fastapi import FastAPI, HTTPException, Path
from fastapi import Request as HttpRequest
from fastapi.responses import HTMLResponse, Response

from reparam.client import Client
from reparam.client.labels import as_input
from reparam.explorer.page import render
from reparam.machine.versions import version
from reparam.serve import protocol
from reparam.serve.answers import Json, Mistake, aside, explain_mistakes
from reparam.serve.batches import Batches
from reparam.serve.guard import guard
from reparam.serve.routes import Limits, Routes

INFER = {"requestBody": {"required": True, "content": {"application/json": {"schema": {"type": "object"}}}}}


def create(client: Client, limits: Limits, token: str = "") -> FastAPI:
    """Make the service of a model. With a `token`, requests must carry it, except for those of health."""
    app = FastAPI(
        title="reparam",
        version=version(),
        description=f"The model of {client.metadata['source']}.",
        default_response_class=Json,
        responses={"4XX": {"model": Mistake, "description": "What was wanted, and what was found."}},
    )
    batches = {name: Batches(client, name, limits.rows) for name in client.graphs}
    guard(app, limits.bytes, token)
    explain_mistakes(app)
    _add_protocol(app, client, limits, batches)
    Routes(client, limits, batches).add_to(app)
    _add_page(app, client)
    return app


def _add_page(app: FastAPI, client: Client) -> None:
    page = cache(lambda: render(client.path))  # which a service that nobody looks at never needs

    @app.get("/", include_in_schema=False, response_class=HTMLResponse)
    async def explore() -> HTMLResponse:
        return HTMLResponse(await asyncio.to_thread(page))


def _described(client: Client) -> dict[str, dict[str, Any]]:
    facts = {name: client.signature(name) for name in client.graphs}
    return {
        name: {
            "name": name,
            "versions": ["1"],
            "platform": "onnxruntime_onnx",
            "inputs": [protocol.describe(value) for value in inputs],
            "outputs": [protocol.describe(value) for value in outputs],
        }
        for name, (inputs, outputs) in facts.items()
    }


def _add_protocol(app: FastAPI, client: Client, limits: Limits, batches: dict[str, Batches]) -> None:
    described = _described(client)
    known_name = Annotated[str, Path(json_schema_extra={"enum": list(described)})]

    def known(name: str) -> dict[str, Any]:
        if name not in described:
            raise HTTPException(404, f"wanted one of the models {', '.join(described)}, found {name!r}")
        return described[name]

    @app.get("/v2")
    async def server() -> dict[str, Any]:
        return {"name": "reparam", "version": version(), "extensions": ["binary_tensor_data"]}

    @app.get("/v2/health/live")
    async def live() -> dict[str, bool]:
        return {"live": True}

    @app.get("/v2/health/ready")
    async def ready() -> dict[str, bool]:
        return {"ready": True}

    @app.get("/v2/models/{name}/versions/1", include_in_schema=False)
    @app.get("/v2/models/{name}")
    async def model(name: known_name) -> dict[str, Any]:
        return known(name)

    @app.get("/v2/models/{name}/versions/1/ready", include_in_schema=False)
    @app.get("/v2/models/{name}/ready")
    async def model_ready(name: known_name) -> dict[str, Any]:
        return {"name": known(name)["name"], "ready": True}

    @app.post("/v2/models/{name}/versions/1/infer", include_in_schema=False)
    @app.post("/v2/models/{name}/infer", openapi_extra=INFER)
    async def infer(name: known_name, http: HttpRequest) -> Response:
        """Run a graph: `{"inputs": [{"name", "shape", "datatype", "data"}]}`, or with binary tensors."""
        facts, body = known(name), await http.body()
        request, binary = await aside(len(body), protocol.request_of, body, http.headers.get(protocol.HEADER))
        inputs = await aside(len(body), protocol.read, request.inputs, binary, facts["inputs"], limits.rows)
        if "label" in inputs:
            as_input("inputs.label", inputs["label"], client.classes, len(inputs["label"]))
        wanted = protocol.wanted_outputs(request, {value["name"]: value["datatype"] for value in facts["outputs"]})
        found = await batches[name].run(inputs)
        about = {"model_name": name, "model_version": "1"} | ({} if request.id is None else {"id": request.id})
        size = sum(found[output].size for output in wanted)
        answer: Response = await aside(size, protocol.answer, about, found, wanted)
        return answer
