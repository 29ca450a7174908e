"""The service as an ASGI application: routes, errors as JSON, request ids, logs, metrics."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi_swagger import patch_fastapi
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ... import __version__
from ..errors import (
    CancelledError,
    EngineError,
    MemoryLimitError,
    OptionError,
    OutputError,
    PictureError,
    PixelLimitError,
    RdsrError,
)
from .formats import NotAcceptableError
from .gate import ClientGoneError, TooBusyError, TooLateError
from .inference import inference_routes
from .logs import logger, request_id
from .metrics import CONTENT_TYPE
from .options import PART
from .page import page_routes
from .service import BodyTooLargeError, Service, UnknownModelError
from .tensors import TensorError
from .upscale import upscale_routes

__all__ = ["make_app"]

_CLIENT_GONE = 499
_STATUS: tuple[tuple[type[Exception], int, str], ...] = (
    (TooBusyError, 429, "queue full"),
    (TooLateError, 503, "deadline"),
    (ClientGoneError, _CLIENT_GONE, "client gone"),
    (UnknownModelError, 404, "unknown model"),
    (NotAcceptableError, 406, "not acceptable"),
    (BodyTooLargeError, 413, "body too large"),
    (TensorError, 400, "bad tensor"),
    (ClientDisconnect, _CLIENT_GONE, "client gone"),
    (PixelLimitError, 413, "too many pixels"),
    (MemoryLimitError, 413, "too large"),
    (PictureError, 422, "bad picture"),
    (OptionError, 422, "bad option"),
    (OutputError, 422, "bad option"),  # the format cannot hold it
    (CancelledError, 503, "ending"),
    (EngineError, 503, "engine"),
    (MemoryError, 503, "no memory"),
    (RdsrError, 500, "other"),
)
"""Error → status, and reason in the metrics. The first that fits counts."""


class _Observed:
    """Gives each request an id, counts and logs it, and sends bodies in parts, of which each has to be taken in time."""

    def __init__(self, app: ASGIApp, service: Service) -> None:
        self._app, self._service = app, service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = {name: value.decode("latin-1") for name, value in scope["headers"]}
        name = request_id(headers.get(b"x-request-id"))
        state = scope.setdefault("state", {})
        state |= {"id": name, "begun": time.perf_counter(), "facts": {}, "held": {}}
        status = 0

        async def sent(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", ()), (b"x-request-id", name.encode())]
            body = message.get("body", b"")
            last = max(0, len(body) - 1) // PART * PART
            for start in range(0, last, PART):
                await send({**message, "body": body[start : start + PART], "more_body": True})
                self._service.release(scope, PART)
            await send({**message, "body": body[last:]} if last else message)

        try:
            await self._app(scope, receive, sent)
        finally:
            self._service.release(scope)
            self._note(scope, state, status)

    def _note(self, scope: Scope, state: dict[str, Any], status: int) -> None:
        seconds = time.perf_counter() - state["begun"]
        route = getattr(scope.get("route"), "path", "none")
        self._service.metrics.requests.labels(route, str(status or 500)).inc()
        self._service.metrics.seconds.labels(route).observe(seconds)
        facts = {"id": state["id"], "method": scope["method"], "path": scope["path"], "status": status}
        logger.info("request", extra={"facts": facts | {"ms": round(1e3 * seconds, 1)} | state["facts"]})


def make_app(service: Service, *, on_failure: Callable[[], None] = lambda: None) -> ASGIApp:
    """The application. `on_failure` is called if the first picture cannot be upscaled."""

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async def warm_up() -> None:
            await service.warm_up()
            if service.failure is not None:
                on_failure()

        warming = asyncio.create_task(warm_up())
        try:
            yield
        finally:
            service.drain()
            warming.cancel()
            await asyncio.to_thread(service.close)

    app = FastAPI(
        title="RDSR",
        version=__version__,
        description="Enlarge pictures on CPUs. Errors are JSON objects with the one key `error`, a sentence.",
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        swagger_ui_oauth2_redirect_url=None,
    )
    patch_fastapi(app, redirect_from_root_to_docs=False)  # Swagger UI at /docs, without anything from elsewhere
    app.include_router(upscale_routes(service))
    app.include_router(inference_routes(service))
    app.include_router(page_routes())

    @app.get("/metrics", include_in_schema=False)
    async def metrics() -> Response:
        return Response(service.metrics.text(), media_type=CONTENT_TYPE)

    async def problem(request: Request, error: Exception) -> Response:
        status, reason = next((status, reason) for kind, status, reason in _STATUS if isinstance(error, kind))
        if isinstance(error, TooLateError) and error.clients:
            status = 408
        if isinstance(error, OutputError) and isinstance(error.__cause__, OSError):
            status, reason = 503, "disk"
        service.metrics.rejections.labels(reason).inc()
        headers = {}
        if isinstance(error, TooBusyError):
            headers["Retry-After"] = str(error.retry_after)
        elif status == 503:
            headers["Retry-After"] = str(service.gate.retry_after)
        if request.url.path.startswith("/v2") and status == 422:
            status = 400  # as the protocol has it
        sentence = " ".join(str(error).split())[:1500] or f"the request was not served: {reason}"
        request.scope["state"]["facts"] |= {"error": sentence}
        return JSONResponse({"error": sentence}, status, headers)

    for kind, _, _ in _STATUS:
        app.add_exception_handler(kind, problem)

    async def invalid(_: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"][1:])
        return JSONResponse({"error": f"{where}: {first['msg']}"}, 422)

    async def refused(_: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        return JSONResponse({"error": str(error.detail)}, error.status_code, error.headers)

    async def unexpected(request: Request, error: Exception) -> Response:
        logger.error("unexpected error", exc_info=error, extra={"facts": {"id": request.scope["state"]["id"]}})
        return JSONResponse({"error": "unexpected error: see the service's log"}, 500)

    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(HTTPException, refused)
    app.add_exception_handler(Exception, unexpected)
    return _Observed(app, service)  # around everything, so that nothing goes unseen
