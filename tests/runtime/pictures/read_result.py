"""What the reader makes of a file that may be anything."""

from __future__ import annotations

import hashlib

import numpy as np

from rdsr.errors import RdsrError
from rdsr.runtime.pictures.reading import open_picture

__all__ = ["result_of"]

MAX_PIXELS = 4_000_000
"""Callers compare the header with their limit, before they decode."""
_CHANNELS = {2: (1,), 3: (2, 3, 4)}


def result_of(content: bytes, number: int) -> tuple[str, str]:
    """(read, refused, too large or fault; digest of the pixels, or the sentence)."""
    try:
        with open_picture(content, f"picture {number}") as picture:
            header = picture.header
            if header.height * header.width > MAX_PIXELS:
                return "too large", f"{header.shape} {header.dtype}"
            pixels = picture.pixels()
            warnings = tuple(picture.warnings)
            if (pixels.shape, pixels.dtype.name) != (header.shape, header.dtype):
                return "fault", f"{pixels.shape} {pixels.dtype} under a header of {header.shape} {header.dtype}"
            if pixels.dtype.name not in ("uint8", "uint16", "float32") or pixels.ndim not in _CHANNELS:
                return "fault", f"{pixels.shape} {pixels.dtype} is no picture"
            if pixels.ndim == 3 and pixels.shape[2] not in _CHANNELS[3]:
                return "fault", f"{pixels.shape} is no picture"
            if number % 4 == 0 and header.in_strips:
                strips = np.concatenate(list(picture.strips(16)))
                if strips.tobytes() != pixels.tobytes():
                    return "fault", "strips differ from the whole picture"
            digest = hashlib.sha256(pixels.tobytes()).hexdigest()[:16]
            return "read", f"{pixels.shape} {pixels.dtype} {digest} {warnings}"
    except RdsrError as error:
        return "refused", str(error)
    except BaseException as error:  # whatever else comes out is what the test looks for
        return "fault", f"{type(error).__name__}: {error}"
