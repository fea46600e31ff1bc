"""An exported model over HTTP: the Open Inference Protocol for programs, and simple routes for people."""

import asyncio
import hmac
from typing import Any

from fastapi import FastAPI, HTTPException
from fastapi import Request as HttpRequest
from fastapi.responses import JSONResponse, Response
from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest

from reparam.client import Client
from reparam.errors import UserError
from reparam.serve import protocol
from reparam.serve.batches import Batches
from reparam.serve.routes import Limits, Routes
from reparam.versions import version

OPEN = ("/v2/health/live", "/v2/health/ready")  # to whoever looks after the service


def create(client: Client, limits: Limits, token: str = "") -> FastAPI:
    """Make the service of a model. With a `token`, requests must carry it, but for those of health."""
    app = FastAPI(title="reparam", version=version(), description=f"The model of {client.metadata['source']}.")
    app.state.batches = {name: Batches(client, name, limits.wait_seconds, limits.rows) for name in client.graphs}
    _guard(app, limits, token)
    _add_protocol(app, client, limits)
    Routes(client, limits, app.state.batches).add_to(app)
    return app


def _guard(app: FastAPI, limits: Limits, token: str) -> None:
    """Refuse strangers and large bodies, count requests, and answer mistakes with what is wrong."""
    registry = CollectorRegistry()
    count = Counter("reparam_requests", "Requests by route and status.", ["route", "status"], registry=registry)
    seconds = Histogram("reparam_request_seconds", "Time from request to answer.", ["route"], registry=registry)

    @app.exception_handler(UserError)
    async def refuse(_: HttpRequest, error: UserError) -> JSONResponse:
        return JSONResponse({"error": str(error)}, 400)

    @app.exception_handler(HTTPException)
    async def explain(_: HttpRequest, error: HTTPException) -> JSONResponse:
        return JSONResponse({"error": error.detail}, error.status_code)

    @app.middleware("http")
    async def check(request: HttpRequest, proceed: Any) -> Response:
        started = asyncio.get_running_loop().time()
        refusal = _refusal(request, limits, token)
        answer: Response = refusal or await proceed(request)
        route = getattr(request.scope.get("route"), "path", "none")
        count.labels(route, answer.status_code).inc()
        seconds.labels(route).observe(asyncio.get_running_loop().time() - started)
        return answer

    @app.get("/metrics", response_class=Response)
    async def metrics() -> Response:
        """Return counters and times as Prometheus reads them."""
        return Response(generate_latest(registry), media_type="text/plain; version=0.0.4")


def _refusal(request: HttpRequest, limits: Limits, token: str) -> JSONResponse | None:
    given = request.headers.get("authorization", "").encode()
    if token and request.url.path not in OPEN and not hmac.compare_digest(given, f"Bearer {token}".encode()):
        return JSONResponse({"error": "wanted the header `Authorization: Bearer TOKEN`"}, 401)
    size = request.headers.get("content-length", "")
    if request.method == "POST" and not size.isdecimal():
        return JSONResponse({"error": "wanted the header Content-Length"}, 411)
    if size.isdecimal() and int(size) > limits.bytes:
        return JSONResponse({"error": f"wanted a body of at most {limits.bytes} bytes, found {size}"}, 413)
    return None


def _add_protocol(app: FastAPI, client: Client, limits: Limits) -> None:
    facts = {name: client.signature(name) for name in client.graphs}
    described = {
        name: {
            "name": name,
            "versions": ["1"],
            "platform": "onnxruntime_onnx",
            "inputs": [protocol.describe(value) for value in inputs],
            "outputs": [protocol.describe(value) for value in outputs],
        }
        for name, (inputs, outputs) in facts.items()
    }

    def known(name: str) -> dict[str, Any]:
        if name not in described:
            raise HTTPException(404, f"wanted one of the models {', '.join(described)}, found {name!r}")
        return described[name]

    @app.get("/v2")
    async def server() -> dict[str, Any]:
        return {"name": "reparam", "version": version(), "extensions": []}

    @app.get("/v2/health/live")
    async def live() -> dict[str, bool]:
        return {"live": True}

    @app.get("/v2/health/ready")
    async def ready() -> dict[str, bool]:
        return {"ready": True}

    @app.get("/v2/models/{name}")
    async def model(name: str) -> dict[str, Any]:
        return known(name)

    @app.get("/v2/models/{name}/ready")
    async def model_ready(name: str) -> dict[str, Any]:
        return {"name": known(name)["name"], "ready": True}

    @app.post("/v2/models/{name}/infer")
    async def infer(name: str, request: protocol.Request) -> JSONResponse:
        wanted = known(name)
        inputs = protocol.read(request.inputs, wanted["inputs"], limits.rows)
        kinds = {value["name"]: value["datatype"] for value in wanted["outputs"]}
        asked = [output.name for output in request.outputs] if request.outputs else list(kinds)
        if unknown := [output for output in asked if output not in kinds]:
            raise UserError(f"outputs: wanted some of {', '.join(kinds)}, found {', '.join(unknown)}")
        found = await app.state.batches[name].run(inputs)
        outputs = [
            {"name": output, "datatype": kinds[output], "shape": list(values.shape), "data": values.ravel().tolist()}
            for output in asked
            for values in (found[output],)
        ]
        answer = {"model_name": name, "model_version": "1", "outputs": outputs}
        return JSONResponse(answer | ({"id": request.id} if request.id is not None else {}))
