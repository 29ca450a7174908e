"""Fuzz target: mutated picture files through the reader. Both workers have to read the same pixels."""

from __future__ import annotations

import functools
import zlib

import numpy as np

from rdsr.tests.runtime.pictures import mutations
from rdsr.tests.runtime.pictures.read_result import result_of

__all__ = ["PAIRED", "SILENT", "attempt", "mutated", "seeds"]

PAIRED = True
SILENT = True
MEMORY = 2**31
"""libvips allocates the canvas that a WebP header claims, up to 1 GiB. It costs nothing before pixels are decoded, but
MALLOC_PERTURB_ fills it."""


_REFUSED = ("tiff lab", "tiff tiled planes")
"""Kinds that may be refused by name."""


@functools.cache
def _files() -> dict[str, bytes]:
    return mutations.seeds()


def seeds() -> dict[str, bytes]:
    """A small file of every kind that the reader takes."""
    return {name: content for name, content in _files().items() if name not in _REFUSED}


def mutated(rng: np.random.Generator) -> tuple[str, bytes]:
    """A file, changed."""
    return mutations.mutation(rng, list(_files().items()))


def attempt(content: bytes) -> str:
    """Read it whole, and one in four in strips, too."""
    what, text = result_of(content, zlib.crc32(content))
    if what == "fault":
        raise AssertionError(text)
    # The words of an error may depend on how far a decoder came; the pixels may not.
    return {"read": f"accepted: {text}", "refused": "refused: PictureError", "too large": f"refused: too large: {text}"}[
        what
    ]
