"""The page at `/`, for people: files of this folder, with nothing from elsewhere."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from importlib.resources import files

from fastapi import APIRouter
from fastapi.responses import Response

__all__ = ["page_routes"]

_FILES = {
    "/": ("index.html", "text/html; charset=utf-8"),
    "/page.css": ("page.css", "text/css"),
    "/page.js": ("page.js", "text/javascript"),
}
_POLICY = "default-src 'self'; img-src 'self' blob: data:; object-src 'none'; base-uri 'none'; form-action 'none'"
_HEADERS = {
    "Content-Security-Policy": _POLICY,
    "Cache-Control": "no-cache",
    "X-Content-Type-Options": "nosniff",
}


def _sender(content: bytes, media_type: str) -> Callable[[], Awaitable[Response]]:
    async def send() -> Response:  # whatever parameters it had would be the query's
        return Response(content, media_type=media_type, headers=_HEADERS)

    return send


def page_routes() -> APIRouter:
    """Address → file."""
    routes = APIRouter(include_in_schema=False)
    for address, (name, media_type) in _FILES.items():
        content = files(__package__).joinpath(name).read_bytes()
        routes.add_api_route(address, _sender(content, media_type), methods=["GET"], response_class=Response)
    return routes
