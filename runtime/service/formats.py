"""Which format a client wants, and what its bytes are called over HTTP."""

from __future__ import annotations

from ..pictures.formats import WRITABLE

__all__ = ["MEDIA_TYPES", "NotAcceptableError", "wanted_format"]

MEDIA_TYPES = {
    "png": "image/png",
    "jpg": "image/jpeg",
    "webp": "image/webp",
    "tif": "image/tiff",
    "avif": "image/avif",
    "bmp": "image/bmp",
}
"""Format → media type, of all that can be written."""
assert set(MEDIA_TYPES) == set(WRITABLE)


class NotAcceptableError(Exception):
    """The client accepts no format that can be written."""


def wanted_format(accept: str | None) -> str | None:
    """The format that an `Accept` header prefers; None if any will do: then a picture keeps its own.

    Of equal weights, the one that is named first. Raises `NotAcceptableError`.
    """
    if not accept or not accept.strip():
        return None
    best, weight = "", 0.0
    any_weight = 0.0
    for entry in accept.split(","):
        media, *parameters = (part.strip().lower() for part in entry.split(";"))
        q = 1.0
        for parameter in parameters:
            if parameter.startswith("q="):
                try:
                    q = float(parameter[2:])
                except ValueError:
                    q = 0.0
        if media in ("*/*", "image/*"):
            any_weight = max(any_weight, q)
        for name, known in MEDIA_TYPES.items():
            if media == known and q > weight:
                best, weight = name, q
    if best and weight >= any_weight:
        return best
    if any_weight > 0:
        return None
    raise NotAcceptableError(f"the Accept header names none of {', '.join(MEDIA_TYPES.values())}")
