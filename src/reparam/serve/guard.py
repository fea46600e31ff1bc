"""The checks of every request: the token, the limit on its size, and the counters."""

import hmac
import time

from fastapi import FastAPI
from fastapi.responses import PlainTextResponse, Response
from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from reparam.serve.answers import Json

OPEN = ("/v2/health/live", "/v2/health/ready")  # to whoever looks after the service


class Guard:
    """Refuse strangers and large bodies before a body is read, and count requests.

    An ASGI class, because a function of FastAPI's `middleware` adds 0.2 ms to each request.
    """

    def __init__(self, app: ASGIApp, limit: int, token: str, registry: CollectorRegistry) -> None:
        self.app = app
        self.limit = limit
        self.token = token
        self.count = Counter(
            "reparam_requests", "Requests by route and status.", ["route", "status"], registry=registry
        )
        self.seconds = Histogram(
            "reparam_request_seconds", "Time from request to answer.", ["route"], registry=registry
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started, status = time.perf_counter(), 500  # the answer of the server if nobody answers

        async def note(message: Message) -> None:
            nonlocal status
            status = message.get("status", status)
            await send(message)

        try:
            await (self._refusal(scope) or self.app)(scope, receive, note)
        finally:
            route = getattr(scope.get("route"), "path", "none")
            self.count.labels(route, status).inc()
            self.seconds.labels(route).observe(time.perf_counter() - started)

    def _refusal(self, scope: Scope) -> Json | None:
        headers = Headers(scope=scope)
        if self.token and scope["path"] not in OPEN and not self._is_known(headers.get("authorization", "")):
            message = "wanted the header `Authorization: Bearer TOKEN`"
            return Json({"error": message}, 401, {"WWW-Authenticate": "Bearer"})
        size = headers.get("content-length", "")
        # The size of a body in chunks is not known, and if a request has both headers, the chunks count.
        if scope["method"] == "POST" and (not size.isdecimal() or "transfer-encoding" in headers):
            return Json({"error": "wanted the header Content-Length, and no Transfer-Encoding"}, 411)
        if size.isdecimal() and int(size) > self.limit:
            return Json({"error": f"wanted a body of at most {self.limit} bytes, found {size}"}, 413)
        return None

    def _is_known(self, credentials: str) -> bool:
        """Return whether they are the token, after a scheme in small or capital letters."""
        scheme, _, given = credentials.partition(" ")
        return scheme.lower() == "bearer" and hmac.compare_digest(given.encode(), self.token.encode())


def guard(app: FastAPI, limit: int, token: str) -> None:
    """Put a guard before an app, and serve its counts."""
    registry = CollectorRegistry()
    app.add_middleware(Guard, limit=limit, token=token, registry=registry)

    @app.get("/metrics", response_class=PlainTextResponse)
    async def metrics() -> Response:
        """Return counters and times as Prometheus reads them."""
        return Response(generate_latest(registry), media_type="text/plain; version=0.0.4")
