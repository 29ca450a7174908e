"""`POST /v1/upscale`: an encoded picture in, an encoded picture out."""

from __future__ import annotations

import dataclasses
import io
import math
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request, Response
from fastapi.sse import EventSourceResponse
from starlette.datastructures import UploadFile

from ..errors import PictureError
from ..host.cancel import Cancel
from ..pictures.formats import WriteOptions, sniff
from ..pictures.reading import open_picture
from ..results import FileResult
from .formats import MEDIA_TYPES, wanted_format
from .schemas import problems
from .service import Done, Service

__all__ = ["AVIF_PIXELS", "upscale_routes"]

AVIF_PIXELS = 2**24
"""Most pixels of a result in AVIF: they are encoded in one go, which nothing can stop; ten seconds on two cores."""
_BINARY = {"schema": {"type": "string", "format": "binary"}}
_ERRORS = problems(
    {
        400: "The body is no form that can be read.",
        404: "No model has this name.",
        406: "The Accept header names no format that can be written.",
        408: "The body did not arrive in time, or the timeout that was asked for has passed.",
        413: "The body or the picture is too large.",
        422: "The picture cannot be read, or an option makes no sense.",
        429: "The queue is full. `Retry-After` says when to come back.",
        503: "The deadline has passed, or the service is ending.",
    }
)
_UPSCALE_BODY = {
    "requestBody": {
        "required": True,
        "description": "The picture, as the whole body or as the first file of a form.",
        "content": {
            "application/octet-stream": _BINARY,
            "image/*": _BINARY,
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["file"],
                    "properties": {"file": {"type": "string", "format": "binary"}},
                }
            },
        },
    }
}
_PICTURE: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "The larger picture.",
        "content": dict.fromkeys(MEDIA_TYPES.values(), _BINARY),
        "headers": {
            "Server-Timing": {
                "description": "Milliseconds in the queue, of decoding, of the network and of encoding.",
                "schema": {"type": "string", "example": "queue;dur=0.1, decode;dur=0.9, network;dur=44.0, encode;dur=8.2"},
            },
            "RDSR-Warning": {"description": "What users should know about the picture.", "schema": {"type": "string"}},
        },
    }
}


async def _picture(service: Service, request: Request, deadline: float) -> bytes:
    """The encoded picture of a body or a form."""
    content, request = await service.body(request, deadline)
    if not request.headers.get("content-type", "").lower().startswith("multipart/form-data"):
        return content
    async with request.form(max_files=1, max_fields=20) as form:
        for value in form.values():
            if isinstance(value, UploadFile):
                return await value.read()
    raise PictureError("the form holds no file")


def upscale_routes(service: Service) -> APIRouter:
    """The routes of pictures."""
    routes = APIRouter(tags=["pictures"])

    @routes.post("/v1/upscale", responses={**_PICTURE, **_ERRORS}, openapi_extra=_UPSCALE_BODY, response_class=Response)
    async def upscale(
        request: Request,
        model: Annotated[str | None, Query(description="Name of a model; by default the first.", max_length=100)] = None,
        format: Annotated[
            Literal["png", "jpg", "webp", "tif", "avif", "bmp"] | None,
            Query(description="Of the result; by default as `Accept` says, otherwise the picture's own.", examples=["webp"]),
        ] = None,
        quality: Annotated[int | None, Query(ge=1, le=100, description="Of a format with loss.", examples=[90])] = None,
        lossless: Annotated[bool | None, Query(description="Whether to write without loss.")] = None,
        compression: Annotated[int | None, Query(ge=0, le=9, description="Effort of PNG, 0 to 9.")] = None,
        scale: Annotated[
            float | None, Query(ge=0.01, le=16, description="How many times larger, up to the network's own.", examples=[2])
        ] = None,
        seed: Annotated[int | None, Query(ge=0, le=2**32 - 1, description="Of the network's noise.")] = None,
        timeout: Annotated[
            float | None, Query(gt=0, le=1e6, description="Seconds, if fewer than the service's own.")
        ] = None,
    ) -> Response:
        """Enlarge a picture: PNG, JPEG, WebP, TIFF, BMP, AVIF or GIF.

        Progress is at `/v1/progress/ID`, ID being the header `X-Request-ID`. Closing the connection cancels the work.
        """
        name = service.model(model)
        wanted = format or wanted_format(request.headers.get("accept"))
        options = WriteOptions(wanted, quality, lossless, compression, scale)
        deadline = service.deadline(request, timeout)
        content = await _picture(service, request, deadline)

        def call(cancel: Cancel, note: Done) -> tuple[bytes, FileResult]:
            out = io.BytesIO()
            with service.models.use(name, cancel) as upscaler:
                seeded = upscaler if seed is None else upscaler.with_seed(seed)
                with open_picture(content) as picture:
                    header = picture.header
                service.check_result(header.height * header.width * header.pixel_bytes * upscaler.scale**2)
                most = service.options.max_pixels
                if (wanted or header.format) == "avif":
                    most = min(most, int(AVIF_PIXELS / (scale or upscaler.scale) ** 2))
                done = seeded.file(content, out, options=options, max_pixels=most, cancel=cancel, progress=note)
            return out.getvalue(), done

        (larger, done), place = await service.work(request, deadline, call)
        headers = service.served(
            request,
            name,
            (place.queue_ms, done.decode_ms, done.ms, done.encode_ms),
            (math.prod(done.size_in), math.prod(done.size_out)),
            len(larger),
            backend=done.backend,
            precision=done.precision,
            size=list(done.size_in),
        )
        if done.warnings:
            headers["RDSR-Warning"] = "; ".join(done.warnings).encode("ascii", "replace").decode()
        return Response(larger, media_type=MEDIA_TYPES[sniff(larger[:64], "the result")], headers=headers)

    @routes.get("/v1/models")
    async def models() -> dict[str, list[dict[str, Any]]]:
        """What can be asked for: each model with its network, scale, engine and precision."""
        rows = []
        for name in service.models.names:
            manifest, upscaler = service.models.describe(name)
            facts = {"arch": manifest.arch, "scale": manifest.scale, "params": manifest.params, "weights": manifest.weights}
            rows.append({"name": name, **facts, **dataclasses.asdict(upscaler.effective)})
        return {"models": rows}

    @routes.get("/v1/progress/{request_id}", response_class=EventSourceResponse)
    async def progress(request_id: str) -> Any:
        """Tiles of a request that are done, as server-sent events `{"done": 3, "total": 12}`, until it ends."""
        async for event in service.board.follow(request_id):
            yield event

    return routes
