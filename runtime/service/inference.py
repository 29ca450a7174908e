"""The Open Inference Protocol v2, which clients of KServe and Triton speak."""

from __future__ import annotations

import math
import time
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse

from ... import __version__
from ..errors import OptionError
from ..host.cancel import Cancel
from ..results import Result
from .schemas import InferenceRequest, problems
from .service import Done, Service, UnknownModelError
from .tensors import INPUT, OUTPUT, TensorError, read_request, write_response

__all__ = ["inference_routes"]

_VERSION = "1"
_HEADER = "Inference-Header-Content-Length"
_TENSORS = {
    "requestBody": {
        "required": True,
        "description": f"One input `{INPUT}` [N, H, W, 3] in RGB: UINT8, UINT16 or FP32 (0 to 1). With {_HEADER}, its bytes "
        "follow the JSON.",
        "content": {
            "application/json": {
                "schema": InferenceRequest.model_json_schema(),
                "example": {
                    "inputs": [{"name": INPUT, "datatype": "UINT8", "shape": [1, 1, 2, 3], "data": [0, 0, 0, 255, 255, 255]}]
                },
            },
            "application/octet-stream": {"schema": {"type": "string", "format": "binary"}},
        },
    }
}
_PROBLEMS = problems(
    {
        400: "The request is not of the protocol's form, or the picture cannot be upscaled.",
        404: "No model has this name and version.",
        408: "The body did not arrive in time.",
        413: "The body or the picture is too large.",
        429: "The queue is full. `Retry-After` says when to come back.",
        503: "The deadline has passed, or the service is ending.",
    }
)
_NOT_READY: dict[int | str, dict[str, Any]] = {503: {"description": "The first picture has not gone through yet."}}
_NO_MODEL: dict[int | str, dict[str, Any]] = {404: _PROBLEMS[404]}


def inference_routes(service: Service) -> APIRouter:
    """The routes under `/v2`."""
    routes = APIRouter(prefix="/v2", tags=["Open Inference Protocol v2"])

    def known(model: str, version: str) -> str:
        if version != _VERSION:
            raise UnknownModelError(f"the model {model[:100]!r} has the version {_VERSION}, not {version[:100]!r}")
        return service.model(model)

    @routes.get("")
    async def server() -> dict[str, Any]:
        """Name, version and extensions of the server."""
        return {"name": "rdsr", "version": __version__, "extensions": ["binary_tensor_data"]}

    @routes.head("/health/live", include_in_schema=False)
    @routes.get("/health/live")
    async def live() -> dict[str, bool]:
        """Whether the process answers."""
        return {"live": True}

    @routes.head("/health/ready", include_in_schema=False)
    @routes.get("/health/ready", responses=_NOT_READY)
    async def ready() -> JSONResponse:
        """Whether pictures can be upscaled: a first one has gone through, and the service is not ending."""
        return JSONResponse({"ready": service.ready}, 200 if service.ready else 503)

    @routes.get("/models/{model}/versions/{version}", responses=_NO_MODEL)
    @routes.get("/models/{model}", responses=_NO_MODEL)
    async def model_metadata(model: str, version: str = _VERSION) -> dict[str, Any]:
        """Input and output of a model."""
        name = known(model, version)
        shape = [-1, -1, -1, 3]
        return {
            "name": name,
            "versions": [_VERSION],
            "platform": "rdsr",
            "inputs": [{"name": INPUT, "datatype": "UINT8", "shape": shape}],
            "outputs": [{"name": OUTPUT, "datatype": "UINT8", "shape": shape}],
        }

    @routes.get("/models/{model}/versions/{version}/ready", responses={**_NO_MODEL, **_NOT_READY})
    @routes.get("/models/{model}/ready", responses={**_NO_MODEL, **_NOT_READY})
    async def model_ready(model: str, version: str = _VERSION) -> JSONResponse:
        """Whether a model can be used. All can as soon as the service is ready; an engine is loaded at the first call."""
        name = known(model, version)
        return JSONResponse({"name": name, "ready": service.ready}, 200 if service.ready else 503)

    @routes.post(
        "/models/{model}/versions/{version}/infer", responses=_PROBLEMS, openapi_extra=_TENSORS, response_class=Response
    )
    @routes.post("/models/{model}/infer", responses=_PROBLEMS, openapi_extra=_TENSORS, response_class=Response)
    async def infer(request: Request, model: str, version: str = _VERSION) -> Response:
        """Enlarge pictures given as a tensor. `parameters` of the request may hold `seed`."""
        name = known(model, version)
        deadline = service.deadline(request, None)
        if request.headers.get("content-encoding", "identity").lower() != "identity":
            raise TensorError("compressed bodies are not taken")
        header_bytes = _header_bytes(request.headers.get(_HEADER))
        body, _ = await service.body(request, deadline)

        def call(cancel: Cancel, note: Done) -> tuple[memoryview, int | None, list[Result], tuple[float, float]]:
            started = time.perf_counter()
            pictures, binary, asked = read_request(body, header_bytes, service.options.max_pixels)
            seed = (asked.get("parameters") or {}).get("seed")
            read = time.perf_counter()
            with service.models.use(name, cancel) as upscaler:
                service.check_result(pictures.nbytes * upscaler.scale**2)
                seeded = upscaler if seed is None else upscaler.with_seed(seed)
                results = [
                    seeded.run(picture, cancel=cancel, progress=_of_several(note, number, len(pictures)))
                    for number, picture in enumerate(pictures)
                ]
            ran = time.perf_counter()
            larger = [result.picture for result in results]
            answer, head = write_response(larger, name, _VERSION, asked.get("id") or "", binary=binary)
            return answer, head, results, (1e3 * (read - started), 1e3 * (time.perf_counter() - ran))

        (answer, head, results, (decode_ms, encode_ms)), place = await service.work(request, deadline, call)
        pixels = sum(math.prod(result.picture.shape[:2]) for result in results)
        headers = service.served(
            request,
            name,
            (place.queue_ms, decode_ms, sum(each.ms for each in results), encode_ms),
            (pixels // service.models.describe(name)[0].scale ** 2, pixels),
            len(answer),
        )
        if head is None:
            return Response(answer, media_type="application/json", headers=headers)
        headers[_HEADER] = str(head)
        return Response(answer, media_type="application/octet-stream", headers=headers)

    return routes


def _of_several(note: Done, number: int, count: int) -> Done:
    """The callback for one of several pictures of one size, so that tiles of all are counted."""
    return lambda done, total: note(number * total + done, count * total)


def _header_bytes(given: str | None) -> int | None:
    if given is None:
        return None
    if not given.isascii() or not given.isdigit() or len(given) > 12:
        raise OptionError(f"{_HEADER} must be a number of bytes")
    return int(given)
